#!/usr/bin/env python3
"""What did the network look at? Grad-CAM, Guided Backprop and Guided Grad-CAM in one file.

R. R. Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", arXiv 1610.02391. Names in this file (A, alpha, y_c, L_c) are the paper's.

    python SID_a4.py                             the digits in data/  ->  outputs/SID_a4.png
    python SID_a4.py my_digits.json photo.png    your own pictures
    python SID_a4.py scans/ --invert             dark ink on white paper
    python SID_a4.py dog_cat.png --model vgg16 --target "bull mastiff" "tiger cat"
    python SID_a4.py --model resnet50 --layers   the table of its layers

Copied to D111111_a4.py it writes D111111_a4.png: the student id is the script's own name.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0",
#     "torchvision==0.28.0",
#     "numpy==2.4.6",
#     "pillow==13.0.0",
#     "matplotlib==3.11.2",
#     "tqdm==4.70.1",
# ]
# ///

from __future__ import annotations

import signal

if __name__ == "__main__":  # Ctrl-C during the imports below, most of a short run, ends it quietly
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import csv
import ctypes
import difflib
import importlib
import itertools
import json
import logging
import math
import multiprocessing
import os
import pickletools
import re
import runpy
import shutil
import sys
import tempfile
import textwrap
import time
import warnings
import zipfile
import zlib
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from operator import itemgetter
from pathlib import Path
from threading import Barrier
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
SCRIPT, STEM = Path(__file__).name, Path(__file__).stem  # D111111_a4 once a student renamed it


class Complaint(argparse.ArgumentTypeError, ValueError):
    """A mistake the user can mend: WHAT was given, WHAT is allowed, HOW to mend it, in one line."""


@contextmanager
def complaining(what: str | Callable[[BaseException], str], how: str) -> Iterator[None]:
    """Whatever goes wrong inside is told in the user's terms, with its own words in brackets."""
    try:
        yield
    except (Exception, SystemExit) as error:
        # No memory, or a worker that died, may be told of anywhere.
        if isinstance(error, Complaint) or no_memory(error) or "DataLoader worker" in str(error):
            raise
        said = f"{what} ({reason(error)})" if isinstance(what, str) else what(error)
        raise Complaint(f"{said}; {how}") from error


def no_memory(error: BaseException) -> bool:
    """Whether Python, PyTorch (for a GPU, for the CPU, on Windows) or oneDNN says so."""
    words = "out of memory|allocate memory|not enough memory|create a primitive"
    return isinstance(error, MemoryError) or bool(re.search(words, str(error)))


# ------------------------------------------------------------------------------------- Network


class CourseCNN(nn.Module):
    """(B, 1, 28, 28) -> (B, 10) logits; conv2 is the layer that Grad-CAM explains."""

    MEAN, STD = 0.1307, 0.3081  # of the MNIST training pixels: the input is (pixel - MEAN) / STD

    def __init__(self, conv1: int = 10, conv2: int = 10, fc1: int = 50, fc2: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, conv1, kernel_size=5)
        self.conv2 = nn.Conv2d(conv1, conv2, kernel_size=5)
        self.fc1 = nn.Linear(conv2 * 4 * 4, fc1)
        self.fc2 = nn.Linear(fc1, fc2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  # (B, 1, 28, 28) -> (B, 10, 12, 12)
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # (B, 10, 8, 8) maps -> (B, 10, 4, 4)
        x = F.relu(self.fc1(x.flatten(1)))  # (B, 160) -> (B, 50)
        y: Tensor = self.fc2(x)  # (B, 10) logits: y_c is taken before any softmax
        return y


NO_DOWNLOAD = "the pretrained weights could not be had"
NAME_A_FILE = "name a file with --weights"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Network:
    """A module in eval mode, and how to feed it."""

    net: nn.Module
    title: str
    layer: str = ""  # whose maps are explained
    classes: tuple[str, ...] = ()
    size: tuple[int, int] = (224, 224)  # (H, W) of its input, cut from the middle of a picture
    cover: tuple[int, int] | None = (256, 256)  # resized to cover this; None: no cut, all of it
    mean: tuple[float, ...] = IMAGENET_MEAN  # one number a channel
    std: tuple[float, ...] = IMAGENET_STD
    resample: Image.Resampling = Image.Resampling.BILINEAR

    def tensor(self, images: Sequence[Image.Image]) -> Tensor:
        """Pictures of its size -> (B, C, H, W) beside it, normalised as in its training."""
        pixels = np.stack([np.asarray(image, np.float32) for image in images]) / 255
        x = torch.from_numpy(pixels).reshape(len(images), *self.size, -1)  # (B, H, W, C)
        x = (x - torch.tensor(self.mean)) / torch.tensor(self.std)
        return x.permute(0, 3, 1, 2).contiguous().to(next(self.net.parameters()).device)


@torch.random.fork_rng(devices=[])  # the caller's, of the CPU, go on as they would
def load_network(model: str = "course", weights: str | None = None, layer: str | None = None,
                 classes: Sequence[str] | None = None, **feed: Any) -> Network:
    """model: course, a torchvision name, timm:NAME or FILE.py:NAME; feed: size, mean or std."""
    torch.manual_seed(0)  # where weights are random, they are the same in every process
    if model == "course":
        network = course_network(weights or str(HERE / "mnist_model.pth"))
    elif model.startswith("timm:"):
        network = timm_network(model.removeprefix("timm:"), weights or "pretrained")
    elif ".py:" in model:
        network = own_network(model, weights)
    else:
        network = torchvision_network(model, weights or "pretrained")
    network.net.float().eval()
    if "size" in feed and network.cover:
        feed["cover"] = feed["size"]  # no margin is cut from a size of the user's own
    return surveyed(replace(network, layer=layer or "", **feed), classes)


def surveyed(network: Network, given: Sequence[str] | None) -> Network:
    """With its layer and a name for every class, found by looking at one black picture."""
    channels, (H, W) = len(network.mean), network.size
    names = network.classes if given is None else tuple(given)
    if len(network.std) != channels or min(network.std) <= 0:
        raise Complaint(f"--mean {network.mean} and --std {network.std} were given; give as many "
                        "numbers to both, and a std above 0")
    with complaining(f"{network.title} can't take pictures of {channels} x {H} x {W}",
                     "give --size, --mean and --std as in its training"):
        black = network.tensor([Image.new("L" if channels == 1 else "RGB", (W, H))])
        seen = explain(network.net, black, layer=network.layer or None, guided=False)
    C = seen.logits.shape[1]
    if given is not None and len(names) != C:
        raise Complaint(f"{len(names)} class names were given; the network has {C}: name each one")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if given is not None and twice:
        raise Complaint(f"the class name {twice[0]} stands twice; give each class one of its own")
    names = names if len(names) == C else tuple(map(str, range(C)))
    return replace(network, layer=seen.layer, classes=names)


def course_network(weights: str) -> Network:
    """As large as the checkpoint says."""
    state = {} if weights == "none" else read_checkpoint(Path(weights))
    sizes = {layer: len(weight) for layer in ("conv1", "conv2", "fc1", "fc2")
             if (weight := state.get(f"{layer}.weight")) is not None and any(weight.shape[:1])}
    if state:
        with torch.device("meta"):  # sizes that don't fit together cost no memory
            check_fit(CourseCNN(**sizes), state, weights)
    net = CourseCNN(**sizes)
    net.load_state_dict(state, strict=False)
    maps = f"{net.conv1.out_channels} and {net.conv2.out_channels} maps"
    return Network(net, f"CourseCNN ({maps}), {weights_title(weights)}", size=(28, 28), cover=None,
                   mean=(net.MEAN,), std=(net.STD,))


def torchvision_network(name: str, weights: str) -> Network:
    models = import_torchvision().models
    names = models.list_models(module=models)
    if name not in names:
        raise Complaint(f"model {name} is not known; give course, {nearest(name, names)} or any "
                        "classifier of torchvision, timm:NAME or FILE.py:NAME")
    best = models.get_model_weights(name).DEFAULT
    if weights == "pretrained":
        where = Path(torch.hub.get_dir(), "checkpoints", Path(best.url).name)
        with complaining(NO_DOWNLOAD, f"fetch {best.url} to {where}, or {NAME_A_FILE}"):
            net = models.get_model(name, weights=best)
    else:
        # These two were trained to normalise once more inside; their side heads only train.
        inner = {"transform_input": True, "init_weights": False, "aux_logits": False}
        inner = inner if name in ("googlenet", "inception_v3") else {}
        net = with_weights(partial(models.get_model, name, weights=None, **inner), weights)
    eye = best.transforms()
    return Network(net, f"{name} of torchvision, {weights_title(weights)}",
                   classes=tuple(best.meta["categories"]), size=tuple(eye.crop_size * 2),
                   cover=tuple(eye.resize_size * 2), mean=tuple(eye.mean), std=tuple(eye.std),
                   resample=Image.Resampling[eye.interpolation.name])


def timm_network(name: str, weights: str) -> Network:
    imagenet = tuple(import_torchvision().models.ResNet18_Weights.DEFAULT.meta["categories"])
    with complaining(f"timm:{name} needs timm", "install it with: pip install timm"):
        timm = importlib.import_module("timm")
    if not timm.is_model(name):
        raise Complaint(f"timm has no model {name}; give {nearest(name, timm.list_models())}")
    build = partial(timm.create_model, name)
    if weights == "pretrained":
        source = timm.get_pretrained_cfg(name)
        hub = f"https://huggingface.co/{source.hf_hub_id}/resolve/main/pytorch_model.bin"
        with complaining(NO_DOWNLOAD, f"fetch {source.url or hub} and {NAME_A_FILE}"):
            net = build(pretrained=True)
    else:
        net = with_weights(build, weights)
    eye = timm.data.resolve_model_data_config(net)
    H, W = eye["input_size"][1:]
    mode = eye["crop_mode"]
    crop = "" if mode == "center" else f", center crop in place of timm's {mode}"
    return Network(net, f"{name} of timm, {weights_title(weights)}{crop}", classes=imagenet,
                   size=(H, W), mean=eye["mean"], std=eye["std"],
                   cover=(math.floor(H / eye["crop_pct"]), math.floor(W / eye["crop_pct"])),
                   resample=Image.Resampling[eye["interpolation"].upper()])


def own_network(model: str, weights: str | None) -> Network:
    """NAME of FILE.py: a class, or a function, that is called and gives a network."""
    path, name = Path(model.rpartition(":")[0]), model.rpartition(":")[2]
    sys.path.insert(0, str(path.absolute().parent))  # for what it imports itself
    with complaining(lambda error: f"model {model} raised {type(error).__name__} ({reason(error)})",
                     "give a file and the class or function in it that makes the network"):
        build = runpy.run_path(str(path))[name]
        net = build() if weights is None else with_weights(build, weights)
    if not isinstance(net, nn.Module):
        raise Complaint(f"model {model} made a {type(net).__name__}; it must return the network")
    convolution = next((m for m in net.modules() if isinstance(m, nn.Conv2d)), None)
    grey = convolution is not None and convolution.in_channels == 1
    mean, std = ((sum(m) / 3,) if grey else m for m in (IMAGENET_MEAN, IMAGENET_STD))
    return Network(net, f"{name} of {path.name}, {weights_title(weights)}", mean=mean, std=std)


def with_weights(build: Callable[..., nn.Module], weights: str) -> nn.Module:
    """The network with the weights of a file, and as many classes as these have."""
    net = build()
    if weights == "none":
        return net
    state, ours = read_checkpoint(Path(weights)), net.state_dict()
    last = next(reversed(ours))  # belongs to the layer of the classes
    if last in state and state[last].ndim and len(state[last]) != len(ours[last]):
        net = build(num_classes=len(state[last]))
    side = {key for key in state if key not in ours and key.lower().startswith("aux")}
    state = {key: value for key, value in state.items() if key not in side}
    check_fit(net, state, weights)
    net.load_state_dict(state, strict=False)
    return net


def check_fit(net: nn.Module, state: dict[str, Tensor], weights: str) -> None:
    ours = net.state_dict()
    for key in [*ours, *state]:
        has, needs = (tuple(d[key].shape) if key in d else "missing" for d in (state, ours))
        if has != needs and not key.endswith("num_batches_tracked"):  # which old files lack
            raise Complaint(f"weights {weights} are of another network: {key} is {has} in the "
                            f"file, {needs} in the network; give its own with --weights")


def weights_title(weights: str | None) -> str:
    titles = {None: "as it comes", "none": "RANDOM weights"}
    return titles.get(weights) or Path(str(weights)).name


def nearest(name: str, names: Iterable[str]) -> str:
    """The names that are spelt most alike."""
    return ", ".join(difflib.get_close_matches(name, names, 3, 0))


def import_torchvision() -> Any:
    """torchvision, also beside a CPU-only PyTorch.

    The registry's torchvision is built for CUDA; there its import stops with "operator
    torchvision::nms does not exist". Classifiers need none of these operators, only their names.
    """
    while True:
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            missing = re.search(r"operator (torchvision::\w+) does not exist", str(error))
            if not missing:
                raise
            torch.library.define(missing[1], "(Tensor x) -> Tensor")


MAX_TENSORS = 20_000  # of a checkpoint; the largest networks have a tenth of it


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, bare or wrapped. weights_only: nothing in the file is ever run."""

    def flaw(error: BaseException) -> str:
        if isinstance(error, (FileNotFoundError, IsADirectoryError, PermissionError)):
            return f"weights {path}: {reason(error)}"
        code = code_in(path, str(error))  # a broken file makes the unpickler raise almost anything
        what = f"would run code ({code}): refused" if code else "is truncated or no checkpoint"
        return f"weights {path}: the file {what}"

    how = "give a file written by torch.save(net.state_dict(), FILE) with --weights"
    # What torch.load warns of, it then refuses.
    with complaining(flaw, how), warnings.catch_warnings(action="ignore"):
        if bomb(path):
            raise ValueError("packed as torch.save never does")
        found = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not (isinstance(found, dict) and found and all(map(torch.is_tensor, found.values()))):
        raise Complaint(f"weights {path}: the file holds no state dict; {how}")
    claimed = sum(value.numel() * value.element_size() for value in found.values())
    if len(found) > MAX_TENSORS or claimed > 8 * path.stat().st_size:  # some share their weights
        raise Complaint(f"weights {path}: {len(found)} tensors of {claimed} bytes are more than "
                        f"such a file can hold; {how}")
    for key, value in found.items():
        if value.layout != torch.strided or value.is_complex():
            raise Complaint(f"weights {path}: {key} is no plain tensor of real numbers; {how}")
        if not torch.isfinite(value).all():
            raise Complaint(f"weights {path}: {key} holds NaN or infinity; train again, or {how}")
    return {str(key).removeprefix("module."): value for key, value in found.items()}


def bomb(path: Path) -> bool:
    """A zip of more than a network needs, or packed tighter than torch.save does it: not at all."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        entries = file.infolist()
    return len(entries) > MAX_TENSORS or any(e.file_size > e.compress_size for e in entries)


def code_in(path: Path, refusal: str) -> str | None:
    """What a pickle would have called: from PyTorch's refusal, or read off its own opcodes."""
    named = re.search(r"GLOBAL ([\w.]+)", refusal)
    if named:
        return named[1]
    words: list[str] = []
    with suppress(Exception), path.open("rb") as file:
        for opcode, word, _ in pickletools.genops(file):  # reads, runs nothing
            words += word.split() if isinstance(word, str) else []
            if opcode.name.endswith("GLOBAL"):
                return ".".join(words[-2:])
    return None


# ------------------------------------------------------------------------------------ Pictures

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


def refuse(words: str) -> NoReturn:
    raise Complaint(words)


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


def class_number(name: str, classes: tuple[str, ...]) -> int | None:
    """A class by its name, however it is spelt, or by its number."""
    numbers = numbered(classes)
    if name in numbers:
        return numbers[name]
    if name.isdecimal() and len(name) < 10 and int(name) < len(classes):
        return int(name)
    return numbers.get(plain(name)) if re.search("[a-zA-Z]", name) else None


@cache
def numbered(classes: tuple[str, ...]) -> dict[str, int]:
    exact = {name: c for c, name in enumerate(classes)}
    return {plain(name): c for name, c in exact.items()} | exact


def plain(name: str) -> str:
    """n02391049_Polar-Bear -> polar bear"""
    return re.sub(r"^n\d{8}|[\W_]+", " ", name).strip().casefold()


def file_name(name: str, taken: dict[str, int]) -> str:
    """The name made safe for a file on any system, and numbered if an earlier picture has it."""
    safe = re.sub(r"[^\w.-]+", "_", name).strip("._-").encode()[:200].decode(errors="ignore")
    safe = unique = safe or "picture"
    while unique.casefold() in taken:
        taken[safe.casefold()] += 1
        unique = f"{safe}-{taken[safe.casefold()]}"
    taken[unique.casefold()] = 1
    return unique


# --------------------------------------------------------------------------------- Explanation


Target = int | Sequence[int] | Tensor | None
Stride = tuple[int, int]  # pixels from cell to cell, down and across
Pad = int | Literal["auto"]  # cells of zeros around the map; auto: as many as the borders cost


@dataclass(frozen=True)
class Explanation:
    """What the network looked at in a batch of B pictures; iterate for one picture at a time."""

    logits: Tensor  # (B, C) before any softmax
    target: Tensor  # (B,) the class c that is explained
    layer: str
    method: str
    stride: Stride | None  # None where it is lost
    pad: tuple[float, float] | None  # cells added at each border; None: stretched, for want of it
    alpha: Tensor  # (B, K)
    cells: Tensor  # (B, u, v) Grad-CAM, raw, as the layer has it
    L_c: Tensor  # (B, H, W) the same where it lies in the picture
    R: Tensor | None  # (B, C, H, W) guided backpropagation
    guided_cam: Tensor | None  # (B, C, H, W) R * L_c
    negative: Tensor | None  # (B,) has A negative values? Asked for methods that assume it has none
    relus: int  # calls of a ReLU, which guided backpropagation is defined for
    unguided: tuple[str, ...]  # other activations, which the plain gradient passes

    def __iter__(self) -> Iterator[Explanation]:
        return (self.map(itemgetter(slice(i, i + 1))) for i in range(len(self.target)))

    def map(self, change: Callable[[Tensor], Tensor]) -> Explanation:
        """The same with every tensor changed."""
        tensors = {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        return replace(self, **changed)


def explain(net: nn.Module, x: Tensor, target: Target = None, layer: str | None = None,
            method: str = "gradcam", pad: Pad = "auto", guided: bool = True) -> Explanation:
    """Grad-CAM, guided backpropagation and their product for x (B, C, H, W), by one forward pass.

    target: one class for all, one a picture, or None for the predicted ones. layer: a name from
    net.named_modules(), or None for find_layer's. The network comes back exactly as it was.
    """
    return explain_each(net, x, [target], layer, [method], pad, guided)[0]


def explain_each(net: nn.Module, x: Tensor, targets: Sequence[Target], layer: str | None = None,
                 methods: Sequence[str] = ("gradcam",), pad: Pad = "auto",
                 guided: bool = True) -> list[Explanation]:
    """Every target by every method, still from one forward pass."""
    found = []
    with torch.inference_mode(False), torch.enable_grad(), evaluating(net):
        layer = layer or find_layer(net, x[:1])
        # Channels last: 0.8 to 0.95 times as long, but for one picture, where it may be 1.4 times.
        # Neither is nearer to float64: of ResNet-50's R, 0.00056 and 0.00064 of the norm away.
        order = torch.channels_last if len(x) > 1 else torch.preserve_format
        x = x.detach().clone(memory_format=order).requires_grad_()
        watch, logits, A = watched(net, x, layer, guided)
        stride, maps = getattr(A, STRIDE, None), A.detach()  # (B, K, u, v)
        negative = maps.amin((1, 2, 3)) < 0 if FOR_POSITIVE & {*methods} else None  # (B,)
        c = torch.stack([as_target(target, logits) for target in targets])  # (T, B)
        # One gradient for the whole batch: no picture's logit depends on another picture.
        dyc_dy = logits.new_zeros(len(c), *logits.shape).scatter_(2, c[..., None], 1)  # (T, B, C)
        with complaining(f"layer {layer} does not lead to the logits", f"name another one{OR}"):
            head = head_gradients(logits, A, dyc_dy)
        Rs = watch.guided_backprop(logits, x, dyc_dy) if guided else [None] * len(c)
        for t, (dyc_dA, R) in enumerate(zip(head, Rs, strict=True)):
            for method in methods:
                alpha = METHODS[method](maps, dyc_dA)
                cells = grad_cam(maps, alpha)
                pads, L_c = place(cells, x.shape[2:], stride, pad)
                guided_cam = None if R is None else R * L_c[:, None]  # (B, C, H, W)
                found.append(Explanation(logits.detach(), c[t], layer, method, stride, pads, alpha,
                                         cells, L_c, R, guided_cam,
                                         negative if method in FOR_POSITIVE else None,
                                         watch.relus, tuple(watch.unguided)))
    return found


def watched(net: nn.Module, x: Tensor, layer: str, guided: bool) -> tuple[Watch, Tensor, Tensor]:
    """The forward pass: who saw it, the logits (B, C) before a last softmax, and A (B, K, u, v)."""
    fed = x.clone()  # because a network may overwrite its input
    hook = submodule(net, layer).register_forward_hook((watch := Watch(fed)).keep_maps)
    with torch.set_grad_enabled(guided), hook, watch:  # alone, the CAM needs the head's graph
        output = net(fed)
    y = getattr(output, LOGITS, {}).get(getattr(output, "_version", None), output)
    logits = checked(y, x, 2, "the network", "give one that returns logits (B, classes)")
    how = "name a convolution, or a block that gives maps"
    return watch, logits, checked(watch.A, x, 4, f"layer {layer}", how)


def head_gradients(logits: Tensor, A: Tensor, dyc_dy: Tensor) -> list[Tensor]:
    """dy_c / dA (B, K, u, v) of every target: where it can be, by one walk through the head."""
    if len(dyc_dy) > 1:
        with suppress(RuntimeError):  # group norm, for one, is not made for several at once
            walk = torch.autograd.grad(logits, A, dyc_dy, retain_graph=True, is_grads_batched=True)
            return list(walk[0])
    return [way_back(logits, each, A, True) for each in dyc_dy]


def way_back(y: Tensor, dyc_dy: Tensor, x: Tensor, again: bool) -> Tensor:
    """dy_c / dx, asked for as the gradient of one number.

    Where gradients are handed over, PyTorch compares their shapes with SymPy's help: its import
    took half a second and 50 MB of the default run.
    """
    return torch.autograd.grad((y * dyc_dy).sum(), x, retain_graph=again)[0]


def all_through(A: Tensor, y: Tensor, x: Tensor) -> bool:
    """Whether no way leads back from y to the pixels x but through A."""
    passed: set[Any] = {(A.grad_fn, A.output_nr)}
    todo: list[Any] = [(y.grad_fn, y.output_nr)]
    while todo:
        if (way := todo.pop()) not in passed:
            passed.add(way)
            todo += way[0].next_functions if way[0] else ()
    return all(getattr(node, "variable", None) is not x for node, _ in passed)


def grad_cam(A: Tensor, alpha: Tensor) -> Tensor:
    """L_c = ReLU(sum over k of alpha_k A_k), eq. 2 of the paper: ReLU after the sum."""
    return F.relu(alpha[:, None] @ A.flatten(2)).view(-1, *A.shape[2:])


def alpha_gradcam(_A: Tensor, dyc_dA: Tensor) -> Tensor:
    """alpha_k = mean over (i, j) of dy_c / dA_k, eq. 1: (B, K, u, v) -> (B, K)."""
    return dyc_dA.mean((2, 3))


def alpha_gradcam_pp(A: Tensor, dyc_dA: Tensor) -> Tensor:
    """Chattopadhay et al. 2018, eq. 19: sum of g^2 / (2 g^2 + sum(A) g^3) ReLU(g), g = dy_c / dA.

    g^2 cancels: where it is zero, so is ReLU(g). Their factor exp(y_c) scales a map as a whole.
    """
    bottom = 2 + A.sum((2, 3), keepdim=True) * dyc_dA
    return (F.relu(dyc_dA) / torch.where(bottom == 0, 1, bottom)).sum((2, 3))


def alpha_xgradcam(A: Tensor, dyc_dA: Tensor) -> Tensor:
    """Fu et al. 2020, eq. 8: sum of A / sum(A) dy_c / dA; a map that sums to zero has no say."""
    total = A.sum((2, 3))
    return (A * dyc_dA).sum((2, 3)) / torch.where(total == 0, torch.inf, total)


def alpha_counterfactual(A: Tensor, dyc_dA: Tensor) -> Tensor:
    """Section 3.3 of the Grad-CAM paper: what speaks against the class has negative gradients."""
    return -alpha_gradcam(A, dyc_dA)


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": alpha_gradcam,
    "gradcam++": alpha_gradcam_pp,
    "xgradcam": alpha_xgradcam,
    "counterfactual": alpha_counterfactual,
}
FOR_POSITIVE = {"gradcam++", "xgradcam"}  # made for maps after a ReLU


def place(cells: Tensor, size: Sequence[int], stride: Stride | None,
          pad: Pad) -> tuple[tuple[float, float] | None, Tensor]:
    """The cells (B, u, v) where they lie in a picture of size (H, W): the pads, and (B, H, W)."""
    if pad == "auto" and stride and cells.shape[1:].numel() > 1:  # one cell alone stands for all
        pads = lost(size, cells.shape[1:], stride)
        rows, columns = (interpolation(S, n, p, cells.dtype, cells.device)
                         for S, n, p in zip(size, cells.shape[1:], pads, strict=True))
        return pads, rows @ (cells @ columns.T)
    if pad != "auto" and (not isinstance(pad, int) or pad < 0):
        raise Complaint(f"pad {pad!r} was given; give 'auto' or a number of cells from 0 up")
    N = 0 if pad == "auto" else pad
    stretched = F.interpolate(F.pad(cells, (N, N, N, N))[:, None], size, mode="bilinear")[:, 0]
    return None if pad == "auto" else (N, N), stretched


def lost(size: Sequence[int], cells: Sequence[int], stride: Stride) -> tuple[float, float]:
    """S pixels at stride s make S/s cells; what a map of n lacks was lost at its two borders."""
    down, across = ((S / s - n) / 2 for S, n, s in zip(size, cells, stride, strict=True))
    return down, across


@lru_cache(64)
def interpolation(S: int, n: int, pad: float, kind: torch.dtype, device: torch.device) -> Tensor:
    """(S, n) bilinear weights that draw n cells, padded on both sides, over S pixels."""
    p, j = torch.arange(S, dtype=torch.float64), torch.arange(n, dtype=torch.float64)
    t = (p - (S - 1) / 2) * (n + 2 * pad) / S + (n - 1) / 2  # where pixel p falls among the cells
    zeros = max(0, math.floor(pad))  # whole cells of pad are zero,
    t = t.clamp(-zeros, n - 1 + zeros)  # and what is left of it repeats its neighbour
    return F.relu(1 - (t[:, None] - j).abs()).to(kind).to(device)


STRIDE, LOGITS = "stride_so_far", "logits_before"  # what a Watch writes on tensors
OR = ", or switch off no_grad and checkpoints within the network"
NO_RELU = {"silu", "gelu", "hardswish", "mish", "elu", "celu", "selu", "leaky_relu", "prelu",
           "rrelu", "softplus", "softsign", "hardtanh", "tanh", "sigmoid", "hardsigmoid",
           "log_sigmoid", "glu", "hardshrink", "softshrink", "tanhshrink", "where", "lstm", "gru",
           "rnn_tanh", "rnn_relu"}
LOWER_BOUND = {"clamp": "min", "clamp_min": "min", "clip": "min", "hardtanh": "min_val",
               "threshold": "threshold", "leaky_relu": "negative_slope"}
RELU, MAXIMUM = {"relu", "relu6"}, {"maximum", "max", "fmax"}
ACTIVATIONS = {*RELU, *MAXIMUM, *LOWER_BOUND, *NO_RELU}
STRIDE_ARGUMENT = {"conv2d": 3, "max_pool2d": 2, "max_pool2d_with_indices": 2, "avg_pool2d": 2}


class Watch(TorchFunctionMode):
    """Sees every operation of one forward pass, however the network spells it.

    It keeps A of the target layer, notes on each tensor its total stride, and finds every ReLU:
    module, shared, in-place or functional.
    """

    A: Any = None

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        setattr(x, STRIDE, (1, 1))
        self.relus, self.unguided = 0, dict[str, None]()  # a set that keeps its order
        self.ways_back: list[Any] = []  # of the ReLUs, in autograd's graph

    def keep_maps(self, _module: nn.Module, args: Any, output: Any) -> Any:
        self.A = output
        if not isinstance(output, Tensor):
            return output
        if any(output is given for given in args):  # which others have, and may overwrite
            self.A = output = output.clone()
        if not output.requires_grad:
            output.requires_grad_()
            torch.set_grad_enabled(True)  # until the forward pass ends
        return output.clone()  # which in-place operations behind the layer may overwrite, not A

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")  # relu_ is relu in place
        if name in ACTIVATIONS:
            out = self.activation(name, func, args, kwargs)
        else:
            out = (IN_OUR_WAY.get(func, func) if args else func)(*args, **kwargs)
        for tensor in tensors_in((out,)):
            if stride := stride_behind(name, args, kwargs, tensor):
                setattr(tensor, STRIDE, stride)
        if name.endswith("softmax"):
            # Where it is changed later, it is not what comes out.
            setattr(out, LOGITS, {out._version: argument(args, kwargs, 0, "input")})
        return out

    def activation(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """A ReLU is noted with its way back; by its name, what guided backprop is not made for."""
        if not is_relu(name, args, kwargs):
            out = func(*args, **kwargs)
            if name in NO_RELU:
                self.unguided[name] = None
            return out
        part = args[0] if args and args[0]._is_view() else None
        if part is not None:  # in place, the gradient of the whole would hide the ReLU's own
            args = (part.clone(), *args[1:])
        out = func(*args, **kwargs)
        if out.is_floating_point():
            self.relus += 1
            if out.requires_grad:
                self.ways_back.append(out.grad_fn)
            elif any(tensor.requires_grad for tensor in tensors_in(args)):
                self.unguided[f"{name} in an autograd.Function"] = None
        return part.copy_(out) if part is not None and out is args[0] else out

    def guided_backprop(self, logits: Tensor, x: Tensor, dyc_dy: Tensor) -> list[Tensor]:
        """R (B, C, H, W) of every target."""
        for way in self.ways_back:
            way.register_hook(clamp)
        y, dyc, last = logits, list(dyc_dy), len(dyc_dy) - 1
        how = f"explain without guided maps{OR}"
        with complaining("the pixels do not lead to the logits", how):
            if last and all_through(self.A, logits, x):  # they walk through the head together
                y, dyc = self.A, head_gradients(logits, self.A, dyc_dy)
            return [way_back(y, each, x, t < last) for t, each in enumerate(dyc)]


class GreyConvolution(torch.autograd.Function):
    """F.conv2d; its way back to grey pixels is a matrix product: oneDNN takes four times as long.

    Not forward: pixels that are alike must give numbers that are, or pooling takes any of them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Any, *how: Any) -> Tensor:
        ctx.how = x.shape, weight, *how
        return F.conv2d(x, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        shape, weight, stride, padding = ctx.how
        x = gradient.new_empty(shape)  # nothing but its shape is asked for
        how = weight.shape[2:], [*map(int, stride)], [*map(int, padding)], (True, False, False)
        product: Any = torch.ops.aten._slow_conv2d_backward.output_mask
        return product(gradient.contiguous(), x, weight, *how)[0], None, None, None, None


def convolution(x: Tensor, weight: Tensor, bias: Any = None, *how: Any, **named: Any) -> Tensor:
    grey = x.ndim == 4 and x.shape[1] == 1 and x.device.type == "cpu" and x.requires_grad
    grey = grey and torch.is_grad_enabled()
    usual = grey and how[2:] == ((1, 1), 1) and np.shape(how[0]) == np.shape(how[1]) == (2,)
    if usual and not any(t.requires_grad for t in tensors_in((weight, bias))):
        apply: Callable[..., Tensor] = GreyConvolution.apply
        return apply(x, weight, bias, *how[:2])
    return F.conv2d(x, weight, bias, *how, **named)


def batch_norm(x: Tensor, running_mean: Any, running_var: Any, weight: Tensor | None = None,
               bias: Tensor | None = None, training: bool = False, momentum: float = 0.1,
               eps: float = 1e-5) -> Tensor:
    """F.batch_norm; in use as x * scale + shift: autograd need not keep x for the way back.

    ResNet-50, 32 pictures: 0.6 times the memory, 0.88 times as long. One picture: no gain.
    """
    if training or x.shape[0] == 1:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    scale = torch.rsqrt(running_var + eps)
    scale = scale if weight is None else scale * weight
    zero = torch.zeros_like(scale) if bias is None else bias
    shift = torch.addcmul(zero, running_mean, scale, value=-1)  # rounded as in PyTorch's own
    scale, shift = (t.to(x.dtype).view(-1, *[1] * (x.ndim - 2)) for t in (scale, shift))
    return torch.addcmul(shift, x, scale)


def viewed(view: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Maps as rows: what lies channels-last can't be viewed so, and is laid out anew itself.

    A copy would do, but for who writes through the view, and goes on with what is behind it.
    """
    if x.ndim == 4 and x.grad_fn and x.is_contiguous(memory_format=torch.channels_last):
        x.register_hook(as_it_lay)
    try:
        return view(x, *args, **kwargs)
    except RuntimeError:
        x.data = x.contiguous()
        return view(x, *args, **kwargs)


def as_it_lay(gradient: Tensor) -> Tensor | None:
    """On the way back, where rows become maps: of mixed layouts a pooling takes 9 times as long."""
    with suppress(RuntimeError):  # not made for several targets at once
        return gradient.contiguous(memory_format=torch.channels_last)
    return None


VIEWS = (Tensor.view, Tensor.view_as, Tensor.flatten, torch.flatten, Tensor.reshape, torch.reshape)
IN_OUR_WAY: dict[Any, Callable[..., Tensor]] = {
    F.conv2d: convolution,
    F.batch_norm: batch_norm,
    **{view: partial(viewed, view) for view in VIEWS},
}


def clamp(gradients: Sequence[Tensor | None], _given: Any) -> None:
    """Guided backpropagation: of a ReLU's gradient only what speaks for the class goes on.

    Clamped behind the ReLU's own backward pass (which multiplies by 0 or 1: before it would be the
    same), its tensor is nobody else's: in place it costs a fiftieth of VGG-16's time, not a tenth.
    """
    for gradient in gradients:
        if gradient is not None:
            gradient.clamp_(min=0)


def stride_behind(name: str, args: Any, kwargs: Any, out: Tensor) -> Stride | None:
    """Multiplied by convolution and pooling, kept where the size is kept, else lost."""
    for tensor in tensors_in((*args, *kwargs.values())):
        before: Stride | None = getattr(tensor, STRIDE, None)
        if before and name in STRIDE_ARGUMENT:
            step = argument(args, kwargs, STRIDE_ARGUMENT[name], "stride")
            if not step:  # a pooling's stride is its kernel's size by default, a convolution's is 1
                step = 1 if name == "conv2d" else argument(args, kwargs, 1, "kernel_size")
            down, across = (step[0], step[-1]) if isinstance(step, (tuple, list)) else (step, step)
            return before[0] * down, before[1] * across
        if before and (name == "pad" or tensor.shape[-2:] == out.shape[-2:]):
            return before
    return None


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among some values and in the lists among them."""
    return (t for value in values for t in (value if isinstance(value, (list, tuple)) else (value,))
            if isinstance(t, Tensor))


def argument(args: Any, kwargs: Any, position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)


def is_relu(name: str, args: Any, kwargs: Any) -> bool:
    """relu, and what nn.ReLU6 or a hand-written one is made of: a bound at zero from below."""
    if name in MAXIMUM:
        both = list(tensors_in((*args, *kwargs.values())))
        return len(both) == 2 and any(map(is_zero, both))
    if name in LOWER_BOUND:
        return is_zero(argument(args, kwargs, 1, LOWER_BOUND[name]))
    return name in RELU


def is_zero(value: Any) -> bool:
    return value is not None and bool((torch.as_tensor(value) == 0).all())


def checked(value: Any, x: Tensor, ndim: int, who: str, how: str) -> Tensor:
    if isinstance(value, Tensor) and value.ndim == ndim and len(value) == len(x):
        return value
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise Complaint(f"{who} gives {shape}; {how}")


def submodule(net: nn.Module, layer: str) -> nn.Module:
    try:
        return net.get_submodule(layer)
    except AttributeError as error:
        names = nearest(layer, (name for name, _ in net.named_modules() if name))
        raise Complaint(f"the network has no layer {layer}; the nearest names are {names}: "
                        "--layers lists all") from error


def as_target(target: Target, logits: Tensor) -> Tensor:
    """One class a picture (B,): the predicted ones unless told otherwise."""
    B, C = logits.shape
    if target is None:
        return logits.detach().argmax(1)
    with complaining(lambda _: f"target {target} is no class", "give one number, or one a picture"):
        c = torch.as_tensor(target)
    c = c.expand(B) if c.ndim == 0 else c
    if c.shape != (B,):
        raise Complaint(f"targets of shape {tuple(c.shape)} were given for {B} pictures; "
                        "give one class for all or one for each")
    wrong = [number for number in c.tolist() if isinstance(number, bool) or number not in range(C)]
    if wrong:
        raise Complaint(f"class {wrong[0]} was given; the network has classes 0 to {C - 1}: name "
                        "one of these")
    return c.long().to(logits.device)


def find_layer(net: nn.Module, x: Tensor) -> str:
    """The last convolution, or the largest block around it that still ends at its resolution."""
    sizes: dict[str, tuple[int, ...]] = {}  # in the order in which the modules end

    def note(name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        sizes.pop(name, None)
        if isinstance(output, Tensor) and output.ndim == 4:
            sizes[name] = tuple(output.shape[2:])

    overhear(net, x, note)
    convolutions = [name for name in sizes if isinstance(net.get_submodule(name), nn.Conv2d)]
    if not convolutions:
        raise Complaint("the network has no two-dimensional convolution; Grad-CAM needs one")
    # A map of one cell shows no place: squeeze-and-excitation blocks end in such convolutions.
    layer = ([name for name in convolutions if sizes[name] != (1, 1)] or convolutions)[-1]
    size, block = sizes[layer], layer
    while block := block.rpartition(".")[0]:
        if sizes.get(block, size) != size:  # a list of modules has no size of its own: look past it
            break
        layer = block if block in sizes else layer
    return layer


def overhear(net: nn.Module, x: Tensor, note: Callable[[str, nn.Module, Any, Any], None]) -> None:
    """A forward pass of which each module's name, itself, its input and its output are noted.

    With a graph, as a network may hook its own maps; but nothing is kept for a way back.
    """
    x = x.detach().clone().requires_grad_().clone()
    empty = torch.autograd.graph.saved_tensors_hooks(lambda _: None, torch.as_tensor)
    with ExitStack() as hooks, evaluating(net), torch.enable_grad(), empty, Watch(x):
        for name, module in net.named_modules():
            hooks.enter_context(module.register_forward_hook(partial(note, name)))
        net(x)


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Dropout and batch-norm as in use, no graph for the weights; afterwards each as it was."""
    on: list[tuple[Any, str]] = []
    for module in net.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise Complaint("the network is scripted, which hides what it does; give the module it "
                            "was made from")
        if module.training:
            on.append((module, "training"))
        # net.parameters() would walk through all modules once more: half of the time.
        on += [(weight, "requires_grad") for weight in module._parameters.values()
               if weight is not None and weight.requires_grad]
    try:
        for thing, name in on:
            setattr(thing, name, False)
        yield
    finally:
        for thing, name in on:
            setattr(thing, name, True)


# -------------------------------------------------------------------------------------- Figure

Row = dict[str, str]  # of the table
NO_EVIDENCE = "no positive evidence"
SKIPPED = "skipped: "  # so begins the note on a picture that is left out
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # so begins a cell that a spreadsheet would compute
COLUMNS = ("image", "label", "predicted", "probability", "target", "layer", "method", "note")
CAMS = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++", "xgradcam": "XGrad-CAM",
        "counterfactual": "Counter-\nfactual"}
PANELS = {  # title and meaning; {} is the method's or the gradient's own name
    "raw": ("Raw", "what the\nnetwork sees"),
    "gradcam": ("{cam}", "where the\nevidence {lies}"),
    "guided": ("{guided}", "pixels for it\nand against"),
    "guided-gradcam": ("{guided_cam}", "pixels within\nthe evidence"),
    "overlay": ("Overlay", "the evidence on\nthe picture"),
}


@dataclass(frozen=True)
class Style:
    """What a figure shows, and in which colours."""

    panels: Sequence[str] = ("raw", "gradcam", "guided", "guided-gradcam")
    colormap: str = "jet"
    opacity: float = 0.5

    def paint(self, values: np.ndarray, signed: bool = False) -> np.ndarray:
        """(H, W) in colours, (H, W, 3) bytes: a map from 0 to its maximum, a signed one around 0.

        A few pixels of a gradient are far larger than the rest: its top two in a thousand saturate.
        """
        size = np.abs(values)
        top = np.quantile(size, 0.998, method="higher") if signed else size.max()
        values = values / (top or size.max() or 1)
        values = (values + 1) / 2 if signed else values
        steps = (values * 256).clip(0, 255).astype(np.uint8)
        return colours("RdBu_r" if signed else self.colormap).take(steps, axis=0)


@cache
def colours(colormap: str) -> np.ndarray:
    """(256, 3) bytes, from 0 to 1: looked up here, as matplotlib makes its table for each image."""
    from matplotlib import colormaps

    table: np.ndarray = colormaps[colormap](np.arange(256), bytes=True)[:, :3]
    return np.ascontiguousarray(table)


def panel(name: str, picture: Picture, explanation: Explanation, style: Style) -> np.ndarray:
    """A map (H, W), or a picture (H, W, 3) bytes."""
    assert picture.image is not None
    if name == "raw":
        return np.asarray(picture.image.convert("RGB"))
    if name == "overlay":
        return np.asarray(overlay(picture.image, explanation, style))
    if name == "gradcam":
        return explanation.L_c[0].numpy()
    signed = explanation.R if name == "guided" else explanation.guided_cam
    assert signed is not None
    return signed[0].sum(0).numpy()  # the channels of a colour together


def overlay(image: Image.Image, explanation: Explanation, style: Style,
            box: Box | None = None) -> Image.Image:
    """The map over a picture of any size; box is the part of it that the network saw."""
    (W, H), (h, w) = image.size, explanation.L_c.shape[1:]
    left, top, right, bottom = box or (0, 0, W, H)
    x, y = w / (right - left), h / (bottom - top)
    x1, y1 = min(W - 1, max(0, round(left))), min(H - 1, max(0, round(top)))
    x2, y2 = min(W, max(x1 + 1, round(right))), min(H, max(y1 + 1, round(bottom)))
    seen = (x1, y1, x2, y2)  # whole pixels, one at least
    # The part of the map that lies on the picture; an edge may be a rounding error outside of it.
    within = (max(0, (x1 - left) * x), max(0, (y1 - top) * y),
              min(w, (x2 - left) * x), min(h, (y2 - top) * y))
    picture = image.convert("RGB")
    under = picture.crop(seen)
    L_c = Image.fromarray(explanation.L_c[0].numpy())  # enlarged first, and coloured then
    heat = style.paint(np.asarray(L_c.resize(under.size, Image.Resampling.BILINEAR, within)))
    mixed = Image.blend(under, Image.fromarray(heat), style.opacity)
    if not explanation.cells.any() and min(mixed.size) >= 100:  # on less it could not be read
        font = ImageFont.load_default(min(mixed.size) / 12)
        middle = mixed.width / 2, mixed.height / 10
        ImageDraw.Draw(mixed).text(middle, NO_EVIDENCE, "white", font, "mm",
                                   stroke_width=2, stroke_fill="black")
    picture.paste(mixed, (x1, y1))
    return picture


def table_row(picture: Picture, explanation: Explanation | None, classes: Sequence[str],
              said: str = "") -> Row:
    """What the table and the figure say of a picture; said: of one that is not explained."""
    row = dict.fromkeys(COLUMNS, "") | {"image": picture.name, "label": picture.label}
    if explanation is None:
        return row | {"predicted": said, "note": "" if said else SKIPPED + picture.note}
    probability, predicted = explanation.logits[0].softmax(0).max(0)
    notes = [picture.note, "" if explanation.cells.any() else NO_EVIDENCE, unguided(explanation)]
    if explanation.negative is not None and explanation.negative.any():
        notes.append(f"{explanation.method} is made for maps after a ReLU, but those of "
                     f"{explanation.layer} have negative values")
    return row | {
        "predicted": classes[int(predicted)],
        "probability": f"{probability:.6f}",
        "target": classes[int(explanation.target)],
        "layer": explanation.layer,
        "method": explanation.method,
        "note": "; ".join(filter(None, notes)),
    }


def unguided(explanation: Explanation) -> str:
    """Where the network has no ReLU, guided backpropagation is not defined."""
    if explanation.R is None or (explanation.relus and not explanation.unguided):
        return ""
    others = ", ".join(explanation.unguided) or "any activation but ReLU"
    how = "guided at the ReLUs, plain there" if explanation.relus else "the plain gradient is shown"
    return f"guided backprop is not defined for {others}: {how}"


def titles(explanations: Sequence[Explanation]) -> dict[str, str]:
    """What the panels are called: after the method, and never guided where nothing guides."""
    methods = dict.fromkeys(explanation.method for explanation in explanations)
    guided = "Guided" if not explanations[0].unguided else "Partly guided"
    guided = guided if explanations[0].relus else "Plain"
    return {
        "cam": CAMS[next(iter(methods))] if len(methods) == 1 else "CAM",
        "lies": "against it lies" if [*methods] == ["counterfactual"] else "lies",
        "guided": f"{guided}\n{'Backprop' if guided != 'Plain' else 'gradient'}",
        "guided_cam": f"{guided}\n{'Grad-CAM' if guided != 'Plain' else 'grad. x CAM'}",
    }


def draw_grid(pictures: Sequence[Picture], explanations: Sequence[Explanation],
              classes: Sequence[str], style: Style = Style()) -> Figure:
    """A column a picture, a row a panel; made to be pasted at 16 cm. Lengths are in inches."""
    from matplotlib.figure import Figure

    rows = [table_row(p, e, classes) for p, e in zip(pictures, explanations, strict=True)]
    heads = ["image", "predicted", "probability"]
    heads += ["label"] if any(row["label"] for row in rows) else []
    heads += ["target"] if any(row["target"] != row["predicted"] for row in rows) else []
    heads += ["method"] if len({row["method"] for row in rows}) > 1 else []
    left, top, cell, right = 1.22, 0.06 + 0.19 * len(heads), 0.86, 0.62
    width, height = left + cell * len(rows) + right, top + cell * len(style.panels)
    spare = max(0, 1.4 * height - width) / 2  # of few pictures too the sheet is landscape
    left, width = left + spare, width + 2 * spare
    figure = Figure((width, height), dpi=300)
    # One axes holds all the small images: an axes for each would take most of the run's time.
    axes = figure.add_axes((0, 0, 1, 1))
    for i, row in enumerate(rows):
        x = left + cell * i
        for k, head in enumerate(heads):
            draw_head(axes, x + 0.4, 0.12 + 0.19 * k, head, row)
        for k, name in enumerate(style.panels):
            values = panel(name, pictures[i], explanations[i], style)
            y = top + cell * k
            draw_panel(axes, name, values, style, (x, y, x + 0.8, y + 0.8))
            draw_words(axes, name, explanations[i], x + 0.4, y + 0.4)
    for k, head in enumerate(heads):
        name = {"image": "picture", "target": "maps for"}.get(head, head)
        axes.text(left - 0.1, 0.12 + 0.19 * k, name, size=9, color="0.25", ha="right", va="center")
    called = titles(explanations)
    for k, name in enumerate(style.panels):
        names = [words.format(**called) for words in PANELS[name]]
        behind = left + cell * len(rows) + 0.02
        draw_margins(axes, name, names, style, (left - 0.1, behind, top + cell * k))
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    axes.set_axis_off()
    return figure


def draw_head(axes: Axes, x: float, y: float, head: str, row: Row) -> None:
    """One line of what stands over a column; a wrong prediction stands out."""
    style: dict[str, Any] = {"size": 9, "color": "0.25"}
    words = row[head]
    if len(words) > 12 and head != "method":
        words = f"{words[:4]}...{words[-5:]}"
    if head == "method":
        words, style["size"] = CAMS[words].replace("-\n", ""), 8
    elif head == "probability":
        words = f"{float(words):.1%}" if float(words) < 0.9995 else ">99.9%"
    elif head == "predicted":
        style = {"size": 13 if len(words) < 4 else 9, "weight": "bold"}
        if row["label"] not in ("", row[head]):  # crossed and framed: clear without colour too
            frame = {"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "crimson"}
            words, style = f"{words} \N{BALLOT X}", style | {"color": "crimson", "bbox": frame}
    axes.text(x, y, words, ha="center", va="center", parse_math=False, **style)


def draw_panel(axes: Axes, name: str, values: np.ndarray, style: Style, corners: Box) -> None:
    """A map or a picture, in its own proportions, in the middle of a box."""
    left, top, right, bottom = corners
    (h, w), signed = values.shape[:2], name.startswith("guided")
    shown = values if values.ndim == 3 else style.paint(values, signed)
    scale = min((right - left) / w, (bottom - top) / h)
    x, y = (left + right - w * scale) / 2, (top + bottom - h * scale) / 2
    extent = (x, x + w * scale, y + h * scale, y)
    axes.imshow(shown, extent=extent, interpolation="nearest")


def draw_words(axes: Axes, name: str, explanation: Explanation, x: float, y: float) -> None:
    """No panel is blank without a word."""
    words, small = "", min(explanation.L_c.shape[1:]) < 100  # a large overlay has its own words
    empties = ("gradcam", "guided-gradcam", "overlay") if small else ("gradcam", "guided-gradcam")
    if name in empties and not explanation.cells.any():
        words = NO_EVIDENCE.replace(" ", "\n")
    elif name == "guided" and explanation.R is not None and not explanation.R.any():
        words = "no\ngradient"
    if words:
        frame = {"boxstyle": "square,pad=0.2", "facecolor": "white", "edgecolor": "none"}
        axes.text(x, y, words, size=9, ha="center", va="center", bbox=frame)


def draw_margins(axes: Axes, name: str, names: list[str], style: Style,
                 where: tuple[float, float, float]) -> None:
    """A row's title and meaning before it, the scale of its colours behind it."""
    left, right, y = where
    axes.text(left, y + 0.41, names[0], size=11, weight="bold", ha="right", va="bottom")
    axes.text(left, y + 0.45, names[1], size=9, color="0.25", ha="right", va="top")
    if name == "raw":
        return
    signed = name.startswith("guided")
    low, high = ("against", "for") if signed else ("0", "max")
    ramp = np.linspace(1, -1 if signed else 0, 80)[:, None].repeat(7, 1)
    draw_panel(axes, name, ramp, style, (right, y, right + 0.07, y + 0.8))
    axes.text(right + 0.12, y, high, size=8, va="top")
    axes.text(right + 0.12, y + 0.8, low, size=8, va="bottom")


# ----------------------------------------------------------------------------------------- Run
#
# The pictures are cut into numbered blocks of --batch-size. A block is decoded by a worker,
# explained, and written: last of all its part of the table, 7.csv in a folder named after the
# settings. A part that is there says that its block is done. So --resume does the blocks that have
# none, the ranks of torchrun share them out by number, and the table is the parts in their order.
# Ranks begin and end together, through torchrun's store. A process group could not be built once
# torchrun had to start one of them again, as that store still has the addresses of the dead.

RANK, LOCAL_RANK, WORLD = (
    int(os.environ[name]) if "TORCHELASTIC_RUN_ID" in os.environ else single
    for name, single in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))
)
FREE = ("device", "grid", "out", "quiet", "resume", "workers")  # settings that change no part
WRITERS = 2  # threads
PATIENCE = 60 if WORLD > 1 else 0  # seconds, in which a shared folder must show what is in it
Options = argparse.Namespace  # of the command line
Result = tuple[Picture, list[Explanation], list[Row]]  # no explanation: unreadable, or not picked


class Blocks(IterableDataset[tuple[int, list[Picture]]]):
    """The wanted blocks that are not done, decoded; each worker of a DataLoader has its share."""

    def __init__(self, network: Network, options: Options, wanted: Container[int] = (),
                 done: Container[int] = ()) -> None:
        self.network = replace(network, net=nn.Identity())  # a worker needs no copy of it
        self.options, self.wanted, self.done = options, wanted, done

    def items(self) -> Iterator[Item]:
        """All there are, or --limit; that counts those that are picked, where some are picked."""
        limit = self.options.limit if self.options.pick == "all" else None
        return itertools.islice(items_in(self.options.images, self.network.classes), limit)

    def __iter__(self) -> Iterator[tuple[int, list[Picture]]]:
        how = self.options.invert, self.options.full_size, "label" in self.options.target
        first, step = 0, 1
        if worker := get_worker_info():
            first, step = worker.id, worker.num_workers
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for what started it
        items = self.items()
        blocks = enumerate(iter(lambda: [*itertools.islice(items, self.options.batch_size)], []))
        todo = (b for b in blocks if b[0] in self.wanted and b[0] not in self.done)
        for number, block in itertools.islice(todo, first, None, step):
            yield number, [decoded(item, self.network, *how) for item in block]


@dataclass
class Tally:
    """What the account needs to know of the rows that went by."""

    explained: int = 0
    skipped: list[str] = field(default_factory=list)
    shown: dict[str, int] = field(default_factory=dict)  # pictures of the figure, and their blocks
    notes: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)  # by label
    right: Counter[str] = field(default_factory=Counter)

    def add(self, rows: list[Row], block: int, grid: int) -> None:
        """The rows of one picture."""
        label, predicted = rows[0]["label"], rows[0]["predicted"]
        if label and predicted:
            self.seen[label] += 1
            self.right[label] += label == predicted
        if not predicted:
            self.skipped.append(rows[0]["note"])
        elif rows[0]["target"]:
            self.explained += 1
            if self.explained * len(rows) <= grid or not self.shown:  # one picture at least
                self.shown[rows[0]["image"]] = block
            for row in rows:
                self.notes.update(filter(None, row["note"].split("; ")))


def run(options: Options) -> int:
    """Reads, explains and writes, block by block; 1 if a picture had to be left out."""
    started = time.perf_counter()
    feed = {name: given for name in ("size", "mean", "std") if (given := getattr(options, name))}
    network = load_network(options.model, options.weights, options.layer, options.classes, **feed)
    if options.layers:
        print(layer_table(network))
        return 0
    if options.weights == "none" and RANK == 0:
        print(f"{SCRIPT}: the weights are RANDOM: these maps mean nothing", file=sys.stderr)
    options.target = [target_of(word, network.classes) for word in options.target]
    if WORLD > 1 and options.pick != "all" and options.limit:
        raise Complaint("--pick with --limit was given to several processes, of which none knows "
                        "what the others picked; leave one of them away, or use one process")
    mark, total = fingerprint(network, options)
    options.parts = options.out / f".{STEM}.{mark}.parts"
    if not options.resume and WORLD == 1:  # what was begun before is forgotten
        for begun in options.out.glob(".*.parts"):
            shutil.rmtree(begun)
    if len(heard_of_all("pictures", mark)) > 1:
        raise Complaint("the processes don't see the same pictures, settings and weights; run them "
                        "again when nothing changes any more")
    at_hand = explain_blocks(network, options, total)
    heard_of_all("end")
    if RANK:
        return 0
    if not complete(options, total):
        raise Complaint(f"{options.parts} is no longer complete, as when another run writes into "
                        "the same folder; add --resume, and give each run an --out of its own")
    tally = merged(options, total)
    columns = columns_of(tally, at_hand, network, options)
    save_figure(columns, network, options)
    shutil.rmtree(options.parts)
    for note in tally.skipped:
        print(f"{SCRIPT}: {note}", file=sys.stderr)
    if not options.quiet:
        print(account(network, options, tally, columns[0][1], time.perf_counter() - started))
    # To torchrun a rank that ends with 1 has failed, and it would start all of them again.
    return 1 if tally.skipped and WORLD == 1 else 0


def fingerprint(network: Network, options: Options) -> tuple[str, int]:
    """Of the settings, the weights and the pictures' names, which are counted, too."""
    settings = {k: str(v) for k, v in vars(options).items() if k not in FREE}
    mark, total = zlib.crc32(json.dumps(settings).encode()), 0
    weights: list[Any] = [*network.net.parameters(), *network.net.buffers()]
    for weight in weights:
        mark = zlib.crc32(weight.detach().contiguous().numpy(), mark)
    for name, label, _ in Blocks(network, options).items():
        mark, total = zlib.crc32(f"{name} {label}".encode(errors="replace"), mark), total + 1
    return f"{mark:08x}", total


def explain_blocks(network: Network, options: Options, total: int) -> dict[int, list[Result]]:
    """This rank's blocks; decoding, explaining and writing overlap. Returns the figure's blocks."""
    # Freed memory stays here for the next batch: Linux hands it out anew page by page, which is
    # slow enough to take a quarter of VGG-16's time, and two thirds of a batch-norm's.
    libc("mallopt", -4, 0)  # M_MMAP_MAX
    libc("mallopt", -1, 2**31 - 1)  # M_TRIM_THRESHOLD
    network.net.to(options.device)
    done = set(numbers_of(options.parts))
    blocks = Blocks(network, options, range(RANK, sys.maxsize, WORLD), done)
    workers = options.workers if total > 4 * options.batch_size else 0
    loader = DataLoader(blocks, batch_size=None, num_workers=workers)
    at_hand: dict[int, list[Result]] = {}
    columns, left, last = 0, still_to_pick(options), max(done, default=-1)
    with progress(total, len(done), options) as bar, ThreadPoolExecutor(WRITERS) as pool:
        writing: deque[Future[None]] = deque()
        # All threads start now: one that lacks memory is waited for for ever.
        pool.map(Barrier(WRITERS).wait, [5] * WRITERS)
        for number, block in loader:
            if left <= 0 and number > last:  # what was done before the last was picked before it
                break
            results = explained(network, block, left, options)
            if columns < options.grid:
                at_hand[number] = [result for result in results if result[1]]
                columns += sum(len(explanations) for _, explanations, _ in results)
            writing.append(pool.submit(write_block, number, results, options))
            if len(writing) > WRITERS:
                writing.popleft().result()
            bar.update(len(block))
            left -= sum(bool(explanations) for _, explanations, _ in results)
        for each in writing:
            each.result()
    libc("malloc_trim", 0)  # what was kept, for the figure
    return at_hand


def heard_of_all(about: str, word: str = "") -> set[bytes]:
    """What each rank says, once all have; if one can't, torchrun ends them all."""
    if WORLD == 1:
        return {word.encode()}
    store, *_ = next(rendezvous("env://"))
    words = [f"{about} {rank}" for rank in range(WORLD)]
    store.set(words[RANK], word)
    while not store.check(words):  # its own wait would not hear of Ctrl-C
        time.sleep(0.1)
    return {*map(store.get, words)}


def complete(options: Options, total: int) -> bool:
    """Whether every block that is needed has its part."""
    blocks, end = -(-total // options.batch_size), time.monotonic() + PATIENCE
    while len(numbers_of(options.parts)) < blocks and still_to_pick(options) > 0:
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def libc(name: str, *numbers: int) -> None:
    """A function that the GNU C library has; others do without."""
    with suppress(AttributeError, OSError, TypeError):
        getattr(ctypes.CDLL(None), name)(*numbers)


def progress(total: int, done: int, options: Options) -> Any:
    """A bar on standard error, for a person, on what takes longer than two seconds."""
    from tqdm import tqdm

    hidden = True if options.quiet or RANK else None  # None: unless it is a terminal
    share, before = -(-total // WORLD), done * options.batch_size // WORLD
    return tqdm(total=share, initial=min(before, share), delay=2, disable=hidden, unit=" pictures")


def still_to_pick(options: Options) -> int:
    """With --pick, --limit counts the pictures that were picked, also before --resume."""
    if options.pick == "all" or options.limit is None:
        return sys.maxsize
    picked = {row["image"] for _, rows in rows_in(options.parts) for row in rows if row["target"]}
    return int(options.limit) - len(picked)


def explained(network: Network, block: list[Picture], left: int, options: Options) -> list[Result]:
    """The block's pictures, each with its explanations, target by target, and its rows."""
    chosen = [picture for picture in block if picture.image is not None]
    said: dict[str, str] = {}
    with threads_for(network):
        if options.pick != "all":
            names = halved(partial(predictions, network), chosen)
            said = {p.name: name for p, name in zip(chosen, names, strict=True)}
            right = options.pick == "right"
            chosen = [p for p in chosen if p.label and (p.label == said[p.name]) == right][:left]
        each = halved(partial(explanations_of, network, options), chosen)
    found = {picture.name: ones for picture, ones in zip(chosen, each, strict=True)}
    results = []
    for picture in block:
        ones = found.get(picture.name, [])
        if picture.name in found and not ones:
            note = f"{picture.name}: the network answers with NaN or infinity; give another picture"
            picture = replace(picture, note=note)
        each_or_none: Sequence[Explanation | None] = ones or [None]
        other = "" if picture.name in found else said.get(picture.name, "")
        rows = [table_row(picture, one, network.classes, other) for one in each_or_none]
        results.append((picture, ones, rows))
    return results


@contextmanager
def threads_for(network: Network) -> Iterator[None]:
    """One for the course network and its like, which a second core makes no faster.

    It decodes and writes meanwhile: on two cores the run takes 0.55 to 0.87 times as long.
    """
    work = sum(weight.numel() for weight in network.net.parameters()) * math.prod(network.size)
    before = torch.get_num_threads()
    if small := work < 10**8:  # the course network's is a tenth of it, a ResNet-20's three times
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if small:
            torch.set_num_threads(before)


def halved(work: Callable[[list[Picture]], list[Any]], pictures: list[Picture]) -> list[Any]:
    """work's result for each; where memory does not suffice for all, half and half."""
    try:
        return work(pictures) if pictures else []
    except (MemoryError, RuntimeError) as error:
        if len(pictures) == 1 or not no_memory(error):
            raise
    # Here and not above: what failed is still in memory as long as the error is.
    half = len(pictures) // 2
    libc("malloc_trim", 0)  # what was kept, for a smaller batch
    say_once(f"no memory for {len(pictures)} pictures at once, so {half}; --batch-size {half} "
             "saves the attempt")
    return halved(work, pictures[:half]) + halved(work, pictures[half:])


@cache
def say_once(words: str) -> None:
    print(f"{SCRIPT}: {words}", file=sys.stderr)


def explanations_of(network: Network, options: Options,
                    pictures: list[Picture]) -> list[list[Explanation]]:
    """Of each picture: target by target, and method by method; none where one is not finite."""
    guided = any(name.startswith("guided") for name in options.panels)
    words: dict[str | int, Any] = {"predicted": None}
    if "label" in options.target:  # then a picture without a label is none of these
        words["label"] = [numbered(network.classes)[p.label] for p in pictures]
    targets = [words.get(target, target) for target in options.target]
    x, how = tensor_of(network, pictures), (network.layer, options.method, options.pad)
    found = fetched(explain_each(network.net, x, targets, *how, guided))
    placed = (replace(each, L_c=blurred(each.L_c, options.blur)) for each in found)
    good = torch.stack([*map(finite, found)]).all(0).tolist()
    return [list(ones) if fine else [] for *ones, fine in zip(*placed, good, strict=True)]


def predictions(network: Network, pictures: list[Picture]) -> list[str]:
    x = tensor_of(network, pictures)
    y = explain(network.net, x, layer=network.layer, guided=False).logits
    return [network.classes[c] for c in y.argmax(1).tolist()]


def tensor_of(network: Network, pictures: Sequence[Picture]) -> Tensor:
    return network.tensor([p.image for p in pictures if p.image])


def finite(explanation: Explanation) -> Tensor:
    """(B,) whether the network answers with numbers."""
    maps = (explanation.logits, explanation.L_c, explanation.R, explanation.guided_cam)
    return torch.stack([m.isfinite().flatten(1).all(1) for m in maps if m is not None]).all(0)


def fetched(explanations: list[Explanation]) -> list[Explanation]:
    """The same on the CPU, in one transfer: each one waits for all that a GPU has yet to do."""
    sent = {id(t): t for e in explanations for t in vars(e).values() if isinstance(t, Tensor)}
    bytes_ = torch.cat([t.contiguous().flatten().view(torch.uint8) for t in sent.values()]).cpu()
    parts = dict(zip(sent, bytes_.split([t.nbytes for t in sent.values()]), strict=True))
    # A clone begins at an address that any type of number may have.
    return [e.map(lambda t: parts[id(t)].clone().view(t.dtype).view(t.shape)) for e in explanations]


def write_block(number: int, results: list[Result], options: Options) -> None:
    """Each picture, the maps, and, as all that is there now, the part of the table."""
    for picture, explanations, _ in results:
        if explanations and options.overlays == "all":
            save_pictures(picture, explanations, options)
    if options.save_maps:
        save_maps(number, results, options)
    if sys.platform != "win32":
        os.sync()  # a power cut must not leave the part and take what it stands for
    with table_in(options.parts / f"{number}.csv", options.parts) as table:
        table.writerows(row for _, _, rows in results for row in rows)


def save_maps(number: int, results: list[Result], options: Options) -> None:
    """maps/000007.npz, one a block: numpy.load needs nothing else to read it."""
    file = options.out / "maps" / f"{number:06}.npz"
    pairs = [pair for _, found, rows in results for pair in zip(found, rows, strict=False)]
    if not pairs:
        file.unlink(missing_ok=True)  # an earlier run's
        return
    names = ("image", "target", "method")
    arrays: dict[str, Any] = {name: [row[name] for _, row in pairs] for name in names}
    for name in ("L_c", "R"):
        maps = [getattr(explanation, name) for explanation, _ in pairs]
        if maps[0] is not None:
            arrays[name] = narrowed(torch.cat(maps).numpy(), options.save_maps)
    with whole(file, options.parts) as part, part.open("wb") as opened:
        np.savez(opened, **arrays)


def narrowed(values: np.ndarray, kind: str) -> np.ndarray:
    """float16 ends at 65504 and is coarse below 0.0001: what is not in between stays float32."""
    top = np.abs(values).max()
    return values.astype(kind if not top or 1e-3 < top < 65504 else "float32")


def numbers_of(parts: Path) -> list[int]:
    """The blocks that are done."""
    found = (part for part in parts.glob("[0-9]*.csv") if part.stat().st_size)
    return sorted(int(part.stem) for part in found)


@contextmanager
def table_in(path: Path, aside: Path) -> Iterator[csv.DictWriter[str]]:
    """To write rows to; the file is whole or not there."""
    with whole(path, aside) as part, part.open("w", newline="", encoding="utf-8") as file:
        yield csv.DictWriter(file, COLUMNS, lineterminator="\n")


def rows_in(parts: Path) -> Iterator[tuple[int, list[Row]]]:
    """Block by block, the rows of a picture at a time."""
    for number in numbers_of(parts):
        with (parts / f"{number}.csv").open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file, COLUMNS)
            for _, rows in itertools.groupby(table, itemgetter("image")):
                yield number, list(rows)


def merged(options: Options, total: int) -> Tally:
    """All parts in one table, and what is in them."""
    tally, parts = Tally(), options.parts
    with table_in(options.out / f"{STEM}.csv", parts) as table:
        table.writeheader()
        for number, rows in rows_in(parts):
            tally.add(rows, number, options.grid)
            table.writerows(map(no_formula, rows) if rows[0]["target"] or rows[0]["note"] else ())
        if not tally.explained:
            shutil.rmtree(parts, ignore_errors=True)
            raise nothing_explained(tally, options.pick)
    found = tally.explained + len(tally.skipped)
    if found != total and options.pick == "all":
        tally.skipped.append(f"the pictures changed while they were read: {total} were listed, "
                             f"{found} are in the table; run it again")
    if options.save_maps:  # those of an earlier run with more pictures go
        for file in (options.out / "maps").glob("[0-9]*.npz"):
            if file.stem.isdecimal() and not (parts / f"{int(file.stem)}.csv").exists():
                file.unlink()
    return tally


def no_formula(row: Row) -> Row:
    """For a spreadsheet an apostrophe makes a cell text."""
    return {head: f"'{cell}" if cell.startswith(FORMULA) else cell for head, cell in row.items()}


def nothing_explained(tally: Tally, pick: str) -> Complaint:
    if pick != "all" and not tally.skipped:
        return Complaint(f"no picture is {pick} (of {tally.seen.total()} with a label); give "
                         "others, or another --pick")
    if not tally.skipped:
        return Complaint("no pictures were given; give files or folders with " + " ".join(SUFFIXES))
    first, *others = (note.removeprefix(SKIPPED) for note in tally.skipped)
    return Complaint(first + (f" (and {len(others)} more that can't be read)" if others else ""))


def columns_of(tally: Tally, at_hand: dict[int, list[Result]], network: Network,
               options: Options) -> list[tuple[Picture, Explanation]]:
    """Of the figure. What another rank, or an earlier run, has explained is explained again."""
    missing = set(tally.shown.values()) - at_hand.keys()
    blocks = iter(Blocks(network, options, missing))
    for number, block in itertools.islice(blocks, len(missing)):
        at_hand[number] = explained(network, block, sys.maxsize, options)
    results = [result for number in sorted(at_hand) for result in at_hand[number]]
    columns = [(p, one) for p, found, _ in results if p.name in tally.shown for one in found]
    return columns[: options.grid]


def save_figure(columns: list[tuple[Picture, Explanation]], network: Network,
                options: Options) -> None:
    pictures, explanations = zip(*columns, strict=True)
    figure = draw_grid(pictures, explanations, network.classes, options.style)
    with whole(options.out / f"{STEM}.png", options.parts) as part:
        figure.savefig(part, format="png", metadata={"Software": None})


def blurred(L_c: Tensor, sigma: float) -> Tensor:
    """(B, H, W), each pixel the mean of its neighbours under a Gaussian of sigma pixels."""
    if not sigma:
        return L_c
    pixels = (torch.arange(S, dtype=L_c.dtype) for S in L_c.shape[1:])
    # The softmax of a parabola is a Gaussian whose sum is 1: what lies outside does not count.
    down, across = ((-(((p[:, None] - p) / max(sigma, 0.01)) ** 2) / 2).softmax(1) for p in pixels)
    return down @ L_c @ across.T


def save_pictures(picture: Picture, explanations: Sequence[Explanation], options: Options) -> None:
    """raw/NAME.png, and gradcam/NAME.png; of several classes or methods NAME@CLASS@METHOD.png."""
    assert picture.image is not None
    save(options.out / "raw" / f"{picture.name}.png", picture.image, options.parts)
    base, box = (picture.whole, picture.box) if picture.whole else (enlarged(picture.image), None)
    for explanation in explanations:
        name = picture.name
        name += f"@{int(explanation.target)}" if len(options.target) > 1 else ""
        name += f"@{explanation.method}" if len(options.method) > 1 else ""
        mixed = overlay(base, explanation, options.style, box)
        save(options.out / "gradcam" / f"{name}.png", mixed, options.parts)


def enlarged(image: Image.Image) -> Image.Image:
    """By a whole number, until it is 224 pixels high."""
    return ImageOps.scale(image, math.ceil(224 / image.height), Image.Resampling.NEAREST)


def save(path: Path, image: Image.Image, aside: Path) -> None:
    with whole(path, aside) as part:
        image.save(part, "PNG", compress_level=1)  # a third of the time, and a third more bytes


def account(network: Network, options: Options, tally: Tally, first: Explanation,
            seconds: float) -> str:
    """What was done, in a few lines for a person."""
    size = " x ".join(str(n) for n in first.cells.shape[1:])
    skipped = f", {len(tally.skipped)} skipped" if tally.skipped else ""
    each = len(options.target) * len(options.method)  # columns of the figure for a picture
    columns, shown = tally.explained * each, min(options.grid, len(tally.shown) * each)
    figure = f"; the figure shows the first {shown}" if columns > shown else ""
    figure += f" of {columns} columns" if figure and each > 1 else ""
    seen, right = tally.seen.total(), tally.right.total()
    accuracy = f"accuracy  {right} of {seen} with a label are right ({right / max(seen, 1):.1%})"
    counts = (f"{name} {tally.right[name]}/{n}" for name, n in sorted(tally.seen.items()))
    classes = ", ".join(words.replace(" ", "\N{NO-BREAK SPACE}") for words in counts)
    beside = ["gradcam/", "raw/"] if options.overlays == "all" else []
    beside += ["maps/"] if options.save_maps else []
    folders = f"; {' and '.join(beside)} beside them" if beside else ""
    return "\n".join([
        f"network   {network.title}",
        f"layer     {first.layer}, {first.alpha.shape[1]} maps of {size}",
        f"pad       {pad_words(first, options.pad)}",
        f"pictures  {tally.explained} explained in {seconds:.1f} s{skipped}{figure}",
        *([accuracy] if seen else []),
        *(f"          {line}" for line in textwrap.wrap(classes, 80)),
        *(f"note      {words} ({n})" for words, n in tally.notes.items()),
        f"written   {one_line(options.out / STEM)}.png and .csv{folders}",
    ]).replace("\N{NO-BREAK SPACE}", " ")


def pad_words(explanation: Explanation, asked: Pad) -> str:
    """The pad and why it is so."""
    if explanation.cells[0].numel() == 1 and explanation.pad is None:
        return "none: the map is one cell, which stands for the whole picture"
    if explanation.pad is None:
        return f"none: the stride up to {explanation.layer} is lost, the map is stretched"
    number = each_axis(explanation.pad)
    if asked != "auto" or explanation.stride is None:
        return f"{number}, as asked: cells of zeros around the map, then stretched"
    size, cells = explanation.L_c.shape[1:], explanation.cells.shape[1:]
    axes = zip(size, explanation.stride, cells, strict=True)
    why = (f"{S} pixels at stride {s} make {S / s:g} cells, the map has {n}" for S, s, n in axes)
    return f"{number}: {' and '.join(dict.fromkeys(why))}"


def layer_table(network: Network) -> str:
    """Every layer in the order of the forward pass, then the sums; MB are of 32-bit numbers."""
    net, (H, W) = network.net, network.size
    x = torch.zeros(1, len(network.mean), H, W)
    rows = [("layer (type)", "output shape", "parameters", "cumulative", "stride", "pad")]
    counts: dict[nn.Module, int] = {}
    numbers = 0

    def note(name: str, module: nn.Module, _args: Any, out: Any) -> None:
        nonlocal numbers
        if any(module.children()) or not isinstance(out, Tensor):
            return
        shape, stride = tuple(out.shape), getattr(out, STRIDE, None) if out.ndim == 4 else None
        pads = lost((H, W), shape[2:], stride) if stride else ()
        count = 0 if module in counts else sum(p.numel() for p in module.parameters())
        counts[module] = counts.get(module, 0) + count
        numbers += out.numel()
        rows.append((f"{name} ({type(module).__name__})", str(shape), f"{count:,}",
                     f"{sum(counts.values()):,}", each_axis(stride or ()), each_axis(pads)))

    overhear(net, x, note)
    total = sum(p.numel() for p in net.parameters())
    if elsewhere := total - sum(counts.values()):
        rows.append(("(in no layer of its own)", "", f"{elsewhere:,}", f"{total:,}", "", ""))
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    MB = [n * 4 / 2**20 for n in (x.numel(), 2 * numbers, total)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), row[1].ljust(widths[1]),
                        *map(str.rjust, row[2:], widths[2:])]).rstrip() for row in rows]
    return "\n".join([*lines, "",
        f"parameters: {total:,} total, {trained:,} trainable, {total - trained:,} non-trainable",
        f"MB: input {MB[0]:.2f}, forward and backward {MB[1]:.2f}, parameters {MB[2]:.2f}, "
        f"estimated total {sum(MB):.2f}"])


def each_axis(numbers: Iterable[float]) -> str:
    """One number where both axes agree, else down x across."""
    return " x ".join(dict.fromkeys(f"{number:g}" for number in numbers))


@contextmanager
def whole(path: Path, aside: Path) -> Iterator[Path]:
    """A file to write in another folder, which moves to its place when it is complete."""
    for folder in (path.parent, aside):
        folder.mkdir(parents=True, exist_ok=True)
    part = aside / f"_{path.parent.name}_{path.name}"
    try:
        yield part
        try:
            part.replace(path)
        except OSError:  # the folder is a link to another disk
            shutil.move(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        if not path.exists():
            for folder in (aside, path.parent):
                with suppress(OSError):  # there is more in it
                    folder.rmdir()
        raise


def interrupted(*_signal: Any) -> NoReturn:
    """Ctrl-C. An exception would not do: raised while C++ calls back, it is printed and lost.

    What is half written lies among the parts, where the next run overwrites or removes it.
    """
    for worker in multiprocessing.active_children():
        worker.kill()
    os.write(2, f"{SCRIPT}: interrupted; every file is whole, --resume goes on\n".encode())
    os._exit(130)


# -------------------------------------------------------------------------------- Command line


def spare_cores() -> int:
    """For decoding: not the one that the network of this rank needs at least."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(0, min(4, (os.cpu_count() or 1) // ranks - 1))


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


def reason(error: BaseException) -> str:
    """The error's own words."""
    return one_line(getattr(error, "strerror", None) or str(error) or type(error).__name__)[:150]


def one_line(words: Any) -> str:
    """Fit to be printed anywhere: file names may hold newlines and bytes that are no text."""
    return " ".join(str(words).encode(errors="backslashreplace").decode().split())


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


def class_names(text: str) -> tuple[str, ...]:
    """From a file: one a line, or a JSON list."""
    with complaining(text, "give a file of class names, one a line or a JSON list"):
        content = Path(text).read_text(encoding="utf-8-sig")
        names = json.loads(content) if content.lstrip()[:1] in ("[", "{") else content.splitlines()
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ValueError("no list of names")
    return tuple(name.strip() for name in names if name.strip())


def target_of(word: str, classes: tuple[str, ...]) -> str | int:
    """predicted and label as they are, a class by its number."""
    if word in ("predicted", "label"):
        return word
    c = class_number(word, classes)
    if c is None:
        named = "" if classes[0] == "0" else f", or a name: {nearest(word, classes)}"
        raise Complaint(f"class {word} was given; the network has classes 0 to "
                        f"{len(classes) - 1}: name one of these{named}")
    return c


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


def main(argv: Sequence[str] | None = None) -> int:
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of caches on its first run
    try:
        with warnings.catch_warnings(action="ignore"):  # of glyphs and large pictures
            return run(build_parser().parse(argv))
    except BrokenPipeError:  # nobody reads the account any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    # A full disk, a killed worker, no memory: not even to import what draws.
    except (Complaint, OSError, RuntimeError, MemoryError, ImportError) as error:
        words = str(error)
        if not isinstance(error, Complaint):
            words = f"stopped: {reason(error)}; mend that, then --resume"
        if not LOCAL_RANK or not isinstance(error, Complaint):  # which all ranks would say
            print(f"{SCRIPT}: error: {one_line(words)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupted)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main())
