"""The course network as a network of one's own: the tool's tests explain it, too."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from seenby import Network, Picture, load_network

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = str(ROOT / "mnist_model.pth")
MODEL = f"{ROOT / 'SID_a4.py'}:CourseCNN"
FEED = ("--size", "28", "--mean", "0.1307", "--std", "0.3081")
COURSE = ("--model", MODEL, "--weights", WEIGHTS, *FEED)  # of the command line


def course_network(weights: str = WEIGHTS, **given) -> Network:
    given = {"size": (28, 28), "mean": (0.1307,), "std": (0.3081,)} | given
    return load_network(MODEL, weights, **given)


def example_digits() -> list[Picture]:
    """Those of data/, whose .json is a list of {"image": 28 x 28 numbers, "label": a digit}."""
    items = json.loads((ROOT / "data" / "example_digits.json").read_text())
    return [Picture(f"image_{i}", Image.fromarray(np.array(item["image"], np.uint8)),
                    str(item["label"])) for i, item in enumerate(items)]  # fmt: skip
