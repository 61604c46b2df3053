#!/usr/bin/env python3
"""What a GPU makes of it: the same maps? how fast, against the other libraries? whole runs?

    python benchmarks/gpu.py                into benchmarks/gpu.json and peers_cuda.json
    python benchmarks/gpu.py --quick        small, also on a CPU, printed alone

It does one thing after the other, and what does not fit into --seconds is skipped. What fails is
kept as the error's line, and the next thing follows. The records are written after each of them.
"""

from __future__ import annotations

import argparse
import csv
import gc
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import peers
import torch
from peers import distance, machine, subject, torchvision, wait_for
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from seenby import Explanation, batch, explain, load_network, pipeline
from seenby.command_line import main as command
from seenby.inputs.pictures import Preprocessing
from seenby.machine import split_on_oom
from seenby.outputs.store import OutputFolder
from seenby.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = ("course", "resnet50", "vit_b_16")
LIBRARIES = ("numpy", "pillow", "torchvision", "captum", "grad-cam", "torchcam")
RANDOM = ["--model", "resnet50", "--weights", "none", "--quiet"]
Task = tuple[str, float, Callable[[], Any]]  # its name, the seconds it may need, and what it does


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    device: str
    end: float  # of the time, on the monotonic clock
    networks: tuple[str, ...] = NETWORKS
    batches: tuple[int, ...] = (32, 1, 256)
    pictures: int = 2000  # of the streamed runs
    size: tuple[str, ...] = ()  # of their input
    rounds: int = 7
    crowd: int = 4096  # pictures at once, for which no memory is enough
    peers: Path | None = None  # the file of their cells


def tasks(plan: Plan, folder: Path) -> Iterator[Task]:
    """The important ones first."""
    for name in plan.networks:
        yield f"maps: {name}", 15, partial(compare_devices, plan.device, name)
    if plan.device == "cuda":
        yield "smoke: torchvision", 2, partial(operators, plan.device)
    yield "smoke: autocast", 10, partial(autocast, plan.device, plan.networks[:2])
    yield "smoke: the command on both", 20, partial(both_devices, plan, folder)
    yield "smoke: tests", 60, tests_of_devices
    yield "run: make the pictures", 20, partial(photographs, folder / "run", plan.pictures)
    yield "run: decoding alone", 30, partial(decode, folder / "run", plan)
    for size in ("16", "64"):
        words = ["--batch-size", size, *plan.size]
        bare = ["--no-overlays", "--no-raw", *words]
        yield f"run: table and figure, batches of {size}", 30, partial(stream, plan, folder, bare)
    yield "run: stage by stage", 40, partial(stages, plan, folder, bare)
    yield "run: and two pictures for each", 60, partial(stages, plan, folder, words)
    yield "smoke: no memory", 30, partial(out_of_memory, plan)
    for B in plan.batches:
        for precision in peers.PRECISIONS:
            for name in plan.networks:
                needs = 25 if B > 32 else 12
                cell = partial(peers_cell, plan, name, B, precision)
                yield f"peers: {name}, {B}, {precision}", needs, cell


# ----------------------------------------------------------------------------------------- maps


def build(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    """A network with random weights, and four pictures."""
    net, x = subject(name, 4, "cpu")
    return net.to(dtype), x.to(dtype)


def compare_devices(device: str, name: str) -> dict[str, Any]:
    """How far the device's maps are from the CPU's: ||a - b|| / ||b||."""
    found: dict[str, Any] = {}
    with whole_float32():
        for dtype in (torch.float32, torch.float64):
            net, x = build(name, dtype)
            here = explain(net, x)
            there = explain(net.to(device), x.to(device), here.target, here.layer)
            found[str(dtype).removeprefix("torch.")] = distances(there, here)
    # As PyTorch is set: convolutions in TF32.
    net, x = build(name)
    here = explain(net, x)
    there = explain(net.to(device), x.to(device), here.target, here.layer)
    chosen = explain(net, x.to(device))
    assert here.target is not None
    assert chosen.target is not None
    return {"layer": here.layer, "the same layer": chosen.layer == here.layer,
            "the same classes": chosen.target.tolist() == here.target.tolist(),
            **found, "float32 as PyTorch is set": distances(there, here)}  # fmt: skip


@contextmanager
def whole_float32() -> Iterator[None]:
    """All 23 bits of the mantissa; TF32 has 10."""
    owners: Any = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [owner.allow_tf32 for owner in owners]
    try:
        for owner in owners:
            owner.allow_tf32 = False
        yield
    finally:
        for owner, was in zip(owners, before, strict=True):
            owner.allow_tf32 = was


def distances(there: Explanation, here: Explanation) -> dict[str, float]:
    found = {}
    for name in ("logits", "L_c", "R", "guided_cam"):
        found[name] = distance(getattr(there, name), getattr(here, name))
    return found


# ---------------------------------------------------------------------------------------- smoke


def operators(device: str) -> str:
    """torchvision's own operators are there, which import_torchvision must not have replaced."""
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 30, 30]], device=device)
    kept = torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9, 0.1], device=device), 0.5).tolist()
    assert kept == [1, 2], kept
    return "nms keeps what it should"


def autocast(device: str, networks: tuple[str, ...]) -> dict[str, Any]:
    """Maps of bf16 are numbers, and near float32's."""
    found = {}
    for name in networks:
        net, x = build(name)
        net, x = net.to(device), x.to(device)
        exact = explain(net, x)
        with torch.autocast(device, torch.bfloat16):
            half = explain(net, x, exact.target, exact.layer)
        assert half.R is not None
        assert half.heatmap.isfinite().all()
        assert half.R.isfinite().all()
        found[name] = distances(half, exact)
    return found


def both_devices(plan: Plan, folder: Path) -> dict[str, float]:
    """The command gives one table on both devices."""
    photographs(folder / "few", 6)
    tables = []
    with whole_float32():
        for device in ("cpu", plan.device):
            out = folder / f"few on {device}"
            run_command([str(folder / "few"), *plan.size, "--device", device, "--out", str(out)])
            with (out / "seenby.csv").open(newline="") as file:
                tables.append(list(csv.DictReader(file)))
    (here, there), column = tables, "predicted_probability"
    assert [row["target"] for row in here] == [row["target"] for row in there]
    pairs = zip(here, there, strict=True)
    apart = max(abs(float(a[column]) - float(b[column])) for a, b in pairs)
    return {"rows": len(here), "probabilities apart": apart}


def tests_of_devices() -> str:
    """The project's tests that speak of CUDA."""
    words = ["-n", "0", "-o", "addopts=", "-o", "filterwarnings=default", "-p", "no:cacheprovider",
             "-q", "-k", "cuda", "tests/test_options.py", "tests/test_command_line.py"]  # fmt: skip
    ran = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, capture_output=True,
                         text=True, timeout=60, check=False)  # fmt: skip
    return " / ".join((ran.stdout + ran.stderr).splitlines()[-4:])


def out_of_memory(plan: Plan) -> dict[str, Any]:
    """Far too many pictures at once are explained in halves of halves."""
    net, x = build("resnet50" if plan.device == "cuda" else "course")
    net, x = net.to(plan.device), x[:1].to(plan.device)
    sizes = []

    def work(items: list[Tensor]) -> list[tuple[Any, ...]]:
        sizes.append(len(items))
        if plan.device == "cpu" and len(items) > 2:
            torch.empty(2**60)  # a CPU would rather be killed than say so
        found = explain(net, torch.cat(items), layer=layer)
        assert found.target is not None
        return list(zip(found.target.tolist(), found.L_c.amax((1, 2)).tolist(), strict=True))

    layer = explain(net, x).layer
    with redirect_stderr(io.StringIO()) as said:
        found = split_on_oom(work, [x] * plan.crowd)
    alone = work([x])[0]
    assert len(found) == plan.crowd
    assert len(sizes) > 2, f"{plan.crowd} pictures fitted"
    apart = max(abs(value / alone[1] - 1) for _, value in found)
    return {"tried": sizes[:-1], "said": said.getvalue().splitlines(), "apart from one": apart}


# ------------------------------------------------------------------------------------------ run


def photographs(folder: Path, count: int) -> str:
    """JPEG files of 500 x 375, of smooth noise."""
    folder.mkdir()

    def save(i: int) -> None:
        small = np.random.default_rng(i).integers(0, 256, (38, 50, 3), np.uint8)
        photo = Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC)
        photo.save(folder / f"{i:05}.jpg", quality=90)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(save, range(count)))
    total = sum(file.stat().st_size for file in folder.iterdir())
    return f"{count} files of {total / count / 1000:.0f} kB"


def decode(folder: Path, plan: Plan) -> dict[str, float]:
    """Pictures per second that are read and made 224 x 224, and that by one core."""
    network = load_network("resnet50", "none")
    found = {}
    for workers in sorted({0, Settings().workers, (os.cpu_count() or 1) - 1}):
        count = plan.pictures if workers else min(200, plan.pictures)
        settings = Settings(images=(str(folder),), limit=count)
        batches = batch.Batches(batch.Source(settings, network), range(plan.pictures))
        start = time.perf_counter()
        for _ in DataLoader(batches, batch_size=None, num_workers=workers):
            pass
        found[f"workers {workers}"] = round(count / (time.perf_counter() - start), 1)
    return found


def run_command(words: list[str]) -> None:
    with redirect_stderr(io.StringIO()) as said:
        code = command([*RANDOM, *words])
    assert code == 0, said.getvalue()[-300:]


def stream(plan: Plan, folder: Path, words: list[str]) -> dict[str, float]:
    """A whole run: pictures per second, and the peak of the GPU's memory."""
    if plan.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        start = time.perf_counter()
        run_command([str(folder / "run"), *words, "--device", plan.device, "--out", out])
        seconds = time.perf_counter() - start
    found = {"seconds": round(seconds, 2), "pictures per second": round(plan.pictures / seconds, 1)}
    if plan.device == "cuda":
        found["GPU MiB"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return found


def stages(plan: Plan, folder: Path, words: list[str]) -> dict[str, Any]:
    """The same, with the seconds of each stage, each of which is waited for.

    The stages follow each other but for decode, which is what is left to wait for, and write, which
    is the work of two threads.
    """
    spent: dict[str, list[float]] = defaultdict(list)
    counted: dict[str, float] = {}

    def explain_batches(run: pipeline.Run) -> Any:
        spent.clear()  # a picture is prepared before, to find the layer
        figure = clocked("all batches", unchanged, plan.device)(run)
        counted.update({stage: sum(each) for stage, each in spent.items()})
        return figure

    unchanged = pipeline.explain_batches

    def clocked(stage: str, function: Any, device: str = "cpu") -> Any:
        def run(*args: Any, **options: Any) -> Any:
            wait_for(device)
            start = time.perf_counter()
            result = function(*args, **options)
            wait_for(device)
            spent[stage].append(time.perf_counter() - start)
            return result

        return run

    class Waited(DataLoader[Any]):
        def __iter__(self) -> Any:
            batches = super().__iter__()
            step = clocked("decode", partial(next, batches, None))
            while (each := step()) is not None:
                yield each

    with ExitStack() as stack:
        for stage, owner, name, device in (
            ("prepare", Preprocessing, "tensor", plan.device),
            ("prepare and transfer", batch, "tensor_of", plan.device),
            ("network", batch, "explain_many", plan.device),
            ("transfer back", batch, "to_cpu", plan.device),
            ("write", OutputFolder, "write_batch", "cpu"),
        ):  # fmt: skip
            changed = clocked(stage, getattr(owner, name), device)
            stack.enter_context(mock.patch.object(owner, name, changed))
        stack.enter_context(mock.patch.object(pipeline, "DataLoader", Waited))
        stack.enter_context(mock.patch.object(pipeline, "explain_batches", explain_batches))
        found: dict[str, Any] = stream(plan, folder, words)
    return found | shares(counted, found["seconds"])


def shares(spent: dict[str, float], whole: float) -> dict[str, dict[str, float]]:
    """Of the time of all batches; beside them a run loads the network and draws the figure."""
    batches = spent.pop("all batches")
    spent["transfer"] = spent.pop("prepare and transfer") - spent["prepare"]
    write = spent.pop("write")
    spent["rest"] = batches - sum(spent.values())
    found = {stage: round(seconds / batches, 4) for stage, seconds in spent.items()}
    return {
        "seconds of": {"start and figure": round(whole - batches, 2), "batches": round(batches, 2)},
        "share of the batches' time": found | {"write, of two threads": round(write / batches, 4)},
    }


# ---------------------------------------------------------------------------------------- peers


def peers_cell(plan: Plan, name: str, B: int, precision: str) -> dict[str, Any]:
    gc.collect()
    found = peers.cell(name, B, 1, plan.rounds, plan.device, precision, 1.0, plan.end - 10)
    if plan.peers:
        peers.keep(found, plan.peers)
    words = ("seconds", "times ours", "MiB", "measured once", "left out", "distance from float32")
    return {word: found[word] for word in words if found.get(word)} | {
        "times the floor": found["times the floor"], "said": peers.line(found)}  # fmt: skip


# ------------------------------------------------------------------------------------------ all


def do(task: Task, end: float) -> Any:
    """What a task finds, or why it found nothing."""
    _, needs, work = task
    if time.monotonic() + needs > end:
        left = max(0, end - time.monotonic())
        return f"skipped: it may need {needs:.0f} s, and {left:.0f} s are left"
    try:
        return work()
    except Exception as error:
        return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def environment(device: str) -> dict[str, Any]:
    found = machine(device == "cpu") | {"device": device, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:
            found[name] = "not there"
    TF32 = {"convolutions": torch.backends.cudnn.allow_tf32,
            "matrices": torch.backends.cuda.matmul.allow_tf32}  # fmt: skip
    return found | {"cuda": torch.version.cuda, "TF32": TF32}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=330, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks", metavar="FOLDER",
                        help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(argv)
    start, device = time.monotonic(), "cuda" if torch.cuda.is_available() else "cpu"
    plan = Plan(device, start + options.seconds, peers=options.out / "peers_cuda.json")
    if options.quick:
        plan = Plan(device, start + options.seconds, ("course",), (2,), 8, ("--size", "32"), 2, 8)
    elif device == "cpu":
        parser.error("there is no GPU; --quick does without")
    warnings.simplefilter("ignore")  # Captum warns at every call that it sets hooks
    record: dict[str, Any] = {"environment": environment(device), "seconds": {}}
    print(json.dumps(record["environment"]), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for task in tasks(plan, Path(folder)):
            name, began = task[0], time.monotonic()
            record[name] = do(task, plan.end)
            now = time.monotonic()
            record["seconds"][name] = round(now - began, 1)
            print(f"{now - start:6.1f} s  {name}: {text(record[name])}", flush=True)
            if not options.quick:
                (options.out / "gpu.json").write_text(json.dumps(record, indent=1) + "\n")
    print(table_of_cells(record))
    return 0


def table_of_cells(record: dict[str, Any]) -> str:
    """Of the peers' cells: milliseconds, then MiB of two, and how far our bf16 is from float32."""
    rows = [f"{'milliseconds':<24}" + "".join(f"{who[:16]:>18}" for who in peers.CONTESTANTS)
            + f"{'MiB: floor':>12}{'seenby':>8}  bf16 from float32: L_c, R"]  # fmt: skip
    for name, found in record.items():
        if name.startswith("peers: ") and isinstance(found, dict):
            seconds, MiB = found["seconds"], found["MiB"]
            times = [f"{1000 * seconds[who]:18.2f}" if who in seconds else f"{'-':>18}"
                     for who in peers.CONTESTANTS]
            rows.append(f"{name[7:]:<24}{''.join(times)}{MiB['floor']:12.0f}{MiB['seenby']:8.0f}  "
                        f"{found.get('distance from float32', {}).get('seenby', '')}")
    return "\n".join(rows)


def text(found: Any) -> str:
    """One line for what was found, peers' own of a cell."""
    if isinstance(found, dict):
        return str(found["said"] if isinstance(found.get("said"), str) else json.dumps(found))
    return str(found)


if __name__ == "__main__":
    sys.exit(main())
