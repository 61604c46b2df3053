"""What a run writes, leaves out and leaves behind."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

import SID_a4
from SID_a4 import HERE, main, overlay, whole


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
        assert np.abs(shown - np.asarray(overlay(digit, explanation), int)).max() <= 6
    with Image.open(out / "D111111_a4.png") as grid:
        assert grid.width > 1.5 * grid.height
        assert round(grid.info["dpi"][0]) == 300
        assert grid.width / 300 > 16 / 2.54  # pasted at 16 cm it is reduced, not enlarged
        assert len(np.unique(np.asarray(grid.convert("RGB")).reshape(-1, 3), axis=0)) > 500


def test_the_account_is_short_and_tells_the_pad_and_why(default_run):
    lines = default_run[1].stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["network", "layer", "pad", "pictures", "written"]
    assert lines[0] == "network   CourseCNN (10 and 10 maps), mnist_model.pth"
    assert lines[1] == "layer     conv2, 10 maps of 8 x 8"
    assert lines[2] == "pad       3: 28 pixels at stride 2 make 14 cells, the map has 8"
    assert lines[3].startswith("pictures  8 explained in ")
    assert lines[3].endswith("s, 8 of the 8 with a label are right")
    assert "D111111_a4.png" in lines[4]


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


def test_more_pictures_than_a_batch_or_the_figure_holds(go, tmp_path, monkeypatch):
    monkeypatch.setattr(SID_a4, "BATCH", 3)
    data = HERE / "data" / "test_data.json"
    code, out, err = go(data, data)
    assert (code, err) == (0, "")
    rows = table_in(tmp_path / "out")
    assert [row["image"] for row in rows[7:10]] == ["image_7", "image_0-2", "image_1-2"]
    for one, two in zip(rows[:8], rows[8:], strict=True):
        assert (one["predicted"], one["note"]) == (two["predicted"], two["note"])
    assert "16 explained" in out
    assert "the first 8 are in the figure" in out
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
    np.testing.assert_array_equal(shown, overlay(digits[4], explanation))
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
    path = tmp_path / "folder" / "result.txt"
    with pytest.raises(RuntimeError), whole(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert files_in(tmp_path) == []
    with whole(path) as part:
        part.write_text("all")
        assert not path.exists()
    assert path.read_text() == "all"
    with pytest.raises(KeyboardInterrupt), whole(path) as part:
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
        while not (tmp_path / "out" / "gradcam" / "image_20.png").exists():
            assert process.poll() is None
            time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    if moment == "pictures":
        assert (process.returncode, err.count("\n")) == (130, 1)
        assert err.startswith("SID_a4.py: interrupted")
    out = files_in(tmp_path / "out") if (tmp_path / "out").exists() else []
    assert not [name for name in out if name.endswith(".part")]
    assert "SID_a4.csv" not in out
    for name in out:
        Image.open(tmp_path / "out" / name).load()
