"""One forward pass, seen operation by operation: A is kept, and what else must be known noted."""

from __future__ import annotations

import gc
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from seenby.core import speedups
from seenby.core.activations import ACTIVATIONS, Activations, tensors_in
from seenby.core.checks import described
from seenby.core.endings import ENDING, ENDINGS, ending_note
from seenby.core.strides import STRIDE, STRIDE_POSITION, note_stride
from seenby.errors import InputError

unseen = torch._C.DisableTorchFunction  # within it, the recorder sees nothing


class ForwardRecorder(TorchFunctionMode):
    """While it is active, every operation of a forward pass goes through it, however it is spelt.

    It keeps A of the target layer, notes on each tensor its total stride, and every activation:
    module, shared, in-place or functional.
    """

    A: Any = None  # the target layer's output, when it was called last
    sees_pictures = False  # whether A is made of them, as far as the graph tells
    is_ambiguous = False  # whether another call may have been that of the pictures
    is_aliased = False  # whether the network goes on with the layer's own tensor, and not a copy
    copy: Any = None  # what it goes on with
    inputs: Sequence[tuple[Tensor, int]] = ()  # what it was given, and the version of each

    def __init__(self, x: Tensor, replacements: Mapping[Any, Callable[..., Tensor]]) -> None:
        super().__init__()
        setattr(x, STRIDE, (1, 1))
        self.B = len(x)
        self.replacements = replacements  # a function -> what is called in its place
        self.activations = Activations()
        # Copies that would be views in contiguous memory, their originals, and each one's version.
        self.copies: list[tuple[Tensor, int]] = []
        self.maps: list[tuple[int, int]] = []  # sizes (u, v) of what was convolved or pooled
        self.maps_before: Sequence[tuple[int, int]] = ()  # those when the target layer ended

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self.activations.finish()

    @contextmanager
    def keeping(self, layer: nn.Module) -> Iterator[None]:
        """While it is active, what the layer gives is kept."""
        hooks = [layer.register_forward_pre_hook(self.note_inputs, with_kwargs=True)]
        if layer._forward_hooks:  # the network's own must see what is kept, too
            hooks.append(layer.register_forward_hook(own_memory, prepend=True))
        hooks.append(layer.register_forward_hook(self.keep_activations))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def note_inputs(self, _module: nn.Module, args: Any, kwargs: Any) -> None:
        """Forward pre-hook on the target layer, which may change what it is given."""
        with unseen():
            tensors = tensors_in((*args, *kwargs.values()))
            self.inputs = [(each, each._version) for each in tensors if not each.is_inference()]

    def keep_activations(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """Forward hook on the target layer; the network goes on with a copy of A.

        What follows in place, as a ReLU may, can then not overwrite A.
        """
        A = first = first_tensor(output)
        with unseen():
            if not isinstance(A, Tensor) or not A.is_floating_point():
                self.A, self.copy = A, None
                return output
            begins_graph = not A.requires_grad
            # Then A shares its memory with other tensors, and what overwrites them overwrites it.
            is_shared = self.is_aliased or A._is_view() or any(
                A is each and A._version == version for each, version in self.inputs)
        if begins_graph and self.A is not None:
            self.is_ambiguous = True
            if self.sees_pictures:  # this call is of something else, as of those compared with
                return output
        if torch._C._are_functorch_transforms_active():
            raise InputError("the layer runs within torch.func, as by vmap; name one outside it")
        if is_shared:
            A = A.clone()
        if begins_graph:
            A.requires_grad_()
            torch.set_grad_enabled(True)  # until the forward pass ends
        self.A, self.maps_before, self.sees_pictures = A, [*self.maps], not begins_graph
        self.copy = overwritten(first, A) if self.is_aliased else A.clone()
        if isinstance(output, Tensor):
            return self.copy
        make = getattr(type(output), "_make", type(output))  # a named tuple's
        return make([self.copy if each is first else each for each in output])

    def is_missed(self) -> bool:
        """Whether the network holds A, as by a hook of its own, and would have seen it change: what
        it changed in place was its copy."""
        if self.is_aliased or self.copy is None or not self.copy._version:
            return False
        # Held by self.A and the call; as a leaf, by the graph. To look who holds it takes 30 ms.
        is_held = sys.getrefcount(self.A) > 2 + self.A.is_leaf
        return is_held and any(each is not self for each in gc.get_referrers(self.A))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")  # relu_ is relu in place
        may_copy = name in speedups.LAYS_OUT and bool(args) and speedups.is_channels_last(args[0])
        func = self.replacements.get(func, func) if args else func
        if name in ACTIVATIONS:
            out = self.activations.call(name, func, args, kwargs)
        else:
            out = func(*args, **kwargs)
        if may_copy and out is not args[0]:
            self.copies += [(out, out._version), (args[0], args[0]._version)]
        for tensor in tensors_in((out,)):
            note_stride(tensor, name, args, kwargs)
            if name in STRIDE_POSITION and len(tensor) == self.B:  # else of windows
                self.maps.append((tensor.shape[-2], tensor.shape[-1]))
        if name in ENDINGS and (note := ending_note(name, func, args, kwargs, out)):
            setattr(out, ENDING, note)
        return out

    def require_no_written_copy(self) -> None:
        """Raise where the network wrote into such a copy, or into what it is a copy of."""
        if any(tensor._version != version for tensor, version in self.copies):
            raise speedups.WrittenCopyError


def overwritten(tensor: Tensor, A: Tensor) -> Tensor:
    """The same tensor, of the same numbers, made of A; with its version, on which others rely."""
    version = tensor._version
    tensor.copy_(A)
    torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))
    return tensor


def own_memory(_module: nn.Module, _args: Any, output: Any) -> Any:
    """Forward hook: a view becomes a tensor of its own."""
    is_view = isinstance(output, Tensor) and output._is_view() and output.is_floating_point()
    return output.clone() if is_view else output


def start_recording(x: Tensor) -> tuple[Tensor, Tensor, ForwardRecorder]:
    """The pixels that a graph begins with; a copy of them for the network, which may overwrite its
    input; and the recorder of its forward pass."""
    if type(x) is not Tensor:
        x = x.as_subclass(Tensor)  # others may hand our notes on to what they are not of
    x = x.detach().clone(memory_format=speedups.memory_format(x)).requires_grad_()
    x_copy = x.clone()
    return x, x_copy, ForwardRecorder(x_copy, speedups.replacements())


@dataclass(frozen=True)
class MoreInputs:
    """What a network takes besides the pictures."""

    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.args, (tuple, list)) or not isinstance(self.kwargs, Mapping):
            given = f"args {described(self.args)} and kwargs {described(self.kwargs)}"
            raise InputError(f"{given} were given; give args=(mask,), say, or kwargs="
                             "{'mask': mask}")

    def call(self, net: nn.Module, x: Tensor) -> Any:
        args = map(ordinary, self.args)
        kwargs = {name: ordinary(value) for name, value in self.kwargs.items()}
        try:
            return net(x, *args, **kwargs)
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


def ordinary(value: Any) -> Any:
    """A tensor of inference_mode can take part in no graph."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def first_tensor(output: Any) -> Any:
    """What a layer gives, or the first of several things, as attention gives its weights, too."""
    return output[0] if isinstance(output, (tuple, list)) and output else output
