#!/usr/bin/env python3
"""Search for files that break the readers of either door, led by the lines that they reach.

    pip install atheris
    python tools/fuzz.py weights -runs=20000          or json, or image; libFuzzer's options follow

What is not read must be refused by an InputError; anything else stops the search, and the file is
kept as crash-*. tests/test_fuzz.py does the same without the lead, a little in each test run.
"""

from __future__ import annotations

import io
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import atheris
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

with atheris.instrument_imports(include=["SID_a4", "seenby", "PIL"]):
    import SID_a4
    from seenby.errors import InputError
    from seenby.inputs.checkpoints import build_with_checkpoint
    from seenby.inputs.classes import read_class_names
    from seenby.inputs.pictures import SUFFIXES, Preprocessing, read_pictures

GREY = Preprocessing((28, 28), (28, 28), (SID_a4.CourseCNN.MEAN,), (SID_a4.CourseCNN.STD,))
DESK = Path(tempfile.mkdtemp())
NAMES = {"json": "input.json", "weights": "input.pth", "image": "input.png"}
SEEDS = {"json": ROOT / "data" / "example_digits.json", "weights": ROOT / "mnist_model.pth"}


def read(kind: str, content: bytes) -> int:
    """How many pictures, or networks, of a file are read: the tool's, then the script's."""
    path = DESK / NAMES[kind]
    path.write_bytes(content)
    if kind == "weights":
        return read_weights(path)
    if kind == "json":  # the tool has no pictures in JSON, but the names of classes
        with suppress(InputError):
            read_class_names(str(path))
    tool = [] if kind == "json" else [(p.image, p.note) for p in read_pictures([path], GREY)]
    script = [(p.image, p.note) for p in SID_a4.read_pictures([path])]
    assert all(image or note for image, note in tool + script)
    return sum(image is not None for image, _ in tool + script)


def read_weights(path: Path) -> int:
    loaded = 0
    with suppress(InputError):
        build_with_checkpoint(SID_a4.CourseCNN, str(path))
        loaded += 1
    with suppress(SID_a4.InputError):
        SID_a4.load_network(str(path))
        loaded += 1
    return loaded


def corpus(kind: str) -> Path:
    """What the search begins with."""
    folder = DESK / f"corpus of {kind}"
    folder.mkdir()
    if kind in SEEDS:
        (folder / kind).write_bytes(SEEDS[kind].read_bytes())
    for suffix in SUFFIXES if kind == "image" else ():
        file = io.BytesIO()
        Image.effect_noise((9, 9), 50).save(file, Image.registered_extensions()[suffix])
        (folder / suffix).write_bytes(file.getvalue())
    return folder


def main() -> None:
    kind, *options = sys.argv[1:] or ["image"]
    if kind not in NAMES:
        sys.exit(__doc__)
    warnings.simplefilter("ignore")
    words = [sys.argv[0], "-timeout=10", "-rss_limit_mb=1024", "-max_len=200000", *options]

    def try_one(content: bytes) -> None:
        read(kind, content)

    atheris.Setup([*words, str(corpus(kind))], try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
