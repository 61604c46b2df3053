"""Anything that shows a picture, to the picture that the network sees."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import get_worker_info

from seenby.errors import InputError, as_input_error, one_line, warn_once
from seenby.inputs.classes import BETWEEN, class_index, label_of, read_labels
from seenby.inputs.decoding import MAX_PIXELS, open_image, to_mode
from seenby.machine import import_torchvision

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
OTHER_SUFFIXES = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".dng", ".cr2", ".nef", ".arw", ".psd",
                  ".svg", ".eps", ".pdf", ".dcm", ".npy")
NO_PICTURES = "no pictures were given; give files or folders with " + " ".join(SUFFIXES)
DATA_SETS = {"cifar10": "CIFAR10", "mnist": "MNIST"}
MIN_CONTRAST = 32  # of 255 between the darkest and the brightest value: 12 bits of 16 have 15
NO_CONTRAST = ("the picture has next to no contrast, as where 12 bits are stored in 16: scale its "
               "numbers to the full range")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Box = tuple[float, float, float, float]  # left, top, right, bottom


class Item(NamedTuple):
    """A picture that is there to be read."""

    name: str
    label: str  # as it is given
    load: Callable[[], Image.Image]


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


def require_mean_and_std(mean: Sequence[float], std: Sequence[float]) -> None:
    if len(std) != len(mean) or min(std) <= 0:
        raise InputError(f"--mean {mean} and --std {std} were given; give as many numbers to both, "
                         "and a std above 0")
    if max(mean) > 1:
        raise InputError(f"--mean {mean} was given; pixels are numbers from 0 to 1: divide it, and "
                         "--std, by 255")


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
        for item in source_items(source, classes):
            yield item._replace(name=unique_file_name(item.name, taken))


def source_items(source: str, classes: tuple[str, ...]) -> Iterator[Item]:
    """What is in a data set, a file, or a folder with its sub-folders, in name order."""
    kind, _, root = source.partition(":")
    if kind in DATA_SETS and root:
        yield from data_set_items(kind, root, classes)
    elif not Path(source).is_dir():
        yield Item(Path(source).stem, "", partial(open_image, Path(source)))
    else:
        for folder, names in folders_in(source):
            label = "" if folder == source else Path(folder).name
            table = Path(folder, "labels.csv")
            labels = read_labels(table) if table.is_file() else {}
            paths = [Path(folder, name) for name in names]
            # At once: a file that vanishes later is missed by name, and moves no other one up. So
            # is a link to nothing.
            paths = [path for path in paths if path.suffix.lower() in SUFFIXES
                     and (path.is_file() or (path.is_symlink() and not path.exists()))]
            say_what_is_left_out(folder, names, labels, paths)
            for path in paths:
                given = labels.get(path.name, labels.get(path.stem, label))
                yield Item(path.stem, given, partial(open_image, path))


def folders_in(source: str) -> Iterator[tuple[str, list[str]]]:
    """A folder and its sub-folders, linked ones too, each once, with the names in them; in order,
    and without what is hidden."""
    seen = set[str]()
    for folder, folders, names in os.walk(source, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name[0] != ".")
        yield folder, sorted(name for name in names if name[0] != ".")


def say_what_is_left_out(folder: str, names: Sequence[str], labels: Mapping[str, str],
                         paths: Sequence[Path]) -> None:
    """Once: which files in a folder are pictures of kinds that are not read, and which rows of its
    labels.csv name none of its pictures."""
    if get_worker_info():
        return
    others = [name for name in names if Path(name).suffix.lower() in OTHER_SUFFIXES]
    if others:
        warn_once(f"{folder}: {len(others)} pictures are of kinds that are not read, such as "
                  f"{others[0]}, and are left out; convert them to PNG or JPEG")
    here = {name for path in paths for name in (path.name, path.stem)} if labels else set()
    if unknown := [name for name in labels if name not in here]:
        warn_once(f"{folder}/labels.csv: {len(unknown)} rows name no picture in this folder, such "
                  f"as {unknown[0]}; put the table beside its pictures")


def data_set_items(kind: str, root: str, classes: tuple[str, ...]) -> Iterator[Item]:
    """The test pictures of torchvision's data set, downloaded if they are not there."""
    fix = "put torchvision's copy of it there"
    with as_input_error(f"{kind} is not in {root} and could not be downloaded", fix):
        data_set = getattr(import_torchvision().datasets, DATA_SETS[kind])
        data = data_set(root, train=False, download=True)
    names = classes if len(classes) == len(data.classes) else data.classes  # the same numbers
    for i, label in enumerate(data.targets):
        yield Item(f"{kind}_{i}", names[label], partial(lambda i: data[i][0], i))


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
            fix = "name one of them" if BETWEEN in label else (
                "put it into a folder that is named after its class")
            raise InputError(f"{name} has {label or 'no label'} for --target label; {fix}")
        image = to_mode(original, preprocessing.mode)
        image = ImageOps.invert(image) if invert else image
        image, box = resize_and_crop(image, preprocessing, name)
    except InputError as error:
        return Picture(name, None, label, one_line(error))
    except MemoryError:
        too_large = f"{name} is too large for this machine; give a smaller one"
        return Picture(name, None, label, too_large)
    if np.ptp(np.asarray(image), axis=(0, 1)).max() < MIN_CONTRAST:  # of each channel by itself
        note = "; ".join(filter(None, [note, NO_CONTRAST]))
    return Picture(name, image, label, note, original if keep_original else None, box)


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
