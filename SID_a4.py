#!/usr/bin/env python3
"""What did the network look at? Grad-CAM, Guided Backprop and Guided Grad-CAM in one file.

R. R. Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", arXiv 1610.02391 (A, alpha, y_c, L_c). J. T. Springenberg et al., "Striving for
Simplicity: The All Convolutional Net", arXiv 1412.6806 (guided backpropagation, R).

    python SID_a4.py                             the digits in data/  ->  outputs/SID_a4.png
    python SID_a4.py my_digits.json photo.jpg    your own digits, photographed ones too

Copied to D111111_a4.py it writes D111111_a4.png: the student id is the script's own name.
"""

# /// script
# requires-python = ">=3.9"
# dependencies = ["torch>=2", "torchvision>=0.15", "numpy>=1.22", "pillow>=9.4", "matplotlib>=3.6"]
# ///

from __future__ import annotations

import argparse
import csv
import json
import logging
import re
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":  # Ctrl-C ends it at once and without a word, also the imports below
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image, ImageChops, ImageFilter, ImageOps
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
SCRIPT, STEM = Path(__file__).name, Path(__file__).stem  # they name the output files


class InputError(ValueError):
    """A mistake that the user can mend: what was given; what to give instead."""


# ------------------------------------------------------------------------------------- Network

class CourseCNN(nn.Module):
    """(B, 1, 28, 28) pixels -> (B, 10) logits; conv2 is the layer that Grad-CAM explains."""

    MEAN, STD = 0.1307, 0.3081  # of the MNIST training pixels, from 0 to 1

    def __init__(self, conv1: int = 10, conv2: int = 10, fc1: int = 50, fc2: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, conv1, kernel_size=5)
        self.conv2 = nn.Conv2d(conv1, conv2, kernel_size=5)
        self.fc1 = nn.Linear(conv2 * 4 * 4, fc1)
        self.fc2 = nn.Linear(fc1, fc2)
        # Modules, for guided backpropagation to hook: it would miss an F.relu without a word.
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(F.max_pool2d(self.conv1(x), 2))  # (B, 1, 28, 28) -> (B, 10, 12, 12)
        x = self.relu2(F.max_pool2d(self.conv2(x), 2))  # (B, 10, 8, 8) maps -> (B, 10, 4, 4)
        x = self.relu3(self.fc1(x.flatten(1)))  # (B, 160) -> (B, 50)
        y: Tensor = self.fc2(x)  # (B, 10) logits: a softmax's gradient dies as p_c nears 1
        return y


def normalised(images: Sequence[Image.Image]) -> Tensor:
    """Grey pictures of 28 x 28 -> x (B, 1, 28, 28), scaled as in the network's training."""
    pixels = np.stack([np.asarray(image, np.float32) for image in images]) / 255
    return (torch.from_numpy(pixels)[:, None] - CourseCNN.MEAN) / CourseCNN.STD


# --------------------------------------------------------------------------------- Explanation

# Cell i of conv2 sees pixels 2i to 2i + 13, whose middle is 2i + 6.5. Of 14 cells, 2 pixels wide,
# which would cover all 28, number j has its middle at 2j + 0.5, so j = i + 3: PAD is (14 - 8) / 2.
PAD = 3  # cells of zeros on each side: no cell looked there, which is drawn like no evidence


class Explanation(NamedTuple):
    """What the network looked at in B pictures (B, 1, H, W)."""
    logits: Tensor  # (B, 10) y, before any softmax
    target: Tensor  # (B,) the class c that is explained
    A: Tensor  # (B, K, u, v) the maps of the explained layer
    alpha: Tensor  # (B, K) how much each map speaks for the class, eq. 1
    L_c: Tensor  # (B, u, v) Grad-CAM, eq. 2, a number for each cell of the maps
    heatmap: Tensor  # (B, H, W) L_c where it lies in the picture
    R: Tensor  # (B, 1, H, W) guided backpropagation; signed, as no ReLU lies before conv1
    guided_cam: Tensor  # (B, 1, H, W) Guided Grad-CAM: R * heatmap


def explain(net: nn.Module, x: Tensor, target: Any = None, pad: int = PAD,
            layer: nn.Module | None = None) -> Explanation:
    """Explains pictures x (B, 1, H, W). target: a class, one for each, or None: the predicted ones.

    The layer is net.conv2, whose pad is PAD; another needs its own. The network stays as it was.
    """
    seen: dict[str, Tensor] = {}

    def keep_A(_layer: nn.Module, _args: Any, output: Tensor) -> None:
        seen["A"] = output.detach()  # its numbers, without the graph that made them

    def keep_dyc_dA(_layer: nn.Module, _grad_input: Any, grad_output: Any) -> None:
        seen["dyc_dA"] = grad_output[0]  # by the layer's output; grad_input is by its input

    layer = layer or net.get_submodule("conv2")
    # A hook must be there before the forward pass. The guides get a second pass, below: in this one
    # they would make dy_c/dA >= 0 everywhere, so that no map could count against the class.
    with layer.register_forward_hook(keep_A), layer.register_full_backward_hook(keep_dyc_dA):
        logits, c, _ = forth_and_back(net, x, target)
    A, dyc_dA = seen["A"], seen["dyc_dA"]  # (B, K, u, v)
    alpha = dyc_dA.mean((2, 3))  # eq. 1: over 64 cells, of which max-pooling leaves 16 at most
    # Eq. 2: L_c = ReLU(sum over k of alpha_k A_k). For and against are summed first, cell by cell;
    # then the ReLU drops the cells where against wins. A is taken before its own ReLU: where A_k
    # and alpha_k are both negative, the lack of a pattern that speaks against c counts for c.
    L_c = F.relu((alpha[:, :, None, None] * A).sum(1))  # (B, u, v)
    with guided(net):
        _, _, R = forth_and_back(net, x, c)  # (B, 1, H, W)
    # Padded first, so that it fades into the zeros; 14 cells on 28 pixels: each covers 2 exactly.
    padded = F.pad(L_c, (pad, pad, pad, pad))[:, None]  # (B, 1, u + 2 pad, v + 2 pad)
    heatmap = F.interpolate(padded, tuple(x.shape[2:]), mode="bilinear")[:, 0]  # (B, H, W)
    return Explanation(logits, c, A, alpha, L_c, heatmap, R, R * heatmap[:, None])


def forth_and_back(net: nn.Module, x: Tensor, target: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Forward to the logits y (B, 10), then backward from y_c: y, c (B,) and dy_c/dx like x."""
    with torch.inference_mode(False), torch.enable_grad():  # also if a caller's are off
        x = x.detach().clone().requires_grad_()  # there is a way back, even if weights are frozen
        y = net(x)
        c = y.argmax(1) if target is None else torch.as_tensor(target).long().expand(len(x))
        # One gradient for the whole batch: no picture's y_c depends on another picture.
        y_c = y.gather(1, c[:, None]).sum()
        (dyc_dx,) = torch.autograd.grad(y_c, x)  # y_c.backward() would fill the weights' .grad
    return y.detach(), c, dyc_dx


@contextmanager
def guided(net: nn.Module) -> Iterator[None]:
    """Each ReLU hands back only what speaks for the class: the positive part of its gradient."""

    def keep_positive(_relu: nn.Module, grad_input: Any, _grad_output: Any) -> tuple[Tensor]:
        return (F.relu(grad_input[0]),)  # already zero where the ReLU's own input was not above 0

    with ExitStack() as hooks:
        for module in net.modules():
            if isinstance(module, nn.ReLU):
                hooks.enter_context(module.register_full_backward_hook(keep_positive))
        yield


# -------------------------------------------------------------------------- Weights and digits

GIVE = "give whole pictures, or a .json of 28 x 28 numbers a picture, 0 to 255 or 0 to 1"
KINDS = (".json", ".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp")
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")  # not EPS: it starts Ghostscript
EXAMPLES = "example_digits.json"  # read only where a folder holds nothing else
FRAMED = "not of 28 x 28 pixels, so framed as MNIST frames its digits"
Image.MAX_IMAGE_PIXELS = 40_000_000  # Pillow refuses a picture of more than twice as many


def load_network(path: str | Path = HERE / "mnist_model.pth") -> CourseCNN:
    """The network, as wide as its checkpoint says; up to 999, as a broken one may say anything."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)  # no code in it is ever run
        for wrapper in ("state_dict", "model_state_dict", "model"):
            state = state[wrapper] if isinstance(state.get(wrapper), dict) else state
        state = {str(key).removeprefix("module."): value for key, value in state.items()}
        has = {key: tuple(value.shape) for key, value in state.items()}
    except Exception as error:  # a broken file makes the unpickler raise almost anything
        why = "no state dict, or not whole" if Path(path).is_file() else "no such file"
        raise InputError(f"weights {path}: {why}; give a file written by "
                         "torch.save(net.state_dict(), FILE) with --weights") from error
    layers = [name for name in ("conv1", "conv2", "fc1") if has.get(f"{name}.weight")]
    net = CourseCNN(**{name: min(999, len(state[f"{name}.weight"])) or 1 for name in layers})
    needs = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    for key in [*needs, *has]:  # the first misfit is named
        there, here = has.get(key, "missing"), needs.get(key, "missing")
        if there != here:
            raise InputError(f"weights {path} are of another network: {key} is {there} in the "
                             f"file, {here} in the network; give weights of CourseCNN")
        if state[key].is_sparse or state[key].is_complex() or not state[key].isfinite().all():
            raise InputError(f"weights {path}: {key} holds no plain, finite numbers; train again")
    net.load_state_dict(state)
    return net.eval()  # changes nothing here; with dropout or batch norm pictures would interfere


class Picture(NamedTuple):
    """A digit as the network sees it, 28 x 28 and grey; where image is None, note says why."""
    name: str
    image: Image.Image | None
    label: str = ""
    note: str = ""


def read_pictures(sources: Iterable[str | Path], invert: bool = False) -> list[Picture]:
    """Every picture of some files and folders, each under a name of its own."""
    pictures: dict[str, Picture] = {}
    for path in (path for source in sources for path in files_in(Path(source))):
        try:
            read = read_json if path.suffix.lower() == ".json" else read_image
            found = read(path, invert)
        except Exception as error:  # broken files make decoders raise almost anything
            found = [Picture(path.stem, None, note=f"{path} can't be read ({error}); {GIVE}")]
        for name, image, label, note in found:
            if image and not (invert or note) and np.median(np.asarray(image)[[0, -1]]) > 127:
                note = "bright border: of dark ink on white add --invert, else save it on black"
            name = re.sub(r"[^\w.-]+", "_", name)[:50].strip("._-") or "picture"  # safe as a file's
            while name.casefold() in pictures:
                name += f"-{len(pictures)}"
            note = " ".join(note.encode(errors="replace").decode().split())
            pictures[name.casefold()] = Picture(name, image, label, note)
    return list(pictures.values())


def files_in(source: Path) -> list[Path]:
    """A file itself; of a folder what may hold digits and is not hidden, examples only if alone."""
    if not source.is_dir():
        return [source]
    files = [f for f in sorted(source.rglob("*")) if f.suffix.lower() in KINDS and f.is_file()]
    files = [f for f in files if not any(p[0] == "." for p in f.relative_to(source).parts)]
    return [file for file in files if file.name != EXAMPLES] or files


def read_json(path: Path, invert: bool) -> list[Picture]:
    """A list of pictures or a dict of name -> picture: its pixels, or {"image": .., "label": 7}."""
    content = json.loads(path.read_bytes())
    if isinstance(content, list):
        content = {f"image_{i}": item for i, item in enumerate(content)}
    items = {name: item if isinstance(item, dict) else {"image": item}
             for name, item in content.items()}
    arrays = {}  # of those that are 28 x 28 or 784 numbers
    for name in (name for name, item in items.items() if isinstance(item.get("image"), list)):
        with suppress(ValueError, TypeError, OverflowError):
            arrays[name] = np.asarray(items[name]["image"], float).reshape(28, 28)
    if not arrays:  # said once, and not of each of its numbers
        raise InputError("no picture of 28 x 28 numbers in it")
    # Most pictures decide for the whole file whether 1 or 255 is white, a float's rounding aside.
    white = 1 if np.nanmedian([values.max() for values in arrays.values()]) <= 1.000001 else 255
    pictures = []
    for name, item in items.items():
        values, image = arrays.get(name, np.array(np.nan)), None  # NaN is in no range
        label = "" if item.get("label") is None else str(item["label"]).removesuffix(".0")
        note = "" if label in ("", *"0123456789") else f"label {label:.20} is no digit"
        between = white == 255 and values.max() < 2 and (values % 1).any()  # it fits neither range
        if 0 <= values.min() <= values.max() <= white * 1.000001 and not between:
            image = Image.fromarray((values * 255 / white).round().clip(0, 255).astype(np.uint8))
            image = ImageOps.invert(image) if invert else image
        else:
            note = f"{name} in {path} is no such picture; {GIVE}"
        pictures.append(Picture(name, image, "" if note else label, note))
    return pictures


def read_image(path: Path, invert: bool) -> list[Picture]:
    """A picture file as a viewer shows it: turned as the camera was, transparent parts white."""
    with Image.open(path, formats=FORMATS) as file:
        image = ImageOps.exif_transpose(file)
    if image.mode[0] in "IF":  # 16 or 32 bits a pixel, which Pillow would cut at 255
        values = np.asarray(image, np.float32)
        if not 0 <= values.min() <= values.max() < np.inf:  # NaN neither
            raise InputError(f"it holds numbers from {values.min()} to {values.max()}")
        image = Image.fromarray((255 / max(1, values.max()) * values).astype(np.uint8))
    grey, opacity = image.convert("LA").split()
    image = Image.composite(grey, Image.new("L", grey.size, 255), opacity)
    folder = path.absolute().parent.name
    label = folder if folder in [*"0123456789"] else ""  # a folder named 7 holds sevens
    if image.size == (28, 28):
        return [Picture(path.stem, ImageOps.invert(image) if invert else image, label)]
    return [Picture(path.stem, framed(image, invert), label, FRAMED)]


def framed(photo: Image.Image, invert: bool) -> Image.Image:
    """A photographed digit as MNIST frames its own: white ink on black, 28 x 28."""
    photo = photo.resize([max(7, round(s / max(photo.size) * 140)) for s in photo.size])  # never 0
    dark, middle, bright = np.percentile(np.asarray(photo), (1, 50, 99))
    if invert or middle > (dark + bright) / 2:  # most of it is paper: it is bright, the ink dark
        photo = ImageOps.invert(photo)
    # Light falls unevenly. The paper is what is left without all that is narrower than a third.
    small = ImageOps.contain(photo, (28, 28))
    paper = small.filter(ImageFilter.MinFilter(9)).filter(ImageFilter.MaxFilter(9))
    contrast = np.asarray(ImageChops.subtract(photo, paper.resize(photo.size)))
    if contrast.max() < 20:
        raise InputError("no ink in it")
    ink = Image.fromarray((contrast > contrast.max() / 2).astype(np.uint8) * 255)
    ink = ImageOps.expand(ink.crop(ink.getbbox()), 10)  # a border of 10 on each side
    # Thin strokes fade: make them a tenth of the digit. A stroke's width is 2 * area / outline.
    outline = ImageChops.subtract(ink, ink.filter(ImageFilter.MinFilter(3)))
    lack = (max(ink.size) - 20) / 10 - 2 * np.asarray(ink).mean() / np.asarray(outline).mean()
    ink = ink.filter(ImageFilter.MaxFilter(1 + 2 * max(0, round(lack / 2 + 0.5))))
    digit = ImageOps.contain(ink.crop(ink.getbbox()), (20, 20))
    weight = np.asarray(digit) / np.asarray(digit, float).sum()
    row, column = weight.sum(1) @ np.arange(len(weight)), weight.sum(0) @ np.arange(digit.width)
    frame = Image.new("L", (28, 28))  # in whose middle lies the digit's centre of mass
    frame.paste(digit, (min(max(0, round(13.5 - column)), 28 - digit.width),
                        min(max(0, round(13.5 - row)), 28 - digit.height)))
    return frame


# --------------------------------------------------------------------------- Figure and files

COLUMNS = ("image", "label", "predicted", "probability", "target", "note")
NO_EVIDENCE = "no positive evidence"  # the weighted sum is nowhere above zero: L_c is empty
BAND, BANDS = 8, 2  # columns side by side, and how many bands of them the figure has at most
LEFT, CELL, SIDE, RIGHT, LINE = 1.22, 0.86, 0.8, 0.62, 0.19  # inches; to be pasted at 16 cm
PANELS = (("", "Raw", "what the\nnetwork sees"), ("jet", "Grad-CAM", "where the\nevidence lies"),
          ("RdBu_r", "Guided\nBackprop", "what brighter\npixels would do"),
          ("RdBu_r", "Guided\nGrad-CAM", "pixels within\nthe evidence"))  # colours, title, meaning


def coloured(values: np.ndarray, colours: str = "jet") -> np.ndarray:
    """(H, W) -> (H, W, 3) bytes: a heat map from 0 to its maximum, a signed map around 0."""
    values = values / (np.abs(values).max() or 1)  # an empty map stays zero
    values = (values + 1) / 2 if colours == "RdBu_r" else values
    return np.asarray(colormaps[colours](values, bytes=True))[..., :3]


def overlay(image: Image.Image, heatmap: Tensor) -> Image.Image:
    """The heat map (H, W) over a picture of any size, half and half."""
    heat = Image.fromarray(heatmap.float().numpy()).resize(image.size, Image.Resampling.BILINEAR)
    return Image.blend(image.convert("RGB"), Image.fromarray(coloured(np.asarray(heat))), 0.5)


def table_row(picture: Picture, explanation: Explanation, i: int) -> dict[str, str]:
    """What the table and the figure say of picture i of an explained batch."""
    probability, predicted = explanation.logits[i].softmax(0).max(0)
    notes = picture.note, "" if explanation.L_c[i].any() else NO_EVIDENCE
    return dict(zip(COLUMNS, [picture.name, picture.label, f"{predicted}", f"{probability:.6f}",
                              f"{explanation.target[i]}", "; ".join(filter(None, notes))]))


def draw_grid(pictures: Sequence[Picture], explanation: Explanation) -> Figure:
    """A column a picture, a row a panel, in bands; lengths are in inches, y goes downwards."""
    rows = [table_row(p, explanation, i) for i, p in enumerate(pictures[: BAND * BANDS])]
    heads = ["image", "predicted", "probability"]
    heads += ["label"] if any(row["label"] for row in rows) else []
    heads += ["target"] if any(row["target"] != row["predicted"] for row in rows) else []
    top, wide, bands = 0.06 + LINE * len(heads), CELL * min(BAND, len(rows)), -(-len(rows) // BAND)
    band = top + CELL * len(PANELS)
    spare = max(0, max(1.4, 1.05 * bands) * band - LEFT - wide - RIGHT) / 2  # always landscape
    width, height = LEFT + wide + RIGHT + 2 * spare, band * bands
    figure = Figure((width, height), dpi=300)
    axes = figure.add_axes((0, 0, 1, 1))  # one for all images: 32 would take four times as long
    for i, row in enumerate(rows):
        x, y = LEFT + spare + CELL * (i % BAND), band * (i // BAND)
        if i % BAND == 0:
            draw_margins(axes, x - 0.1, x + wide + 0.02, y, heads)
        for k, head in enumerate(heads):
            words, style = row[head], dict[str, Any](size=9, color="0.25")
            words = words if len(words) < 11 else "..." + words[-8:]  # names tell by their ends
            if head == "probability":
                words = f"{float(words):.1%}" if float(words) < 0.9995 else ">99.9%"
            elif head == "predicted":  # where it is wrong, crossed: clear without colour, too
                wrong = row["label"] not in ("", words)
                words, colour = words + " \N{BALLOT X}" * wrong, "crimson" if wrong else "black"
                style = {"size": 13, "weight": "bold", "color": colour}
            axes.text(x + SIDE / 2, y + 0.12 + LINE * k, words, ha="center", va="center", **style)
        image, R, both = pictures[i].image, explanation.R[i], explanation.guided_cam[i]
        assert image, "those that could not be read were left out"
        panels = image.convert("RGB"), explanation.heatmap[i], R[0], both[0]
        for k, (values, (colours, *_)) in enumerate(zip(panels, PANELS)):
            draw_panel(axes, x, y + top + CELL * k, np.asarray(values), colours, SIDE)
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    axes.set_axis_off()
    return figure


def draw_margins(axes: Any, left: float, right: float, y: float, heads: Sequence[str]) -> None:
    """The names of a band's rows before them, the scales of their colours behind them."""
    for k, head in enumerate(heads):
        name = {"image": "picture", "target": "maps for"}.get(head, head)
        axes.text(left, y + 0.12 + LINE * k, name, size=9, color="0.25", ha="right", va="center")
    y += 0.06 + LINE * len(heads)
    for colours, title, meaning in PANELS:
        axes.text(left, y + 0.41, title, size=11, weight="bold", ha="right", va="bottom")
        axes.text(left, y + 0.45, meaning, size=9, color="0.25", ha="right", va="top")
        if colours:
            high, low, end = ("its max", "0", 0) if colours == "jet" else ("for", "against", -1)
            draw_panel(axes, right, y, np.linspace(1, end, 80)[:, None].repeat(7, 1), colours, 0.07)
            axes.text(right + 0.12, y, high, size=8.5, va="top")
            axes.text(right + 0.12, y + SIDE, low, size=8.5, va="bottom")
        y += CELL


def draw_panel(axes: Any, x: float, y: float, values: np.ndarray, colours: str, w: float) -> None:
    """A picture, or a map in colours, w inches wide; none is blank without a word."""
    shown = coloured(values, colours) if colours else values
    axes.imshow(shown, extent=(x, x + w, y + SIDE, y), interpolation="nearest")
    if colours and not values.any():
        words = (NO_EVIDENCE if colours == "jet" else "all zero").replace(" ", "\n")
        axes.text(x + w / 2, y + SIDE / 2, words, size=9, ha="center", va="center",
                  bbox={"facecolor": "white", "edgecolor": "none"})


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A hidden file to write, which takes its place when it is complete: no half file is seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


# ------------------------------------------------------------------------------- Command line

def run(options: argparse.Namespace) -> int:
    """Reads, explains and writes; 1 if a picture had to be left out."""
    started, net, out = time.perf_counter(), load_network(options.weights), options.out
    pictures = read_pictures(options.images, options.invert)
    readable = [picture for picture in pictures if picture.image]
    if not readable:
        raise InputError(pictures[0].note if pictures else f"no pictures were given; {GIVE}")
    rows = {p.name: dict(zip(COLUMNS, (p.name, p.label, "", "", "", f"skipped: {p.note}")))
            for p in pictures}  # until they are explained
    for start in range(0, len(readable), 64):
        batch = readable[start : start + 64]
        images = [picture.image for picture in batch if picture.image]
        explanation = explain(net, normalised(images), options.target, options.pad)
        for i, (picture, image) in enumerate(zip(batch, images)):
            rows[picture.name] = table_row(picture, explanation, i)
            large = ImageOps.scale(image, 8, Image.Resampling.NEAREST)
            mixed = overlay(large, explanation.heatmap[i])
            for folder, shown in (("raw", image), ("gradcam", mixed)):
                with whole(out / folder / f"{picture.name}.png") as part:
                    shown.save(part, "PNG", compress_level=1)  # three times as fast
        if start == 0:  # here is all that the figure shows
            with whole(out / f"{STEM}.png") as part:
                draw_grid(batch, explanation).savefig(part, format="png")
    with whole(out / f"{STEM}.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *map(dict.values, rows.values())])
    skipped = [row["note"] for row in rows.values() if not row["predicted"]]
    more = f"and {len(skipped) - 20} more, see note in the table"
    for words in skipped[:20] + [more] * (len(skipped) > 20):
        print(f"{SCRIPT}: {words}", file=sys.stderr)
    if not options.quiet:
        print(*account(options, net, [*rows.values()], time.perf_counter() - started), sep="\n")
    return 1 if skipped else 0


def account(options: Any, net: CourseCNN, rows: list[dict[str, str]], seconds: float) -> list[str]:
    """What was done, in a few lines for a person."""
    explained = [row for row in rows if row["predicted"]]
    n, skipped, shown = len(explained), len(rows) - len(explained), BAND * BANDS
    labels = Counter(row["label"] for row in explained if row["label"])
    right = Counter(row["label"] for row in explained if row["label"] == row["predicted"])
    hits, of = sum(right.values()), sum(labels.values())
    counts = [f"{c} {right[c]}/{labels[c]}" for c in sorted(labels)]
    notes = Counter(note for row in explained for note in row["note"].split("; ") if note)
    if any(file.name == EXAMPLES for source in options.images for file in files_in(source)):
        notes["these are the example digits: put your own into data/"] = n
    why = ": 28 pixels at stride 2 make 14 cells, the map has 8"
    return [
        f"network   CourseCNN ({net.conv1.out_channels} and {net.conv2.out_channels} maps), "
        f"{options.weights.name}",
        f"layer     conv2, {net.conv2.out_channels} maps of 8 x 8",
        f"pad       {options.pad}{why if options.pad == PAD else ', as asked'}",
        f"pictures  {n} explained in {seconds:.1f} s" + f", {skipped} skipped" * (skipped > 0)
        + f"; the figure shows the first {shown} of {n}" * (n > shown),
        *[f"accuracy  {hits} of {of} with a label are right ({hits / max(1, of):.1%})"] * (of > 0),
        *(f"          {', '.join(five)}" for five in (counts[:5], counts[5:]) if five),
        *(f"note      {words} ({number})" for words, number in notes.items()),
        f"written   {options.out / STEM}.png and .csv; gradcam/ and raw/ beside them",
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(SCRIPT, argparse.SUPPRESS, __doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("images", nargs="*", type=Path, default=[HERE / "data"], help="files or folders (data/)")
    add("--weights", type=Path, default=HERE / "mnist_model.pth", help="weights (mnist_model.pth)")
    add("--target", type=int, choices=range(10), metavar="CLASS", help="explain it (the predicted)")
    add("--pad", type=int, choices=range(11), default=PAD, help="cells around a map (default: 3)")
    add("--invert", action="store_true", help="the ink is dark: negate the pictures")
    add("--out", type=Path, default=HERE / "outputs", help="where to write (outputs)")
    add("--quiet", action="store_true", help="print nothing but errors")
    try:
        return run(parser.parse_args(argv))
    except (InputError, OSError, RuntimeError, MemoryError) as error:  # a full disk, no memory
        parser.error(" ".join(str(error).split()))  # prints one line, ends with code 2


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Pillow's and matplotlib's, of odd files and names
    logging.disable()  # and what they log
    sys.exit(main())
