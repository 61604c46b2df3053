"""Where a map lies in the picture: its pad, its enlargement, its blur."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from numbers import Integral
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from seenby.errors import InputError

Stride = tuple[float, float]  # pixels from cell to cell, down and across
Pad = int | Literal["auto"]  # cells of zeros around the map; auto: as many as the borders cost


def place(L_c: Tensor, size: Sequence[int], stride: Stride | None,
          pad: Pad) -> tuple[tuple[float, float] | None, Tensor]:
    """Lay a map (B, u, v) over a picture of size (H, W): the pads, and the heat map (B, H, W).

    The pads are None where the map was stretched because its stride is not known.
    """
    if pad != "auto" and (not isinstance(pad, Integral) or isinstance(pad, bool) or pad < 0):
        raise InputError(f"pad {pad!r} was given; give 'auto' or a number of cells from 0 up")
    cells = L_c.shape[1:]
    if pad == "auto" and stride and cells.numel() > 1:  # one cell alone stands for all
        pads = auto_pad(size, cells, stride)
        rows, columns = interpolation_matrices(size, cells, pads, L_c.dtype, L_c.device)
        return pads, rows @ (L_c @ columns)
    N = 0 if pad == "auto" else int(pad)
    heatmap = F.interpolate(F.pad(L_c, (N, N, N, N))[:, None], size, mode="bilinear")[:, 0]
    return None if pad == "auto" else (N, N), heatmap


def auto_pad(size: Sequence[int], cells: Sequence[int], stride: Stride) -> tuple[float, float]:
    """S pixels at stride s make S/s cells; what a map of n lacks was lost at its two borders."""
    down, across = ((S / s - n) / 2 for S, n, s in zip(size, cells, stride, strict=True))
    return down, across


@lru_cache(64)
def interpolation_matrices(size: Sequence[int], cells: Sequence[int], pads: tuple[float, float],
                           dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """(H, u) and (v, W): rows @ map @ columns is the map enlarged."""
    rows, columns = (interpolation_matrix(S, n, pad, dtype, device)
                     for S, n, pad in zip(size, cells, pads, strict=True))
    return rows, columns.T


def interpolation_matrix(S: int, n: int, pad: float, dtype: torch.dtype,
                         device: torch.device) -> Tensor:
    """(S, n) bilinear weights that draw n cells, padded on both sides, over S pixels."""
    p, j = (torch.arange(N, dtype=torch.float64, device="cpu") for N in (S, n))
    t = (p - (S - 1) / 2) * (n + 2 * pad) / S + (n - 1) / 2  # where pixel p falls among the cells
    zeros = max(0, math.floor(pad))  # whole cells of pad are zero,
    t = t.clamp(-zeros, n - 1 + zeros)  # and what is left of it repeats its neighbour
    return F.relu(1 - (t[:, None] - j).abs()).to(dtype).to(device)


def gaussian_blur(heatmap: Tensor, sigma: float) -> Tensor:
    """(B, H, W), each pixel the weighted mean of its neighbours; sigma is in pixels.

    The weights sum to 1 within the picture, so that its border does not darken.
    """
    if not sigma:
        return heatmap

    def weights(S: int) -> Tensor:
        p = torch.arange(S, dtype=heatmap.dtype, device=heatmap.device)
        gaussian = torch.exp(-(((p[:, None] - p) / max(sigma, 0.01)) ** 2) / 2)
        return gaussian / gaussian.sum(1, keepdim=True)

    H, W = heatmap.shape[1:]
    return weights(H) @ heatmap @ weights(W).T
