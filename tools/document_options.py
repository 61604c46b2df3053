#!/usr/bin/env python3
"""Write docs/options.md, the table of the command's options, from the parser itself.

    python tools/document_options.py            after an option has changed; a test compares
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from seenby.options import build_parser  # noqa: E402

PAGE = ROOT / "docs" / "options.md"
HEAD = """\
# Options

All options of the command `seenby`, in the groups of `seenby --help`. This page is written by
`tools/document_options.py`.

An option that is shown with `...` takes several words. Where one of them does not fit the option
but names a picture file or a folder, it is read as one of the IMAGES, so that `--target 3 5 scans/`
explains two classes in a folder. The folder needs its slash there, because `scans` alone could be
the name of a class. `--mean` and `--std` take their numbers with spaces or with commas.
"""


OF_ARGPARSE = ("positional arguments", "options")  # groups that hold --help alone


def page() -> str:
    """A table for each group of options."""
    parser = build_parser()
    groups = [group for group in parser._action_groups if group.title not in OF_ARGPARSE]
    return HEAD + "".join(section(parser, group) for group in groups)


def section(parser: argparse.ArgumentParser, group: argparse._ArgumentGroup) -> str:
    rows = [f"| `{usage(action)}` | {help_of(parser, action)} |" for action in group._group_actions]
    title = (group.title or "").capitalize()
    return "\n".join([f"\n## {title}\n", "| option | meaning |", "|---|---|", *rows, ""])


def usage(action: argparse.Action) -> str:
    """An option with what it takes, as in --target CLASS ..."""
    if not action.option_strings:
        return f"{action.metavar} ..."
    words = [action.option_strings[0]]
    if action.nargs != 0:
        choices = f"{{{','.join(map(str, action.choices))}}}" if action.choices else ""
        word = str(action.metavar or choices or action.dest.upper())
        words.append(f"[{word}]" if action.nargs == "?" else word)
    return " ".join([*words, "..."] if action.nargs == "+" else words)


def help_of(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """As --help prints it, on one line; a bar would end the cell."""
    return parser._get_formatter()._expand_help(action).replace("|", r"\|")


def main() -> int:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written   {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
