#!/usr/bin/env python3
"""Draw the eight digits in data/example_digits.json: pen strokes of this project's own.

    python tools/draw_digits.py                  writes data/example_digits.json anew, byte for byte
    python tools/draw_digits.py --shaky 400 --out many.json     400 of a hand that shakes

A stroke is a smooth curve through a few points; a digit is one or two of them, slanted a little,
inked with a round pen, and framed as MNIST frames its own: scaled into 20 x 20 pixels with
antialiasing, then moved so that the centre of mass lies in the middle of 28 x 28.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent

Points = list[tuple[float, float]]  # (x, y) on a sheet 100 wide and 140 high, y downwards

STROKES: dict[int, list[Points]] = {
    0: [[(58, 12), (28, 26), (14, 72), (28, 118), (56, 126), (82, 104), (88, 62), (76, 24),
         (56, 11)]],
    1: [[(30, 38), (56, 12)], [(56, 12), (53, 70), (50, 128)]],
    2: [[(18, 40), (28, 18), (54, 10), (78, 26), (76, 54), (50, 88), (16, 124)],
        [(16, 124), (50, 121), (90, 124)]],
    3: [[(20, 24), (46, 10), (74, 22), (72, 48), (44, 64)],
        [(44, 64), (76, 74), (84, 100), (60, 126), (30, 126), (12, 108)]],
    4: [[(52, 10), (36, 46), (12, 86)], [(12, 86), (52, 84), (92, 82)],
        [(72, 44), (69, 86), (64, 130)]],
    5: [[(84, 14), (54, 13), (28, 16)], [(28, 16), (25, 38), (20, 60)],
        [(20, 60), (48, 50), (78, 66), (82, 96), (58, 124), (28, 126), (10, 112)]],
    6: [[(70, 10), (42, 32), (22, 70), (20, 104), (42, 128), (70, 118), (80, 92), (62, 72),
         (36, 78), (21, 98)]],
    7: [[(12, 20), (48, 18), (88, 16)], [(88, 16), (66, 62), (44, 130)]],
}  # fmt: skip
SLANTS = {0: 0.05, 1: 0.12, 2: 0.08, 3: 0.10, 4: 0.06, 5: 0.12, 6: 0.04, 7: 0.02}  # x a y
PENS = {0: 14, 1: 16, 2: 14, 3: 15, 4: 14, 5: 15, 6: 14, 7: 15}  # width of the pen's tip
FINE = 8  # dots a unit of the sheet, so that the edges come out smooth


def smooth(points: np.ndarray, steps: int = 40) -> np.ndarray:
    """A Catmull-Rom curve through the points, (n, 2)."""
    P = np.stack([points[0], *points, points[-1]])
    t = np.linspace(0, 1, steps)[:, None]
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2
               + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(P, P[1:], P[2:], P[3:], strict=False)
    ]  # fmt: skip
    return np.concatenate(pieces)


def inked(digit: int, hand: np.random.Generator | None = None) -> Image.Image:
    """White ink on black, large; a hand shakes, slants and presses as it likes."""
    sheet = Image.new("L", (160 * FINE, 180 * FINE))
    draw = ImageDraw.Draw(sheet)
    shaking, slant, pen = 0.0, SLANTS[digit], float(PENS[digit])
    if hand:
        shaking, slant, pen = hand.uniform(0, 11), hand.uniform(-0.2, 0.4), hand.uniform(7, 20)
    for stroke in STROKES[digit]:
        moved = hand.normal(stroke, shaking) if hand else np.array(stroke, float)
        x, y = smooth(moved).T
        x = x + slant * (140 - y) + 20
        r = pen / 2 * FINE
        for centre_x, centre_y in zip(x * FINE, (y + 20) * FINE, strict=True):
            draw.ellipse((centre_x - r, centre_y - r, centre_x + r, centre_y + r), fill=255)
    return sheet


def framed(sheet: Image.Image) -> np.ndarray:
    """(28, 28) bytes: the ink in 20 x 20, its centre of mass in the middle."""
    ink = sheet.crop(sheet.getbbox())
    scale = 20 / max(ink.size)
    size = [max(1, round(side * scale)) for side in ink.size]
    small = np.asarray(ink.resize((size[0], size[1]), Image.Resampling.BOX), float)
    rows, columns = (np.arange(n) for n in small.shape)
    down = (small.sum(1) @ rows) / small.sum()
    across = (small.sum(0) @ columns) / small.sum()
    top, left = (
        int(np.clip(round(13.5 - m), 0, 28 - n))
        for m, n in zip((down, across), small.shape, strict=True)
    )
    frame = np.zeros((28, 28), np.uint8)
    frame[top : top + small.shape[0], left : left + small.shape[1]] = small.round()
    return frame


def as_json(digits: Iterable[tuple[int, np.ndarray]]) -> str:
    """A list of {"image": 28 rows of 28 numbers, "label": digit}, a row of pixels a line."""
    items = []
    for label, pixels in digits:
        rows = ",\n".join(
            "    " + json.dumps(row, separators=(",", ":")) for row in pixels.tolist()
        )
        items.append(f'  {{"label": {label}, "image": [\n{rows}\n  ]}}')
    return "[\n" + ",\n".join(items) + "\n]\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "data" / "example_digits.json",
        help="(default: %(default)s)",
    )
    parser.add_argument("--shaky", type=int, metavar="N", help="N digits, no two alike")
    options = parser.parse_args(argv)
    hand = np.random.default_rng(0) if options.shaky else None
    labels = [n % len(STROKES) for n in range(options.shaky or len(STROKES))]
    options.out.write_text(as_json((digit, framed(inked(digit, hand))) for digit in labels))
    print(f"{len(labels)} digits are written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
