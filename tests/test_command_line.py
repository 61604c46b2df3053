"""Bad input gets one line that helps, exit code 2, and nothing is written."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from course import COURSE
from PIL import Image
from running import course_run, files_in, seenby

# Ends with an option of one word, so that pictures may stand behind it.
MODEL = (*COURSE[-4:], *COURSE[:-4])
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.fixture
def refused(tmp_path, digit_folder):
    """The one line that is said to some words; in them {} is a temporary folder."""

    def line(arguments, out="{}/out"):
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty.png").write_text("")
        (tmp_path / "text.png").write_text("hello")
        (tmp_path / "numbers.json").write_text("[[-1, 2]]")
        noise = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
        Image.fromarray(noise).save(path := tmp_path / "cut.png")
        path.write_bytes(path.read_bytes()[:400])
        torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
        before = sorted(tmp_path.rglob("*"))
        pictures = [] if arguments[0][:1] != "-" else [str(digit_folder)]
        words = [*pictures, *arguments, *(["--out", out] if out else [])]
        code, stdout, stderr = seenby(*MODEL, *(word.format(tmp_path) for word in words))
        assert (code, stdout) == (2, "")
        assert stderr.startswith("seenby: error: ")
        assert stderr.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return stderr.removeprefix("seenby: error: ").replace(str(tmp_path), "{}").strip()

    return line


PICTURE = "; give a whole PNG, JPEG, GIF, BMP, TIFF or WebP picture"
WEIGHTS = "; give a file written by torch.save(net.state_dict(), FILE) with --weights"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{}/nope.png", "--quiet"],
         "argument IMAGES: {}/nope.png does not exist; give picture files"),
        (["--quiet", "x" * 300],
         "argument IMAGES: " + "x" * 300 + " does not exist; give picture files"),
        (["--target", "x" * 300], "class " + "x" * 300 + " was given; give a number from 0 to 9"),
        (["--limit", "0"], "argument --limit: '0' was given; give a number from 1 to 1000000000"),
        (["{}/cut.png", "{}/nope"], "argument IMAGES: {}/nope does not exist; give"),
        (["{}/empty"], "no pictures were given; give files or folders with .png .jpg .jpeg .bmp"),
        (["{}/empty.png"], "{}/empty.png is an empty file" + PICTURE),
        (["{}/text.png"], "{}/text.png is not an image" + PICTURE),
        (["{}/cut.png"], "{}/cut.png is truncated or broken ("),
        (["{}/numbers.json"], "{}/numbers.json is not an image" + PICTURE),
        (["{}/text.png", "{}/cut.png"], "{}/text.png is not an image" + PICTURE + " (and 1 more"),
        (["--weights", "{}/nope.pth"], "weights {}/nope.pth: No such file or directory" + WEIGHTS),
        (["--weights", "{}/text.png"], "weights {}/text.png: the file is truncated or no check"),
        (["--weights", "{}/other.pth"],
         "weights {}/other.pth are of another network: conv1.weight"),
        (["--target", "10"], "class 10 was given; give a number from 0 to 9"),
        (["--target", "-1"], "class -1 was given; give a number from 0 to 9"),
        (["--target", "dog"], "class dog was given; give a number from 0 to 9"),
        (["--pad", "-1"], "argument --pad: '-1' was given; give 'auto' or a number from 0 to 999"),
        (["--pad", "1.5"],
         "argument --pad: '1.5' was given; give 'auto' or a number from 0 to 999"),
        (["--pad", "99999"],
         "argument --pad: '99999' was given; give 'auto' or a number from 0 to 999"),
        (["--device", "cuda:77"], "argument --device: cuda:77 is not available ("),
        (["--device", "toaster"], "argument --device: toaster is not available ("),
        (["--class-names", "{}/numbers.json"],
         "argument --class-names: {}/numbers.json (no list of names); give"),
        (["--mean", "nan"], "argument --mean: 'nan' was given; give a number a channel"),
        (["--method", "magic"], "argument --method: 'magic' was given; give some of gradcam, "),
        (["--panels", "raw", "x"], "argument --panels: 'x' was given; give some of raw, cam, "),
        (["--size", "0"], "argument --size: '0' was given; give pixels, as in 224"),
        (["--colormap", "jett"], "argument --colormap: 'jett' is unknown to matplotlib; give jet"),
        (["--opacity", "2"], "argument --opacity: '2' was given; give a number from 0 to 1"),
        (["--layer", "conv3"], "the network has no layer conv3; the nearest names are conv"),
        (["--model", "resnet19"], "model resnet19 is not known; give resnet1"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate; see --help"),
        (["--out"], "argument --out: expected one argument; see --help"),
    ],
)  # fmt: skip
def test_every_mistake_gets_one_line(refused, arguments, says):
    line = refused(arguments, out=None if arguments == ["--out"] else "{}/out")
    assert line.startswith(says)
    assert ";" in line  # what is allowed or how to mend it


@pytest.mark.parametrize("out", ["{}/text.png", "{}/text.png/deeper", "/proc/nowhere"])
def test_an_output_folder_that_cannot_be_written_is_found_before_the_work(
    refused, out, monkeypatch, tmp_path, digit_folder
):
    begun = []
    monkeypatch.setattr("seenby.command_line.execute", lambda *given: begun.append(given) or 0)
    words = r"argument --out: can't write to .* \(.*\); give a folder you may write to"
    assert re.match(words, refused(["--quiet"], out))
    assert begun == []
    assert course_run(tmp_path / "out", digit_folder) == (0, "", "")
    assert len(begun) == 1


def test_a_full_disk_is_one_line_too(tmp_path, monkeypatch, digit_folder):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    code, out, err = course_run(tmp_path, digit_folder)
    assert (code, out) == (2, "")
    assert err == (
        "seenby: error: stopped: No space left on device; fix that, then run again with --resume\n"
    )
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "MemoryError"),
        (RuntimeError("DataLoader worker (pid 7) is killed\nby signal"),
         "DataLoader worker (pid 7) is killed by signal"),
        (ImportError("cannot import name 'x'"), "cannot import name 'x'"),
    ],
)  # fmt: skip
def test_what_is_nobodys_mistake_is_told_with_the_way_on(monkeypatch, digit_folder, error, words):
    def stops(*given):
        raise error

    monkeypatch.setattr("seenby.command_line.execute", stops)
    code, out, err = seenby(*COURSE, digit_folder)
    expected = f"seenby: error: stopped: {words}; fix that, then run again with --resume\n"
    assert (code, out, err) == (2, "", expected)


def test_a_fault_of_the_program_is_not_hidden(monkeypatch, digit_folder):
    def faulty(*given):
        raise ZeroDivisionError

    monkeypatch.setattr("seenby.command_line.execute", faulty)
    with pytest.raises(ZeroDivisionError):
        seenby(*COURSE, digit_folder)


# ---------------------------------------------------------------------------- in its own process


@pytest.mark.slow
def test_importing_runs_nothing_and_loads_only_what_it_needs(tmp_path, digit_folder):
    """And no run needs SymPy, which two innocent calls of PyTorch's import: 0.5 s and 50 MB."""
    code = """if True:
        import sys
        import seenby.command_line
        print({"torchvision", "matplotlib", "timm"} & set(sys.modules) or "light")
        print(seenby.command_line.main(sys.argv[1:]), "sympy" in sys.modules)
        print(*sorted({"torchvision", "matplotlib", "timm"} & set(sys.modules)))
        """
    words = [*COURSE, str(digit_folder), "--quiet", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("light\n0 False\nmatplotlib\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
@posix
def test_a_reader_who_goes_away_is_no_error(tmp_path, digit_folder):
    words = " ".join([*COURSE, str(digit_folder)])
    command = f"{sys.executable} -m seenby {words} --out {tmp_path} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.slow
def test_names_that_the_terminal_cannot_show_are_spelt_out(tmp_path, digits):
    digits[5].image.save(tmp_path / "five.png")
    (tmp_path / "names").write_text("\n".join(f"{c}\N{SNOWMAN}" for c in range(10)), "utf-8")
    words = ["--class-names", str(tmp_path / "names"), "--out", str(tmp_path / "\N{SNOWMAN}")]
    done = subprocess.run(
        [sys.executable, "-m", "seenby", *COURSE, str(tmp_path / "five.png"), *words],
        env=os.environ | {"PYTHONIOENCODING": "ascii:strict"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\u2603/seenby.png" in done.stdout


# ------------------------------------------------------------------------------------- Ctrl-C

SPELLINGS = {
    "module": ["-m", "seenby"],
    "script": ["-c", "import sys; from seenby.__main__ import main; sys.exit(main())"],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
}


@pytest.fixture(scope="module")
def many(tmp_path_factory, digits):
    """One digit under 3000 names."""
    folder = tmp_path_factory.mktemp("many")
    digits[5].image.save(folder / "image_0.png")
    for i in range(1, 3000):
        os.link(folder / "image_0.png", folder / f"image_{i}.png")
    return folder


@pytest.mark.slow
@posix
@pytest.mark.parametrize("moment", ["imports", "pictures"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_ctrl_c_leaves_no_half_file_and_no_traceback(tmp_path, many, spelling, moment):
    words, logs, out = [sys.executable, *SPELLINGS[spelling]], tmp_path / "logs", tmp_path / "out"
    if spelling == "torchrun":  # which tells of its own end in many lines, but not in these files
        words += ["--log-dir", str(logs), "--redirects", "2", "-m", "seenby"]
    words += [*COURSE, str(many), "--out", str(out)]
    env = os.environ | ({"PYTHONPROFILEIMPORTTIME": "1"} if moment == "imports" else {})
    with (tmp_path / "stderr").open("wb") as file:
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=file, env=env)

    def said():
        """What each process of ours wrote on standard error."""
        files = logs.rglob("stderr.log") if spelling == "torchrun" else [tmp_path / "stderr"]
        return [file.read_text(errors="replace") for file in files]

    def is_time():
        if moment == "pictures":
            return (out / "overlays" / "image_1050.png").exists()
        # Our own imports have begun in each process, as the package's and Python's have ended.
        ours = 2 if spelling == "torchrun" else 1
        return len(said()) == ours and all("| argparse" in re.sub(" +", " ", s) for s in said())

    end = time.monotonic() + 120
    while not is_time():
        assert process.poll() is None, (tmp_path / "stderr").read_text()
        assert time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=120)
    for words_of_one in said():
        lines = [line for line in words_of_one.splitlines() if not line.startswith("import time:")]
        if moment == "pictures":
            assert lines == ["seenby: interrupted; every file is whole, --resume goes on"]
        else:
            assert lines == []
    assert len(said()) == (2 if spelling == "torchrun" else 1)
    if spelling != "torchrun":
        assert process.returncode == (130 if moment == "pictures" else -signal.SIGINT)
    names = files_in(out) if out.exists() else []
    assert bool(names) == (moment == "pictures")
    for name in names:
        if not name.startswith("."):  # in the folder of parts a half file does no harm
            assert name.startswith(("raw/", "overlays/")), name
            with Image.open(out / name) as image:
                image.load()
