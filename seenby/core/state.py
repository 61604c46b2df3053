"""The network's state: as in use while it is explained, and afterwards exactly as it was."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from seenby.core.checks import require_network

CONTAINERS = (dict, list, set, deque)
_in_use: dict[int, set[nn.Module]] = {}  # thread -> the modules of what it explains
_released = threading.Condition()
_uncompiled = ExitStack()  # open while anything is explained


@contextmanager
def borrowed(net: nn.Module) -> Iterator[None]:
    """Dropout and batch-norm as in use, and no graph for the weights; restored at the end.

    A thread has the network to itself: others that explain it, or a part of it, wait. Entered once
    more within, as the search of the layer does, there is nothing left to change.
    """
    if net in _in_use.get(threading.get_ident(), ()):
        yield
        return
    modules = list(net.modules())
    with exclusive({*modules}):
        require_network(modules)
        before, buffers = snapshot(modules), snapshot_of_buffers(modules)
        # Those that are on. Not by a module's own eval(), which may merge weights or print.
        flags: list[tuple[Any, str]] = [(each, "training") for each in modules if each.training]
        flags += [(weight, "requires_grad") for weight in weights_of(modules)]
        try:
            for owner, name in flags:
                setattr(owner, name, False)
            yield
        finally:
            for weight in weights_of(modules):  # which the network itself thawed
                weight.requires_grad = False
            for owner, name in flags:
                setattr(owner, name, True)
            restore(before)
            restore_buffers(buffers)


def weights_of(modules: Iterable[nn.Module]) -> Iterator[nn.Parameter]:
    """Those that are trained; not what is computed from them, as in meta-learning."""
    return (weight for module in modules for weight in module._parameters.values()
            if weight is not None and weight.requires_grad and weight.is_leaf
            and not weight.is_inference())


@contextmanager
def exclusive(modules: set[nn.Module]) -> Iterator[None]:
    """Wait until no other thread explains a network with one of these modules; then go on alone."""
    me = threading.get_ident()
    with _released:
        mine = _in_use.get(me, set())
        _released.wait_for(lambda: all(modules.isdisjoint(theirs) for thread, theirs
                                       in _in_use.items() if thread != me))
        if not _in_use:
            run_uncompiled()
        _in_use[me] = mine | modules
    try:
        yield
    finally:
        with _released:
            _in_use[me] = mine
            if not mine:
                del _in_use[me]
            if not _in_use:
                _uncompiled.close()
            _released.notify_all()


def run_uncompiled() -> None:
    """What torch.compile has made of a network hides its layers and ReLUs: what was written runs.

    For all threads at once, so that it begins with the first of them and ends with the last.
    """
    is_imported = "torch._dynamo" in sys.modules  # else nothing is compiled; it takes seconds
    if is_imported and not torch.compiler.is_compiling():
        _uncompiled.enter_context(torch.compiler.set_stance("force_eager"))


def forget_other_threads() -> None:
    """A forked child has one thread; what the others held would never be released."""
    global _released
    _released = threading.Condition()
    _in_use.clear()
    _uncompiled.close()


if hasattr(os, "register_at_fork"):  # nowhere on Windows, where nothing forks
    os.register_at_fork(after_in_child=forget_other_threads)


def snapshot(modules: Iterable[nn.Module]) -> list[tuple[Any, Any]]:
    """Each module's attributes, and the dicts, lists, sets and deques among them, with a copy.

    A network may fill a cache in eval mode, which would lack the weights' graph ever after, or hold
    on to weights that are loaded anew. PyTorch's own layers fill none; to copy the dicts that each
    of them has as well would take a twentieth of the course network's time.
    """
    containers: list[Any] = [*map(vars, modules)]
    containers += [value for module in modules if not is_pytorchs(module)
                   for value in vars(module).values() if isinstance(value, CONTAINERS)]
    return [(each, each.copy()) for each in containers]


def is_pytorchs(module: nn.Module) -> bool:
    """A layer as PyTorch has it, without hooks, which may write to it."""
    has_hooks = (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
                 or module._backward_pre_hooks)
    return type(module).__module__.startswith("torch.nn.modules.") and not has_hooks


def restore(before: Iterable[tuple[Any, Any]]) -> None:
    """Undo what changed since the snapshot, in place; what did not change is not touched."""
    for container, content in before:
        if not (container or content) or is_same(container, content):  # most are empty
            continue
        container.clear()  # a Counter would add to what it has
        if isinstance(container, (dict, set)):
            container.update(content)
        else:
            container.extend(content)


def is_same(container: Any, content: Any) -> bool:
    """Whether it holds the very same objects: tensors can't be compared by their values here."""
    return (len(container) == len(content) and all(map(is_, container, content))
            and (not isinstance(container, dict)
                 or all(map(is_, container.values(), content.values()))))


def snapshot_of_buffers(modules: Iterable[nn.Module]) -> list[tuple[Tensor, int, Tensor]]:
    """Each buffer, its version, and a copy; a quantiser's observer writes into them in any mode."""
    return [(buffer, buffer._version, buffer.detach().clone()) for buffer in buffers_of(modules)
            if not buffer.is_inference() and buffer.layout == torch.strided]


def buffers_of(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """Buffers, and tensors that are kept like one, as plain attributes."""
    for module in modules:
        yield from (buffer for buffer in module._buffers.values() if buffer is not None)
        if not is_pytorchs(module):
            yield from (value for value in vars(module).values() if isinstance(value, Tensor))


def restore_buffers(before: Sequence[tuple[Tensor, int, Tensor]]) -> None:
    """With its version, too: a graph of the caller's that needs the buffer would refuse another.

    The numbers are compared, as not all that is written raises the version; but on a GPU, for which
    each comparison would wait.
    """
    for buffer, version, copy in before:
        if buffer.shape != copy.shape:
            buffer.data = copy
        elif buffer.device.type != "cpu" or not torch.equal(buffer.data, copy):
            buffer.data.copy_(copy)
        if buffer._version != version:
            torch._C._autograd._unsafe_set_version_counter((buffer,), (version,))
