#!/usr/bin/env python3
"""Of which layer of a transformer is the map the best? Small ones, trained here on drawn shapes.

    python benchmarks/layers.py               into layers.json and docs/maps.md (half an hour)
    python benchmarks/layers.py --quick       one seed of little training, printed alone
    python benchmarks/layers.py --table       puts layers.json into the table of docs/maps.md

Each picture has two different shapes; the map is asked for the class of the first. What is measured
of each picture: energy, the share of the map within the shape's box; pointing, whether its maximum
lies there; own, of what lies in the two boxes the share in the right one; occlusion, the
correlation with how far the logit falls where a square is covered. The controls are a uniform map
and the next picture's. A layer is compared with the default one picture by picture, on the same
pictures in all seeds; an interval is one over pictures (95 %, bootstrap). An empty map has no
energy, points nowhere and agrees with nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import drawn
import torch
from drawn import ROOT, SIZE
from evidence import Values, another, mean_of, pooled, tree, written
from torch import Tensor, nn
from train_mnist import correlation, occlusion

from seenby import explain
from seenby.core.search import find_layer

KEPT = ROOT / "benchmarks" / "layers.json"
PAGE = ROOT / "docs" / "maps.md"
TABLE = re.compile(r"<!-- from benchmarks/layers.json -->\n.*?<!-- end -->", re.S)
MEASURES = ("energy", "pointing", "own", "occlusion")
PATCH, STEP = 9, 6  # pixels: the square that occlusion covers, and from one to the next
CHUNK = 50
# After a measure's name: of the next picture's map; how much better the picture's own is; how much
# better the default layer's is.
OTHERS, GAIN, AHEAD = ", another's", ", less another's", ", default's less this"


@dataclass(frozen=True)
class Kind:
    """A kind of network, and the layers that are compared."""

    make: Callable[[], nn.Module]
    steps: int  # of training
    rate: float  # of learning, at its highest
    layers: tuple[str, ...]
    rival: str  # to the default layer
    tabled: tuple[str, ...]  # of the layers: those in the page's table


KINDS = {
    "ViT": Kind(
        drawn.vit, 1500, 2e-3,
        tuple(f"blocks.{i}{end}" for i in range(5) for end in (".norm1", "")),
        rival="blocks.3",
        tabled=("blocks.0.norm1", "blocks.3.norm1", "blocks.3", "blocks.4.norm1"),
    ),
    "Swin": Kind(
        drawn.swin, 1800, 3e-3,
        ("layers.0", "layers.1.blocks.0", "layers.1.blocks.1.norm1", "layers", "norm"),
        rival="layers.1.blocks.0",
        tabled=("layers.0", "layers.1.blocks.0", "layers.1.blocks.1.norm1", "layers", "norm"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Effort:
    seeds: int = 3
    training: float = 1  # of the steps of training
    pictures: int = 200  # measured
    tested: int = 1000  # for the accuracy


QUICK = Effort(1, 0.02, 12, 100)


def study(kind: Kind, net: nn.Module, effort: Effort) -> tuple[str, Values]:
    """The default layer; and by layer and measure a number for each picture."""
    y = drawn.pairs(effort.pictures, seed=1)
    x, boxes = drawn.draw(y, torch.Generator().manual_seed(2))
    target, default = y[:, 0], find_layer(net, x[:1]).name
    drops = torch.cat([
        occlusion(net, part, c, PATCH, STEP, part.mean((2, 3), keepdim=True))
        for part, c in zip(x.split(CHUNK), target.split(CHUNK), strict=True)
    ])  # fmt: skip
    found = Values()
    for layer in dict.fromkeys((*kind.layers, default)):
        maps = torch.cat([
            explain(net, part, c, layer, guided=False).heatmap
            for part, c in zip(x.split(CHUNK), target.split(CHUNK), strict=True)
        ])  # fmt: skip
        found |= {(layer, name): v for name, v in worth(maps, boxes, drops).items()}
        theirs = worth(another(maps), boxes, drops)
        for name in MEASURES:
            found[layer, name + OTHERS] = theirs[name]
            found[layer, name + GAIN] = found[layer, name] - theirs[name]
    for layer, name in [key for key in found if key[1] in MEASURES]:
        found[layer, name + AHEAD] = found[default, name] - found[layer, name]
    uniform = worth(torch.ones_like(maps), boxes, drops)
    uniform["pointing"] = uniform["energy"]  # its maximum is anywhere, by lot
    return default, found | {("uniform map", name): uniform[name] for name in MEASURES}


def worth(maps: Tensor, boxes: Tensor, drops: Tensor) -> dict[str, Tensor]:
    """maps (N, H, W); boxes (N, 2, H, W), the asked class's first; drops (N, h, w)."""
    box, other = boxes[:, 0], boxes[:, 1]
    full = maps.flatten(1).any(1)
    inside, beside, total = ((maps * where).sum((1, 2)) for where in (box, other, 1))
    highest = maps.flatten(1).argmax(1, keepdim=True)
    at_patches = maps[:, STEP // 2 :: STEP, STEP // 2 :: STEP]
    return {
        "energy": inside / total.clamp(min=1e-30),
        "pointing": (box.flatten(1).gather(1, highest)[:, 0] & full).double(),
        "own": torch.where(inside + beside > 0, inside / (inside + beside).clamp(min=1e-30), 0.5),
        "occlusion": correlation(at_patches, drops),
        "empty": (~full).double(),
    }


def measured(effort: Effort, trained: Callable[..., nn.Module] = drawn.train) -> dict[str, Any]:
    found: dict[str, Any] = {"counts": asdict(effort), "size": SIZE, "networks": {}}
    for name, kind in KINDS.items():
        seeds, networks, defaults = [], {}, []
        for seed in range(effort.seeds):
            net = trained(kind.make, seed, max(2, round(effort.training * kind.steps)), kind.rate)
            answers, pictures = drawn.accuracy(net, effort.tested, seed=3)
            default, values = study(kind, net, effort)
            seeds.append(values)
            defaults.append(default)
            networks[f"seed {seed}"] = {
                "accuracy": round(answers, 4), "whole pictures right": round(pictures, 4),
                "default": default, "layers": tree(values),
            }  # fmt: skip
            print(f"{name}, seed {seed}: {answers:.1%} of the answers right, {default}", flush=True)
        assert len(set(defaults)) == 1
        means = pooled(seeds, mean_of)
        found["networks"][name] = {
            "default": defaults[0], "rival": kind.rival, "seeds": networks, "all": tree(means),
        }  # fmt: skip
    return found


def table(found: dict[str, Any]) -> str:
    """In Markdown: the means over the seeds; how far the default is ahead, with its interval."""
    rows = [["network", "layer", *MEASURES], ["---", "---", *["---:"] * len(MEASURES)]]
    for name, network in found["networks"].items():
        layers, default = network["all"], network["default"]
        for layer in KINDS[name].tabled:
            ahead = [signed(layers[layer][measure + AHEAD]) for measure in MEASURES]
            row = [f"{layers[layer][measure][0]:.2f}" for measure in MEASURES]
            if layer == default:
                rows.append([name, f"**`{layer}`**", *(f"**{mean}**" for mean in row)])
            else:
                rows.append([name, f"`{layer}`", *map("; ".join, zip(row, ahead, strict=True))])
        row = [f"{layers[default][measure + OTHERS][0]:.2f}; "
               f"{signed(layers[default][measure + GAIN])}" for measure in MEASURES]  # fmt: skip
        rows.append([name, "another picture's", *row])
    row = [f"{layers['uniform map'][measure][0]:.2f}" for measure in MEASURES]
    rows.append(["both", "uniform", *row])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def signed(numbers: list[float]) -> str:
    mean, low, high = numbers
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


def marked(found: dict[str, Any]) -> str:
    """As it stands in docs/maps.md."""
    return f"<!-- from benchmarks/layers.json -->\n{table(found)}\n<!-- end -->"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="print a small study's table")
    parser.add_argument("--table", action="store_true", help="only put what is kept into the page")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.quick:
        print(table(measured(QUICK)))
        return 0
    if not options.table:
        KEPT.write_text(written(measured(Effort())))
    found = json.loads(KEPT.read_text())
    PAGE.write_text(TABLE.sub(lambda _: marked(found), PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
