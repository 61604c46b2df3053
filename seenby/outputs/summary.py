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
from seenby.core.tasks import TASKS
from seenby.errors import InputError
from seenby.inputs.classes import BETWEEN, NO_LABEL
from seenby.inputs.networks import Network
from seenby.inputs.pictures import NO_PICTURES
from seenby.outputs.table import EXPLAINED, NOT_PICKED, SKIPPED, Row, is_correct, notes_in

CHANCE = ("no more are right than by guessing: --size, --mean, --std, the order of --class-names "
          "or the weights may be other than in training")


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
    wrong_labels: int = 0  # one by one: those that are there and were not predicted, and vice versa

    def add(self, rows: list[Row], batch: int, columns: int) -> None:
        """The rows of one picture; columns: how many the figure has."""
        label, predicted, status = (rows[0][name] for name in ("label", "predicted", "status"))
        if (correct := is_correct(rows[0])) is not None:
            self.seen[label] += 1
            self.correct[label] += correct
            there, said = (set(words.split(BETWEEN)) - {NO_LABEL} for words in (label, predicted))
            self.wrong_labels += len(there ^ said)
        if status == SKIPPED:
            self.skipped.append(rows[0]["note"])
        elif status == NOT_PICKED:
            self.not_picked += 1
        elif status == EXPLAINED:
            self.explained += 1
            if self.explained * len(rows) <= columns or not self.in_figure:  # one at least
                self.in_figure[rows[0]["image"]] = batch
            self.notes.update(dict.fromkeys(note for row in rows for note in notes_in(row)).keys())

    @property
    def total(self) -> int:
        return self.explained + self.not_picked + len(self.skipped)


def nothing_explained(tally: Tally, pick: str) -> InputError:
    if not tally.total:
        return InputError(NO_PICTURES)
    if tally.skipped:
        first, *others = tally.skipped
        more = f" (and {len(others)} more were skipped)" if others else ""
        return InputError(first + more)
    if not tally.seen:
        return InputError(f"--pick {pick} was given, but no picture has a label of the network's; "
                          "give some in folders that are named after their classes")
    return InputError(f"no picture is {pick} (of {tally.seen.total()} with a label); give others, "
                      "or another --pick")


def skipped_lines(skipped: list[str], most: int = 20) -> list[str]:
    """Why pictures were skipped, a line for each of the first ones; the table has them all."""
    return first_lines([f"skipped: {note}" for note in skipped], most,
                       "more, see status in the table")


def notes_of(tally: Tally, most: int = 10) -> list[str]:
    """Those of the pictures, with their numbers; there may be as many as there are labels."""
    return first_lines([f"{words} ({n})" for words, n in tally.notes.most_common()], most,
                       "others, see note in the table")


def first_lines(lines: list[str], most: int, rest: str) -> list[str]:
    """And how many there are behind them."""
    left = len(lines) - most
    return lines[:most] + [f"and {left} {rest}"] * (left > 0)


def summary(network: Network, explanation: Explanation, pad: Pad, tally: Tally, *, seconds: float,
            total: int, columns: int, per_picture: int, written: str,
            trust: Sequence[str] = ()) -> str:
    """The account of a run; trust: the sentences of --trust.

    explanation: any of the run's. total: of the pictures that there are. per_picture: how many of
    the figure's columns a picture has.
    """
    u, v = explanation.L_c.shape[1:]
    skipped = f", {len(tally.skipped)} skipped" if tally.skipped else ""
    skipped += f", {tally.not_picked} not picked" if tally.not_picked else ""
    if tally.total < total:
        skipped += f"; the search ended after {tally.total} of {total}"
    all_columns, shown = tally.explained * per_picture, len(tally.in_figure) * per_picture
    shown = min(columns, shown)
    figure = f"; the figure shows the first {shown}" if all_columns > shown else ""
    figure += f" of {all_columns} columns" if figure and per_picture > 1 else ""
    return "\n".join([
        *entry("network", network.title),
        *entry("task", task_sentence(network)),
        *entry("prepared", preparation_sentence(network)),
        *entry("layer", f"{explanation.layer}, {explanation.alpha.shape[1]} maps of {u} x {v}"),
        *entry("pad", pad_sentence(explanation, pad)),
        *entry("pictures", f"{tally.explained} explained in {seconds:.1f} s{skipped}{figure}"),
        *accuracy_lines(tally, network, ", as far as it went" if tally.total < total else ""),
        *(line for words in (*notes_of(tally), *network.notes) for line in entry("note", words)),
        *trust_lines(trust),
        f"written   {textwrap.indent(written, ' ' * 10).lstrip()}",
    ])  # fmt: skip


def entry(name: str, words: str) -> list[str]:
    """The lines of the account that say one thing."""
    return textwrap.wrap(f"{name:<10}{words}", 80, subsequent_indent=" " * 10,
                         break_on_hyphens=False)


def task_sentence(network: Network) -> str:
    assert network.task is not None
    ends = network.final_activation
    before = f"; explained before its {ends}" if ends else ""
    return f"{network.task}: {TASKS[network.task].meaning}{before}"


def preparation_sentence(network: Network) -> str:
    """resized to cover 256, cut to 224, mean 0.485 0.456 0.406, ... (the weights' own)"""
    to = network.preprocessing
    cover, cut = map(each_axis, (to.resize_size, to.crop_size))
    mean, std = (" ".join(f"{number:g}" for number in numbers) for numbers in (to.mean, to.std))
    return f"resized to cover {cover}, cut to {cut}, mean {mean}, std {std} ({network.prepared_by})"


def trust_lines(sentences: Sequence[str]) -> list[str]:
    """The verdict first; each sentence begins a line."""
    return [line for i, sentence in enumerate(sentences)
            for line in textwrap.wrap(sentence, 80, initial_indent=" " * 10 if i else "trust     ",
                                      subsequent_indent=" " * 12)]


def accuracy_lines(tally: Tally, network: Network, so_far: str) -> list[str]:
    seen, correct, C = tally.seen.total(), tally.correct.total(), len(network.classes)
    if not seen:
        return []
    if network.task == "multilabel":
        single = 1 - tally.wrong_labels / (seen * C)
        return entry("accuracy", f"{correct} of {seen} with labels have all of them right "
                     f"({correct / seen:.1%}){so_far}; of single labels {single:.1%} are")
    space = "\N{NO-BREAK SPACE}"  # within a class and its count no line is broken
    counts = (f"{name} {tally.correct[name]}/{n}" for name, n in sorted(tally.seen.items()))
    wrapped = textwrap.wrap(", ".join(count.replace(" ", space) for count in counts), 70)
    percent = f"{correct / seen:.1%}"
    return [f"accuracy  {correct} of {seen} with a label are right ({percent}){so_far}",
            *(" " * 10 + line.replace(space, " ") for line in wrapped),
            *(entry("note", CHANCE) if is_chance(correct, seen, C) else ())]


def is_chance(correct: int, seen: int, C: int) -> bool:
    """Whether so many may be right by guessing among C classes: up to two standard deviations."""
    return seen >= 20 and correct / seen <= 1 / C + 2 * math.sqrt((1 - 1 / C) / C / seen)


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
