"""Anything to a picture that the network sees."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from seenby.errors import Complaint, complaining, one_line, reason, refuse
from seenby.inputs.classes import class_number
from seenby.machine import import_torchvision

if TYPE_CHECKING:
    from seenby.inputs.networks import Network


SUFFIXES = (".json", ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
DATA_SETS = {"cifar10": "CIFAR10", "mnist": "MNIST"}
MAX_PIXELS = 80_000_000  # of a picture: decoded they take up to 700 MB
PIXELS = "give 28 x 28 or 784 numbers a picture, from 0 to 255 or from 0 to 1"
Box = tuple[float, float, float, float]  # left, top, right, bottom
Item = tuple[str, str, Callable[[], Image.Image]]  # name, label and how to load it


@dataclass(frozen=True)
class Picture:
    """A picture as the network sees it; where it could not be read, image is None and note why."""

    name: str
    image: Image.Image | None
    label: str = ""  # a class name
    note: str = ""
    whole: Image.Image | None = None  # as it came, where it was asked for
    box: Box = (0, 0, 0, 0)  # the part of the whole that image shows


def read_pictures(sources: Iterable[str | Path], network: Network, invert: bool = False,
                  keep: bool = False) -> Iterator[Picture]:
    """Every picture of the sources, one at a time."""
    return (decoded(item, network, invert, keep) for item in items_in(sources, network.classes))


def items_in(sources: Iterable[str | Path], classes: tuple[str, ...]) -> Iterator[Item]:
    """What is there to read, each under a name of its own."""
    taken: dict[str, int] = {}
    for source in map(str, sources):
        for name, label, load in found_in(source, classes):
            yield file_name(name, taken), label, load


def decoded(item: Item, network: Network, invert: bool, keep: bool,
            labelled: bool = False) -> Picture:
    """As the network sees it, its label one of the network's classes; or why it can't be seen."""
    name, given, load = item
    c = class_number(given, network.classes)
    label, notes = "" if c is None else network.classes[c], []
    try:
        whole = load()
        if labelled and c is None:
            refuse(f"{name} has no label for --target label; put it into a folder that is named "
                   "after its class")
        image = in_mode(whole, "L" if len(network.mean) == 1 else "RGB")
        image = ImageOps.invert(image) if invert else image
        border = border_of(image)
        if border > 127 and network.cover is None and not invert:
            notes.append("bright border: if this is dark ink on white paper, add --invert")
        if given and c is None:
            notes.append(f"label {one_line(given):.20} is no class of the network")
        image, box = framed(image, network, border)
    except Complaint as problem:
        return Picture(name, None, label, one_line(problem))
    except MemoryError:
        words = f"{name} is too large for this machine; give a smaller one"
        return Picture(name, None, label, words)
    return Picture(name, image, label, "; ".join(notes), whole if keep else None, box)


def found_in(source: str, classes: tuple[str, ...]) -> Iterator[Item]:
    """What is in a data set, a file, or a folder with its sub-folders, in name order."""
    kind, _, root = source.partition(":")
    if kind in DATA_SETS and root:
        yield from data_set(kind, root, classes)
    elif not Path(source).is_dir():
        yield from in_file(Path(source))
    else:
        for folder, folders, names in os.walk(source):
            folders[:] = sorted(name for name in folders if name[0] != ".")
            label = "" if folder == source else Path(folder).name
            paths = (Path(folder, name) for name in sorted(names) if name[0] != ".")
            # At once: a file that vanishes later is missed by name, and moves no other one up.
            for path in [p for p in paths if p.suffix.lower() in SUFFIXES and p.is_file()]:
                yield from in_file(path, label)


def in_file(path: Path, label: str = "") -> Iterator[Item]:
    if path.suffix.lower() != ".json":
        yield path.stem, label, partial(open_image, path)
        return
    try:
        items = list(json_items(json.loads(path.read_bytes(), object_pairs_hook=no_twins)))
        white = white_of([pixels for _, pixels, _ in items])
    except (ValueError, RecursionError, OSError) as error:
        words = f"{path} is broken or empty ({reason(error)}); {PIXELS}"
        yield path.stem, label, partial(refuse, words)
        return
    for name, pixels, own in items:
        yield name, own or label, partial(grey_image, pixels, white, f"{name} in {path}")


def open_image(path: Path) -> Image.Image:
    """Grey (L) or colour (RGB), as a viewer shows it: turned, transparent parts white."""

    def flaw(error: BaseException) -> str:
        if isinstance(error, UnidentifiedImageError):
            return f"{path} is {'not an image' if path.stat().st_size else 'an empty file'}"
        return f"{path} is truncated or broken ({reason(error)})"  # decoders raise almost anything

    how = "give a whole PNG, JPEG, GIF, BMP, TIFF or WebP picture, or a .json of pixels"
    image: Image.Image
    with complaining(flaw, how), Image.open(path) as image:
        if image.width * image.height > MAX_PIXELS:
            refuse(f"{path} is too large, {image.width} x {image.height} pixels; give at most "
                   f"{MAX_PIXELS // 10**6} million")
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode[0] in "IF":  # Pillow clips 16-bit and float grey at 255 instead of scaling it
        values = np.array(image, np.float32)
        low, high = values.min(), values.max()
        if not 0 <= low <= high <= 65535:
            raise Complaint(f"{path} holds numbers from {low:g} to {high:g}; give 8 or 16 bits")
        white = 65535 if ";16" in image.mode or high > 255 else 255 if high > 1 else 1
        values *= 255
        values /= white
        image = Image.fromarray(values.round(out=values).astype(np.uint8))
    if image.has_transparency_data:
        seen = in_mode(image, "RGBA")
        image = Image.new("RGB", seen.size, "white")
        image.paste(seen, mask=seen)
    return in_mode(image, "L" if image.mode in ("1", "L") else "RGB")


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Not a copy of what is so already."""
    return image if image.mode == mode else image.convert(mode)


def json_items(content: Any) -> Iterator[tuple[str, Any, str]]:
    """(name, pixels, label), of a list of pictures or a dict of name -> picture.

    A picture is its pixels, or {"image": pixels, "label": 7}.
    """
    if isinstance(content, list):
        content = {f"image_{i}": item for i, item in enumerate(content)}
    if not isinstance(content, dict) or not content:
        raise ValueError("no pictures")
    for name, item in content.items():
        item = item if isinstance(item, dict) else {"image": item}
        label = item.get("label")
        label = int(label) if isinstance(label, float) and label.is_integer() else label
        yield name, item.get("image"), "" if label is None else str(label)


def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON lets a name stand twice, and Python would keep the last in silence."""
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def white_of(pictures: Sequence[Any]) -> int:
    """255, or 1 if no number of most pictures is above 1 (a float's rounding aside)."""
    tops = []
    for pixels in pictures:
        with suppress(ValueError, TypeError, OverflowError):
            tops.append(float(np.max(np.asarray(pixels, np.float64))))
    return 1 if tops and sorted(tops)[len(tops) // 2] <= 1 + 1e-6 else 255


def grey_image(pixels: Any, white: int, where: str) -> Image.Image:
    try:
        values = np.asarray(pixels)
    except ValueError:
        refuse(f"{where} is ragged: its rows differ in length; {PIXELS}")
    if values.dtype.kind not in "iuf":
        refuse(f"{where} holds something that is not a number; {PIXELS}")
    if values.squeeze().shape not in ((28, 28), (784,)):
        refuse(f"{where} has the size {' x '.join(map(str, values.shape)) or 1}; {PIXELS}")
    low, high = values.min(), values.max()
    # NaN fails every comparison. Fractions up to 1.5 fit neither range: such a picture is black.
    between = 1 + 1e-6 < high < 2 and (values % 1).any()
    if between or not 0 <= low <= high <= white * (1 + 1e-6):
        refuse(f"{where} holds numbers from {low:.7g} to {high:.7g}; {PIXELS}")
    grey = (values.reshape(28, 28) * 255.0 / white).round().clip(0, 255)
    return Image.fromarray(grey.astype(np.uint8))


def data_set(kind: str, root: str, classes: tuple[str, ...]) -> Iterator[Item]:
    """The test pictures of torchvision's data set, downloaded if they are not there."""
    how = "put torchvision's copy of it there"
    with complaining(f"{kind} is not in {root} and could not be had", how):
        data = getattr(import_torchvision().datasets, DATA_SETS[kind])(root, False, download=True)
    names = classes if len(classes) == len(data.classes) else data.classes  # numbered as they are
    for i, label in enumerate(data.targets):
        yield f"{kind}_{i}", names[label], partial(lambda i: data[i][0], i)


def border_of(image: Image.Image) -> int:
    """The median of the pixels at the four edges."""
    w, h = image.size
    edges = (0, 0, w, 1), (0, h - 1, w, h), (0, 0, 1, h), (w - 1, 0, w, h)
    pixels = np.frombuffer(b"".join(image.crop(edge).tobytes() for edge in edges), np.uint8)
    middle = np.sort(pixels)[[(len(pixels) - 1) // 2, len(pixels) // 2]]
    return int(middle.mean())  # np.median takes three times as long


def framed(image: Image.Image, network: Network, border: int) -> tuple[Image.Image, Box]:
    """Resized, then cut from the middle as torchvision does it, or padded with the border."""
    (w, h), (H, W) = image.size, network.size
    high, wide = network.cover or network.size
    flat = w * high > h * wide  # flatter than what it is to cover, or to fit into
    if flat == bool(network.cover):
        w2, h2 = max(1, int(high * w / h)), high
    else:
        w2, h2 = wide, max(1, int(wide * h / w))
    left, top = round((w2 - W) / 2), round((h2 - H) / 2)
    if w2 * h2 > MAX_PIXELS:
        refuse(f"a picture of {w} x {h} is too long and thin; cut it")
    image = image.resize((w2, h2), network.resample)
    canvas = Image.new(image.mode, (W, H), (border,) * len(network.mean))
    canvas.paste(image, (-left, -top))
    return canvas, (left * w / w2, top * h / h2, (left + W) * w / w2, (top + H) * h / h2)


def file_name(name: str, taken: dict[str, int]) -> str:
    """The name made safe for a file on any system, and numbered if an earlier picture has it."""
    safe = re.sub(r"[^\w.-]+", "_", name).strip("._-").encode()[:200].decode(errors="ignore")
    safe = unique = safe or "picture"
    while unique.casefold() in taken:
        taken[safe.casefold()] += 1
        unique = f"{safe}-{taken[safe.casefold()]}"
    taken[unique.casefold()] = 1
    return unique
