"""The same results in less time or memory. Within `with off():` PyTorch's own operations are used.

They apply while a network is explained and nowhere else: the recorder of the forward pass calls a
replacement in place of the function that it stands for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from seenby.errors import InputError

Result = TypeVar("Result")
_on = ContextVar("speedups", default=True)


@contextmanager
def off() -> Iterator[None]:
    before = _on.set(False)
    try:
        yield
    finally:
        _on.reset(before)


class WrittenCopyError(RuntimeError):
    """The network wrote into a copy, which would have been a view in contiguous memory."""


def with_fallback(work: Callable[[], Result]) -> Result:
    """Call work. Where it fails because of a speedup, call it again without any."""
    try:
        return work()
    except (RuntimeError, InputError) as error:
        if not (_on.get() and is_of_speedups(error)):
            raise
    with off():
        return work()


def is_of_speedups(error: Exception) -> bool:
    """Whether PyTorch's own operations would not have raised this.

    Maps in channels-last memory can't be viewed as rows. Most views are replaced, but those within
    TorchScript are not seen. And a checkpoint computes its part again without the replacements, so
    that it finds other tensors than the first time.
    """
    words = "view size is not compatible|contiguous|Recomputed values"
    return isinstance(error, WrittenCopyError) or bool(re.search(words, str(error)))


def replacements() -> Mapping[Any, Callable[..., Tensor]]:
    """A function of PyTorch -> what is called in its place."""
    return REPLACEMENTS if _on.get() else {}


def memory_format(x: Tensor) -> torch.memory_format:
    """Channels last, which takes 0.8 to 0.95 of the time; for one picture it may take 1.4.

    Neither is nearer to float64: of ResNet-50's R, 0.00056 and 0.00064 of the norm away. Not where
    a convolution is a matrix product, as in float64: its last rows may be summed in another order,
    so that equal pixels give two numbers, and a pooling takes another one of them.
    """
    if len(x) == 1 or x.dtype == torch.float64 or not _on.get():
        return torch.preserve_format
    onednn = torch.backends.mkldnn
    by_product = x.device.type == "cpu" and not (onednn.enabled and onednn.is_available())
    return torch.preserve_format if by_product else torch.channels_last


MOST_PRODUCTS = 10_000_000  # a kernel's size times a picture's: 40 MB in single precision


class OneChannelConv2d(torch.autograd.Function):
    """F.conv2d, whose gradient of grey pixels is a matrix product: oneDNN takes four times as long.

    Its forward pass is PyTorch's: equal pixels must give equal numbers, or pooling takes any.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Any, stride: Any,
                padding: Any) -> Tensor:
        ctx.given = x.shape, weight, stride, padding
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        shape, weight, stride, padding = ctx.given
        x = gradient.new_empty(shape)  # nothing but its shape is asked for
        kernel, stride, padding = weight.shape[2:], [*map(int, stride)], [*map(int, padding)]
        product: Any = torch.ops.aten._slow_conv2d_backward.output_mask
        only_x = (True, False, False)
        dx = product(gradient.contiguous(), x, weight, kernel, stride, padding, only_x)[0]
        return dx, None, None, None, None


def conv2d(x: Tensor, weight: Tensor, bias: Any = None, *how: Any, **named: Any) -> Tensor:
    """F.conv2d; OneChannelConv2d where it applies."""
    # As nn.Conv2d calls it: (stride, padding, dilation, groups), the first two as pairs of numbers.
    is_usual = how[2:] == ((1, 1), 1) and all(map(is_pair, how[:2]))
    if is_usual and is_of_grey_pixels(x, weight, bias):
        apply: Callable[..., Tensor] = OneChannelConv2d.apply
        return apply(x, weight, bias, *how[:2])
    return F.conv2d(x, weight, bias, *how, **named)


def is_of_grey_pixels(x: Tensor, weight: Tensor, bias: Any) -> bool:
    """Whether the gradient of grey pixels on a CPU is asked for, and that of the weights is not.

    Not under autocast, which gives its backward pass a gradient of another type than the weights',
    within torch.func, or where a checkpoint counts what is saved. For a kernel of 7 x 7 on
    512 x 512 pixels, oneDNN is faster.
    """
    if x.ndim != 4 or x.shape[1] != 1 or x.device.type != "cpu" or not x.requires_grad:
        return False
    if not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    if torch._C._are_functorch_transforms_active() or hooks is not None:
        return False
    is_frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    return is_frozen and weight.shape[2:].numel() * x.shape[2:].numel() < MOST_PRODUCTS


def is_pair(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2


def batch_norm(x: Tensor, running_mean: Any, running_var: Any, weight: Tensor | None = None,
               bias: Tensor | None = None, training: bool = False, momentum: float = 0.1,
               eps: float = 1e-5) -> Tensor:
    """F.batch_norm in use, as x * scale + shift: autograd need not keep x for the backward pass.

    ResNet-50, 32 pictures: 0.6 times the memory, 0.88 times as long. One picture takes as long as
    by PyTorch's own, whose gradient is wrong for it where another memory order comes back (2.13).
    """
    if training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    # In single precision at least, as in PyTorch's own: of 8 bits, scale and shift lose too much.
    dtype = torch.promote_types(x.dtype, torch.float32)
    scale = torch.rsqrt(running_var.to(dtype) + eps)
    scale = scale if weight is None else scale * weight
    zero = torch.zeros_like(scale) if bias is None else bias.to(dtype)
    shift = torch.addcmul(zero, running_mean.to(dtype), scale, value=-1)  # rounded as in its own
    scale, shift = (t.view(-1, *[1] * (x.ndim - 2)) for t in (scale, shift))
    return torch.addcmul(shift, x, scale).to(x.dtype)


def view_any_layout(view: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Maps viewed as rows: channels-last memory can't be, so x itself is laid out anew.

    A copy would do, but for a network that writes through the view, and goes on with x.
    """
    if x.ndim == 4 and x.grad_fn and x.is_contiguous(memory_format=torch.channels_last):
        # Where rows become maps again: of mixed layouts a pooling takes 9 times as long.
        x.register_hook(in_channels_last)
    try:
        return view(x, *args, **kwargs)
    except RuntimeError:
        x.data = x.contiguous()
        return view(x, *args, **kwargs)


def is_channels_last(x: Any) -> bool:
    """Whether x is a map in channels-last memory, or a view of one."""
    if not isinstance(x, Tensor):
        return False
    whole = x if x._base is None else x._base
    return whole.ndim == 4 and not whole.is_contiguous() and whole.stride(1) == 1


def as_strided(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What it gives depends on the memory's order: x itself is laid out anew."""
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        x.data = x.contiguous()
    return x.as_strided(*args, **kwargs)


def in_channels_last(gradient: Tensor) -> Tensor | None:
    """Hook: the same gradient in that memory order."""
    try:
        return gradient.contiguous(memory_format=torch.channels_last)
    except RuntimeError:  # not made for several targets at once
        return None


# Of channels-last maps these may give a copy where others give a view, and the reverse.
LAYS_OUT = {"view", "view_as", "reshape", "flatten", "ravel", "contiguous", "to"}
VIEWS = (Tensor.view, Tensor.view_as, Tensor.flatten, torch.flatten, Tensor.reshape, torch.reshape)
REPLACEMENTS: dict[Any, Callable[..., Tensor]] = {
    F.conv2d: conv2d,
    F.batch_norm: batch_norm,
    **{view: partial(view_any_layout, view) for view in VIEWS},
    Tensor.as_strided: as_strided,
    torch.as_strided: as_strided,
}
