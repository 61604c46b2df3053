"""Words to a run, errors to exit codes."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence

from seenby.errors import Complaint, one_line, reason
from seenby.machine import LOCAL_RANK, SCRIPT
from seenby.options import build_parser
from seenby.pipeline import run


def main(argv: Sequence[str] | None = None) -> int:
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of caches on its first run
    try:
        with warnings.catch_warnings(action="ignore"):  # of glyphs and large pictures
            return run(build_parser().parse(argv))
    except BrokenPipeError:  # nobody reads the account any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    # A full disk, a killed worker, no memory: not even to import what draws.
    except (Complaint, OSError, RuntimeError, MemoryError, ImportError) as error:
        words = str(error)
        if not isinstance(error, Complaint):
            words = f"stopped: {reason(error)}; mend that, then --resume"
        if not LOCAL_RANK or not isinstance(error, Complaint):  # which all ranks would say
            print(f"{SCRIPT}: error: {one_line(words)}", file=sys.stderr)
        return 2
