#!/usr/bin/env python3
"""How far does it go? Whole runs over more and more pictures: seconds, peak memory, and the slope.

    python benchmarks/scale.py            into benchmarks/scale.json (some minutes)
    python benchmarks/scale.py --quick    smaller, printed alone

The pictures are the shipped digits with noise, as PNG files in one folder. A run writes nothing but
the table and the figure ("maps"), or two pictures for each as well ("overlays"); it is one process,
or one for each core, started by torchrun.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import SID_a4  # noqa: E402

KEPT = ROOT / "benchmarks" / "scale.json"
CORES = os.cpu_count() or 1
LAUNCHERS = {"one process": [sys.executable], f"{CORES} processes": [
    sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={CORES}",
]}  # fmt: skip


def noisy_digits(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    digits = [p.image for p in SID_a4.read_pictures([ROOT / "data"], SID_a4.load_network())]
    for i in range(count):
        digit = np.asarray(digits[i % len(digits)], np.float64)
        pixels = (digit + rng.normal(0, 20, digit.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:06}.png")


def one_run(launcher: list[str], pictures: Path, count: int, overlays: str) -> tuple[float, float]:
    """Seconds and peak MiB of a whole run; of several processes, of the largest."""
    with tempfile.TemporaryDirectory() as out:
        words = [*launcher, str(ROOT / "SID_a4.py"), str(pictures), "--limit", str(count)]
        words += ["--overlays", overlays, "--out", out, "--quiet"]
        start = time.perf_counter()
        _, status, usage = os.wait4(os.posix_spawn(words[0], words, os.environ), 0)
        seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{' '.join(words)} failed")
    return seconds, usage.ru_maxrss / 1024


def slope(counts: list[int], seconds: list[float]) -> dict[str, float]:
    """Of log seconds against log pictures, from a thousand on: before, workers start; and R^2."""
    many = [i for i, n in enumerate(counts) if n >= min(1000, counts[-2])]
    x, y = np.log(np.take(counts, many)), np.log(np.take(seconds, many))
    fit = np.polyfit(x, y, 1)
    left = y - np.polyval(fit, x)
    R2 = 1 - (left**2).sum() / ((y - y.mean()) ** 2).sum()
    return {"slope": round(float(fit[0]), 3), "R2": round(float(R2), 4)}


def measured(
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
    feed: dict[str, Any] = {"size": (224, 224), "cover": (256, 256)}
    network = replace(SID_a4.load_network(), **feed, mean=(0.5,) * 3, std=(0.5,) * 3)
    start = time.perf_counter()
    for _ in SID_a4.read_pictures([path] * count, network):
        pass
    return count / (time.perf_counter() - start)


def merging(folder: Path, blocks: int = 3000) -> float:
    """Rows per second that the parts of a run of 16 pictures a block are merged with."""
    options = argparse.Namespace(out=folder, parts=folder, grid=8, pick="all", save_maps=None)
    row = ["7", "7", "0.999876", "7", "conv2", "gradcam", ""]
    for number in range(blocks):
        lines = [",".join([f"{16 * number + i:08}", *row]) for i in range(16)]
        (folder / f"{number}.csv").write_text("\n".join(lines) + "\n")
    start = time.perf_counter()
    SID_a4.merged(options, 16 * blocks)
    return 16 * blocks / (time.perf_counter() - start)


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
                found.append(measured(who, overlays, counts, Path(name), rounds))
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
