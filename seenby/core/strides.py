"""How many pixels lie from cell to cell of a tensor: followed from operation to operation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from seenby.core.activations import argument, tensors_in
from seenby.core.placement import Stride

STRIDE = "_seenby_stride"  # what is noted on a tensor in the forward pass that is being recorded
# What moves pixels, though the size may be kept: axes for one another; pixels along axes that are
# given from this position on; or all of them.
MOVES = {"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "einsum", "get"}
ALONG = {"flip": 1, "roll": 2, "rot90": 2, "index_select": 1, "gather": 1, "take_along_dim": 2,
         "sort": 1}
ANYWHERE = {"grid_sample", *(f"fft_{inverse}{half}fft{axes}" for inverse in ("", "i")
                             for half in ("", "r", "h") for axes in ("", "2", "n"))}
STRIDE_POSITION = {"conv2d": 3, "max_pool2d": 2, "max_pool2d_with_indices": 2, "avg_pool2d": 2}


def note_stride(out: Tensor, stride: Stride, args: Any) -> None:
    """Not on what was there before, as weights are that are handed back by to(type)."""
    if hasattr(out, STRIDE) or not any(out is given for given in args):
        setattr(out, STRIDE, stride)


def output_stride(name: str, args: Any, kwargs: Any, out: Tensor) -> Stride | None:
    """Multiplied by convolution and pooling, divided by enlarging, kept where the size is kept,
    else None: not known.
    """
    if name in ANYWHERE or (name in ALONG and moves_pixels(args, ALONG[name], kwargs)):
        return None
    for tensor in tensors_in((*args, *kwargs.values())):
        stride: Stride | None = getattr(tensor, STRIDE, None)
        if stride and name in STRIDE_POSITION:
            step = argument(args, kwargs, STRIDE_POSITION[name], "stride")
            if not step:  # a pooling's stride is its kernel's size by default, a convolution's is 1
                step = 1 if name == "conv2d" else argument(args, kwargs, 1, "kernel_size")
            down, across = (step[0], step[-1]) if isinstance(step, (tuple, list)) else (step, step)
            return stride[0] * down, stride[1] * across
        if stride and name == "interpolate":
            return stride_resized(stride, tensor, out, bool(kwargs.get("align_corners")))
        # A size may be kept by chance: then the last two axes lie otherwise in memory.
        if name in MOVES and tensor.stride()[-2:] != out.stride()[-2:]:
            return None
        if name == "getitem" and not out._is_view() and picks_pixels(tensor, args[1]):
            return None
        if stride and (name == "pad" or tensor.shape[-2:] == out.shape[-2:]):
            return stride
    return None


def moves_pixels(args: Any, position: int, kwargs: Any) -> bool:
    """Whether it is along one of the last two of four axes; of a batch or of channels it is not."""
    axes: list[int] = []
    for given in (*args[position:], kwargs.get("dims"), kwargs.get("dim")):
        words = given if isinstance(given, (list, tuple)) else [given]
        axes += [word for word in words if isinstance(word, int) and not isinstance(word, bool)]
    return not axes or not all(axis in (0, 1, -3, -4) for axis in axes)


def picks_pixels(tensor: Tensor, index: Any) -> bool:
    """Whether an index has a say in the last two axes."""
    index = index if isinstance(index, tuple) else (index,)
    return len(index) > tensor.ndim - 2 or any(each is Ellipsis for each in index)


def stride_resized(stride: Stride, tensor: Tensor, out: Tensor, corners: int) -> Stride | None:
    """Of interpolate: the borders stay where they are, or the centres of the corners, if 1."""
    (h, w), (h2, w2) = tensor.shape[-2:], out.shape[-2:]
    if min(h, w, h2, w2) <= corners:
        return None
    return (stride[0] * (h - corners) / (h2 - corners), stride[1] * (w - corners) / (w2 - corners))


def stride_of(tensor: Tensor) -> Stride | None:
    """Its total stride in the forward pass that is being recorded."""
    return getattr(tensor, STRIDE, None)
