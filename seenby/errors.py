"""A mistake is told in one line: what was given, what is allowed, how to fix it."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

PROGRAM = "seenby"  # every line on standard error begins with it


class InputError(argparse.ArgumentTypeError, ValueError):
    """A mistake that the user can fix; of argparse's type, so that argparse keeps its words."""

    def __init__(self, words: str) -> None:
        super().__init__(one_line(words))


class Parser(argparse.ArgumentParser):
    """Whose mistakes are InputErrors, too."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message if ";" in message else f"{message}; see --help")


@contextmanager
def as_input_error(what: str | Callable[[BaseException], str], fix: str) -> Iterator[None]:
    """Raise whatever goes wrong inside as an InputError: what, the error's own words, and the fix.

    what may be a function that makes these words from the error.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        # A lack of memory, or a worker that died, may surface anywhere and is nobody's mistake.
        if isinstance(error, InputError) or is_out_of_memory(error) or is_dead_worker(error):
            raise
        problem = f"{what} ({message_of(error)})" if isinstance(what, str) else what(error)
        raise InputError(f"{problem}; {fix}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, PyTorch (for a GPU, for the CPU, on Windows) or oneDNN ran out of memory."""
    words = "out of memory|allocate memory|not enough memory|create a primitive"
    return isinstance(error, MemoryError) or bool(re.search(words, str(error)))


def is_dead_worker(error: BaseException) -> bool:
    """PyTorch's signal handler raises this wherever the program happens to be."""
    return "DataLoader worker" in str(error)


def message_of(error: BaseException) -> str:
    """The error's own words, in at most 150 characters."""
    return one_line(getattr(error, "strerror", None) or str(error) or type(error).__name__)[:150]


def raised(error: BaseException) -> str:
    """Of a user's own code: raised NameError (name 'x' is not defined) in net.py, line 4"""
    places = [f" in {Path(frame.filename).name}, line {frame.lineno}"
              for frame in traceback.extract_tb(error.__traceback__)
              if not re.search("site-packages|^<", frame.filename)
              and Path(__file__).parent not in Path(frame.filename).parents]
    return "".join([f"raised {type(error).__name__} ({message_of(error)})", *places[-1:]])


def one_line(words: Any) -> str:
    """Fit to be printed anywhere: file names may hold newlines and bytes that are no text."""
    return " ".join(str(words).encode(errors="backslashreplace").decode().split())


def closest_names(name: str, names: Iterable[str]) -> str:
    """The three names that are spelt most alike."""
    return ", ".join(difflib.get_close_matches(name, names, 3, 0))


def warn(message: str) -> None:
    print(f"{PROGRAM}: {one_line(message)}", file=sys.stderr)


_warned: set[str] = set()


def warn_once(message: str) -> None:
    """The same message is printed once in a process."""
    if message not in _warned:
        _warned.add(message)
        warn(message)
