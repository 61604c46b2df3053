"""What the table says of a picture."""

from __future__ import annotations

from collections.abc import Sequence

from seenby.core.explanation import Explanation
from seenby.inputs.pictures import Picture

Row = dict[str, str]  # of the table
NO_EVIDENCE = "no positive evidence"
SKIPPED = "skipped: "  # so begins the note on a picture that is left out
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # so begins a cell that a spreadsheet would compute
COLUMNS = ("image", "label", "predicted", "probability", "target", "layer", "method", "note")


def table_row(picture: Picture, explanation: Explanation | None, classes: Sequence[str],
              said: str = "") -> Row:
    """What the table and the figure say of a picture; said: of one that is not explained."""
    row = dict.fromkeys(COLUMNS, "") | {"image": picture.name, "label": picture.label}
    if explanation is None:
        return row | {"predicted": said, "note": "" if said else SKIPPED + picture.note}
    probability, predicted = explanation.logits[0].softmax(0).max(0)
    notes = [picture.note, "" if explanation.cells.any() else NO_EVIDENCE, unguided(explanation)]
    if explanation.negative is not None and explanation.negative.any():
        notes.append(f"{explanation.method} is made for maps after a ReLU, but those of "
                     f"{explanation.layer} have negative values")
    return row | {
        "predicted": classes[int(predicted)],
        "probability": f"{probability:.6f}",
        "target": classes[int(explanation.target)],
        "layer": explanation.layer,
        "method": explanation.method,
        "note": "; ".join(filter(None, notes)),
    }


def unguided(explanation: Explanation) -> str:
    """Where the network has no ReLU, guided backpropagation is not defined."""
    if explanation.R is None or (explanation.relus and not explanation.unguided):
        return ""
    others = ", ".join(explanation.unguided) or "any activation but ReLU"
    how = "guided at the ReLUs, plain there" if explanation.relus else "the plain gradient is shown"
    return f"guided backprop is not defined for {others}: {how}"


def no_formula(row: Row) -> Row:
    """For a spreadsheet an apostrophe makes a cell text."""
    return {head: f"'{cell}" if cell.startswith(FORMULA) else cell for head, cell in row.items()}
