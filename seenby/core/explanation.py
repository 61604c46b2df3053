"""explain(net, x): what the network looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seenby.core.layers import find_layer, submodule
from seenby.core.methods import FOR_POSITIVE, METHODS
from seenby.core.placement import Pad, Stride, place
from seenby.core.state import evaluating
from seenby.core.watch import LOGITS, OR, STRIDE, Watch, head_gradients
from seenby.errors import Complaint, complaining

Target = int | Sequence[int] | Tensor | None


@dataclass(frozen=True)
class Explanation:
    """What the network looked at in a batch of B pictures; iterate for one picture at a time."""

    logits: Tensor  # (B, C) before any softmax
    target: Tensor  # (B,) the class c that is explained
    layer: str
    method: str
    stride: Stride | None  # None where it is lost
    pad: tuple[float, float] | None  # cells added at each border; None: stretched, for want of it
    alpha: Tensor  # (B, K)
    cells: Tensor  # (B, u, v) Grad-CAM, raw, as the layer has it
    L_c: Tensor  # (B, H, W) the same where it lies in the picture
    R: Tensor | None  # (B, C, H, W) guided backpropagation
    guided_cam: Tensor | None  # (B, C, H, W) R * L_c
    negative: Tensor | None  # (B,) has A negative values? Asked for methods that assume it has none
    relus: int  # calls of a ReLU, which guided backpropagation is defined for
    unguided: tuple[str, ...]  # other activations, which the plain gradient passes

    def __iter__(self) -> Iterator[Explanation]:
        return (self.map(itemgetter(slice(i, i + 1))) for i in range(len(self.target)))

    def map(self, change: Callable[[Tensor], Tensor]) -> Explanation:
        """The same with every tensor changed."""
        tensors = {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        return replace(self, **changed)


def explain(net: nn.Module, x: Tensor, target: Target = None, layer: str | None = None,
            method: str = "gradcam", pad: Pad = "auto", guided: bool = True) -> Explanation:
    """Grad-CAM, guided backpropagation and their product for x (B, C, H, W), by one forward pass.

    target: one class for all, one a picture, or None for the predicted ones. layer: a name from
    net.named_modules(), or None for find_layer's. The network comes back exactly as it was.
    """
    return explain_each(net, x, [target], layer, [method], pad, guided)[0]


def explain_each(net: nn.Module, x: Tensor, targets: Sequence[Target], layer: str | None = None,
                 methods: Sequence[str] = ("gradcam",), pad: Pad = "auto",
                 guided: bool = True) -> list[Explanation]:
    """Every target by every method, still from one forward pass."""
    found = []
    with torch.inference_mode(False), torch.enable_grad(), evaluating(net):
        layer = layer or find_layer(net, x[:1])
        # Channels last: 0.8 to 0.95 times as long, but for one picture, where it may be 1.4 times.
        # Neither is nearer to float64: of ResNet-50's R, 0.00056 and 0.00064 of the norm away.
        order = torch.channels_last if len(x) > 1 else torch.preserve_format
        x = x.detach().clone(memory_format=order).requires_grad_()
        watch, logits, A = watched(net, x, layer, guided)
        stride, maps = getattr(A, STRIDE, None), A.detach()  # (B, K, u, v)
        negative = maps.amin((1, 2, 3)) < 0 if FOR_POSITIVE & {*methods} else None  # (B,)
        c = torch.stack([as_target(target, logits) for target in targets])  # (T, B)
        # One gradient for the whole batch: no picture's logit depends on another picture.
        dyc_dy = logits.new_zeros(len(c), *logits.shape).scatter_(2, c[..., None], 1)  # (T, B, C)
        with complaining(f"layer {layer} does not lead to the logits", f"name another one{OR}"):
            head = head_gradients(logits, A, dyc_dy)
        Rs = watch.guided_backprop(logits, x, dyc_dy) if guided else [None] * len(c)
        for t, (dyc_dA, R) in enumerate(zip(head, Rs, strict=True)):
            for method in methods:
                alpha = METHODS[method](maps, dyc_dA)
                cells = grad_cam(maps, alpha)
                pads, L_c = place(cells, x.shape[2:], stride, pad)
                guided_cam = None if R is None else R * L_c[:, None]  # (B, C, H, W)
                found.append(Explanation(logits.detach(), c[t], layer, method, stride, pads, alpha,
                                         cells, L_c, R, guided_cam,
                                         negative if method in FOR_POSITIVE else None,
                                         watch.relus, tuple(watch.unguided)))
    return found


def watched(net: nn.Module, x: Tensor, layer: str, guided: bool) -> tuple[Watch, Tensor, Tensor]:
    """The forward pass: who saw it, the logits (B, C) before a last softmax, and A (B, K, u, v)."""
    fed = x.clone()  # because a network may overwrite its input
    hook = submodule(net, layer).register_forward_hook((watch := Watch(fed)).keep_maps)
    with torch.set_grad_enabled(guided), hook, watch:  # alone, the CAM needs the head's graph
        output = net(fed)
    y = getattr(output, LOGITS, {}).get(getattr(output, "_version", None), output)
    logits = checked(y, x, 2, "the network", "give one that returns logits (B, classes)")
    how = "name a convolution, or a block that gives maps"
    return watch, logits, checked(watch.A, x, 4, f"layer {layer}", how)


def grad_cam(A: Tensor, alpha: Tensor) -> Tensor:
    """L_c = ReLU(sum over k of alpha_k A_k), eq. 2 of the paper: ReLU after the sum."""
    return F.relu(alpha[:, None] @ A.flatten(2)).view(-1, *A.shape[2:])


def checked(value: Any, x: Tensor, ndim: int, who: str, how: str) -> Tensor:
    if isinstance(value, Tensor) and value.ndim == ndim and len(value) == len(x):
        return value
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise Complaint(f"{who} gives {shape}; {how}")


def as_target(target: Target, logits: Tensor) -> Tensor:
    """One class a picture (B,): the predicted ones unless told otherwise."""
    B, C = logits.shape
    if target is None:
        return logits.detach().argmax(1)
    with complaining(lambda _: f"target {target} is no class", "give one number, or one a picture"):
        c = torch.as_tensor(target)
    c = c.expand(B) if c.ndim == 0 else c
    if c.shape != (B,):
        raise Complaint(f"targets of shape {tuple(c.shape)} were given for {B} pictures; "
                        "give one class for all or one for each")
    wrong = [number for number in c.tolist() if isinstance(number, bool) or number not in range(C)]
    if wrong:
        raise Complaint(f"class {wrong[0]} was given; the network has classes 0 to {C - 1}: name "
                        "one of these")
    return c.long().to(logits.device)
