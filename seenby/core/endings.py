"""A network's last operation: whether it is a softmax or a sigmoid, and what it was given."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from seenby.core.activations import argument

ENDING = "_seenby_ending"  # what an EndingNote is called on a tensor
SIGMOIDS = {"sigmoid", "special_expit", "log_sigmoid"}
# What may follow them: the numbers in another shape or type; some of them; all but the extremes, or
# their logarithm.
RESHAPES = {"squeeze", "unsqueeze", "flatten", "reshape", "view", "clone", "contiguous", "to",
            "float", "double"}
PARTS, MONOTONE = {"getitem", "select"}, {"clamp", "clip", "clamp_min", "clamp_max", "log"}
FOLLOWING = RESHAPES | PARTS | MONOTONE
ENDINGS = {"softmax", "log_softmax"} | SIGMOIDS | FOLLOWING


class EndingNote(NamedTuple):
    """What is noted on a tensor that a softmax or a sigmoid gave, while a pass is recorded."""

    version: int  # the tensor's, which rises when it is changed in place
    activation: str  # softmax or sigmoid
    logits: Tensor  # what that was given


def ending_note(name: str, func: Any, args: Any, kwargs: Any, out: Any) -> EndingNote | None:
    """The note on out, which an operation of this name gave; None if it ends no network.

    A change of shape hands the note on, and does the same to the logits. Parts of a softmax get
    none, as they no longer sum to 1.
    """
    given = argument(args, kwargs, 0, "input")
    if name in FOLLOWING:
        note: EndingNote | None = getattr(given, ENDING, None)
        if note is None or note.version != given._version:
            return None
        if name in PARTS and note.activation == "softmax":
            return None
        if name in MONOTONE:
            return note._replace(version=out._version)
        how = {word: value for word, value in kwargs.items() if value is not given}
        logits = func(note.logits, *args[1:], **how)
        return EndingNote(out._version, note.activation, logits)
    if out is given:  # in place
        return None
    if name in SIGMOIDS:
        return EndingNote(out._version, "sigmoid", given)
    # Attention's softmax goes over the last of four axes.
    if argument(args, kwargs, 1, "dim") in (None, 1, 1 - given.ndim):
        return EndingNote(out._version, "softmax", given)
    return None


def before_ending(output: Tensor) -> tuple[Tensor, str]:
    """What a final softmax or sigmoid was given, and which it was; or the output, and nothing."""
    note: EndingNote | None = getattr(output, ENDING, None)
    if note is None or note.version != output._version:  # it was changed in place behind them
        return output, ""
    return note.logits, note.activation
