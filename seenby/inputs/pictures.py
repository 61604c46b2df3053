"""Anything that shows a picture, to the picture that the network sees."""

from __future__ import annotations

import ctypes
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError, _imaging
from torch import Tensor

from seenby.errors import InputError, as_input_error, message_of, one_line
from seenby.inputs.classes import class_index, label_of, read_labels
from seenby.machine import import_torchvision

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
NO_PICTURES = "no pictures were given; give files or folders with " + " ".join(SUFFIXES)
# Pillow can do more than these, but not safely: it starts Ghostscript for an EPS. What it opens as
# JPEG may be a phone's MPO, of several frames; as a name for its open, MPO is unknown.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
DATA_SETS = {"cifar10": "CIFAR10", "mnist": "MNIST"}
MAX_PIXELS = 80_000_000  # of a picture: decoded they take up to 700 MB
MIN_CONTRAST = 32  # of 255 between the darkest and the brightest value: 12 bits of 16 have 15
NO_CONTRAST = ("the network is shown next to one shade, as of a file that has 12 bits in 16: scale "
               "its numbers to all that there are")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Box = tuple[float, float, float, float]  # left, top, right, bottom
Item = tuple[str, str, Callable[[], Image.Image]]  # name, label and how to load it


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes a network's input; the words are torchvision's."""

    crop_size: tuple[int, int] = (224, 224)  # (H, W) of the input, cut from the middle
    resize_size: tuple[int, int] = (256, 256)  # resized first, to cover this
    mean: tuple[float, ...] = IMAGENET_MEAN  # one number a channel
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Image.Resampling = Image.Resampling.BILINEAR

    @property
    def mode(self) -> str:
        """Pillow's: L for one channel, else RGB."""
        return "L" if len(self.mean) == 1 else "RGB"

    def tensor(self, images: Sequence[Image.Image]) -> Tensor:
        """Pictures of crop_size -> (B, C, H, W), normalised as in the network's training."""
        pixels = np.stack([np.asarray(image, np.float32) for image in images]) / 255
        x = torch.from_numpy(pixels).reshape(len(images), *self.crop_size, -1)  # (B, H, W, C)
        x = (x - torch.tensor(self.mean)) / torch.tensor(self.std)
        return x.permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class Picture:
    """A picture as the network sees it; where it could not be read, image is None and note why."""

    name: str
    image: Image.Image | None
    label: str = ""  # a class name
    note: str = ""
    original: Image.Image | None = None  # as it came, where it was asked for
    crop_box: Box = (0, 0, 0, 0)  # the part of the original that image shows


def read_pictures(sources: str | Path | Iterable[str | Path], preprocessing: Preprocessing,
                  classes: tuple[str, ...] = (), invert: bool = False,
                  keep_original: bool = False) -> Iterator[Picture]:
    """Every picture of the sources, one at a time: files, folders or data sets."""
    sources = [sources] if isinstance(sources, (str, Path)) else sources
    return (load_picture(item, preprocessing, classes, invert, keep_original)
            for item in list_items(sources, classes))


def read_picture(source: str, preprocessing: Preprocessing) -> Picture:
    """The only one that there is."""
    found = list(islice(read_pictures(source, preprocessing), 2))
    if len(found) != 1:
        number = "several pictures" if found else "no picture"
        raise InputError(f"{source} has {number}; give one picture")
    if found[0].image is None:
        raise InputError(found[0].note)
    return found[0]


def list_items(sources: Iterable[str | Path], classes: tuple[str, ...]) -> Iterator[Item]:
    """What is there to read, each under a name of its own."""
    taken: dict[str, int] = {}
    for source in map(str, sources):
        for name, label, load in source_items(source, classes):
            yield unique_file_name(name, taken), label, load


def source_items(source: str, classes: tuple[str, ...]) -> Iterator[Item]:
    """What is in a data set, a file, or a folder with its sub-folders, in name order."""
    kind, _, root = source.partition(":")
    if kind in DATA_SETS and root:
        yield from data_set_items(kind, root, classes)
    elif not Path(source).is_dir():
        yield Path(source).stem, "", partial(open_image, Path(source))
    else:
        for folder, folders, names in os.walk(source):
            folders[:] = sorted(name for name in folders if name[0] != ".")
            label = "" if folder == source else Path(folder).name
            table = Path(folder, "labels.csv")
            labels = read_labels(table) if table.is_file() else {}
            paths = (Path(folder, name) for name in sorted(names) if name[0] != ".")
            # At once: a file that vanishes later is missed by name, and moves no other one up.
            for path in [p for p in paths if p.suffix.lower() in SUFFIXES and p.is_file()]:
                given = labels.get(path.name, labels.get(path.stem, label))
                yield path.stem, given, partial(open_image, path)


def data_set_items(kind: str, root: str, classes: tuple[str, ...]) -> Iterator[Item]:
    """The test pictures of torchvision's data set, downloaded if they are not there."""
    fix = "put torchvision's copy of it there"
    with as_input_error(f"{kind} is not in {root} and could not be downloaded", fix):
        data = getattr(import_torchvision().datasets, DATA_SETS[kind])(root, False, download=True)
    names = classes if len(classes) == len(data.classes) else data.classes  # the same numbers
    for i, label in enumerate(data.targets):
        yield f"{kind}_{i}", names[label], partial(lambda i: data[i][0], i)


def unique_file_name(name: str, taken: dict[str, int]) -> str:
    """The name made safe for a file on any system, and numbered if an earlier picture has it."""
    safe = re.sub(r"[^\w.-]+", "_", name).strip("._-").encode()[:200].decode(errors="ignore")
    safe = unique = safe or "picture"
    while unique.casefold() in taken:
        taken[safe.casefold()] += 1
        unique = f"{safe}-{taken[safe.casefold()]}"
    taken[unique.casefold()] = 1
    return unique


def load_picture(item: Item, preprocessing: Preprocessing, classes: tuple[str, ...], invert: bool,
                 keep_original: bool, require_label: bool = False) -> Picture:
    """As the network sees it, its label one of the classes, if any; or why it can't be seen."""
    name, given, load = item
    label, note = label_of(given, classes)
    try:
        original = load()
        if require_label and class_index(label, classes) is None:
            raise InputError(f"{name} has {label or 'no label'} for --target label; put it into a "
                             "folder that is named after its class")
        image = to_mode(original, preprocessing.mode)
        image = ImageOps.invert(image) if invert else image
        image, box = resize_and_crop(image, preprocessing, name)
    except InputError as error:
        return Picture(name, None, label, one_line(error))
    except MemoryError:
        too_large = f"{name} is too large for this machine; give a smaller one"
        return Picture(name, None, label, too_large)
    if np.ptp(np.asarray(image)) < MIN_CONTRAST:
        note = "; ".join(filter(None, [note, NO_CONTRAST]))
    return Picture(name, image, label, note, original if keep_original else None, box)


def open_image(path: Path) -> Image.Image:
    """Grey (L) or colour (RGB), as a viewer shows it: turned, transparent parts white."""

    def describe(error: BaseException) -> str:
        if isinstance(error, UnidentifiedImageError):
            return f"{path} is {'not an image' if path.stat().st_size else 'an empty file'}"
        return f"{path} is truncated or broken ({message_of(error)})"  # decoders raise anything

    fix = "give a whole PNG, JPEG, GIF, BMP, TIFF or WebP picture"
    image: Image.Image
    silence_decoders()
    with as_input_error(describe, fix), Image.open(path, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise InputError(f"{path} is too large, {image.width} x {image.height} pixels; give at "
                             f"most {MAX_PIXELS // 10**6} million")
        ImageOps.exif_transpose(image, in_place=True)
        return to_opaque_8_bits(image, path)


def to_opaque_8_bits(image: Image.Image, path: Path) -> Image.Image:
    """Grey (L) or colour (RGB), transparent parts white."""
    if image.mode[0] in "IF":
        image = scale_to_8_bits(image, path)
    if image.mode == "La":  # premultiplied grey, which Pillow converts to nothing but LA
        image = image.convert("LA")
    if image.has_transparency_data:
        transparent = to_mode(image, "RGBA")
        image = Image.new("RGB", transparent.size, "white")
        image.paste(transparent, mask=transparent)
    return to_mode(image, "L" if image.mode in ("1", "L") else "RGB")


@cache
def silence_decoders() -> None:
    """What Pillow and libtiff find wrong is raised, and they need not write it down as well.

    libtiff's handler is taken away in the library that Pillow is linked with, for the process: to
    catch what comes by file descriptor 2 would catch other threads' lines, too.
    """
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # or it logs to standard error
    with suppress(AttributeError, OSError):  # linked in such a way that it can't be found
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def scale_to_8_bits(image: Image.Image, path: Path) -> Image.Image:
    """Pillow clips 16-bit and float grey at 255 instead of scaling it."""
    values = np.array(image, np.float32)
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= 65535:
        raise InputError(f"{path} holds numbers from {low:g} to {high:g}; give 8 or 16 bits")
    white = 65535 if ";16" in image.mode or high > 255 else 255 if high > 1 else 1
    values *= 255
    values /= white
    return Image.fromarray(values.round(out=values).astype(np.uint8))


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Converted to Pillow's mode; the same object if it already has it."""
    return image if image.mode == mode else image.convert(mode)


def resize_and_crop(image: Image.Image, to: Preprocessing,
                    name: str = "a picture") -> tuple[Image.Image, Box]:
    """As torchvision does it; and the part of the picture that is left, in its own pixels."""
    (w, h), (H, W), (high, wide) = image.size, to.crop_size, to.resize_size
    if w * high > h * wide:  # flatter than what it is to cover
        w2, h2 = max(1, int(high * w / h)), high
    else:
        w2, h2 = wide, max(1, int(wide * h / w))
    if w2 * h2 > MAX_PIXELS:
        raise InputError(f"{name} is too long and thin, {w} x {h} pixels; cut it")
    left, top = round((w2 - W) / 2), round((h2 - H) / 2)
    resized = image.resize((w2, h2), to.interpolation)
    crop = resized.crop((left, top, left + W, top + H))
    return crop, (left * w / w2, top * h / h2, (left + W) * w / w2, (top + H) * h / h2)
