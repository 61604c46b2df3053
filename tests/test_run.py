"""What a run writes, leaves out and leaves behind."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import SID_a4
from SID_a4 import HERE, Style, enlarged, main, overlay, whole


def table_in(folder, stem="SID_a4"):
    with (folder / f"{stem}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def files_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    """The script alone in a folder, under a student's id, run from somewhere else."""
    home = tmp_path_factory.mktemp("home")
    shutil.copy(HERE / "SID_a4.py", home / "D111111_a4.py")
    shutil.copy(HERE / "mnist_model.pth", home)
    shutil.copytree(HERE / "data", home / "data")
    command = [sys.executable, str(home / "D111111_a4.py")]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    return home, done


def test_the_default_run_writes_the_assignment(default_run):
    home, done = default_run
    assert (done.returncode, done.stderr) == (0, "")
    names = [f"image_{i}.png" for i in range(8)]
    expected = [f"{folder}/{name}" for folder in ("gradcam", "raw") for name in names]
    assert files_in(home / "outputs") == ["D111111_a4.csv", "D111111_a4.png", *expected]


def test_the_default_runs_table_is_right(default_run, network, digits):
    rows = table_in(default_run[0] / "outputs", "D111111_a4")
    assert [row["predicted"] for row in rows] == list("01234567")
    for row, digit in zip(rows, digits, strict=True):
        logits = network.net(network.tensor([digit.image]))
        assert float(row["probability"]) == pytest.approx(logits.softmax(1).max().item(), abs=2e-6)
        assert (row["image"], row["label"]) == (digit.name, digit.label)
        assert (row["target"], row["layer"], row["method"]) == (row["label"], "conv2", "gradcam")


def test_the_default_runs_pictures_are_right(default_run, network, digits):
    out = default_run[0] / "outputs"
    for digit in digits:
        raw = Image.open(out / "raw" / f"{digit.name}.png")
        assert (raw.mode, raw.size) == ("L", (28, 28))
        np.testing.assert_array_equal(raw, digit.image)
        explanation = SID_a4.explain(network.net, network.tensor([digit.image]))
        shown = np.asarray(Image.open(out / "gradcam" / f"{digit.name}.png"), int)
        assert (
            np.abs(
                shown - np.asarray(overlay(enlarged(digit.image), explanation, Style()), int)
            ).max()
            <= 6
        )
    with Image.open(out / "D111111_a4.png") as grid:
        assert grid.width > 1.5 * grid.height
        assert round(grid.info["dpi"][0]) == 300
        assert grid.width / 300 > 16 / 2.54  # pasted at 16 cm it is reduced, not enlarged
        assert len(np.unique(np.asarray(grid.convert("RGBA")).view(np.uint32))) > 500  # colours


def test_the_account_is_short_and_tells_the_pad_and_why(default_run):
    lines = default_run[1].stdout.splitlines()
    names = ["network", "layer", "pad", "pictures", "accuracy", "written"]
    assert [line[:10].strip() for line in lines if line[0] != " "] == names
    assert lines[0] == "network   CourseCNN (10 and 10 maps), mnist_model.pth"
    assert lines[1] == "layer     conv2, 10 maps of 8 x 8"
    assert lines[2] == "pad       3: 28 pixels at stride 2 make 14 cells, the map has 8"
    assert lines[3].startswith("pictures  8 explained in ")
    assert lines[4] == "accuracy  8 of 8 with a label are right (100.0%)"
    assert lines[5] == " " * 10 + ", ".join(f"{c} 1/1" for c in range(8))
    assert "D111111_a4.png" in lines[6]


def test_the_committed_results_are_the_default_runs(default_run):
    rows, kept = table_in(default_run[0] / "outputs", "D111111_a4"), table_in(HERE / "outputs")
    for row, expected in zip(rows, kept, strict=True):
        assert float(row.pop("probability")) == pytest.approx(
            float(expected.pop("probability")), abs=1e-4
        )
        assert row == expected
    with (
        Image.open(HERE / "outputs" / "SID_a4.png") as mine,
        Image.open(default_run[0] / "outputs" / "D111111_a4.png") as theirs,
    ):
        difference = np.asarray(mine.convert("RGB"), int) - np.asarray(theirs.convert("RGB"), int)
        assert (np.abs(difference) > 8).mean() < 0.01


def test_raw_pictures_read_again_give_the_same_results(default_run, tmp_path):
    raw = default_run[0] / "outputs" / "raw"
    assert main([str(raw), "--out", str(tmp_path), "--quiet"]) == 0
    for again, row in zip(
        table_in(tmp_path), table_in(default_run[0] / "outputs", "D111111_a4"), strict=True
    ):
        assert again == row | {"label": ""}


@pytest.fixture
def go(tmp_path, capsys):
    """Runs main with an output folder of its own: (exit code, stdout, stderr)."""

    def run(*arguments):
        code = main([*map(str, arguments), "--out", str(tmp_path / "out")])
        return (code, *capsys.readouterr())

    return run


def test_quiet_prints_nothing(go, tmp_path):
    assert go("--quiet") == (0, "", "")
    assert len(table_in(tmp_path / "out")) == 8


def test_one_unreadable_picture_is_named_and_the_others_are_explained(go, tmp_path):
    shutil.copytree(HERE / "data", tmp_path / "data")
    (tmp_path / "data" / "a.png").write_bytes(b"not a picture")
    code, out, err = go(tmp_path / "data", "--quiet")
    assert (code, out) == (1, "")
    assert err.startswith(f"SID_a4.py: skipped: {tmp_path}/data/a.png is not an image; give ")
    assert err.count("\n") == 1
    first, *rest = table_in(tmp_path / "out")
    assert first["image"] == "a"
    assert first["note"].startswith("skipped: ")
    assert not first["predicted"]
    assert [row["predicted"] for row in rest] == list("01234567")
    assert "1 skipped" in go(tmp_path / "data")[1]


def test_more_pictures_than_a_batch_or_the_figure_holds(go, tmp_path):
    data = HERE / "data" / "test_data.json"
    code, out, err = go(data, data, "--batch-size", 3)
    assert (code, err) == (0, "")
    rows = table_in(tmp_path / "out")
    assert [row["image"] for row in rows[7:10]] == ["image_7", "image_0-2", "image_1-2"]
    for one, two in zip(rows[:8], rows[8:], strict=True):
        assert (one["predicted"], one["note"]) == (two["predicted"], two["note"])
    assert "16 explained" in out
    assert len(files_in(tmp_path / "out" / "gradcam")) == 16


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
    explanation = SID_a4.explain(network.net, network.tensor([digits[4].image]), 7, pad=1)
    shown = Image.open(tmp_path / "out" / "gradcam" / "four.png")
    np.testing.assert_array_equal(shown, overlay(enlarged(digits[4].image), explanation, Style()))
    _, out, _ = go(images / "four.png")
    assert "note      bright border: if this is dark ink on white paper, add --invert (1)" in out


def test_no_positive_evidence_is_said_in_table_and_account(go, tmp_path):
    state = torch.load(HERE / "mnist_model.pth", weights_only=True)
    state["fc2.weight"].zero_()  # nothing in the maps speaks for any class
    torch.save(state, tmp_path / "blank.pth")
    code, out, _ = go("--weights", tmp_path / "blank.pth")
    assert code == 0
    assert "note      no positive evidence (8)" in out
    assert {row["note"] for row in table_in(tmp_path / "out")} == {"no positive evidence"}


def test_a_file_is_whole_or_not_there(tmp_path):
    path, aside = tmp_path / "folder" / "result.txt", tmp_path / "aside"
    with pytest.raises(RuntimeError), whole(path, aside) as part:
        part.write_text("half")
        raise RuntimeError
    assert files_in(tmp_path) == []
    with whole(path, aside) as part:
        part.write_text("all")
        assert part.parent == aside
        assert not path.exists()
    assert path.read_text() == "all"
    with pytest.raises(KeyboardInterrupt), whole(path, aside) as part:
        part.write_text("half of the next")
        raise KeyboardInterrupt
    assert (path.read_text(), files_in(tmp_path)) == ("all", ["folder/result.txt"])


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("moment", ["imports", "pictures"])
def test_ctrl_c_leaves_no_half_file_and_no_traceback(tmp_path, moment):
    many = [[0] * 784] * 3000
    (tmp_path / "many.json").write_text(json.dumps(many))
    command = [
        sys.executable,
        "-X",
        "importtime" if moment == "imports" else "utf8",
        str(HERE / "SID_a4.py"),
        str(tmp_path / "many.json"),
        "--out",
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if moment == "imports":  # wait until the script's own imports have begun
        while "argparse" not in process.stderr.readline():
            pass
    else:
        while not (tmp_path / "out" / "gradcam" / "image_80.png").exists():
            assert process.poll() is None
            time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    if moment == "pictures":
        assert (process.returncode, err.count("\n")) == (130, 1)
        assert err.startswith("SID_a4.py: interrupted")
    out = files_in(tmp_path / "out") if (tmp_path / "out").exists() else []
    for name in out:
        if not name.startswith("."):  # in the folder of parts a half file does no harm
            assert name.startswith(("raw/", "gradcam/")), name
            Image.open(tmp_path / "out" / name).load()


# ------------------------------------------------------------------- choosing and presenting


@pytest.fixture
def labelled(tmp_path, digits):
    """Sub-folders that name the digits; two of them are named wrongly."""
    folder = tmp_path / "labelled"
    for digit, label in zip(digits, "01234599", strict=True):
        (folder / label).mkdir(parents=True, exist_ok=True)
        digit.image.save(folder / label / f"{digit.name}.png")
    return folder


def test_right_and_wrong_pictures_can_be_picked_and_counted(go, tmp_path, labelled):
    code, out, _ = go(labelled, "--pick", "wrong")
    assert code == 0
    rows = table_in(tmp_path / "out")
    assert [(row["label"], row["predicted"]) for row in rows] == [("9", "6"), ("9", "7")]
    assert "accuracy  6 of 8 with a label are right (75.0%)" in out
    assert "0 1/1, 1 1/1, 2 1/1, 3 1/1, 4 1/1, 5 1/1, 9 0/2" in out
    assert go(labelled, "--pick", "right", "--limit", 2)[0] == 0
    assert [row["label"] for row in table_in(tmp_path / "out")] == ["0", "1"]
    assert "accuracy  6 of 8" in go(labelled, "--pick", "right", "--limit", 2)[1]  # of all it read
    assert go(labelled, "--limit", 3)[0] == 0
    assert [row["label"] for row in table_in(tmp_path / "out")] == ["0", "1", "2"]


def test_picking_finds_what_lies_behind_a_batch(go, tmp_path, labelled):
    assert go(labelled, "--pick", "wrong", "--limit", 1, "--batch-size", 3)[0] == 0
    assert [row["predicted"] for row in table_in(tmp_path / "out")] == ["6"]


def test_nothing_picked_is_said_and_nothing_is_written(go, tmp_path):
    code, out, err = go("--pick", "wrong")
    assert (code, out) == (2, "")
    assert err == (
        "SID_a4.py: error: no picture is wrong (of 8 with a label); give others, or another "
        "--pick\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_maps_of_several_classes_never_overwrite_each_other(go, tmp_path, digits):
    for label in ("2", "5"):
        (tmp_path / "d" / label).mkdir(parents=True)
        digits[int(label)].image.save(tmp_path / "d" / label / "dog.png")
    assert go(tmp_path / "d", "--target", "label", "5", "5")[0] == 0
    rows = [(row["image"], row["target"]) for row in table_in(tmp_path / "out")]
    assert rows == [("dog", "2"), ("dog", "5"), ("dog-2", "5"), ("dog-2", "5")]
    names = files_in(tmp_path / "out" / "gradcam")
    assert names == ["dog-2@5.png", "dog@2.png", "dog@5.png"]


def test_the_figure_says_what_it_leaves_out(go):
    out = go("--target", "0", "1", "2", "--panels", "raw")[1]
    assert "; the figure shows the first 6 of 24 columns" in out  # two whole pictures
    assert "; the figure" not in go("--panels", "raw")[1]


def test_methods_made_for_maps_after_a_relu_say_so(go, tmp_path):
    out = go("--method", "gradcam", "xgradcam", "--limit", "1")[1]
    assert "note      xgradcam is made for maps after a ReLU, but those of conv2 have neg" in out
    assert [bool(row["note"]) for row in table_in(tmp_path / "out")] == [False, True]


def test_several_targets_and_methods_give_several_rows(go, tmp_path, network, digits):
    digits[5].image.save(tmp_path / "five.png")
    options = ["--target", "predicted", "3", "8", "--method", "gradcam", "xgradcam"]
    assert go(tmp_path / "five.png", *options)[0] == 0
    rows = [(row["target"], row["method"]) for row in table_in(tmp_path / "out")]
    assert rows == [(c, method) for c in "538" for method in ("gradcam", "xgradcam")]
    names = files_in(tmp_path / "out" / "gradcam")
    assert names == [f"five@{c}@{m}.png" for c in "358" for m in ("gradcam", "xgradcam")]
    x = network.tensor([digits[5].image])
    explanation = SID_a4.explain(network.net, x, 8, method="xgradcam")
    shown = Image.open(tmp_path / "out" / "gradcam" / "five@8@xgradcam.png")
    expected = overlay(enlarged(digits[5].image), explanation, Style())
    assert np.abs(np.asarray(shown, int) - np.asarray(expected, int)).max() <= 4


def test_pictures_may_stand_behind_a_list(go, tmp_path, digits):
    digits[5].image.save(tmp_path / "five.png")
    assert go("--target", "3", tmp_path / "five.png", "--quiet") == (0, "", "")
    (row,) = table_in(tmp_path / "out")
    assert (row["image"], row["predicted"], row["target"]) == ("five", "5", "3")


def test_the_label_can_be_explained(go, tmp_path, labelled):
    assert go(labelled, "--target", "label")[0] == 0
    assert [row["target"] for row in table_in(tmp_path / "out")] == list("01234599")
    shutil.copy(labelled / "0" / "image_0.png", labelled / "no_label.png")
    code, _, err = go(labelled, "--target", "label", "--quiet")
    assert code == 1
    assert err.startswith("SID_a4.py: skipped: no_label has no label for --target label; put it")


def test_blur_is_a_gaussian_of_that_many_pixels():
    point = torch.zeros(1, 41, 61)
    point[0, 20, 30] = 1
    blurred = SID_a4.blurred(point, 2.5)[0]
    p = torch.arange(61.0) - 30
    assert blurred.sum() == pytest.approx(1, abs=1e-5)
    assert (blurred.sum(0) * p**2).sum().sqrt() == pytest.approx(2.5, rel=1e-3)
    ones = torch.ones(1, 9, 9)
    torch.testing.assert_close(SID_a4.blurred(ones, 3.0), ones)  # the border does not darken
    assert SID_a4.blurred(point, 0) is point


def test_blur_is_for_the_heat_map_alone(go, tmp_path, network, digits):
    digits[5].image.save(tmp_path / "five.png")
    go(tmp_path / "five.png", "--blur", 2)
    explanation = SID_a4.explain(network.net, network.tensor([digits[5].image]))
    soft = replace(explanation, L_c=SID_a4.blurred(explanation.L_c, 2))
    shown = Image.open(tmp_path / "out" / "gradcam" / "five.png")
    np.testing.assert_array_equal(shown, overlay(enlarged(digits[5].image), soft, Style()))


def test_full_size_overlays_undo_resize_and_padding(go, tmp_path, digits):
    large = digits[5].image.resize((140, 140), Image.Resampling.NEAREST)
    sheet = Image.new("L", (300, 140))
    sheet.paste(large, (80, 0))
    sheet.save(tmp_path / "sheet.png")
    go(tmp_path / "sheet.png", "--full-size", "--opacity", 1, "--colormap", "gray")
    full = Image.open(tmp_path / "out" / "gradcam" / "sheet.png")
    assert full.size == (300, 140)
    go(tmp_path / "sheet.png", "--opacity", 1, "--colormap", "gray")
    square = np.asarray(Image.open(tmp_path / "out" / "gradcam" / "sheet.png").convert("L"), float)
    # In the network's 28 x 28 the sheet is 28 wide and 13 high; there each map has its peak.
    y, x = np.unravel_index(np.asarray(full.convert("L")).argmax(), (140, 300))
    y28, x28 = (n / 8 for n in np.unravel_index(square.argmax(), square.shape))
    assert abs(x / 300 * 28 - x28) < 1
    assert abs((y / 140 - 0.5) * 13 - (y28 - 14)) < 1


@pytest.mark.parametrize("size", [(1, 28), (28, 1), (1, 200), (300, 1), (3, 500)])
def test_full_size_overlays_of_thin_pictures(go, tmp_path, size):
    """Of a line a cut from the middle is no whole pixel wide: one is shown all the same."""
    Image.new("L", size, 200).save(tmp_path / "thin.png")
    (tmp_path / "own.py").write_text(OWN)
    for model in ("course", f"{tmp_path / 'own.py'}:Net"):
        assert go(tmp_path / "thin.png", "--model", model, "--full-size")[0] == 0
        with Image.open(tmp_path / "out" / "gradcam" / "thin.png") as full:
            assert full.size == size


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


def test_picking_from_a_network_that_hooks_its_own_maps(go, tmp_path, labelled):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "names.txt").write_text("0\n1\n")
    words = ("--model", f"{tmp_path / 'own.py'}:Net", "--classes", tmp_path / "names.txt")
    two, picked = tmp_path / "two", []
    for name in ("0", "1"):
        shutil.copytree(labelled / name, two / name)
    for pick in ("right", "wrong"):
        code, _, err = go(two, *words, "--pick", pick)
        assert code == 0 or f"no picture is {pick} (of 2 with a label)" in err
        picked += table_in(tmp_path / "out") if code == 0 else []
    assert sorted(row["label"] for row in picked) == ["0", "1"]
    assert "0 (Conv2d)" in go("--model", f"{tmp_path / 'own.py'}:Net", "--layers")[1]


def test_a_result_folder_on_another_disk(go, tmp_path, monkeypatch):
    move = Path.replace

    def replace(path, target):
        if Path(target).parent.name in ("raw", "gradcam"):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        move(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    assert go()[0] == 0
    assert len(files_in(tmp_path / "out" / "gradcam")) == 8
    assert not [name for name in files_in(tmp_path / "out") if name.startswith((".", "_"))]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "gradcam/ and raw/ beside them"),
        (["--save-maps", "float16"], "gradcam/ and raw/ and maps/ beside them"),
        (["--overlays", "none"], ""),
    ],
)
def test_the_account_names_what_was_written(go, tmp_path, options, said):
    _, out, _ = go(*options)
    written = out.splitlines()[-1]
    assert written == f"written   {tmp_path}/out/SID_a4.png and .csv" + (said and f"; {said}")
    folders = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    assert folders == {word.rstrip("/") for word in said.split() if word.endswith("/")}


def test_random_weights_are_said_loudly(go):
    code, out, err = go(
        "--model", "squeezenet1_1", "--weights", "none", "--size", "64", "--panels", "raw"
    )
    assert code == 0
    assert "squeezenet1_1 of torchvision, RANDOM weights" in out
    assert err == "SID_a4.py: the weights are RANDOM: these maps mean nothing\n"


def test_the_course_network_may_be_random_too(go):
    code, out, err = go("--weights", "none", "--quiet")
    assert (code, out) == (0, "")
    assert "RANDOM" in err


def test_only_the_panels_asked_for_are_computed(go, monkeypatch):
    monkeypatch.setattr(SID_a4.Watch, "guided_backprop", lambda *a: pytest.fail("not asked for"))
    assert go("--panels", "raw", "gradcam", "overlay")[0] == 0


def test_the_device_is_used(go, monkeypatch):
    seen = []
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *a, **k: seen.append(a[:1]) or to(x, *a, **k))
    assert go("--device", "cpu")[0] == 0
    assert (torch.device("cpu"),) in seen


def test_class_names_from_a_file(go, tmp_path):
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    assert go("--classes", tmp_path / "names.txt", "--target", "Nine")[0] == 0
    rows = table_in(tmp_path / "out")
    assert [row["predicted"] for row in rows] == names[:8]
    assert [row["label"] for row in rows] == names[:8]
    assert {row["target"] for row in rows} == {"nine"}
    (tmp_path / "names.json").write_text(json.dumps(names))
    assert go("--classes", tmp_path / "names.json")[0] == 0
    assert [row["predicted"] for row in table_in(tmp_path / "out")] == names[:8]


def test_hostile_names_stay_inside_the_output_folder(go, tmp_path):
    content = {"../../escape": [0] * 784, "=1+1": [0] * 784, "\ud800": 3, "a\nb": 3}
    (tmp_path / "hostile.json").write_text(json.dumps(content))
    code, _, err = go(tmp_path / "hostile.json")
    assert (code, err.count("\n")) == (1, 2)
    names = [row["image"] for row in table_in(tmp_path / "out")]
    assert names == ["escape", "1_1", "picture", "a_b"]
    assert {path.parts[len(tmp_path.parts)] for path in tmp_path.rglob("*")} == {
        "hostile.json",
        "out",
    }


def test_a_reader_who_goes_away_is_no_error(tmp_path):
    command = (
        f"{sys.executable} {HERE / 'SID_a4.py'} --out {tmp_path} | true; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("0\n", "")
