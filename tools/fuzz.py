#!/usr/bin/env python3
"""Search for files that break the readers, led by the lines of SID_a4.py that they reach.

    pip install atheris
    python tools/fuzz.py weights -runs=20000          or json, or image; libFuzzer's options follow

What is not explained must be refused by a Complaint; anything else stops the search, and the file
is kept as crash-*. tests/test_fuzz.py does the same without the lead, a little in each test run.
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

with atheris.instrument_imports(include=["SID_a4", "PIL"]):
    import SID_a4

NETWORK = SID_a4.load_network()
DESK = Path(tempfile.mkdtemp())
SEEDS = {"json": ROOT / "data" / "test_data.json", "weights": ROOT / "mnist_model.pth"}


def read(kind: str, content: bytes) -> None:
    path = DESK / {"json": "input.json", "weights": "input.pth"}.get(kind, "input.png")
    path.write_bytes(content)
    if kind == "weights":
        with suppress(SID_a4.Complaint):
            SID_a4.load_network(weights=str(path))
        return
    for picture in SID_a4.read_pictures([path], NETWORK):
        assert picture.image or picture.note


def corpus(kind: str) -> Path:
    """What the search begins with."""
    folder = DESK / "corpus"
    folder.mkdir()
    if kind in SEEDS:
        (folder / kind).write_bytes(SEEDS[kind].read_bytes())
    for suffix in SID_a4.SUFFIXES[1:] if kind == "image" else ():
        file = io.BytesIO()
        Image.effect_noise((9, 9), 50).save(file, Image.registered_extensions()[suffix])
        (folder / suffix).write_bytes(file.getvalue())
    return folder


def main() -> None:
    kind, *options = sys.argv[1:] or ["image"]
    if kind not in ("json", "image", "weights"):
        sys.exit(__doc__)
    warnings.simplefilter("ignore")
    words = [sys.argv[0], "-timeout=10", "-rss_limit_mb=1024", "-max_len=200000", *options]
    atheris.Setup([*words, str(corpus(kind))], lambda content: read(kind, content))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
