"""Class names: read from a file, and found however they are spelt."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from seenby.errors import Complaint, complaining, nearest


def class_names(text: str) -> tuple[str, ...]:
    """From a file: one a line, or a JSON list."""
    with complaining(text, "give a file of class names, one a line or a JSON list"):
        content = Path(text).read_text(encoding="utf-8-sig")
        names = json.loads(content) if content.lstrip()[:1] in ("[", "{") else content.splitlines()
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ValueError("no list of names")
    return tuple(name.strip() for name in names if name.strip())


def class_number(name: str, classes: tuple[str, ...]) -> int | None:
    """A class by its name, however it is spelt, or by its number."""
    numbers = numbered(classes)
    if name in numbers:
        return numbers[name]
    if name.isdecimal() and len(name) < 10 and int(name) < len(classes):
        return int(name)
    return numbers.get(plain(name)) if re.search("[a-zA-Z]", name) else None


@cache
def numbered(classes: tuple[str, ...]) -> dict[str, int]:
    exact = {name: c for c, name in enumerate(classes)}
    return {plain(name): c for name, c in exact.items()} | exact


def plain(name: str) -> str:
    """n02391049_Polar-Bear -> polar bear"""
    return re.sub(r"^n\d{8}|[\W_]+", " ", name).strip().casefold()


def target_of(word: str, classes: tuple[str, ...]) -> str | int:
    """predicted and label as they are, a class by its number."""
    if word in ("predicted", "label"):
        return word
    c = class_number(word, classes)
    if c is None:
        named = "" if classes[0] == "0" else f", or a name: {nearest(word, classes)}"
        raise Complaint(f"class {word} was given; the network has classes 0 to "
                        f"{len(classes) - 1}: name one of these{named}")
    return c
