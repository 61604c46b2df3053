#!/usr/bin/env python3
"""What does the default run cost beyond its imports? Wall time and peak memory, whole processes.

    python benchmarks/startup.py              runs both in turn and prints medians and ratios
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = "import torch, numpy, PIL.Image, matplotlib.figure, matplotlib.backends.backend_agg"
LIMIT = 1.3  # times the imports, in time and in memory


def measured(arguments: list[str]) -> tuple[float, float]:
    """Seconds and peak MiB of one Python process."""
    start = time.perf_counter()
    child = os.posix_spawn(sys.executable, [sys.executable, *arguments], os.environ)
    _, status, usage = os.wait4(child, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"python {' '.join(arguments)} failed")
    return seconds, usage.ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="(default: %(default)s)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as out:
        run = [str(ROOT / "SID_a4.py"), "--quiet", "--out", out]
        measured(["-c", IMPORTS]), measured(run)  # warms the disk's cache
        pairs = [(measured(["-c", IMPORTS]), measured(run)) for _ in range(rounds)]
    ratios = {}
    for which, unit in enumerate(("s", "MiB")):
        imports, script = zip(*((a[which], b[which]) for a, b in pairs), strict=True)
        ratio = statistics.median(b / a for a, b in zip(imports, script, strict=True))
        ratios[unit] = ratio
        print(
            f"imports {statistics.median(imports):7.2f} {unit:3}   default run "
            f"{statistics.median(script):7.2f} {unit:3}   ratio {ratio:.2f} (limit {LIMIT})"
        )
    return int(max(ratios.values()) > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
