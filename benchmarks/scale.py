#!/usr/bin/env python3
"""How far does it go? Whole runs over more and more pictures: seconds, peak memory, and the slope.

    python benchmarks/scale.py            into benchmarks/scale.json (some minutes)
    python benchmarks/scale.py --quick    smaller, printed alone

The pictures are the example digits with noise, as PNG files in one folder; the course network
explains them. A run writes nothing but the table and the figure, or two pictures for each as well
("overlays": all); it is one process, or one for each core, started by torchrun.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from startup import COURSE, example_digits, measured

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import seenby  # noqa: E402  (which imports torch when it is first used: see startup.py)

KEPT = ROOT / "benchmarks" / "scale.json"
OVERLAYS = {"none": ["--no-overlays", "--no-raw"], "all": []}
CORES = os.cpu_count() or 1
LAUNCHERS = {"one process": [sys.executable], f"{CORES} processes": [
    sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={CORES}",
]}  # fmt: skip


def noisy_digits(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    digits = example_digits()
    for i in range(count):
        digit = np.asarray(digits[i % len(digits)], np.float64)
        pixels = (digit + rng.normal(0, 20, digit.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:06}.png")


def one_run(launcher: list[str], pictures: Path, count: int, overlays: str) -> tuple[float, float]:
    """Seconds and peak MiB of a whole run; of several processes, of the largest."""
    with tempfile.TemporaryDirectory() as out:
        return measured([*launcher, "-m", "seenby", str(pictures), *COURSE, "--limit", str(count),
                         *OVERLAYS[overlays], "--out", out, "--quiet"])  # fmt: skip


def slope(counts: list[int], seconds: list[float]) -> dict[str, float]:
    """Of log seconds against log pictures, from a thousand on: before, workers start; and R^2."""
    many = [i for i, n in enumerate(counts) if n >= min(1000, counts[-2])]
    x, y = np.log(np.take(counts, many)), np.log(np.take(seconds, many))
    fit = np.polyfit(x, y, 1)
    left = y - np.polyval(fit, x)
    R2 = 1 - (left**2).sum() / ((y - y.mean()) ** 2).sum()
    return {"slope": round(float(fit[0]), 3), "R2": round(float(R2), 4)}


def series(
    who: str, overlays: str, counts: list[int], folder: Path, rounds: int
) -> dict[str, Any]:
    # Round by round: where a machine's speed drifts, the start that is subtracted drifts with it.
    every = [{n: one_run(LAUNCHERS[who], folder, n, overlays) for n in (1, *counts)}
             for _ in range(rounds)]  # fmt: skip
    seconds = {n: statistics.median(each[n][0] for each in every) for n in (1, *counts)}
    memory = {n: statistics.median(each[n][1] for each in every) for n in (1, *counts)}
    start = seconds.pop(1)  # imports, weights and figure, however many pictures
    after = [max(seconds[n] - start, 1e-3) for n in counts]
    return {
        "who": who, "overlays": overlays, "start": round(start, 2), "counts": counts,
        "seconds": [round(seconds[n], 2) for n in counts],
        "MiB": [round(memory[n]) for n in counts],
        "pictures per second": round(counts[-1] / after[-1]),
        **slope(counts, after),
    }  # fmt: skip


def decoding(folder: Path, count: int = 100) -> float:
    """Pictures per second and core that are read and made 224 x 224: JPEG files of 500 x 375."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (38, 50, 3), np.uint8))
    photo = small.resize((500, 375), Image.Resampling.BICUBIC)
    photo.save(path := folder / "photo.jpg", quality=90)
    preprocessing = seenby.Preprocessing()
    start = time.perf_counter()
    for _ in seenby.read_pictures([path] * count, preprocessing):
        pass
    return count / (time.perf_counter() - start)


def merging(folder: Path, batches: int = 3000) -> float:
    """Rows per second that the parts of a run of 16 pictures a batch are merged with."""
    from seenby.outputs.store import OutputFolder
    from seenby.outputs.table import EXPLAINED, blank_row

    output = OutputFolder(folder, folder, seenby.Style(), overlays=False, raw=False, panels=False,
                          save_maps=None, uncropped=False, name_targets=False, name_methods=False)
    known = {"predicted": "7", "predicted_probability": "0.999876", "target": "7",
             "target_index": "7", "target_probability": "0.999876", "layer": "conv2",
             "method": "gradcam"}  # fmt: skip
    for number in range(batches):
        pictures = [seenby.Picture(f"{16 * number + i:08}", None, "7") for i in range(16)]
        with output.open_table(folder / f"{number}.csv") as table:
            table.writerows(blank_row(picture, EXPLAINED) | known for picture in pictures)
    start = time.perf_counter()
    output.merge_parts(columns=8, pick="all")
    return 16 * batches / (time.perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    quick, rounds = options.quick, 1 if options.quick else options.rounds
    counts = [50, 100, 200] if quick else [200, 1000, 3000, 10000]
    found = []
    with tempfile.TemporaryDirectory() as name:
        noisy_digits(Path(name), counts[-1])
        for overlays in ("none", "all"):
            for who in LAUNCHERS:
                found.append(series(who, overlays, counts, Path(name), rounds))
                print(json.dumps(found[-1]), flush=True)
        (parts := Path(name, "parts")).mkdir()
        parts_per_second = {"decode": round(decoding(parts)), "merge": round(merging(parts))}
        print(json.dumps(parts_per_second))
    if not quick:
        kept = {"cores": CORES, "runs": found, "per second": parts_per_second}
        KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
