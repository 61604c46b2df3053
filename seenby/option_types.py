"""What a word on the command line must be: each type says what is allowed."""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from seenby.errors import InputError, as_input_error
from seenby.inputs.pictures import DATA_SETS, SUFFIXES
from seenby.machine import Ranks
from seenby.outputs.colors import palette
from seenby.outputs.store import STEM


def exists(text: str) -> bool:
    """Where a name is too long for a file, Path.is_file would raise."""
    return os.access(text, os.F_OK)


def names_pictures(word: str) -> bool:
    """Whether a word that may be a class is a picture file or a folder, and looks like one.

    A folder needs a slash, as it may have the name of a class.
    """
    if not exists(word):
        return word.endswith("/")
    path = Path(word)
    return (path.suffix.lower() in SUFFIXES and path.is_file()) or ("/" in word and path.is_dir())


def existing_source(text: str) -> str:
    kind, _, root = text.partition(":")
    there = exists(text) and (Path(text).is_dir() or Path(text).is_file())
    if not there and not (kind in DATA_SETS and root):
        raise InputError(f"{text or 'an empty name'} does not exist; give picture files or "
                         "folders: check the spelling, and the folder you are in")
    return text


def output_folder(text: str) -> Path:
    """A folder that can be written to, or made: found out without leaving anything behind."""
    out = Path(text)
    with as_input_error(f"can't write to {text}", "give a folder you may write to"):
        if not text:
            raise OSError("it has no name")
        for name in (f"{STEM}.png", f"{STEM}.csv", "run.json"):
            if Path(out, name).is_dir():
                raise OSError(f"{name} in it is a folder")
        for folder in (out, out / "raw", out / "overlays"):
            there = next(f for f in (folder, *folder.absolute().parents) if os.path.lexists(f))
            with tempfile.TemporaryFile(dir=there):
                pass
    return out


def parse_device(name: str) -> str:
    with as_input_error(f"{name} is not available", "give cpu, or cuda where PyTorch finds a GPU"):
        if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
            raise ValueError("no such device")
        ranks = Ranks.from_environment()
        if ranks.world_size > 1 and name == "cuda":
            name = f"cuda:{ranks.local_rank}"  # one GPU a rank
        return str(torch.empty(0, device=name).device)


def number_between(kind: type, low: float, high: float, *words: str) -> Callable[[str], Any]:
    """The type of an option that is a number between two others, or one of some words."""

    def convert(text: str) -> Any:
        if text in words:
            return text
        with suppress(ValueError):
            if low <= (value := kind(text)) <= high:
                return value
        also = "".join(f"{word!r} or " for word in words)
        raise InputError(f"{text!r} was given; give {also}a number from {low:g} to {high:.10g}")

    return convert


def one_of(names: Sequence[str] | dict[str, Any]) -> Callable[[str], Sequence[str]]:
    """For a ListOption: its words are among some names."""

    def convert(text: str) -> Sequence[str]:
        if text not in names:
            raise InputError(f"{text!r} was given; give some of {', '.join(names)}")
        return (text,)

    return convert


def parse_target(text: str) -> Sequence[str]:
    """For a ListOption: any word may be a class, unless it names pictures."""
    if names_pictures(text):
        raise InputError(f"{text} is no class")
    return (text,)


def parse_channels(text: str) -> tuple[float, ...]:
    """For a ListOption: numbers, 0.5 or 0.5,0.5,0.5."""
    with suppress(ValueError):
        values = tuple(map(float, text.split(",")))
        if all(math.isfinite(value) for value in values):
            return values
    raise InputError(f"{text!r} was given; give a number a channel, as in 0.5 0.5 0.5")


def parse_size(text: str) -> tuple[int, int]:
    """224 or 160x224, down x across."""
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and 0 < int(side) < 10_000 for side in sides):
        raise InputError(f"{text!r} was given; give pixels, as in 224 or 160x224 (down x across)")
    return int(sides[0]), int(sides[-1])


def parse_colormap(name: str) -> str:
    palette(name)
    return name
