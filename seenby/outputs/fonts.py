"""The letters over a picture: fonts that have them, and sizes at which they fit."""

from __future__ import annotations

from functools import cache

WIDEST, SMALLEST = 57, 6  # points: a line over a column, and its letters


def fitted(words: str, size: float, weight: str) -> tuple[str, float]:
    """Words and their size in points, to fit over a column: smaller letters, and then fewer."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=fonts_for(words)[0], weight=weight, size=size)
    ratio = WIDEST / max(1, text_to_path.get_text_width_height_descent(words, font, False)[0])
    if ratio * size >= SMALLEST:
        return words, min(size, ratio * size)
    ends = int(len(words) * ratio * size / SMALLEST / 2) - 1  # without the dots in the middle
    return f"{words[:ends]}...{words[-ends:]}", SMALLEST


@cache
def fonts_for(words: str) -> tuple[list[str], set[str]]:
    """Families, the usual one first, then installed ones that have what it lacks, as the letters of
    many languages; and the letters that none of them has."""
    from matplotlib import font_manager, rcParams

    families = list(rcParams["font.family"])
    lacking = {letter for letter in words if letter.isprintable()}
    lacking -= letters_of(font_manager.findfont(font_manager.FontProperties()))
    for font in font_manager.fontManager.ttflist if lacking else ():
        if lacking & letters_of(font.fname):
            families.append(font.name)
            lacking -= letters_of(font.fname)
    return families, lacking


@cache
def letters_of(path: str) -> set[str]:
    """Those that a font has; none if it was uninstalled since Matplotlib looked for fonts."""
    from matplotlib.font_manager import get_font

    try:
        return {*map(chr, get_font(path).get_charmap())}
    except (OSError, RuntimeError):
        return set()


def letters_note(words: str) -> str:
    """Which letters are not drawn, by their numbers, as they can't be."""
    numbers = [f"U+{ord(letter):04X}" for letter in sorted(fonts_for(words)[1])]
    if not numbers:
        return ""
    more = f" and {len(numbers) - 3} others" if len(numbers) > 3 else ""
    return f"no font here has {', '.join(numbers[:3])}{more}: install one that does"
