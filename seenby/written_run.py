"""What a run left behind: the rows of its table, picture by picture, and the files beside it."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

from seenby.core.methods import METHODS
from seenby.errors import as_input_error, one_line
from seenby.inputs.classes import BETWEEN, NO_LABEL
from seenby.outputs.table import (
    COLUMNS,
    EXPLAINED,
    NO_EVIDENCE,
    NOT_GUIDED,
    NOT_PICKED,
    PARTLY_GUIDED,
    SKIPPED,
    Row,
    cells_of_any_length,
    is_correct,
    map_name,
    method_title,
    notes_in,
    unescape_formula,
)
from seenby.trial_run import read_thirds

Card = dict[str, Any]  # a picture as the page's script reads it
FIX = "give the folder that a run of seenby wrote into, or its table"
CLASS_COLUMNS = ("label", "predicted")
PANEL_FOLDERS = ("overlays", "cam", "guided", "guided-cam")  # of each map, as the page shows them

quoted = lru_cache(8)(quote)  # the files of one picture have one name


class WrittenRun:
    """A run as it lies on the disk; groups are the rows of each picture that was picked."""

    def __init__(self, table: Path) -> None:
        self.table, self.rows, self.record = table, read_rows(table), read_record(table)
        self.thirds, self.reliability = read_thirds(table.parent)
        self.groups: dict[str, list[Row]] = {}
        for row in self.rows:
            if row["status"] != NOT_PICKED:  # of which nothing was written
                self.groups.setdefault(row["image"], []).append(row)
        self.explained = [row for row in self.rows if row["status"] == EXPLAINED]
        self.methods = dict.fromkeys(row["method"] for row in self.explained)
        self.has_targets = any(len(rows) > len(self.methods) for rows in self.groups.values())
        self.is_multilabel = self.record.get("task", "") == "multilabel"
        if not self.record:  # then only what no other task writes tells
            self.is_multilabel = any(BETWEEN in row["predicted_probability"]
                                     or NO_LABEL in (row["label"], row["predicted"])
                                     for row in self.rows)
        folders = {name: names_in(table.with_name(name)) for name in written_folders(self.record)}
        self.files = {folder: names for folder, names in folders.items() if names}

    def labels_in(self, cell: str) -> list[str]:
        """In a cell of label or predicted."""
        return cell.split(BETWEEN) if self.is_multilabel else [cell]

    def address(self, folder: str, name: str) -> str:
        """Of the file NAME.png; "" if there is none."""
        is_there = f"{name}.png" in self.files.get(folder, ())
        return f"{folder}/{quoted(name)}.png" if is_there else ""

    def map_of(self, row: Row) -> dict[str, Any]:
        """A row's map, and where its panels are."""
        name = map_name(row["image"], row["target_index"] if self.has_targets else "",
                        row["method"] if len(self.methods) > 1 else "")
        titles = zip(PANEL_FOLDERS, panel_titles(row), strict=True)
        panels = [(title, self.address(folder, name)) for folder, title in titles
                  if folder in self.files]
        number, is_class = row["target_probability"], bool(row["target_index"])
        return {
            "target": row["target"], "probability": within(0, 1, number) if is_class else None,
            "cosine": None if is_class else within(-1, 1, number),
            "method": method_title(row["method"]), "empty": NO_EVIDENCE in notes_in(row),
            "panels": [panel for panel in panels if panel[1]],
        }  # fmt: skip

    def card(self, rows: list[Row]) -> Card:
        """Of one picture: its rows, a map for each of them."""
        first = rows[0]
        label, predicted = first["label"], first["predicted"]
        states = {True: "right", False: "wrong", None: "unjudged"}
        state = "skipped" if first["status"] == SKIPPED else states[is_correct(first)]
        notes = dict.fromkeys(note for row in rows for note in notes_in(row))
        # Where the label is what was predicted, --target predicted label explains it twice.
        explained = {(row["target_index"], row["method"]): row for row in rows
                     if row["status"] == EXPLAINED}
        cells = first["predicted_probability"].split(BETWEEN)
        numbers = (within(0, 1, cell) for cell in cells)
        return {
            "name": first["image"], "label": label, "predicted": predicted,
            "probabilities": [number for number in numbers if number is not None],
            "state": state, "empty": NO_EVIDENCE in notes,
            "raw": self.address("raw", first["image"]),
            "notes": [note for note in notes if note != NO_EVIDENCE],
            "maps": [self.map_of(row) for row in explained.values()],
            "third": self.thirds.get(first["image"], ""),
        }  # fmt: skip

    def cards(self) -> Iterator[Card]:
        """In the order of their names."""
        return (self.card(self.groups[name]) for name in sorted(self.groups, key=natural))

    def classes(self) -> list[str]:
        """Those that some picture belongs to, or is said to."""
        cells = {rows[0][column] for rows in self.groups.values() for column in CLASS_COLUMNS}
        names = {name for cell in cells for name in self.labels_in(cell)}
        return sorted(names - {""}, key=natural)

    def accuracy(self) -> str:
        """In the words of the run's own summary; pictures that --pick left out count, too."""
        cells = {row["image"]: (row["label"], row["predicted"]) for row in self.rows
                 if row["label"] and row["predicted"]}
        if not cells:
            has_labels = any(row["label"] for row in self.rows)
            return "no class is predicted" if has_labels else "no labels"
        right, seen = sum(label == said for label, said in cells.values()), len(cells)
        whose = "labels have all of them" if self.is_multilabel else "a label are"
        words = f"{right:,} of {seen:,} with {whose} right ({right / seen:.1%})"
        C = self.record.get("classes")
        if not (self.is_multilabel and isinstance(C, int) and C):
            return words
        wrong = sum(len((set(self.labels_in(label)) ^ set(self.labels_in(said))) - {NO_LABEL})
                    for label, said in cells.values())
        return f"{words}; of single labels {1 - wrong / (seen * C):.1%} are"

    def settings(self) -> Iterator[tuple[str, str, str]]:
        """Of the run: a term, what it is, and the file that it leads to, if any."""
        yield "Table", one_line(self.table.name), quote(os.fsencode(self.table.name))
        for term, file in (("Figure", self.table.with_suffix(".png")),
                           ("Record", self.table.with_name("run.json"))):
            if file.exists():
                yield term, one_line(file.name), quote(os.fsencode(file.name))
        for term in ("network", "task", "prepared"):
            if isinstance(words := self.record.get(term), str):
                yield term.capitalize(), one_line(words), ""
        yield "Written", f"{datetime.fromtimestamp(self.table.stat().st_mtime):%d %B %Y, %H:%M}", ""
        if self.explained:
            yield "Explained", self.targets(), ""
            yield "Method", first_of(map(method_title, self.methods)), ""
            yield "Layer", first_of(dict.fromkeys(row["layer"] for row in self.explained)), ""
        if maps := len([*self.table.parent.glob("maps/[0-9]*.npz")]):
            yield "Maps", f"as numbers, {maps} files in maps/", ""
        notes = Counter(note for row in self.explained for note in notes_in(row))
        for note, count in notes.most_common(5):
            yield "Note", f"{note} ({count:,})", ""
        if unpicked := sum(row["status"] == NOT_PICKED for row in self.rows):
            yield "Not picked", f"{unpicked:,}, which count for the accuracy alone", ""

    def targets(self) -> str:
        """What was explained."""
        if all(row["target"] in self.labels_in(row["predicted"]) or row["predicted"] == NO_LABEL
               for row in self.explained):
            return "the most probable label" if self.is_multilabel else "the predicted class"
        return first_of(dict.fromkeys(row["target"] for row in self.explained))


def read_rows(table: Path) -> list[Row]:
    """By the columns' names, whatever their order; others may stand beside them."""
    with as_input_error(f"{table} can't be read", FIX), cells_of_any_length(), \
            table.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file, strict=True)
        head = next(reader, [])
        if missing := [name for name in COLUMNS if name not in head]:
            raise ValueError(f"it has no column {missing[0]}")
        places = [(name, head.index(name)) for name in COLUMNS]
        rows = []
        for cells in filter(None, reader):
            cells += [""] * (len(head) - len(cells))
            rows.append({name: unescape_formula(cells[place]) for name, place in places})
        if not rows:
            raise ValueError("it has no rows")
    return rows


def read_record(table: Path) -> dict[str, Any]:
    """run.json beside the table; nothing of what is none."""
    with suppress(OSError, ValueError, RecursionError):
        record = json.loads(table.with_name("run.json").read_text(encoding="utf-8"))
        return record if isinstance(record, dict) else {}
    return {}


def written_folders(record: dict[str, Any]) -> tuple[str, ...]:
    """As the record has it, since an earlier run may have left more; without it, all there may be.
    """
    with suppress(LookupError, TypeError):
        settings = record["settings"]
        written = {name for name in ("raw", "overlays") if settings[name]}
        written |= {*settings["style"]["panels"]} if settings["gallery"] else set()
        return tuple(folder for folder in ("raw", *PANEL_FOLDERS) if folder in written)
    return ("raw", *PANEL_FOLDERS)


def names_in(folder: Path) -> set[str]:
    """Of pictures; none if there is no such folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.name.endswith(".png")}
    return set()


def panel_titles(row: Row) -> tuple[str, ...]:
    """Of PANEL_FOLDERS; nothing is called guided that is not, as in the figure."""
    method, colors = method_title(row["method"]), "red for, blue against"
    is_against = row["method"] in METHODS and METHODS[row["method"]].against
    guided, cam = "guided backprop", f"guided {method}"
    if NOT_GUIDED in row["note"]:
        guided, cam = "plain gradient", f"plain gradient \N{MULTIPLICATION SIGN} {method}"
    partly = "partly " * (PARTLY_GUIDED in row["note"])
    return ("overlay", "heat map" + ": what speaks against it" * is_against,
            f"{partly}{guided}: {colors}", f"{partly}{cam}: {colors}")


def natural(name: str) -> tuple[str | int, ...]:
    """The key of an order in which image_9 stands before image_10: text, a number's length, it."""
    parts = [*re.split(r"0*(\d+)", name.casefold()), ""]
    texts, numbers = parts[::2], parts[1::2]
    return tuple(chain.from_iterable(zip(texts, map(len, numbers), numbers, strict=True)))


def within(low: float, high: float, cell: str) -> float | None:
    """The number in a cell; None if it is none, or none of these."""
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if low <= number <= high else None


def first_of(words: Iterable[str], most: int = 12) -> str:
    names = list(words)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" * (len(names) > most))
