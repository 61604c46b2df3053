"""A page to look through what a run wrote: index.html beside its table and its pictures.

    python -m seenby.gallery outputs/                  writes outputs/index.html
    python -m seenby.gallery outputs/seenby.csv        of several tables, this one

Nothing is computed again. The page needs no server, no network and no other file than the run's:
open it from the disk, or zip it with the folder. The script that it runs is gallery.html's.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import html
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seenby.errors import InputError, Parser, one_line
from seenby.outputs.store import GENERATOR, STEM, atomic_write, require_room
from seenby.written_run import FIX, WrittenRun

JSON = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def write(given: Path) -> str:
    """index.html beside the table; what was done, in a line."""
    table = find_table(given)
    run, index = WrittenRun(table), table.with_name("index.html")
    require_room(index)
    with atomic_write(index, index.parent) as part:
        part.write_text(page(run), encoding="utf-8", newline="\n")
    drawn = "" if run.files.get("overlays") else "; no overlay is there, as after --no-overlays"
    pictures = f"{len(run.groups):,} picture{'s' * (len(run.groups) > 1)}"
    return f"{pictures}: open {one_line(index)} in a browser{drawn}"


def find_table(given: Path) -> Path:
    """The table itself; of a folder the run's, or the only one."""
    if not given.is_dir():
        return given
    if (table := given / f"{STEM}.csv").exists():
        return table
    tables = sorted(given.glob("*.csv"))
    if len(tables) != 1:
        several = f"{len(tables)} tables ({', '.join(t.name for t in tables)}); give one of them"
        raise InputError(f"{given} has {several if tables else f'no table of a run; {FIX}'}")
    return tables[0]


def page(run: WrittenRun) -> str:
    """The template with the run in it; only its own script and style may work there."""
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    script, style = (re.findall(f"<{tag}>(.*?)</{tag}>", template, re.DOTALL)[0]
                     for tag in ("script", "style"))
    content = {"title": one_line(run.table.stem), "accuracy": run.accuracy(),
               "classes": run.classes(), "multilabel": run.is_multilabel,
               "settings": list(run.settings()), "reliability": run.reliability}  # fmt: skip
    parts = {
        "GENERATOR": GENERATOR,
        "POLICY": f"default-src 'none'; script-src {hashed(script)}; style-src {hashed(style)}; "
        "img-src 'self' file: data:; base-uri 'none'; form-action 'none'",
        "TITLE": html.escape(f"{one_line(run.table.stem)}: what the network looked at"),
        "RUN": in_script(content),
        # One by one: all at once as objects, the garbage collector takes half of the time.
        "PICTURES": ",".join(map(in_script, run.cards())),
    }
    return re.sub("@([A-Z]+)@", lambda token: parts[token[1]], template)


def in_script(content: Any) -> str:
    """As JSON; in a script element all that is special is "<", as in an end tag or a comment."""
    return JSON.encode(content).replace("<", "\\u003c")


def hashed(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="seenby.gallery", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder that a run wrote into, or its table")
    try:
        print(write(parser.parse_args(argv).run))
    except (InputError, OSError) as error:
        print(f"seenby.gallery: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
