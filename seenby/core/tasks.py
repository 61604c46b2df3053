"""What a network's ending means: a score and a probability for each class, and what it predicts."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from seenby.core.checks import described
from seenby.core.endings import before_ending
from seenby.errors import InputError


@dataclass(frozen=True)
class Task:
    """One kind of ending. y: what comes out, before a softmax or sigmoid; S (B, C): its scores.

    y_c, which is explained, is the column c of S.
    """

    meaning: str  # for the account
    shape: str  # of y, for a message
    accepts: Callable[[Tensor], bool]
    scores: Callable[[Tensor], Tensor]  # y -> S
    probabilities: Callable[[Tensor, Tensor], Tensor] | None  # y and S -> (B, C)
    order: Callable[[Tensor, Tensor], Tensor] | None = None  # y and S -> (B, C) the largest is said
    is_several: bool = False  # all above 0.5 are predicted, and not the first in order


def is_rows(y: Tensor) -> bool:
    return y.ndim == 2


def softmax(_y: Tensor, S: Tensor) -> Tensor:
    """The softmax of each row, or the row itself where it sums to 1 already."""
    is_done = (S.amin(1) >= 0) & ((S.sum(1) - 1).abs() < 1e-3)
    return torch.where(is_done[:, None], S, S.softmax(1))


def winners(y: Tensor) -> Tensor:
    """(B, C, H, W) -> the same, 1 where a class is the largest of all at its pixel, 0 elsewhere."""
    return torch.zeros_like(y).scatter_(1, y.argmax(1, keepdim=True), 1)


def both_ways(z: Tensor) -> Tensor:
    """One logit z (B, 1, ...) speaks for class 1, and as much against class 0."""
    return torch.cat([-z, z], 1) if z.shape[1] == 1 else z


def scores_where_won(y: Tensor) -> Tensor:
    """The sum of a class's logits over the pixels that it wins (Vinogradova et al. 2020)."""
    y = both_ways(y)
    dtype = torch.promote_types(y.dtype, torch.float32)  # 16 bits don't hold so large a sum
    return (y * winners(y.detach())).sum((2, 3), dtype=dtype)


def shares(y: Tensor, _scores: Tensor) -> Tensor:
    """(B, C) the share of the pixels that each class wins."""
    return winners(both_ways(y)).mean((2, 3))


def background_last(y: Tensor, S: Tensor) -> Tensor:
    """Rank by shares, with the background (class 0) last."""
    order = shares(y, S)
    order[:, 0] -= 1
    return order


TASKS = {
    "classes": Task(
        "one of several, with probabilities by softmax", "(B, classes)",
        lambda y: y.ndim == 2 and y.shape[1] > 1,
        scores=lambda y: y, probabilities=softmax, order=lambda _, S: S,
    ),
    "binary": Task(
        "one logit z for class 1, and -z for class 0", "(B, 1)",
        lambda y: y.ndim == 2 and y.shape[1] == 1,
        scores=both_ways, probabilities=lambda _, S: S.sigmoid(), order=lambda _, S: S,
    ),
    "multilabel": Task(
        "labels that are there or not, each by its own sigmoid", "(B, labels)", is_rows,
        scores=lambda y: y, probabilities=lambda _, S: S.sigmoid(), order=lambda _, S: S,
        is_several=True,
    ),
    "regression": Task(
        "numbers: what moves one up, or down", "(B, numbers)", is_rows,
        scores=lambda y: y, probabilities=None,
    ),
    "segmentation": Task(
        "a class for each pixel: the logits of a class where it wins", "(B, classes, H, W)",
        lambda y: y.ndim == 4,
        scores=scores_where_won, probabilities=shares, order=background_last,
    ),
    "embedding": Task(
        "a vector: what makes it alike to another picture's", "(B, D)", is_rows,
        scores=lambda y: y, probabilities=None,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Ending:
    """A network's output, understood; what it says of the classes is computed when it is asked."""

    y: Tensor  # before any final softmax or sigmoid
    task: str
    final_activation: str  # softmax or sigmoid, where there was one

    @cached_property
    def scores(self) -> Tensor:
        """(B, C), part of the graph."""
        return TASKS[self.task].scores(self.y)

    @cached_property
    def probabilities(self) -> Tensor | None:
        """(B, C)."""
        of_scores = TASKS[self.task].probabilities
        return of_scores and of_scores(self.y.detach(), self.scores.detach())

    @cached_property
    def order(self) -> Tensor | None:
        """(B, C) by which the classes are ranked. Mostly the scores: two probabilities may round to
        the same number where their scores differ."""
        order = TASKS[self.task].order
        return None if order is None else order(self.y.detach(), self.scores.detach())

    @cached_property
    def predicted(self) -> Tensor | None:
        """(B, C) whether each class is predicted."""
        if self.order is None or self.probabilities is None:
            return None
        if TASKS[self.task].is_several:
            return self.probabilities > 0.5
        first = torch.zeros_like(self.order, dtype=torch.bool)
        return first.scatter_(1, self.order.argmax(1, keepdim=True), True)

    @cached_property
    def may_be_probability(self) -> Tensor:
        """(B,) whether y lies within 0 and 1, or is the logarithm of a row that sums to 1, though
        no softmax or sigmoid was seen.

        Two logits may lie there by chance, so a pair must sum to 1, too. A row of zeros comes from
        weights that are zero.
        """
        y = self.y.detach()
        if self.final_activation or TASKS[self.task].order is None:
            return torch.zeros(len(y), dtype=torch.bool, device=y.device)
        rows = y.flatten(1)
        least, most = rows.aminmax(dim=1)
        is_within = (least >= 0) & (most <= 1)
        if rows.shape[1] == 2:
            is_within &= (rows.sum(1) - 1).abs() < 1e-3
        is_logarithm = (most <= 0) & ((rows.exp().sum(1) - 1).abs() < 1e-3)
        return rows.any(1) & (is_within | is_logarithm)


def one_by_one(batch: Any, whole: Container[str] = ()) -> Iterator[Any]:
    """Copies of a record, each with its picture's part of every tensor, computed or not; but for
    those that stay whole."""
    parts = {name: value.split(1) for name, value in vars(batch).items()
             if isinstance(value, Tensor) and name not in whole}
    for tensors in zip(*parts.values(), strict=True):
        one = copy(batch)
        vars(one).update(zip(parts, tensors, strict=True))
        yield one


def read_ending(output: Any, B: int, task: str | None = None) -> Ending | None:
    """Of a network's output for B pictures; the task is found where none is given.

    None: only a function can tell what is explained.
    """
    tensor = tensor_in(output, B)
    if tensor is None:
        return None
    y, final_activation = before_ending(tensor)
    if y.numel() == B:  # one number a picture, in whatever shape
        y = y.reshape(B, 1)
    elif y.shape[2:].numel() == 1:  # (B, C, 1, 1)
        y = y.flatten(1)
    task = task or found_task(y, final_activation)
    require_task(task)
    if not TASKS[task].accepts(y):
        raise InputError(f"task {task} was given, which takes {TASKS[task].shape}; the network "
                         f"gives {tuple(y.shape)}: drop the task, or give the right one")
    return Ending(y, task, final_activation)


def require_task(name: str) -> None:
    if name not in list(TASKS):  # as it may be of a type that can't be hashed
        raise InputError(f"task {name!r} was given; give one of {', '.join(TASKS)}")


def found_task(y: Tensor, final_activation: str) -> str:
    if y.ndim == 4:
        return "segmentation"
    if y.shape[1] == 1:
        return "binary"
    return "multilabel" if final_activation == "sigmoid" else "classes"


def tensor_in(output: Any, B: int) -> Tensor | None:
    """The tensor that the network was made for, if that is plain."""
    if isinstance(output, Tensor):
        return output if is_ending(output, B) else None
    named = getattr(output, "logits", None)
    if isinstance(output, Mapping):
        named = output.get("logits", output.get("out"))
        output = list(output.values())
    if isinstance(named, Tensor):
        return named if is_ending(named, B) else None
    values = output if isinstance(output, (tuple, list)) else ()
    fitting = [t for t in values if isinstance(t, Tensor) and is_ending(t, B)]
    # A network that hands out its maps, or numbers, as well does so beside its rows.
    fitting = [t for t in fitting if t.ndim == 2] or fitting
    return fitting[0] if len(fitting) == 1 else None


def is_ending(tensor: Tensor, B: int) -> bool:
    """One number a picture, rows or maps."""
    if not tensor.is_floating_point():
        return False
    is_one_each = tensor.numel() == B and (B == 1 or len(tensor) == B)
    return is_one_each or (tensor.ndim in (2, 4) and len(tensor) == B)


def detached(output: Any) -> Any:
    """An output without its graph, whose memory is let go."""
    if isinstance(output, Tensor):
        return output.detach()
    if isinstance(output, (tuple, list)):
        return [*map(detached, output)]
    if isinstance(output, Mapping):
        return {name: detached(value) for name, value in output.items()}
    if hasattr(output, "__dict__"):  # of a class of the network's own
        output = copy(output)
        vars(output).update({name: detached(value) for name, value in vars(output).items()})
    return output


def no_ending(output: Any) -> InputError:
    return InputError(
        f"the network gives {described(output)}, and it is not clear what in it to explain; wrap "
        "it in FILE.py in a module whose forward returns (B, classes), such as `return "
        "self.net(x)[0]`, or in Python give target a function of this output that returns (B,)")
