"""The command: from words to a run, from errors to an exit code."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence

from seenby import gallery
from seenby.errors import InputError, as_input_error, message_of, warn
from seenby.machine import Ranks
from seenby.options import parse_settings
from seenby.pipeline import execute


def main(argv: Sequence[str] | None = None) -> int:
    """0: all is explained. 1: a picture had to be left out. 2: an error, told in one line."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of its caches
    ranks = Ranks.from_environment()
    try:
        with warnings.catch_warnings(action="ignore"):  # of glyphs and large pictures
            settings = parse_settings(argv)
            code = execute(settings, ranks)
            if settings.gallery and not (ranks.rank or settings.list_layers):
                fix = f"fix that, then run python -m seenby.gallery {settings.out}"
                with as_input_error("the page can't be written", fix):
                    page = gallery.write(settings.out)
                if not settings.quiet:
                    print(f"gallery   {page}")
            return code
    except BrokenPipeError:  # nobody reads the account any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    # A full disk, a killed worker, or no memory, which may surface as a failing import.
    except (InputError, OSError, RuntimeError, MemoryError, ImportError) as error:
        is_mistake = isinstance(error, InputError)
        message = str(error) if is_mistake else (
            f"stopped: {message_of(error)}; fix that, then run again with --resume")
        if not (is_mistake and ranks.local_rank):  # all ranks would say it
            warn(f"error: {message}")
        return 2
