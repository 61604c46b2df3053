"""How many pixels lie from cell to cell of a tensor: followed from operation to operation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from seenby.core.activations import argument, tensors_in
from seenby.core.placement import Stride

STRIDE = "_seenby_stride"  # what is noted on a tensor in the forward pass that is being recorded
UNKNOWN = (math.nan, math.nan)  # of what is a map (B, K, u, v) all the same
MAPS = {"conv2d", "conv_transpose2d", "interpolate", "pixel_shuffle", "pixel_unshuffle",
        *(f"{adaptive}{kind}_pool2d{with_indices}" for adaptive in ("", "adaptive_")
          for kind in ("max", "avg") for with_indices in ("", "_with_indices"))}
# What may move pixels: along axes, given from this position on; anywhere; and by moving axes.
ALONG = {"flip": 1, "roll": 2, "rot90": 2, "index_select": 1, "gather": 1, "take_along_dim": 2,
         "sort": 1}
ANYWHERE = {"grid_sample", "index_copy", "index_add", "scatter", "take", "matmul", "bmm",
            *(f"fft_{inverse}{half}fft{axes}" for inverse in ("", "i") for half in ("", "r", "h")
              for axes in ("", "2", "n"))}
MOVES = {"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "einsum", "adjoint",
         "get"}  # which is x.T and x.mT, as their getter is called __get__
MOVING = {"getitem", *ALONG, *ANYWHERE, *MOVES}
STRIDE_POSITION = {"conv2d": 3, "max_pool2d": 2, "max_pool2d_with_indices": 2, "avg_pool2d": 2}


def note_stride(out: Tensor, name: str, args: Any, kwargs: Any) -> None:
    """Note the stride on a new tensor, or on one that had a stride and was changed in place; not on
    weights, which to(type) may hand back as they are.
    """
    stride = output_stride(name, args, kwargs, out)
    is_changed_in_place = hasattr(out, STRIDE)
    if is_changed_in_place or (stride and not (args and out is args[0])):
        setattr(out, STRIDE, stride)


def output_stride(name: str, args: Any, kwargs: Any, out: Tensor) -> Stride | None:
    """Multiplied by convolution and pooling, divided by enlarging, kept where the size is kept,
    else not known: UNKNOWN of a map, None where it may be none.
    """
    is_map = name in MAPS
    for tensor in tensors_in((*args, *kwargs.values()) if name != "copy" else args[1:]):
        stride: Stride | None = getattr(tensor, STRIDE, None)
        if not stride:
            continue
        if name in STRIDE_POSITION:
            return stride_multiplied(stride, name, args, kwargs)
        if name == "interpolate":
            return stride_resized(stride, tensor, out, bool(kwargs.get("align_corners")))
        if name in MOVING and moves_pixels(name, args, kwargs, out):
            return UNKNOWN if name in ALONG else None
        if name == "pad":
            return stride if is_even(argument(args, kwargs, 1, "pad")) else UNKNOWN
        if tensor.shape[-2:] == out.shape[-2:]:
            if not math.isnan(stride[0]):
                return stride
            is_map = True  # another one of the tensors may tell its stride
    return UNKNOWN if is_map and out.ndim == 4 else None


def stride_multiplied(stride: Stride, name: str, args: Any, kwargs: Any) -> Stride:
    """By a convolution or a pooling."""
    step = argument(args, kwargs, STRIDE_POSITION[name], "stride")
    if not step:  # a pooling's stride is its kernel's size by default, a convolution's is 1
        step = 1 if name == "conv2d" else argument(args, kwargs, 1, "kernel_size")
    down, across = (step[0], step[-1]) if isinstance(step, (tuple, list)) else (step, step)
    return stride[0] * down, stride[1] * across


def is_even(pad: Any) -> bool:
    """Whether both sides get as many pixels, give or take the one that some frameworks add."""
    return all(abs(before - after) <= 1 for before, after in zip(pad[::2], pad[1::2], strict=False))


def moves_pixels(name: str, args: Any, kwargs: Any, out: Tensor) -> bool:
    """Whether pixels move, though the size may be kept."""
    if name in ANYWHERE:
        return True
    if name in ALONG:
        return not of_channels((*args[ALONG[name] :], kwargs.get("dims"), kwargs.get("dim")))
    if name == "getitem" and not out._is_view():
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return len(index) > args[0].ndim - 2 or any(each is Ellipsis for each in index)
    # Where axes are moved, the last two lie otherwise in memory; in place, this can't be seen.
    x = next(tensors_in((*args, *kwargs.values())))
    return x is out or x.stride()[-2:] != out.stride()[-2:]


def of_channels(given: Iterable[Any]) -> bool:
    """Whether axes are given, and none of them is one of the last two of four."""
    axes: list[int] = []
    for each in given:
        words = each if isinstance(each, (list, tuple)) else [each]
        axes += [word for word in words if isinstance(word, int) and not isinstance(word, bool)]
    return bool(axes) and all(axis in (0, 1, -3, -4) for axis in axes)


def stride_resized(stride: Stride, tensor: Tensor, out: Tensor, shared: int) -> Stride | None:
    """By interpolate. shared: 0 where the borders stay in their place; by align_corners it is 1, a
    pixel, as the centres of the corners do."""
    (h, w), (h2, w2) = tensor.shape[-2:], out.shape[-2:]
    if min(h, w, h2, w2) <= shared:
        return None
    return (stride[0] * (h - shared) / (h2 - shared), stride[1] * (w - shared) / (w2 - shared))


def stride_of(tensor: Tensor) -> Stride | None:
    """Its total stride in the forward pass that is being recorded; None where it is not known."""
    stride: Stride | None = getattr(tensor, STRIDE, None)
    return None if stride is None or math.isnan(stride[0]) else stride


def is_followed(tensor: Tensor) -> bool:
    """Whether it is known to be (B, K, u, v), whatever its stride."""
    return getattr(tensor, STRIDE, None) is not None
