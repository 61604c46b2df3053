"""What 50,000 pictures need: blocks, workers, interruptions, many processes, flat memory."""

import csv
import fcntl
import json
import os
import pty
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import SID_a4
from SID_a4 import HERE, main

SCRIPT = str(HERE / "SID_a4.py")
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and terminals")


@pytest.fixture(scope="module")
def many(tmp_path_factory, digits):
    """A .json of 180 different pictures with labels, of which one in nine is wrong."""
    rng = np.random.default_rng(0)
    items = []
    for i in range(180):
        pixels = np.asarray(digits[i % 8].image, int) * rng.uniform(0.7, 1)
        items.append({"image": pixels.astype(int).tolist(), "label": (i % 9) % 8})
    path = tmp_path_factory.mktemp("many") / "many.json"
    path.write_text(json.dumps(items))
    return path


@pytest.fixture(scope="module")
def at_once(many, tmp_path_factory):
    """What a run writes that nothing disturbs, on two cores; each process of torchrun has one."""
    out = tmp_path_factory.mktemp("at_once")
    command(many, out, check=True, env=os.environ | {"OMP_NUM_THREADS": "2"})
    return contents(out)


def arguments(source, out):
    options = ["--batch-size", "8", "--save-maps", "float32", "--workers", "0"]
    return [str(source), "--out", str(out), *options]


def command(source, out, *more, launcher=(sys.executable,), **how):
    words = [*launcher, SCRIPT, *arguments(source, out), *more]
    return subprocess.run(words, capture_output=True, text=True, **how)


def contents(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def same_files(found, expected):
    """Byte for byte: the table, the maps, the figure and every picture."""
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name] == expected[name], name


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def table(out):
    with (out / "SID_a4.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------ interruptions


class Stop(Exception):
    pass


def stop_after(monkeypatch, blocks):
    """Lets so many blocks be written, then fails in the middle of the next."""
    write, written = SID_a4.write_block, []

    def write_some(*arguments):
        if len(written) == blocks:
            raise Stop
        written.append(write(*arguments))

    monkeypatch.setattr(SID_a4, "write_block", write_some)
    monkeypatch.setattr(SID_a4, "WRITERS", 1)


@pytest.mark.parametrize("blocks", [0, 1, 7, 22])
def test_a_run_that_goes_on_ends_with_the_same_files(many, at_once, tmp_path, monkeypatch, blocks):
    torch.set_num_threads(1)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(patch, blocks)
        main(arguments(many, tmp_path))
    parts = list(tmp_path.glob(".SID_a4.*/*.csv"))
    assert len(parts) == blocks
    assert not (tmp_path / "SID_a4.csv").exists()
    explained, explain = [], SID_a4.explained
    with monkeypatch.context() as patch:
        patch.setattr(SID_a4, "explained", lambda *a: explained.append(a[1]) or explain(*a))
        assert main([*arguments(many, tmp_path), "--resume"]) == 0
    # 23 blocks of 8; of those that were done the first alone, for the figure, is explained again.
    assert len(explained) == 23 - blocks + bool(blocks)
    same_files(contents(tmp_path), at_once)


@posix
@pytest.mark.parametrize("launcher", [(sys.executable,), *[TORCHRUN] * ("KILLS" in os.environ)])
def test_killed_at_any_moment_and_resumed(many, at_once, tmp_path, launcher):
    """KILLS=50 in the environment: fifty times, and as often with two processes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    kills = int(os.environ.get("KILLS", "2"))
    words = [*launcher, SCRIPT, *arguments(many, tmp_path), "--resume", "--quiet"]
    moments, killed = random.Random(0), 0
    while killed < kills:
        before = set(tmp_path.rglob("*"))
        process = subprocess.Popen(words, env=environment, start_new_session=True)
        while process.poll() is None and set(tmp_path.rglob("*")) == before:
            time.sleep(0.002)  # importing
        time.sleep(moments.uniform(0, 0.8))  # of about a second from the first file to the last
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # torchrun, and what it started
        killed += (ended := process.wait()) != 0
        if ended == 0:  # before it could be killed
            same_files(contents(tmp_path), at_once)
            shutil.rmtree(tmp_path)
    assert command(many, tmp_path, "--resume", "--quiet", launcher=launcher).returncode == 0
    same_files(contents(tmp_path), at_once)


def test_without_resume_a_run_begins_anew(many, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(patch, 5)
        main(arguments(many, tmp_path))
    assert main([*arguments(many, tmp_path), "--limit", "20"]) == 0
    assert len(table(tmp_path)) == 20
    assert len(list(tmp_path.glob("maps/*.npz"))) == 3


def test_other_settings_are_not_mixed_into_a_run_that_goes_on(many, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(patch, 5)
        main(arguments(many, tmp_path))
    explained, explain = [], SID_a4.explained
    monkeypatch.setattr(SID_a4, "explained", lambda *a: explained.append(a[1]) or explain(*a))
    assert main([*arguments(many, tmp_path), "--resume", "--pad", "1"]) == 0
    assert len(explained) == 23  # all
    assert main([*arguments(many, tmp_path), "--resume", "--workers", "1", "--grid", "3"]) == 0
    assert len(explained) == 23 + 18 + 1  # these may change
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("change", ["weights", "pictures"])
def test_other_weights_or_pictures_are_not_mixed_in_either(tmp_path, digits, monkeypatch, change):
    for i in range(24):
        (tmp_path / "in").mkdir(exist_ok=True)
        digits[i % 8].image.save(tmp_path / "in" / f"b{i:02}.png")
    state = torch.load(HERE / "mnist_model.pth", weights_only=True)
    torch.save(state, weights := tmp_path / "w.pth")
    words = [*arguments(tmp_path / "in", tmp_path / "out"), "--weights", str(weights)]
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(patch, 2)
        main(words)
    if change == "weights":
        state["fc2.bias"][9] += 1000
        torch.save(state, weights)
    else:
        digits[0].image.save(tmp_path / "in" / "a.png")
    assert main([*words, "--resume"]) == 0
    rows = table(tmp_path / "out")
    if change == "weights":
        assert {row["predicted"] for row in rows} == {"9"}
    else:
        assert [row["image"] for row in rows] == ["a", *(f"b{i:02}" for i in range(24))]


def test_parts_that_vanish_are_noticed(many, tmp_path, monkeypatch, capsys):
    write = SID_a4.write_block

    def write_and_lose(number, *arguments):
        write(number, *arguments)
        if number == 20:  # as when another run begins in the same folder
            for part in tmp_path.glob(".*.parts/[0-9].csv"):
                part.unlink()

    with monkeypatch.context() as patch:
        patch.setattr(SID_a4, "write_block", write_and_lose)
        assert main(arguments(many, tmp_path)) == 2
    assert "is no longer complete" in capsys.readouterr().err
    (part,) = tmp_path.glob(".*.parts/12.csv")
    part.write_text("")  # as a power cut may leave it
    assert main([*arguments(many, tmp_path), "--resume"]) == 0
    assert len(table(tmp_path)) == 180


def test_what_else_lies_in_the_folder_stays(many, tmp_path, monkeypatch):
    (tmp_path / "maps").mkdir()
    mine = (".SID_a4.csv.part", "maps/all.npz", "maps/1st.npz")
    for name in mine:
        (tmp_path / name).write_text("mine")
    options = [*arguments(many, tmp_path), "--limit", "20", "--batch-size", "2"]
    assert main(options) == 0
    assert len(list(tmp_path.glob("maps/0*.npz"))) == 10
    assert main([*options, "--limit", "5", "--pick", "wrong"]) == 0
    kept = sorted(tmp_path.glob("maps/0*.npz"))
    assert [len(np.load(path)["image"]) for path in kept] == [1, 2, 2]
    assert [path.stem for path in kept] == ["000004", "000005", "000006"]
    assert len(table(tmp_path)) == 5
    for name in mine:
        assert (tmp_path / name).read_text() == "mine"


def test_pick_and_limit_count_what_was_picked_before(many, tmp_path, monkeypatch, capsys):
    def picked(out, *more):
        assert main([*arguments(many, out), "--pick", "wrong", "--limit", "60", *more]) == 0
        return contents(out)

    expected, (accuracy,) = picked(tmp_path / "a"), accuracies(capsys)
    assert len(table(tmp_path / "a")) == 60
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(patch, 6)
        picked(tmp_path / "b")
    same_files(picked(tmp_path / "b", "--resume"), expected)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(SID_a4, "merged", lambda *a: (_ for _ in ()).throw(Stop))
        picked(tmp_path / "c")  # all are picked, but not in the table yet
    (first,) = (tmp_path / "c").glob(".*.parts/0.csv")  # a block without any that is picked,
    first.unlink()  # whose writer was slower than the others
    same_files(picked(tmp_path / "c", "--resume"), expected)
    assert accuracies(capsys)[-1] == accuracy


def accuracies(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("accuracy")]


def test_a_small_network_leaves_a_core_to_what_decodes_and_writes(
    many, tmp_path, monkeypatch, network
):
    before, explain, used = torch.get_num_threads(), SID_a4.explanations_of, []

    def noting(network, options, pictures):
        used.append(torch.get_num_threads())
        return explain(network, options, pictures)

    monkeypatch.setattr(SID_a4, "explanations_of", noting)
    torch.set_num_threads(2)
    try:
        main([*arguments(many, tmp_path), "--limit", "9"])
        assert used == [1, 1]  # the blocks; what the figure shows is at hand
        with SID_a4.threads_for(replace(network, size=(224, 224))):  # 64 times as much to do
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# --------------------------------------------------------------------------------- many processes


def test_workers_change_nothing(many, at_once, tmp_path):
    assert command(many, tmp_path, "--workers", "3").returncode == 0
    same_files(contents(tmp_path), at_once)


@posix
def test_two_processes_write_what_one_does(many, at_once, tmp_path):
    done = command(many, tmp_path, launcher=TORCHRUN, timeout=120)
    assert done.returncode == 0, done.stderr
    same_files(contents(tmp_path), at_once)
    assert done.stdout.count("180 explained in ") == 1


@posix
def test_a_rank_that_is_killed_is_started_again_and_goes_on(many, at_once, tmp_path):
    (tmp_path / "once.py").write_text(
        "import os, signal\n"
        "from SID_a4 import CourseCNN\n"
        "class Dies(CourseCNN):\n"
        "    calls = 0\n"
        "    def forward(self, x):\n"
        "        Dies.calls += 1\n"
        "        first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'\n"
        "        if first and os.environ['RANK'] == '1' and Dies.calls == 6:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().forward(x)\n"
    )
    out = tmp_path / "out"
    feed = ["--size", "28", "--mean", "0.1307", "--std", "0.3081"]
    model = ["--model", f"{tmp_path / 'once.py'}:Dies", "--weights", str(HERE / "mnist_model.pth")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    words = [*TORCHRUN, "--max-restarts=1", SCRIPT, *arguments(many, out), *model, *feed]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "SIGKILL" in done.stderr or "exitcode: -9" in done.stderr
    same_files(contents(out), at_once)


@posix
def test_an_error_in_one_rank_ends_all_with_its_one_line(many, tmp_path):
    (tmp_path / "fails.py").write_text(
        "import os\n"
        "from SID_a4 import CourseCNN\n"
        "class Fails(CourseCNN):\n"
        "    calls = 0\n"
        "    def forward(self, x):\n"
        "        Fails.calls += 1\n"
        "        if os.environ['RANK'] == '1' and Fails.calls == 6:\n"
        "            raise RuntimeError('the sixth call fails')\n"
        "        return super().forward(x)\n"
    )
    model = [
        "--model",
        f"{tmp_path / 'fails.py'}:Fails",
        "--size",
        "28",
        "--mean",
        "0",
        "--std",
        "1",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    words = [*TORCHRUN, SCRIPT, *arguments(many, tmp_path / "out"), *model]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("SID_a4.py: ")]
    assert said == ["SID_a4.py: error: stopped: the sixth call fails; mend that, then --resume"]


RANKS = """
import itertools, sys, time
import SID_a4

items, explain_blocks = SID_a4.items_in, SID_a4.explain_blocks

def fewer(*given):
    return itertools.islice(items(*given), 20)

def later(*given):
    time.sleep(1)
    return explain_blocks(*given)

if SID_a4.RANK == 1:
    SID_a4.%s = %s
sys.exit(SID_a4.main())
"""


@posix
def test_ranks_that_see_other_pictures_do_not_wait_for_ever(many, tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS % ("items_in", "fewer"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    words = [*TORCHRUN, str(tmp_path / "ranks.py"), *arguments(many, tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode != 0
    (said,) = (line for line in done.stderr.splitlines() if line.startswith("SID_a4.py: "))
    assert "the processes don't see the same pictures" in said


@posix
def test_a_rank_that_waits_for_another_hears_of_ctrl_c(monkeypatch):
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True)
    monkeypatch.setattr(SID_a4, "WORLD", 2)
    monkeypatch.setattr(SID_a4, "rendezvous", lambda _: iter([(store, 0, 2)]))

    def stop(*_signal):
        raise Stop

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        started = time.monotonic()
        with pytest.raises(Stop):
            SID_a4.heard_of_all("pictures", "mine")
        assert time.monotonic() - started < 5
    finally:
        signal.signal(signal.SIGALRM, before)
    store.set("pictures 1", "theirs")
    assert SID_a4.heard_of_all("pictures", "mine") == {b"mine", b"theirs"}


def test_a_part_that_a_shared_folder_shows_late_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(SID_a4, "PATIENCE", 0.5)
    options = SimpleNamespace(parts=tmp_path, batch_size=8, pick="all", limit=None)
    for number in (0, 1):
        (tmp_path / f"{number}.csv").write_text("whatever\n")
    assert SID_a4.complete(options, 16)
    assert not SID_a4.complete(options, 17)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(SID_a4.complete, options, 17)
        time.sleep(0.2)
        (tmp_path / "2.csv").write_text("late\n")
        assert answer.result()


@posix
def test_a_rank_that_is_late_does_nothing_twice(many, at_once, tmp_path, monkeypatch):
    """All blocks are done, but there is no table yet: the first process has nothing to wait for."""
    torch.set_num_threads(1)
    words = [*arguments(many, out := tmp_path / "out"), "--overlays", "none", "--limit", "40"]
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(SID_a4, "merged", lambda *a: (_ for _ in ()).throw(Stop))
        main(words)
    (tmp_path / "ranks.py").write_text(RANKS % ("explain_blocks", "later"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    command = [*TORCHRUN, str(tmp_path / "ranks.py"), *words]
    subprocess.run(command, capture_output=True, env=environment, timeout=60, check=True)
    assert at_once["SID_a4.csv"].startswith((out / "SID_a4.csv").read_bytes())
    assert not list(out.glob(".*"))


@posix
def test_a_mistake_is_said_once_by_all_ranks_together(tmp_path):
    done = command("/nowhere", tmp_path, launcher=TORCHRUN, timeout=120)
    said = [line for line in done.stderr.splitlines() if line.startswith("SID_a4.py: error")]
    assert len(said) == 1
    assert "/nowhere does not exist" in said[0]


# ------------------------------------------------------------------------------- what is written


def test_saved_maps_are_the_maps_with_their_names(many, at_once, tmp_path, network, digits):
    digits[5].image.save(tmp_path / "five.png")
    digits[3].image.save(tmp_path / "three.png")
    for kind, close in (("float32", 1e-6), ("float16", 1e-3)):
        out = tmp_path / kind
        options = ["--target", "predicted", "8", "--save-maps", kind, "--out", str(out)]
        assert main([str(tmp_path / "five.png"), str(tmp_path / "three.png"), *options]) == 0
        with np.load(out / "maps" / "000000.npz", allow_pickle=False) as maps:
            assert maps["image"].tolist() == ["five", "five", "three", "three"]
            assert maps["target"].tolist() == ["5", "8", "3", "8"]
            assert maps["method"].tolist() == ["gradcam"] * 4
            assert {maps["L_c"].dtype, maps["R"].dtype} == {np.dtype(kind)}
            x = network.tensor([digits[5].image, digits[3].image])
            for i, c in enumerate((None, 8)):
                explanation = SID_a4.explain(network.net, x, c)
                for name in ("L_c", "R"):
                    expected = getattr(explanation, name).numpy()
                    scale = np.abs(expected).max()
                    np.testing.assert_allclose(maps[name][i::2], expected, atol=close * scale)


def width(out):
    with Image.open(out / "SID_a4.png") as figure:
        return figure.width


def test_overlays_and_grid_as_asked(many, tmp_path):
    options = ["--overlays", "none", "--grid", "3", "--panels", "raw", "gradcam"]
    assert main([*arguments(many, tmp_path), *options]) == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["SID_a4.csv", "SID_a4.png", "maps"]
    with np.load(tmp_path / "maps" / "000003.npz") as maps:
        assert "R" not in maps  # no guided panel was asked for: it was not computed
    wide = width(tmp_path)
    assert main([*arguments(many, tmp_path), *options[:2], "--grid", "12", *options[4:]]) == 0
    assert width(tmp_path) > 2 * wide
    assert len(table(tmp_path)) == 180


def test_what_a_gpu_sends_comes_back_as_it_was(network, digits):
    x = network.tensor([digit.image for digit in digits])
    sent = SID_a4.explain_each(network.net, x, [None, 3], methods=["gradcam", "xgradcam"])
    for one, two in zip(SID_a4.fetched(sent), sent, strict=True):
        for name, value in vars(two).items():
            if isinstance(value, torch.Tensor):
                found = getattr(one, name)
                assert (found.dtype, found.shape) == (value.dtype, value.shape)
                assert torch.equal(found, value)


# --------------------------------------------------------------------------- memory and progress


@posix
def test_many_pictures_need_no_more_memory_than_few(many, tmp_path):
    def peak(*sources):
        words = [sys.executable, SCRIPT, *map(str, sources), "--overlays", "none", "--quiet"]
        words += ["--out", str(tmp_path / "out")]
        _, status, usage = os.wait4(os.posix_spawn(words[0], words, os.environ), 0)
        assert status == 0
        return usage.ru_maxrss

    for i in range(8):
        (tmp_path / f"{i}.json").write_bytes(many.read_bytes())
    few, much = peak(many), peak(*(tmp_path / f"{i}.json" for i in range(8)))
    assert much < 1.1 * few, (few, much)


@posix
def test_a_bar_for_a_person_and_for_nobody_else(many, tmp_path, monkeypatch, capsys):
    """Of runs that take longer than two seconds, on a terminal and elsewhere."""
    explained = SID_a4.explained
    monkeypatch.setattr(SID_a4, "explained", lambda *a: time.sleep(0.75) or explained(*a))
    words = [*arguments(many, tmp_path / "terminal"), "--limit", "24"]
    code = (
        "import SID_a4, sys, time\n"
        "explained = SID_a4.explained\n"
        "SID_a4.explained = lambda *a: time.sleep(0.75) or explained(*a)\n"
        "for quiet in ([], ['--quiet']):\n"
        f"    SID_a4.main({words!r} + quiet)\n"
        "    sys.stderr.write('|')\n"
    )
    mine, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=HERE, stdout=subprocess.DEVNULL, stderr=theirs
    )
    os.close(theirs)
    assert main([*words, "--out", str(tmp_path / "elsewhere")]) == 0  # meanwhile
    assert capsys.readouterr().err == ""
    said = b""
    with suppress(OSError):  # so Linux ends a terminal
        while read := os.read(mine, 1000):
            said += read
    assert process.wait() == 0
    bar, quiet, _ = said.decode().rsplit("|", 2)
    assert re.search(r"\d+/24 \[00:0\d<00:0\d, +\d+\.\d+ pictures/s\]", bar)
    assert quiet == ""
