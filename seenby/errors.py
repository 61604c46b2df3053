"""A mistake is told in one line that a person can act on."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


class Complaint(argparse.ArgumentTypeError, ValueError):
    """A mistake the user can mend: WHAT was given, WHAT is allowed, HOW to mend it, in one line."""


@contextmanager
def complaining(what: str | Callable[[BaseException], str], how: str) -> Iterator[None]:
    """Whatever goes wrong inside is told in the user's terms, with its own words in brackets."""
    try:
        yield
    except (Exception, SystemExit) as error:
        # No memory, or a worker that died, may be told of anywhere.
        if isinstance(error, Complaint) or no_memory(error) or "DataLoader worker" in str(error):
            raise
        said = f"{what} ({reason(error)})" if isinstance(what, str) else what(error)
        raise Complaint(f"{said}; {how}") from error


def no_memory(error: BaseException) -> bool:
    """Whether Python, PyTorch (for a GPU, for the CPU, on Windows) or oneDNN says so."""
    words = "out of memory|allocate memory|not enough memory|create a primitive"
    return isinstance(error, MemoryError) or bool(re.search(words, str(error)))


def refuse(words: str) -> NoReturn:
    raise Complaint(words)


def nearest(name: str, names: Iterable[str]) -> str:
    """The names that are spelt most alike."""
    return ", ".join(difflib.get_close_matches(name, names, 3, 0))


def reason(error: BaseException) -> str:
    """The error's own words."""
    return one_line(getattr(error, "strerror", None) or str(error) or type(error).__name__)[:150]


def one_line(words: Any) -> str:
    """Fit to be printed anywhere: file names may hold newlines and bytes that are no text."""
    return " ".join(str(words).encode(errors="backslashreplace").decode().split())
