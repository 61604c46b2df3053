"""The network's layers: their names, and what each of them gives in a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from seenby.core.placement import Stride
from seenby.core.recorder import NO_MORE, MoreInputs, start_recording, unseen
from seenby.core.state import borrowed
from seenby.core.strides import stride_of
from seenby.errors import InputError, closest_names


def layer_name(net: nn.Module, layer: str | nn.Module) -> str:
    """Of a layer given by its name or as the module itself; it must be one of the network's."""
    if isinstance(layer, nn.Module):
        name: str
        for name, module in net.named_modules():
            if module is layer:
                return name
        raise InputError(f"the layer {type(layer).__name__}(...) was given, which is no module of "
                         "the network; give one of its own, or a name")
    if not isinstance(layer, str):
        raise InputError(f"layer {layer!r} was given; give a module of the network, or its name")
    try:
        net.get_submodule(layer)
    except AttributeError as error:
        names = closest_names(layer, (name for name, _ in net.named_modules() if name))
        raise InputError(f"the network has no layer {layer}; the nearest names are {names}: "
                         "net.named_modules() lists all, and --list-layers the innermost ones"
                         ) from error
    return layer


@dataclass(frozen=True)
class LayerRow:
    """What the table of layers says of one layer."""

    name: str
    type: str
    shape: tuple[int, ...]  # of its output
    parameters: int  # its own; 0 where the layer ran before
    stride: Stride | None  # None where it is not known, or there is no map


def list_layers(net: nn.Module, x: Tensor) -> list[LayerRow]:
    """Every layer without layers of its own, in the order in which they run for x (1, C, H, W)."""
    rows: list[LayerRow] = []
    counted: set[nn.Module] = set()

    def note(name: str, module: nn.Module, output: Any, _maps: Any) -> None:
        if any(module.children()) or not isinstance(output, Tensor):
            return
        count = 0 if module in counted else sum(p.numel() for p in module.parameters())
        counted.add(module)
        stride = stride_of(output) if output.ndim == 4 else None
        rows.append(LayerRow(name, type(module).__name__, tuple(output.shape), count, stride))

    # For a backward pass, which does not follow: nothing is kept, and the second hook never called.
    keep_nothing = torch.autograd.graph.saved_tensors_hooks(lambda _: None, torch.as_tensor)
    with keep_nothing:
        forward_with_hooks(net, x, note)
    return rows


def forward_with_hooks(net: nn.Module, x: Tensor,
                       note: Callable[[str, nn.Module, Any, list[tuple[int, int]]], None],
                       more: MoreInputs = NO_MORE) -> tuple[Any, Tensor]:
    """A forward pass that calls note(name, module, output, maps) as each module ends; maps: the
    sizes of the maps that were seen until then.

    Returns the network's output, and the pixels that its graph begins with.
    """

    def hook(name: str, module: nn.Module, _args: Any, output: Any) -> None:
        with unseen():
            note(name, module, output, recorder.maps)

    x, x_copy, recorder = start_recording(x)
    # With a graph also where none is needed, as a network may hook its own maps.
    with ExitStack() as hooks, borrowed(net), torch.enable_grad(), recorder:
        for name, module in net.named_modules():
            hooks.enter_context(module.register_forward_hook(partial(hook, name)))
        return more.call(net, x_copy), x
