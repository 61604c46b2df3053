"""Runs of the tool within a test, and what they leave behind."""

import csv
import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from course import COURSE

from seenby.command_line import main


def seenby(*words) -> tuple[int, str, str]:
    """The command with these words: its exit code, and what it said on both streams.

    It does not wait for the disks, as against a power cut: others may be writing much to them.
    """
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), mock.patch("os.sync", create=True):
        code = main([*map(str, words)])
    return code, out.getvalue(), err.getvalue()


def course_run(out, *words) -> tuple[int, str, str]:
    """The command with the course network, unless the words say otherwise."""
    return seenby(*COURSE, "--out", out, *words)


def table_in(folder: Path) -> list[dict[str, str]]:
    with (folder / "seenby.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def explained_in(folder: Path) -> list[dict[str, str]]:
    return [row for row in table_in(folder) if row["status"] == "explained"]


def record_in(folder: Path):
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def files_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
