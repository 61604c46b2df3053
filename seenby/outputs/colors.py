"""A map in colours, by itself and over its picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from seenby.core.explanation import Explanation
from seenby.errors import InputError, closest_names
from seenby.inputs.pictures import Box
from seenby.outputs.table import evidence_note

DEFAULT_PANELS = ("raw", "cam", "guided", "guided-cam")


@dataclass(frozen=True)
class Style:
    """What a figure shows, and in which colours."""

    panels: Sequence[str] = DEFAULT_PANELS
    colormap: str = "jet"
    opacity: float = 0.5

    def __post_init__(self) -> None:
        palette(self.colormap)
        if not 0 <= self.opacity <= 1:
            raise InputError(f"opacity {self.opacity} was given; give a number from 0 to 1")

    def colorize(self, values: np.ndarray, signed: bool = False) -> Image.Image:
        """(H, W) in colours: a map from 0 to its maximum, a signed one around 0.

        A few pixels of a gradient are far larger than the rest: its top two in a thousand saturate.
        """
        size = np.abs(values)
        top = np.quantile(size, 0.998, method="higher") if signed else size.max()
        values = values / (top or size.max() or 1)
        values = (values + 1) / 2 if signed else values
        image = Image.fromarray((values * 256).clip(0, 255).astype(np.uint8))
        image.putpalette(palette("RdBu_r" if signed else self.colormap))
        return image.convert("RGB")  # a third of the time that NumPy takes to look colours up


@cache
def palette(colormap: str) -> bytes:
    """256 colours, from 0 to 1; kept, as matplotlib makes its table anew for each image."""
    from matplotlib import colormaps

    if colormap not in colormaps:
        closest = closest_names(colormap, colormaps)
        raise InputError(f"{colormap!r} is unknown to matplotlib; give {closest}")
    colors: np.ndarray = colormaps[colormap](np.arange(256), bytes=True)[:, :3]
    return colors.tobytes()


def array_of(maps: Tensor) -> np.ndarray:
    """Of a batch of one: its map, as numbers that can be drawn; NaN and infinity are zero."""
    if len(maps) != 1:
        raise InputError(f"an explanation of {len(maps)} pictures was given; iterate over it, each "
                         "picture has one of its own")
    array: np.ndarray = np.nan_to_num(maps.float().numpy(force=True)[0], nan=0, posinf=0, neginf=0)
    return array


def overlay(image: Image.Image, explanation: Explanation, style: Style | None = None,
            box: Box | None = None) -> Image.Image:
    """The heat map over a picture of any size; box is the part of it that the network saw."""
    style, heatmap = style or Style(), array_of(explanation.heatmap)
    (W, H), (h, w) = image.size, heatmap.shape
    left, top, right, bottom = box or (0, 0, W, H)
    x, y = w / (right - left), h / (bottom - top)
    x1, y1 = min(W - 1, max(0, round(left))), min(H - 1, max(0, round(top)))
    x2, y2 = min(W, max(x1 + 1, round(right))), min(H, max(y1 + 1, round(bottom)))
    seen = (x1, y1, x2, y2)  # whole pixels, one at least
    # The part of the map that lies on the picture; an edge may be a rounding error outside of it.
    within = (max(0, (x1 - left) * x), max(0, (y1 - top) * y),
              min(w, (x2 - left) * x), min(h, (y2 - top) * y))
    picture = image.convert("RGB")
    under = picture.crop(seen) if box else picture
    # Enlarged first, and coloured then.
    large = Image.fromarray(heatmap).resize(under.size, Image.Resampling.BILINEAR, within)
    heat = style.colorize(np.asarray(large))
    mixed = Image.blend(under, heat, style.opacity)
    words = evidence_note(explanation)
    if words and min(mixed.size) >= 100:  # on less it could not be read
        write_across(mixed, words)
    if not box:
        return mixed
    picture.paste(mixed, (x1, y1))
    return picture


def write_across(image: Image.Image, words: str) -> None:
    font = ImageFont.load_default(min(image.size) / 12)
    place = image.width / 2, image.height / 10
    ImageDraw.Draw(image).text(place, words, "white", font, "mm", stroke_width=2,
                               stroke_fill="black")


def enlarged(image: Image.Image) -> Image.Image:
    """By a whole number, until it is 224 pixels high."""
    return ImageOps.scale(image, math.ceil(224 / image.height), Image.Resampling.NEAREST)
