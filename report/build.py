#!/usr/bin/env python3
"""Make what is handed in: the renamed script, its results and a report of three pages, in a zip.

    python report/build.py D111111                   report/D111111_a4.zip and D111111_a4_report.pdf
    python report/build.py D111111 --author "A. Student" --course "Deep Learning" --body mine.typ

All numbers in the report come from a run of the script in a clean folder, from this machine and
from report/evidence.json. The zip is unpacked and run once, to prove that it works elsewhere.
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
from collections import Counter
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
from torch import Tensor

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

import SID_a4  # noqa: E402
from SID_a4 import Complaint, Network, Picture, complaining  # noqa: E402

NEEDED = ("mnist_model.pth", "data/test_data.json", "requirements.txt")  # to run the script
PAGES, POINTS = 3, 12  # at most, and the body's, as the assignment asks
Facts = dict[str, Any]


# -------------------------------------------------------------------------------------- the run


def copied(script: str, folder: Path) -> None:
    """The script under its new name, and what it needs."""
    shutil.copy(ROOT / "SID_a4.py", folder / script)
    for name in NEEDED:
        (folder / name).parent.mkdir(exist_ok=True)
        with complaining(f"{name} can't be copied", "put it where the repository has it"):
            shutil.copy(ROOT / name, folder / name)


def run(script: str, folder: Path) -> None:
    """As a grader does."""
    words = [sys.executable, script, "--quiet"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise Complaint(f"{script} stopped and said: {said}; mend that first")


# ------------------------------------------------------------------------------------ the facts


def facts_of(identity: Facts, network: Network, picture: Picture, folder: Path) -> Facts:
    """What the report says beyond the study: of the run, the network and this machine."""
    with (folder / "outputs" / f"{identity['id']}_a4.csv").open(encoding="utf-8") as file:
        digits = list(csv.DictReader(file))
    assert picture.image
    x = network.tensor([picture.image])
    explanation = SID_a4.explain(network.net, x)
    assert explanation.stride
    assert explanation.pad
    pooled, maps = maps_of(network, x)
    return identity | {
        "hardware": hardware(),
        "versions": versions(),
        "shapes": {
            "input": list(x.shape),
            "pooled": list(pooled.shape),
            "maps": list(maps.shape),
            "classes": explanation.logits.shape[1],
        },
        "layer": explanation.layer,
        "stride": explanation.stride[0],
        "pad": f"{explanation.pad[0]:g}",
        "mean": network.mean[0],
        "std": network.std[0],
        "parameters": sum(weight.numel() for weight in network.net.parameters()),
        "accuracy": accuracy(),
        "digits": digits,
        "right": sum(row["predicted"] == row["label"] for row in digits),
    }


@torch.no_grad()
def maps_of(network: Network, x: Tensor) -> tuple[Tensor, Tensor]:
    """What conv1, pooled, and conv2 give."""
    conv1, conv2 = (network.net.get_submodule(name) for name in ("conv1", "conv2"))
    pooled = F.max_pool2d(conv1(x), 2)
    return pooled, conv2(F.relu(pooled))


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


def accuracy() -> float | None:
    """On the test digits, where the study measured these very weights."""
    evidence = json.loads((HERE / "evidence.json").read_text())
    weights = hashlib.sha256((ROOT / "mnist_model.pth").read_bytes()).hexdigest()
    if weights != evidence["weights"]:
        return None
    found: float = evidence["networks"]["course, shipped"]["accuracy"]
    return found


# ----------------------------------------------------------------------------------- the figure


def draw_way(network: Network, picture: Picture) -> Figure:
    """From the picture to its maps, to L_c, to L_c's place in the picture."""
    assert picture.image
    x = network.tensor([picture.image])
    explanation, A = SID_a4.explain(network.net, x), maps_of(network, x)[1][0].numpy()
    assert explanation.pad
    n, pad = A.shape[1], round(explanation.pad[0])
    L_c, alpha, top = explanation.cells[0].numpy(), explanation.alpha[0], abs(A).max()
    sheet = Sheet()
    raw = sheet.panel(0, 1.05, "picture $x$", sides(28))
    raw.imshow(picture.image, "gray")
    sheet.arrow(1.08, "conv1\nconv2")
    for k, (A_k, alpha_k) in enumerate(zip(A, alpha, strict=True)):
        row, column = divmod(k, -(-len(A) // 2))
        tile = sheet.panel(1.5 + 0.36 * column, 0.34, "", f"${1000 * alpha_k:+.1f}$", row)
        tile.imshow(A_k, "RdBu_r", vmin=-top, vmax=top)
    left = 1.5 + 0.36 * -(-len(A) // 2)
    sheet.title((1.5 + left) / 2, rf"maps $A^k$ ({sides(n)}) and $1000\,\alpha_k^c$")
    sheet.arrow(left + 0.05, "sum,\nReLU")
    sheet.panel(left + 0.48, 0.6, "$L^c$", sides(n)).imshow(L_c, "jet")
    sheet.arrow(left + 1.1, f"pad {pad}")
    padded = sheet.panel(left + 1.45, 1.05, "padded", sides(n + 2 * pad))
    padded.imshow(np.pad(L_c, pad), "jet")
    sheet.arrow(left + 2.53, "resize")
    placed = sheet.panel(left + 2.9, 1.05, "on the picture", sides(28))
    placed.imshow(SID_a4.overlay(picture.image, explanation, SID_a4.Style()))
    centres = [(j + pad + 0.5) * 28 / (n + 2 * pad) - 0.5 for j in range(n)]
    for axes in (raw, placed):
        axes.plot(centres * n, sorted(centres * n), ".", color="white", ms=2.2, mew=0)
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
    """The PDF of report.typ, in a folder that holds all that it reads."""
    (folder / "facts.json").write_text(json.dumps(facts | {"body": bool(body)}))
    for path in (HERE / "report.typ", *HERE.glob("evidence*")):
        shutil.copy(path, folder)
    if body:
        (folder / "body.typ").write_text(body)
    source = "your --body" if body else "report/report.typ"
    with complaining("the report can't be typeset", f"mend {source}"):
        return typst.compile(folder / "report.typ", ignore_system_fonts=True)


def check(pdf: Path, grid: Path) -> None:
    """What the assignment asks of the report."""
    report = pypdf.PdfReader(pdf)
    pages = report.pages
    if len(pages) > PAGES:
        raise Complaint(f"the report has {len(pages)} pages, {PAGES} are allowed; shorten it")
    for font in fonts_of(pages):
        if not embedded(font):
            raise Complaint(f"the font {font['/BaseFont']} is not embedded; use one of Typst's own")
    points = body_size(pages)
    if points != POINTS:
        raise Complaint(f"the body is set in {points:g} point; set it in {POINTS}")
    with Image.open(grid) as picture:
        sizes = [image.image.size for page in pages for image in page.images if image.image]
        if picture.size not in sizes:
            raise Complaint(f"the report lacks the figure {grid.name}; put it back")


def fonts_of(pages: Any) -> list[Any]:
    found = [page["/Resources"].get_object().get("/Font", {}).values() for page in pages]
    return [font.get_object() for fonts in found for font in fonts]


def embedded(font: Any) -> bool:
    inner = font["/DescendantFonts"][0].get_object() if "/DescendantFonts" in font else font
    descriptor = inner.get("/FontDescriptor", {})
    return any(f"/FontFile{kind}" in descriptor for kind in ("", "2", "3"))


def body_size(pages: Any) -> float:
    """The size in points that most characters have."""
    sizes = Counter[float]()

    def count(text: str, _cm: Any, tm: list[float], _font: Any, size: float) -> None:
        sizes[round(size * abs(tm[3]), 1)] += len(text.strip())

    for page in pages:
        page.extract_text(visitor_text=count)
    return sizes.most_common(1)[0][0]


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
            raise Complaint(f"{archive.name} does not write its own {other[0]} again; run it anew")


# --------------------------------------------------------------------------------- command line


def student_id(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]+", text):
        raise Complaint(f"the id {text!r} was given; give letters and digits alone, as D111111")
    return text.upper()


def typst_text(name: str) -> str:
    with complaining(f"{name} can't be read", "give a file of Typst text"):
        return Path(name).read_text(encoding="utf-8")


def build(identity: Facts, body: str, out: Path) -> list[Path]:
    """The report and the zip, in out."""
    stem = f"{identity['id']}_a4"
    with tempfile.TemporaryDirectory() as work:
        handin, desk = Path(work, "handin"), Path(work, "desk")
        handin.mkdir()
        desk.mkdir()
        copied(f"{stem}.py", handin)
        run(f"{stem}.py", handin)
        network = SID_a4.load_network(weights=str(handin / "mnist_model.pth"))
        shutil.copy(handin / "outputs" / f"{stem}.png", desk / "grid.png")
        picture = next(SID_a4.read_pictures([handin / "data"], network))
        draw_way(network, picture).savefig(desk / "way.png")
        facts = facts_of(identity, network, picture, handin)
        report, archive = handin / f"{stem}_report.pdf", Path(work, f"{stem}.zip")
        report.write_bytes(typeset(desk, facts, body))
        check(report, desk / "grid.png")
        pack(handin, archive)
        prove(archive, f"{stem}.py")
        out.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copy(path, out)) for path in (report, archive)]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("id", type=student_id, help="your student id, as D111111")
    add("--author", default="", help="your name")
    add("--course", default="", help="the course's name")
    add("--body", type=typst_text, metavar="FILE.typ", help="your own words, after the findings")
    add("--out", type=Path, default=HERE, help="(default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(argv)
    identity = {"id": options.id, "author": options.author, "course": options.course}
    try:
        written = build(identity, options.body or "", options.out)
    except (Complaint, OSError) as problem:
        print(f"{parser.prog}: {SID_a4.one_line(problem)}", file=sys.stderr)
        return 1
    print("\n".join(f"written   {path}" for path in written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
