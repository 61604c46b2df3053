"""What a run says at its end, in a few lines for a person."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import nn

from seenby.core.explanation import Explanation
from seenby.core.layers import LayerRow
from seenby.core.placement import Pad, auto_pad
from seenby.errors import InputError
from seenby.inputs.pictures import SUFFIXES
from seenby.outputs.table import EXPLAINED, NOT_PICKED, SKIPPED, Row, notes_in

NO_PICTURES = "no pictures were given; give files or folders with " + " ".join(SUFFIXES)


@dataclass
class Tally:
    """What the summary needs to know of the rows that went by."""

    explained: int = 0
    not_picked: int = 0
    skipped: list[str] = field(default_factory=list)  # why
    in_figure: dict[str, int] = field(default_factory=dict)  # pictures, and their batches
    notes: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)  # by label
    correct: Counter[str] = field(default_factory=Counter)

    def add(self, rows: list[Row], batch: int, columns: int) -> None:
        """The rows of one picture; columns: how many the figure has."""
        label, predicted, status = (rows[0][name] for name in ("label", "predicted", "status"))
        if label and predicted:
            self.seen[label] += 1
            self.correct[label] += label == predicted
        if status == SKIPPED:
            self.skipped.append(rows[0]["note"])
        elif status == NOT_PICKED:
            self.not_picked += 1
        elif status == EXPLAINED:
            self.explained += 1
            if self.explained * len(rows) <= columns or not self.in_figure:  # one at least
                self.in_figure[rows[0]["image"]] = batch
            for row in rows:
                self.notes.update(notes_in(row))

    @property
    def total(self) -> int:
        return self.explained + self.not_picked + len(self.skipped)


def nothing_explained(tally: Tally, pick: str) -> InputError:
    if pick != "all" and not tally.skipped:
        return InputError(f"no picture is {pick} (of {tally.seen.total()} with a label); give "
                          "others, or another --pick")
    if not tally.skipped:
        return InputError(NO_PICTURES)
    first, *others = tally.skipped
    return InputError(first + (f" (and {len(others)} more that can't be read)" if others else ""))


def summary(network: str, explanation: Explanation, pad: Pad, tally: Tally, *, seconds: float,
            columns: int, per_picture: int, written: str, layer_note: str = "") -> str:
    """The account of a run.

    explanation: any of the run's. per_picture: how many of the figure's columns a picture has.
    """
    u, v = explanation.L_c.shape[1:]
    skipped = f", {len(tally.skipped)} skipped" if tally.skipped else ""
    skipped += f", {tally.not_picked} not picked" if tally.not_picked else ""
    all_columns, shown = tally.explained * per_picture, len(tally.in_figure) * per_picture
    shown = min(columns, shown)
    figure = f"; the figure shows the first {shown}" if all_columns > shown else ""
    figure += f" of {all_columns} columns" if figure and per_picture > 1 else ""
    return "\n".join([
        f"network   {network}",
        f"layer     {explanation.layer}, {explanation.alpha.shape[1]} maps of {u} x {v}",
        f"pad       {pad_sentence(explanation, pad)}",
        f"pictures  {tally.explained} explained in {seconds:.1f} s{skipped}{figure}",
        *accuracy_lines(tally),
        *(f"note      {words} ({n})" for words, n in tally.notes.items()),
        *textwrap.wrap(layer_note and f"note      {layer_note}", 80, subsequent_indent=" " * 10),
        f"written   {textwrap.indent(written, ' ' * 10).lstrip()}",
    ])  # fmt: skip


def accuracy_lines(tally: Tally) -> list[str]:
    seen, correct = tally.seen.total(), tally.correct.total()
    if not seen:
        return []
    space = "\N{NO-BREAK SPACE}"  # within a class and its count no line is broken
    counts = (f"{name} {tally.correct[name]}/{n}" for name, n in sorted(tally.seen.items()))
    wrapped = textwrap.wrap(", ".join(count.replace(" ", space) for count in counts), 70)
    percent = f"{correct / seen:.1%}"
    return [f"accuracy  {correct} of {seen} with a label are right ({percent})",
            *(" " * 10 + line.replace(space, " ") for line in wrapped)]


def pad_sentence(explanation: Explanation, asked: Pad) -> str:
    """The pad and why it is so."""
    if explanation.pad is None and explanation.L_c[0].numel() == 1:
        return "none: the map is one cell, which stands for the whole picture"
    if explanation.pad is None:
        return f"none: the stride up to {explanation.layer} is not known, the map is stretched"
    number = each_axis(explanation.pad)
    if explanation.stride_inferred and asked == "auto":
        stride = each_axis(explanation.stride or ())
        return f"{number}: the cells cover the picture, {stride} pixels each (inferred)"
    if asked != "auto" or explanation.stride is None:
        zeros = "cells of zeros around the map, then " if any(explanation.pad) else ""
        return f"{number}, as asked: {zeros}stretched"
    size, cells = explanation.heatmap.shape[1:], explanation.L_c.shape[1:]
    axes = zip(size, explanation.stride, cells, strict=True)
    why = (f"{S} pixels at stride {s} make {S / s:g} cells, the map has {n}" for S, s, n in axes)
    return f"{number}: {' and '.join(dict.fromkeys(why))}"


def layer_table(layers: Sequence[LayerRow], net: nn.Module, size: tuple[int, int],
                channels: int) -> str:
    """Every layer in the order of the forward pass, then the sums; MB are of 32-bit numbers.

    size and channels are those of the input for which the layers were listed.
    """
    rows = [("layer (type)", "output shape", "parameters", "cumulative", "stride", "pad")]
    so_far = outputs = 0
    for layer in layers:
        so_far += layer.parameters
        outputs += math.prod(layer.shape)
        pads = auto_pad(size, layer.shape[2:], layer.stride) if layer.stride else ()
        rows.append((f"{layer.name} ({layer.type})", str(layer.shape), f"{layer.parameters:,}",
                     f"{so_far:,}", each_axis(layer.stride or ()), each_axis(pads)))
    total = sum(p.numel() for p in net.parameters())
    if elsewhere := total - so_far:
        rows.append(("(in no layer of its own)", "", f"{elsewhere:,}", f"{total:,}", "", ""))
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    MB = [n * 4 / 2**20 for n in (channels * size[0] * size[1], 2 * outputs, total)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), row[1].ljust(widths[1]),
                        *map(str.rjust, row[2:], widths[2:])]).rstrip() for row in rows]
    return "\n".join([*lines, "",
        f"parameters: {total:,} total, {trained:,} trainable, {total - trained:,} non-trainable",
        f"MB: input {MB[0]:.2f}, forward and backward {MB[1]:.2f}, parameters {MB[2]:.2f}, "
        f"estimated total {sum(MB):.2f}"])  # fmt: skip


def each_axis(numbers: Iterable[float]) -> str:
    """One number where both axes agree, else down x across."""
    return " x ".join(dict.fromkeys(f"{number:g}" for number in numbers))
