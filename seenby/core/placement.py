"""Where a map lies in the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from seenby.errors import Complaint

Stride = tuple[int, int]  # pixels from cell to cell, down and across
Pad = int | Literal["auto"]  # cells of zeros around the map; auto: as many as the borders cost


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


def blurred(L_c: Tensor, sigma: float) -> Tensor:
    """(B, H, W), each pixel the mean of its neighbours under a Gaussian of sigma pixels."""
    if not sigma:
        return L_c
    pixels = (torch.arange(S, dtype=L_c.dtype) for S in L_c.shape[1:])
    # The softmax of a parabola is a Gaussian whose sum is 1: what lies outside does not count.
    down, across = ((-(((p[:, None] - p) / max(sigma, 0.01)) ** 2) / 2).softmax(1) for p in pixels)
    return down @ L_c @ across.T
