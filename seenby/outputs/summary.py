"""What a run says at its end."""

from __future__ import annotations

import textwrap
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from seenby.core.explanation import Explanation
from seenby.core.layers import each_axis
from seenby.core.placement import Pad
from seenby.errors import Complaint, one_line
from seenby.inputs.networks import Network
from seenby.inputs.pictures import SUFFIXES
from seenby.machine import STEM
from seenby.outputs.table import SKIPPED, Row

if TYPE_CHECKING:
    from seenby.pipeline import Options


@dataclass
class Tally:
    """What the account needs to know of the rows that went by."""

    explained: int = 0
    skipped: list[str] = field(default_factory=list)
    shown: dict[str, int] = field(default_factory=dict)  # pictures of the figure, and their blocks
    notes: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)  # by label
    right: Counter[str] = field(default_factory=Counter)

    def add(self, rows: list[Row], block: int, grid: int) -> None:
        """The rows of one picture."""
        label, predicted = rows[0]["label"], rows[0]["predicted"]
        if label and predicted:
            self.seen[label] += 1
            self.right[label] += label == predicted
        if not predicted:
            self.skipped.append(rows[0]["note"])
        elif rows[0]["target"]:
            self.explained += 1
            if self.explained * len(rows) <= grid or not self.shown:  # one picture at least
                self.shown[rows[0]["image"]] = block
            for row in rows:
                self.notes.update(filter(None, row["note"].split("; ")))


def nothing_explained(tally: Tally, pick: str) -> Complaint:
    if pick != "all" and not tally.skipped:
        return Complaint(f"no picture is {pick} (of {tally.seen.total()} with a label); give "
                         "others, or another --pick")
    if not tally.skipped:
        return Complaint("no pictures were given; give files or folders with " + " ".join(SUFFIXES))
    first, *others = (note.removeprefix(SKIPPED) for note in tally.skipped)
    return Complaint(first + (f" (and {len(others)} more that can't be read)" if others else ""))


def account(network: Network, options: Options, tally: Tally, first: Explanation,
            seconds: float) -> str:
    """What was done, in a few lines for a person."""
    size = " x ".join(str(n) for n in first.cells.shape[1:])
    skipped = f", {len(tally.skipped)} skipped" if tally.skipped else ""
    each = len(options.target) * len(options.method)  # columns of the figure for a picture
    columns, shown = tally.explained * each, min(options.grid, len(tally.shown) * each)
    figure = f"; the figure shows the first {shown}" if columns > shown else ""
    figure += f" of {columns} columns" if figure and each > 1 else ""
    seen, right = tally.seen.total(), tally.right.total()
    accuracy = f"accuracy  {right} of {seen} with a label are right ({right / max(seen, 1):.1%})"
    counts = (f"{name} {tally.right[name]}/{n}" for name, n in sorted(tally.seen.items()))
    classes = ", ".join(words.replace(" ", "\N{NO-BREAK SPACE}") for words in counts)
    beside = ["gradcam/", "raw/"] if options.overlays == "all" else []
    beside += ["maps/"] if options.save_maps else []
    folders = f"; {' and '.join(beside)} beside them" if beside else ""
    return "\n".join([
        f"network   {network.title}",
        f"layer     {first.layer}, {first.alpha.shape[1]} maps of {size}",
        f"pad       {pad_words(first, options.pad)}",
        f"pictures  {tally.explained} explained in {seconds:.1f} s{skipped}{figure}",
        *([accuracy] if seen else []),
        *(f"          {line}" for line in textwrap.wrap(classes, 80)),
        *(f"note      {words} ({n})" for words, n in tally.notes.items()),
        f"written   {one_line(options.out / STEM)}.png and .csv{folders}",
    ]).replace("\N{NO-BREAK SPACE}", " ")


def pad_words(explanation: Explanation, asked: Pad) -> str:
    """The pad and why it is so."""
    if explanation.cells[0].numel() == 1 and explanation.pad is None:
        return "none: the map is one cell, which stands for the whole picture"
    if explanation.pad is None:
        return f"none: the stride up to {explanation.layer} is lost, the map is stretched"
    number = each_axis(explanation.pad)
    if asked != "auto" or explanation.stride is None:
        return f"{number}, as asked: cells of zeros around the map, then stretched"
    size, cells = explanation.L_c.shape[1:], explanation.cells.shape[1:]
    axes = zip(size, explanation.stride, cells, strict=True)
    why = (f"{S} pixels at stride {s} make {S / s:g} cells, the map has {n}" for S, s, n in axes)
    return f"{number}: {' and '.join(dict.fromkeys(why))}"
