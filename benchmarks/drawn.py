"""Cluttered pictures with drawn shapes whose places are known, and small networks for them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from seenby.machine import import_torchvision  # noqa: E402

SIZE = 48  # pixels
SHAPES = ("square", "triangle", "cross", "ring")
NOTHING = len(SHAPES)
BARS, DOTS = 4, 6  # the clutter
BATCH = 32


def draw(y: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, 48, 48) of the shapes y (N, 2), and their boxes (N, 2, 48, 48).

    Two shapes, or one, or none lie anywhere, apart, under bars and dots. Shapes, bars and dots are
    brighter than the background, all alike, so that no colour and no brightness tells a class.
    """
    N = len(y)

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(N, *size, 1, 1, generator=random)

    def colour(n: int) -> Tensor:
        return uniform(0.8, 1.2, n, 1) + uniform(-0.2, 0.2, n, 3)

    p = torch.arange(SIZE) + 0.5
    rows, columns = p[:, None], p
    x = uniform(-0.6, 0, 3) + 0.15 * torch.randn(N, 3, SIZE, SIZE, generator=random)
    r = uniform(5.5, 8, 2)
    places = torch.rand(N, 2, 2, 1, 1, generator=random)
    while True:  # until no two touch
        top, left = (r + places[:, :, i] * (SIZE - 2 * r) for i in (0, 1))
        apart = torch.maximum(top.diff(dim=1).abs(), left.diff(dim=1).abs()) > r.sum(1, True) + 1
        again = ~apart.flatten()
        if not again.any():
            break
        places[again] = torch.rand(int(again.sum()), 2, 2, 1, 1, generator=random)
    down, across = rows - top, columns - left  # (N, 2, 48, 48)
    box = torch.maximum(down.abs(), across.abs()) <= r
    radius = (down**2 + across**2).sqrt()
    masks = torch.stack([
        box & (torch.maximum(down.abs(), across.abs()) <= 0.85 * r),
        box & (across.abs() <= (down + r) / 2),
        box & (torch.minimum(down.abs(), across.abs()) <= 0.28 * r),
        (radius <= r) & (radius >= 0.5 * r),
        torch.zeros_like(box),
    ], 2)  # fmt: skip
    shape = masks[torch.arange(N)[:, None], torch.arange(2), y]
    paint = x.mean((2, 3), keepdim=True)[:, None] + colour(2)
    for i in (0, 1):
        x = torch.where(shape[:, i, None], paint[:, i] + 0 * x, x)
    angle = uniform(0, torch.pi, BARS)
    down, across = (rows - uniform(0, SIZE, BARS), columns - uniform(0, SIZE, BARS))
    along = down * angle.sin() + across * angle.cos()
    beside = across * angle.sin() - down * angle.cos()
    bars = (along.abs() <= uniform(3, 6, BARS)) & (beside.abs() <= 0.8)
    down, across = (rows - uniform(0, SIZE, DOTS), columns - uniform(0, SIZE, DOTS))
    marks = torch.cat([bars, down**2 + across**2 <= 2], 1)
    paint = x.mean((2, 3), keepdim=True)[:, None] + colour(BARS + DOTS)
    for i in range(BARS + DOTS):
        x = torch.where(marks[:, i, None], paint[:, i], x)
    return x, box


def vit() -> nn.Module:
    """Five blocks over 8 x 8 patches and a class token, which alone is read at the end."""
    import_torchvision()
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=SIZE, patch_size=6, embed_dim=64, depth=5, num_heads=4, mlp_ratio=2,
        num_classes=len(SHAPES),
    )  # fmt: skip


def swin() -> nn.Module:
    """One block over 16 x 16 cells, two over 8 x 8, whose mean is read at the end.

    As in the networks of ImageNet, a window of the last stage is the whole grid.
    """
    import_torchvision()
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        img_size=SIZE, patch_size=3, window_size=8, embed_dim=32, depths=(1, 2), num_heads=(2, 4),
        mlp_ratio=2, drop_path_rate=0, num_classes=len(SHAPES),
    )  # fmt: skip


def train(make: Callable[[], nn.Module], seed: int, steps: int, rate: float) -> nn.Module:
    """On new pictures at each step: which of the shapes are there?"""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(1000 + seed)
    net = make()
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(steps):
        y = torch.randint(0, NOTHING + 1, (BATCH, 2), generator=random)
        loss = F.binary_cross_entropy_with_logits(net(draw(y, random)[0]), there(y))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1)
        optimizer.step()
        schedule.step()
    return net.eval()


def there(y: Tensor) -> Tensor:
    """(N, classes): 1 where a shape of the class is in the picture."""
    return F.one_hot(y, NOTHING + 1).amax(1)[:, :NOTHING].float()


def pairs(n: int, seed: int) -> Tensor:
    """(n, 2) two different shapes."""
    random = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(NOTHING, generator=random)[:2] for _ in range(n)])


@torch.no_grad()
def accuracy(net: nn.Module, n: int, seed: int) -> tuple[float, float]:
    """On new pictures: of the single answers, and of pictures with all of them right."""
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(0, NOTHING + 1, (n, 2), generator=random)
    right = torch.cat([
        (net(draw(part, random)[0]) > 0) == there(part).bool() for part in y.split(100)
    ])  # fmt: skip
    return float(right.double().mean()), float(right.all(1).double().mean())
