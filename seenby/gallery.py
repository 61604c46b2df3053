"""A page to look through what a run wrote: index.html beside its table and its pictures.

    python -m seenby.gallery outputs/                  writes outputs/index.html
    python -m seenby.gallery outputs/seenby.csv        of several tables, this one

Nothing is computed again. The page needs no server, no network and no other file than the run's:
open it from the disk, or zip it with the folder. The script that it runs is gallery.html's.
"""

from __future__ import annotations

import argparse
import base64
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

from seenby.core.methods import METHODS
from seenby.errors import InputError, as_input_error, one_line
from seenby.options import Parser
from seenby.outputs.store import STEM, atomic_write
from seenby.outputs.table import (
    EXPLAINED,
    NO_EVIDENCE,
    NOT_GUIDED,
    NOT_PICKED,
    PARTLY_GUIDED,
    SKIPPED,
    Row,
    method_title,
    notes_in,
    read_rows,
)

Card = dict[str, Any]  # a picture as the page's script reads it
GENERATOR = '<meta name="generator" content="seenby.gallery">'
FIX = "give the folder that a run of seenby wrote into, or its table"
PANEL_FOLDERS = ("overlays", "cam", "guided", "guided-cam")  # of each map, as the page shows them


def write(given: Path) -> str:
    """index.html beside the table; what was done, in a line."""
    table = find_table(given)
    run, index = WrittenRun(table), table.with_name("index.html")
    if index.exists() and GENERATOR not in index.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{index} is there, and not from this program; move it elsewhere")
    with atomic_write(index, index.parent) as part:
        part.write_text(page(run), encoding="utf-8", newline="\n")
    drawn = "" if run.files.get("overlays") else "; no overlay is there, as after --no-overlays"
    pictures = f"{len(run.groups):,} picture{'s' * (len(run.groups) > 1)}"
    return f"{pictures}: open {one_line(index)} in a browser{drawn}"


def find_table(given: Path) -> Path:
    """The table itself; of a folder the run's, or the only one."""
    if not given.is_dir():
        return given
    if (table := given / f"{STEM}.csv").exists():
        return table
    tables = sorted(given.glob("*.csv"))
    if len(tables) != 1:
        several = f"{len(tables)} tables ({', '.join(t.name for t in tables)}); give one of them"
        raise InputError(f"{given} has {several if tables else f'no table of a run; {FIX}'}")
    return tables[0]


def read_thirds(table: Path) -> tuple[dict[str, str], float]:
    """Of --trust: the pictures' thirds (low, middle, high) and their reliability, where it does."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        trust = json.loads(table.with_name("trust.json").read_text(encoding="utf-8"))
        return dict(trust["thirds"]), float(trust["reliability"])
    return {}, 0.0


class WrittenRun:
    """What a run left behind: its rows, picture by picture, and the files beside the table."""

    def __init__(self, table: Path) -> None:
        self.table = table
        with as_input_error(f"{table} can't be read", FIX):
            self.rows = read_rows(table)
        self.thirds, self.reliability = read_thirds(table)
        self.groups: dict[str, list[Row]] = {}
        for row in self.rows:
            if row["status"] != NOT_PICKED:  # of which nothing was written
                self.groups.setdefault(row["image"], []).append(row)
        self.explained = [row for row in self.rows if row["status"] == EXPLAINED]
        self.methods = dict.fromkeys(row["method"] for row in self.explained)
        self.has_targets = any(len(rows) > len(self.methods) for rows in self.groups.values())
        self.files = {folder: {file.name for file in table.parent.glob(f"{folder}/*.png")}
                      for folder in written_folders(table)}

    def address(self, folder: str, name: str) -> str:
        """Of the file NAME.png; "" if there is none."""
        return f"{folder}/{quote(name)}.png" if f"{name}.png" in self.files.get(folder, ()) else ""

    def map(self, row: Row) -> dict[str, Any]:
        """A row's map: its panels are NAME.png, or of several maps NAME@CLASS@METHOD.png."""
        name = row["image"] + (f"@{row['target_index']}" if self.has_targets else "")
        name += f"@{row['method']}" if len(self.methods) > 1 else ""
        titles = zip(PANEL_FOLDERS, panel_titles(row), strict=True)
        panels = ((title, self.address(folder, name)) for folder, title in titles)
        return {
            "target": row["target"], "probability": probability(row["target_probability"]),
            "method": method_title(row["method"]), "empty": NO_EVIDENCE in notes_in(row),
            "panels": [panel for panel in panels if panel[1]],
        }  # fmt: skip

    def card(self, rows: list[Row]) -> Card:
        """Of one picture: its rows, a map for each of them."""
        first = rows[0]
        label, predicted = first["label"], first["predicted"]
        state = "skipped" if first["status"] == SKIPPED else "unlabelled" if not label else "wrong"
        notes = dict.fromkeys(note for row in rows for note in notes_in(row))
        # Where the label is what was predicted, --target predicted label explains it twice.
        explained = {(row["target_index"], row["method"]): row for row in rows
                     if row["status"] == EXPLAINED}
        return {
            "name": first["image"], "label": label, "predicted": predicted,
            "probability": probability(first["predicted_probability"]),
            "state": "right" if label and label == predicted else state,
            "empty": NO_EVIDENCE in notes, "raw": self.address("raw", first["image"]),
            "notes": [note for note in notes if note != NO_EVIDENCE],
            "maps": [self.map(row) for row in explained.values()],
            "third": self.thirds.get(first["image"], ""),
        }  # fmt: skip

    def accuracy(self) -> str:
        """In the words of the run's own summary; pictures that --pick left out count, too."""
        judged = {row["image"]: row["label"] == row["predicted"] for row in self.rows
                  if row["label"] and row["predicted"]}
        right = sum(judged.values())
        words = f"{right:,} of {len(judged):,} with a label are right"
        return f"{words} ({right / len(judged):.1%})" if judged else "no labels"

    def settings(self) -> Iterator[tuple[str, str, str]]:
        """Of the run: a term, what it is, and the file that it leads to, if any."""
        yield "Table", one_line(self.table.name), quote(os.fsencode(self.table.name))
        for term, file in (("Figure", self.table.with_suffix(".png")),
                           ("Record", self.table.with_name("run.json"))):
            if file.exists():
                yield term, one_line(file.name), quote(os.fsencode(file.name))
        yield "Written", f"{datetime.fromtimestamp(self.table.stat().st_mtime):%d %B %Y, %H:%M}", ""
        if self.explained:
            own = all(row["target"] == row["predicted"] for row in self.explained)
            targets = dict.fromkeys(row["target"] for row in self.explained)
            yield "Explained", "the predicted class" if own else first_of(targets), ""
            yield "Method", first_of(map(method_title, self.methods)), ""
            yield "Layer", first_of(dict.fromkeys(row["layer"] for row in self.explained)), ""
        if maps := len([*self.table.parent.glob("maps/[0-9]*.npz")]):
            yield "Maps", f"as numbers, {maps} files in maps/", ""
        notes = Counter(note for row in self.explained for note in notes_in(row))
        for note, count in notes.most_common(5):
            yield "Note", f"{note} ({count:,})", ""
        if unpicked := sum(row["status"] == NOT_PICKED for row in self.rows):
            yield "Not picked", f"{unpicked:,}, which count for the accuracy alone", ""


def written_folders(table: Path) -> tuple[str, ...]:
    """As run.json has it, since an earlier run may have left more; without it, all there may be."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        settings = json.loads(table.with_name("run.json").read_text(encoding="utf-8"))["settings"]
        panels = settings["style"]["panels"] if settings["gallery"] else ()
        return tuple(f for f in ("raw", *PANEL_FOLDERS) if settings.get(f, f in panels))
    return ("raw", *PANEL_FOLDERS)


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


def natural(name: str) -> list[tuple[int, str]]:
    """The key of an order in which image_9 stands before image_10."""
    return [(len(part.lstrip("0")), part.lstrip("0")) if part.isdecimal() else (-1, part.casefold())
            for part in re.split(r"(\d+)", name)]  # fmt: skip


def probability(cell: str) -> float | None:
    with suppress(ValueError):
        if 0 <= (value := float(cell)) <= 1:
            return value
    return None


def first_of(words: Iterable[str], most: int = 12) -> str:
    names = list(words)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" * (len(names) > most))


def page(run: WrittenRun) -> str:
    """The template with the run in it; only its own script and style may work there."""
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    script, style = (re.findall(f"<{tag}>(.*?)</{tag}>", template, re.DOTALL)[0]
                     for tag in ("script", "style"))
    pictures = [run.card(run.groups[name]) for name in sorted(run.groups, key=natural)]
    classes = {p[head] for p in pictures for head in ("label", "predicted")} - {""}
    content = {"title": one_line(run.table.stem), "accuracy": run.accuracy(),
               "classes": sorted(classes, key=natural), "settings": list(run.settings()),
               "reliability": run.reliability, "pictures": pictures}  # fmt: skip
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


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="seenby.gallery", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder that a run wrote into, or its table")
    try:
        print(write(parser.parse_args(argv).run))
    except (InputError, OSError) as error:
        print(f"seenby.gallery: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
