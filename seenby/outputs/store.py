"""The output folder: every file whole or not there."""

from __future__ import annotations

import csv
import itertools
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from seenby.core.explanation import Explanation
from seenby.inputs.networks import Network
from seenby.inputs.pictures import Picture
from seenby.machine import STEM
from seenby.outputs.figure import draw_grid
from seenby.outputs.overlay import enlarged, overlay
from seenby.outputs.summary import Tally, nothing_explained
from seenby.outputs.table import COLUMNS, Row, no_formula

if TYPE_CHECKING:
    from seenby.pipeline import Options, Result


def write_block(number: int, results: list[Result], options: Options) -> None:
    """Each picture, the maps, and, as all that is there now, the part of the table."""
    for picture, explanations, _ in results:
        if explanations and options.overlays == "all":
            save_pictures(picture, explanations, options)
    if options.save_maps:
        save_maps(number, results, options)
    if sys.platform != "win32":
        os.sync()  # a power cut must not leave the part and take what it stands for
    with table_in(options.parts / f"{number}.csv", options.parts) as table:
        table.writerows(row for _, _, rows in results for row in rows)


def save_maps(number: int, results: list[Result], options: Options) -> None:
    """maps/000007.npz, one a block: numpy.load needs nothing else to read it."""
    file = options.out / "maps" / f"{number:06}.npz"
    pairs = [pair for _, found, rows in results for pair in zip(found, rows, strict=False)]
    if not pairs:
        file.unlink(missing_ok=True)  # an earlier run's
        return
    names = ("image", "target", "method")
    arrays: dict[str, Any] = {name: [row[name] for _, row in pairs] for name in names}
    for name in ("L_c", "R"):
        maps = [getattr(explanation, name) for explanation, _ in pairs]
        if maps[0] is not None:
            arrays[name] = narrowed(torch.cat(maps).numpy(), options.save_maps)
    with whole(file, options.parts) as part, part.open("wb") as opened:
        np.savez(opened, **arrays)


def narrowed(values: np.ndarray, kind: str) -> np.ndarray:
    """float16 ends at 65504 and is coarse below 0.0001: what is not in between stays float32."""
    top = np.abs(values).max()
    return values.astype(kind if not top or 1e-3 < top < 65504 else "float32")


def numbers_of(parts: Path) -> list[int]:
    """The blocks that are done."""
    found = (part for part in parts.glob("[0-9]*.csv") if part.stat().st_size)
    return sorted(int(part.stem) for part in found)


@contextmanager
def table_in(path: Path, aside: Path) -> Iterator[csv.DictWriter[str]]:
    """To write rows to; the file is whole or not there."""
    with whole(path, aside) as part, part.open("w", newline="", encoding="utf-8") as file:
        yield csv.DictWriter(file, COLUMNS, lineterminator="\n")


def rows_in(parts: Path) -> Iterator[tuple[int, list[Row]]]:
    """Block by block, the rows of a picture at a time."""
    for number in numbers_of(parts):
        with (parts / f"{number}.csv").open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file, COLUMNS)
            for _, rows in itertools.groupby(table, itemgetter("image")):
                yield number, list(rows)


def merged(options: Options, total: int) -> Tally:
    """All parts in one table, and what is in them."""
    tally, parts = Tally(), options.parts
    with table_in(options.out / f"{STEM}.csv", parts) as table:
        table.writeheader()
        for number, rows in rows_in(parts):
            tally.add(rows, number, options.grid)
            table.writerows(map(no_formula, rows) if rows[0]["target"] or rows[0]["note"] else ())
        if not tally.explained:
            shutil.rmtree(parts, ignore_errors=True)
            raise nothing_explained(tally, options.pick)
    found = tally.explained + len(tally.skipped)
    if found != total and options.pick == "all":
        tally.skipped.append(f"the pictures changed while they were read: {total} were listed, "
                             f"{found} are in the table; run it again")
    if options.save_maps:  # those of an earlier run with more pictures go
        for file in (options.out / "maps").glob("[0-9]*.npz"):
            if file.stem.isdecimal() and not (parts / f"{int(file.stem)}.csv").exists():
                file.unlink()
    return tally


def save_figure(columns: list[tuple[Picture, Explanation]], network: Network,
                options: Options) -> None:
    pictures, explanations = zip(*columns, strict=True)
    figure = draw_grid(pictures, explanations, network.classes, options.style)
    with whole(options.out / f"{STEM}.png", options.parts) as part:
        figure.savefig(part, format="png", metadata={"Software": None})


def save_pictures(picture: Picture, explanations: Sequence[Explanation], options: Options) -> None:
    """raw/NAME.png, and gradcam/NAME.png; of several classes or methods NAME@CLASS@METHOD.png."""
    assert picture.image is not None
    save(options.out / "raw" / f"{picture.name}.png", picture.image, options.parts)
    base, box = (picture.whole, picture.box) if picture.whole else (enlarged(picture.image), None)
    for explanation in explanations:
        name = picture.name
        name += f"@{int(explanation.target)}" if len(options.target) > 1 else ""
        name += f"@{explanation.method}" if len(options.method) > 1 else ""
        mixed = overlay(base, explanation, options.style, box)
        save(options.out / "gradcam" / f"{name}.png", mixed, options.parts)


def save(path: Path, image: Image.Image, aside: Path) -> None:
    with whole(path, aside) as part:
        image.save(part, "PNG", compress_level=1)  # a third of the time, and a third more bytes


@contextmanager
def whole(path: Path, aside: Path) -> Iterator[Path]:
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
