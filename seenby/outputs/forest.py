"""The plot of a trial: what the maps gain over each control, with its interval, on both fills."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Gain = Mapping[str, tuple[float, float, float]]  # of each fill: the mean and its bounds
WIDTH, ROW = 3.15, 0.17  # inches: it is made to be pasted 8 cm wide
COLORS, MARKERS = ("#1f5fa8", "#c8452d"), ("o", "s")


def draw_forest(title: str, counts: str, groups: Mapping[str, Mapping[str, Gain]]) -> Figure:
    """A row for each gain, in groups under the words that they have in common."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 7}):
        words = textwrap.fill(title, 48)
        rows = sum(1 + len(gains) for gains in groups.values() if gains)
        height = ROW * rows + 0.9 + 0.12 * f"{words}{counts}".count("\n")
        figure = Figure((WIDTH, height), dpi=300, layout="constrained")
        axes = figure.add_subplot()
        y = 0
        for head, gains in groups.items():
            for k, (label, gain) in enumerate([(head, {}), *gains.items()] if gains else []):
                draw_row(axes, y, short(label), gain, is_head=k == 0)
                y += 1
        axes.axvline(0, color="0.4", lw=0.7, zorder=0)
        axes.set(ylim=(y - 0.4, -0.6), yticks=[], xlabel="gain in correlation, 95 % intervals")
        axes.spines[["top", "right", "left"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, handletextpad=0.1,
                      borderpad=0)
        figure.suptitle(f"{words}\n{counts}", fontsize=8)
    return figure


def draw_row(axes: Axes, y: int, label: str, gain: Gain, is_head: bool) -> None:
    """Its label before the axis, its intervals one above the other."""
    axes.text(-0.02, y, label, transform=axes.get_yaxis_transform(), ha="right", va="center",
              weight="bold" if is_head else "normal", parse_math=False)
    is_first = not axes.get_legend_handles_labels()[1]
    for k, (fill, (mean, low, high)) in enumerate(gain.items()):
        at = y + (k - 0.5) * 0.34
        axes.plot([low, high], [at, at], color=COLORS[k], lw=1)
        axes.plot(mean, at, MARKERS[k], color=COLORS[k], ms=3,
                  label=f"covered by {fill}" if is_first else None)


def short(label: str) -> str:
    """A layer may have a long name, whose end says most."""
    return label if len(label) <= 24 else f"{label[:8]}...{label[-13:]}"
