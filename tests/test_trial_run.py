"""--trust: what a run says, writes, keeps when it is interrupted, and refuses."""

import json
import shutil
import zlib
from dataclasses import fields
from operator import itemgetter

import pytest
import torch
from course import COURSE, MODEL
from PIL import Image
from running import course_run, files_in, seenby, table_in
from train_mnist import jittered

from seenby import pipeline, trial_run
from seenby.errors import InputError
from seenby.machine import Ranks
from seenby.options import parse_settings
from seenby.pipeline import execute
from seenby.trial_run import forest_of
from seenby.verdict import Trust
from SID_a4 import CourseCNN

LIGHT = ("--no-overlays", "--no-raw", "--panels", "raw", "cam", "--columns", 1)


@pytest.fixture(scope="module")
def many_digits(tmp_path_factory, network, digits):
    """0/0.png to 7/23.png: three of each of the eight, jittered."""
    folder = tmp_path_factory.mktemp("many")
    x = network.tensor([digit.image for digit in digits]).repeat_interleave(3, 0)
    x = jittered(x, torch.Generator().manual_seed(0)) * CourseCNN.STD + CourseCNN.MEAN
    for i, pixels in enumerate((x[:, 0].clamp(0, 1) * 255).byte().numpy()):
        (folder / str(i // 3)).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / str(i // 3) / f"{i}.png")
    return folder


def trial_in(folder):
    return json.loads((folder / "trust.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tried(many_digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("tried")
    code, said, err = course_run(out, many_digits, *LIGHT, "--trust", 8)
    assert (code, err) == (0, "")
    return out, said


def test_the_account_the_record_and_the_plot(tried):
    out, said = tried
    assert files_in(out) == ["run.json", "seenby.csv", "seenby.png", "trust.json", "trust.png"]
    record = trial_in(out)
    lines = said.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("trust     "))
    end = next(i for i, line in enumerate(lines) if line.startswith("written   "))
    words = " ".join(" ".join(lines[start:end]).split())
    assert words == " ".join(["trust", *record["sentences"]])
    assert all(len(line) <= 80 for line in lines[start:end])
    assert "trust.json, trust.png" in lines[end]
    assert (record["layer"], record["method"], record["pad"], record["target"]) == (
        "conv2", "gradcam", "auto", "predicted",
    )  # fmt: skip
    assert (record["pictures"], record["labelled"], record["correct"]) == (8, 8, 8)
    assert record["network"] == "CourseCNN of SID_a4.py, mnist_model.pth"
    with Image.open(out / "trust.png") as plot:
        assert plot.width == 945  # 8 cm at 300 dpi


def test_the_plot_says_what_the_coverings_reach(tried):
    record = trial_in(tried[0])
    own, reach = (min(record["correlation"][name].values(), key=itemgetter(1))[0]
                  for name in ("own", "coverings"))
    plot = forest_of(Trust(**{field.name: record[field.name] for field in fields(Trust)}))
    assert plot.get_suptitle().splitlines()[-2:] == [
        "8 pictures x 24 sets, 8 of 8 classified correctly",
        f"they score {own:.2f}, maps made of half of the coverings {reach:.2f}",
    ]


def test_a_method_that_can_not_be_tried_is_refused_before_the_run(many_digits, tmp_path):
    words = ("--trust", 8, "--method", "counterfactual", "gradcam")
    code, said, err = course_run(tmp_path / "out", many_digits, *LIGHT, *words)
    assert (code, said) == (2, "")
    assert err.startswith("seenby: error: method counterfactual was given, whose maps show what ")
    assert not (tmp_path / "out").exists()


def test_the_pictures_are_spread_over_the_run(many_digits, tmp_path, monkeypatch):
    seen = []
    observe = trial_run.observe
    monkeypatch.setattr(trial_run, "observe", lambda plan, x, c, seed: (
        seen.append(seed), observe(plan, x, c, seed))[1])  # fmt: skip
    assert course_run(tmp_path, many_digits, *LIGHT, "--trust", 8)[0] == 0
    first_of_each_folder = ("0", "3", "6", "10", "12", "15", "18", "21")
    assert seen == [zlib.crc32(name.encode()) for name in first_of_each_folder]


def test_the_same_run_writes_the_same_bytes(tried, many_digits, tmp_path):
    assert course_run(tmp_path, many_digits, *LIGHT, "--trust", 8)[0] == 0
    for name in ("trust.json", "trust.png"):
        assert (tmp_path / name).read_bytes() == (tried[0] / name).read_bytes()


def test_an_interrupted_trial_goes_on(tried, many_digits, tmp_path, monkeypatch):
    observe, calls = trial_run.observe, []

    def stop(*given):
        if len(calls) == 5:
            raise OSError(28, "No space left on device")
        calls.append(given)
        return observe(*given)

    with monkeypatch.context() as patch:
        patch.setattr(trial_run, "observe", stop)
        code, _, err = course_run(tmp_path, many_digits, *LIGHT, "--trust", 8)
    assert code == 2
    assert "run again with --resume" in err
    monkeypatch.setattr(trial_run, "observe", lambda *given: calls.append(given) or observe(*given))
    assert course_run(tmp_path, many_digits, *LIGHT, "--trust", 8, "--resume")[0] == 0
    assert len(calls) == 8
    assert (tmp_path / "trust.json").read_bytes() == (tried[0] / "trust.json").read_bytes()


def test_a_picture_that_is_gone_is_named(many_digits, tmp_path, monkeypatch):
    """As on a network's disk; and what the run wrote is kept."""
    digits = tmp_path / "in"
    shutil.copytree(many_digits, digits)
    try_maps = pipeline.try_maps

    def lose(*given):
        (digits / "0" / "0.png").write_bytes(b"")
        return try_maps(*given)

    monkeypatch.setattr(pipeline, "try_maps", lose)
    code, _, err = course_run(tmp_path / "out", digits, *LIGHT, "--trust", 8)
    assert code == 2
    assert "0.png is an empty file" in err
    assert (tmp_path / "out" / "seenby.csv").exists()


def test_labels_are_right_where_all_of_them_are(many_digits, tmp_path):
    """As in the account: with one of two labels predicted, a picture is not correct."""
    digits = tmp_path / "in"
    digits.mkdir()
    for i in range(8):
        (digits / f"{i}.png").write_bytes((many_digits / str(i) / f"{3 * i}.png").read_bytes())
    words = (digits, *LIGHT, "--task", "multilabel")
    assert course_run(tmp_path / "out", *words)[0] == 0
    said = [row["predicted"] for row in table_in(tmp_path / "out")]
    assert max(labels.count(";") for labels in said) > 0
    rows = [f"{i}.png,{labels if i % 4 else 9}" for i, labels in enumerate(said)]
    (digits / "labels.csv").write_text("\n".join(["image,labels", *rows]))
    code, account, err = course_run(tmp_path / "out", *words, "--trust", 8)
    assert (code, err) == (0, "")
    assert "6 of 8 with labels have all of them right" in account
    record = trial_in(tmp_path / "out")
    assert (record["labelled"], record["correct"]) == (8, 6)


def test_what_is_asked_for_is_what_is_tried(many_digits, tmp_path):
    words = ("--trust", 8, "--target", "label", "3", "--layer", "conv1", "--method", "xgradcam",
             "--pad", 0)  # fmt: skip
    code, said, _ = course_run(tmp_path, many_digits, *LIGHT, *words)
    assert code == 0
    record = trial_in(tmp_path)
    assert (record["layer"], record["method"], record["pad"], record["target"]) == (
        "conv1", "xgradcam", 0, "label",
    )  # fmt: skip
    assert {"layer conv1", "pad 0", "method xgradcam"} <= record["default_minus"].keys()
    assert "default" in record["correlation"]
    assert "tried with label and xgradcam alone" in " ".join(said.split())


def test_only_what_is_picked_is_tried(many_digits, tmp_path):
    mistaken = tmp_path / "in" / "7"
    mistaken.mkdir(parents=True)
    for i in (0, 1):
        (mistaken / f"wrong_{i}.png").write_bytes((many_digits / "0" / f"{i}.png").read_bytes())
    out = tmp_path / "out"
    words = (tmp_path / "in", *LIGHT, "--trust", "--pick", "wrong")
    code, said, _ = course_run(out, many_digits, *words)
    assert code == 0
    record = trial_in(out)
    assert (record["pictures"], record["correct"]) == (2, 0)
    assert record["verdict"] == "cannot tell"
    assert "trust     cannot tell with 2 pictures; about 40 would do" in said


def test_a_network_of_random_weights_gets_no_verdict(many_digits, tmp_path):
    code, said, err = seenby("--model", MODEL, "--weights", "none", *COURSE[4:], "--out", tmp_path,
                             many_digits, *LIGHT, "--trust", 8)  # fmt: skip
    assert code == 0
    assert "trust     no verdict: the weights are RANDOM\n" in said
    assert "the weights are RANDOM" in err
    assert "trust.json" not in said
    assert files_in(tmp_path) == ["run.json", "seenby.csv", "seenby.png"]


def test_without_the_option_nothing_is_tried(many_digits, tmp_path):
    (tmp_path / "trust.json").write_text("an earlier run's")
    _, said, _ = course_run(tmp_path, many_digits, *LIGHT)
    assert "trust" not in said
    assert files_in(tmp_path) == ["run.json", "seenby.csv", "seenby.png"]


def test_the_option_takes_a_number_or_none(tmp_path, many_digits):
    given = (str(many_digits), "--model", "resnet18", "--out", str(tmp_path / "out"))
    assert parse_settings([*given, "--trust"]).trust == 40
    assert parse_settings([*given, "--trust", "120"]).trust == 120
    assert parse_settings(given).trust is None
    for word in ("1", "1001", "many"):
        with pytest.raises(InputError, match=rf"'{word}' was given; give a number from 2 to 1000"):
            parse_settings([*given, "--trust", word])


def test_several_processes_are_refused(tmp_path, many_digits):
    settings = parse_settings([str(many_digits), *COURSE, "--trust", "--out", str(tmp_path)])
    with pytest.raises(InputError, match="--trust was given to several processes; use one"):
        execute(settings, Ranks(world_size=2))
