"""The figure: a column for each picture, a row for each panel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from seenby.core.explanation import Explanation
from seenby.core.methods import CAMS
from seenby.inputs.pictures import Box, Picture
from seenby.outputs.overlay import Style, overlay
from seenby.outputs.table import NO_EVIDENCE, Row, table_row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


PANELS = {  # title and meaning; {} is the method's or the gradient's own name
    "raw": ("Raw", "what the\nnetwork sees"),
    "gradcam": ("{cam}", "where the\nevidence {lies}"),
    "guided": ("{guided}", "pixels for it\nand against"),
    "guided-gradcam": ("{guided_cam}", "pixels within\nthe evidence"),
    "overlay": ("Overlay", "the evidence on\nthe picture"),
}


def panel(name: str, picture: Picture, explanation: Explanation, style: Style) -> np.ndarray:
    """A map (H, W), or a picture (H, W, 3) bytes."""
    assert picture.image is not None
    if name == "raw":
        return np.asarray(picture.image.convert("RGB"))
    if name == "overlay":
        return np.asarray(overlay(picture.image, explanation, style))
    if name == "gradcam":
        return explanation.L_c[0].numpy()
    signed = explanation.R if name == "guided" else explanation.guided_cam
    assert signed is not None
    return signed[0].sum(0).numpy()  # the channels of a colour together


def titles(explanations: Sequence[Explanation]) -> dict[str, str]:
    """What the panels are called: after the method, and never guided where nothing guides."""
    methods = dict.fromkeys(explanation.method for explanation in explanations)
    guided = "Guided" if not explanations[0].unguided else "Partly guided"
    guided = guided if explanations[0].relus else "Plain"
    return {
        "cam": CAMS[next(iter(methods))] if len(methods) == 1 else "CAM",
        "lies": "against it lies" if [*methods] == ["counterfactual"] else "lies",
        "guided": f"{guided}\n{'Backprop' if guided != 'Plain' else 'gradient'}",
        "guided_cam": f"{guided}\n{'Grad-CAM' if guided != 'Plain' else 'grad. x CAM'}",
    }


def draw_grid(pictures: Sequence[Picture], explanations: Sequence[Explanation],
              classes: Sequence[str], style: Style = Style()) -> Figure:
    """A column a picture, a row a panel; made to be pasted at 16 cm. Lengths are in inches."""
    from matplotlib.figure import Figure

    rows = [table_row(p, e, classes) for p, e in zip(pictures, explanations, strict=True)]
    heads = ["image", "predicted", "probability"]
    heads += ["label"] if any(row["label"] for row in rows) else []
    heads += ["target"] if any(row["target"] != row["predicted"] for row in rows) else []
    heads += ["method"] if len({row["method"] for row in rows}) > 1 else []
    left, top, cell, right = 1.22, 0.06 + 0.19 * len(heads), 0.86, 0.62
    width, height = left + cell * len(rows) + right, top + cell * len(style.panels)
    spare = max(0, 1.4 * height - width) / 2  # of few pictures too the sheet is landscape
    left, width = left + spare, width + 2 * spare
    figure = Figure((width, height), dpi=300)
    # One axes holds all the small images: an axes for each would take most of the run's time.
    axes = figure.add_axes((0, 0, 1, 1))
    for i, row in enumerate(rows):
        x = left + cell * i
        for k, head in enumerate(heads):
            draw_head(axes, x + 0.4, 0.12 + 0.19 * k, head, row)
        for k, name in enumerate(style.panels):
            values = panel(name, pictures[i], explanations[i], style)
            y = top + cell * k
            draw_panel(axes, name, values, style, (x, y, x + 0.8, y + 0.8))
            draw_words(axes, name, explanations[i], x + 0.4, y + 0.4)
    for k, head in enumerate(heads):
        name = {"image": "picture", "target": "maps for"}.get(head, head)
        axes.text(left - 0.1, 0.12 + 0.19 * k, name, size=9, color="0.25", ha="right", va="center")
    called = titles(explanations)
    for k, name in enumerate(style.panels):
        names = [words.format(**called) for words in PANELS[name]]
        behind = left + cell * len(rows) + 0.02
        draw_margins(axes, name, names, style, (left - 0.1, behind, top + cell * k))
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    axes.set_axis_off()
    return figure


def draw_head(axes: Axes, x: float, y: float, head: str, row: Row) -> None:
    """One line of what stands over a column; a wrong prediction stands out."""
    style: dict[str, Any] = {"size": 9, "color": "0.25"}
    words = row[head]
    if len(words) > 12 and head != "method":
        words = f"{words[:4]}...{words[-5:]}"
    if head == "method":
        words, style["size"] = CAMS[words].replace("-\n", ""), 8
    elif head == "probability":
        words = f"{float(words):.1%}" if float(words) < 0.9995 else ">99.9%"
    elif head == "predicted":
        style = {"size": 13 if len(words) < 4 else 9, "weight": "bold"}
        if row["label"] not in ("", row[head]):  # crossed and framed: clear without colour too
            frame = {"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "crimson"}
            words, style = f"{words} \N{BALLOT X}", style | {"color": "crimson", "bbox": frame}
    axes.text(x, y, words, ha="center", va="center", parse_math=False, **style)


def draw_panel(axes: Axes, name: str, values: np.ndarray, style: Style, corners: Box) -> None:
    """A map or a picture, in its own proportions, in the middle of a box."""
    left, top, right, bottom = corners
    (h, w), signed = values.shape[:2], name.startswith("guided")
    shown = values if values.ndim == 3 else style.paint(values, signed)
    scale = min((right - left) / w, (bottom - top) / h)
    x, y = (left + right - w * scale) / 2, (top + bottom - h * scale) / 2
    extent = (x, x + w * scale, y + h * scale, y)
    axes.imshow(shown, extent=extent, interpolation="nearest")


def draw_words(axes: Axes, name: str, explanation: Explanation, x: float, y: float) -> None:
    """No panel is blank without a word."""
    words, small = "", min(explanation.L_c.shape[1:]) < 100  # a large overlay has its own words
    empties = ("gradcam", "guided-gradcam", "overlay") if small else ("gradcam", "guided-gradcam")
    if name in empties and not explanation.cells.any():
        words = NO_EVIDENCE.replace(" ", "\n")
    elif name == "guided" and explanation.R is not None and not explanation.R.any():
        words = "no\ngradient"
    if words:
        frame = {"boxstyle": "square,pad=0.2", "facecolor": "white", "edgecolor": "none"}
        axes.text(x, y, words, size=9, ha="center", va="center", bbox=frame)


def draw_margins(axes: Axes, name: str, names: list[str], style: Style,
                 where: tuple[float, float, float]) -> None:
    """A row's title and meaning before it, the scale of its colours behind it."""
    left, right, y = where
    axes.text(left, y + 0.41, names[0], size=11, weight="bold", ha="right", va="bottom")
    axes.text(left, y + 0.45, names[1], size=9, color="0.25", ha="right", va="top")
    if name == "raw":
        return
    signed = name.startswith("guided")
    low, high = ("against", "for") if signed else ("0", "max")
    ramp = np.linspace(1, -1 if signed else 0, 80)[:, None].repeat(7, 1)
    draw_panel(axes, name, ramp, style, (right, y, right + 0.07, y + 0.8))
    axes.text(right + 0.12, y, high, size=8, va="top")
    axes.text(right + 0.12, y + 0.8, low, size=8, va="bottom")
