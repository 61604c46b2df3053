#!/usr/bin/env python3
"""Search for files that break the readers of either door, led by the lines that they reach.

    pip install atheris
    python tools/fuzz.py weights -runs=20000          libFuzzer's options follow

What is searched for is one of image, json, weights, names (of classes), labels (labels.csv) and
table (of a run, which the gallery reads).

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
    from seenby.gallery import JSON
    from seenby.inputs.checkpoints import build_with_checkpoint
    from seenby.inputs.classes import label_of, read_class_names, read_labels
    from seenby.inputs.pictures import SUFFIXES, Preprocessing, read_pictures
    from seenby.outputs.table import COLUMNS
    from seenby.written_run import WrittenRun

GREY = Preprocessing((28, 28), (28, 28), (SID_a4.CourseCNN.MEAN,), (SID_a4.CourseCNN.STD,))
DESK = Path(tempfile.mkdtemp())
NAMES = {"json": "input.json", "weights": "input.pth", "image": "input.png", "names": "input.txt",
         "labels": "labels.csv", "table": "seenby.csv"}  # fmt: skip
SEEDS = {"json": ROOT / "data" / "example_digits.json", "weights": ROOT / "mnist_model.pth"}

ROW = "a,cat; dog,explained,cat; dog,0.9; 0.8,cat,0,0.9,conv2,gradcam,no positive evidence"
TEXTS = {"names": ("cat\ndog\n", '["cat", "dog"]'), "labels": ("image,labels\na.png,cat; dog\n",),
         "table": (f"{','.join(COLUMNS)}\n{ROW}\n",)}  # fmt: skip


def read(kind: str, content: bytes) -> int:
    """How many things of a file are read by the door, or the doors, that read such."""
    path = DESK / NAMES[kind]
    path.write_bytes(content)
    return {"weights": read_weights, "names": read_names, "labels": read_label_table,
            "table": read_run}.get(kind, read_images)(path)  # fmt: skip


def read_images(path: Path) -> int:
    """The tool's, which has none in JSON, then the script's."""
    sources = [] if path.suffix == ".json" else [path]
    tool = [(p.image, p.note) for p in read_pictures(sources, GREY)]
    script = [(p.image, p.note) for p in SID_a4.read_pictures([path])]
    assert all(image or note for image, note in tool + script)
    if path.suffix == ".json":
        read_names(path)
    return sum(image is not None for image, _ in tool + script)


def read_names(path: Path) -> int:
    with suppress(InputError):
        return len(read_class_names(str(path)))
    return 0


def read_label_table(path: Path) -> int:
    with suppress(InputError):
        labels = read_labels(path)
        known = [label_of(label, ("cat", "dog; bird")) for label in labels.values()]
        assert all("\n" not in note for _, note in known)
        return len(labels)
    return 0


def read_run(path: Path) -> int:
    with suppress(InputError):
        run = WrittenRun(path)
        JSON.encode([*run.cards(), run.classes(), run.accuracy(), *run.settings()])
        return len(run.rows)
    return 0


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
    for n, text in enumerate(TEXTS.get(kind, ())):
        (folder / f"{n}").write_text(text, encoding="utf-8")
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
