"""Which layer is explained; the table of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from seenby.core.placement import lost
from seenby.core.state import evaluating
from seenby.core.watch import STRIDE, Watch
from seenby.errors import Complaint, nearest

if TYPE_CHECKING:
    from seenby.inputs.networks import Network


def submodule(net: nn.Module, layer: str) -> nn.Module:
    try:
        return net.get_submodule(layer)
    except AttributeError as error:
        names = nearest(layer, (name for name, _ in net.named_modules() if name))
        raise Complaint(f"the network has no layer {layer}; the nearest names are {names}: "
                        "--layers lists all") from error


def find_layer(net: nn.Module, x: Tensor) -> str:
    """The last convolution, or the largest block around it that still ends at its resolution."""
    sizes: dict[str, tuple[int, ...]] = {}  # in the order in which the modules end

    def note(name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        sizes.pop(name, None)
        if isinstance(output, Tensor) and output.ndim == 4:
            sizes[name] = tuple(output.shape[2:])

    overhear(net, x, note)
    convolutions = [name for name in sizes if isinstance(net.get_submodule(name), nn.Conv2d)]
    if not convolutions:
        raise Complaint("the network has no two-dimensional convolution; Grad-CAM needs one")
    # A map of one cell shows no place: squeeze-and-excitation blocks end in such convolutions.
    layer = ([name for name in convolutions if sizes[name] != (1, 1)] or convolutions)[-1]
    size, block = sizes[layer], layer
    while block := block.rpartition(".")[0]:
        if sizes.get(block, size) != size:  # a list of modules has no size of its own: look past it
            break
        layer = block if block in sizes else layer
    return layer


def overhear(net: nn.Module, x: Tensor, note: Callable[[str, nn.Module, Any, Any], None]) -> None:
    """A forward pass of which each module's name, itself, its input and its output are noted.

    With a graph, as a network may hook its own maps; but nothing is kept for a way back.
    """
    x = x.detach().clone().requires_grad_().clone()
    empty = torch.autograd.graph.saved_tensors_hooks(lambda _: None, torch.as_tensor)
    with ExitStack() as hooks, evaluating(net), torch.enable_grad(), empty, Watch(x):
        for name, module in net.named_modules():
            hooks.enter_context(module.register_forward_hook(partial(note, name)))
        net(x)


def layer_table(network: Network) -> str:
    """Every layer in the order of the forward pass, then the sums; MB are of 32-bit numbers."""
    net, (H, W) = network.net, network.size
    x = torch.zeros(1, len(network.mean), H, W)
    rows = [("layer (type)", "output shape", "parameters", "cumulative", "stride", "pad")]
    counts: dict[nn.Module, int] = {}
    numbers = 0

    def note(name: str, module: nn.Module, _args: Any, out: Any) -> None:
        nonlocal numbers
        if any(module.children()) or not isinstance(out, Tensor):
            return
        shape, stride = tuple(out.shape), getattr(out, STRIDE, None) if out.ndim == 4 else None
        pads = lost((H, W), shape[2:], stride) if stride else ()
        count = 0 if module in counts else sum(p.numel() for p in module.parameters())
        counts[module] = counts.get(module, 0) + count
        numbers += out.numel()
        rows.append((f"{name} ({type(module).__name__})", str(shape), f"{count:,}",
                     f"{sum(counts.values()):,}", each_axis(stride or ()), each_axis(pads)))

    overhear(net, x, note)
    total = sum(p.numel() for p in net.parameters())
    if elsewhere := total - sum(counts.values()):
        rows.append(("(in no layer of its own)", "", f"{elsewhere:,}", f"{total:,}", "", ""))
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    MB = [n * 4 / 2**20 for n in (x.numel(), 2 * numbers, total)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), row[1].ljust(widths[1]),
                        *map(str.rjust, row[2:], widths[2:])]).rstrip() for row in rows]
    return "\n".join([*lines, "",
        f"parameters: {total:,} total, {trained:,} trainable, {total - trained:,} non-trainable",
        f"MB: input {MB[0]:.2f}, forward and backward {MB[1]:.2f}, parameters {MB[2]:.2f}, "
        f"estimated total {sum(MB):.2f}"])


def each_axis(numbers: Iterable[float]) -> str:
    """One number where both axes agree, else down x across."""
    return " x ".join(dict.fromkeys(f"{number:g}" for number in numbers))
