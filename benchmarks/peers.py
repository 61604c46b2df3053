#!/usr/bin/env python3
"""How long do the same maps take here, in pytorch-grad-cam, in Captum and in torchcam?

    python benchmarks/peers.py                       all of it, into benchmarks/peers.json (hours)
    python benchmarks/peers.py --quick               the course network at batch 8, printed alone
    python benchmarks/peers.py --networks resnet50 --batches 8 --classes 1     one cell, kept
    python benchmarks/peers.py --table               puts peers.json into the table of docs/speed.md
    python benchmarks/peers.py --device cuda --networks resnet50 --batches 1 32 256 --classes 1
                                                     on a GPU, into benchmarks/peers_cuda.json

Every contestant explains the same pictures with a network of its own copy, in one process; ratios
are taken within a round, so that a machine whose speed changes does not decide. Each round has an
order of its own, as each contestant leaves the next its caches and its heap: of DenseNet-121 with
eight pictures seenby took 0.99 of the floor's time in one fixed order, 0.94 in changing ones.
The floor is one forward pass and one gradient of the pictures by the bare network, without any map.
On a GPU a clock is read when the GPU has done all that it was given. With --precision bf16
everybody computes under autocast, and the cell says how far the maps are from float32's.
A library that cannot explain a network is left out of its cell, which says why.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import math
import os
import random
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from seenby import explain, explain_many  # noqa: E402
from seenby.core.grids import Grid  # noqa: E402
from seenby.core.search import find_layer  # noqa: E402
from seenby.errors import message_of  # noqa: E402
from seenby.machine import import_torchvision  # noqa: E402
from SID_a4 import CourseCNN  # noqa: E402

torchvision = import_torchvision()  # which the libraries import

PAGE = ROOT / "docs" / "speed.md"
TABLE = re.compile(r"(?s)<!-- from benchmarks/peers.json -->.*?<!-- end -->")
KEPT = ROOT / "benchmarks" / "peers.json"
KEPT_OF_GPU = ROOT / "benchmarks" / "peers_cuda.json"
NETWORKS = ("course", "alexnet", "vgg16", "resnet18", "resnet50", "densenet121", "vit_b_16")
PRECISIONS = ("float32", "bf16")
Maps = tuple[Tensor, Tensor | None]  # for the last class: (B, u, v) Grad-CAM, (B, C, H, W) guided
Contestant = Callable[[Tensor, list[list[int]]], Maps | None]  # pictures, and a class each, n times


def floor(net: nn.Module, _layer: str, _grid: Grid) -> Contestant:
    def run(x: Tensor, classes: list[list[int]]) -> None:
        x = x.clone().requires_grad_()
        y_c = net(x)[range(len(x)), classes[0]].sum()
        torch.autograd.grad(y_c, x)

    return run


def ours(net: nn.Module, layer: str, _grid: Grid) -> Contestant:
    def run(x: Tensor, classes: list[list[int]]) -> Maps:
        last = explain_many(net, x, classes, layer)[-1]
        return last.L_c, last.R

    return run


def ours_cam(net: nn.Module, layer: str, _grid: Grid) -> Contestant:
    def run(x: Tensor, classes: list[list[int]]) -> Maps:
        return explain_many(net, x, classes, layer, guided=False)[-1].L_c, None

    return run


def captum(net: nn.Module, layer: str, grid: Grid) -> Contestant:
    from captum.attr import GuidedBackprop, LayerGradCam

    if grid.layout != "NCHW":
        raise ValueError("LayerGradCam reads no tokens: it averages each over its channels")
    cam, guided = LayerGradCam(net, net.get_submodule(layer)), GuidedBackprop(net)

    def run(x: Tensor, classes: list[list[int]]) -> Maps:
        for c in (torch.tensor(each, device=x.device) for each in classes):
            cells = cam.attribute(x, c, relu_attributions=True)[:, 0]
            R = guided.attribute(x, c)
            _both = R * F.interpolate(cells[:, None], x.shape[2:], mode="bilinear")
        return cells.detach(), R.detach()

    return run


def pytorch_grad_cam(net: nn.Module, layer: str, grid: Grid) -> Contestant:
    from pytorch_grad_cam import GradCAM, GuidedBackpropReLUModel
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    # float: it makes NumPy arrays of them, which know no bfloat16.
    cam = GradCAM(net, [net.get_submodule(layer)], lambda cells: grid.maps(cells).float())
    # A copy for itself: it replaces the modules that the other looks at.
    guided = GuidedBackpropReLUModel(copy.deepcopy(net), next(net.parameters()).device)

    def run(x: Tensor, classes: list[list[int]]) -> Maps:
        for targets in classes:
            L_c = torch.from_numpy(cam(x, [ClassifierOutputTarget(c) for c in targets]))
            each = [guided(x[i : i + 1], c) for i, c in enumerate(targets)]  # it takes no batch
            R = torch.stack([torch.as_tensor(one).permute(2, 0, 1) for one in each])
            _both = R * L_c[:, None]
        cam.outputs = None  # else it keeps the graph, and others lack its memory, to its next call
        return L_c, R

    return run


def torchcam(net: nn.Module, layer: str, grid: Grid) -> Contestant:
    from torchcam.methods import GradCAM

    extractor = GradCAM(net, layer, reshape_transform=grid.maps)

    def run(x: Tensor, classes: list[list[int]]) -> Maps:
        scores = net(x)
        for i, targets in enumerate(classes):
            more = i < len(classes) - 1
            cells = extractor(targets, scores, normalized=False, retain_graph=more)[0]
        return cells.detach(), None

    return run


OURS, OURS_CAM = "seenby", "seenby, Grad-CAM alone"
CONTESTANTS: dict[str, Callable[[nn.Module, str, Grid], Contestant]] = {
    "floor": floor,
    OURS: ours,
    OURS_CAM: ours_cam,
    "Captum": captum,
    "pytorch-grad-cam": pytorch_grad_cam,
    "torchcam (Grad-CAM alone)": torchcam,
}
BASE = {"torchcam (Grad-CAM alone)": OURS_CAM}  # like is compared with like


def cell(name: str, B: int, n_classes: int, rounds: int, device: str = "cpu",
         precision: str = "float32", patience: float = math.inf,
         until: float = math.inf) -> dict[str, Any]:
    """One network at one batch size: seconds, agreement and memory of every contestant.

    Who takes longer than patience is measured once; no round begins after until (monotonic time).
    """
    net, x = subject(name, B, device)
    classes = [[(i + k) % 10 for i in range(B)] for k in range(n_classes)]
    layer = find_layer(net, x[:1]).name
    run, maps, left_out = ready(net, layer, x, classes, precision)
    seconds, memory = {}, {}
    for who, go in run.items():
        once, memory[who] = peak_MiB(partial(timed, go, x, classes), device)
        seconds[who] = [once] if once > patience else []
    in_all = [who for who in run if not seconds[who]]
    take_rounds(seconds, {who: run[who] for who in in_all}, x, classes, rounds, until)
    found = {
        "network": name, "batch": B, "classes": n_classes, "layer": layer,
        "rounds": max(map(len, seconds.values())),
        "seconds": {who: statistics.median(each) for who, each in seconds.items()},
        "times ours": {who: spread(each, seconds[BASE.get(who, OURS)])
                       for who, each in seconds.items() if not who.startswith(OURS)},
        "times the floor": spread(seconds[OURS], seconds["floor"]),
        "MiB": memory,
        "difference": {who: difference(theirs, maps[OURS]) for who, theirs in maps.items()
                       if theirs and who != OURS},
    }  # fmt: skip
    if device != "cpu":
        found |= {"precision": precision, "measured once": [w for w in run if w not in in_all]}
    if precision == "bf16":
        found["distance from float32"] = from_float32(run, net, layer, x[:8], classes)
    return found | ({"left out": left_out} if left_out else {})


def subject(name: str, B: int, device: str) -> tuple[nn.Module, Tensor]:
    """A network with random weights, and B pictures."""
    torch.manual_seed(0)
    with torch.device(device):
        net = CourseCNN() if name == "course" else torchvision.models.get_model(name, weights=None)
        for weight in net.parameters():
            if weight.ndim > 1 and not weight.any():  # a new ViT's head: all its maps were empty
                nn.init.normal_(weight, std=0.02)
        x = torch.rand(B, 1, 28, 28) if name == "course" else torch.rand(B, 3, 224, 224)
    return net.eval(), x


def ready(
    net: nn.Module, layer: str, x: Tensor, classes: list[list[int]], precision: str
) -> tuple[dict[str, Contestant], dict[str, Maps | None], dict[str, str]]:
    """The contestants, each with a network of its own and warmed up; what they found; and why
    others are left out."""
    grid = explain(net, x[:1], layer=layer, guided=False).grid
    run: dict[str, Contestant] = {}
    maps: dict[str, Maps | None] = {}
    left_out: dict[str, str] = {}
    for who, make in CONTESTANTS.items():
        try:
            go = in_precision(make(copy.deepcopy(net), layer, grid), precision)
            maps[who] = go(x, classes)
            run[who] = go
        except Exception as error:
            if who in ("floor", OURS, OURS_CAM):
                raise
            left_out[who] = message_of(error)
    return run, maps, left_out


def in_precision(go: Contestant, precision: str) -> Contestant:
    if precision == "float32":
        return go

    def run(x: Tensor, classes: list[list[int]]) -> Maps | None:
        with torch.autocast(x.device.type, torch.bfloat16):
            return go(x, classes)

    return run


def take_rounds(seconds: dict[str, list[float]], run: dict[str, Contestant], x: Tensor,
                classes: list[list[int]], rounds: int, until: float) -> None:
    """Each round in an order of its own; the first one is taken whatever the time."""
    order = random.Random(0)
    for number in range(rounds):
        if number and time.monotonic() > until:
            break
        for who in order.sample(list(run), len(run)):
            seconds[who].append(timed(run[who], x, classes))


def timed(go: Contestant, x: Tensor, classes: list[list[int]]) -> float:
    """Seconds until all is done, also what a GPU was only told to do."""
    wait_for(x.device.type)
    start = time.perf_counter()
    go(x, classes)
    wait_for(x.device.type)
    return time.perf_counter() - start


def wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def spread(theirs: list[float], base: list[float]) -> list[float]:
    """Median, lowest and highest ratio within a round; to the median of who has other rounds."""
    if len(theirs) != len(base):
        base = [statistics.median(base)] * len(theirs)
    ratios = [a / b for a, b in zip(theirs, base, strict=True)]
    return [round(f(ratios), 3) for f in (statistics.median, min, max)]


def difference(theirs: Maps, mine: Maps | None) -> dict[str, float]:
    """Largest difference to ours, relative to the largest value; Grad-CAM from 0 to 1 each."""
    assert mine is not None
    theirs, mine = on_cpu(theirs), on_cpu(mine)
    ours, L_c = mine[0], theirs[0]
    if L_c.shape != ours.shape:  # pytorch-grad-cam's are stretched
        ours = F.interpolate(ours[:, None], L_c.shape[1:], mode="bilinear")[:, 0]
    found = {"Grad-CAM": float((zero_to_one(L_c) - zero_to_one(ours)).abs().max())}
    if theirs[1] is not None and mine[1] is not None:
        found["guided"] = float((theirs[1] - mine[1]).abs().max() / mine[1].abs().max())
    return found


def from_float32(run: dict[str, Contestant], net: nn.Module, layer: str, x: Tensor,
                 classes: list[list[int]]) -> dict[str, list[float]]:
    """Of each one's maps, Grad-CAM and guided: ||theirs - theirs in float32|| / ||the latter||."""
    classes = [targets[: len(x)] for targets in classes]
    _, exact, _ = ready(net, layer, x, classes, "float32")
    found = {}
    for who in run:
        pair = run[who](x, classes), exact.get(who)
        if pair[0] and pair[1]:
            both = zip(pair[0], pair[1], strict=True)
            found[who] = [round(distance(a, b), 5) for a, b in both
                          if a is not None and b is not None]
    return found


def distance(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||"""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).norm() / b.norm())


def on_cpu(maps: Maps) -> Maps:
    L_c, R = maps
    return L_c.detach().float().cpu(), None if R is None else R.detach().float().cpu()


def zero_to_one(maps: Tensor) -> Tensor:
    """(B, u, v); an empty map stays empty."""
    low = maps.amin((1, 2), keepdim=True)
    high = (maps - low).amax((1, 2), keepdim=True)
    return (maps - low) / torch.where(high > 0, high, 1)


def peak_MiB(go: Callable[[], float], device: str) -> tuple[float, float | None]:
    """What a call gives, and how much memory it took at its peak.

    On a GPU: in PyTorch's tensors. Else: how much the process grew, which Linux with the GNU C
    library tells.
    """
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return go(), round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
    if not reset.exists():
        return go(), None
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back: else the next has it for nothing
    reset.write_text("5")  # the peak is now what is in use
    before = int(re.findall(r"VmRSS:\s+(\d+)", status.read_text())[0])
    result = go()
    peak = int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0])
    return result, round((peak - before) / 1024, 1)


def line(found: dict[str, Any]) -> str:
    """What is printed of a cell."""
    times = found["times ours"]
    words = "  ".join(
        f"{who.partition(' ')[0]} {times[who][0]:.2f} ({times[who][1]:.2f} to {times[who][2]:.2f})"
        for who in times if who != "floor"
    )  # fmt: skip
    low = found["times the floor"]
    return (f"{found['network']:<12} batch {found['batch']:<3} classes {found['classes']:<2} "
            f"floor x {low[0]:.2f} ({low[1]:.2f} to {low[2]:.2f})  as long as ours: {words}")


def table(kept: list[dict[str, Any]]) -> str:
    """In Markdown."""
    libraries = [who for who in CONTESTANTS if who != "floor" and not who.startswith(OURS)]
    rows = [["network", "pictures", "classes", "ours / floor", *libraries]]
    rows += [["---", *["---:"] * (3 + len(libraries))]]
    for found in kept:
        counts = [found["network"], str(found["batch"]), str(found["classes"])]
        low = f"{found['times the floor'][0]:.2f}" if found["classes"] == 1 else ""
        rows.append([*counts, low, *(ratio(found, who) for who in libraries)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def ratio(found: dict[str, Any], who: str) -> str:
    """As it stands in the table; nothing for who was left out."""
    return f"{found['times ours'][who][0]:.1f}" if who in found["times ours"] else ""


def marked(kept: list[dict[str, Any]]) -> str:
    """As it stands in docs/speed.md."""
    return f"<!-- from benchmarks/peers.json -->\n{table(kept)}\n<!-- end -->"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 8, 32))
    parser.add_argument("--classes", nargs="+", type=int, default=(1, 10))
    parser.add_argument("--rounds", type=int, default=7, help="(default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32",
                        help="bf16 of a CPU is printed alone (default: %(default)s)")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        PAGE.write_text(TABLE.sub(lambda _: marked(cells_in(KEPT)), PAGE.read_text()))
        return 0
    if options.quick:
        options.networks, options.batches, options.classes = ("course",), (8,), (1,)
    path = KEPT if options.device == "cpu" else KEPT_OF_GPU
    is_kept = not options.quick and (options.device, options.precision) != ("cpu", "bf16")
    warnings.simplefilter("ignore")  # Captum warns at every call that it sets hooks
    for name in options.networks:
        for B in options.batches:
            for n_classes in options.classes:
                found = cell(name, B, n_classes, options.rounds, options.device, options.precision)
                print(line(found), flush=True)
                if is_kept:
                    keep(found, path)
    return 0


def cells_in(path: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(path.read_text())["cells"] if path.exists() else []
    return cells


def keep(found: dict[str, Any], path: Path) -> None:
    """In a file, in place of what it had of the same cell."""

    def place(each: dict[str, Any]) -> tuple[int, int, int, int]:
        precision = PRECISIONS.index(each.get("precision", "float32"))
        return precision, NETWORKS.index(each["network"]), each["classes"], each["batch"]

    others = [each for each in cells_in(path) if place(each) != place(found)]
    cells = sorted([*others, found], key=place)
    path.write_text(json.dumps({"machine": machine(path == KEPT), "cells": cells}, indent=1) + "\n")


def machine(is_cpu: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads(),
                             "cores": os.cpu_count()}  # fmt: skip
    return found if is_cpu else found | {"card": torch.cuda.get_device_name()}


if __name__ == "__main__":
    sys.exit(main())
