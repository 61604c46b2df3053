"""What is explained: a class, a direction, a likeness or any score that a function makes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seenby.core.checks import described
from seenby.core.recorder import start_recording
from seenby.core.state import borrowed
from seenby.core.tasks import Ending, no_ending, read_ending
from seenby.errors import InputError, as_input_error


@dataclass(frozen=True)
class Ranked:
    """The class of this rank; 0 is the most probable one."""

    rank: int


@dataclass(frozen=True, eq=False)
class Like:
    """The likeness to another picture, given by its embedding (D,)."""

    embedding: Tensor
    name: str = "reference"


Target = int | Sequence[int] | Tensor | str | Ranked | Like | Callable[[Any], Tensor] | None


@dataclass(frozen=True, eq=False)
class Score:
    """A target as it was understood."""

    y_c: Tensor | None  # (B,), part of the graph; None: its class's
    target: Tensor | None  # (B,) the class; None where it is no class that is explained
    name: str = ""  # up or down, like ..., or a function's; of a class nothing
    likeness: Tensor | None = None  # (B, 1) where another picture is compared with


def expand_targets(targets: Iterable[Target]) -> list[Target]:
    """top:3 is three targets."""
    if not isinstance(targets, Iterable) or isinstance(targets, str):
        raise InputError(f"targets {targets!r} was given; give a list of targets")
    expanded: list[Target] = []
    for target in targets:
        top = re.fullmatch(r"top:([1-9]\d{0,3})", target) if isinstance(target, str) else None
        expanded += map(Ranked, range(int(top[1]))) if top else [target]
    return expanded


def score_of(target: Target, output: Any, ending: Ending | None, B: int) -> Score:
    """What a target is, of a network's output for B pictures."""
    if callable(target):
        name = getattr(target, "__name__", type(target).__name__)
        return Score(score_by(target, name, output, B), None, name)
    if ending is None:
        raise no_ending(output)
    if ending.task == "embedding":
        return likeness(target, ending.y)
    if ending.task != "regression":
        return Score(None, target_classes(target, ending))
    direction, number = direction_of(target)
    c = target_classes(number, ending)
    y_c = class_scores(ending, [c])[:, 0]
    return Score(-y_c if direction == "down" else y_c, c, direction)


def class_scores(ending: Ending, targets: Sequence[Tensor]) -> Tensor:
    """(B, T) of T targets (B,)."""
    return ending.scores.gather(1, torch.stack(list(targets), 1))


def stack_scores(scores: Sequence[Score], ending: Ending | None) -> Tensor:
    """y_c (B, T) of T targets."""
    classes = [score.target for score in scores if score.y_c is None and score.target is not None]
    if ending is None or not classes:
        return torch.stack([score.y_c for score in scores if score.y_c is not None], 1)
    of_classes = class_scores(ending, classes)  # at once, as ten of them would cost a tenth more
    if len(classes) == len(scores):
        return of_classes
    columns = iter(of_classes.unbind(1))
    each = [next(columns) if score.y_c is None else score.y_c for score in scores]
    return torch.stack(each, 1)


def score_by(function: Callable[[Any], Tensor], name: str, output: Any, B: int) -> Tensor:
    y_c = function(output)
    if not isinstance(y_c, Tensor) or y_c.shape != (B,) or not y_c.is_floating_point():
        raise InputError(f"target function {name} gave {described(y_c)}; return a number for each "
                         f"picture, a tensor ({B},)")
    if not y_c.requires_grad:
        raise InputError(f"target function {name} gave numbers that have no gradient; compute them "
                         "from the output alone, without detach, item or argmax")
    return y_c


def likeness(target: Target, y: Tensor) -> Score:
    """The cosine between the embeddings y (B, D) and another picture's."""
    like = target if isinstance(target, Like) else Like(target) if is_vector(target) else None
    D = y.shape[1]
    if like is None or like.embedding.shape not in ((D,), (1, D), y.shape):
        raise InputError("the task is embedding, whose target is another picture's embedding; give "
                         f"--like PICTURE, or in Python what the network gives for it, ({D},)")
    cosine = F.cosine_similarity(y, like.embedding.detach().to(y), dim=1)
    return Score(cosine, None, f"like {like.name}", cosine.detach()[:, None])


def embedding_of(net: nn.Module, x: Tensor) -> Tensor:
    """What a network gives for one picture x (1, C, H, W), as a vector (D,)."""
    _, x_copy, recorder = start_recording(x)
    with borrowed(net), torch.no_grad(), recorder:
        ending = read_ending(output := net(x_copy), 1, "embedding")
    if ending is None:
        raise no_ending(output)
    return ending.y[0].clone()


def is_vector(target: Target) -> TypeGuard[Tensor]:
    return isinstance(target, Tensor) and target.is_floating_point()


def direction_of(target: Target) -> tuple[str, Target]:
    """up:2 -> ("up", 2). None means up:0, and a number n alone up:n."""
    if target is None:
        return "up", 0
    if not isinstance(target, str):
        return "up", target
    direction, _, number = target.partition(":")
    if direction not in ("up", "down") or not number.isdecimal():
        raise InputError(f"target {target!r} was given; the task is regression: give up:0 or "
                         "down:0, or another output's number")
    return direction, int(number)


def target_classes(target: Target, ending: Ending) -> Tensor:
    """One class a picture (B,): the predicted ones unless told otherwise."""
    B, C = ending.scores.shape
    if target is None:
        target = Ranked(0)
    if isinstance(target, Ranked):
        return ranked_classes(target.rank, ending)
    if isinstance(target, str):
        raise InputError(f"target {target!r} was given; the task is {ending.task}: give classes by "
                         "their numbers, or top:3")
    classes = [target] * B if isinstance(target, int) else one_each(target, B)
    wrong = [c for c in classes if isinstance(c, bool) or c not in range(C)]
    if wrong:
        raise InputError(f"class {wrong[0]} was given; the network has classes 0 to {C - 1}: name "
                         "one of these")
    return torch.tensor(classes, dtype=torch.long, device=ending.y.device)


def one_each(target: Any, B: int) -> list[Any]:
    """A class for each of B pictures."""
    fix = "give one number, or one a picture"
    with as_input_error(lambda _: f"target {target} is no class", fix):
        c = torch.as_tensor(target)
    c = c.expand(B) if c.ndim == 0 else c
    if c.shape != (B,):
        raise InputError(f"targets of shape {tuple(c.shape)} were given for {B} pictures; "
                         "give one class for all or one for each")
    return c.tolist()


def ranked_classes(rank: int, ending: Ending) -> Tensor:
    """(B,) of each picture the class that is so many ranks behind the first one."""
    if ending.order is None:
        raise InputError(f"the task is {ending.task}, which ranks no classes; give a target")
    C = ending.order.shape[1]
    if rank >= C:
        raise InputError(f"top:{rank + 1} or more was given; the network has {C} classes: give "
                         f"top:{C}")
    if rank == 0:
        return ending.order.argmax(1)
    return ending.order.argsort(dim=1, descending=True, stable=True)[:, rank]
