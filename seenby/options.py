"""The command's options: their groups, types and words."""

from __future__ import annotations

import argparse
import math
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import torch

from seenby.core.methods import METHODS
from seenby.errors import Complaint, complaining, nearest
from seenby.inputs.classes import class_names
from seenby.inputs.networks import HERE
from seenby.inputs.pictures import DATA_SETS, SUFFIXES
from seenby.machine import LOCAL_RANK, SCRIPT, STEM, WORLD, spare_cores
from seenby.outputs.figure import PANELS
from seenby.outputs.overlay import Style
from seenby.pipeline import Options


def exists(text: str) -> bool:
    """Where a name is too long for a file, Path.is_file would raise."""
    return os.access(text, os.F_OK)


def existing(text: str) -> str:
    kind, _, root = text.partition(":")
    there = exists(text) and (Path(text).is_dir() or Path(text).is_file())
    if not there and not (kind in DATA_SETS and root):
        raise Complaint(f"{text or 'an empty name'} does not exist; give picture files, folders or "
                        "a .json: check the spelling, and the folder you are in")
    return text


def writable(text: str) -> Path:
    """A folder that can be written to, or made: found out without leaving anything behind."""
    out = Path(text)
    with complaining(f"can't write to {text}", "give a folder you may write to"):
        if not text:
            raise OSError("it has no name")
        for name in (f"{STEM}.png", f"{STEM}.csv"):
            if Path(out, name).is_dir():
                raise OSError(f"{name} in it is a folder")
        for folder in (out, out / "raw", out / "gradcam"):
            there = next(f for f in (folder, *folder.absolute().parents) if os.path.lexists(f))
            with tempfile.TemporaryFile(dir=there):
                pass
    return out


def device(name: str) -> torch.device:
    how = "give cpu, or cuda where PyTorch finds a GPU"
    with complaining(f"{name} is not to be had here", how):
        if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
            raise ValueError("no such device")
        if WORLD > 1 and name == "cuda":
            name = f"cuda:{LOCAL_RANK}"  # one GPU a rank
        return torch.empty(0, device=name).device


def between(kind: type, low: float, high: float, *words: str) -> Callable[[str], Any]:
    """The type of an option that is a number between two others, or one of some words."""

    def convert(text: str) -> Any:
        if text in words:
            return text
        with suppress(ValueError):
            if low <= (value := kind(text)) <= high:
                return value
        also = "".join(f"{word!r} or " for word in words)
        raise Complaint(f"{text!r} was given; give {also}a number from {low:g} to {high:.10g}")

    return convert


def channels(text: str) -> tuple[float, ...]:
    """0.5,0.5,0.5"""
    with suppress(ValueError):
        values = tuple(map(float, text.split(",")))
        if all(math.isfinite(value) for value in values):
            return values
    raise Complaint(f"{text!r} was given; give a number a channel, as in 0.5,0.5,0.5")


def size(text: str) -> tuple[int, int]:
    """224 or 160x224, down x across."""
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and 0 < int(side) < 10_000 for side in sides):
        raise Complaint(f"{text!r} was given; give pixels, as in 224 or 160x224 (down x across)")
    return int(sides[0]), int(sides[-1])


def colormap(name: str) -> str:
    from matplotlib import colormaps

    if name not in colormaps:
        raise Complaint(f"{name!r} is unknown to matplotlib; give {nearest(name, colormaps)}")
    return name


DEFAULT = "(default: %(default)s)"


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Complaint(message if ";" in message else f"{message}; see --help")

    def parse(self, argv: Sequence[str] | None) -> Options:
        """Pictures may stand behind the classes of --target."""
        options = self.parse_args(argv)
        files = [word for word in options.target if exists(word) and Path(word).is_file()
                 and Path(word).suffix.lower() in SUFFIXES]
        options.target = [word for word in options.target if word not in files] or ["predicted"]
        options.images += map(existing, files)
        for name in ("target", "method", "panels"):
            setattr(options, name, list(dict.fromkeys(getattr(options, name))))
        if options.layers and options.model != "course" and ".py:" not in options.model:
            options.weights = options.weights or "none"  # no download for a table
        if not (options.images or options.layers):
            options.images = [existing(str(HERE / "data"))]
        options.style = Style(options.panels, options.colormap, options.opacity)
        written = [options.out.resolve() / name for name in ("raw", "gradcam")]
        for source in map(Path, options.images):
            if any(w.is_relative_to(source.resolve()) or source.resolve().is_relative_to(w)
                   for w in written):
                self.error(f"--out {options.out} would write into {source}, which is read; give "
                           "another")
        return options


def build_parser() -> Parser:
    title, _, text = (__doc__ or "").partition("\n\n")
    parser = Parser(prog=SCRIPT, description=title, epilog=text, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, options in {
        "what is looked at": picture_options,
        "the network": network_options,
        "the explanation": explanation_options,
        "the figure": figure_options,
        "the run": run_options,
    }.items():
        options(parser.add_argument_group(name).add_argument)
    return parser


def picture_options(add: Callable[..., Any]) -> None:
    add("images", nargs="*", type=existing, default=[], metavar="IMAGES",
        help="pictures, .json files of pixels, folders (a sub-folder's name is the label of what "
        "is in it), cifar10:FOLDER or mnist:FOLDER (default: data, beside the script)")
    add("--pick", choices=("all", "right", "wrong"), default="all",
        help=f"only pictures that the network gets right, or wrong {DEFAULT}")
    add("--limit", type=between(int, 1, 10**9), metavar="N", help="no more than N pictures")
    add("--invert", action="store_true", help="negate the pictures: dark ink on white paper")


def network_options(add: Callable[..., Any]) -> None:
    add("--model", default="course", help="course, a torchvision classifier (resnet50), timm:NAME, "
        f"or FILE.py:NAME, a class or function of your own {DEFAULT}")
    add("--weights", metavar="FILE", help="a state dict, 'pretrained' or 'none' (random) (default: "
        "mnist_model.pth for the course network, else pretrained, or as FILE.py makes it)")
    add("--classes", type=class_names, metavar="FILE", help="names, one a line or a JSON list")
    add("--size", type=size, help="pixels of the input, 224 or 160x224 (default: the network's)")
    add("--mean", type=channels, help="of its training pixels, a number a channel (the network's)")
    add("--std", type=channels, help="likewise (the network's)")
    add("--device", type=device, default="cpu", help=f"cpu, cuda or mps {DEFAULT}")
    add("--layers", action="store_true", help="print the table of its layers, and stop")


def explanation_options(add: Callable[..., Any]) -> None:
    add("--target", nargs="+", default=["predicted"], metavar="CLASS",
        help="the classes to explain: 'predicted', 'label', numbers or names (default: predicted)")
    add("--method", nargs="+", default=["gradcam"], metavar="METHOD", choices=METHODS,
        help=f"{', '.join(METHODS)} (default: gradcam)")
    add("--layer", metavar="NAME", help="whose maps are explained (default: the last convolution, "
        "or the largest block around it that ends at its resolution)")
    add("--pad", type=between(int, 0, 999, "auto"), default="auto", metavar="N",
        help="cells of zeros around the map before it is stretched over the picture; 'auto': as "
        f"many as the network's borders cost, each cell in its place {DEFAULT}")


def figure_options(add: Callable[..., Any]) -> None:
    add("--panels", nargs="+", default=Style.panels, metavar="PANEL", choices=PANELS,
        help=f"rows, in this order: {', '.join(PANELS)} (default: {', '.join(Style.panels)})")
    add("--colormap", type=colormap, default=Style.colormap, help=f"of the maps {DEFAULT}")
    add("--opacity", type=between(float, 0, 1), default=Style.opacity,
        help=f"of overlays {DEFAULT}")
    add("--blur", type=between(float, 0, 1000), default=0, metavar="SIGMA",
        help="Gaussian blur of the maps, in pixels (default: none)")
    add("--full-size", action="store_true", help="overlays on the whole pictures, uncut")
    add("--out", type=writable, default=str(HERE / "outputs"), metavar="FOLDER",
        help="where to write (default: outputs, beside the script)")
    add("--grid", type=between(int, 1, 100), default=8, metavar="N", help=f"columns {DEFAULT}")
    add("--overlays", choices=("all", "none"), default="all", help="a picture of each map, "
        f"in raw/ and gradcam/ {DEFAULT}")
    add("--save-maps", choices=("float16", "float32"), metavar="TYPE", help="the maps as numbers "
        "too: maps/*.npz of float16 or float32")


def run_options(add: Callable[..., Any]) -> None:
    add("--batch-size", type=between(int, 1, 4096), default=16, metavar="N",
        help=f"pictures explained at once {DEFAULT}")
    add("--workers", type=between(int, 0, 256), default=spare_cores(), metavar="N",
        help="processes that decode pictures, where there are many (here: %(default)s)")
    add("--resume", action="store_true", help="go on with a run that was interrupted")
    add("--quiet", action="store_true", help="print nothing but errors")
