#!/usr/bin/env python3
"""Make what is handed in: the renamed script, its results and a report of three pages, in a zip.

    python report/build.py D111111               report/D111111_a4.zip and D111111_a4_report.pdf
    python report/build.py D111111 --author "A. Student" --course "Deep Learning" --body mine.typ
    python report/build.py D111111 --data 47_data.json --pad 1

It reads what the script reads: everything in data/, the example digits only where nothing else is
there. All numbers in the report come from a run of the script in a clean folder, from this machine
and from report/evidence.json. The zip is unpacked and run once, to prove that it works elsewhere.
Without an id it makes the project's own example.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pypdf
import torch
import torch.nn.functional as F
import typst
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

import SID_a4  # noqa: E402
from SID_a4 import CourseCNN, InputError, Picture  # noqa: E402

NEEDED = ("SID_a4.py", "mnist_model.pth", "requirements.txt")  # to run it; the data come besides
DIGITS = [*"0123456789"]
PAGES, POINTS = 3, 12  # at most, and of all text, as the assignment asks
SCRIPTS = (round(0.7 * POINTS, 1), round(0.5 * POINTS, 1))  # of formulas, and their own scripts
# What gives way where the pages are too few: the study's last plots, then the figure's width in %.
TRIES = [(plots, width) for plots in (True, False) for width in (100, 92, 84)]
Facts = dict[str, Any]
Row = dict[str, str]


@contextmanager
def complaining(what: str, instead: str) -> Iterator[None]:
    """Whatever goes wrong inside is told in one line, with its own words in brackets."""
    try:
        yield
    except Exception as error:  # Typst and decoders raise almost anything
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{what} ({reason}); {instead}") from error


# -------------------------------------------------------------------------------------- the run


def copy_needed(script: str, pad: int, folder: Path) -> None:
    """The script under its new name, with the pad that was asked for, its weights and packages."""
    for name in NEEDED:
        with complaining(f"{name} can't be copied", "put it where the repository has it"):
            shutil.copyfile(ROOT / name, folder / (script if name == NEEDED[0] else name))
    if pad != SID_a4.PAD:
        path = folder / script
        option, default = re.compile(r'(\("--pad",[^\n]*\bdefault=)PAD\b'), rf"\g<1>{pad}"
        source, found = option.subn(default, path.read_text("utf-8"))
        if found != 1:
            raise InputError(f"{NEEDED[0]} has no --pad whose default is PAD; build without --pad")
        path.write_text(source, "utf-8")


def copy_data(sources: Sequence[Path], folder: Path) -> None:
    """Into data/ what the script reads of them, and from where it reads them all again."""
    copies = set()
    for source in sources:
        for file in SID_a4.files_in(source):
            inside = file.relative_to(source if source.is_dir() else file.parent)
            above = file.absolute().parent.name
            if len(inside.parts) == 1 and above in DIGITS:  # a folder named 7 holds sevens
                inside = Path(above) / inside
            copy = folder / inside
            if copy in copies:
                raise InputError(f"two files are named {copy.name}; rename one of them")
            copies.add(copy)
            copy.parent.mkdir(parents=True, exist_ok=True)
            with complaining(f"{file} can't be copied", "give a .json or a picture"):
                shutil.copyfile(file, copy)
    for copy in sorted(copies.difference(SID_a4.files_in(folder))):
        raise InputError(f"{copy.name} is not read from data/; give a .json or a picture, "
                         f"{SID_a4.EXAMPLES} only by itself")


def run(script: str, folder: Path) -> str:
    """As a grader does; what it said."""
    words = [sys.executable, script]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise InputError(f"{script} stopped and said: {said}; mend that first")
    return done.stdout


# ------------------------------------------------------------------------------------ the facts


def facts_of(options: argparse.Namespace, net: CourseCNN, picture: Picture, folder: Path) -> Facts:
    """What the report says beyond the study: of the run, the network and this machine."""
    assert picture.image
    x = SID_a4.normalised([picture.image])
    maps = SID_a4.explain(net, x).A
    files = sorted(p for p in (folder / "data").rglob("*") if p.is_file())
    return {
        "id": options.id, "author": options.author, "course": options.course,
        "body": bool(options.body),
        "hardware": hardware(),
        "versions": versions(),
        "shapes": {"input": list(x.shape), "pooled": list(pooled(net, x).shape),
                   "maps": list(maps.shape), "classes": net.fc2.out_features},
        "mean": net.MEAN, "std": net.STD,
        "parameters": sum(weight.numel() for weight in net.parameters()),
        "pad": options.pad, "rule": SID_a4.PAD,
        "off": {f"{pad}": off(pad, maps.shape[3]) for pad in {0, 1, SID_a4.PAD, options.pad}},
        "files": [file.relative_to(folder).as_posix() for file in files],
        "columns": SID_a4.BAND, "shown": SID_a4.BAND * SID_a4.BANDS,
        "studied": studied(),
        "findings": studied() or options.findings,
    } | counted(rows_of(folder / "outputs" / f"{options.id}_a4.csv"))  # fmt: skip


def rows_of(table: Path) -> list[Row]:
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def percent(probability: str) -> str:
    """As the figure has it: never rounded to certainty."""
    return f"{float(probability):.1%}" if float(probability) < 0.9995 else ">99.9%"


def counted(rows: list[Row]) -> Facts:
    """Of the digits' table: right is counted among those that have a label."""
    labelled = [row for row in rows if row["label"]]
    return {
        "digits": len(rows),
        "labelled": len(labelled),
        "right": sum(row["predicted"] == row["label"] for row in labelled),
        "least": percent(min(row["probability"] for row in rows)),
        "most": percent(max(row["probability"] for row in rows)),
        "framed": sum(SID_a4.FRAMED in row["note"] for row in rows),
        "empty": sum(SID_a4.NO_EVIDENCE in row["note"] for row in rows),
    }


@torch.no_grad()
def pooled(net: CourseCNN, x: torch.Tensor) -> torch.Tensor:
    """What comes out of conv1 and the pooling behind it."""
    return F.max_pool2d(net.conv1(x), 2)


def hardware() -> Facts:
    cpu = platform.processor() or platform.machine()
    system = f"{platform.system()} {platform.release()}"
    if sys.platform == "linux":
        cpu = re.findall(r"model name\s*: (.+)|$", Path("/proc/cpuinfo").read_text())[0] or cpu
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    elif sys.platform == "darwin":
        brand = ["sysctl", "-n", "machdep.cpu.brand_string"]
        cpu = subprocess.run(brand, capture_output=True, text=True, check=True).stdout.strip()
    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GiB of memory"
    return {"cpu": cpu, "cores": os.cpu_count(), "memory": memory, "system": system}


def versions() -> dict[str, str]:
    """Of Python and of each package in requirements.txt, as they are installed."""
    names = re.findall(r"(?m)^[\w-]+", (ROOT / "requirements.txt").read_text())
    found = {name: importlib.metadata.version(name).partition("+")[0] for name in names}
    return {"Python": platform.python_version()} | found


def studied() -> bool:
    """Whether the weights are those that report/evidence.json was measured with."""
    evidence = json.loads((HERE / "evidence.json").read_text())
    found = hashlib.sha256((ROOT / "mnist_model.pth").read_bytes()).hexdigest()
    return bool(found == evidence["weights"])


# ----------------------------------------------------------------------------------- the figure

SEES, STRIDE = 14, 2  # pixels: the side of what a cell of conv2 sees, and from cell to cell


def looks_at(n: int) -> np.ndarray:
    """The centres of what n cells in a row see, in pixels."""
    return (SEES - 1) / 2 + STRIDE * np.arange(n)


def drawn_at(n: int, pad: int) -> np.ndarray:
    """Where they come to lie, padded and enlarged to 28 pixels."""
    return (np.arange(n) + pad + 0.5) * 28 / (n + 2 * pad) - 0.5


def off(pad: int, n: int) -> float:
    """How far a cell is drawn from where it looks, at most."""
    return round(float(abs(drawn_at(n, pad) - looks_at(n)).max()), 2)


def draw_way(net: CourseCNN, picture: Picture, pad: int = SID_a4.PAD, most: int = 10) -> Figure:
    """From the picture to its maps (the most important ones), to L_c, to its place."""
    assert picture.image
    found = SID_a4.explain(net, SID_a4.normalised([picture.image]), pad=pad)
    A, alpha, L_c = (part[0].numpy() for part in (found.A, found.alpha, found.L_c))
    n, top, which = A.shape[1], abs(A).max(), sorted(np.argsort(-abs(alpha))[:most])
    sheet = Sheet()
    raw = sheet.panel(0, 1.05, "picture $x$", sides(28))
    raw.imshow(picture.image, "gray")
    sheet.arrow(1.08, "conv1\nconv2")
    columns = -(-len(which) // 2)
    for i, k in enumerate(which):
        row, column = divmod(i, columns)
        tile = sheet.panel(1.5 + 0.36 * column, 0.34, "", f"${1000 * alpha[k]:+.1f}$", row)
        tile.imshow(A[k], "RdBu_r", vmin=-top, vmax=top)
    left = 1.5 + 0.36 * columns
    of = f"{most} of {len(A)} " if len(A) > most else ""
    sheet.title((1.5 + left) / 2, rf"{of}maps $A^k$ ({sides(n)}), $1000\,\alpha_k^c$")
    sheet.arrow(left + 0.05, "sum,\nReLU")
    sheet.panel(left + 0.48, 0.6, "$L^c$", sides(n)).imshow(L_c, "jet")
    sheet.arrow(left + 1.1, f"pad {pad}")
    padded = sheet.panel(left + 1.45, 1.05, "padded", sides(n + 2 * pad))
    padded.imshow(np.pad(L_c, pad), "jet")
    sheet.arrow(left + 2.53, "resize")
    placed = sheet.panel(left + 2.9, 1.05, "on the picture", sides(28))
    placed.imshow(SID_a4.overlay(picture.image, found.heatmap[0]))
    for axes, centres in ((raw, looks_at(n)), (placed, drawn_at(n, pad))):
        axes.plot(*map(np.ravel, np.meshgrid(centres, centres)), ".", color="white", ms=2.2, mew=0)
    return sheet.figure


def sides(n: int) -> str:
    return rf"{n} $\times$ {n}"


class Sheet:
    """A strip to draw on; lengths are in inches."""

    WIDTH, HEIGHT, MIDDLE = 7.3, 1.48, 0.7

    def __init__(self) -> None:
        self.figure = Figure((self.WIDTH, self.HEIGHT), dpi=300)

    def panel(
        self, left: float, size: float, title: str, below: str, row: int | None = None
    ) -> Axes:
        """In the middle, or the upper (0) or lower (1) one of two."""
        bottom = self.MIDDLE - size / 2 + (0 if row is None else 0.3 - 0.58 * row)
        axes = self.figure.add_axes((
            left / self.WIDTH, bottom / self.HEIGHT, size / self.WIDTH, size / self.HEIGHT
        ))  # fmt: skip
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(below, fontsize=7.5 if row is None else 6.5, labelpad=2)
        axes.set_title(title, fontsize=8, pad=3)
        return axes

    def title(self, middle: float, words: str) -> None:
        self.figure.text(middle / self.WIDTH, 0.92, words, fontsize=8, ha="center")

    def arrow(self, left: float, words: str) -> None:
        y = self.MIDDLE / self.HEIGHT
        self.figure.text((left + 0.18) / self.WIDTH, y + 0.03, words, fontsize=7, ha="center")
        self.figure.text((left + 0.18) / self.WIDTH, y - 0.1, "→", fontsize=12, ha="center")


# ------------------------------------------------------------------------------ the report, the zip


def typeset(folder: Path, facts: Facts, body: str) -> bytes:
    """The PDF of report.typ, in a folder that holds all that it reads, in PAGES if it can be."""
    for path in (HERE / "report.typ", *HERE.glob("evidence*")):
        shutil.copyfile(path, folder / path.name)
    (folder / "body.typ").write_text(body, "utf-8")
    pdf, source = b"", "your --body" if body else "report/report.typ"
    for plots, width in TRIES:
        facts |= {"plots": plots, "width": width}
        (folder / "facts.json").write_text(json.dumps(facts), "utf-8")
        with complaining("the report can't be typeset", f"mend {source}"):
            pdf = typst.compile(folder / "report.typ", ignore_system_fonts=True)
        (folder / "report.pdf").write_bytes(pdf)
        if len(pypdf.PdfReader(folder / "report.pdf").pages) != PAGES + 1:
            break  # they suffice, or will not
    return pdf


def check(pdf: Path, grid: Path) -> None:
    """What the assignment asks of the report."""
    pages = pypdf.PdfReader(pdf).pages
    if len(pages) > PAGES:
        raise InputError(f"the report has {len(pages)} pages, {PAGES} are allowed; shorten it")
    for font in fonts_of(pages):
        if not embedded(font):
            name = font["/BaseFont"]
            raise InputError(f"the font {name} is not embedded; use one of Typst's own")
    for words, font, points in written(pages):
        if points != POINTS and not ("Math" in font and points in SCRIPTS):
            raise InputError(f"{words[:40]!r} is set in {points:g} point; set it in {POINTS}")
    with Image.open(grid) as picture:
        if picture.size not in figures_of(pages):
            raise InputError(f"the report lacks the figure {grid.name}; put it back")


def fonts_of(pages: Any) -> list[Any]:
    found = [page["/Resources"].get_object().get("/Font", {}).values() for page in pages]
    return [font.get_object() for fonts in found for font in fonts]


def figures_of(pages: Any) -> list[tuple[int, int]]:
    """How large each is, in pixels."""
    found = [page["/Resources"].get_object().get("/XObject", {}).values() for page in pages]
    objects = [figure.get_object() for figures in found for figure in figures]
    return [(figure["/Width"], figure["/Height"]) for figure in objects if "/Width" in figure]


def embedded(font: Any) -> bool:
    inner = font["/DescendantFonts"][0].get_object() if "/DescendantFonts" in font else font
    descriptor = inner.get("/FontDescriptor", {})
    return any(f"/FontFile{kind}" in descriptor for kind in ("", "2", "3"))


def written(pages: Any) -> list[tuple[str, str, float]]:
    """All text outside of figures, piece by piece: the words, their font, its size in points."""
    found: list[tuple[str, str, float]] = []

    def piece(text: str, cm: list[float], tm: list[float], font: Any, size: float) -> None:
        for a, b, c, d, *_ in (cm, tm):
            size *= abs(a * d - b * c) ** 0.5  # enlarged by both matrices, turned or not
        if font and text.strip():
            found.append((text.strip(), font["/BaseFont"], round(size, 1)))

    for page in pages:
        page.extract_text(visitor_text=piece)
    return found


def pack(folder: Path, target: Path) -> None:
    """The same bytes for the same files: in name order, dated 1980, with one set of rights."""
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix())
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, path.read_bytes())


def prove(archive: Path, script: str) -> None:
    """Unpacked in an empty folder it runs, and writes what is in it."""
    with tempfile.TemporaryDirectory() as name, zipfile.ZipFile(archive) as packed:
        folder = Path(name)
        packed.extractall(folder)
        shutil.rmtree(folder / "outputs")
        run(script, folder)
        names = {n for n in packed.namelist() if n.startswith("outputs/")}
        there = {p.relative_to(folder).as_posix() for p in folder.glob("outputs/**/*.*")}
        other = [n for n in sorted(names | there)
                 if names - there or (folder / n).read_bytes() != packed.read(n)]  # fmt: skip
        if other:
            raise InputError(f"{archive.name} does not write its own {other[0]} again; run it anew")


README = """\
# {id}: what did the network look at?

Grad-CAM, Guided Backprop and Guided Grad-CAM of {count} by a network trained on MNIST.

    python3 -m venv .venv && .venv/bin/pip install -r requirements.txt
    .venv/bin/python {id}_a4.py

The packages of requirements.txt need Python 3.11 or newer. The second line reads `data/` and writes
`outputs/` again, as it is here.{pad} `--help` lists the options.

| file | what it is |
|---|---|
| `{id}_a4_report.pdf` | the report |
| `{id}_a4.py` | the script: theory first, then digits, figure and files |
| `mnist_model.pth` | the network's weights |
| `data/` | the test digits |
| `outputs/{id}_a4.png` | the figure: raw, Grad-CAM, Guided Backprop, Guided Grad-CAM |
| `outputs/{id}_a4.csv` | a row a digit: label, prediction, probability, explained class, note |
| `outputs/gradcam/` | each Grad-CAM over its digit |
| `outputs/raw/` | each digit as the network saw it |
| `requirements.txt` | the packages, with the versions that were used |
"""


def readme(identity: str, digits: int, pad: int) -> str:
    count = "one test digit" if digits == 1 else f"{digits} test digits"
    asked = f" Maps are padded by {pad}, as the course asks: it is\nthe default of `--pad` here."
    return README.format(id=identity, count=count, pad=asked if pad != SID_a4.PAD else "")


# --------------------------------------------------------------------------------- command line


def build(options: argparse.Namespace) -> tuple[list[Path], str]:
    """The report and the zip, in options.out, and what the script said of its run."""
    stem = f"{options.id}_a4"
    with tempfile.TemporaryDirectory() as work:
        handin, desk = Path(work, "handin"), Path(work, "desk")
        for folder in (handin, handin / "data", desk):
            folder.mkdir()
        copy_needed(f"{stem}.py", options.pad, handin)
        copy_data(options.data or [ROOT / "data"], handin / "data")
        said = run(f"{stem}.py", handin)
        net = SID_a4.load_network(handin / "mnist_model.pth")
        picture = SID_a4.read_pictures([handin / "data"])[0]  # the run had no complaint
        shutil.copyfile(handin / "outputs" / f"{stem}.png", desk / "grid.png")
        draw_way(net, picture, options.pad).savefig(desk / "way.png")
        facts = facts_of(options, net, picture, handin)
        report, archive = handin / f"{stem}_report.pdf", Path(work, f"{stem}.zip")
        report.write_bytes(typeset(desk, facts, options.body or ""))
        check(report, desk / "grid.png")
        (handin / "README.md").write_text(readme(options.id, facts["digits"], options.pad), "utf-8")
        pack(handin, archive)
        prove(archive, f"{stem}.py")
        if not facts["findings"]:
            said += "note      other weights than the study's: --findings adds what it found\n"
        options.out.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copy(path, options.out)) for path in (report, archive)], said


def student_id(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]+", text):
        raise argparse.ArgumentTypeError(
            f"the id {text!r} was given; give letters and digits alone, as D111111"
        )
    return text.upper()


def typst_text(name: str) -> str:
    try:
        with complaining(f"{name} can't be read", "give a file of Typst text"):
            return Path(name).read_text("utf-8")
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("build.py", argparse.SUPPRESS, __doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add, default = parser.add_argument, "(default: %(default)s)"
    add("id", nargs="?", default="SID", type=student_id, help="your student id, as D111111")
    add("--author", default="", help="your name")
    add("--course", default="", help="the course's name")
    add("--data", action="append", type=Path, metavar="FILE", help="in place of data/; repeatable")
    add("--pad", type=int, choices=range(11), default=SID_a4.PAD, metavar="N", help=default)
    add("--findings", action="store_true", help="the study of the shipped weights, with your own")
    add("--body", type=typst_text, metavar="FILE.typ", help="more words, at the end")
    add("--out", type=Path, default=HERE, metavar="FOLDER", help=default)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(argv)
    try:
        paths, said = build(options)
    except (InputError, OSError) as problem:  # prints one line, ends with code 2
        parser.error(" ".join(str(problem).encode(errors="backslashreplace").decode().split()))
    print(re.sub(r"(?m)^written .*\n", "", said), end="")
    print("\n".join(f"written   {path}" for path in paths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
