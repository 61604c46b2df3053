"""The forward pass of an explanation, taken again where it can't be relied on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from seenby.core.checks import described
from seenby.core.grids import Grid, find_grid
from seenby.core.recorder import ForwardRecorder, MoreInputs, start_recording
from seenby.core.search import FoundLayer, layers_with_grids
from seenby.errors import InputError


@dataclass(frozen=True)
class Forward:
    """A forward pass that was recorded."""

    recorder: ForwardRecorder
    layer: FoundLayer
    x: Tensor  # (B, C, H, W)
    output: Any  # what the network gave
    A: Tensor  # what the layer gave, in its own layout
    grid: Grid  # which makes maps (B, K, u, v) of it


def record_forward(net: nn.Module, x: Tensor, layer: FoundLayer, guided: bool,
                   more: MoreInputs, is_aliased: bool = False) -> Forward:
    """Run the network on a copy of x."""
    x, x_copy, recorder = start_recording(x)
    recorder.is_aliased = is_aliased
    keeping = recorder.keeping(net.get_submodule(layer.name))
    try:  # Without guided maps the graph begins at A, where the recorder switches gradients on.
        with torch.set_grad_enabled(guided), keeping, recorder:
            output = more.call(net, x_copy)
    except RuntimeError:
        if guided:
            raise
        output = None  # the network hooks a gradient of its own, before A
    if not guided and (recorder.is_ambiguous or not leads_back(output)):
        return record_forward(net, x, layer, True, more)
    if recorder.is_missed():
        return record_forward(net, x, layer, guided, more, is_aliased=True)
    recorder.require_no_written_copy()
    grid = find_grid(recorder.A, len(x), x.shape[2:], recorder.maps_before)
    if grid is None:
        gives = f"gives {described(recorder.A)}, which are no cells of the picture"
        what = "is not called" if recorder.A is None else gives
        near = layers_with_grids(net, x[:1], layer.name, more.of_first(len(x)))
        such = f", such as {', '.join(near)}" if near else ""
        raise InputError(f"layer {layer.name} {what}; name one that gives maps or tokens{such}")
    return Forward(recorder, layer, x, output, recorder.A, grid)


def leads_back(output: Any) -> bool:
    """Whether any tensor in what a network gave has a graph; that in an object of its own may."""
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    return output is not None and (not tensors or any(each.requires_grad for each in tensors))
