"""One batch: which pictures it holds, which of them are picked, and what is made of them."""

import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from course import COURSE
from PIL import Image
from running import course_run, explained_in, files_in, seenby, table_in

from seenby import Style, explain, overlay
from seenby.batch import Batches, Source, batched, explain_batch, predict, to_cpu
from seenby.core.backward import guided_backprop
from seenby.core.placement import gaussian_blur
from seenby.outputs.colors import enlarged
from seenby.settings import Settings


@pytest.fixture
def go(tmp_path):
    """A run with the course network into tmp_path/out: its exit code, stdout and stderr."""
    return lambda *words: course_run(tmp_path / "out", *words)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, digits):
    """Sub-folders that name the digits; two of them are named wrongly."""
    folder = tmp_path_factory.mktemp("labelled")
    for digit, label in zip(digits, "01234599", strict=True):
        (folder / label).mkdir(parents=True, exist_ok=True)
        digit.image.save(folder / label / f"{digit.name}.png")
    return folder


# ---------------------------------------------------------------------------------- which pictures


def test_pictures_in_batches():
    assert list(batched(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batched([], 3)) == []
    endless = batched(iter(int, 1), 2)  # nothing is read before it is needed
    assert next(endless) == [0, 0]


def test_batches_hold_what_is_wanted_and_not_done(labelled, network):
    settings = Settings(images=(str(labelled),), batch_size=3)
    names = [f"image_{i}" for i in range(8)]
    found = list(Batches(Source(settings, network), range(9)))
    assert [number for number, _ in found] == [0, 1, 2]
    assert [p.name for _, pictures in found for p in pictures] == names
    found = list(Batches(Source(settings, network), range(9), done={1}))
    assert [(n, [p.name for p in pictures]) for n, pictures in found] == [
        (0, names[:3]), (2, names[6:]),
    ]  # fmt: skip
    second = Batches(Source(settings, network), range(1, 9, 2))  # the second of two processes
    assert [number for number, _ in second] == [1]
    assert [p.label for _, pictures in second for p in pictures] == ["3", "4", "5"]


def test_a_limit_counts_pictures_or_where_some_are_picked_those(labelled, network):
    settings = Settings(images=(str(labelled),), limit=3)
    assert [name for name, *_ in Source(settings, network).items()] == [
        "image_0", "image_1", "image_2",
    ]  # fmt: skip
    assert len(list(Source(replace(settings, pick="wrong"), network).items())) == 8


# ------------------------------------------------------------------------------------- picked


def test_right_and_wrong_pictures_can_be_picked_and_counted(go, tmp_path, labelled):
    code, out, _ = go(labelled, "--pick", "wrong")
    assert code == 0
    rows = explained_in(tmp_path / "out")
    assert [(row["label"], row["predicted"]) for row in rows] == [("9", "6"), ("9", "7")]
    assert "accuracy  6 of 8 with a label are right (75.0%)" in out
    assert "0 1/1, 1 1/1, 2 1/1, 3 1/1, 4 1/1, 5 1/1, 9 0/2" in out
    code, out, _ = go(labelled, "--pick", "correct", "--limit", 2)
    assert code == 0
    assert [row["label"] for row in explained_in(tmp_path / "out")] == ["0", "1"]
    assert "accuracy  6 of 8" in out  # of all it read
    assert go(labelled, "--limit", 3)[0] == 0
    assert [row["label"] for row in explained_in(tmp_path / "out")] == ["0", "1", "2"]


def test_pictures_that_are_not_picked_stand_in_the_table(go, tmp_path, labelled, network, digits):
    assert go(labelled, "--pick", "correct", "--limit", 2)[0] == 0
    rows = table_in(tmp_path / "out")
    assert [row["status"] for row in rows] == ["explained"] * 2 + ["not picked"] * 6
    logits = network.module(network.tensor([digit.image for digit in digits]))
    for row, digit, probabilities in zip(rows, digits, logits.softmax(1), strict=True):
        assert (row["image"], row["predicted"]) == (digit.name, digit.label)
        best = probabilities.max().item()
        assert float(row["predicted_probability"]) == pytest.approx(best, abs=2e-6)
    assert files_in(tmp_path / "out" / "overlays") == ["image_0.png", "image_1.png"]


def test_picking_finds_what_lies_behind_a_batch(go, tmp_path, labelled):
    assert go(labelled, "--pick", "wrong", "--limit", 1, "--batch-size", 3)[0] == 0
    assert [row["predicted"] for row in explained_in(tmp_path / "out")] == ["6"]


def test_nothing_picked_is_said_and_nothing_is_written(go, tmp_path, digit_folder):
    code, out, err = go(digit_folder, "--pick", "wrong")
    assert (code, out) == (2, "")
    assert err == (
        "seenby: error: no picture is wrong (of 8 with a label); give others, or another --pick\n"
    )
    assert list(tmp_path.iterdir()) == []


OWN = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 7, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, 2))

    def forward(self, x):
        for layer in self:
            x = layer(x)
            if len(layer.state_dict()) == 2 and x.ndim == 4:
                x.register_hook(lambda gradient: None)  # as many tutorials write it
        return x
"""


def test_picking_from_a_network_that_hooks_its_own_maps(tmp_path, labelled):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "names.txt").write_text("0\n1\n")
    model = ("--model", f"{tmp_path / 'own.py'}:Net")
    words = (*model, "--class-names", tmp_path / "names.txt", "--out", tmp_path / "out")
    two, picked = tmp_path / "two", []
    for name in ("0", "1"):
        shutil.copytree(labelled / name, two / name)
    for pick in ("correct", "wrong"):
        code, _, err = seenby(two, *words, "--pick", pick)
        assert code == 0 or f"no picture is {pick} (of 2 with a label)" in err
        picked += explained_in(tmp_path / "out") if code == 0 else []
    assert sorted(row["label"] for row in picked) == ["0", "1"]
    assert "0 (Conv2d)" in seenby(*model, "--list-layers")[1]


def test_predictions_are_the_most_probable_classes(network, digits):
    found = predict(network, digits)
    assert [name for name, _ in found] == [digit.label for digit in digits]
    logits = network.module(network.tensor([digit.image for digit in digits]))
    expected = logits.softmax(1).max(1).values.tolist()
    assert [float(probability) for _, probability in found] == pytest.approx(expected, abs=1e-6)


# ----------------------------------------------------------------------------------- explained


def test_target_pad_and_invert_are_obeyed(go, tmp_path, network, digits):
    images = tmp_path / "paper"
    images.mkdir()
    paper = Image.fromarray(255 - np.asarray(digits[4].image))
    paper.save(images / "four.png")
    code, out, _ = go(images / "four.png", "--invert", "--target", 7, "--pad", 1)
    assert code == 0
    assert "pad       1, as asked" in out
    (row,) = table_in(tmp_path / "out")
    assert (row["predicted"], row["target"]) == ("4", "7")
    explanation = explain(network.module, network.tensor([digits[4].image]), 7, pad=1)
    shown = Image.open(tmp_path / "out" / "overlays" / "four.png")
    np.testing.assert_array_equal(shown, overlay(enlarged(digits[4].image), explanation, Style()))


def test_the_label_can_be_explained(go, tmp_path, labelled):
    assert go(labelled, "--target", "label")[0] == 0
    assert [row["target"] for row in table_in(tmp_path / "out")] == list("01234599")
    shutil.copytree(labelled, tmp_path / "more")
    shutil.copy(labelled / "0" / "image_0.png", tmp_path / "more" / "no_label.png")
    code, _, err = go(tmp_path / "more", "--target", "label", "--quiet")
    assert code == 1
    assert err.startswith("seenby: skipped: no_label has no label for --target label; put it")


def test_several_targets_and_methods_give_several_rows(go, tmp_path, network, digits):
    digits[5].image.save(tmp_path / "five.png")
    options = ["--target", "predicted", "3", "8", "--method", "gradcam", "xgradcam"]
    assert go(tmp_path / "five.png", *options)[0] == 0
    rows = [(row["target"], row["method"]) for row in table_in(tmp_path / "out")]
    assert rows == [(c, method) for c in "538" for method in ("gradcam", "xgradcam")]
    names = files_in(tmp_path / "out" / "overlays")
    assert names == [f"five@{c}@{m}.png" for c in "358" for m in ("gradcam", "xgradcam")]
    x = network.tensor([digits[5].image])
    explanation = explain(network.module, x, 8, method="xgradcam")
    shown = Image.open(tmp_path / "out" / "overlays" / "five@8@xgradcam.png")
    expected = overlay(enlarged(digits[5].image), explanation, Style())
    assert np.abs(np.asarray(shown, int) - np.asarray(expected, int)).max() <= 4


def test_blur_is_for_the_heat_map_alone(go, tmp_path, network, digits):
    digits[5].image.save(tmp_path / "five.png")
    go(tmp_path / "five.png", "--blur", 2, "--save-maps", "float32")
    explanation = explain(network.module, network.tensor([digits[5].image]))
    soft = replace(explanation, heatmap=gaussian_blur(explanation.heatmap, 2))
    shown = Image.open(tmp_path / "out" / "overlays" / "five.png")
    np.testing.assert_array_equal(shown, overlay(enlarged(digits[5].image), soft, Style()))
    with np.load(tmp_path / "out" / "maps" / "000000.npz") as maps:
        np.testing.assert_array_equal(maps["heatmap"], soft.heatmap)
        np.testing.assert_allclose(maps["R"], explanation.R, atol=1e-6)


def test_only_the_panels_asked_for_are_computed(go, digit_folder, monkeypatch):
    calls = []

    def counted(*given):
        calls.append(given)
        return guided_backprop(*given)

    monkeypatch.setattr("seenby.core.explanation.guided_backprop", counted)
    assert go(digit_folder, "--panels", "raw", "cam", "overlay")[0] == 0
    assert calls == []
    assert go(digit_folder, "--panels", "raw", "guided")[0] == 0
    assert len(calls) == 1


def test_the_device_is_used(go, digit_folder, monkeypatch):
    seen = []
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *a, **k: seen.append(a[:1]) or to(x, *a, **k))
    assert go(digit_folder, "--device", "cpu")[0] == 0
    assert (torch.device("cpu"),) in seen


def test_what_becomes_of_each_picture_of_a_batch(network, digits):
    broken = replace(digits[0], name="broken", image=None, note="broken")
    settings = Settings(target=("label", "3"), pick="correct")
    wrong = replace(digits[6], label="9")
    batch = [digits[1], broken, wrong, replace(digits[2], label=""), digits[3], digits[4]]
    found = explain_batch(batch, network, settings, ("label", 3), picks_left=2)
    assert [result.picture.name for result in found] == [picture.name for picture in batch]
    assert [[row["status"] for row in result.rows] for result in found] == [
        ["explained"] * 2, ["skipped"], ["not picked"], ["not picked"], ["explained"] * 2,
        ["not picked"],  # as there were two
    ]  # fmt: skip
    assert [[int(e.target) for e in result.explanations] for result in found] == [
        [1, 3], [], [], [], [3, 3], [],
    ]  # fmt: skip
    alone = explain(network.module, network.tensor([digits[1].image]), 3)
    torch.testing.assert_close(found[0].explanations[1].heatmap, alone.heatmap)
    assert explain_batch([broken], network, Settings(), ("predicted",), 1)[0].explanations == []


def test_a_map_that_is_not_finite_anywhere_is_found(network, digits):
    both = explain(network.module, network.tensor([digit.image for digit in digits[:2]]))
    assert both.is_finite.tolist() == [True, True]
    for name in ("logits", "heatmap", "R", "guided_cam"):
        values = getattr(both, name).clone()
        values[1].view(-1)[3] = torch.inf
        assert replace(both, **{name: values}).is_finite.tolist() == [True, False]
    assert replace(both, R=None, guided_cam=None).is_finite.tolist() == [True, True]


def test_one_transfer_brings_every_tensor_as_it_was(network, digits):
    x = network.tensor([digit.image for digit in digits])
    explanations = [explain(network.module, x, c) for c in (3, None)]
    for before, after in zip(explanations, to_cpu(explanations), strict=True):
        for name, value in vars(before).items():
            if isinstance(value, torch.Tensor):
                found = getattr(after, name)
                assert (found.dtype, found.shape) == (value.dtype, value.shape)
                assert torch.equal(found, value)
            else:
                assert getattr(after, name) == value


# ------------------------------------------------------------------------------ in other processes

SPAWN = """
import multiprocessing, sys
import seenby.pipeline
from seenby.command_line import main

explain_batch, workers = seenby.pipeline.explain_batch, set()

def watched(*given):
    workers.update(child._popen.method for child in multiprocessing.active_children())
    return explain_batch(*given)

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    seenby.pipeline.explain_batch = watched
    code = main(sys.argv[2:])
    print(code, *sorted(workers))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_workers_may_be_spawned(tmp_path, labelled):
    (tmp_path / "start.py").write_text(SPAWN)
    shutil.copytree(labelled, pictures := tmp_path / "pictures")
    (pictures / "0" / "broken.png").write_bytes(b"hello")
    contents = {}
    for method in ("spawn", "fork"):
        words = [str(pictures), *COURSE, "--out", str(tmp_path / method), "--quiet"]
        words += ["--batch-size", "1", "--workers", "2", "--target", "predicted", "3"]
        done = subprocess.run([sys.executable, str(tmp_path / "start.py"), method, *words],
                              capture_output=True, text=True, check=True)  # fmt: skip
        assert done.stdout == f"1 {method}\n"
        assert done.stderr.count("\n") == 1
        assert "broken.png is not an image" in done.stderr
        out = tmp_path / method
        contents[method] = {name: (out / name).read_bytes() for name in files_in(out)}
    assert len(table_in(tmp_path / "spawn")) == 17
    assert len(contents["spawn"]) == 3 + 8 + 15  # of the three, predicted and 3 are the same
    assert contents["spawn"] == contents["fork"]
