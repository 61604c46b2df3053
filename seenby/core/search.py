"""Which layer is explained, where none is named: found by one forward pass of one picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from seenby.core.backward import GRAPH_HINT, edges_on_every_path
from seenby.core.grids import Grid, find_grid
from seenby.core.layers import forward_with_hooks
from seenby.core.recorder import NO_MORE, MoreInputs, first_tensor
from seenby.core.targets import Target, score_of, stack_scores
from seenby.core.tasks import no_ending, read_ending
from seenby.errors import InputError, as_input_error

NO_GRID = ("no layer of the network gives maps (B, K, u, v), or tokens that cover the picture; "
           "give a network that sees pictures (B, C, H, W) as such")
LIVE = 0.1  # a layer is live if the logit has a gradient in more than this share of its cells
ZERO_HEAD = ("the logit depends on no layer, as its weights are zero; the layer is that of other "
             "weights")


@dataclass(frozen=True)
class FoundLayer:
    """A layer's name, and what must be said of the choice."""

    name: str
    note: str = ""


@dataclass(frozen=True)
class LayerOutput:
    """What a layer gave when it was called last."""

    name: str
    grid: Grid
    edge: Any  # of its gradient in autograd's graph, as it was when the layer ended; None: no graph
    channels: int  # K
    is_leaf: bool  # no layer within it gave anything, or the last learned one gave no grid
    is_learned: bool  # more than two parameters a channel: no norm, pooling, activation or scale
    is_norm: bool


def look_for_layer(net: nn.Module, x: Tensor, target: Target, task: str | None,
                   more: MoreInputs) -> FoundLayer:
    """find_layer for the first of the pictures x (B, C, H, W), or for all where that fails."""
    if len(x) > 1 and not callable(target):  # which may know all, as a loss knows their labels
        with suppress(Exception):  # as some networks take no other number of them
            return find_layer(net, x[:1], target, task, more.of_first(len(x)))
    return find_layer(net, x, target, task, more)


def find_layer(net: nn.Module, x: Tensor, target: Target = None, task: str | None = None,
               more: MoreInputs = NO_MORE) -> FoundLayer:
    """The last layer that all the evidence passes, at the resolution where the network still sees.

    x: (B, C, H, W), pictures to look at while searching. A target that is a function is asked, else
    the class of each that comes first is looked for. Let G be the grid of the last leaf that is
    learned and live. The layer is the last one with grid G that is learned, live and trunk. Of a
    segmentation it has not just as many maps as there are classes: these would be the logits
    themselves.

    Live: the gradient of the logit is nonzero in over a tenth of its cells. That rejects the last
    block of a transformer with a class token, whose patches nobody reads. Trunk: no way leads from
    the logit to the pixels but through it. That rejects gates, side branches and residual ones.
    """
    seen = record_outputs(net, x, more)
    outputs, x = seen.outputs, seen.pixels
    learned = [each for each in outputs if each.is_learned and each.grid.cells > 1]
    y_c, classes = first_score(seen.output, target, task, len(x))
    learned = before_logits(learned, classes)
    attempts = (
        (y_c, LIVE, ""),
        (y_c, 0, ""),  # before a global max-pooling few cells have a gradient
        (y_c * torch.nan, 0, ZERO_HEAD),  # a gradient of NaN passes weights of zero, too
    )
    for y, least, note in attempts:
        with as_input_error("the layer can't be found", f"name one, {GRAPH_HINT}"):
            layer = last_live_trunk(outputs, learned, y, x, least)
        if layer:
            notes = (layer.note, early_note(outputs, layer.name), note)
            return replace(layer, note="; ".join(filter(None, notes)))
    # Of one cell, which shows no place; or one that no gradient reaches, as is told later.
    for o in outputs:
        if o.is_leaf and o.is_learned and o.grid.layout == "NCHW":
            return FoundLayer(o.name)
    raise InputError(NO_GRID)


def before_logits(learned: list[LayerOutput], classes: int) -> list[LayerOutput]:
    """For a segmentation, drop layers with as many maps as classes: they are the logits. Where all
    have as many, only the last one is dropped, with what it is in."""
    last = next((i for i, each in enumerate(learned) if each.is_leaf), 0)
    return [each for each in learned if each.channels != classes] or learned[last + 1 :]


def early_note(outputs: Sequence[LayerOutput], layer: str) -> str:
    """A note if most learned layers come after the one that was found, as in some detectors."""
    # The last one first; without an edge, as what reads texts beside, it does not see the picture.
    is_counted = [bool(o.is_leaf and o.is_learned and o.edge) for o in outputs]
    place = [output.name for output in outputs].index(layer)
    total, behind = sum(is_counted), sum(is_counted[:place])
    if behind <= total / 2:
        return ""
    return (f"{behind} of {total} convolutions and the like come after {layer}, behind which the "
            "evidence goes several ways; name one of them to see a part of it")


def first_score(output: Any, target: Target, task: str | None, B: int) -> tuple[Tensor, int]:
    """The score to search with, summed over the B pictures; and for a segmentation its number of
    classes, else 0."""
    if callable(target):
        return stack_scores([score_of(target, output, None, B)], None).sum(), 0
    ending = read_ending(output, B, task)
    if ending is None:
        raise no_ending(output)
    order = ending.scores if ending.order is None else ending.order
    classes = ending.y.shape[1] if ending.task == "segmentation" else 0
    return ending.scores.gather(1, order.argmax(1, keepdim=True)).sum(), classes


def last_live_trunk(outputs: Sequence[LayerOutput], learned: Sequence[LayerOutput], y_c: Tensor,
                    x: Tensor, least: float) -> FoundLayer | None:
    """find_layer's rule for one logit; outputs, and the learned ones of them, begin at the end."""
    leaves = (output for output in learned if output.is_leaf)
    leaf = first_live(leaves, y_c, least) or first_live(learned, y_c, least)
    if leaf is None:
        return None
    at_G = [output for output in learned if same_cells(output, leaf)]
    on_every_path = edges_on_every_path(y_c, x)  # None: of what the network computes by itself
    trunk = (o for o in at_G if o.edge and (on_every_path is None or o.edge[:2] in on_every_path))
    if layer := first_live(trunk, y_c, least):
        return FoundLayer((norm_that_reads(outputs, layer, at_G[0], y_c) or layer).name)
    norms = [output for output in outputs if output.is_norm and same_cells(output, leaf)]
    layer = first_live([*norms, *at_G], y_c, least) or leaf
    return FoundLayer(layer.name, "no layer carries all of the evidence, as the network has "
                      f"several streams; {layer.name} carries some of it")


def norm_that_reads(outputs: Sequence[LayerOutput], layer: LayerOutput, last: LayerOutput,
                    y_c: Tensor) -> LayerOutput | None:
    """Of a class token's network: the norm through which the token reads the patches at last.

    Of two layers that carry the same evidence the norm has the better maps: see docs/maps.md.
    last: behind which nobody reads the patches, or the norm would not carry all.
    """
    if not layer.grid.prefix or any(share > 0 for _, share in live_shares([last], y_c)):
        return None
    behind = outputs[: outputs.index(layer)]
    return first_live((o for o in behind if o.is_norm and same_cells(o, layer)), y_c)


def first_live(outputs: Iterable[LayerOutput], y_c: Tensor,
               least: float = LIVE) -> LayerOutput | None:
    """Gradients are asked for in groups of 1, 2, 4, ...: one backward pass serves a group."""
    rest, size = iter(outputs), 1
    while group := list(islice(rest, size)):
        for output, share in live_shares(group, y_c):
            if share > least:
                return output
        size *= 2
    return None


def live_shares(outputs: Sequence[LayerOutput], y_c: Tensor) -> Iterator[tuple[LayerOutput, float]]:
    """Of each output's cells: in how many the gradient of y_c is not zero (NaN is not zero)."""
    outputs = [output for output in outputs if output.edge and y_c.requires_grad]
    edges = [output.edge for output in outputs]
    gradients = edges and torch.autograd.grad(y_c, edges, retain_graph=True, allow_unused=True)
    for output, gradient in zip(outputs, gradients, strict=True):
        if gradient is not None:
            yield output, float((output.grid.maps(gradient) != 0).any(1).float().mean())


def same_cells(a: LayerOutput, b: LayerOutput) -> bool:
    """Whether two outputs have one grid, whatever their layouts."""
    return (a.grid.u, a.grid.v) == (b.grid.u, b.grid.v)


def layers_with_grids(net: nn.Module, x: Tensor, layer: str, more: MoreInputs) -> list[str]:
    """Three layers with maps of two or more cells that end as near as can be to another one."""
    seen = record_outputs(net, x, more)
    places = {name: place for place, name in enumerate(seen.ended)}
    names = [output.name for output in seen.outputs if output.grid.cells > 1]
    return sorted(names, key=lambda name: abs(places[name] - places.get(layer, len(places))))[:3]


def earlier_layers(net: nn.Module, x: Tensor, layer: str, n: int = 3) -> list[str]:
    """n learned layers before another one, evenly spread from the first on."""
    seen = record_outputs(net, x, NO_MORE)
    before = {*seen.ended[: seen.ended.index(layer)]} if layer in seen.ended else {*seen.ended}
    names = [output.name for output in seen.outputs[::-1] if output.name in before
             and output.is_learned and output.grid.cells > 1
             and not output.name.startswith(f"{layer}.")]
    return list(dict.fromkeys(names[len(names) * k // n] for k in range(n) if names))


@dataclass(frozen=True)
class SearchPass:
    """What a forward pass that looks for a layer saw."""

    outputs: list[LayerOutput]  # every layer's last one that is a grid, the last layer first
    ended: list[str]  # the layers, in the order in which they ended
    output: Any  # the network's
    pixels: Tensor  # x, with which the graph begins


def record_outputs(net: nn.Module, x: Tensor, more: MoreInputs) -> SearchPass:
    outputs: dict[str, LayerOutput] = {}
    ended: dict[str, None] = {}  # in this order
    without_grid: set[str] = set()  # layers that are learned, and gave none
    last_within: dict[str, str] = {}  # a layer -> which of those in it ended last

    def note(name: str, module: nn.Module, output: Any, maps: Sequence[tuple[int, int]]) -> None:
        output = first_tensor(output)
        before = outputs.get(name)
        if before and before.edge and not getattr(output, "requires_grad", True):
            return  # this call does not see the pictures, as in a network that compares them
        outputs.pop(name, None)  # what an earlier call gave is not what would be explained
        parent = name
        while parent:
            parent = parent.rpartition(".")[0]
            last_within[parent] = name
        grid = find_grid(output, len(x), x.shape[2:], maps)
        ended.pop(name, None)
        ended[name] = None
        without_grid.discard(name)
        if grid is None:
            if any(weight.ndim > 1 for weight in module.parameters()):
                without_grid.add(name)
            return
        frozen = (weight for weight in module.buffers() if weight.ndim > 1)
        weights = sum(weight.numel() for weight in (*module.parameters(), *frozen))
        outputs[name] = LayerOutput(
            name, grid, get_gradient_edge(output) if output.requires_grad else None,
            grid.channels(output),
            is_leaf=name not in last_within or last_within[name] in without_grid,
            is_learned=weights > 2 * grid.channels(output) or isinstance(module, nn.Conv2d),
            is_norm="norm" in type(module).__name__.lower(),
        )  # fmt: skip

    output, pixels = forward_with_hooks(net, x, note, more)
    return SearchPass([*outputs.values()][::-1], [*ended], output, pixels)
