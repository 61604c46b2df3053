#!/usr/bin/env python3
"""What evidence.py found, for print: the plots in report/ and the table in docs/evidence.md.

    python benchmarks/evidence_plots.py       anew from report/evidence.json
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from confusion import WRONG
from subjects import OTHERS, SHIPPED

from seenby.scores import COVERINGS, OWN
from seenby.verdict import weaker

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "report" / "evidence.json"
PAGE = ROOT / "docs" / "evidence.md"
TABLE = re.compile(r"(?s)<!-- from report/evidence.json -->.*?<!-- end -->")
VERDICTS = re.compile(r"(?s)<!-- from report/evidence.json: trust -->.*?<!-- end -->")
Tree = dict[str, Any]

BLUE, RED, GREY = "#1f5fa8", "#c8452d", "#8a8a8a"
PADS = {0: "pad 0, the libraries'", 1: "pad 1, the courses'", 3: "pad 3, ours"}
LINES = {"gradcam": ("Grad-CAM", RED, "-"), "gradcam++": ("Grad-CAM++", RED, "--"),
         "xgradcam": ("XGrad-CAM", RED, ":"), "guided": ("guided backprop", BLUE, "-"),
         "guided-gradcam": ("Guided Grad-CAM", BLUE, "--")}  # fmt: skip


def draw_centres(found: Tree, axes: Axes) -> None:
    """Eight cells, from where each looks to where it is drawn."""
    looks = found["displacement"]["looks at"]
    for row, (pad, words) in enumerate(PADS.items()):
        drawn, y = found["displacement"][f"pad {pad}"], 2.0 - row
        for start, end in zip(looks, drawn["drawn at"], strict=True):
            axes.plot([start, end], [y + 0.34, y], color=GREY, lw=0.8)
        axes.plot(looks, [y + 0.34] * 8, "o", color=BLUE, ms=3.5)
        axes.plot(drawn["drawn at"], [y] * 8, "s", color=RED, ms=3.5)
        axes.text(-0.3, y - 0.32, f"{words}: up to {drawn['worst']:g} pixels off", fontsize=7)
    axes.set(xlim=(-0.5, 27.5), ylim=(-0.5, 3.05), yticks=[], xlabel="pixel of the picture's 28")
    axes.spines.left.set_visible(False)
    axes.plot([], [], "o", color=BLUE, ms=3.5, label="looks here")
    axes.plot([], [], "s", color=RED, ms=3.5, label="drawn here")
    axes.legend(ncols=2, loc="upper center", frameon=False, borderpad=0)


def draw_pads(found: Tree, axes: Axes) -> None:
    """Agreement with occlusion against pad."""
    for who, colour in ((SHIPPED, BLUE), (OTHERS, RED)):
        pads = found["placement"][who]["pad"]
        x = [float(pad) for pad in pads]
        for name, style in (("own", "-"), ("another's", ":")):
            mean, low, high = np.array([pads[pad][name] for pad in pads]).T
            axes.plot(x, mean, style, color=colour, marker="o", ms=2.5, lw=1.2)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    axes.axvline(3, color=GREY, lw=0.8)
    axes.set(xlabel="pad, in cells (3: the rule)", ylabel="correlation with occlusion")
    axes.plot([], [], color=BLUE, label="shipped network")
    axes.plot([], [], color=RED, label="other seeds")
    axes.plot([], [], ":", color=GREY, label="another picture's map")
    axes.legend(frameon=False, loc="lower right")


def draw_sanity(found: Tree, axes: Axes) -> None:
    """Rank correlation with the map of the trained network, layers random from the top."""
    rows = found["sanity"][OTHERS]
    layers = [layer for layer in rows["gradcam"] if layer != "another picture"]
    x = range(1 + len(layers))
    for name, (label, colour, style) in LINES.items():
        mean = [1, *(rows[name][layer][0] for layer in layers)]
        axes.plot(x, mean, style, color=colour, marker="o", ms=2.5, lw=1.2, label=label)
    for name in ("gradcam", "guided"):
        label, colour, _ = LINES[name]
        control = rows[name]["another picture"][0]
        axes.axhline(control, color=colour, lw=5, alpha=0.2)
        axes.text(-0.15, control - 0.04, f"{label}: another picture's", va="top", fontsize=6)
    axes.set(xlabel="random from the top down to", ylabel="rank correlation", ylim=(-0.5, 1.05))
    axes.set_xticks(x, ["none", *layers])
    axes.set_yticks([0, 0.5, 1])
    axes.legend(frameon=False, loc="lower center", fontsize=6, ncols=2, handlelength=3.5)


def draw_controls(found: Tree, axes: Axes) -> None:
    """What is left of a Grad-CAM's scores when a control's is taken away."""
    rows = found["faithfulness"][OTHERS]["gradcam"]
    measures = ("deletion", "insertion", "energy", "pointing")
    shades = {"value": "#cfcfcf", "minus all ones": BLUE, "minus another's": RED}
    for m, measure in enumerate(measures):
        for p, pad in enumerate(PADS):
            for k, (name, colour) in enumerate(shades.items()):
                mean, low, high = rows[f"pad {pad}"][measure][name]
                x = m * 4 + p + (k - 1) * 0.26
                axes.bar(x, mean, 0.26, color=colour, label=None if m or p else name)
                axes.plot([x, x], [low, high], color="black", lw=0.6)
    axes.axhline(0, color="black", lw=0.6)
    axes.set_xticks([4 * m + p for m in range(4) for p in range(3)], ["0", "1", "3"] * 4)
    for m, measure in enumerate(measures):
        axes.text(4 * m + 1, 1.0, measure, ha="center", fontsize=7)
    axes.set(xlabel="pad, in cells", ylabel="score (1 is best)", ylim=(-0.2, 1.2))
    axes.set_yticks([0, 0.5, 1])
    axes.legend(frameon=False, loc="upper center", ncols=3, fontsize=6, borderaxespad=0)


PLOTS = {"centres": draw_centres, "pads": draw_pads, "sanity": draw_sanity,
         "controls": draw_controls}  # fmt: skip


def draw(found: Tree, folder: Path) -> None:
    """Each to be printed 8 cm wide."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    for name, plot in PLOTS.items():
        with rc_context({"font.size": 7, "axes.spines.top": False, "axes.spines.right": False}):
            figure = Figure((3.15, 2.2), dpi=300, layout="constrained")
            plot(found, figure.add_subplot())
            figure.savefig(folder / f"evidence_{name}.png")


def table(found: Tree) -> str:
    """Grad-CAM of the seeds that nobody chose: its scores by pad, and at 3 less its controls'."""
    agreement = found["placement"][OTHERS]["pad"]
    scores = found["faithfulness"][OTHERS]["gradcam"]
    heads = [*(f"pad {pad}" for pad in PADS), "3 less all ones", "3 less another's"]
    lines = ["| | " + " | ".join(heads) + " |", "|---" + "|---:" * len(heads) + "|"]

    def line(name: str, values: list[list[float]], less: list[list[float]]) -> None:
        words = [f"{mean:.2f}" for mean, _, _ in values] + [""] * (2 - len(less))
        words += [f"{mean:+.2f} ({low:+.2f} to {high:+.2f})" for mean, low, high in less]
        lines.append(f"| {name} | " + " | ".join(words) + " |")

    own = [agreement[str(pad)]["own"] for pad in PADS]
    line("correlation with occlusion", own, [agreement["3"]["difference"]])
    for measure in ("deletion", "insertion", "energy", "pointing"):
        at = [scores[f"pad {pad}"][measure] for pad in PADS]
        controls = [at[-1]["minus all ones"], at[-1]["minus another's"]]
        line(measure, [each["value"] for each in at], controls)
    return "\n".join(["<!-- from report/evidence.json -->", *lines, "<!-- end -->"])


def verdicts(found: Tree) -> str:
    """What --trust says of each network's own maps, and how often it accepts wrong ones."""
    heads = ["network", "pictures", "verdict", "of 40", "wrong maps accepted", "score", "reach",
             "less a box", "less the edges"]  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|---|---:|---|" + "---:|" * 6]
    for name, each in found["trust"].items():
        of = each["verdicts"]["default"]
        forty = of["40"].get("points", 0), sum(of["40"].values())
        wrong = accepted(each, WRONG)
        scores = (f"{weaker(each['scores'][maps])[0]:.2f}" for maps in (OWN, COVERINGS))
        gains = (signed(weaker(each["gains"][control])) for control in ("box", "edges"))
        cells = [name, str(each["pictures"]), *of[str(each["pictures"])],
                 "{} in {}".format(*forty), "{} in {}".format(*wrong), *scores, *gains]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(["<!-- from report/evidence.json: trust -->", *lines, "<!-- end -->"])


def accepted(network: Tree, situations: Sequence[str]) -> tuple[int, int]:
    """How many of the judgements of some maps accepted them, and how many there were."""
    counts = [of for name in situations for of in network["verdicts"][name].values()]
    return sum(of.get("points", 0) for of in counts), sum(sum(of.values()) for of in counts)


def signed(interval: Sequence[float]) -> str:
    mean, low, high = interval
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


def main() -> int:
    found = json.loads(KEPT.read_text())
    draw(found, KEPT.parent)
    page = TABLE.sub(table(found), PAGE.read_text())
    PAGE.write_text(VERDICTS.sub(verdicts(found), page))
    return 0


if __name__ == "__main__":
    sys.exit(main())
