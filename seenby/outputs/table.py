"""The table: what it says of a picture, and how its cells are kept from being formulas."""

from __future__ import annotations

from collections.abc import Sequence

from seenby.core.explanation import Explanation
from seenby.core.methods import METHODS
from seenby.inputs.pictures import Picture

Row = dict[str, str]
EXPLAINED, SKIPPED, NOT_PICKED = "explained", "skipped", "not picked"  # the values of status
COLUMNS = ("image", "label", "status", "predicted", "predicted_probability", "target",
           "target_index", "target_probability", "layer", "method", "note")
NO_EVIDENCE = "no positive evidence"
PARTLY_GUIDED, NOT_GUIDED = "guided at the ReLUs, plain there", "the plain gradient is shown"
FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r")  # so begins a cell that would be computed


def explained_row(picture: Picture, explanation: Explanation, classes: Sequence[str]) -> Row:
    """What the table and the figure say of one picture, one target and one method."""
    probabilities = explanation.logits[0].softmax(0)
    # Of the logits, as probabilities may be equal where these are not.
    predicted, target = int(explanation.logits[0].argmax()), int(explanation.target)
    return blank_row(picture, EXPLAINED) | {
        "predicted": classes[predicted],
        "predicted_probability": f"{probabilities[predicted]:.6f}",
        "target": classes[target],
        "target_index": str(target),
        "target_probability": f"{probabilities[target]:.6f}",
        "layer": explanation.layer,
        "method": explanation.method,
        "note": "; ".join(filter(None, [picture.note, *notes_on(explanation)])),
    }


def skipped_row(picture: Picture) -> Row:
    """Of a picture that could not be read, or that the network has no numbers for."""
    return blank_row(picture, SKIPPED) | {"note": picture.note}


def unpicked_row(picture: Picture, predicted: str, probability: float) -> Row:
    """Of a picture that --pick left out."""
    return blank_row(picture, NOT_PICKED) | {
        "predicted": predicted, "predicted_probability": f"{probability:.6f}", "note": picture.note,
    }  # fmt: skip


def blank_row(picture: Picture, status: str) -> Row:
    known = {"image": picture.name, "label": picture.label, "status": status}
    return dict.fromkeys(COLUMNS, "") | known


def notes_on(explanation: Explanation) -> list[str]:
    """What a reader of the maps must know; empty strings among it."""
    patches = str(explanation.grid) if explanation.grid.layout == "tokens" else ""
    notes = ["" if explanation.L_c.any() else NO_EVIDENCE, patches, guided_note(explanation)]
    if explanation.negative_activations is not None and explanation.negative_activations.any():
        notes.append(f"{explanation.method} is made for maps after a ReLU, but those of "
                     f"{explanation.layer} have negative values")
    return notes


def guided_note(explanation: Explanation) -> str:
    """Where the network has other activations than ReLU, guided backpropagation is not defined."""
    if explanation.R is None or (explanation.relu_calls and not explanation.other_activations):
        return ""
    others = ", ".join(explanation.other_activations) or "any activation but ReLU"
    shown = PARTLY_GUIDED if explanation.relu_calls else NOT_GUIDED
    return f"guided backprop is not defined for {others}: {shown}"


def notes_in(row: Row) -> list[str]:
    """The notes of a row, of which a skipped picture has one."""
    notes = [row["note"]] if row["status"] == SKIPPED else row["note"].split("; ")
    return list(filter(None, notes))


def method_title(method: str) -> str:
    """As the figure and the gallery say it; a table of another version may have other methods."""
    return METHODS[method].title if method in METHODS else method


def escape_formulas(row: Row) -> Row:
    """An apostrophe makes a cell text for a spreadsheet."""
    return {column: f"'{cell}" if cell.startswith(FORMULA_PREFIXES) else cell
            for column, cell in row.items()}


def unescape_formula(cell: str) -> str:
    return cell[1:] if cell[:1] == "'" and cell[1:].startswith(FORMULA_PREFIXES) else cell
