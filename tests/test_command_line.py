"""Bad input gets one line that helps, exit code 2, and nothing is written."""

import csv
import json
import re
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import torch
from PIL import Image

import SID_a4
from SID_a4 import HERE, CourseCNN, main

DATA = HERE / "data" / "test_data.json"


@pytest.fixture
def refused(tmp_path, capsys):
    """The one line that is said to some arguments; in them {} is a temporary folder."""

    def line(arguments, out="{}/out"):
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty.json").write_text("")
        (tmp_path / "empty.png").write_text("")
        (tmp_path / "text.png").write_text("hello")
        (tmp_path / "negative.json").write_text(json.dumps([[-1] * 784]))
        noise = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
        Image.fromarray(noise).save(path := tmp_path / "cut.png")
        path.write_bytes(path.read_bytes()[:400])
        torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
        before = sorted(tmp_path.rglob("*"))
        words = [a.format(tmp_path) for a in [*arguments, *(["--out", out] if out else [])]]
        assert main(words) == 2
        stdout, stderr = capsys.readouterr()
        assert stdout == ""
        assert stderr.startswith("SID_a4.py: error: ")
        assert stderr.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return stderr.removeprefix("SID_a4.py: error: ").replace(str(tmp_path), "{}").strip()

    return line


PICTURE = "; give a whole PNG, JPEG, GIF, BMP, TIFF or WebP picture, or a .json of pixels"
PIXELS = "; give 28 x 28 or 784 numbers a picture, from 0 to 255 or from 0 to 1"
WEIGHTS = "; give a file written by torch.save(net.state_dict(), FILE) with --weights"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{}/nope.png"], "argument IMAGES: {}/nope.png does not exist; give picture files"),
        (["x" * 300], "argument IMAGES: " + "x" * 300 + " does not exist; give picture files"),
        (["--target", "x" * 300], "class " + "x" * 300 + " was given; the network has classes 0"),
        (["--limit", "0"], "argument --limit: '0' was given; give a number from 1 to 1000000000"),
        ([str(DATA), "{}/nope"], "argument IMAGES: {}/nope does not exist; give"),
        (["{}/empty"], "no pictures were given; give files or folders with .json .png .jpg"),
        (["{}/empty.png"], "{}/empty.png is an empty file" + PICTURE),
        (["{}/text.png"], "{}/text.png is not an image" + PICTURE),
        (["{}/cut.png"], "{}/cut.png is truncated or broken ("),
        (["{}/empty.json"], "{}/empty.json is broken or empty (Expecting value"),
        (["{}/negative.json"], "image_0 in {}/negative.json holds numbers from -1 to -1" + PIXELS),
        (["{}/text.png", "{}/cut.png"], "{}/text.png is not an image" + PICTURE + " (and 1 more"),
        (["--weights", "{}/nope.pth"], "weights {}/nope.pth: No such file or directory" + WEIGHTS),
        (["--weights", "{}/text.png"], "weights {}/text.png: the file is truncated or no check"),
        (
            ["--weights", "{}/other.pth"],
            "weights {}/other.pth are of another network: conv1.weight",
        ),
        (["--target", "10"], "class 10 was given; the network has classes 0 to 9: name one"),
        (["--target", "-1"], "class -1 was given; the network has classes 0 to 9: name one"),
        (["--target", "dog"], "class dog was given; the network has classes 0 to 9: name one"),
        (["--pad", "-1"], "argument --pad: '-1' was given; give 'auto' or a number from 0 to 999"),
        (
            ["--pad", "1.5"],
            "argument --pad: '1.5' was given; give 'auto' or a number from 0 to 999",
        ),
        (
            ["--pad", "99999"],
            "argument --pad: '99999' was given; give 'auto' or a number from 0 to 999",
        ),
        (["--device", "cuda:77"], "argument --device: cuda:77 is not to be had here ("),
        (["--device", "toaster"], "argument --device: toaster is not to be had here ("),
        (
            ["--classes", "{}/negative.json"],
            "argument --classes: {}/negative.json (no list of names); give",
        ),
        (["--mean", "nan"], "argument --mean: 'nan' was given; give a number a channel"),
        (["--method", "magic"], "argument --method: invalid choice: 'magic' (choose from"),
        (["--panels", "raw", "x"], "argument --panels: invalid choice: 'x' (choose from"),
        (["--size", "0"], "argument --size: '0' was given; give pixels, as in 224"),
        (["--colormap", "jett"], "argument --colormap: 'jett' is unknown to matplotlib; give jet"),
        (["--opacity", "2"], "argument --opacity: '2' was given; give a number from 0 to 1"),
        (["--layer", "conv3"], "the network has no layer conv3; the nearest names are conv"),
        (["--model", "resnet19"], "model resnet19 is not known; give course, resnet1"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate; see --help"),
        (["--out"], "argument --out: expected one argument; see --help"),
    ],
)
def test_every_mistake_gets_one_line(refused, arguments, says):
    line = refused(arguments, out=None if arguments == ["--out"] else "{}/out")
    assert line.startswith(says)
    assert ";" in line  # what is allowed or how to mend it


@pytest.mark.parametrize("out", ["{}/text.png", "{}/text.png/deeper", "/proc/nowhere"])
def test_an_output_folder_that_cannot_be_written_is_found_before_the_work(
    refused, out, monkeypatch
):
    monkeypatch.setattr(SID_a4, "explain", lambda *a: pytest.fail("the work had begun"))
    words = r"argument --out: can't write to .* \(.*\); give a folder you may write to"
    assert re.match(words, refused([], out))


@pytest.mark.parametrize("name", ["raw", "gradcam", "SID_a4.png", "SID_a4.csv"])
def test_what_stands_in_the_way_in_the_output_folder_is_found_too(tmp_path, capsys, name):
    (tmp_path / name).mkdir() if "." in name else (tmp_path / name).write_text("a file")
    assert main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("SID_a4.py: error: argument --out: can't write to ")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_full_disk_is_one_line_too(tmp_path, monkeypatch, capsys):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert main([str(DATA), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        "SID_a4.py: error: stopped: No space left on device; mend that, then --resume\n"
    )
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_weights_of_the_common_10_20_variant_run(tmp_path, capsys):
    torch.save({"state_dict": CourseCNN(10, 20).state_dict()}, tmp_path / "variant.pth")
    assert main(["--weights", str(tmp_path / "variant.pth"), "--out", str(tmp_path / "out")]) == 0
    assert "CourseCNN (10 and 20 maps), variant.pth" in capsys.readouterr().out


def test_help_tells_every_option_and_default(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    words = " ".join(capsys.readouterr().out.split())
    for option in ("IMAGES", "--weights", "--pad", "--target", "--invert", "--out", "--quiet"):
        assert option in words
    for default in (
        "data",
        "pretrained, or as FILE.py makes it",
        "predicted",
        "auto",
        "outputs",
        "cpu",
    ):
        assert re.search(rf"\(default: [^)]*{default}[^)]*\)", words)


def test_importing_runs_nothing_and_loads_only_what_it_needs():
    code = (
        "import sys, SID_a4; heavy = {'torchvision', 'matplotlib', 'timm'} & set(sys.modules);"
        "print(heavy or 'light')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("light\n", "")


def test_the_default_run_loads_no_computer_algebra(tmp_path):
    """SymPy, which two innocent calls of PyTorch's import: half a second and 50 MB."""
    code = "import sys, SID_a4; print(SID_a4.main(sys.argv[1:]), 'sympy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "--quiet", "--out", str(tmp_path)],
        cwd=HERE, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("0 False\n", "")


def test_the_scripts_own_pins_are_those_of_requirements_txt():
    source = (HERE / "SID_a4.py").read_text()
    block = re.search(r"(?ms)^# /// script\n(.*?)^# ///$", source)
    assert block
    metadata = tomllib.loads("".join(line[2:] + "\n" for line in block[1].splitlines()))
    pins = (HERE / "requirements.txt").read_text().split()
    assert metadata["dependencies"] == pins
    assert [pin.split("==")[0] for pin in pins] == [
        "torch", "torchvision", "numpy", "pillow", "matplotlib", "tqdm"
    ]  # fmt: skip


def test_the_layer_table_is_printed_without_a_download(capsys):
    assert main(["--model", "squeezenet1_1", "--layers"]) == 0
    out, err = capsys.readouterr()
    assert "parameters: 1,235,496 total" in out
    assert err == ""


def test_a_pad_that_was_asked_for_is_told_where_the_stride_is_lost(tmp_path, capsys):
    common = ["--model", "convnext_tiny", "--weights", "none", "--size", "64", "--panels", "raw"]
    common += ["--limit", "1", "--out", str(tmp_path)]
    assert main([*common, "--pad", "1"]) == 0
    assert "pad       1, as asked" in capsys.readouterr().out
    assert main(common) == 0
    assert "pad       none: the stride up to features is lost" in capsys.readouterr().out


def test_reading_from_where_it_writes_is_refused(tmp_path, capsys):
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "which is read; give another" in capsys.readouterr().err
    (tmp_path / "raw" / "5").mkdir(parents=True)
    picture = tmp_path / "raw" / "5" / "five.png"
    Image.new("L", (60, 60)).save(picture)
    for source in (picture, picture.parent, tmp_path / "raw"):
        assert main([str(source), "--out", str(tmp_path)]) == 2
        assert f"would write into {source}, which is read" in capsys.readouterr().err
    with Image.open(picture) as untouched:
        assert untouched.size == (60, 60)


def test_files_alone_behind_a_list_leave_its_default(tmp_path, digits):
    digits[5].image.save(tmp_path / "five.png")
    assert main(["--target", str(tmp_path / "five.png"), "--out", str(tmp_path / "out")]) == 0


def test_a_class_is_no_file_of_the_same_name(tmp_path, monkeypatch):
    (tmp_path / "3").write_text("notes")
    monkeypatch.chdir(tmp_path)
    assert main(["--target", "3", "--out", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "SID_a4.csv").open() as file:
        assert [row["target"] for row in csv.DictReader(file)] == ["3"] * 8


def test_a_table_of_layers_needs_no_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(SID_a4, "HERE", tmp_path)
    words = ["--model", "squeezenet1_1", "--layers", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert "classifier.1 (Conv2d)" in capsys.readouterr().out


def test_cores_that_there_are_not_do_not_decode(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "640")
    assert SID_a4.spare_cores() == 0
