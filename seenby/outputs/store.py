"""The output folder: each file, picture and map in it, whole or not there; runs can be resumed.

The pictures are cut into numbered batches. What a batch writes ends with its part of the table,
7.csv in a folder named after the settings; a part that is there says that its batch is done. So
--resume does the batches that have none, the ranks of torchrun share them out by number, and the
table is the parts in their order.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from seenby.core.explanation import Explanation
from seenby.errors import InputError, one_line
from seenby.inputs.pictures import Picture
from seenby.outputs.colors import Style, enlarged, overlay
from seenby.outputs.figure import panel_image
from seenby.outputs.summary import Tally, nothing_explained
from seenby.outputs.table import (
    COLUMNS,
    Row,
    cells_of_any_length,
    escape_formulas,
    map_name,
    target_index,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEM = "seenby"  # of the table's and the figure's names
GENERATOR = '<meta name="generator" content="seenby.gallery">'  # in a page of this program's


@dataclass(frozen=True)
class Result:
    """What became of a picture."""

    picture: Picture
    explanations: list[Explanation]  # target by target, methods within; none if not explained
    rows: list[Row]  # of the table: one for each explanation, or one that says why there is none


@dataclass(frozen=True)
class OutputFolder:
    """Where a run writes, and what of each picture."""

    folder: Path
    parts: Path  # for what is not complete: half-written files, and the batches' tables
    style: Style
    overlays: bool
    raw: bool
    panels: bool  # each panel of the figure as a picture of its own, too
    save_maps: str | None  # float16 or float32
    uncropped: bool
    name_targets: bool  # in the names of files, as a picture has several
    name_methods: bool

    def write_batch(self, number: int, results: list[Result]) -> None:
        """Each picture, the maps, and last, as all the rest is there now, the part of the table."""
        for result in results:
            if result.explanations:
                self.save_pictures(result.picture, result.explanations)
        if self.save_maps:
            self.save_batch_maps(number, results, self.save_maps)
        if sys.platform != "win32":
            os.sync()  # a power cut must not leave the part and take what it stands for
        with self.open_table(self.parts / f"{number}.csv") as table:
            table.writerows(row for result in results for row in result.rows)

    def save_pictures(self, picture: Picture, explanations: Sequence[Explanation]) -> None:
        """raw/NAME.png, overlays/NAME.png, and with panels, cam/NAME.png and so on."""
        assert picture.image is not None
        base, box = enlarged(picture.image), None
        if self.uncropped and picture.original:
            base, box = picture.original, picture.crop_box
        if self.raw:
            self.save_image("raw", picture.name, picture.image)
        for explanation in explanations:
            name = file_name(picture.name, explanation, self.name_targets, self.name_methods)
            if self.overlays:
                self.save_image("overlays", name, overlay(base, explanation, self.style, box))
            for panel in self.panel_folders():
                self.save_image(panel, name, panel_image(panel, picture, explanation, self.style))

    def panel_folders(self) -> list[str]:
        """The figure's panels that are written as pictures, too; these two are anyhow."""
        return [p for p in self.style.panels if p not in ("raw", "overlay")] if self.panels else []

    def save_image(self, folder: str, name: str, image: Image.Image) -> None:
        with self.atomic_write(self.folder / folder / f"{name}.png") as path:
            image.save(path, "PNG", compress_type=zlib.Z_RLE)  # a third of the time, no more bytes

    def save_batch_maps(self, number: int, results: list[Result], dtype: str) -> None:
        """maps/000007.npz, one a batch: numpy.load needs nothing else to read it."""
        file = self.folder / "maps" / f"{number:06}.npz"
        pairs = [pair for r in results for pair in zip(r.explanations, r.rows, strict=False)]
        if not pairs:
            file.unlink(missing_ok=True)  # an earlier run's
            return
        arrays: dict[str, Any] = {name: [row[name] for _, row in pairs]
                                  for name in ("image", "target", "method")}
        classes = (explanation.target for explanation, _ in pairs)
        arrays["target_index"] = [-1 if c is None else int(c) for c in classes]
        for name in ("heatmap", "R"):
            maps = [getattr(explanation, name) for explanation, _ in pairs]
            if maps[0] is not None:
                arrays[name] = to_float16_if_safe(torch.cat(maps).numpy(), dtype)
        with self.atomic_write(file) as path, path.open("wb") as opened:
            np.savez(opened, **arrays)

    def finished_batches(self) -> list[int]:
        finished = (part for part in self.parts.glob("[0-9]*.csv") if part.stat().st_size)
        return sorted(int(part.stem) for part in finished)

    def read_parts(self) -> Iterator[tuple[int, list[Row]]]:
        """Batch by batch, the rows of a picture at a time."""
        for number in self.finished_batches():
            with (self.parts / f"{number}.csv").open(newline="", encoding="utf-8") as file, \
                    cells_of_any_length():
                table = csv.DictReader(file, COLUMNS)
                for _, rows in itertools.groupby(table, itemgetter("image")):
                    yield number, list(rows)

    def merge_parts(self, columns: int, pick: str) -> Tally:
        """Write all parts as one table; what is in it. Raise if no picture is explained.

        columns: how many the figure has.
        """
        tally = Tally()
        with self.open_table(self.folder / f"{STEM}.csv") as table:
            table.writeheader()
            for number, rows in self.read_parts():
                tally.add(rows, number, columns)
                table.writerows(map(escape_formulas, rows))
            if not tally.explained:
                shutil.rmtree(self.parts, ignore_errors=True)
                raise nothing_explained(tally, pick)
        return tally

    def remove_other_maps(self) -> None:
        """Those of an earlier run with more pictures."""
        for file in (self.folder / "maps").glob("[0-9]*.npz"):
            if file.stem.isdecimal() and not (self.parts / f"{int(file.stem)}.csv").exists():
                file.unlink()

    def written(self, more: Sequence[str] = ()) -> str:
        """What a run writes: the files, and on a line of their own the folders beside them."""
        folders = ["overlays"] * self.overlays + ["raw"] * self.raw + self.panel_folders()
        folders += ["maps"] * bool(self.save_maps)
        beside = f"\nbeside them {', '.join(f'{folder}/' for folder in folders)}" if folders else ""
        records = ", ".join(["run.json", *more])
        return f"{one_line(self.folder / STEM)}.png and .csv, {records}{beside}"

    def save_figure(self, name: str, figure: Figure) -> None:
        with self.atomic_write(self.folder / name) as path:
            figure.savefig(path, format="png", metadata={"Software": None})

    def save_json(self, name: str, content: Any) -> None:
        with self.atomic_write(self.folder / name) as path:
            text = json.dumps(content, indent=1, ensure_ascii=False, default=str)
            path.write_text(text + "\n", encoding="utf-8")

    @contextmanager
    def open_table(self, path: Path) -> Iterator[csv.DictWriter[str]]:
        with self.atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as file:
            yield csv.DictWriter(file, COLUMNS, lineterminator="\n")

    def atomic_write(self, path: Path) -> AbstractContextManager[Path]:
        return atomic_write(path, self.parts)


def forget_parts(folder: Path) -> None:
    """What runs into this folder began before, and did not finish."""
    for parts in folder.glob(f".{STEM}.*.parts"):
        shutil.rmtree(parts)


def require_room(index: Path) -> None:
    """Raise where a page is to be written, and somebody else's is there."""
    if index.exists() and not is_own(index):
        raise InputError(f"{index} is there, and not from this program; move it elsewhere")


def remove_page(folder: Path, is_wanted: bool) -> None:
    """The gallery of an earlier run, which would show this one's pictures."""
    index = folder / "index.html"
    if is_wanted:
        require_room(index)
    if index.is_file() and is_own(index):
        index.unlink()


def is_own(index: Path) -> bool:
    return GENERATOR in index.read_text(encoding="utf-8", errors="replace")


def file_name(name: str, explanation: Explanation, with_target: bool, with_method: bool) -> str:
    return map_name(name, target_index(explanation) if with_target else "",
                    explanation.method if with_method else "")


def to_float16_if_safe(values: np.ndarray, dtype: str) -> np.ndarray:
    """float16 ends at 65504 and is coarse below 0.0001: what is not in between stays float32."""
    top = np.abs(values).max()
    return values.astype(dtype if not top or 1e-3 < top < 65504 else "float32")


@contextmanager
def atomic_write(path: Path, aside: Path) -> Iterator[Path]:
    """A file to write in another folder, which moves to its place when it is complete."""
    for folder in (path.parent, aside):
        folder.mkdir(parents=True, exist_ok=True)
    part = aside / f"_{path.parent.name}_{path.name}"
    try:
        yield part
        try:
            part.replace(path)
        except OSError:  # the folder is a link to another disk
            shutil.move(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        if not path.exists():
            for folder in (aside, path.parent):
                with suppress(OSError):  # there is more in it
                    folder.rmdir()
        raise
