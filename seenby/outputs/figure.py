"""The figure: a column for each picture, a row for each panel; and each panel by itself."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from seenby.core.explanation import Explanation
from seenby.core.methods import METHODS
from seenby.errors import InputError
from seenby.inputs.classes import BETWEEN
from seenby.inputs.pictures import Box, Picture
from seenby.outputs.colors import Style, array_of, overlay
from seenby.outputs.fonts import fitted, fonts_for, letters_note
from seenby.outputs.table import Row, explained_row, is_correct, method_title, no_evidence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = {  # title and meaning, with the words of panel_words
    "raw": ("Raw", "what the\nnetwork sees"),
    "cam": ("{cam}", "{evidence}"),
    "guided": ("{guided}", "what brighter\npixels would do"),
    "guided-cam": ("{guided_cam}", "pixels within\nthe evidence"),
    "overlay": ("Overlay", "the evidence on\nthe picture"),
}
SIGNED = ("guided", "guided-cam")
# Inches: the margins, a panel with the gap behind it, its side, and from one heading to the next.
LEFT, RIGHT, CELL, SIDE, LINE, FIRST_LINE = 1.22, 0.62, 0.86, 0.8, 0.19, 0.12
HEADINGS = {"image": "picture", "predicted": "predicted", "predicted_probability": "probability",
            "label": "label", "target": "maps for", "target_probability": "its probability",
            "cosine": "its cosine", "method": "method"}
NAMES = ("image", "predicted", "label", "target")  # those of them that people give


def panel_words(explanations: Sequence[Explanation]) -> dict[str, str]:
    """What the panels are called: after the method, and never guided where nothing guides."""
    methods = {METHODS[explanation.method].title for explanation in explanations}
    against = {METHODS[explanation.method].against for explanation in explanations}
    evidence = "where the\nevidence lies"
    if True in against:
        evidence = "where evidence\nlies against it"
        if False in against:
            evidence = "evidence for it,\nor against it"
    guided = "Plain"
    if explanations[0].relu_calls:
        guided = "Partly guided" if explanations[0].other_activations else "Guided"
    return {
        "cam": methods.pop() if len(methods) == 1 else "CAM",
        "evidence": evidence,
        "guided": f"{guided}\n{'Backprop' if guided != 'Plain' else 'gradient'}",
        "guided_cam": f"{guided}\n{'Grad-CAM' if guided != 'Plain' else 'grad. x CAM'}",
    }


def panel_image(name: str, picture: Picture, explanation: Explanation, style: Style) -> Image.Image:
    if name not in PANELS:
        raise InputError(f"panel {name!r} was given; give some of {', '.join(PANELS)}")
    if picture.image is None:
        raise InputError(f"{picture.name} was not read ({picture.note}); leave it out")
    if name == "raw":
        return picture.image.convert("RGB")
    if name == "overlay":
        return overlay(picture.image, explanation, style)
    return style.colorize(panel_map(name, explanation), name in SIGNED)


def panel_map(name: str, explanation: Explanation) -> np.ndarray:
    """(H, W), before it is coloured."""
    if name == "cam":
        return array_of(explanation.heatmap)
    signed = explanation.R if name == "guided" else explanation.guided_cam
    if signed is None:
        raise InputError(f"panel {name} was asked for, but the maps were made with guided=False; "
                         "make them with guided=True")
    return array_of(signed.sum(1))  # the channels of a colour together


def draw_grid(pictures: Sequence[Picture], explanations: Sequence[Explanation],
              classes: Sequence[str], style: Style | None = None) -> Figure:
    """One explanation for each picture; made to be pasted at 16 cm. Lengths are in inches."""
    from matplotlib.figure import Figure

    style = style or Style()
    rows = [explained_row(p, e, classes) for p, e in zip(pictures, explanations, strict=True)]
    headings = column_headings(rows)
    width = LEFT + CELL * len(rows) + RIGHT
    height = top_of_panels(headings) + CELL * len(style.panels)
    spare = max(0, 1.4 * height - width) / 2  # of few pictures too the sheet is landscape
    left, width = LEFT + spare, width + 2 * spare
    names = "".join(row[heading] for row in rows for heading in {*headings} & {*NAMES})
    note = "; ".join(filter(None, (cells_note(explanations), letters_note(names))))
    height += LINE * bool(note)
    figure = Figure((width, height), dpi=300)
    # One axes holds all the small images: an axes for each would take most of the run's time.
    axes = figure.add_axes((0, 0, 1, 1))
    for i, row in enumerate(rows):
        draw_column(axes, left + CELL * i, pictures[i], explanations[i], row, headings, style)
    margins = left - 0.1, left + CELL * len(rows) + 0.02
    draw_margins(axes, margins, panel_words(explanations), headings, style)
    axes.text(left, height - 0.05, note, size=8, color="0.25", va="bottom")
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    axes.set_axis_off()
    return figure


def top_of_panels(headings: Sequence[str]) -> float:
    return FIRST_LINE / 2 + LINE * len(headings)


def draw_column(axes: Axes, x: float, picture: Picture, explanation: Explanation, row: Row,
                headings: Sequence[str], style: Style) -> None:
    """What stands over a picture, and its panels."""
    for k, heading in enumerate(headings):
        draw_column_heading(axes, x + SIDE / 2, FIRST_LINE + LINE * k, heading, row)
    y = top_of_panels(headings)
    for name in style.panels:
        image = panel_image(name, picture, explanation, style)
        draw_panel(axes, image, (x, y, x + SIDE, y + SIDE))
        draw_empty_note(axes, name, explanation, x + SIDE / 2, y + SIDE / 2)
        y += CELL


def draw_margins(axes: Axes, margins: tuple[float, float], words: Mapping[str, str],
                 headings: Sequence[str], style: Style) -> None:
    """The names of the rows before them, and the scales of their colours behind them."""
    left, right = margins
    for k, heading in enumerate(headings):
        axes.text(left, FIRST_LINE + LINE * k, HEADINGS[heading], size=9, color="0.25", ha="right",
                  va="center")
    y = top_of_panels(headings)
    for name in style.panels:
        title, meaning = (text.format(**words) for text in PANELS[name])
        draw_title_and_colorbar(axes, name, title, meaning, style, (left, right, y))
        y += CELL


def cells_note(explanations: Sequence[Explanation]) -> str:
    """What the maps are made of, where that is not plain: patches, and tokens beside them."""
    grids = {(e.layer, str(e.grid)) for e in explanations if e.grid.layout == "tokens"}
    return "; ".join(f"{layer}: {grid}" for layer, grid in sorted(grids))


def column_headings(rows: Sequence[Row]) -> list[str]:
    """The columns of the table that stand over each picture: those that tell something."""
    if not rows:
        raise InputError("no pictures were given; give one at least, and an explanation of each")
    headings = ["image"]
    if any(row["predicted"] for row in rows):
        headings += ["predicted", "predicted_probability"]
    headings += ["label"] if any(row["label"] for row in rows) else []
    if any(row["target"] != row["predicted"] for row in rows):
        headings += ["target", *measure_of_target(rows[0])]
    return headings + (["method"] if len({row["method"] for row in rows}) > 1 else [])


def measure_of_target(row: Row) -> list[str]:
    """What tells how much of its target a network sees in a picture: nothing of a regression."""
    if not row["target_probability"]:
        return []
    return ["target_probability" if row["target_index"] else "cosine"]


def draw_column_heading(axes: Axes, x: float, y: float, heading: str, row: Row) -> None:
    """One line of what stands over a column; a wrong prediction stands out."""
    style: dict[str, Any] = {"size": 9, "color": "0.25"}
    words = row["target_probability" if heading == "cosine" else heading]
    if heading == "method":
        words, style["size"] = method_title(words), 8
    elif heading == "cosine":
        words = f"{float(words):.2f}"
    elif heading.endswith("probability"):
        words = percents(words)
    if heading == "predicted":
        style = {"size": 13 if len(words) < 4 else 9, "weight": "bold"}
        if is_correct(row) is False:  # crossed and framed: clear without colour too
            frame = {"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "crimson"}
            words, style = f"{words} \N{BALLOT X}", style | {"color": "crimson", "bbox": frame}
    words, style["size"] = fitted(words, style["size"], style.get("weight", "normal"))
    axes.text(x, y, words, ha="center", va="center", parse_math=False,
              family=fonts_for(words)[0], **style)


def percents(cell: str) -> str:
    """Of one class; of several labels from the least sure to the surest; of none nothing."""
    numbers = sorted(map(float, cell.split(BETWEEN))) if cell else []
    return " - ".join(dict.fromkeys(percent(number) for number in numbers[:1] + numbers[-1:]))


def percent(probability: float) -> str:
    if probability >= 0.9995:
        return ">99.9%"
    return "<0.1%" if probability < 0.0005 else f"{probability:.1%}"


def draw_panel(axes: Axes, image: Image.Image, corners: Box) -> None:
    """In its own proportions, in the middle of a box."""
    left, top, right, bottom = corners
    w, h = image.size
    scale = min((right - left) / w, (bottom - top) / h)
    x, y = (left + right - w * scale) / 2, (top + bottom - h * scale) / 2
    extent = (x, x + w * scale, y + h * scale, y)
    axes.imshow(image, extent=extent, interpolation="nearest")


def draw_empty_note(axes: Axes, name: str, explanation: Explanation, x: float, y: float) -> None:
    """No panel is blank without a word."""
    words, is_small = "", min(explanation.heatmap.shape[1:]) < 100  # a large overlay has its own
    empty = ("cam", "guided-cam", "overlay") if is_small else ("cam", "guided-cam")
    if name != "raw" and not explanation.is_finite.all():
        words = "NaN or\ninfinity"
    elif name in empty and not explanation.L_c.any():
        words = textwrap.fill(no_evidence(explanation), 10)
    elif name == "guided" and explanation.R is not None and not explanation.R.any():
        words = "no\ngradient"
    if words:
        frame = {"boxstyle": "square,pad=0.2", "facecolor": "white", "edgecolor": "none"}
        axes.text(x, y, words, size=9, ha="center", va="center", bbox=frame)


def draw_title_and_colorbar(axes: Axes, name: str, title: str, meaning: str, style: Style,
                            where: tuple[float, float, float]) -> None:
    """A row's title and meaning before it, the scale of its colours behind it."""
    left, right, y = where
    letters = max(map(len, title.split("\n")))
    size = 11 if letters < 10 else 10 if letters < 13 else 8.5  # Grad-CAM++, Counterfactual
    axes.text(left, y + 0.41, title, size=size, weight="bold", ha="right", va="bottom")
    axes.text(left, y + 0.45, meaning, size=9, color="0.25", ha="right", va="top")
    if name == "raw":
        return
    low, high = ("against", "for") if name in SIGNED else ("0", "its max")
    ramp = np.linspace(1, -1 if name in SIGNED else 0, 80)[:, None].repeat(7, 1)
    draw_panel(axes, style.colorize(ramp, name in SIGNED), (right, y, right + 0.07, y + SIDE))
    axes.text(right + 0.12, y, high, size=8.5, va="top")
    axes.text(right + 0.12, y + SIDE, low, size=8.5, va="bottom")
