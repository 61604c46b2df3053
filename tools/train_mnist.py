#!/usr/bin/env python3
"""Train the course network on MNIST and keep the seed whose Grad-CAM describes it best.

    python tools/train_mnist.py                          MNIST through torchvision's download
    python tools/train_mnist.py --data mnist.npz         x_train, y_train, x_test, y_test in a file

Networks of equal accuracy differ in how well Grad-CAM tells what they use. So several are
trained, each is measured on the test digits, and of those that are accurate enough and seldom
leave the map empty, the one whose maps agree best with occlusion is written.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from seenby import InputError, explain  # noqa: E402
from seenby.errors import as_input_error  # noqa: E402
from seenby.machine import import_torchvision  # noqa: E402
from SID_a4 import CourseCNN  # noqa: E402

MIN_ACCURACY, MAX_EMPTY = 0.992, 0.03  # on the 10,000 test digits; empty: of those it gets right
BATCH = 64
PATCH = 7  # pixels: the side of the square that occlusion covers


@dataclass(frozen=True)
class Digits:
    """Normalised pictures (N, 1, 28, 28) and their classes (N,)."""

    x: Tensor
    y: Tensor

    @staticmethod
    def of(pixels: np.ndarray, labels: np.ndarray) -> Digits:
        x = torch.from_numpy(np.asarray(pixels, np.float32))[:, None] / 255
        y = torch.from_numpy(np.asarray(labels, np.int64))
        return Digits((x - CourseCNN.MEAN) / CourseCNN.STD, y)


@dataclass(frozen=True)
class Measured:
    """What a trained network is worth: accuracy, empty maps and their agreement with occlusion."""

    accuracy: float
    empty: float
    occlusion: float

    def __str__(self) -> str:
        return (
            f"accuracy {self.accuracy:.2%}, empty maps {self.empty:.2%}, "
            f"correlation with occlusion {self.occlusion:.3f}"
        )

    @property
    def good_enough(self) -> bool:
        return self.accuracy >= MIN_ACCURACY and self.empty <= MAX_EMPTY


def load_mnist(npz: Path | None, download: bool = True) -> tuple[Digits, Digits]:
    """Of a file, or as torchvision keeps it: the training digits and the test digits."""
    if npz:
        fix = "give an .npz with x_train, y_train, x_test and y_test"
        with as_input_error(f"--data {npz} can't be read", fix), np.load(npz) as file:
            return (
                Digits.of(file["x_train"], file["y_train"]),
                Digits.of(file["x_test"], file["y_test"]),
            )
    MNIST, root = import_torchvision().datasets.MNIST, ROOT / "data" / "mnist"
    get = ("from seenby.machine import import_torchvision; "
           "import_torchvision().datasets.MNIST('data/mnist', download=True)")
    fix = f'fetch it: python -c "{get}", or give --data'
    with as_input_error(f"MNIST is not in {root}", fix):
        sets = [MNIST(str(root), part, download=download) for part in (True, False)]
    train, test = (Digits.of(part.data.numpy(), part.targets.numpy()) for part in sets)
    return train, test


def jittered(x: Tensor, random: torch.Generator) -> Tensor:
    """Each picture turned by up to 10 degrees, scaled by 10 % and moved by two pixels."""

    def uniform(bound: float) -> Tensor:
        return (torch.rand(len(x), generator=random) * 2 - 1) * bound

    angle, scale = uniform(np.pi / 18), 1 + uniform(0.1)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    moves = torch.stack([uniform(2 / 14), uniform(2 / 14)], 1)[:, :, None]
    affine = torch.cat([torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2), moves], 2)
    background = (
        -CourseCNN.MEAN / CourseCNN.STD
    )  # grid_sample fills with 0: shift, sample, shift back
    grid = F.affine_grid(affine, list(x.shape), align_corners=False)
    return F.grid_sample(x - background, grid, align_corners=False) + background


def train(digits: Digits, seed: int, epochs: int,
          make: Callable[[], nn.Module] = CourseCNN) -> nn.Module:
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    net = make()
    # At 1e-2 accuracy is the same, but 3 to 4 % of the maps are empty instead of half a per cent.
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    steps = epochs * len(torch.arange(len(digits.x)).split(BATCH))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(digits.x), generator=random).split(BATCH):
            loss = F.cross_entropy(net(jittered(digits.x[chosen], random)), digits.y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def measure(net: nn.Module, digits: Digits, occluded: int) -> Measured:
    """Accuracy and empty maps over all digits, agreement with occlusion over the first few."""
    right, empty, agreement = 0, 0, []
    for x, y in zip(digits.x.split(500), digits.y.split(500), strict=True):
        explained = explain(net, x, guided=False)
        hit = explained.target == y
        right += int(hit.sum())
        empty += int((hit & (explained.heatmap.amax((1, 2)) == 0)).sum())
    for x in digits.x[:occluded].split(50):
        explained = explain(net, x, guided=False)
        assert explained.target is not None
        agreement.append(correlation(explained.heatmap, occlusion(net, x, explained.target)))
    return Measured(right / len(digits.x), empty / right, float(torch.cat(agreement).mean()))


@torch.no_grad()
def occlusion(
    net: torch.nn.Module,
    x: Tensor,
    target: Tensor,
    patch: int = PATCH,
    step: int = 1,
    cover: float | Tensor | None = None,
) -> Tensor:
    """(B, h, w): how far the target's logit falls when a patch is covered (in black, or as said)
    around every pixel, or every step-th."""

    def y_c(x: Tensor) -> Tensor:
        logits: Tensor = net(x)
        return logits.gather(1, target[:, None])[:, 0]

    whole, half = y_c(x), patch // 2
    rows, columns = (range(step // 2, S, step) for S in x.shape[2:])
    drops = torch.zeros(len(x), len(rows), len(columns))
    for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        covered = x.clone()
        covered[
            :, :, max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1
        ] = x.min() if cover is None else cover
        drops[:, i, j] = whole - y_c(covered)
    return drops


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's, picture by picture (B,); an empty map agrees with nothing: 0."""
    a, b = (m.flatten(1) - m.flatten(1).mean(1, keepdim=True) for m in (a, b))
    return F.cosine_similarity(a, b)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, default = parser.add_argument, "(default: %(default)s)"
    add("--data", type=Path, help="an .npz with x_train, y_train, x_test, y_test")
    add("--out", type=Path, default=ROOT / "mnist_model.pth", help=default)
    add("--seeds", type=int, default=5, help=f"networks to train {default}")
    add("--epochs", type=int, default=10, help=default)
    add("--occluded", type=int, default=500, help=f"test digits to cover {default}")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(argv)
    try:
        training, test = load_mnist(options.data)
    except InputError as problem:
        parser.error(str(problem))
    best: tuple[float, int, nn.Module] | None = None
    for seed in range(options.seeds):
        start = time.perf_counter()
        net = train(training, seed, options.epochs)
        trained = time.perf_counter() - start
        measured = measure(net, test, options.occluded)
        print(f"seed {seed}: {measured}; trained in {trained:.0f} s", flush=True)
        if measured.good_enough and (best is None or measured.occlusion > best[0]):
            best = measured.occlusion, seed, net
    if best is None:
        bounds = f"{MIN_ACCURACY:.1%} with at most {MAX_EMPTY:.0%} empty maps"
        print(f"no seed reached {bounds}; nothing written", file=sys.stderr)
        return 1
    torch.save(best[2].state_dict(), options.out)
    print(f"seed {best[1]} is written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
