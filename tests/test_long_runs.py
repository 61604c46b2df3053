"""What 50,000 pictures need: batches, workers, interruptions, many processes, flat memory."""

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
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from course import COURSE, ROOT, WEIGHTS
from PIL import Image

import SID_a4
from seenby import InputError, Style, explain, explain_many, pipeline
from seenby import batch as batch_module
from seenby.batch import to_cpu
from seenby.command_line import main
from seenby.machine import Ranks, threads_for
from seenby.outputs.store import OutputFolder
from seenby.pipeline import Run, wait_for_parts
from seenby.settings import Settings

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and terminals")
PYTHON = (sys.executable, "-m", "seenby")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
TOOL = (*TORCHRUN, "-m", "seenby")
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module", autouse=True)
def _no_wait_for_the_disks():
    """As against a power cut: others may be writing much to them. Runs that are started do wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sync", lambda: None, raising=False)
        yield


@pytest.fixture(scope="module")
def many(tmp_path_factory, digits):
    """180 different pictures in an order of their own, each in a folder that is its label.

    The network gets right the first nine, the nine after the first 72, and so on.
    """
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("many")
    for i in range(180):
        pixels = np.asarray(digits[i % 8].image, int) * rng.uniform(0.7, 1)
        folder = root / f"{i:03}" / str((i % 9) % 8)
        folder.mkdir(parents=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"image_{i}.png")
    return root


@pytest.fixture(scope="module")
def at_once(many, tmp_path_factory):
    """What a run writes that nothing disturbs, on two cores; each process of torchrun has one."""
    before, out = torch.get_num_threads(), tmp_path_factory.mktemp("at_once")
    torch.set_num_threads(2)
    try:
        assert main(arguments(many, out)) == 0
    finally:
        torch.set_num_threads(before)
    return contents(out)


def arguments(source, out, *more):
    options = ["--batch-size", "8", "--save-maps", "float32", "--workers", "0"]
    return [str(source), "--out", str(out), *COURSE, *options, *more]


def command(source, out, *more, launcher=PYTHON, **how):
    words = [*launcher, *arguments(source, out, *more)]
    return subprocess.run(words, capture_output=True, text=True, **how)


def contents(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def same_files(found, expected):
    """Byte for byte: the table, the maps, the figure, the record and every picture."""
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name] == expected[name], name


def table(out):
    with (out / "seenby.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def picked(out):
    return [row for row in table(out) if row["status"] == "explained"]


# ------------------------------------------------------------------------------ interruptions


class StopError(Exception):
    pass


def stop_after(monkeypatch, batches):
    """Lets so many batches be written, then fails in the middle of the next."""
    write, written = OutputFolder.write_batch, []

    def write_some(*arguments):
        if len(written) == batches:
            raise StopError
        written.append(write(*arguments))

    monkeypatch.setattr("seenby.outputs.store.OutputFolder.write_batch", write_some)
    monkeypatch.setattr("seenby.pipeline.WRITERS", 1)


def stop_at_the_merge(monkeypatch):
    """All batches are written, the table is not."""

    def stop(*_):
        raise StopError

    monkeypatch.setattr("seenby.outputs.store.OutputFolder.merge_parts", stop)


def note_batches(monkeypatch):
    """A list that grows by a batch, and how many may be picked, whenever one is explained."""
    explained, explain_batch = [], pipeline.explain_batch

    def note(batch, *rest):
        explained.append((batch, rest[-1]))
        return explain_batch(batch, *rest)

    monkeypatch.setattr("seenby.pipeline.explain_batch", note)
    return explained


@pytest.mark.parametrize("batches", [0, 1, 7, 22])
def test_a_run_that_goes_on_ends_with_the_same_files(many, at_once, tmp_path, monkeypatch, batches):
    torch.set_num_threads(1)
    with monkeypatch.context() as patch, pytest.raises(StopError):
        stop_after(patch, batches)
        main(arguments(many, tmp_path))
    parts = list(tmp_path.glob(".seenby.*/*.csv"))
    assert len(parts) == batches
    assert not (tmp_path / "seenby.csv").exists()
    with monkeypatch.context() as patch:
        explained = note_batches(patch)
        assert main(arguments(many, tmp_path, "--resume")) == 0
    # 23 batches of 8; of those that were done the first alone, for the figure, is explained again.
    assert len(explained) == 23 - batches + bool(batches)
    same_files(contents(tmp_path), at_once)


@pytest.mark.slow
@posix
@pytest.mark.parametrize("launcher", [PYTHON, *[TOOL] * ("KILLS" in os.environ)])
def test_killed_at_any_moment_and_resumed(many, at_once, tmp_path, launcher):
    """KILLS=50 in the environment: fifty times, and as often with two processes."""
    kills = int(os.environ.get("KILLS", "2"))
    words = [*launcher, *arguments(many, tmp_path, "--resume", "--quiet")]
    moments, killed = random.Random(0), 0
    while killed < kills:
        before = set(tmp_path.rglob("*"))
        process = subprocess.Popen(words, env=ONE_THREAD, start_new_session=True)
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
    with monkeypatch.context() as patch, pytest.raises(StopError):
        stop_after(patch, 5)
        main(arguments(many, tmp_path))
    assert main(arguments(many, tmp_path, "--limit", "20")) == 0
    assert len(table(tmp_path)) == 20
    assert len(list(tmp_path.glob("maps/*.npz"))) == 3


def test_other_settings_are_not_mixed_into_a_run_that_goes_on(many, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(StopError):
        stop_after(patch, 5)
        main(arguments(many, tmp_path))
    explained = note_batches(monkeypatch)
    assert main(arguments(many, tmp_path, "--resume", "--pad", "1")) == 0
    assert len(explained) == 23  # all
    assert main(arguments(many, tmp_path, "--resume", "--workers", "1", "--columns", "3")) == 0
    assert len(explained) == 23 + 18 + 1  # these may change
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("change", ["weights", "pictures"])
def test_other_weights_or_pictures_are_not_mixed_in_either(tmp_path, digits, monkeypatch, change):
    for i in range(24):
        (tmp_path / "in").mkdir(exist_ok=True)
        digits[i % 8].image.save(tmp_path / "in" / f"b{i:02}.png")
    state = torch.load(WEIGHTS, weights_only=True)
    torch.save(state, weights := tmp_path / "w.pth")
    words = arguments(tmp_path / "in", tmp_path / "out", "--weights", str(weights))
    with monkeypatch.context() as patch, pytest.raises(StopError):
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
    write = OutputFolder.write_batch

    def write_and_lose(output, number, *arguments):
        write(output, number, *arguments)
        if number == 20:  # as when another run begins in the same folder
            for part in tmp_path.glob(".*.parts/[0-9].csv"):
                part.unlink()

    with monkeypatch.context() as patch:
        patch.setattr("seenby.outputs.store.OutputFolder.write_batch", write_and_lose)
        assert main(arguments(many, tmp_path)) == 2
    assert "is no longer complete" in capsys.readouterr().err
    (part,) = tmp_path.glob(".*.parts/12.csv")
    part.write_text("")  # as a power cut may leave it
    assert main(arguments(many, tmp_path, "--resume")) == 0
    assert len(table(tmp_path)) == 180


def test_what_else_lies_in_the_folder_stays(many, tmp_path):
    """Among it what the course's script writes, and parts of any other program."""
    mine = (
        ".seenby.csv.part", ".other.parts/7.csv", ".SID_a4.1234abcd.parts/7.csv",
        ".SID_a4.png.part", "SID_a4.csv", "SID_a4.png", "gradcam/image_0.png", "maps/all.npz",
        "maps/1st.npz",
    )  # fmt: skip
    for name in mine:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    options = arguments(many, tmp_path, "--limit", "20", "--batch-size", "2")
    assert main(options) == 0
    assert len(list(tmp_path.glob("maps/0*.npz"))) == 10
    assert main([*options, "--limit", "5", "--pick", "wrong"]) == 0
    kept = sorted(tmp_path.glob("maps/0*.npz"))
    assert [len(np.load(path)["image"]) for path in kept] == [1, 2, 2]
    assert [path.stem for path in kept] == ["000004", "000005", "000006"]
    assert len(picked(tmp_path)) == 5
    for name in mine:
        assert (tmp_path / name).read_text() == "mine"


def test_the_script_and_the_tool_may_write_into_one_folder(many, at_once, tmp_path, monkeypatch):
    """Neither deletes what the other has not finished, nor what it has."""
    with monkeypatch.context() as patch, pytest.raises(StopError):
        stop_after(patch, 5)
        main(arguments(many, tmp_path))
    items = json.loads((ROOT / "data" / "example_digits.json").read_text())
    digits = {f"digit_{i}": item for i, item in enumerate(items)}
    (tmp_path / "digits.json").write_text(json.dumps(digits))
    before = contents(tmp_path)
    assert SID_a4.main([str(tmp_path / "digits.json"), "--out", str(tmp_path), "--quiet"]) == 0
    script_too = contents(tmp_path)
    assert before.items() <= script_too.items()
    assert {"SID_a4.csv", "SID_a4.png", "raw/digit_7.png"} <= script_too.keys() - before.keys()
    explained = note_batches(monkeypatch)
    assert main(arguments(many, tmp_path, "--resume")) == 0
    assert len(explained) == 23 - 5 + 1
    of_script = {name: script_too[name] for name in script_too.keys() - before.keys()}
    same_files(contents(tmp_path), at_once | of_script | {"digits.json": before["digits.json"]})


def test_pick_and_limit_count_what_was_picked_before(many, tmp_path, monkeypatch, capsys):
    def pick(out, *more):
        assert main(arguments(many, out, "--pick", "wrong", "--limit", "60", *more)) == 0
        return contents(out)

    expected, (accuracy,) = pick(tmp_path / "a"), accuracies(capsys)
    assert len(picked(tmp_path / "a")) == 60
    with monkeypatch.context() as patch, pytest.raises(StopError):
        stop_after(patch, 6)
        pick(tmp_path / "b")
    same_files(pick(tmp_path / "b", "--resume"), expected)
    with monkeypatch.context() as patch, pytest.raises(StopError):
        stop_at_the_merge(patch)
        pick(tmp_path / "c")  # all are picked, but not in the table yet
    (first,) = (tmp_path / "c").glob(".*.parts/0.csv")  # a batch without any that is picked,
    first.unlink()  # whose writer was slower than the others
    same_files(pick(tmp_path / "c", "--resume"), expected)
    assert accuracies(capsys)[-1] == accuracy


def test_what_is_picked_is_the_same_in_whatever_order_the_batches_end(many, tmp_path, monkeypatch):
    """Also where the network outputs no numbers for some that were picked: these don't count."""
    (tmp_path / "some.py").write_text(
        "import torch\n"
        "from SID_a4 import CourseCNN\n"
        "class Some(CourseCNN):\n"
        "    def forward(self, x):\n"
        "        large = (x.sum((1, 2, 3)) * 7).floor() % 3 == 0\n"
        "        return super().forward(x) * torch.where(large, 1e30, 1)[:, None]\n"
    )
    model = ["--model", f"{tmp_path / 'some.py'}:Some", "--pick", "wrong", "--quiet"]

    def pick(out, limit, *more):
        """The files, and how many each batch was allowed to pick."""
        with monkeypatch.context() as patch:
            explained = note_batches(patch)
            assert main(arguments(many, out, *model, "--limit", str(limit), *more)) == 1
        return contents(out), {batch[0].name: picks_left for batch, picks_left in explained}

    for limit, all_late in ((20, ({2, 3, 7}, {*range(8)})), (3, ({1}, set()))):
        expected, allowed = pick(tmp_path / f"{limit}", limit)
        statuses = Counter(row["status"] for row in table(tmp_path / f"{limit}"))
        assert statuses["explained"] == limit
        assert statuses["skipped"]
        assert statuses["not picked"] > 5
        for i, late in enumerate(all_late):
            with monkeypatch.context() as patch, pytest.raises(StopError):
                stop_at_the_merge(patch)
                pick(out := tmp_path / f"{limit} {i}", limit)
            parts = {int(part.stem): part for part in out.glob(".*.parts/*.csv")}
            assert len(parts) == len(allowed)
            for number in late:  # killed while their writers were slower than those of the others
                parts[number].unlink()
            found, allowed_now = pick(out, limit, "--resume")
            same_files(found, expected)
            assert allowed_now  # for the figure at least
            assert allowed_now.items() <= allowed.items()


def accuracies(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("accuracy")]


def test_a_small_network_leaves_a_core_to_what_decodes_and_writes(
    many, tmp_path, monkeypatch, network
):
    before, explain_pictures, used = torch.get_num_threads(), batch_module.explain_pictures, []

    def noting(*arguments):
        used.append(torch.get_num_threads())
        return explain_pictures(*arguments)

    monkeypatch.setattr("seenby.batch.explain_pictures", noting)
    torch.set_num_threads(2)
    try:
        main(arguments(many, tmp_path, "--limit", "9"))
        assert used == [1, 1]  # the batches; what the figure shows is at hand
        with threads_for(network.module, 224 * 224):  # 64 times as much to do
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# --------------------------------------------------------------------------------- many processes


@pytest.mark.slow
def test_workers_change_nothing(many, at_once, tmp_path):
    assert command(many, tmp_path, "--workers", "3").returncode == 0
    same_files(contents(tmp_path), at_once)


@pytest.mark.slow
@posix
def test_two_processes_write_what_one_does(many, at_once, tmp_path):
    done = command(many, tmp_path, launcher=TOOL, timeout=120)
    assert done.returncode == 0, done.stderr
    same_files(contents(tmp_path), at_once)
    assert done.stdout.count("180 explained in ") == 1


@pytest.mark.slow
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
    out, model = tmp_path / "out", f"{tmp_path / 'once.py'}:Dies"
    words = [*TORCHRUN, "--max-restarts=1", "-m", "seenby"]
    words += arguments(many, out, "--model", model)
    done = subprocess.run(words, capture_output=True, text=True, env=ONE_THREAD, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "SIGKILL" in done.stderr or "exitcode: -9" in done.stderr
    record = json.loads(at_once["run.json"])
    record["network"] = record["network"].replace("CourseCNN of SID_a4.py", "Dies of once.py")
    record["settings"]["model"] = model
    found = contents(out)
    assert json.loads(found.pop("run.json")) == record
    same_files(found, {name: at_once[name] for name in at_once if name != "run.json"})


@pytest.mark.slow
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
    words = [*TOOL, *arguments(many, tmp_path / "out", "--model", f"{tmp_path / 'fails.py'}:Fails")]
    done = subprocess.run(words, capture_output=True, text=True, env=ONE_THREAD, timeout=120)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("seenby: ")]
    assert said == [
        "seenby: error: stopped: the sixth call fails; fix that, then run again with --resume"
    ]


RANKS = """
import itertools, os, sys, time
import seenby.batch, seenby.pipeline
from seenby.command_line import main

list_items, explain_batches = seenby.batch.list_items, seenby.pipeline.explain_batches

def fewer(*given):
    return itertools.islice(list_items(*given), 20)

def later(*given):
    print("late", flush=True)
    time.sleep(1)
    return explain_batches(*given)

if os.environ["RANK"] == "1":
    seenby.%s = %s
sys.exit(main())
"""


@pytest.mark.slow
@posix
def test_ranks_that_see_other_pictures_do_not_wait_for_ever(many, tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS % ("batch.list_items", "fewer"))
    words = [*TORCHRUN, str(tmp_path / "ranks.py"), *arguments(many, tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, env=ONE_THREAD, timeout=60)
    assert done.returncode != 0
    (said,) = (line for line in done.stderr.splitlines() if line.startswith("seenby: "))
    assert "the processes don't see the same pictures" in said


@posix
def test_a_rank_that_waits_for_another_hears_of_ctrl_c(monkeypatch):
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True)
    monkeypatch.setattr("seenby.machine.rendezvous", lambda _: iter([(store, 0, 2)]))
    ranks = Ranks(0, 0, 2)

    def stop(*_signal):
        raise StopError

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        started = time.monotonic()
        with pytest.raises(StopError):
            ranks.all_gather("pictures", "mine")
        assert time.monotonic() - started < 5
    finally:
        signal.signal(signal.SIGALRM, before)
    store.set("pictures 1", "theirs")
    assert ranks.all_gather("pictures", "mine") == {b"mine", b"theirs"}


def test_a_part_that_a_shared_folder_shows_late_is_waited_for(tmp_path, monkeypatch, network):
    monkeypatch.setattr("seenby.pipeline.SHARED_FOLDER_TIMEOUT", 0.5)
    output = OutputFolder(tmp_path, tmp_path, Style(), overlays=True, raw=True, panels=False,
                          save_maps=None, uncropped=False, name_targets=False, name_methods=False)
    alone, two = Ranks(), Ranks(0, 0, 2)
    run = Run(Settings(batch_size=8), network, ("predicted",), two, output, total=16)
    for number in (0, 1):
        (tmp_path / f"{number}.csv").write_text("whatever\n")
    wait_for_parts(run)
    run = replace(run, total=17)
    for ranks, least in ((two, 0.5), (alone, 0)):  # a single process has nothing to wait for
        begun = time.monotonic()
        with pytest.raises(InputError, match="is no longer complete"):
            wait_for_parts(replace(run, ranks=ranks))
        assert least <= time.monotonic() - begun < least + 0.4
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(wait_for_parts, run)
        time.sleep(0.2)
        (tmp_path / "2.csv").write_text("late\n")
        assert answer.result() is None


@pytest.mark.slow
@posix
def test_a_rank_that_is_late_does_nothing_twice(many, at_once, tmp_path, monkeypatch):
    """All batches are done, but there is no table yet: the first process need not wait."""
    torch.set_num_threads(1)
    words = arguments(many, out := tmp_path / "out", "--no-overlays", "--no-raw", "--limit", "40")
    with monkeypatch.context() as patch, pytest.raises(StopError):
        stop_at_the_merge(patch)
        main(words)
    (tmp_path / "ranks.py").write_text(RANKS % ("pipeline.explain_batches", "later"))
    command = [*TORCHRUN, str(tmp_path / "ranks.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=ONE_THREAD, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "late"
    assert at_once["seenby.csv"].startswith((out / "seenby.csv").read_bytes())
    assert len(table(out)) == 40
    assert not list(out.glob(".*"))


@pytest.mark.slow
@posix
def test_a_mistake_is_said_once_by_all_ranks_together(tmp_path):
    done = command("/nowhere", tmp_path, launcher=TOOL, timeout=120)
    said = [line for line in done.stderr.splitlines() if line.startswith("seenby: error")]
    assert len(said) == 1
    assert "/nowhere does not exist" in said[0]


# ------------------------------------------------------------------------------- what is written


def test_saved_maps_are_the_maps_with_their_names(tmp_path, network, digits):
    digits[5].image.save(five := tmp_path / "five.png")
    digits[3].image.save(three := tmp_path / "three.png")
    for kind, close in (("float32", 1e-6), ("float16", 1e-3)):
        out = tmp_path / kind
        options = ["--target", "predicted", "8", "--save-maps", kind, "--out", str(out)]
        assert main([str(five), str(three), *COURSE, *options]) == 0
        with np.load(out / "maps" / "000000.npz", allow_pickle=False) as maps:
            assert maps["image"].tolist() == ["five", "five", "three", "three"]
            assert maps["target"].tolist() == ["5", "8", "3", "8"]
            assert [*map(int, maps["target_index"])] == [5, 8, 3, 8]
            assert maps["method"].tolist() == ["gradcam"] * 4
            assert {maps["heatmap"].dtype, maps["R"].dtype} == {np.dtype(kind)}
            x = network.tensor([digits[5].image, digits[3].image])
            for i, c in enumerate((None, 8)):
                explanation = explain(network.module, x, c)
                for name in ("heatmap", "R"):
                    expected = getattr(explanation, name).numpy()
                    scale = np.abs(expected).max()
                    np.testing.assert_allclose(maps[name][i::2], expected, atol=close * scale)


def width(out):
    with Image.open(out / "seenby.png") as figure:
        return figure.width


def test_overlays_and_columns_as_asked(many, tmp_path):
    options = ["--no-overlays", "--no-raw", "--panels", "raw", "cam", "--columns"]
    assert main(arguments(many, tmp_path, *options, "3")) == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["maps", "run.json", "seenby.csv", "seenby.png"]
    with np.load(tmp_path / "maps" / "000003.npz") as maps:
        assert "R" not in maps  # no guided panel was asked for: it was not computed
    wide = width(tmp_path)
    assert main(arguments(many, tmp_path, *options, "12")) == 0
    assert width(tmp_path) > 2 * wide
    assert len(table(tmp_path)) == 180


def test_what_a_gpu_sends_comes_back_as_it_was(network, digits):
    x = network.tensor([digit.image for digit in digits])
    sent = explain_many(network.module, x, [None, 3], methods=["gradcam", "xgradcam"])
    for one, two in zip(to_cpu(sent), sent, strict=True):
        for name, value in vars(two).items():
            if isinstance(value, torch.Tensor):
                found = getattr(one, name)
                assert (found.dtype, found.shape) == (value.dtype, value.shape)
                assert torch.equal(found, value)


# --------------------------------------------------------------------------- memory and progress


@pytest.mark.slow
@posix
def test_many_pictures_need_no_more_memory_than_few(many, tmp_path):
    def peak(*sources):
        words = [*PYTHON, *map(str, sources), *COURSE, "--no-overlays", "--no-raw", "--quiet"]
        words += ["--out", str(tmp_path / "out")]
        _, status, usage = os.wait4(os.posix_spawn(words[0], words, os.environ), 0)
        assert status == 0
        return usage.ru_maxrss

    few, much = peak(many), peak(*[many] * 8)
    assert len(table(tmp_path / "out")) == 8 * 180
    assert much < 1.1 * few, (few, much)


@pytest.mark.slow
@posix
def test_a_bar_for_a_person_and_for_nobody_else(many, tmp_path, monkeypatch, capsys):
    """Of runs that take longer than two seconds, on a terminal and elsewhere."""
    explain_batch = pipeline.explain_batch
    monkeypatch.setattr(
        "seenby.pipeline.explain_batch", lambda *a: time.sleep(0.75) or explain_batch(*a)
    )
    words = arguments(many, tmp_path / "terminal", "--limit", "24")
    code = (
        "import sys, time\n"
        "from seenby import pipeline\n"
        "from seenby.command_line import main\n"
        "explain_batch = pipeline.explain_batch\n"
        "pipeline.explain_batch = lambda *a: time.sleep(0.75) or explain_batch(*a)\n"
        "for quiet in ([], ['--quiet']):\n"
        f"    main({words!r} + quiet)\n"
        "    sys.stderr.write('|')\n"
    )
    mine, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=theirs
    )
    os.close(theirs)
    begun = time.monotonic()
    assert main([*words, "--out", str(tmp_path / "elsewhere")]) == 0  # meanwhile
    assert time.monotonic() - begun > 2
    assert capsys.readouterr().err == ""
    said = b""
    with suppress(OSError):  # so Linux ends a terminal
        while read := os.read(mine, 1000):
            said += read
    assert process.wait() == 0
    bar, quiet, _ = said.decode().rsplit("|", 2)
    assert re.search(r"\d+/24 \[00:0\d<00:0\d, +\d+\.\d+ pictures/s\]", bar)
    assert quiet == ""
