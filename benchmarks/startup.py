#!/usr/bin/env python3
"""What do both doors cost beyond their imports? Wall time and peak memory, whole processes.

    python benchmarks/startup.py              runs all in turn and prints medians and ratios
    python benchmarks/startup.py --quick      once each

The script's default run is held to a limit, in times of what the import of its libraries takes.
A run of seenby over one picture with the same network is reported beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

# Nothing large: Linux counts a child's peak from the memory of the process that starts it.
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = "import torch, numpy, PIL.Image, matplotlib.figure, matplotlib.backends.backend_agg"
COURSE = ["--model", f"{ROOT / 'SID_a4.py'}:CourseCNN", "--weights", str(ROOT / "mnist_model.pth"),
          "--size", "28", "--mean", "0.1307", "--std", "0.3081"]  # fmt: skip
LIMIT = 1.3  # times the imports, in time and in memory


def example_digits() -> list[Image.Image]:
    """Those of data/, 28 x 28 and grey."""
    items = json.loads((ROOT / "data" / "example_digits.json").read_text())
    pixels = (bytes(itertools.chain(*item["image"])) for item in items)
    return [Image.frombytes("L", (28, 28), each) for each in pixels]


def measured(words: list[str]) -> tuple[float, float]:
    """Seconds and peak MiB of a command."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    _, status, usage = os.wait4(os.posix_spawn(words[0], words, environment), 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{' '.join(words)} failed")
    return seconds, usage.ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        example_digits()[0].save(picture := f"{folder}/digit.png")
        written = ["--quiet", "--out", f"{folder}/out"]
        commands = {
            "imports": ["-c", IMPORTS],
            "SID_a4.py, default run": [str(ROOT / "SID_a4.py"), *written],
            "seenby, one picture": ["-m", "seenby", picture, *COURSE, *written],
        }
        words = {who: [sys.executable, *command] for who, command in commands.items()}
        for command in words.values():  # warms the disk's cache
            measured(command)
        rounds = [{who: measured(command) for who, command in words.items()}
                  for _ in range(1 if options.quick else options.rounds)]  # fmt: skip
    return report(rounds)


def report(rounds: list[dict[str, tuple[float, float]]]) -> int:
    """Print medians and ratios within a round; 1 where the script is over its limit."""
    is_over = False
    for who in rounds[0]:
        line = f"{who:<24}"
        for which, unit in enumerate(("s", "MiB")):
            ratio = statistics.median(each[who][which] / each["imports"][which] for each in rounds)
            median = statistics.median(each[who][which] for each in rounds)
            line += f"{median:8.2f} {unit}, {ratio:.2f} times the imports"
            is_over |= who.startswith("SID_a4") and ratio > LIMIT
        print(line + f" (limit {LIMIT})" * who.startswith("SID_a4"))
    return int(is_over)


if __name__ == "__main__":
    sys.exit(main())
