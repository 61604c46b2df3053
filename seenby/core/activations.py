"""Which operations on the ways from the pixels to the logits are ReLUs, and which others are not.

To guide a ReLU, its node in autograd's graph is needed, however the network spells it.

- Most are known by the node: ReluBackward0 is one, and ClampMinBackward0 if its bound is 0, as
  BOUNDS has it.
- A mask, as in x * (x > 0), leaves a node like any product's. So what may be one is called by
  Activations.call, which compares what it gives with ReLU(x).
- Other activations are noted as they are called, to be named. What TorchScript calls is not seen,
  and is named by its node (HIDDEN).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from seenby.core.backward import is_function, nodes_between

# The kind of a node -> where it keeps the bound that makes it a ReLU if it is zero.
BOUNDS = {
    "clamp": ["_saved_min"], "clampmin": ["_saved_min"], "hardtanh": ["_saved_min_val"],
    "threshold": ["_saved_threshold"], "leakyrelu": ["_saved_negative_slope"],
    "maximum": ["_saved_self", "_saved_other"], "fmax": ["_saved_self", "_saved_other"],
}  # fmt: skip
BOUNDED = {"relu", "relu6", "clamp", "clamp_min", "clip", "hardtanh", "threshold", "leaky_relu"}
MASKING = {"mul", "multiply", "where", "setitem", "masked_fill", "masked_scatter", "index_put"}
MAXIMUM = {"maximum", "max", "fmax"}
MINIMUM, MAX_POSITION = {"minimum", "min", "fmin"}, {"clamp": 2, "clip": 2, "clamp_max": 1}
SIGN_OF = "_seenby_sign_of"  # what is noted on a mask
SIGNS, CASTS = {"gt", "ge", "lt", "le"}, {"to", "float", "double", "half", "type", "type_as",
                                          "logical_not", "bitwise_not", "invert"}
OTHER_ACTIVATIONS = {
    "silu", "gelu", "hardswish", "mish", "elu", "celu", "selu", "leaky_relu", "prelu", "rrelu",
    "softplus", "softsign", "hardtanh", "tanh", "sigmoid", "hardsigmoid", "log_sigmoid", "glu",
    "hardshrink", "softshrink", "tanhshrink", "where", "abs", "lstm", "gru", "rnn_tanh", "rnn_relu",
}  # fmt: skip
ACTIVATIONS = {*BOUNDED, *MASKING, *MAXIMUM, *MINIMUM, *MAX_POSITION, *SIGNS, *CASTS,
               *OTHER_ACTIVATIONS}
# What a node is called where no function of PyTorch was seen to make it, as within TorchScript.
HIDDEN = {name.replace("_", ""): name for name in OTHER_ACTIVATIONS} | {
    "prelukernel": "prelu", "differentiablegraph": "TorchScript",
    "compiledfunction": "aot_function",  # torch.compile is switched off
}  # fmt: skip
KINDS = {"relu", *BOUNDS, *HIDDEN}


class Activations:
    """Notes the activations of a forward pass as they are called."""

    def __init__(self) -> None:
        self.masks: set[Any] = set()  # nodes in autograd's graph: ReLUs that are spelt as masks
        self.others: list[tuple[Any, str]] = []  # node, name; None where the node can't be told
        self.in_functions: list[str] = []  # what was called where no graph is made
        self.end = 0  # the number of the first node that is made behind the forward pass

    def call(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Call a function that may be an activation."""
        if name in SIGNS or name in CASTS:
            return note_sign(func(*args, **kwargs), name, args)
        x = masked_tensor(args, kwargs) if name in MASKING else None
        if name in MASKING and x is None:
            return func(*args, **kwargs)
        given: Any = args[0] if args else None
        if not ((name in BOUNDED or x is given) and is_view(given)):
            return self.call_noted(name, func, args, kwargs, x)
        # Changed in place, a view would get the node of its base in place of the ReLU's own. So a
        # copy is changed, and what comes out is written back.
        copy = given.clone()
        out = self.call_noted(name, func, (copy, *args[1:]), kwargs, x)
        return given.copy_(copy) if out is None or out is copy else out

    def call_noted(self, name: str, func: Any, args: Any, kwargs: Any, x: Tensor | None) -> Any:
        """Call it, and note whether it was a ReLU; x: what is masked, if it masks."""
        before = None if x is None else x.detach().clone()  # it may be changed in place
        is_by_sign = x is not None and any(
            getattr(each, SIGN_OF, None) == address_of(x) for each in tensors_in(args))
        out = func(*args, **kwargs)
        result = args[0] if out is None else out  # x[mask] = 0 gives nothing back
        if before is not None and result.requires_grad and is_relu_of(before, result, is_by_sign):
            self.masks.add(result.grad_fn)
        else:
            self.note(name, result, args, kwargs)
        return out

    def note(self, name: str, result: Any, args: Any, kwargs: Any) -> None:
        """Note what is no mask. Whether it is a ReLU can be told by its node, and only by that."""
        results = [tensor for tensor in tensors_in((result,)) if tensor.is_floating_point()]
        if name in MAXIMUM and not any(map(is_zero, tensors_in((*args, *kwargs.values())))):
            return
        if not any(tensor.requires_grad for tensor in results):
            inputs = tensors_in((*args, *kwargs.values()))
            if results and any(tensor.requires_grad for tensor in inputs):
                self.in_functions.append(f"{name} in an autograd.Function")
        elif name in OTHER_ACTIVATIONS or is_bounded_above(name, args, kwargs):
            is_hidden = bool(args) and result is args[0] and is_view(result)
            self.others += [(None if is_hidden else tensor.grad_fn, name) for tensor in results
                            if tensor.requires_grad]

    def finish(self) -> None:
        """The forward pass ends: what a score is made with, behind it, is not the network's."""
        self.end = torch._C._autograd._get_sequence_nr()

    def between(self, y: Tensor, x: Tensor) -> tuple[list[Any], tuple[str, ...]]:
        """The nodes of the ReLUs on the ways from y back to x; the names of other activations."""
        nodes, noted = nodes_between(y, x), {node for node, _ in self.others}
        relus, hidden = self.masks & nodes, set()
        for node in nodes:
            kind = kind_of(node.name())
            if kind in KINDS and node._sequence_nr() < self.end:
                if not is_function(node) and is_relu(kind, node):
                    relus.add(node)
                elif kind in HIDDEN and node not in noted and node not in relus:
                    hidden.add(HIDDEN[kind])
        names = [name for node, name in self.others
                 if node is None or (node in nodes and node not in relus)]
        if self.in_functions and any(map(is_function, nodes)):
            names += self.in_functions
        return list(relus), tuple(dict.fromkeys([*names, *sorted(hidden)]))


def is_view(value: Any) -> bool:
    return isinstance(value, Tensor) and value._is_view()


@cache
def kind_of(name: str) -> str:
    """A node of the name ReluBackward0 is of the kind relu; ReluBackwardBackward0 is not."""
    return name.rpartition("::")[2].rstrip("0123456789").removesuffix("Backward").lower()


def is_relu(kind: str, node: Any) -> bool:
    """relu, and what nn.ReLU6 or a hand-written one is made of: a bound at zero from below."""
    bounds = (getattr(node, name) for name in BOUNDS.get(kind, ()))
    return kind == "relu" or any(is_zero(b) for b in bounds if not is_computed(b))


def is_computed(value: Any) -> bool:
    """Whether it depends on the pixels, and is zero by chance if it is."""
    return isinstance(value, Tensor) and value.requires_grad


def is_relu_of(x: Any, result: Tensor, is_by_sign: bool) -> bool:
    """Whether a mask set just the negative values of x to zero; of one that is not known to be x's
    sign this can only be told where there are any."""
    if not is_by_sign and not (x < 0).any():
        return False
    odd = ~(x.isfinite() & result.isfinite())  # of one picture, which tells nothing of the others
    return bool(((result == x.clamp(min=0)) | odd).all())


def note_sign(out: Any, name: str, args: Any) -> Any:
    """Note on x > 0, and on what it is cast to, that it is the sign of x."""
    x: Any = args[0] if args else None
    if name in SIGNS and len(args) > 1 and is_zero(args[1]):
        setattr(out, SIGN_OF, address_of(x))
    elif name in CASTS and hasattr(x, SIGN_OF):
        setattr(out, SIGN_OF, getattr(x, SIGN_OF))
    return out


def address_of(x: Any) -> int:
    """Where its numbers lie, as those of x.detach() do; of none that can be told, as within vmap,
    its own."""
    try:
        return int(x.data_ptr())
    except (RuntimeError, AttributeError):
        return id(x)


def masked_tensor(args: Any, kwargs: Any) -> Tensor | None:
    """The x of x * mask, x[mask] = 0, where(mask, x, 0) and the like; None if there is no mask.

    A mask is what has the shape of x and no gradient, as weights, too, have none here.
    """
    tensors = list(tensors_in((*args, *kwargs.values())))
    x = next((tensor for tensor in tensors if tensor.requires_grad), None)
    is_masked = x is not None and x.is_floating_point() and any(
        tensor.shape == x.shape and not tensor.requires_grad for tensor in tensors)
    return x if is_masked else None


def is_bounded_above(name: str, args: Any, kwargs: Any) -> bool:
    """A bound at zero from above: x - min(x, 0) is a ReLU, whose parts can't be guided."""
    if name in MINIMUM:
        both = list(tensors_in((*args, *kwargs.values())))
        return len(both) == 2 and any(map(is_zero, both))
    return name in MAX_POSITION and is_zero(argument(args, kwargs, MAX_POSITION[name], "max"))


def is_zero(value: Any) -> bool:
    return value is not None and bool((torch.as_tensor(value) == 0).all())


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among some values and in the lists among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (each for each in value if isinstance(each, Tensor))


def argument(args: Any, kwargs: Any, position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)
