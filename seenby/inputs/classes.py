"""Class names: read from a file, and found however they are spelt."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from seenby.errors import InputError, as_input_error, closest_names, one_line

DIRECTIONS = ("up:", "down:")  # of a regression's targets
BETWEEN, NO_LABEL = "; ", "(none)"  # labels, where a picture has several or none of them


def read_class_names(text: str) -> tuple[str, ...]:
    """From a file: one a line, a JSON list, or a JSON dict of number -> name or the reverse."""
    with as_input_error(text, "give a file of class names, one a line or a JSON list"):
        content = Path(text).read_text(encoding="utf-8-sig")
        names = json.loads(content) if content.lstrip()[:1] in ("[", "{") else content.splitlines()
        names = in_order(names) if isinstance(names, dict) else names
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ValueError("no list of names")
    return tuple(name.strip() for name in names if name.strip())


def in_order(numbered: dict[str, Any]) -> list[Any]:
    """Names by the numbers that they have, or that have them."""
    numbers = [*map(str, range(len(numbered)))]
    if not all(map(str.isdecimal, numbered)):
        numbered = {str(number): name for name, number in numbered.items()}
    if {*numbered} != {*numbers}:
        raise ValueError(f"not numbered from 0 to {len(numbers) - 1}")
    return [numbered[number] for number in numbers]


def read_labels(table: Path) -> dict[str, str]:
    """labels.csv, with the columns image and labels: file names, labels with ; between them."""
    fix = "give the columns image and labels, the labels of one picture with ; between them"
    with as_input_error(f"{table} can't be read", fix), \
            table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        if not {"image", "labels"} <= set(reader.fieldnames or ()):
            raise ValueError("it lacks a column")
        return {row["image"]: (row["labels"] or "").strip() or NO_LABEL for row in reader}


def label_of(given: str, classes: tuple[str, ...]) -> tuple[str, str]:
    """The classes that a picture belongs to, in their order; and of a name that is none a note."""
    if not classes or given in ("", NO_LABEL):
        return given, ""
    names = [name.strip() for name in given.split(BETWEEN.strip())]
    indices = {name: class_index(name, classes) for name in names if name}
    if unknown := [name for name, c in indices.items() if c is None]:
        return "", f"label {one_line(unknown[0]):.20} is no class of the network"
    there = sorted({c for c in indices.values() if c is not None})
    return BETWEEN.join(classes[c] for c in there), ""


def names_for(C: int, given: Sequence[str] | None = None,
              known: Sequence[str] = ()) -> tuple[str, ...]:
    """A name for each of C classes: those that were given, those known if they fit, or numbers."""
    if given is None:
        return tuple(known) if len(known) == C else tuple(map(str, range(C)))
    if not C:
        raise InputError(f"{len(given)} class names were given; the network has no classes: drop "
                         "--class-names")
    if len(given) != C:
        raise InputError(f"{len(given)} class names were given; the network has {C}: name each one")
    twice = [name for name, count in Counter(given).items() if count > 1]
    if twice:
        raise InputError(f"the class name {twice[0]} appears twice; give each class one of its own")
    return tuple(given)


def class_index(name: str, classes: tuple[str, ...]) -> int | None:
    """A class by its name, however it is spelt, or by its number."""
    indices = class_indices(classes)
    if name == NO_LABEL:  # though a class may be called none
        return None
    if name in indices:
        return indices[name]
    if name.isdecimal() and len(name) < 10:
        number = int(name)  # a folder 07 may be of the class that is called 7
        return indices.get(str(number), number if number < len(classes) else None)
    if is_imagenet(classes) and (found := re.match(r"n\d{8}", name)):
        return imagenet_ids().get(found[0])  # crane is a bird, and a machine
    if not re.search("[a-zA-Z]", name):
        return None
    return indices.get(without_id(name), indices.get(normalise_name(name)))


@cache
def class_indices(classes: tuple[str, ...]) -> dict[str, int]:
    """Name -> index, also under other spellings of it; that name itself goes first.

    Upper case is kept as long as can be: a Cardigan is a dog, and a cardigan is worn.
    """
    exact = {name: c for c, name in enumerate(classes)}
    bare = {without_id(name): c for name, c in exact.items()}
    return {name.casefold(): c for name, c in bare.items()} | bare | exact


def is_imagenet(classes: tuple[str, ...]) -> bool:
    return len(classes) == 1000 and classes[:2] == ("tench", "goldfish")


@cache
def imagenet_ids() -> dict[str, int]:
    """WordNet's number of each of the 1000 classes, as folders of ImageNet are called -> index."""
    ids = Path(__file__).with_name("imagenet_ids.txt").read_text(encoding="ascii").split()
    return {word: c for c, word in enumerate(ids)}


def without_id(name: str) -> str:
    """n02134084_Ice-Bear -> Ice Bear"""
    return re.sub(r"^n\d{8}|[\W_]+", " ", name).strip()


def normalise_name(name: str) -> str:
    return without_id(name).casefold()


def target_class(word: str, classes: tuple[str, ...]) -> str | int:
    """A word of --target: predicted and label as they are, a class by its index, up:NAME as
    up:INDEX."""
    if word in ("predicted", "label"):
        return word
    if word.startswith(DIRECTIONS) and class_index(word, classes) is None:
        direction, _, output = word.partition(":")
        return f"{direction}:{target_class(output, classes)}"
    c = class_index(word, classes)
    if c is None:
        if not classes:
            raise InputError(f"target {word} was given; the network has no classes: drop it")
        name = "" if classes[0] == "0" else f", or a name such as {closest_names(word, classes)}"
        last = len(classes) - 1
        raise InputError(f"class {word} was given; give a number from 0 to {last}{name}")
    return c
