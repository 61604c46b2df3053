#!/usr/bin/env python3
"""How long do the same maps take here, in pytorch-grad-cam, in Captum and in torchcam?

    python benchmarks/peers.py                       all of it, into benchmarks/peers.json (hours)
    python benchmarks/peers.py --quick               the course network at batch 8, printed alone
    python benchmarks/peers.py --networks resnet50 --batches 8 --classes 1     one cell, kept
    python benchmarks/peers.py --table               puts peers.json into the table of docs/speed.md

Every contestant explains the same pictures with a network of its own copy, in one process; ratios
are taken within a round, so that a machine whose speed changes does not decide. Each round has an
order of its own, as each contestant leaves the next its caches and its heap: of DenseNet-121 with
eight pictures seenby took 0.99 of the floor's time in one fixed order, 0.94 in changing ones.
The floor is one forward pass and one gradient of the pictures by the bare network, without any map.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
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

from seenby import explain_many  # noqa: E402
from seenby.core.search import find_layer  # noqa: E402
from seenby.machine import import_torchvision  # noqa: E402
from SID_a4 import CourseCNN  # noqa: E402

torchvision = import_torchvision()  # which the libraries import

PAGE = ROOT / "docs" / "speed.md"
TABLE = re.compile(r"(?s)<!-- from benchmarks/peers.json -->.*?<!-- end -->")
KEPT = ROOT / "benchmarks" / "peers.json"
NETWORKS = ("course", "alexnet", "vgg16", "resnet18", "resnet50", "densenet121")
Maps = tuple[Tensor, Tensor | None]  # for the last class: (B, u, v) Grad-CAM, (B, C, H, W) guided
Contestant = Callable[[Tensor, list[list[int]]], Maps | None]  # pictures, and a class each, n times


def floor(net: nn.Module, _layer: str) -> Contestant:
    def run(x: Tensor, classes: list[list[int]]) -> None:
        x = x.clone().requires_grad_()
        y_c = net(x)[range(len(x)), classes[0]].sum()
        torch.autograd.grad(y_c, x)

    return run


def ours(net: nn.Module, layer: str) -> Contestant:
    def run(x: Tensor, classes: list[list[int]]) -> Maps:
        last = explain_many(net, x, classes, layer)[-1]
        return last.L_c, last.R

    return run


def ours_cam(net: nn.Module, layer: str) -> Contestant:
    def run(x: Tensor, classes: list[list[int]]) -> Maps:
        return explain_many(net, x, classes, layer, guided=False)[-1].L_c, None

    return run


def captum(net: nn.Module, layer: str) -> Contestant:
    from captum.attr import GuidedBackprop, LayerGradCam

    cam, guided = LayerGradCam(net, net.get_submodule(layer)), GuidedBackprop(net)

    def run(x: Tensor, classes: list[list[int]]) -> Maps:
        for c in map(torch.tensor, classes):
            cells = cam.attribute(x, c, relu_attributions=True)[:, 0]
            R = guided.attribute(x, c)
            _both = R * F.interpolate(cells[:, None], x.shape[2:], mode="bilinear")
        return cells.detach(), R.detach()

    return run


def pytorch_grad_cam(net: nn.Module, layer: str) -> Contestant:
    from pytorch_grad_cam import GradCAM, GuidedBackpropReLUModel
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    cam = GradCAM(net, [net.get_submodule(layer)])
    # A copy for itself: it replaces the modules that the other looks at.
    guided = GuidedBackpropReLUModel(copy.deepcopy(net), "cpu")

    def run(x: Tensor, classes: list[list[int]]) -> Maps:
        for targets in classes:
            L_c = torch.from_numpy(cam(x, [ClassifierOutputTarget(c) for c in targets]))
            each = [guided(x[i : i + 1], c) for i, c in enumerate(targets)]  # it takes no batch
            R = torch.stack([torch.as_tensor(one).permute(2, 0, 1) for one in each])
            _both = R * L_c[:, None]
        return L_c, R

    return run


def torchcam(net: nn.Module, layer: str) -> Contestant:
    from torchcam.methods import GradCAM

    extractor = GradCAM(net, layer)

    def run(x: Tensor, classes: list[list[int]]) -> Maps:
        scores = net(x)
        for i, targets in enumerate(classes):
            more = i < len(classes) - 1
            cells = extractor(targets, scores, normalized=False, retain_graph=more)[0]
        return cells.detach(), None

    return run


OURS, OURS_CAM = "seenby", "seenby, Grad-CAM alone"
CONTESTANTS: dict[str, Callable[[nn.Module, str], Contestant]] = {
    "floor": floor,
    OURS: ours,
    OURS_CAM: ours_cam,
    "Captum": captum,
    "pytorch-grad-cam": pytorch_grad_cam,
    "torchcam (Grad-CAM alone)": torchcam,
}
BASE = {"torchcam (Grad-CAM alone)": OURS_CAM}  # like is compared with like


def cell(name: str, B: int, n_classes: int, rounds: int) -> dict[str, Any]:
    """One network at one batch size: seconds, agreement and memory of every contestant."""
    torch.manual_seed(0)
    net = CourseCNN() if name == "course" else torchvision.models.get_model(name, weights=None)
    net.eval()
    x = torch.rand(B, 1, 28, 28) if name == "course" else torch.rand(B, 3, 224, 224)
    classes = [[(i + k) % 10 for i in range(B)] for k in range(n_classes)]
    layer = find_layer(net, x[:1]).name
    run = {who: make(copy.deepcopy(net), layer) for who, make in CONTESTANTS.items()}
    maps = {who: go(x, classes) for who, go in run.items()}  # which warms them up, too
    memory = {who: peak_MiB(partial(go, x, classes)) for who, go in run.items()}
    seconds: dict[str, list[float]] = {who: [] for who in run}
    order = random.Random(0)
    for _ in range(rounds):
        for who in order.sample(list(run), len(run)):
            start = time.perf_counter()
            run[who](x, classes)
            seconds[who].append(time.perf_counter() - start)
    return {
        "network": name, "batch": B, "classes": n_classes, "layer": layer, "rounds": rounds,
        "seconds": {who: statistics.median(each) for who, each in seconds.items()},
        "times ours": {who: spread(each, seconds[BASE.get(who, OURS)])
                       for who, each in seconds.items() if not who.startswith(OURS)},
        "times the floor": spread(seconds[OURS], seconds["floor"]),
        "MiB": memory,
        "difference": {who: difference(found, maps[OURS]) for who, found in maps.items()
                       if found and who != OURS},
    }  # fmt: skip


def spread(theirs: list[float], base: list[float]) -> list[float]:
    """Median, lowest and highest ratio within a round."""
    ratios = [a / b for a, b in zip(theirs, base, strict=True)]
    return [round(f(ratios), 3) for f in (statistics.median, min, max)]


def difference(theirs: Maps, mine: Maps | None) -> dict[str, float]:
    """Largest difference to ours, relative to the largest value; Grad-CAM from 0 to 1 each."""
    assert mine is not None
    ours, L_c = mine[0], theirs[0]
    if L_c.shape != ours.shape:  # pytorch-grad-cam's are stretched
        ours = F.interpolate(ours[:, None], L_c.shape[1:], mode="bilinear")[:, 0]
    found = {"Grad-CAM": float((zero_to_one(L_c) - zero_to_one(ours)).abs().max())}
    if theirs[1] is not None and mine[1] is not None:
        found["guided"] = float((theirs[1] - mine[1]).abs().max() / mine[1].abs().max())
    return found


def zero_to_one(maps: Tensor) -> Tensor:
    """(B, u, v); an empty map stays empty."""
    low = maps.amin((1, 2), keepdim=True)
    high = (maps - low).amax((1, 2), keepdim=True)
    return (maps - low) / torch.where(high > 0, high, 1)


def peak_MiB(go: Callable[[], object]) -> float | None:
    """How much the process grew during a call, at its peak; Linux with the GNU C library tells."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back: else the next has it for nothing
    reset.write_text("5")  # the peak is now what is in use
    before = int(re.findall(r"VmRSS:\s+(\d+)", status.read_text())[0])
    go()
    peak = int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0])
    return round((peak - before) / 1024, 1)


def line(found: dict[str, Any]) -> str:
    """What is printed of a cell."""
    times = found["times ours"]
    words = "  ".join(
        f"{who.partition(' ')[0]} {times[who][0]:.2f} ({times[who][1]:.2f} to {times[who][2]:.2f})"
        for who in times if who != "floor"
    )  # fmt: skip
    low = found["times the floor"]
    return (f"{found['network']:<12} batch {found['batch']:<2} classes {found['classes']:<2} "
            f"floor x {low[0]:.2f} ({low[1]:.2f} to {low[2]:.2f})  as long as ours: {words}")


def table(kept: list[dict[str, Any]]) -> str:
    """In Markdown."""
    libraries = [who for who in CONTESTANTS if who != "floor" and not who.startswith(OURS)]
    rows = [["network", "pictures", "classes", "ours / floor", *libraries]]
    rows += [["---", *["---:"] * (3 + len(libraries))]]
    for found in kept:
        counts = [found["network"], str(found["batch"]), str(found["classes"])]
        low = f"{found['times the floor'][0]:.2f}" if found["classes"] == 1 else ""
        rows.append([*counts, low, *(f"{found['times ours'][who][0]:.1f}" for who in libraries)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


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
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    kept = json.loads(KEPT.read_text())["cells"] if KEPT.exists() else []
    if options.table:
        PAGE.write_text(TABLE.sub(lambda _: marked(kept), PAGE.read_text()))
        return 0
    if options.quick:
        options.networks, options.batches, options.classes = ("course",), (8,), (1,)
    warnings.simplefilter("ignore")  # Captum warns at every call that it sets hooks
    for name in options.networks:
        for B in options.batches:
            for n_classes in options.classes:
                found = cell(name, B, n_classes, options.rounds)
                print(line(found), flush=True)
                if not options.quick:
                    kept = keep(kept, found)
    return 0


def keep(kept: list[dict[str, Any]], found: dict[str, Any]) -> list[dict[str, Any]]:
    """In the file, in place of what it had of the same cell."""

    def place(each: dict[str, Any]) -> tuple[int, int, int]:
        return NETWORKS.index(each["network"]), each["classes"], each["batch"]

    kept = sorted([each for each in kept if place(each) != place(found)] + [found], key=place)
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(),
               "cores": os.cpu_count()}  # fmt: skip
    KEPT.write_text(json.dumps({"machine": machine, "cells": kept}, indent=1) + "\n")
    return kept


if __name__ == "__main__":
    sys.exit(main())
