"""A network's last operation: whether it is a softmax or a sigmoid, and what it was given."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from seenby.core.activations import argument

ENDING = "_seenby_ending"  # what is noted on a tensor in the forward pass that is being recorded
SIGMOIDS = {"sigmoid", "special_expit", "log_sigmoid"}
# What may follow them: the numbers in another shape or type; some of them; all but the extremes, or
# their logarithm.
RESHAPES = {"squeeze", "unsqueeze", "flatten", "reshape", "view", "clone", "contiguous", "to",
            "float", "double"}
PARTS, MONOTONE = {"getitem", "select"}, {"clamp", "clip", "clamp_min", "clamp_max", "log"}
FOLLOWING = RESHAPES | PARTS | MONOTONE
ENDINGS = {"softmax", "log_softmax"} | SIGMOIDS | FOLLOWING


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
        if name in MONOTONE:
            return out._version, note[1], note[2]
        how = {word: value for word, value in kwargs.items() if value is not given}
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
