"""One forward pass, seen operation by operation: A, its stride, the activations, the ending."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from seenby.core.activations import ACTIVATIONS, Activations, argument, tensors_in
from seenby.core.placement import Stride
from seenby.errors import InputError

STRIDE, ENDING = "_seenby_stride", "_seenby_ending"  # what is noted on the network's tensors
SIGMOIDS = {"sigmoid", "special_expit", "log_sigmoid"}
# What may follow them: the numbers in another shape or type; some of them; all but the extremes, or
# their logarithm.
RESHAPES = {"squeeze", "unsqueeze", "flatten", "reshape", "view", "clone", "contiguous", "to",
            "float", "double"}
PARTS, CLAMPS = {"getitem", "select"}, {"clamp", "clip", "clamp_min", "clamp_max", "log"}
FOLLOWING = RESHAPES | PARTS | CLAMPS
ENDINGS = {"softmax", "log_softmax"} | SIGMOIDS | FOLLOWING
# What moves pixels, though the size may be kept: axes for one another; pixels along axes that are
# given from this position on; or all of them.
MOVES = {"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "einsum", "get"}
ALONG = {"flip": 1, "roll": 2, "rot90": 2, "index_select": 1, "gather": 1, "take_along_dim": 2,
         "sort": 1}
ANYWHERE = {"grid_sample", *(f"fft_{inverse}{half}fft{axes}" for inverse in ("", "i")
                             for half in ("", "r", "h") for axes in ("", "2", "n"))}
STRIDE_POSITION = {"conv2d": 3, "max_pool2d": 2, "max_pool2d_with_indices": 2, "avg_pool2d": 2}


class ForwardRecorder(TorchFunctionMode):
    """While it is active, every operation of a forward pass goes through it, however it is spelt.

    It keeps A of the target layer, notes on each tensor its total stride, and every activation:
    module, shared, in-place or functional.
    """

    A: Any = None  # the target layer's output
    inputs: Sequence[tuple[Tensor, int]] = ()  # what it was given, and the version of each

    def __init__(self, x: Tensor,
                 replacements: Mapping[Any, Callable[..., Tensor]] | None = None) -> None:
        super().__init__()
        setattr(x, STRIDE, (1, 1))
        self.replacements = replacements or {}  # a function -> what is called in its place
        self.activations = Activations()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self.activations.finish()

    @contextmanager
    def keeping(self, layer: nn.Module) -> Iterator[None]:
        """While it is active, what the layer gives is kept."""
        with (layer.register_forward_pre_hook(self.note_inputs, with_kwargs=True),
              layer.register_forward_hook(self.keep_activations)):
            yield

    def note_inputs(self, _module: nn.Module, args: Any, kwargs: Any) -> None:
        """Forward pre-hook on the target layer, which may change what it is given."""
        self.inputs = [(given, given._version) for given in tensors_in((*args, *kwargs.values()))
                       if not given.is_inference()]

    def keep_activations(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """Forward hook on the target layer; the network goes on with a copy of A.

        What follows in place, as a ReLU may, can then not overwrite A.
        """
        A = self.A = first_tensor(output)
        if not isinstance(A, Tensor) or not A.is_floating_point():
            return output
        # Where others have the same numbers, which are not the layer's, and may overwrite them.
        if A._is_view() or any(A is given and A._version == v for given, v in self.inputs):
            A = self.A = A.clone()
        if not A.requires_grad:
            A.requires_grad_()
            torch.set_grad_enabled(True)  # until the forward pass ends
        make = getattr(type(output), "_make", type(output))  # a named tuple's
        return A.clone() if isinstance(output, Tensor) else make((A.clone(), *output[1:]))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")  # relu_ is relu in place
        func = self.replacements.get(func, func) if args else func
        if name in ACTIVATIONS:
            out = self.activations.call(name, func, args, kwargs)
        else:
            out = func(*args, **kwargs)
        for tensor in tensors_in((out,)):
            if stride := output_stride(name, args, kwargs, tensor):
                note_stride(tensor, stride, args)
        if name in ENDINGS and (note := ending_note(name, func, args, kwargs, out)):
            setattr(out, ENDING, note)
        return out


@dataclass(frozen=True)
class MoreInputs:
    """What a network takes besides the pictures."""

    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def call(self, net: nn.Module, x: Tensor) -> Any:
        try:
            return net(x, *self.args, **self.kwargs)
        except TypeError as error:
            try:
                inspect.signature(net.forward).bind(x, *self.args, **self.kwargs)
            except TypeError as misfit:
                raise InputError(f"the network takes more than pictures ({misfit}); give the rest "
                                 "with args=(...,) or kwargs={...}, or in FILE.py wrap it in a "
                                 "module that takes pictures alone") from error
            raise

    def of_first(self, B: int) -> MoreInputs:
        """For the first of B pictures alone."""

        def cut(value: Any) -> Any:
            return value[:1] if isinstance(value, Tensor) and value.shape[:1] == (B,) else value

        return MoreInputs([*map(cut, self.args)], {k: cut(v) for k, v in self.kwargs.items()})


NO_MORE = MoreInputs()


def first_tensor(output: Any) -> Any:
    """What a layer gives, or the first of several things, as attention gives its weights, too."""
    return output[0] if isinstance(output, (tuple, list)) and output else output


def ending_note(name: str, func: Any, args: Any, kwargs: Any,
                out: Any) -> tuple[int, str, Tensor] | None:
    """Of a softmax over classes, or a sigmoid: out's version, which it was, and what it was given.

    The note goes on through a change of shape, and that of a sigmoid to parts of what it gave.
    """
    given = argument(args, kwargs, 0, "input")
    if name in FOLLOWING:
        note = getattr(given, ENDING, None)
        if note is None or note[0] != given._version or (name in PARTS and note[1] == "softmax"):
            return None
        if name in CLAMPS:
            return out._version, note[1], note[2]
        how = {name: value for name, value in kwargs.items() if value is not given}
        return out._version, note[1], func(note[2], *args[1:], **how)
    if out is given:  # in place
        return None
    if name in SIGMOIDS:
        return out._version, "sigmoid", given
    # Attention's softmax goes over the last of four axes.
    if argument(args, kwargs, 1, "dim") in (None, 1, 1 - given.ndim):
        return out._version, "softmax", given
    return None


def before_ending(output: Tensor) -> tuple[Tensor, str]:
    """What a final softmax or sigmoid was given, and which it was; or the output, and nothing."""
    note = getattr(output, ENDING, None)
    if note is None or note[0] != output._version:  # changed in place: it is not what comes out
        return output, ""
    return note[2], note[1]


def shape_of(value: Any) -> Any:
    """For a message: a tensor's shape, or else the type."""
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


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
