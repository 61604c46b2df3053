"""explain(net, x): what the network looked at, from one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seenby.core import speedups
from seenby.core.backward import GRAPH_HINT, guided_backprop, head_gradients
from seenby.core.grids import Grid, find_grid
from seenby.core.layers import layer_name
from seenby.core.methods import METHODS
from seenby.core.placement import Pad, Stride, place
from seenby.core.recorder import ForwardRecorder, logits_of, shape_of, stride_of
from seenby.core.search import FoundLayer, find_layer, layers_with_grids
from seenby.core.state import eval_mode
from seenby.errors import InputError, as_input_error

Target = int | Sequence[int] | Tensor | None
Layer = str | nn.Module | None


@dataclass(frozen=True)
class Explanation:
    """What the network looked at in a batch of B pictures; iterate for one picture at a time."""

    logits: Tensor  # (B, C) before any softmax
    target: Tensor  # (B,) the class c that is explained
    layer: str
    method: str
    grid: Grid  # how the layer's output is read as u x v cells
    stride: Stride | None  # of the layer; None where it is not known
    stride_inferred: bool  # from the number of cells, as it could not be followed
    pad: tuple[float, float] | None  # cells added at each border; None: stretched, for want of it
    alpha: Tensor  # (B, K) eq. 1, the weights of the layer's maps
    L_c: Tensor  # (B, u, v) eq. 2, Grad-CAM as the layer has it
    heatmap: Tensor  # (B, H, W) L_c where it lies in the picture
    R: Tensor | None  # (B, C, H, W) guided backpropagation: signed, positive speaks for the class
    guided_cam: Tensor | None  # (B, C, H, W) R * heatmap
    negative_activations: Tensor | None  # (B,) has A any? None where the method doesn't care
    relu_calls: int  # during the forward pass; guided backpropagation is defined for them
    other_activations: tuple[str, ...]  # which guided backpropagation passes the plain gradient
    layer_note: str = ""  # what must be said of the layer's choice

    def __iter__(self) -> Iterator[Explanation]:
        return (self.apply(itemgetter(slice(i, i + 1))) for i in range(len(self.target)))

    def apply(self, change: Callable[[Tensor], Tensor]) -> Explanation:
        """The same with every tensor changed."""
        tensors = {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        return replace(self, **changed)


def explain(net: nn.Module, x: Tensor, target: Target = None, layer: Layer = None,
            method: str = "gradcam", pad: Pad = "auto", guided: bool = True) -> Explanation:
    """Grad-CAM, guided backpropagation and their product for x (B, C, H, W), by one forward pass.

    target: one class for all, one a picture, or None for the predicted ones. layer: a module of the
    network or its name, or None for find_layer's. The network comes back exactly as it was.
    """
    return explain_many(net, x, [target], layer, [method], pad, guided)[0]


def explain_many(net: nn.Module, x: Tensor, targets: Sequence[Target], layer: Layer = None,
                 methods: Sequence[str] = ("gradcam",), pad: Pad = "auto",
                 guided: bool = True) -> list[Explanation]:
    """Every target by every method, from one forward pass: target by target, methods within."""
    for method in methods:
        require_method(method)
    with torch.inference_mode(False), torch.enable_grad(), eval_mode(net):
        found = find_layer(net, x[:1]) if layer is None else FoundLayer(layer_name(net, layer))
        forward = record_forward(net, x, found, guided)
        logits, A = forward.logits, forward.A
        c = torch.stack([target_classes(target, logits) for target in targets])  # (T, B)
        # One gradient for the whole batch: no picture's logit depends on another picture.
        dyc_dy = logits.new_zeros(len(c), *logits.shape).scatter_(2, c[..., None], 1)  # (T, B, C)
        fix = f"name another one, {GRAPH_HINT}"
        with as_input_error(f"layer {found.name} does not lead to the logits", fix):
            dyc_dAs = head_gradients(logits, A, dyc_dy)
        Rs: Sequence[Tensor | None] = [None] * len(c)
        if guided:  # last, as from now on the ReLUs are guided
            Rs = guided_backprop(forward.recorder.relu_nodes, A, logits, forward.x, dyc_dy)
        return [explanation_of(forward, target, method, pad, dyc_dA, R)
                for target, dyc_dA, R in zip(c, dyc_dAs, Rs, strict=True) for method in methods]


@dataclass(frozen=True)
class Forward:
    """A forward pass that was recorded."""

    recorder: ForwardRecorder
    layer: FoundLayer
    x: Tensor  # (B, C, H, W)
    logits: Tensor  # (B, C) before any final softmax
    A: Tensor  # what the layer gave, in its own layout
    grid: Grid  # which makes maps (B, K, u, v) of it


def record_forward(net: nn.Module, x: Tensor, layer: FoundLayer, guided: bool) -> Forward:
    """Run the network on a copy of x."""
    x = x.detach().clone(memory_format=speedups.memory_format(x)).requires_grad_()
    x_copy = x.clone()  # because a network may overwrite its input
    recorder = ForwardRecorder(x_copy, speedups.replacements())
    hook = net.get_submodule(layer.name).register_forward_hook(recorder.keep_activations)
    with torch.set_grad_enabled(guided), hook, recorder:  # alone, the CAM needs the head's graph
        output = net(x_copy)
    logits = logits_of(output, len(x))
    grid = find_grid(recorder.A, len(x), x.shape[2:])
    if grid is None:
        gives = f"gives {shape_of(recorder.A)}, which are no cells of the picture"
        what = "is not called" if recorder.A is None else gives
        near = layers_with_grids(net, x[:1], layer.name)
        such = f", such as {', '.join(near)}" if near else ""
        raise InputError(f"layer {layer.name} {what}; name one that gives maps or tokens{such}")
    return Forward(recorder, layer, x, logits, recorder.A, grid)


def explanation_of(forward: Forward, target: Tensor, method: str, pad: Pad, dyc_dA: Tensor,
                   R: Tensor | None) -> Explanation:
    """By a method, of one target (B,) with its dy_c / dA and R (B, C, H, W)."""
    grid, recorder, size = forward.grid, forward.recorder, forward.x.shape[2:]
    A, dyc_dA = grid.maps(forward.A.detach()), grid.maps(dyc_dA)  # (B, K, u, v)
    alpha = METHODS[method].alpha(A, dyc_dA)  # (B, K)
    L_c = grad_cam(A, alpha)  # (B, u, v)
    stride = stride_of(forward.A)
    pads, heatmap = place(L_c, size, stride, pad)  # (B, H, W)
    inferred = stride is None and grid.layout != "NCHW"
    if inferred:  # such cells cover the picture
        stride, pads = (size[0] / grid.u, size[1] / grid.v), pads or (0, 0)
    return Explanation(
        logits=forward.logits.detach(), target=target, layer=forward.layer.name, method=method,
        grid=grid, stride=stride, stride_inferred=inferred, pad=pads, alpha=alpha, L_c=L_c,
        heatmap=heatmap, R=R, guided_cam=None if R is None else R * heatmap[:, None],
        negative_activations=A.amin((1, 2, 3)) < 0 if METHODS[method].assumes_relu else None,
        relu_calls=recorder.relu_calls, other_activations=tuple(recorder.other_activations),
        layer_note=forward.layer.note,
    )  # fmt: skip


def grad_cam(A: Tensor, alpha: Tensor) -> Tensor:
    """L_c = ReLU(sum over k of alpha_k A_k), eq. 2 of the paper: ReLU after the sum."""
    return F.relu(alpha[:, None] @ A.flatten(2)).view(-1, *A.shape[2:])


def require_method(name: str) -> None:
    if name not in METHODS:
        raise InputError(f"method {name!r} was given; give one of {', '.join(METHODS)}")


def target_classes(target: Target, logits: Tensor) -> Tensor:
    """One class a picture (B,): the predicted ones unless told otherwise."""
    B, C = logits.shape
    if target is None:
        return logits.detach().argmax(1)
    fix = "give one number, or one a picture"
    with as_input_error(lambda _: f"target {target} is no class", fix):
        c = torch.as_tensor(target)
    c = c.expand(B) if c.ndim == 0 else c
    if c.shape != (B,):
        raise InputError(f"targets of shape {tuple(c.shape)} were given for {B} pictures; "
                         "give one class for all or one for each")
    wrong = [number for number in c.tolist() if isinstance(number, bool) or number not in range(C)]
    if wrong:
        raise InputError(f"class {wrong[0]} was given; the network has classes 0 to {C - 1}: name "
                         "one of these")
    return c.long().to(logits.device)
