"""A layer's output read as cells: maps (B, K, u, v), whatever its layout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor

from seenby.core.strides import is_followed, stride_of

MOST_DISTORTED = math.log(2)  # cells of a map are less than twice as long as wide, or they are none
MAX_PREFIX = 8  # tokens before the patches: class, distillation, registers


@dataclass(frozen=True)
class Grid:
    """u x v cells, and how they lie in a tensor."""

    u: int
    v: int
    layout: str  # NCHW; NHWC; tokens, (B, prefix + u * v, K)
    prefix: int = 0  # tokens that are no cells

    def maps(self, output: Tensor) -> Tensor:
        """The layer's output, or its gradient, as (B, K, u, v)."""
        if self.layout == "NCHW":
            return output
        if self.layout == "NHWC":
            return output.permute(0, 3, 1, 2)
        B, _, K = output.shape
        return output[:, self.prefix :].transpose(1, 2).reshape(B, K, self.u, self.v)

    @property
    def cells(self) -> int:
        return self.u * self.v

    def channels(self, output: Tensor) -> int:
        return output.shape[1 if self.layout == "NCHW" else -1]

    def __str__(self) -> str:
        """14 x 14 patches and 1 class token"""
        cells = f"{self.u} x {self.v}"
        if self.layout != "tokens":
            return cells
        others = ["", " and 1 class token", f" and {self.prefix} other tokens"]
        return f"{cells} patches{others[min(self.prefix, 2)]}"


def find_grid(output: Any, B: int, size: Sequence[int],
              maps: Sequence[tuple[int, int]] = ()) -> Grid | None:
    """The grid in a layer's output for B pictures of size (H, W), if it is one.

    maps: the sizes (u, v) of what convolutions and poolings gave before it.
    Windows, attention matrices and the like are none.
    """
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.shape[:1] != (B,):
        return None
    if output.ndim == 3:
        return token_grid(*output.shape[1:], *size, tuple(maps))
    if output.ndim != 4 or not output.numel():
        return None
    _, a, b, c = output.shape
    if is_followed(output):  # where the stride was lost, what is laid out like cells may be none
        grid = Grid(b, c, "NCHW")
        return grid if stride_of(output) or distortion(grid, size) < MOST_DISTORTED else None
    if b == c and maps and (b, c) not in [*with_halves(maps), tuple(size)]:
        return None  # as the attention between b tokens
    both = [Grid(a, b, "NHWC"), Grid(b, c, "NCHW")]
    if output.stride(1) == 1:  # of equals the one whose channels lie together in memory
        both.reverse()
    grids = [grid for grid in both if is_cut(grid.u, grid.v, *size)]
    return min(grids, key=lambda grid: distortion(grid, size), default=None)


def distortion(grid: Grid, size: Sequence[int]) -> float:
    """How far the cells are from square pixels: 0 where u/H = v/W."""
    return abs(math.log((grid.u / size[0]) / (grid.v / size[1])))


@lru_cache(256)
def token_grid(tokens: int, K: int, H: int, W: int,
               maps: tuple[tuple[int, int], ...]) -> Grid | None:
    """The way to read (B, tokens, K) as patches of the picture, some tokens before them.

    As many as one of the maps has cells, or one that is halved; what else there is, as a text's
    words, queries or latents, is no patch. Without a map to go by, as where patches are cut by
    views, they have the picture's proportions and cut it without a remainder, or nearly.
    """
    if not maps:
        return next(cut_grids(tokens, H, W), None)
    if math.prod(maps[-1]) == K and not grid_like(tokens, maps[-1:], most=1):
        return None  # (B, K, cells), whose cells come last
    return grid_like(tokens, maps) or grid_like(tokens, with_halves(maps), most=2)


def with_halves(maps: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """These sizes, and what is left of them where every second cell goes on, up to three times."""
    return [(-(-u // n), -(-v // n)) for n in (1, 2, 4, 8) for u, v in maps]


def grid_like(tokens: int, maps: Iterable[tuple[int, int]], most: int = MAX_PREFIX) -> Grid | None:
    """Cells as of one of these maps, behind as few other tokens as can be."""
    grids = [Grid(u, v, "tokens", tokens - u * v) for u, v in maps
             if u * v > 1 and 0 <= tokens - u * v <= most]
    return min(grids, key=lambda grid: grid.prefix, default=None)


def cut_grids(tokens: int, H: int, W: int) -> Iterator[Grid]:
    """Square patches, without a remainder first; then those with fewer tokens before them."""
    grids = [Grid(u, cells // u, "tokens", tokens - cells)
             for cells in range(tokens, max(1, tokens - MAX_PREFIX - 1), -1)
             for u in range(1, cells + 1) if cells % u == 0]
    yield from (grid for grid in grids if grid.u * W == grid.v * H and H % grid.u == 0)
    yield from (grid for grid in grids if is_cut(grid.u, grid.v, H, W) and grid.prefix <= 1)


def is_cut(u: int, v: int, H: int, W: int) -> bool:
    """Whether square patches of one side s cut a picture of (H, W) into u x v.

    The last ones may be left out, u = floor(H / s), or be filled up, u = ceil(H / s).
    """
    left_out = max(H / (u + 1), W / (v + 1)) < min(H / u, W / v)
    filled_up = max(H / u, W / v) < min(H / (u - 1) if u > 1 else math.inf,
                                        W / (v - 1) if v > 1 else math.inf)
    return left_out or filled_up
