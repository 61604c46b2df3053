#!/usr/bin/env python3
"""What did the network look at? Grad-CAM, Guided Backprop and Guided Grad-CAM in one file.

R. R. Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", arXiv 1610.02391; the names below (A_k, alpha_k, y_c, L_c) are the paper's.

    python SID_a4.py                             the digits in data/  ->  outputs/SID_a4.png
    python SID_a4.py my_digits.json photo.png    your own pictures
    python SID_a4.py scans/ --invert             dark ink on white paper
    python SID_a4.py --target 3                  the evidence for a 3, whatever was predicted
    python SID_a4.py --help                      everything else

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
import importlib
import itertools
import json
import logging
import math
import pickletools
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
SCRIPT, STEM = Path(__file__).name, Path(__file__).stem  # D111111_a4 once a student renamed it


class Complaint(argparse.ArgumentTypeError, ValueError):
    """A mistake the user can mend: WHAT was given, WHAT is allowed, HOW to mend it, in one line."""


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


@dataclass(frozen=True)
class Network:
    """A module in eval mode, and how to feed it."""

    net: nn.Module
    title: str
    size: tuple[int, int]  # (H, W) of its input
    mean: tuple[float, ...]  # one number a channel
    std: tuple[float, ...]
    classes: tuple[str, ...]

    def tensor(self, images: Sequence[Image.Image]) -> Tensor:
        """Pictures of the network's size -> (B, C, H, W), normalised as in its training."""
        pixels = np.stack([np.asarray(image, np.float32) for image in images]) / 255
        x = torch.from_numpy(pixels).reshape(len(images), *self.size, -1)  # (B, H, W, C)
        x = (x - torch.tensor(self.mean)) / torch.tensor(self.std)
        return x.permute(0, 3, 1, 2).contiguous()  # (B, C, H, W)


def load_network(weights: Path) -> Network:
    """The course network, as large as its checkpoint says."""
    state = read_checkpoint(weights)
    sizes = {layer: state.get(f"{layer}.weight") for layer in ("conv1", "conv2", "fc1", "fc2")}
    net = CourseCNN(**{layer: len(w) for layer, w in sizes.items() if w is not None and w.ndim})
    misfit = first_misfit(net.state_dict(), state)
    if misfit:
        raise Complaint(f"weights {weights} are of another network: {misfit}; give those of the "
                        "course network (conv1, conv2, fc1, fc2) with --weights")
    net.load_state_dict(state)
    maps = f"{net.conv1.out_channels} and {net.conv2.out_channels} maps"
    classes = tuple(str(c) for c in range(net.fc2.out_features))
    title = f"CourseCNN ({maps}), {weights.name}"
    return Network(net.eval(), title, (28, 28), (net.MEAN,), (net.STD,), classes)


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


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, bare or wrapped. weights_only: nothing in the file is ever run."""
    how = "give a file written by torch.save(net.state_dict(), FILE) with --weights"
    try:
        with warnings.catch_warnings(action="ignore"):  # what it warns of, it then refuses
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise Complaint(f"weights {path}: {reason(error)}; {how}") from error
    except Exception as error:  # a broken file makes the unpickler raise almost anything
        code = code_in(path, str(error))
        what = f"would run code ({code}): refused" if code else "is truncated or no checkpoint"
        raise Complaint(f"weights {path}: the file {what}; {how}") from error
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not (isinstance(found, dict) and found and all(map(torch.is_tensor, found.values()))):
        raise Complaint(f"weights {path}: the file holds no state dict; {how}")
    for key, value in found.items():
        if not torch.isfinite(value).all():
            raise Complaint(f"weights {path}: {key} holds NaN or infinity; train again, or {how}")
    return {str(key).removeprefix("module."): value for key, value in found.items()}


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


def first_misfit(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> str | None:
    for key in [*ours, *theirs]:
        has, needs = (tuple(d[key].shape) if key in d else "missing" for d in (theirs, ours))
        if has != needs:
            return f"{key} is {has} in the file, {needs} in the network"
    return None


# ------------------------------------------------------------------------------------ Pictures

SUFFIXES = (".json", ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Picture:
    """A picture as the network sees it; where it could not be read, image is None and note why."""

    name: str
    image: Image.Image | None
    label: str = ""
    note: str = ""


def read_pictures(
    sources: Iterable[Path], network: Network, invert: bool = False
) -> Iterator[Picture]:
    """Every picture in the files and folders, one at a time, each under a name of its own."""
    taken: dict[str, int] = {}
    for path in files_in(sources):
        for picture in read_json(path) if path.suffix.lower() == ".json" else read_image(path):
            yield replace(fitted(picture, network, invert), name=file_name(picture.name, taken))


def files_in(sources: Iterable[Path]) -> Iterator[Path]:
    """The files themselves, and of a folder its pictures and .json files in name order."""
    for source in sources:
        folder = sorted(source.iterdir()) if source.is_dir() else []
        yield from (path for path in folder if path.suffix.lower() in SUFFIXES and path.is_file())
        yield from [] if source.is_dir() else [source]


def read_image(path: Path) -> Iterator[Picture]:
    try:
        with Image.open(path) as file:
            yield Picture(path.stem, upright_8_bit(file))
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them raise
        what = f"is truncated or broken ({reason(error)})"
        if isinstance(error, UnidentifiedImageError):
            what = "is not an image" if path.stat().st_size else "is an empty file"
        how = "give a whole PNG, JPEG, GIF, BMP, TIFF or WebP picture, or a .json of pixels"
        yield Picture(path.stem, None, note=f"{path} {what}; {how}")


def upright_8_bit(image: Image.Image) -> Image.Image:
    """Grey (L) or colour (RGB), as a viewer shows it: turned, transparent parts white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # Pillow clips 16-bit grey at 255 instead of scaling it
        image = Image.fromarray((np.asarray(image, np.float64) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if image.mode in ("1", "L", "F") else "RGB")


def read_json(path: Path) -> Iterator[Picture]:
    how = "give 28 x 28 or 784 numbers a picture, from 0 to 255 or from 0 to 1"
    try:
        items = list(json_items(json.loads(path.read_bytes())))
    except (ValueError, RecursionError, OSError) as error:
        yield Picture(path.stem, None, note=f"{path} is broken or empty ({reason(error)}); {how}")
        return
    for name, pixels, label in items:
        try:
            yield Picture(name, grey_image(pixels), label)
        except Complaint as problem:
            yield Picture(name, None, label, f"{name} in {path} {problem}; {how}")


def json_items(content: Any) -> Iterator[tuple[str, Any, str]]:
    """(name, pixels, label): from a list of pictures, a dict of name -> pictures or one picture.

    A picture is its pixels or {"image": pixels, "label": 7}, where "name" may stand too.
    """
    first = content[0] if isinstance(content, list) and content else None
    if isinstance(first, list) and len(first) != 784:  # the first row of the only picture?
        first = first[0] if first else None
    if isinstance(first, int | float) or (isinstance(content, dict) and "image" in content):
        content = [content]
    if not isinstance(content, list | dict) or not content:
        raise ValueError("no pictures")
    if isinstance(content, list):
        content = {f"image_{i}": item for i, item in enumerate(content)}
    for name, item in content.items():
        item = item if isinstance(item, dict) else {"image": item}
        yield str(item.get("name", name)), item.get("image"), str(item.get("label", ""))


def grey_image(pixels: Any) -> Image.Image:
    try:
        values = np.asarray(pixels)
    except ValueError:
        raise Complaint("is ragged: its rows differ in length") from None
    if values.dtype.kind not in "iuf":
        raise Complaint("holds something that is not a number")
    if values.squeeze().shape not in ((28, 28), (784,)):
        raise Complaint(f"has the size {' x '.join(map(str, values.shape)) or 1}")
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= 255 or 1 < high < 2:  # NaN fails too; a top of 1.5 fits no range
        raise Complaint(f"holds numbers from {low:g} to {high:g}")
    values = values.reshape(28, 28) * (255 if high <= 1 else 1)
    return Image.fromarray(values.round().astype(np.uint8))


def fitted(picture: Picture, network: Network, invert: bool) -> Picture:
    """Grey and of the network's size: the whole picture, in its own proportions."""
    if picture.image is None:
        return picture
    image, label, note = picture.image.convert("L"), picture.label, []
    image = ImageOps.invert(image) if invert else image
    pixels = np.asarray(image)
    border = int(np.median(np.concatenate([*pixels[[0, -1]], *pixels[:, [0, -1]].T])))
    if border > 127 and not invert:
        note.append("bright border: if this is dark ink on white paper, add --invert")
    if label and label not in network.classes:
        note.append(f"label {label:.20} is no class of the network")
        label = ""
    image = ImageOps.pad(image, network.size[::-1], Image.Resampling.BILINEAR, color=border)
    return Picture(picture.name, image, label, "; ".join(note))


def file_name(name: str, taken: dict[str, int]) -> str:
    """The name made safe for a file on any system, and numbered if an earlier picture has it."""
    plain = re.sub(r"[^\w.-]+", "_", name).strip("._-").encode()[:200].decode(errors="ignore")
    plain = unique = plain or "picture"
    while unique.casefold() in taken:
        taken[plain.casefold()] += 1
        unique = f"{plain}-{taken[plain.casefold()]}"
    taken[unique.casefold()] = 1
    return unique


# --------------------------------------------------------------------------------- Explanation


@dataclass(frozen=True)
class Explanation:
    """What the network looked at in a batch of B pictures; iterate for one picture at a time."""

    logits: Tensor  # (B, C) before any softmax
    target: Tensor  # (B,) the class c that is explained
    layer: str
    stride: tuple[int, int] | None  # pixels from cell to cell (down, across); None where lost
    pad: tuple[float, float]  # cells added at each border (down, across)
    alpha: Tensor  # (B, K)
    cells: Tensor  # (B, u, v) Grad-CAM, raw, as the layer has it
    L_c: Tensor  # (B, H, W) the same where it lies in the picture
    R: Tensor | None  # (B, C, H, W) guided backpropagation
    guided_cam: Tensor | None  # (B, C, H, W) R * L_c

    def __iter__(self) -> Iterator[Explanation]:
        return (self.map(itemgetter(slice(i, i + 1))) for i in range(len(self.target)))

    def map(self, change: Callable[[Tensor], Tensor]) -> Explanation:
        """The same with every tensor changed."""
        tensors = {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        return replace(self, **changed)


def explain(
    net: nn.Module,
    x: Tensor,
    target: int | Sequence[int] | Tensor | None = None,
    layer: str | None = None,
    pad: int | Literal["auto"] = "auto",
    guided: bool = True,
) -> Explanation:
    """Grad-CAM, guided backpropagation and their product for x (B, C, H, W), by one forward pass.

    target: one class for all, one a picture, or None for the predicted ones. layer: a name from
    net.named_modules(), or None for find_layer's. The network comes back exactly as it was.
    """
    with torch.inference_mode(False), torch.enable_grad(), evaluating(net):
        layer = layer or find_layer(net, x[:1])
        x = x.detach().clone().requires_grad_()
        with forward_hook(net.get_submodule(layer), (watch := Watch(x)).keep_maps), watch:
            logits = watch.before_softmax(net(x.clone()))  # (B, C); the clone may be overwritten
        A = checked_maps(watch.A, layer)  # (B, K, u, v)
        c = as_target(target, logits)  # (B,)
        # The sum over the batch mixes nothing: no picture's logit depends on another picture.
        y_c = logits.gather(1, c[:, None]).sum()
        (dyc_dA,) = torch.autograd.grad(y_c, A, retain_graph=guided)  # walks only the head
        R = watch.guided_backprop(y_c, x) if guided else None
    alpha, cells = grad_cam(A.detach(), dyc_dA)
    stride = watch.stride.get(A)
    pads, L_c = place(cells, x.shape[2:], stride, pad)
    guided_cam = None if R is None else R * L_c[:, None]  # (B, C, H, W)
    return Explanation(logits.detach(), c, layer, stride, pads, alpha, cells, L_c, R, guided_cam)


def grad_cam(A: Tensor, dyc_dA: Tensor) -> tuple[Tensor, Tensor]:
    """Equations 1 and 2 of the paper."""
    alpha = dyc_dA.mean((2, 3))  # eq. 1: (B, K, u, v) -> (B, K)
    L_c = F.relu(torch.einsum("bk,bkuv->buv", alpha, A))  # eq. 2: ReLU after the sum over k
    return alpha, L_c


def place(
    cells: Tensor, size: Sequence[int], stride: tuple[int, int] | None, pad: int | Literal["auto"]
) -> tuple[tuple[float, float], Tensor]:
    """The cells (B, u, v) where they lie in a picture of size (H, W): the pads, and (B, H, W)."""
    if pad == "auto" and stride is not None:
        # S pixels at stride s make S/s cells; what the map of n lacks was lost at its borders.
        (H, W), (u, v), (down, across) = size, cells.shape[1:], stride
        rows, columns = interpolation(H, u, down, cells), interpolation(W, v, across, cells)
        return ((H / down - u) / 2, (W / across - v) / 2), rows @ cells @ columns.T
    N = 0 if pad == "auto" else pad
    padded = F.pad(cells, (N, N, N, N))
    stretched = F.interpolate(padded[:, None], size, mode="bilinear")[:, 0]
    return (N, N), stretched


def interpolation(S: int, n: int, s: float, like: Tensor) -> Tensor:
    """(S, n) bilinear weights that centre cell j on S/2 - 1/2 + s (j - (n-1)/2)."""
    p, j = torch.arange(S, dtype=torch.float64), torch.arange(n, dtype=torch.float64)
    t = (p - (S - 1) / 2) / s + (n - 1) / 2  # where pixel p falls among the cells
    whole = max(0, math.floor((S / s - n) / 2))  # so many cells of the pad are zero,
    t = t.clamp(-whole, n - 1 + whole)  # and what is left of it repeats its neighbour
    return F.relu(1 - (t[:, None] - j).abs()).to(like)


Stride = tuple[int, int]  # pixels from cell to cell, down and across
STRIDE_ARGUMENT = {"conv2d": 3, "max_pool2d": 2, "max_pool2d_with_indices": 2, "avg_pool2d": 2}


class Watch(TorchFunctionMode):
    """Sees every operation of one forward pass, however the network spells it.

    It keeps A of the target layer, notes each tensor's total stride, and hooks every ReLU: module,
    shared, in-place or functional. The hooks sleep until guided_backprop is called.
    """

    A: Tensor | None = None

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.stride: MutableMapping[Tensor, Stride] = WeakTensorKeyDictionary()
        self.stride[x] = (1, 1)
        self.softmax_input: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()
        self.guiding = False

    def keep_maps(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        self.A = output
        # An in-place operation behind the layer overwrites the clone, not A.
        return output.clone() if isinstance(output, Tensor) else output

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "").rstrip("_")  # relu_ is relu in place
        for tensor in tensors_in([out]):
            stride = self.stride_behind(name, args, kwargs, tensor)
            if stride is not None:
                self.stride[tensor] = stride
        if is_relu(name, args, kwargs) and out.requires_grad:
            out.register_hook(self.guide)
        if name in ("softmax", "log_softmax"):
            self.softmax_input[out] = argument(args, kwargs, 0, "input")
        return out

    def stride_behind(self, name: str, args: Any, kwargs: Any, out: Tensor) -> Stride | None:
        """Multiplied by convolution and pooling, kept where the size is kept, else lost."""
        inputs = [t for t in tensors_in((*args, *kwargs.values())) if t in self.stride]
        if inputs and name in STRIDE_ARGUMENT:
            step = argument(args, kwargs, STRIDE_ARGUMENT[name], "stride")
            if not step:  # a pooling's stride is its kernel's size by default, a convolution's is 1
                step = 1 if name == "conv2d" else argument(args, kwargs, 1, "kernel_size")
            down, across = (step, step) if isinstance(step, int) else (step[0], step[-1])
            before = self.stride[inputs[0]]
            return before[0] * down, before[1] * across
        same = (t for t in inputs if name == "pad" or t.shape[-2:] == out.shape[-2:])
        return next((self.stride[t] for t in same), None)

    def before_softmax(self, output: Tensor) -> Tensor:
        """The logits, also of a network that ends in softmax or log_softmax."""
        return self.softmax_input.get(output, output)

    def guide(self, gradient: Tensor) -> Tensor:
        """Guided backpropagation: past a ReLU goes only what speaks for the class."""
        return gradient.clamp(min=0) if self.guiding else gradient

    def guided_backprop(self, y_c: Tensor, x: Tensor) -> Tensor:
        self.guiding = True
        return torch.autograd.grad(y_c, x)[0]  # (B, C, H, W)


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among some values and in the lists among them."""
    flat = itertools.chain.from_iterable(v if isinstance(v, list | tuple) else [v] for v in values)
    return [v for v in flat if isinstance(v, Tensor)]


def argument(args: Any, kwargs: Any, position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)


def is_relu(name: str, args: Any, kwargs: Any) -> bool:
    """relu, and what nn.ReLU6 or a hand-written ReLU is made of: a bound at zero from below."""
    if name in ("clamp", "clamp_min", "clip", "hardtanh"):
        low = argument(args, kwargs, 1, "min_val" if name == "hardtanh" else "min")
        return isinstance(low, int | float) and low == 0
    return name in ("relu", "relu6")


def checked_maps(A: Any, layer: str) -> Tensor:
    if isinstance(A, Tensor) and A.ndim == 4:
        return A
    shape = tuple(A.shape) if isinstance(A, Tensor) else type(A).__name__
    raise Complaint(f"layer {layer} gives {shape}; Grad-CAM needs maps (B, K, u, v): name a "
                    "convolution, or a block of them, that the network runs")


def as_target(target: int | Sequence[int] | Tensor | None, logits: Tensor) -> Tensor:
    """One class a picture (B,): the predicted ones unless told otherwise."""
    B, C = logits.shape
    if target is None:
        return logits.detach().argmax(1)
    c = torch.as_tensor(target, device=logits.device)
    c = c.expand(B) if c.ndim == 0 else c
    if c.shape != (B,):
        raise Complaint(f"targets of shape {tuple(c.shape)} were given for {B} pictures; "
                        "give one class for all or one for each")
    check_classes(c.tolist(), C)
    return c.long()


def check_classes(classes: Iterable[float], C: int) -> None:
    for c in classes:
        if c not in range(C):
            raise Complaint(f"class {c} was given; the network has classes 0 to {C - 1}: name one")


def find_layer(net: nn.Module, x: Tensor) -> str:
    """The last convolution, or the largest block around it that still ends at its resolution."""
    sizes: dict[str, tuple[int, ...]] = {}  # in the order in which the modules end

    def note(name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        sizes.pop(name, None)
        if isinstance(output, Tensor) and output.ndim == 4:
            sizes[name] = tuple(output.shape[2:])

    with ExitStack() as hooks, evaluating(net), torch.no_grad():
        for name, module in net.named_modules():
            hooks.enter_context(forward_hook(module, partial(note, name)))
        net(x.clone())
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


@contextmanager
def forward_hook(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Dropout and batch-norm as in use; afterwards each module's own mode again."""
    training = [module for module in net.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


# -------------------------------------------------------------------------------------- Figure

NO_EVIDENCE = "no positive evidence"


class Panel(NamedTuple):
    """A row of the figure; a signed one goes from -max to max, with zero in the middle."""

    name: str
    meaning: str
    colours: str = ""
    signed: bool = False
    empty: str = ""  # what a panel of zeros says

    def paint(self, values: np.ndarray) -> np.ndarray:
        """(H, W), divided by its own largest magnitude, in colours: (H, W, 3) bytes."""
        from matplotlib import colormaps

        if self is RAW:
            return values
        values = values / (np.abs(values).max() or 1)
        values = (values + 1) / 2 if self.signed else values
        painted: np.ndarray = colormaps[self.colours](values, bytes=True)
        return painted[..., :3]


RAW = Panel("Raw", "what the\nnetwork sees")
GRAD_CAM = Panel("Grad-CAM", "where the\nevidence lies", "jet", empty=NO_EVIDENCE)
GUIDED = Panel("Guided\nBackprop", "which pixels\nspeak for it", "RdBu_r", True, "no gradient")
GUIDED_CAM = Panel("Guided\nGrad-CAM", "both at once", "RdBu_r", True, NO_EVIDENCE)


def panels(picture: Picture, explanation: Explanation) -> dict[Panel, np.ndarray]:
    """A picture's column, top to bottom: its pixels (H, W, 3), then maps (H, W)."""
    R, guided_cam = explanation.R, explanation.guided_cam
    assert picture.image is not None
    assert R is not None
    assert guided_cam is not None
    return {
        RAW: np.asarray(picture.image.convert("RGB")),
        GRAD_CAM: explanation.L_c[0].numpy(),
        GUIDED: R[0].sum(0).numpy(),
        GUIDED_CAM: guided_cam[0].sum(0).numpy(),
    }


def overlay(picture: Picture, explanation: Explanation) -> Image.Image:
    """The Grad-CAM over its picture, at least 224 pixels high."""
    assert picture.image is not None
    scale = math.ceil(224 / picture.image.height)
    W, H = (side * scale for side in picture.image.size)
    L_c = Image.fromarray(explanation.L_c[0].numpy()).resize((W, H), Image.Resampling.BILINEAR)
    heat = Image.fromarray(GRAD_CAM.paint(np.asarray(L_c)))
    raw = picture.image.convert("RGB").resize((W, H), Image.Resampling.NEAREST)
    mixed = Image.blend(raw, heat, 0.5)
    if not explanation.L_c.any():
        font = ImageFont.load_default(H / 12)
        ImageDraw.Draw(mixed).text((W / 2, H / 10), NO_EVIDENCE, "white", font, anchor="mm")
    return mixed


def table_row(
    picture: Picture, explanation: Explanation | None, classes: Sequence[str]
) -> dict[str, str]:
    """What the table and the figure say of a picture."""
    row = dict.fromkeys(COLUMNS, "") | {"image": picture.name, "label": picture.label}
    if explanation is None:
        return row | {"note": f"skipped: {picture.note}"}
    probability, predicted = explanation.logits[0].softmax(0).max(0)
    empty = "" if explanation.L_c.any() else NO_EVIDENCE
    return row | {
        "predicted": classes[int(predicted)],
        "probability": f"{probability:.6f}",
        "target": classes[int(explanation.target)],
        "layer": explanation.layer,
        "method": "gradcam",
        "note": "; ".join(filter(None, [picture.note, empty])),
    }


def draw_grid(
    pictures: Sequence[Picture], explanations: Sequence[Explanation], classes: Sequence[str]
) -> Figure:
    """A column a picture, a row a panel; made to be pasted at 16 cm. Lengths are in inches."""
    from matplotlib.figure import Figure

    columns = [panels(p, e) for p, e in zip(pictures, explanations, strict=True)]
    rows = [table_row(p, e, classes) for p, e in zip(pictures, explanations, strict=True)]
    heads = ["image", "predicted", "probability"]
    heads += ["label"] if any(row["label"] for row in rows) else []
    heads += ["target"] if any(row["target"] != row["predicted"] for row in rows) else []
    left, top, cell, right = 1.22, 0.06 + 0.19 * len(heads), 0.86, 0.56
    width, height = left + cell * len(columns) + right, top + cell * len(columns[0])
    figure = Figure((width, height), dpi=300)
    # One axes holds all the small images: an axes for each would take most of the run's time.
    axes = figure.add_axes((0, 0, 1, 1))
    for i, (column, row) in enumerate(zip(columns, rows, strict=True)):
        x = left + cell * i
        for k, head in enumerate(heads):
            draw_head(axes, x + 0.4, 0.12 + 0.19 * k, head, row)
        for k, (panel, values) in enumerate(column.items()):
            draw_panel(axes, panel, values, x, top + cell * k)
    for k, head in enumerate(heads):
        name = {"image": "picture", "target": "maps for"}.get(head, head)
        axes.text(left - 0.1, 0.12 + 0.19 * k, name, size=9, color="0.25", ha="right", va="center")
    for k, panel in enumerate(columns[0]):
        draw_margins(axes, panel, left - 0.1, width - right + 0.02, top + cell * k)
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    axes.set_axis_off()
    return figure


def draw_head(axes: Axes, x: float, y: float, head: str, row: dict[str, str]) -> None:
    """One line of what stands over a column; a wrong prediction stands out."""
    style: dict[str, Any]
    words, style = row[head], {"size": 9, "color": "0.25"}
    if head == "image" and len(words) > 11:
        words = words[:10] + "..."
    elif head == "probability":
        words = f"{float(words):.1%}"
    elif head == "predicted":
        style = {"size": 13, "weight": "bold"}
        if row["label"] not in ("", words):  # crossed and framed: clear without colour too
            frame = {"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "crimson"}
            words, style = f"{words} \N{BALLOT X}", style | {"color": "crimson", "bbox": frame}
    axes.text(x, y, words, ha="center", va="center", parse_math=False, **style)


def draw_panel(
    axes: Axes, panel: Panel, values: np.ndarray, x: float, y: float, width: float = 0.8
) -> None:
    corners = (x, x + width, y + 0.8, y)
    axes.imshow(panel.paint(values), extent=corners, interpolation="nearest")
    if not values.any():
        words, ink = panel.empty.replace(" ", "\n"), "black" if panel.signed else "white"
        axes.text(x + 0.4, y + 0.4, words, size=9, ha="center", va="center", color=ink)


def draw_margins(axes: Axes, panel: Panel, left: float, right: float, y: float) -> None:
    """A row's name and meaning before it, the scale of its colours behind it."""
    axes.text(left, y + 0.41, panel.name, size=11, weight="bold", ha="right", va="bottom")
    axes.text(left, y + 0.45, panel.meaning, size=9, color="0.25", ha="right", va="top")
    if panel is not RAW:
        ramp = np.linspace(1, -1 if panel.signed else 0, 64)[:, None]
        draw_panel(axes, panel, ramp, right, y, width=0.07)
        low, high = ("\N{MINUS SIGN}max", "+max") if panel.signed else ("0", "max")
        axes.text(right + 0.12, y, high, size=8, va="top")
        axes.text(right + 0.12, y + 0.8, low, size=8, va="bottom")


# ----------------------------------------------------------------------------------------- Run

BATCH = 64  # pictures explained at once
GRID = 8  # pictures in the figure
COLUMNS = ("image", "label", "predicted", "probability", "target", "layer", "method", "note")


def run(options: argparse.Namespace) -> int:
    """Reads, explains and writes, a batch at a time; 1 if a picture had to be left out."""
    started, out = time.perf_counter(), options.out
    network = load_network(options.weights)
    check_classes([options.target or 0], len(network.classes))
    pictures = once_readable(read_pictures(options.images, network, options.invert))
    shown: list[Picture] = []
    explanations: list[Explanation] = []
    tally: Counter[str] = Counter()
    with whole(out / f"{STEM}.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        for picture, explanation in explained(network, pictures, options):
            row = table_row(picture, explanation, network.classes)
            table.writerow(row)
            tally.update(counted(row))
            if explanation is None:
                print(f"{SCRIPT}: {row['note']}", file=sys.stderr)
                continue
            save_pictures(out, picture, explanation)
            if len(shown) < GRID:
                shown.append(picture)
                explanations.append(explanation)
    with whole(out / f"{STEM}.png") as part:
        figure = draw_grid(shown, explanations, network.classes)
        figure.savefig(part, format="png", metadata={"Software": None})
    if not options.quiet:
        print(account(network, explanations[0], options, tally, time.perf_counter() - started))
    return 1 if tally["skipped"] else 0


def once_readable(pictures: Iterator[Picture]) -> Iterator[Picture]:
    """The same pictures, once one of them could be read: before that nothing is written."""
    unreadable: list[Picture] = []
    for picture in pictures:
        if picture.image is not None:
            return itertools.chain(unreadable, [picture], pictures)
        unreadable.append(picture)
    if not unreadable:
        raise Complaint(f"no pictures were given; give files or folders with {' '.join(SUFFIXES)}")
    more = f" (and {len(unreadable) - 1} more that can't be read)" if unreadable[1:] else ""
    raise Complaint(unreadable[0].note + more)


def explained(
    network: Network, pictures: Iterator[Picture], options: argparse.Namespace
) -> Iterator[tuple[Picture, Explanation | None]]:
    """Each picture with its explanation, or with None if it could not be read."""
    net, layer = network.net.to(options.device), None  # the first batch finds the layer
    while batch := list(itertools.islice(pictures, BATCH)):
        images = [picture.image for picture in batch if picture.image is not None]
        explanations: Iterator[Explanation] = iter(())
        if images:
            x = network.tensor(images).to(options.device)
            explanation = explain(net, x, options.target, layer, options.pad)
            layer, explanations = explanation.layer, iter(explanation.map(Tensor.cpu))
        for picture in batch:
            yield picture, None if picture.image is None else next(explanations)


def save_pictures(out: Path, picture: Picture, explanation: Explanation) -> None:
    assert picture.image is not None
    for folder, image in ("raw", picture.image), ("gradcam", overlay(picture, explanation)):
        with whole(out / folder / f"{picture.name}.png") as part:
            image.save(part, "PNG")


def counted(row: dict[str, str]) -> list[str]:
    """What the account counts of a picture."""
    if not row["predicted"]:
        return ["skipped"]
    truth = ["labelled", "right" if row["label"] == row["predicted"] else "wrong"]
    notes = [f"note      {note}" for note in row["note"].split("; ") if note]
    return ["explained", *(truth if row["label"] else []), *notes]


def account(
    network: Network, first: Explanation, options: argparse.Namespace, tally: Counter[str], s: float
) -> str:
    """What was done, in a few lines for a person."""
    size = " x ".join(str(n) for n in first.cells.shape[1:])
    done = f"{tally['explained']} explained in {s:.1f} s"
    if tally["labelled"]:
        done += f", {tally['right']} of the {tally['labelled']} with a label are right"
    if tally["skipped"]:
        done += f", {tally['skipped']} skipped"
    if tally["explained"] > GRID:
        done += f"; the first {GRID} are in the figure"
    return "\n".join([
        f"network   {network.title}",
        f"layer     {first.layer}, {first.alpha.shape[1]} maps of {size}",
        f"pad       {pad_words(first, options.pad)}",
        f"pictures  {done}",
        *(f"{note} ({n})" for note, n in tally.items() if note.startswith("note")),
        f"written   {options.out / STEM}.png and .csv; gradcam/ and raw/ beside them",
    ])


def pad_words(explanation: Explanation, asked: int | Literal["auto"]) -> str:
    """The pad and why it is so."""
    number = " x ".join(dict.fromkeys(f"{cells:g}" for cells in explanation.pad))
    if asked != "auto":
        return f"{number}, as asked: cells of zeros around the map, then stretched"
    if explanation.stride is None:
        return f"{number}: the stride up to {explanation.layer} is lost, the map is stretched"
    S, s, n = explanation.L_c.shape[1:], explanation.stride, explanation.cells.shape[1:]
    why = (f"{S} pixels at stride {s} make {S / s:g} cells, the map has {n}"
           for S, s, n in zip(S, s, n, strict=True))
    return f"{number}: {' and '.join(dict.fromkeys(why))}"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write aside, which takes the path's place when it is complete, or vanishes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


# -------------------------------------------------------------------------------- Command line


def existing(text: str) -> Path:
    if not Path(text).exists():
        raise Complaint(f"{text} does not exist; give picture files, folders or a .json: check the "
                        "spelling, and the folder you are in")
    return Path(text)


def writable(text: str) -> Path:
    """A folder that can be written to, or made: found out without leaving anything behind."""
    for folder in (Path(text), Path(text, "raw"), Path(text, "gradcam")):
        there = next(f for f in (folder, *folder.absolute().parents) if f.exists())
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            raise Complaint(f"can't write to {folder} ({reason(error)}); give a folder you may "
                            "write to") from error
    return Path(text)


def device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise Complaint(f"{name} is not to be had here ({reason(error)}); give cpu, or cuda where "
                        "PyTorch finds a GPU") from error


def reason(error: BaseException) -> str:
    """The error's own words, on one line."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(words.split())[:150]


def whole_number(**words: Any) -> Callable[[str], Any]:
    """The type of an option that takes a number from 0 to 9999 or one of some words."""
    def convert(text: str) -> Any:
        if text in words:
            return words[text]
        if text.isdecimal() and len(text) < 5:
            return int(text)
        allowed = " or ".join(map(repr, words))
        raise Complaint(f"{text!r} was given; give {allowed} or a whole number")

    return convert


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Complaint(f"{message}; see --help")


def build_parser() -> Parser:
    title, _, text = (__doc__ or "").partition("\n\n")
    parser = Parser(prog=SCRIPT, description=title, epilog=text,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("images", nargs="*", type=existing, default=[HERE / "data"], metavar="IMAGES",
        help="pictures, folders of pictures, .json files of pixels (default: the folder data)")
    add("--weights", type=Path, default=HERE / "mnist_model.pth", metavar="FILE",
        help="state dict of the course network (default: mnist_model.pth)")
    add("--target", type=whole_number(predicted=None), default="predicted", metavar="CLASS",
        help="the class to explain: 'predicted' or its number (default: %(default)s)")
    add("--pad", type=whole_number(auto="auto"), default="auto", metavar="N",
        help="cells of zeros around the map before it is stretched over the picture; 'auto': as "
        "many as the network's borders cost, each cell in its place (default: %(default)s)")
    add("--invert", action="store_true", help="negate the pictures: dark ink on white paper")
    add("--out", type=writable, default=str(HERE / "outputs"), metavar="FOLDER",
        help="where to write (default: the folder outputs)")
    add("--device", type=device, default="cpu", help="cpu, cuda or mps (default: %(default)s)")
    add("--quiet", action="store_true", help="print nothing but errors")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of caches on its first run
    try:
        return run(build_parser().parse_args(argv))
    except (Complaint, OSError) as error:  # OSError: a full disk, a folder that went away
        words = error if isinstance(error, Complaint) else f"stopped: {error}; mend that, run again"
        print(f"{SCRIPT}: error: {words}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{SCRIPT}: interrupted; what was written is whole", file=sys.stderr)
        return 130


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
