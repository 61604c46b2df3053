#!/usr/bin/env python3
"""What did the network look at? Grad-CAM, Guided Backprop and Guided Grad-CAM in one file.

R. R. Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", arXiv 1610.02391. Names in this file (A, alpha, y_c, L_c, R) are the paper's.

    python SID_a4.py                             the digits in data/  ->  outputs/SID_a4.png
    python SID_a4.py my_digits.json photo.jpg    your own digits, photographed ones too
    python SID_a4.py scans/ --invert             dark ink on white paper
    python SID_a4.py --target 3 --pad 1          what speaks for a 3; another pad

Copied to D111111_a4.py it writes D111111_a4.png: the student id is the script's own name.
"""

# /// script
# requires-python = ">=3.9"
# dependencies = [
#     "torch>=2.0",
#     "torchvision>=0.15",
#     "numpy>=1.22",
#     "pillow>=9.4",
#     "matplotlib>=3.6",
# ]
# ///

from __future__ import annotations

import signal

if __name__ == "__main__":  # Ctrl-C ends it at once and without a word, imports included
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import csv
import json
import re
import sys
import textwrap
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
SCRIPT, STEM = Path(__file__).name, Path(__file__).stem  # D111111_a4 once a student renamed it


class InputError(ValueError):
    """A mistake that the user can mend, in one line: what was given; what to give instead."""


# ------------------------------------------------------------------------------------- Network


class CourseCNN(nn.Module):
    """(B, 1, 28, 28) pixels -> (B, 10) logits; conv2 is the layer that Grad-CAM explains.

    Each ReLU is a module, as guided backpropagation hooks it: F.relu has nothing to hook, and
    would stay unguided without a word. ReLUs have no weights, so the course's checkpoints fit.
    """

    MEAN, STD = 0.1307, 0.3081  # of the MNIST training pixels, from 0 to 1

    def __init__(self, conv1: int = 10, conv2: int = 10, fc1: int = 50, fc2: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, conv1, kernel_size=5)
        self.conv2 = nn.Conv2d(conv1, conv2, kernel_size=5)
        self.fc1 = nn.Linear(conv2 * 4 * 4, fc1)
        self.fc2 = nn.Linear(fc1, fc2)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(F.max_pool2d(self.conv1(x), 2))  # (B, 1, 28, 28) -> (B, 10, 12, 12)
        x = self.relu2(F.max_pool2d(self.conv2(x), 2))  # (B, 10, 8, 8) maps -> (B, 10, 4, 4)
        x = self.relu3(self.fc1(x.flatten(1)))  # (B, 160) -> (B, 50)
        y: Tensor = self.fc2(x)  # (B, 10) logits: y_c is taken before any softmax
        return y


def normalised(images: Sequence[Image.Image]) -> Tensor:
    """Grey pictures of 28 x 28 -> x (B, 1, 28, 28), scaled as in the network's training."""
    pixels = np.stack([np.asarray(image, np.float32) for image in images]) / 255
    return (torch.from_numpy(pixels)[:, None] - CourseCNN.MEAN) / CourseCNN.STD


# --------------------------------------------------------------------------------- Explanation

PAD = 3  # cells: 28 pixels at conv2's stride of 2 make 14 cells, its maps have 8: (14 - 8) / 2
Target = Union[int, Sequence[int], Tensor, None]


@dataclass(frozen=True)
class Explanation:
    """What the network looked at in B pictures."""

    logits: Tensor  # (B, 10) y, before any softmax
    target: Tensor  # (B,) the class c that is explained
    A: Tensor  # (B, K, u, v) the maps of the explained layer
    alpha: Tensor  # (B, K) how much each map speaks for the class, eq. 1
    L_c: Tensor  # (B, u, v) Grad-CAM, eq. 2, a number for each cell of the maps
    heatmap: Tensor  # (B, H, W) L_c where it lies in the picture
    R: Tensor  # (B, 1, H, W) guided backpropagation, signed
    guided_cam: Tensor  # (B, 1, H, W) Guided Grad-CAM: R * heatmap


def explain(net: nn.Module, x: Tensor, target: Target = None, pad: int = PAD,
            layer: nn.Module | None = None) -> Explanation:
    """Grad-CAM, guided backpropagation and their product for x (B, 1, H, W).

    target: one class for all, one a picture, or None for the predicted ones. layer: whose maps
    are explained, None for net.conv2. The network comes back exactly as it was.
    """
    # The guides sleep meanwhile: they would bend the gradient that alpha is the mean of.
    with watched(layer or net.get_submodule("conv2")) as seen:
        logits, c, _ = forth_and_back(net, x, target)
    A, dyc_dA = seen["A"], seen["dyc_dA"]  # (B, K, u, v)
    alpha = dyc_dA.mean((2, 3))  # eq. 1: alpha_k = mean over the cells of dy_c/dA_k, (B, K)
    # Eq. 2: L_c = ReLU(sum over k of alpha_k A_k). Maps that speak against the class must be able
    # to outweigh the others, so the ReLU comes after the sum: it keeps what still speaks for it.
    L_c = F.relu((alpha[:, :, None, None] * A).sum(1))  # (B, u, v)
    with guided(net):
        _, _, R = forth_and_back(net, x, c)  # (B, 1, H, W)
    heatmap = placed(L_c, x.shape[2:], pad)  # (B, H, W)
    return Explanation(logits, c, A, alpha, L_c, heatmap, R, R * heatmap[:, None])


def forth_and_back(net: nn.Module, x: Tensor, target: Target) -> tuple[Tensor, Tensor, Tensor]:
    """Forward to the logits y (B, 10), then backward from y_c: y, c (B,) and dy_c/dx like x.

    Hooks must be in place on both ways: a backward hook is set up while the forward pass runs.
    """
    with torch.enable_grad():  # the caller may have switched it off
        x = x.detach().clone().requires_grad_()  # there is a way back, even if weights are frozen
        y = net(x)
        c = y.argmax(1) if target is None else torch.as_tensor(target, dtype=torch.long)
        c = c.expand(len(x))
        # One gradient for the whole batch: no picture's y_c depends on another picture.
        y_c = y.gather(1, c[:, None]).sum()
        (dyc_dx,) = torch.autograd.grad(y_c, x)  # y_c.backward() would fill the weights' .grad
    return y.detach(), c, dyc_dx


@contextmanager
def watched(layer: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Keeps the layer's maps A on the way forth, and the gradient dy_c/dA on the way back."""
    seen: dict[str, Tensor] = {}

    def keep_A(_layer: nn.Module, _args: Any, output: Tensor) -> None:
        seen["A"] = output.detach()

    def keep_dyc_dA(_layer: nn.Module, _grad_input: Any, grad_output: Any) -> None:
        seen["dyc_dA"] = grad_output[0]

    with layer.register_forward_hook(keep_A), layer.register_full_backward_hook(keep_dyc_dA):
        yield seen  # after "with" the hooks are gone, also after an error


@contextmanager
def guided(net: nn.Module) -> Iterator[None]:
    """Each ReLU hands back only the positive part of its gradient: what speaks for the class.

    Where its input was negative, its own backward pass has already made the gradient zero.
    """

    def keep_positive(_relu: nn.Module, grad_input: Any, _grad_output: Any) -> tuple[Tensor]:
        return (F.relu(grad_input[0]),)

    with ExitStack() as hooks:
        for module in net.modules():
            if isinstance(module, nn.ReLU):
                hooks.enter_context(module.register_full_backward_hook(keep_positive))
        yield


def placed(L_c: Tensor, size: Sequence[int], pad: int) -> Tensor:
    """The cells (B, u, v) where they lie in the picture, (B, H, W).

    Convolutions without padding lose the border: conv2's 8 x 8 cells, 2 pixels apart, lie over
    the middle 16 of 28 pixels. With PAD zeros around them each is stretched to its own place.
    """
    padded = F.pad(L_c, (pad, pad, pad, pad))[:, None]  # (B, 1, u + 2 pad, v + 2 pad)
    return F.interpolate(padded, tuple(size), mode="bilinear", align_corners=False)[:, 0]


