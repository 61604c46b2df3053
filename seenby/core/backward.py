"""The backward passes: from the logits to A, and guided to the pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from seenby.core.speedups import OneChannelConv2d
from seenby.errors import as_input_error

Edge = tuple[Any, int]  # of the graph: a node, and which of its outputs
GRAPH_HINT = "or switch off no_grad and checkpoints within the network"


def head_gradients(y_c: Tensor, A: Tensor) -> list[Tensor]:
    """dy_c / dA of each of T targets, in the layout of A, from their scores y_c (B, T).

    Where PyTorch can batch it, one backward pass through the head serves all targets.
    """
    B, T = y_c.shape
    # A batched pass through an autograd.Function of the network's may end the whole process.
    if T > 1 and not any(map(is_function, nodes_behind(y_c)[0])):
        each = torch.eye(T, dtype=y_c.dtype, device=y_c.device)[:, None].expand(T, B, T)
        with suppress(RuntimeError):  # some operations, as group norm, can't be batched
            (dyc_dA,) = torch.autograd.grad(y_c, A, each, retain_graph=True, is_grads_batched=True)
            return list(dyc_dA)
    return [gradient(number, A, retain_graph=True) for number in totals(y_c)]


def totals(y_c: Tensor) -> list[Tensor]:
    """A number for each target: the gradient of a sum over pictures is each picture's own, as in
    use no score depends on another picture (but through a batch-norm without running statistics).
    A single target's are summed at once, which takes less time.
    """
    return [y_c.sum()] if y_c.shape[1] == 1 else [*y_c.sum(0)]


def guided_backprop(relu_nodes: Sequence[Any], A: Tensor, y_c: Tensor, x: Tensor) -> list[Tensor]:
    """R (B, C, H, W) of every target: dy_c / dx with every ReLU guided.

    The hooks stay on the graph: from here on each backward pass through it is guided.
    """
    for node in relu_nodes:
        node.register_hook(keep_positive)
    numbers = totals(y_c)
    last = len(numbers) - 1
    fix = f"explain without guided maps, {GRAPH_HINT}"
    with as_input_error("the pixels do not lead to the logits", fix):
        # Where all paths pass A, the targets share a guided pass to A, from where each goes on by
        # itself: the gradient of (A * g).sum() at A is g.
        if last and get_gradient_edge(A)[:2] in (edges_on_every_path(y_c, x) or ()):
            numbers = [(A * g).sum() for g in head_gradients(y_c, A)]
        return [gradient(number, x, retain_graph=t < last) for t, number in enumerate(numbers)]


def keep_positive(grad_inputs: Sequence[Tensor | None], _grad_outputs: Any) -> None:
    """Hook on a ReLU's node: clamp its gradient at 0 from below, in place.

    Clamped behind the ReLU's own backward pass (which multiplies by 0 or 1: before it would be the
    same), its tensor is nobody else's: in place it costs a fiftieth of VGG-16's time, not a tenth.
    """
    for grad_input in grad_inputs:
        if grad_input is not None:
            grad_input.clamp_(min=0)


def gradient(number: Tensor, x: Tensor, *, retain_graph: bool) -> Tensor:
    """d number / dx. Of a single number: where several are given, PyTorch imports SymPy to compare
    shapes, which takes half a second and 50 MB.
    """
    return torch.autograd.grad(number, x, retain_graph=retain_graph)[0]


def is_function(node: Any) -> bool:
    """Whether it is an autograd.Function of the network's own, within which no graph is made."""
    return getattr(node, "_forward_cls", None) not in (None, OneChannelConv2d)


def nodes_between(y: Tensor, x: Tensor) -> set[Any]:
    """The nodes of autograd's graph that lie on a way from y back to the pixels x.

    Others are not of this forward pass: a cache's graph, say, in which a hook would stay.
    """
    visited, leaves = nodes_behind(y)
    ends = [leaf for leaf in leaves if getattr(leaf, "variable", None) is x]
    return visited if len(ends) == len(leaves) else {node for node, _ in edges_between(y, x)}


def nodes_behind(y: Tensor) -> tuple[set[Any], list[Any]]:
    """All nodes of autograd's graph that y was made by; and the leaves among them."""
    last: Any = y.grad_fn
    visited, to_visit, leaves = {last}, [last], []
    while to_visit:
        node = to_visit.pop()
        functions = node.next_functions
        if not functions:
            leaves.append(node)
        for child, _ in functions:
            if child and child not in visited:
                visited.add(child)
                to_visit.append(child)
    return visited, leaves


def edges_on_every_path(y: Tensor, x: Tensor) -> set[Edge] | None:
    """Those through which every path back from y to the pixels x leads; None where no path does.

    Each edge is gone through behind all that lead to it, and the open paths are counted: where all
    of them meet, they pass.
    """
    order = edges_between(y, x)
    on_a_path = {*order}
    onward = {edge: [n for n in edge[0].next_functions if n in on_a_path] for edge in order}
    incoming = Counter(n for edge in order for n in onward[edge])
    incoming.update(order[-1:])  # y itself
    found, open_paths = set[Edge](), 1
    for edge in reversed(order):
        if open_paths == incoming[edge]:
            found.add(edge)
        open_paths += len(onward[edge]) - incoming[edge]
    return found or None


def edges_between(y: Tensor, x: Tensor) -> list[Edge]:
    """The edges on the paths from y back to x, each behind all that it leads to; y is the last."""
    order: list[Edge] = []
    visited, on_a_path = set[Edge](), set[Edge]()
    to_visit: list[tuple[Edge, bool]] = [((y.grad_fn, y.output_nr), False)]
    while to_visit:
        edge, is_left = to_visit.pop()
        onward = edge[0].next_functions
        if is_left:
            if getattr(edge[0], "variable", None) is x or not on_a_path.isdisjoint(onward):
                on_a_path.add(edge)
                order.append(edge)
        elif edge not in visited:
            visited.add(edge)
            to_visit.append((edge, True))
            to_visit += [(each, False) for each in onward if each[0]]
    return order
