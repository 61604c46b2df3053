"""A map in colours, and over its picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from seenby.core.explanation import Explanation
from seenby.inputs.pictures import Box
from seenby.outputs.table import NO_EVIDENCE


@dataclass(frozen=True)
class Style:
    """What a figure shows, and in which colours."""

    panels: Sequence[str] = ("raw", "gradcam", "guided", "guided-gradcam")
    colormap: str = "jet"
    opacity: float = 0.5

    def paint(self, values: np.ndarray, signed: bool = False) -> np.ndarray:
        """(H, W) in colours, (H, W, 3) bytes: a map from 0 to its maximum, a signed one around 0.

        A few pixels of a gradient are far larger than the rest: its top two in a thousand saturate.
        """
        size = np.abs(values)
        top = np.quantile(size, 0.998, method="higher") if signed else size.max()
        values = values / (top or size.max() or 1)
        values = (values + 1) / 2 if signed else values
        steps = (values * 256).clip(0, 255).astype(np.uint8)
        return colours("RdBu_r" if signed else self.colormap).take(steps, axis=0)


@cache
def colours(colormap: str) -> np.ndarray:
    """(256, 3) bytes, from 0 to 1: looked up here, as matplotlib makes its table for each image."""
    from matplotlib import colormaps

    table: np.ndarray = colormaps[colormap](np.arange(256), bytes=True)[:, :3]
    return np.ascontiguousarray(table)


def overlay(image: Image.Image, explanation: Explanation, style: Style,
            box: Box | None = None) -> Image.Image:
    """The map over a picture of any size; box is the part of it that the network saw."""
    (W, H), (h, w) = image.size, explanation.L_c.shape[1:]
    left, top, right, bottom = box or (0, 0, W, H)
    x, y = w / (right - left), h / (bottom - top)
    x1, y1 = min(W - 1, max(0, round(left))), min(H - 1, max(0, round(top)))
    x2, y2 = min(W, max(x1 + 1, round(right))), min(H, max(y1 + 1, round(bottom)))
    seen = (x1, y1, x2, y2)  # whole pixels, one at least
    # The part of the map that lies on the picture; an edge may be a rounding error outside of it.
    within = (max(0, (x1 - left) * x), max(0, (y1 - top) * y),
              min(w, (x2 - left) * x), min(h, (y2 - top) * y))
    picture = image.convert("RGB")
    under = picture.crop(seen)
    L_c = Image.fromarray(explanation.L_c[0].numpy())  # enlarged first, and coloured then
    heat = style.paint(np.asarray(L_c.resize(under.size, Image.Resampling.BILINEAR, within)))
    mixed = Image.blend(under, Image.fromarray(heat), style.opacity)
    if not explanation.cells.any() and min(mixed.size) >= 100:  # on less it could not be read
        font = ImageFont.load_default(min(mixed.size) / 12)
        middle = mixed.width / 2, mixed.height / 10
        ImageDraw.Draw(mixed).text(middle, NO_EVIDENCE, "white", font, "mm",
                                   stroke_width=2, stroke_fill="black")
    picture.paste(mixed, (x1, y1))
    return picture


def enlarged(image: Image.Image) -> Image.Image:
    """By a whole number, until it is 224 pixels high."""
    return ImageOps.scale(image, math.ceil(224 / image.height), Image.Resampling.NEAREST)
