"""The letters over a picture: sizes at which they fit."""

from __future__ import annotations

WIDEST, SMALLEST = 57, 6  # points: a line over a column, and its letters


def fitted(words: str, size: float, weight: str) -> tuple[str, float]:
    """Words and their size in points, to fit over a column: smaller letters, and then fewer."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(weight=weight, size=size)
    ratio = WIDEST / max(1, text_to_path.get_text_width_height_descent(words, font, False)[0])
    if ratio * size >= SMALLEST:
        return words, min(size, ratio * size)
    ends = int(len(words) * ratio * size / SMALLEST / 2) - 1  # without the dots in the middle
    return f"{words[:ends]}...{words[-ends:]}", SMALLEST
