#!/usr/bin/env python3
"""A page to look through what a run wrote: index.html beside its table and its pictures.

    python tools/gallery.py outputs/                      writes outputs/index.html
    python tools/gallery.py outputs/D111111_a4.csv        of several tables, this one
    python tools/gallery.py outputs/ --classes names.txt  the run's own, if it explained several

Nothing is computed again. The page needs no server, no network and no other file than the run's:
open it from the disk, or zip it with the folder. The script that it runs is tools/gallery.html's.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import html
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from SID_a4 import (  # noqa: E402
    CAMS,
    COLUMNS,
    FORMULA,
    NO_EVIDENCE,
    SKIPPED,
    Complaint,
    Parser,
    Row,
    class_names,
    complaining,
    import_torchvision,
    one_line,
    whole,
)

Picture = dict[str, Any]  # as the page's script reads it
GENERATOR = '<meta name="generator" content="tools/gallery.py">'
FOLDER = "give the folder that a run of SID_a4.py wrote into, or its table"


def table_of(given: Path) -> Path:
    """The table itself, or the only one in a folder."""
    if not given.is_dir():
        return given
    tables = sorted(given.glob("*.csv"))
    if len(tables) != 1:
        names = f" ({', '.join(table.name for table in tables)})" if tables else ""
        raise Complaint(f"{given} has {len(tables)} tables{names}; give the one to look through")
    return tables[0]


def rows_of(table: Path) -> list[Row]:
    with (
        complaining(f"{table} can't be read", FOLDER),
        table.open(newline="", encoding="utf-8") as f,
    ):
        reader = csv.DictReader(f, strict=True)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
        rows = [{head: as_text(row[head] or "") for head in COLUMNS} for row in reader]
        if not rows:
            raise ValueError("it has no rows")
    return rows


def as_text(cell: str) -> str:
    """Without the apostrophe that keeps a spreadsheet from computing it."""
    return cell[1:] if cell[:1] == "'" and cell[1:].startswith(FORMULA) else cell


def natural(name: str) -> list[tuple[int, str]]:
    """The key of an order in which image_9 stands before image_10."""
    return [(len(part.lstrip("0")), part.lstrip("0")) if part.isdecimal() else (-1, part.casefold())
            for part in re.split(r"(\d+)", name)]  # fmt: skip


class Run:
    """What a run left behind: its rows, picture by picture, and the files beside the table."""

    def __init__(self, table: Path, classes: Sequence[str] = ()) -> None:
        self.table, rows = table, rows_of(table)
        self.groups: dict[str, list[Row]] = {}
        for row in rows:
            self.groups.setdefault(row["image"], []).append(row)
        self.explained = [row for row in rows if row["target"]]
        self.methods = list(dict.fromkeys(row["method"] for row in self.explained))
        several = any(len(group) > len(self.methods) for group in self.groups.values())
        self.raw, self.overlays = (
            {file.name for file in table.parent.glob(f"{folder}/*.png")}
            for folder in ("raw", "gradcam")
        )
        self.numbers = self.class_numbers(classes) if several and self.overlays else {}

    def class_numbers(self, names: Sequence[str]) -> dict[str, str]:
        """As in the names of the overlays, where a run explained several classes a picture."""
        targets = {row["target"] for row in self.explained}
        if not names and all(target.isdecimal() for target in targets):
            return {target: target for target in targets}
        names = names or import_torchvision().models.ResNet18_Weights.DEFAULT.meta["categories"]
        numbers = {name: str(number) for number, name in enumerate(names)}
        if unknown := sorted(targets - numbers.keys()):
            raise Complaint(
                f"class {one_line(unknown[0])} has no number, which its pictures are "
                "named after; give the run's own class names with --classes FILE"
            )
        return numbers

    def overlay(self, row: Row) -> str:
        """NAME.png, or of several classes or methods NAME@CLASS@METHOD.png; "" if not there."""
        method = f"@{row['method']}" if len(self.methods) > 1 else ""
        of_class = f"@{self.numbers[row['target']]}" if self.numbers else ""
        name = f"{row['image']}{of_class}{method}.png"
        return f"gradcam/{quote(name)}" if name in self.overlays else ""

    def picture(self, rows: list[Row]) -> Picture:
        name, label, predicted = (rows[0][head] for head in ("image", "label", "predicted"))
        state = "skipped" if not predicted else "unlabelled" if not label else "wrong"
        notes = dict.fromkeys(note for row in rows for note in notes_of(row))
        # Where the label is what was predicted, --target predicted label explains it twice.
        explained = {(row["target"], row["method"]): row for row in rows if row["target"]}
        return {
            "name": name,
            "label": label,
            "predicted": predicted,
            "probability": probability_of(rows[0]),
            "state": "right" if label and label == predicted else state,
            "empty": NO_EVIDENCE in notes,
            "notes": [note for note in notes if note != NO_EVIDENCE],
            "raw": f"raw/{quote(name)}.png" if f"{name}.png" in self.raw else "",
            "maps": [
                {
                    "target": row["target"],
                    "method": words_of(row["method"]),
                    "empty": NO_EVIDENCE in notes_of(row),
                    "file": self.overlay(row),
                }
                for row in explained.values()
            ],
        }

    def settings(self) -> Iterator[tuple[str, str, str]]:
        """Of the run: a term, what it is, and the file that it leads to, if any."""
        yield "Table", one_line(self.table.name), quote(os.fsencode(self.table.name))
        figure = self.table.with_suffix(".png")
        if figure.exists():
            yield "Figure", one_line(figure.name), quote(os.fsencode(figure.name))
        yield "Written", f"{datetime.fromtimestamp(self.table.stat().st_mtime):%d %B %Y, %H:%M}", ""
        if self.explained:
            targets = dict.fromkeys(row["target"] for row in self.explained)
            own = all(row["target"] == row["predicted"] for row in self.explained)
            yield "Explained", "the predicted class" if own else first_of(targets), ""
            yield "Method", first_of(words_of(method) for method in self.methods), ""
            yield "Layer", first_of(dict.fromkeys(row["layer"] for row in self.explained)), ""
        if maps := len([*self.table.parent.glob("maps/[0-9]*.npz")]):
            yield "Maps", f"as numbers, {maps} files in maps/", ""
        notes = Counter(note for row in self.explained for note in notes_of(row))
        for note, count in notes.most_common(5):
            yield "Note", f"{note} ({count:,})", ""
        yield "Counted", "are the pictures in the table: --pick leaves the others out", ""


def notes_of(row: Row) -> list[str]:
    """Of a picture that was skipped, the one reason."""
    if row["note"].startswith(SKIPPED):
        return [row["note"].removeprefix(SKIPPED)]
    return list(filter(None, row["note"].split("; ")))


def words_of(method: str) -> str:
    return CAMS.get(method, method).replace("-\n", "")


def probability_of(row: Row) -> float | None:
    with suppress(ValueError):
        if 0 <= (probability := float(row["probability"])) <= 1:
            return probability
    return None


def accuracy_of(pictures: Iterable[Picture]) -> str:
    """In the words of the run's own account."""
    states = Counter(picture["state"] for picture in pictures)
    seen = states["right"] + states["wrong"]
    right = f"{states['right']:,} of {seen:,} with a label are right"
    return f"{right} ({states['right'] / seen:.1%})" if seen else "no labels"


def first_of(words: Iterable[str], most: int = 12) -> str:
    names = list(words)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" * (len(names) > most))


def page(run: Run) -> str:
    """The template with the run in it; only its own script and style may work there."""
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    script, style = (
        re.findall(f"<{tag}>(.*?)</{tag}>", template, re.DOTALL)[0] for tag in ("script", "style")
    )
    pictures = [run.picture(run.groups[name]) for name in sorted(run.groups, key=natural)]
    classes = {p[head] for p in pictures for head in ("label", "predicted")} - {""}
    content = {
        "title": one_line(run.table.stem),
        "accuracy": accuracy_of(pictures),
        "classes": sorted(classes, key=natural),
        "settings": list(run.settings()),
        "pictures": pictures,
    }
    parts = {
        "GENERATOR": GENERATOR,
        "POLICY": f"default-src 'none'; script-src {hashed(script)}; style-src {hashed(style)}; "
        "img-src 'self' file: data:; base-uri 'none'; form-action 'none'",
        "TITLE": html.escape(f"{one_line(run.table.stem)}: what the network looked at"),
        # In a script element all that is special is "<", as in an end tag or a comment.
        "RUN": json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }
    return re.sub("@([A-Z]+)@", lambda token: parts[token[1]], template)


def hashed(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def write(given: Path, classes: Sequence[str]) -> str:
    """index.html beside the table; what was done, in a line."""
    table = table_of(given)
    run, index = Run(table, classes), table.with_name("index.html")
    if index.exists() and GENERATOR not in index.read_text(encoding="utf-8", errors="replace"):
        raise Complaint(f"{index} is there, and not from this program; move it elsewhere")
    with whole(index, index.parent) as part:
        part.write_text(page(run), encoding="utf-8", newline="\n")
    drawn = "" if run.overlays else "; no overlay is there, as after --overlays none"
    pictures = f"{len(run.groups):,} picture{'s' * (len(run.groups) > 1)}"
    return f"{pictures}: open {one_line(index)} in a browser{drawn}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="gallery.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="the folder that a run wrote into, or its table")
    parser.add_argument(
        "--classes",
        type=class_names,
        default=(),
        metavar="FILE",
        help="the run's own, where it explained several of them for a picture",
    )
    try:
        options = parser.parse_args(argv)
        print(write(options.run, options.classes))
    except (Complaint, OSError) as error:
        print(f"gallery.py: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
