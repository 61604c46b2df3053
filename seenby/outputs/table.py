"""The table: what it says of a picture, and how its cells are kept from being formulas."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from seenby.core.explanation import Explanation
from seenby.core.methods import METHODS
from seenby.inputs.classes import BETWEEN, NO_LABEL
from seenby.inputs.pictures import Picture

Row = dict[str, str]
EXPLAINED, SKIPPED, NOT_PICKED = "explained", "skipped", "not picked"  # the values of status
COLUMNS = ("image", "label", "status", "predicted", "predicted_probability", "target",
           "target_index", "target_probability", "layer", "method", "note")
NO_EVIDENCE, NOT_FINITE = "no positive evidence", "the network outputs NaN or infinity"
NOTHING_AGAINST = "nothing speaks against it"  # of a method that shows what does
MAY_BE_PROBABILITY = ("the outputs look like probabilities, or their logarithms, but no softmax or "
                      "sigmoid was seen at the end: if they are, the prediction and the map may be "
                      "wrong, so return logits")
PARTLY_GUIDED, NOT_GUIDED = "guided at the ReLUs, plain there", "the plain gradient is shown"
FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r")  # so begins a cell that would be computed


def explained_row(picture: Picture, explanation: Explanation, classes: Sequence[str]) -> Row:
    """What the table and the figure say of one picture, one target and one method."""
    predicted, probability = prediction(explanation, classes)
    return blank_row(picture, EXPLAINED) | {
        "predicted": predicted,
        "predicted_probability": probability,
        "target": target_title(explanation, classes),
        "target_index": target_index(explanation),
        "target_probability": target_probability(explanation),
        "layer": explanation.layer,
        "method": explanation.method,
        "note": "; ".join(filter(None, [picture.note, *notes_on(explanation)])),
    }


def prediction(explanation: Explanation, classes: Sequence[str]) -> tuple[str, str]:
    """The classes that the network says of a picture, and the probability of each."""
    if explanation.predicted is None or explanation.probabilities is None:
        return "", ""
    numbers = explanation.probabilities[0].tolist()
    said = [c for c, is_said in enumerate(explanation.predicted[0].tolist()) if is_said]
    names = BETWEEN.join(classes[c] for c in said) or NO_LABEL
    return names, BETWEEN.join(f"{numbers[c]:.6f}" for c in said)


def target_title(explanation: Explanation, classes: Sequence[str]) -> str:
    """cat, or up:age, or like dog_cat."""
    if explanation.target is None:
        return explanation.target_name
    name = classes[int(explanation.target)]
    return f"{explanation.target_name}:{name}" if explanation.target_name else name


def target_index(explanation: Explanation) -> str:
    """3, or up3, or nothing where no class is explained; it is part of file names."""
    if explanation.target is None:
        return ""
    return f"{explanation.target_name}{int(explanation.target)}"


def map_name(picture: str, index: str, method: str) -> str:
    """Of the files of a picture's map: NAME, or of several classes or methods NAME@CLASS@METHOD."""
    return "@".join(filter(None, [picture, index, method]))


def target_probability(explanation: Explanation) -> str:
    if explanation.probabilities is None:
        return ""
    c = 0 if explanation.target is None else int(explanation.target)
    return f"{float(explanation.probabilities[0, c]):.6f}"


def skipped_row(picture: Picture) -> Row:
    """Of a picture that could not be read, or that the network has no numbers for."""
    return blank_row(picture, SKIPPED) | {"note": picture.note}


def unpicked_row(picture: Picture, predicted: str, probability: str) -> Row:
    """Of a picture that --pick left out."""
    return blank_row(picture, NOT_PICKED) | {
        "predicted": predicted, "predicted_probability": probability, "note": picture.note,
    }  # fmt: skip


def blank_row(picture: Picture, status: str) -> Row:
    known = {"image": picture.name, "label": picture.label, "status": status}
    return dict.fromkeys(COLUMNS, "") | known


def notes_on(explanation: Explanation) -> list[str]:
    """What a reader of the maps must know; empty strings among it."""
    patches = str(explanation.grid) if explanation.grid.layout == "tokens" else ""
    notes = [evidence_note(explanation), patches, guided_note(explanation)]
    if explanation.may_be_probability.any():
        notes.append(MAY_BE_PROBABILITY)
    if explanation.negative_activations is not None and explanation.negative_activations.any():
        notes.append(f"{explanation.method} is made for maps after a ReLU, but those of "
                     f"{explanation.layer} have negative values")
    return notes


def evidence_note(explanation: Explanation) -> str:
    """Why there is nothing to see, if so."""
    if not explanation.is_finite:
        return NOT_FINITE
    if explanation.task == "segmentation" and float(target_probability(explanation)) == 0:
        return "the class wins no pixel"
    return "" if explanation.L_c.any() else no_evidence(explanation)


def no_evidence(explanation: Explanation) -> str:
    return NOTHING_AGAINST if METHODS[explanation.method].against else NO_EVIDENCE


def guided_note(explanation: Explanation) -> str:
    """Where the network has other activations than ReLU, guided backpropagation is not defined."""
    if explanation.R is None or (explanation.relu_calls and not explanation.other_activations):
        return ""
    others = ", ".join(explanation.other_activations) or "any activation but ReLU"
    shown = PARTLY_GUIDED if explanation.relu_calls else NOT_GUIDED
    return f"guided backprop is not defined for {others}: {shown}"


def is_correct(row: Row) -> bool | None:
    """Whether the label, or all of them, is what is predicted; None where one is not known."""
    known = row["label"] and row["predicted"]
    return row["label"] == row["predicted"] if known else None


def notes_in(row: Row) -> list[str]:
    """The notes of a row, of which a skipped picture has one."""
    notes = [row["note"]] if row["status"] == SKIPPED else row["note"].split("; ")
    return list(filter(None, notes))


def method_title(method: str) -> str:
    """As the figure and the gallery say it; a table of another version may have other methods."""
    return METHODS[method].title if method in METHODS else method


def escape_formulas(row: Row) -> Row:
    """An apostrophe makes a cell text for a spreadsheet."""
    return {column: f"'{cell}" if is_formula(cell) else cell for column, cell in row.items()}


def is_formula(cell: str) -> bool:
    return cell.startswith(FORMULA_PREFIXES) and not re.fullmatch(r"-\d+\.\d+", cell)


def unescape_formula(cell: str) -> str:
    return cell[1:] if cell[:1] == "'" and cell[1:].startswith(FORMULA_PREFIXES) else cell


@contextmanager
def cells_of_any_length() -> Iterator[None]:
    """While a table is read: a cell may be longer than the 131,072 characters that csv expects."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)
