"""Sees one forward pass: its ReLUs, its strides, its ending."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from seenby.core.placement import Stride
from seenby.core.speedups import IN_OUR_WAY, tensors_in
from seenby.errors import complaining

STRIDE, LOGITS = "stride_so_far", "logits_before"  # what a Watch writes on tensors
OR = ", or switch off no_grad and checkpoints within the network"
NO_RELU = {"silu", "gelu", "hardswish", "mish", "elu", "celu", "selu", "leaky_relu", "prelu",
           "rrelu", "softplus", "softsign", "hardtanh", "tanh", "sigmoid", "hardsigmoid",
           "log_sigmoid", "glu", "hardshrink", "softshrink", "tanhshrink", "where", "lstm", "gru",
           "rnn_tanh", "rnn_relu"}
LOWER_BOUND = {"clamp": "min", "clamp_min": "min", "clip": "min", "hardtanh": "min_val",
               "threshold": "threshold", "leaky_relu": "negative_slope"}
RELU, MAXIMUM = {"relu", "relu6"}, {"maximum", "max", "fmax"}
ACTIVATIONS = {*RELU, *MAXIMUM, *LOWER_BOUND, *NO_RELU}
STRIDE_ARGUMENT = {"conv2d": 3, "max_pool2d": 2, "max_pool2d_with_indices": 2, "avg_pool2d": 2}


class Watch(TorchFunctionMode):
    """Sees every operation of one forward pass, however the network spells it.

    It keeps A of the target layer, notes on each tensor its total stride, and finds every ReLU:
    module, shared, in-place or functional.
    """

    A: Any = None

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        setattr(x, STRIDE, (1, 1))
        self.relus, self.unguided = 0, dict[str, None]()  # a set that keeps its order
        self.ways_back: list[Any] = []  # of the ReLUs, in autograd's graph

    def keep_maps(self, _module: nn.Module, args: Any, output: Any) -> Any:
        self.A = output
        if not isinstance(output, Tensor):
            return output
        if any(output is given for given in args):  # which others have, and may overwrite
            self.A = output = output.clone()
        if not output.requires_grad:
            output.requires_grad_()
            torch.set_grad_enabled(True)  # until the forward pass ends
        return output.clone()  # which in-place operations behind the layer may overwrite, not A

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")  # relu_ is relu in place
        if name in ACTIVATIONS:
            out = self.activation(name, func, args, kwargs)
        else:
            out = (IN_OUR_WAY.get(func, func) if args else func)(*args, **kwargs)
        for tensor in tensors_in((out,)):
            if stride := stride_behind(name, args, kwargs, tensor):
                setattr(tensor, STRIDE, stride)
        if name.endswith("softmax"):
            # Where it is changed later, it is not what comes out.
            setattr(out, LOGITS, {out._version: argument(args, kwargs, 0, "input")})
        return out

    def activation(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """A ReLU is noted with its way back; by its name, what guided backprop is not made for."""
        if not is_relu(name, args, kwargs):
            out = func(*args, **kwargs)
            if name in NO_RELU:
                self.unguided[name] = None
            return out
        part = args[0] if args and args[0]._is_view() else None
        if part is not None:  # in place, the gradient of the whole would hide the ReLU's own
            args = (part.clone(), *args[1:])
        out = func(*args, **kwargs)
        if out.is_floating_point():
            self.relus += 1
            if out.requires_grad:
                self.ways_back.append(out.grad_fn)
            elif any(tensor.requires_grad for tensor in tensors_in(args)):
                self.unguided[f"{name} in an autograd.Function"] = None
        return part.copy_(out) if part is not None and out is args[0] else out

    def guided_backprop(self, logits: Tensor, x: Tensor, dyc_dy: Tensor) -> list[Tensor]:
        """R (B, C, H, W) of every target."""
        for way in self.ways_back:
            way.register_hook(clamp)
        y, dyc, last = logits, list(dyc_dy), len(dyc_dy) - 1
        how = f"explain without guided maps{OR}"
        with complaining("the pixels do not lead to the logits", how):
            if last and all_through(self.A, logits, x):  # they walk through the head together
                y, dyc = self.A, head_gradients(logits, self.A, dyc_dy)
            return [way_back(y, each, x, t < last) for t, each in enumerate(dyc)]


def head_gradients(logits: Tensor, A: Tensor, dyc_dy: Tensor) -> list[Tensor]:
    """dy_c / dA (B, K, u, v) of every target: where it can be, by one walk through the head."""
    if len(dyc_dy) > 1:
        with suppress(RuntimeError):  # group norm, for one, is not made for several at once
            walk = torch.autograd.grad(logits, A, dyc_dy, retain_graph=True, is_grads_batched=True)
            return list(walk[0])
    return [way_back(logits, each, A, True) for each in dyc_dy]


def way_back(y: Tensor, dyc_dy: Tensor, x: Tensor, again: bool) -> Tensor:
    """dy_c / dx, asked for as the gradient of one number.

    Where gradients are handed over, PyTorch compares their shapes with SymPy's help: its import
    took half a second and 50 MB of the default run.
    """
    return torch.autograd.grad((y * dyc_dy).sum(), x, retain_graph=again)[0]


def all_through(A: Tensor, y: Tensor, x: Tensor) -> bool:
    """Whether no way leads back from y to the pixels x but through A."""
    passed: set[Any] = {(A.grad_fn, A.output_nr)}
    todo: list[Any] = [(y.grad_fn, y.output_nr)]
    while todo:
        if (way := todo.pop()) not in passed:
            passed.add(way)
            todo += way[0].next_functions if way[0] else ()
    return all(getattr(node, "variable", None) is not x for node, _ in passed)


def clamp(gradients: Sequence[Tensor | None], _given: Any) -> None:
    """Guided backpropagation: of a ReLU's gradient only what speaks for the class goes on.

    Clamped behind the ReLU's own backward pass (which multiplies by 0 or 1: before it would be the
    same), its tensor is nobody else's: in place it costs a fiftieth of VGG-16's time, not a tenth.
    """
    for gradient in gradients:
        if gradient is not None:
            gradient.clamp_(min=0)


def stride_behind(name: str, args: Any, kwargs: Any, out: Tensor) -> Stride | None:
    """Multiplied by convolution and pooling, kept where the size is kept, else lost."""
    for tensor in tensors_in((*args, *kwargs.values())):
        before: Stride | None = getattr(tensor, STRIDE, None)
        if before and name in STRIDE_ARGUMENT:
            step = argument(args, kwargs, STRIDE_ARGUMENT[name], "stride")
            if not step:  # a pooling's stride is its kernel's size by default, a convolution's is 1
                step = 1 if name == "conv2d" else argument(args, kwargs, 1, "kernel_size")
            down, across = (step[0], step[-1]) if isinstance(step, (tuple, list)) else (step, step)
            return before[0] * down, before[1] * across
        if before and (name == "pad" or tensor.shape[-2:] == out.shape[-2:]):
            return before
    return None


def argument(args: Any, kwargs: Any, position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)


def is_relu(name: str, args: Any, kwargs: Any) -> bool:
    """relu, and what nn.ReLU6 or a hand-written one is made of: a bound at zero from below."""
    if name in MAXIMUM:
        both = list(tensors_in((*args, *kwargs.values())))
        return len(both) == 2 and any(map(is_zero, both))
    if name in LOWER_BOUND:
        return is_zero(argument(args, kwargs, 1, LOWER_BOUND[name]))
    return name in RELU


def is_zero(value: Any) -> bool:
    return value is not None and bool((torch.as_tensor(value) == 0).all())
