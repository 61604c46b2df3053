"""Can these maps be trusted? Tiles of each picture are covered; does the map tell which matter?

Of a picture x, M sets of tiles are covered, drawn without regard to any map. Over the sets the fall
of the class logit, y_c(x) - y_c(x covered), is correlated with the map's mass under what is
covered. As the sets depend on no map, every other map, a control, is judged by the same passes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from seenby.core.checks import require_arguments
from seenby.core.explanation import Explanation, Layer, explain
from seenby.core.layers import layer_name
from seenby.core.methods import METHODS, require_trial
from seenby.core.placement import Pad, gaussian_blur, place
from seenby.core.search import earlier_layers, find_layer
from seenby.core.targets import Like, Ranked, Target, is_vector, one_each
from seenby.errors import InputError
from seenby.machine import split_on_oom
from seenby.scores import BOX, DEFAULT, EDGES, MIRRORED, MOVED, OWN, REDRAWN, Observation
from seenby.verdict import MOST, Trust, judge

# Finer grids starve the correlation: of a ResNet-20, 0.13 with 8 x 8 tiles and 0.4 with 4 x 4.
GRID, COVERED, SETS = 4, 6, 24


@dataclass(frozen=True)
class Choice:
    """Which map: of a layer, by a method, with a pad."""

    layer: str
    method: str = "gradcam"
    pad: Pad = "auto"


@dataclass(frozen=True)
class Plan:
    """The maps that are asked for, and others of the same network to compare them with."""

    net: nn.Module
    task: str | None
    asked: Choice
    others: dict[str, Choice]  # by name; DEFAULT where the asked one is not the default
    redrawn: nn.Module  # a copy, for other weights
    at_once: int  # covered pictures in one pass


def trust(net: nn.Module, x: Tensor, target: Target = None, layer: Layer = None,
          method: str = "gradcam", pad: Pad = "auto", *, task: str | None = None,
          labels: Sequence[int] | None = None) -> Trust:
    """Whether the maps of explain(net, x, target, layer, method, pad, task=task) can be trusted.

    x: (N, C, H, W), some forty pictures of the kind that the network is for, of different classes.
    labels: their classes, to tell how many are classified correctly.
    """
    require_arguments(net, x)
    N = len(x)
    if not 1 < N <= MOST or (labels is not None and len(labels) != N):
        given = "" if labels is None else f" and {len(labels)} labels"
        raise InputError(f"{N} pictures{given} were given; give 2 to {MOST}, and as many labels")
    targets = per_picture(target, N)
    known = [None] * N if labels is None else [int(label) for label in labels]
    with torch.inference_mode(False), torch.enable_grad():
        plan = make_plan(net, x[:1], targets[0], layer, method, pad, task)
        return judge([observe(plan, each, c, i, label) for i, (each, c, label) in
                      enumerate(zip(x.split(1), targets, known, strict=True))])


def per_picture(target: Target, N: int) -> list[Target]:
    """What is explained in each of N pictures: one target for all, or a class for each."""
    is_one = target is None or isinstance(target, (str, int, Ranked, Like)) or callable(target)
    return [target] * N if is_one or is_vector(target) else one_each(target, N)


def make_plan(net: nn.Module, x: Tensor, target: Target = None, layer: Layer = None,
              method: str = "gradcam", pad: Pad = "auto", task: str | None = None,
              default_layer: str = "", at_once: int = SETS) -> Plan:
    """What to compare the asked maps with: the default, and what differs from it in one thing.

    x: (1, C, H, W). default_layer: find_layer's, where that is known already.
    """
    require_trial(method)
    default = Choice(default_layer or find_layer(net, x, target, task).name)
    asked = Choice(default.layer if layer is None else layer_name(net, layer), method, pad)
    others = {} if asked == default else {DEFAULT: default}
    others |= {f"layer {name}": replace(default, layer=name)
               for name in earlier_layers(net, x, default.layer)}
    auto = explain(net, x, target, default.layer, guided=False, task=task).pad
    auto = auto or (0, 0)  # stretched, as by pad 0
    others |= {f"pad {N}": replace(default, pad=N) for N in (0, 1) if auto != (N, N)}
    others |= {f"method {name}": replace(default, method=name) for name, each in METHODS.items()
               if name != default.method and not each.against}
    others = {name: choice for name, choice in others.items() if choice != asked}
    return Plan(net, task, asked, others, copy.deepcopy(net), at_once)


def observe(plan: Plan, x: Tensor, target: Target, seed: int,
            label: int | None = None) -> Observation:
    """Of one picture x (1, C, H, W): how far the logit falls, and where each map has its mass."""
    random = torch.Generator().manual_seed(seed)
    sets = draw_sets(random)
    own = explain_as(plan, plan.asked, x, target)
    if own.target is not None and not own.target_name:  # up and down stay as they are
        target = int(own.target)  # also where the covered picture is taken for something else
    redraw(plan.redrawn, plan.net, random)
    maps = displaced(own.heatmap) | {
        BOX: box(own, plan.asked.pad),
        EDGES: edges(x),
        REDRAWN: explain_as(replace(plan, net=plan.redrawn), plan.asked, x, target).heatmap,
    }
    maps |= {name: explain_as(plan, each, x, target).heatmap for name, each in plan.others.items()}
    falls = [own.y_c - covered_scores(plan, x, target, fill, sets) for fill in fills(x)]
    return Observation(
        sets=sets, y_c=float(own.y_c), falls=torch.stack(falls).cpu(),
        tiles={name: tile_masses(each).cpu() for name, each in maps.items()},
        correct=is_correct(own.predicted, label),
    )  # fmt: skip


def is_correct(predicted: Tensor | None, label: int | None) -> bool | None:
    """Whether the class is predicted (1, C); None where none is, or where it is not known."""
    if predicted is None or label is None:
        return None
    C = predicted.shape[1]
    if not 0 <= label < C:
        raise InputError(f"label {label} was given; the network has classes 0 to {C - 1}")
    return bool(predicted[0, label])


# ----------------------------------------------------------------------------------- what is seen


def explain_as(plan: Plan, choice: Choice, x: Tensor, target: Target) -> Explanation:
    return explain(plan.net, x, target, choice.layer, choice.method, choice.pad, guided=False,
                   task=plan.task)


def covered_scores(plan: Plan, x: Tensor, target: Target, fill: Tensor, sets: Tensor) -> Tensor:
    """(M,) y_c of x (1, C, H, W) with each set of tiles covered, in halves where memory lacks.

    A logit, as a probability would saturate: the fall of the logit says more.
    """

    def scores(some: list[Tensor]) -> list[Tensor]:
        return [*explain_as(plan, plan.asked, torch.cat(some), target).y_c]

    covered = [torch.where(mask, fill, x) for mask in masks_of(sets, x)]
    parts = (covered[i : i + plan.at_once] for i in range(0, len(covered), plan.at_once))
    return torch.stack([y_c for part in parts for y_c in split_on_oom(scores, part)])


def draw_sets(random: torch.Generator) -> Tensor:
    """(SETS, GRID * GRID) 1 for the COVERED tiles of each set."""
    return (torch.rand(SETS, GRID * GRID, generator=random).argsort(1) < COVERED).float()


def tiles_of(S: int) -> Tensor:
    """(GRID, S) 1 where a pixel of a side lies in a tile."""
    return (torch.arange(S) * GRID // S == torch.arange(GRID)[:, None]).float()


def masks_of(sets: Tensor, x: Tensor) -> Tensor:
    """(M, 1, 1, H, W) whether a pixel of x (1, C, H, W) is covered."""
    rows, columns = map(tiles_of, x.shape[2:])
    masks = rows.T @ sets.view(-1, GRID, GRID) @ columns
    return (masks[:, None, None] > 0).to(x.device)


def tile_masses(maps: Tensor) -> Tensor:
    """(K, H, W) -> (K, GRID * GRID), the sum over each tile."""
    rows, columns = (tiles_of(S).to(maps) for S in maps.shape[1:])
    return (rows @ maps.nan_to_num(0, 0, 0) @ columns.T).flatten(1)


def fills(x: Tensor) -> tuple[Tensor, Tensor]:
    """What x (1, C, H, W) is covered by, in FILLS' order; no single fill won on all networks."""
    blurred = gaussian_blur(x[0], min(x.shape[2:]) / 10)[None]
    return x.mean((2, 3), keepdim=True), blurred


# ------------------------------------------------------------------------------------ the controls


def displaced(maps: Tensor) -> dict[str, Tensor]:
    """The map (1, H, W) itself, its three mirror images, and it moved by a tile in four ways."""
    H, W = maps.shape[1:]
    moves = ((H // GRID, 1), (-(H // GRID), 1), (W // GRID, 2), (-(W // GRID), 2))
    return {
        OWN: maps,
        MIRRORED: torch.cat([maps.flip(axes) for axes in ((1,), (2,), (1, 2))]),
        MOVED: torch.cat([maps.roll(pixels, axis) for pixels, axis in moves]),
    }


def box(explanation: Explanation, pad: Pad) -> Tensor:
    """(1, H, W) a flat map placed alike; where that is flat, too, the middle half of the sides."""
    size, stride = explanation.heatmap.shape[1:], explanation.stride
    stride = None if explanation.stride_inferred else stride
    _, placed = place(torch.ones_like(explanation.L_c), size, stride, pad)
    if placed.amax() - placed.amin() > 1e-3:
        return placed
    rows, columns = ((torch.arange(S) * 4 // S).remainder(3) > 0 for S in size)
    return (rows[:, None] & columns)[None].to(placed)


def edges(x: Tensor) -> Tensor:
    """(1, H, W) how far x (1, C, H, W) differs from pixel to pixel, drawn by no network."""
    down, across = torch.gradient(x[0], dim=(1, 2))
    return (down**2 + across**2).sum(0, keepdim=True).sqrt()


def redraw(copied: nn.Module, net: nn.Module, random: torch.Generator) -> None:
    """Give a copy of the network random weights, of the mean and the deviation of its own."""
    with torch.no_grad():
        for new, old in zip(copied.parameters(), net.parameters(), strict=True):
            if old.is_floating_point() and old.numel() > 1:
                noise = torch.randn(old.shape, generator=random).to(old)
                new.copy_(old.mean() + old.std() * noise)
