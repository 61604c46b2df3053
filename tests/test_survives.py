"""What strangers' files, full disks and killed processes do to a run: the README's promises."""

import csv
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from course import COURSE, FEED, ROOT
from PIL import Image
from running import record_in
from torch import nn

from seenby import InputError, batch, explain, load_network, pipeline, read_pictures
from seenby.command_line import main
from seenby.inputs import pictures
from seenby.outputs.store import OutputFolder

TOOL = ("-m", "seenby")
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits and signals")


@pytest.fixture(scope="module", autouse=True)
def _no_wait_for_the_disks():
    """As against a power cut: others may be writing much to them. Runs that are started do wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sync", lambda: None, raising=False)
        yield


def table(out):
    with (out / "seenby.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def forty(tmp_path_factory, digits):
    """A folder of forty pictures."""
    folder = tmp_path_factory.mktemp("forty")
    for i in range(40):
        digits[i % 8].image.save(folder / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def at_once(forty, tmp_path_factory):
    """What a run writes that nothing disturbs."""
    out = tmp_path_factory.mktemp("at_once")
    assert main(arguments(forty, out)) == 0
    return contents(out)


def bare(source, out, *more):
    words = [str(source), "--out", str(out), "--batch-size", "4", "--workers", "0", "--quiet"]
    return [*words, *more]


def arguments(source, out, *more):
    return bare(source, out, *COURSE, *more)


def python(*words, **how):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, **how)


def one_line(done, code=2):
    """The only thing that was said."""
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert "Traceback" not in line
    return line


# ------------------------------------------------------------------------------ bombs and tricks


def png_of(width, height):
    """The head of a PNG that says it is so large."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(b)) + t + b + struct.pack(">I", zlib.crc32(t + b))
              for t, b in parts)  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("size", [(50_000, 50_000), (9000, 9000), (2**31 - 1, 1)])
def test_a_decompression_bomb_is_not_decoded(tmp_path, network, size):
    (tmp_path / "bomb.png").write_bytes(png_of(*size))
    begun = time.monotonic()
    (picture,) = read_pictures([tmp_path / "bomb.png"], network.preprocessing)
    assert picture.image is None
    assert "too large" in picture.note or "exceeds limit" in picture.note
    assert time.monotonic() - begun < 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak")
@pytest.mark.parametrize("mode", ["RGBA", *["L", "RGB", "I;16"] * ("FUZZ" in os.environ)])
def test_the_largest_pictures_are_read_within_a_gigabyte(tmp_path, mode):
    Image.new(mode, (8900, 8900), 99).save(tmp_path / "large.png", compress_level=1)
    code = (
        "import pathlib, re, sys\n"
        "from course import course_network\n"
        "from seenby import explain, read_pictures\n"
        "network = course_network()\n"
        "(picture,) = read_pictures([sys.argv[1]], network.preprocessing)\n"
        "assert picture.image.size == (28, 28), picture.note\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1])"
    )
    done = python("-c", code, str(tmp_path / "large.png"))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2**20  # KiB


def test_very_long_and_very_thin_pictures(tmp_path, network):
    for name, size in (("wide", (100_000, 28)), ("tall", (28, 100_000)), ("thin", (20_000, 1))):
        Image.new("L", size, 200).save(tmp_path / f"{name}.png")
    (tmp_path / "out").mkdir()
    assert all(picture.image for picture in read_pictures([tmp_path], network.preprocessing))
    squeeze = load_network("squeezenet1_0", "none")  # which would enlarge them to cover a square
    found = {picture.name: picture for picture in read_pictures([tmp_path], squeeze.preprocessing)}
    assert "thin is too long and thin, 20000 x 1 pixels; cut it" in found["thin"].note
    assert not found["thin"].image


def test_of_ten_thousand_frames_the_first_is_read(tmp_path, network):
    frames = [Image.new("L", (28, 28), i % 256) for i in range(10_000)]
    path = tmp_path / "frames.gif"
    frames[7].save(path, save_all=True, append_images=frames[1:])
    begun = time.monotonic()
    (picture,) = read_pictures([path], network.preprocessing)
    assert np.asarray(picture.image).max() == 7
    assert time.monotonic() - begun < 2


@posix
def test_a_folder_that_contains_itself_is_read_once(tmp_path, network):
    Image.new("L", (28, 28)).save(tmp_path / "one.png")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "again").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "nothing.png")
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")
    os.mkfifo(tmp_path / "pipe.png")
    found = {each.name: each for each in read_pictures([tmp_path], network.preprocessing)}
    assert [*found] == ["nowhere", "one", "round"]  # a link to nothing is missed by name
    assert [each.image is None for each in found.values()] == [True, False, True]
    assert "nowhere.png is truncated or broken (No such file" in found["nowhere"].note


@posix
def test_strange_names_stay_in_the_folder_and_apart(tmp_path, digits):
    names = ["a\nb", "a..", "%2e%2e", "x" * 251, "=1+1", "-rf", "a b", "a_b", "\u202egnp", "CON"]
    (tmp_path / "in").mkdir()
    for name in names:
        digits[0].image.save(tmp_path / "in" / f"{name}.png")
    shutil.copy(tmp_path / "in" / "a b.png", os.fsencode(tmp_path / "in") + b"/\xff\xfe.png")
    out = tmp_path / "deep" / "out"
    assert main(arguments(tmp_path / "in", out)) == 0
    rows = table(out)
    assert len(rows) == len({row["image"] for row in rows}) == len(names) + 1
    assert len(list(out.glob("raw/*.png"))) == len(list(out.glob("overlays/*.png"))) == len(rows)
    for row in rows:
        assert re.fullmatch(r"[\w.-]+", row["image"])
        assert not row["image"].startswith((".", "-", "="))
    assert {p.name for p in tmp_path.iterdir()} == {"in", "deep"}


def test_pictures_of_one_name_in_two_folders_are_both_kept(tmp_path, digits):
    for i, folder in enumerate("ab"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        digits[i].image.save(tmp_path / "in" / folder / "same.png")
    assert main(arguments(tmp_path / "in", tmp_path / "out")) == 0
    assert [(r["image"], r["predicted"]) for r in table(tmp_path / "out")] == [
        ("same", "0"), ("same-2", "1"),
    ]  # fmt: skip
    for i, name in enumerate(("same", "same-2")):
        kept = Image.open(tmp_path / "out" / "raw" / f"{name}.png")
        assert np.array_equal(kept, digits[i].image)


def test_no_cell_of_the_table_is_a_formula(tmp_path, digit_folder):
    hostile = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "five", "six", "seven", "8", "9"]
    (tmp_path / "classes.json").write_text(json.dumps(hostile))
    words = arguments(digit_folder, tmp_path / "out")
    assert main([*words, "--class-names", str(tmp_path / "classes.json")]) == 0
    rows = table(tmp_path / "out")
    for column in ("predicted", "target"):
        assert [row[column] for row in rows[:4]] == ["'=1+1", "'+1", "'-1", "'@SUM(A1)"]
    assert [row["label"] for row in rows[:3]] == ["'=1+1", "'=1", "'-1"]  # "1" names the fifth
    assert not any(cell[:1] in set("=+-@\t\r") for row in rows for cell in row.values())


# ---------------------------------------------------------------------------------------- faults


def limit_files(size):
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


@pytest.mark.slow
@posix
def test_no_room_for_a_file_and_then_there_is(forty, at_once, tmp_path):
    """The figure does not fit any more, everything else did."""
    done = python(*TOOL, *arguments(forty, tmp_path), preexec_fn=limit_files(60_000))
    assert "stopped: File too large; fix that, then run again with --resume" in one_line(done)
    assert not [name for name in contents(tmp_path) if "/_" in name]  # half written
    assert not (tmp_path / "seenby.png").exists()
    assert main(arguments(forty, tmp_path, "--resume")) == 0
    assert contents(tmp_path) == at_once


@pytest.mark.slow
@posix
def test_a_disk_that_is_full_in_the_middle(forty, at_once, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        done = python(*TOOL, *arguments(forty, disk))
        line = one_line(done)
        assert "stopped: No space left on device; fix that, then run again with --resume" in line
        assert not [name for name in contents(disk) if "/_" in name]
        subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
        assert main(arguments(forty, disk, "--resume")) == 0
        assert contents(disk) == at_once
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@posix
def test_an_output_folder_that_can_not_be_written_to(forty, capsys):
    assert main(arguments(forty, "/proc/here")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "can't write to /proc/here" in line
    assert "give a folder you may write to" in line


def test_an_output_folder_that_is_removed_in_the_middle(forty, tmp_path, monkeypatch, capsys):
    write, out = OutputFolder.write_batch, tmp_path / "out"

    def write_and_remove(output, number, *rest):
        write(output, number, *rest)
        if number == 5:
            shutil.rmtree(out, ignore_errors=True)

    with monkeypatch.context() as patch:
        patch.setattr("seenby.outputs.store.OutputFolder.write_batch", write_and_remove)
        patch.setattr("seenby.pipeline.WRITERS", 1)
        assert main(arguments(forty, out)) == 2
    assert "no longer complete" in capsys.readouterr().err
    assert not (out / "seenby.csv").exists()
    assert main(arguments(forty, out, "--resume")) == 0
    assert len(table(out)) == 40


WORKER = """
import os, signal, sys
from seenby import batch
from seenby.command_line import main

load_picture = batch.load_picture

def deadly(item, *rest, **options):
    if item[0] == "33":
        os.kill(os.getpid(), signal.SIGKILL)
    return load_picture(item, *rest, **options)

batch.load_picture = deadly
sys.exit(main())
"""


def test_a_worker_that_dies_meanwhile_is_not_the_networks_fault(monkeypatch, network):
    """PyTorch's signal handler raises it wherever the program is."""

    def interrupted(*_given):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    monkeypatch.setattr("seenby.core.explanation.head_gradients", interrupted)
    with pytest.raises(RuntimeError, match=r"^DataLoader worker"):
        explain(network.module, torch.rand(1, 1, 28, 28), layer="conv2")


@pytest.mark.slow
@posix
def test_a_worker_that_is_killed(forty, at_once, tmp_path):
    words = [word if word != "0" else "2" for word in arguments(forty, tmp_path)]
    line = one_line(python("-c", WORKER, *words, timeout=60))
    assert "stopped: DataLoader worker" in line
    assert "killed by signal: Killed" in line or "exited unexpectedly" in line  # who sees it first
    assert "--resume" in line
    assert main(arguments(forty, tmp_path, "--resume")) == 0
    assert contents(tmp_path) == at_once


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:131] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
    RuntimeError("could not create a primitive"),  # oneDNN
]


@pytest.mark.parametrize("error", NO_MEMORY)
def test_without_memory_for_a_batch_it_is_halved(
    forty, at_once, tmp_path, monkeypatch, capsys, error
):
    whole, tried = batch.explain_many, []

    def greedy(net, x, *rest, **named):
        tried.append(len(x))
        if len(x) > 3:
            raise error
        return whole(net, x, *rest, **named)

    monkeypatch.setattr("seenby.batch.explain_many", greedy)
    monkeypatch.setattr("seenby.errors._warned", set())
    assert main(arguments(forty, tmp_path)) == 0
    assert tried.count(4) == 10
    assert tried.count(2) == 20
    assert capsys.readouterr().err == (
        "seenby: not enough memory for 4 pictures at once, so 2 now; --batch-size 2 begins there\n"
    )
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "seenby.csv").write_bytes(at_once["seenby.csv"])
    for found, expected in zip(table(tmp_path), table(tmp_path / "whole"), strict=True):
        for column in ("predicted_probability", "target_probability"):
            near = pytest.approx(float(expected.pop(column)), abs=1e-5)
            assert float(found.pop(column)) == near
        assert found == expected


@pytest.mark.parametrize("error", NO_MEMORY)
def test_without_memory_for_one_picture_it_stops(forty, tmp_path, monkeypatch, capsys, error):
    def greedy(*_):
        raise error

    monkeypatch.setattr("seenby.batch.explain_pictures", greedy)
    assert main(arguments(forty, tmp_path)) == 2
    words = f"stopped: {str(error) or 'MemoryError'}; fix that, then run again with --resume"
    assert capsys.readouterr().err.splitlines()[-1] == f"seenby: error: {words}"


SHORT = """
import pathlib, re, resource, sys
from seenby import batch
from seenby.command_line import main

whole, (_, hard) = batch.explain_many, resource.getrlimit(resource.RLIMIT_AS)

def short_of_memory(net, x, *rest):
    size = re.search(r"VmSize:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())
    most = 1024 * int(size[1]) + 50_000_000 if len(x) > 16 else hard
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        return whole(net, x, *rest)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))

batch.explain_many = short_of_memory
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif("FUZZ" not in os.environ, reason="oneDNN without memory crashes at times")
def test_where_memory_really_ends_the_batch_is_halved(forty, tmp_path):
    """The first layer's maps alone are 29 MB, and as much again for each gradient."""
    words = [str(forty), "--out", str(tmp_path), "--quiet"]
    words += ["--model", "squeezenet1_0", "--weights", "none", "--size", "112", "--limit", "24"]
    words += ["--batch-size", "24", "--workers", "0", "--no-overlays", "--no-raw"]
    words += ["--panels", "raw", "cam", "guided"]
    done = python("-c", SHORT, *words)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[1] == (
        "seenby: not enough memory for 24 pictures at once, so 12 now; --batch-size 12 begins there"
    )
    assert len(table(tmp_path)) == 24


def test_without_memory_for_a_gradient_the_batch_is_halved_too(
    forty, tmp_path, monkeypatch, capsys
):
    whole = torch.autograd.grad

    def greedy(y, A, *rest, **how):
        if len(A) > 3:
            raise NO_MEMORY[2]
        return whole(y, A, *rest, **how)

    monkeypatch.setattr(torch.autograd, "grad", greedy)
    monkeypatch.setattr("seenby.errors._warned", set())
    assert main(arguments(forty, tmp_path)) == 0
    assert "memory for 4 pictures at once, so 2" in capsys.readouterr().err


def test_a_picture_that_vanishes_before_it_is_read(forty, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(forty, tmp_path / "in")
    read = pictures.open_image

    def read_and_remove(path):
        (folder / "17.png").unlink(missing_ok=True)
        return read(path)

    monkeypatch.setattr("seenby.inputs.pictures.open_image", read_and_remove)
    assert main(arguments(folder, tmp_path / "out")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "skipped: " in line
    assert "17.png" in line
    rows = table(tmp_path / "out")
    assert [row["image"] for row in rows] == [f"{i:02}" for i in range(40)]
    assert [row["image"] for row in rows if not row["predicted"]] == ["17"]


def test_a_folder_that_changes_between_two_looks_is_noticed(forty, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(forty, tmp_path / "in")
    counted = pipeline.fingerprint

    def count_and_remove(*rest):
        found = counted(*rest)
        (folder / "17.png").unlink()
        return found

    monkeypatch.setattr("seenby.pipeline.fingerprint", count_and_remove)
    assert main(arguments(folder, tmp_path / "out")) == 1
    said = capsys.readouterr().err
    changed = "the pictures changed while they were read: 40 were listed, 39 are in the table"
    assert said.startswith(f"seenby: {changed}")
    assert "skipped" not in said
    assert record_in(tmp_path / "out")["pictures"]["skipped"] == 0


# --------------------------------------------------------------------------------------- numbers


class Small(nn.Module):
    """A convolution before a ReLU and a head, of any number of classes."""

    def __init__(self, classes=3):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 6, 5)
        self.head = nn.Linear(6, classes)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("kind", "near"),
    [(torch.float64, 1e-5), (torch.float16, 2e-2), (torch.bfloat16, 1e-1)],
)
def test_networks_of_other_precisions(kind, near):
    x = torch.rand(3, 1, 20, 20)
    expected = explain(Small(), x, [0, 1, 2])
    found = explain(Small().to(kind), x.to(kind), [0, 1, 2])
    assert found.R.dtype == kind
    assert found.heatmap.dtype == found.guided_cam.dtype == torch.promote_types(kind, torch.float32)
    for name in ("logits", "heatmap", "R"):
        a, b = getattr(found, name).double(), getattr(expected, name).double()
        assert (a - b).norm() <= near * b.norm(), name


def test_a_network_in_channels_last_memory():
    x, net = torch.rand(3, 1, 20, 20), Small()
    expected = explain(net, x)
    found = explain(net.to(memory_format=torch.channels_last), x)
    torch.testing.assert_close(found.heatmap, expected.heatmap)
    torch.testing.assert_close(found.R, expected.R)


@pytest.mark.parametrize("grey", [0, 255, 128])
def test_pictures_of_one_grey(tmp_path, grey, network):
    Image.new("L", (28, 28), grey).save(tmp_path / "flat.png")
    assert main(arguments(tmp_path / "flat.png", tmp_path / "out", "--save-maps", "float16")) == 0
    (row,) = table(tmp_path / "out")
    assert 0 < float(row["predicted_probability"]) <= 1
    saved = np.load(tmp_path / "out" / "maps" / "000000.npz")
    assert np.isfinite(saved["heatmap"]).all()
    assert np.isfinite(saved["R"]).all()


NETWORKS = """
import torch
from torch import nn
from SID_a4 import CourseCNN

class OneClass(CourseCNN):
    def __init__(self): super().__init__(fc2=1)
class ManyClasses(CourseCNN):
    def __init__(self): super().__init__(fc2=10_000)
class Huge(CourseCNN):
    def forward(self, x): return super().forward(x) * 1e15
class TooLarge(CourseCNN):
    def forward(self, x): return super().forward(x) * 1e30
class NotANumber(CourseCNN):
    def forward(self, x):
        return super().forward(x) + torch.sqrt(2.5 - x.amax((1, 2, 3)))[:, None]
class Both(CourseCNN):
    def forward(self, x): return super().forward(x), super().forward(x)
class Rows(CourseCNN):
    def forward(self, x): return super().forward(x)[0]
class MoreState(CourseCNN):
    def get_extra_state(self): return {"epoch": 3}
    def set_extra_state(self, state): pass
class OneCell(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 28), nn.ReLU(), nn.Flatten(), nn.Linear(4, 10))
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(NETWORKS)
    return lambda name: ["--model", f"{tmp_path / 'own.py'}:{name}", *FEED]


@pytest.mark.parametrize("name", ["OneClass", "ManyClasses", "Huge", "MoreState", "OneCell"])
def test_networks_of_every_size(own, forty, tmp_path, name):
    words = bare(forty / "03.png", tmp_path / "out", "--save-maps", "float16")
    assert main([*words, *own(name)]) == 0
    (row,) = table(tmp_path / "out")
    assert 0 < float(row["predicted_probability"]) <= 1
    saved = np.load(tmp_path / "out" / "maps" / "000000.npz")
    assert np.isfinite(saved["heatmap"]).all()
    assert np.isfinite(saved["R"]).all()
    assert saved["R"].any()
    assert (saved["R"].dtype == np.float32) == (name == "Huge")


def test_logits_whose_maps_are_beyond_float32_get_one_line(own, forty, tmp_path, capsys):
    words = bare(forty / "03.png", tmp_path / "out")
    assert main([*words, *own("TooLarge")]) == 2
    assert "03: the network outputs NaN or infinity" in capsys.readouterr().err
    assert main([*words, *own("TooLarge"), "--panels", "raw", "cam"]) == 0  # it alone is not


def test_the_map_of_one_cell_is_the_same_everywhere(own):
    network = load_network(own("OneCell")[1], size=(28, 28), mean=(0.5,), std=(0.5,))
    found = explain(network.module, torch.rand(10, 1, 28, 28), range(10))
    assert found.L_c.shape == (10, 1, 1)
    assert found.L_c.any()
    torch.testing.assert_close(found.heatmap, found.L_c.expand(10, 28, 28))


def test_a_picture_that_is_answered_with_nan_is_skipped_by_name(own, tmp_path, capsys):
    pixels = np.zeros((28, 28), np.uint8)
    for name, bright in (("dark", 100), ("bright", 255), ("grey", 120)):
        pixels[10:20, 10:20] = bright
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{name}.png")
    assert main([*bare(tmp_path / "in", tmp_path / "out"), *own("NotANumber")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "bright: the network outputs NaN or infinity" in line
    rows = {row["image"]: row for row in table(tmp_path / "out")}
    assert rows["bright"]["predicted"] == ""
    assert rows["dark"]["predicted"]
    assert rows["grey"]["predicted"]
    assert not (tmp_path / "out" / "overlays" / "bright.png").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [("Both", "gives tuple of "), ("Rows", r"gives \(10,\)")],
)
def test_networks_that_return_something_else(own, name, words):
    with pytest.raises(InputError, match=f"the network {words}.*; wrap it in FILE.py"):
        explain(load_network(own(name)[1], size=(28, 28), mean=(0.5,), std=(0.5,)).module, NONE)


NONE = torch.rand(1, 1, 28, 28)


# -------------------------------------------------------------------------------------- promises

WATCHED = """
import json, os, runpy, sys

out, seen = os.path.realpath(sys.argv[sys.argv.index("--out") + 1]), set()
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT

def inside(path):
    path = os.path.realpath(os.fsdecode(path))
    return path.startswith(out) or path == os.devnull or "matplotlib" in path

def watch(event, args):
    if event == "open":
        path, _, flags = args
        named = isinstance(path, (str, bytes)) and not os.path.isdir(path)  # else a file of no name
        if named and flags & WRITES and not inside(path):
            seen.add(f"{event} {path}")
    elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink",
                   "shutil.rmtree"):
        within = event in ("os.remove", "os.rmdir") and args[-1] != -1  # of a folder: see rmtree
        paths = [path for path in args if isinstance(path, (str, bytes, os.PathLike))]
        if not within and not all(map(inside, paths)):
            seen.add(f"{event} {args}")
    elif event.split(".")[0] in ("socket", "urllib", "http", "ftplib", "smtplib"):
        seen.add(event)
    elif event in ("os.system", "os.exec", "os.posix_spawn"):
        seen.add(event)

sys.addaudithook(watch)
sys.argv = sys.argv[1:]
run = runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module
try:
    run(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print(json.dumps([end.code, sorted(seen)]))
"""


@pytest.mark.slow
def test_nothing_is_written_elsewhere_and_nobody_is_called(forty, tmp_path):
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    words = arguments(forty, tmp_path / "out", "--save-maps", "float16")
    done = python("-c", WATCHED, "seenby", *words, env=environment, cwd=tmp_path)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []], done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"out"}


@pytest.mark.slow
def test_the_watch_itself_sees_something(tmp_path):
    (tmp_path / "bad.py").write_text(
        "import os, socket, sys\n"
        "open('elsewhere', 'w').close(); os.mkdir('more')\n"
        "socket.socket().close(); sys.exit(3)\n"
    )
    words = [str(tmp_path / "bad.py"), "--out", str(tmp_path / "out")]
    done = python("-c", WATCHED, *words, cwd=tmp_path)
    code, seen = json.loads(done.stdout)
    assert code == 3
    assert [event.split()[0] for event in seen] == ["open", "os.mkdir", "socket.__new__"]


def test_every_test_that_the_readme_and_its_pages_name_exists():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    named = re.findall(r"`(test_\w+)(\.\.\.|\.py)?`", text)
    assert len(named) > 20
    files = list((ROOT / "tests").glob("test_*.py"))
    there = {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text())}
    for name, more in named:
        if more == ".py":
            assert ROOT / "tests" / f"{name}.py" in files
        else:
            assert any(t == name or (more and t.startswith(name)) for t in there), name
