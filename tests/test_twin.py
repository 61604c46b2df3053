"""The two doors agree: the script's textbook hooks, and the tool's one recorded forward pass.

Neither imports the other, so each is an oracle for the other. One picture a call, the same layer
named on both sides; a difference is told as a share of the map's maximum.
"""

import numpy as np
import pytest
import torch
from course import WEIGHTS
from oracles import as_after_training, untrained
from torch import nn

import seenby
import SID_a4

NEAR = {torch.float32: 1e-5, torch.float64: 1e-12}


def agrees(found, expected):
    """Asserts that two maps are equal; whether they are not empty, which shows little."""
    assert found.shape == expected.shape
    top = expected.abs().max()
    assert (found - expected).abs().max() <= NEAR[expected.dtype] * top
    return bool(top > 0)


def course(sizes):
    net = SID_a4.CourseCNN(*sizes)
    if sizes == (10, 10):
        net.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return net


@pytest.fixture(scope="module")
def pictures(digits, network):
    return torch.cat([network.tensor([digit.image]) for digit in digits])


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("sizes", [(10, 10), (10, 20)])
@pytest.mark.parametrize("target", [None, 3])
def test_the_course_network(pictures, sizes, dtype, target):
    net, x = course(sizes).to(dtype).eval(), pictures.to(dtype)
    full = 0
    for i in range(len(x)):
        script = SID_a4.explain(net, x[i : i + 1], target)
        tool = seenby.explain(net, x[i : i + 1], target, layer="conv2")
        assert script.target.tolist() == tool.target.tolist()
        for name in ("logits", "alpha", "R"):
            assert agrees(getattr(tool, name), getattr(script, name))
        maps = [agrees(getattr(tool, name), getattr(script, name))
                for name in ("L_c", "heatmap", "guided_cam")]  # fmt: skip
        full += all(maps)
    assert full >= 4


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("pad", [3, 0, 1])
def test_the_heat_maps_of_each_pad(pictures, pad, dtype):
    net, x = course((10, 10)).to(dtype).eval(), pictures.to(dtype)
    for i in range(len(x)):
        script = SID_a4.explain(net, x[i : i + 1], pad=pad)
        tool = seenby.explain(net, x[i : i + 1], layer=net.conv2, pad=pad)
        assert agrees(tool.heatmap, script.heatmap)
        assert agrees(tool.guided_cam, script.guided_cam)


def with_flat_backgrounds(B, C, S):
    """Rectangles of one value each on paper of another one, in which poolings find many ties."""
    rng = np.random.default_rng(1)
    x = torch.full((B, C, S, S), -0.4242, dtype=torch.float64)
    for picture in x:
        for _ in range(2):
            top, left = rng.integers(0, S - 6, 2)
            height, width = rng.integers(3, S // 2, 2)
            picture[:, top : top + height, left : left + width] = float(rng.normal())
    return x


def agree_picture_by_picture(net, x, layer, names):
    """Asserts that a batch is its pictures one by one, and the script's; how many are not zero."""
    full = 0
    for i, one in enumerate(seenby.explain(net, x, layer=layer)):
        single = seenby.explain(net, x[i : i + 1], layer=layer)
        script = SID_a4.explain(net, x[i : i + 1], layer=net.get_submodule(layer))
        for name in names:
            found = getattr(one, name)
            full += agrees(found, getattr(single, name)) and agrees(found, getattr(script, name))
    return full


@pytest.mark.parametrize("drawn", ["digits", "rectangles"])
def test_a_batch_is_its_pictures_of_the_course_network(pictures, drawn):
    x = pictures.double() if drawn == "digits" else with_flat_backgrounds(16, 1, 28)
    names = ("alpha", "L_c", "heatmap", "R", "guided_cam")
    full = agree_picture_by_picture(course((10, 10)).double().eval(), x, "conv2", names)
    assert full >= 0.6 * len(names) * len(x)


def test_a_batch_is_its_pictures_of_a_resnet():
    net = as_after_training(untrained("resnet18")).double().eval()
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # which backward hooks on modules, the script's, can't follow
    names = ("logits", "alpha", "L_c", "R")
    assert agree_picture_by_picture(net, with_flat_backgrounds(4, 3, 64), "layer4", names) >= 12


class Random(nn.Module):
    """Convolutions, ReLU modules, poolings and a skip, of sizes that a seed draws."""

    def __init__(self, seed):
        super().__init__()
        rng = np.random.default_rng(seed)
        K1, K2, C = (int(n) for n in rng.integers(2, 9, 3))
        pad = int(rng.integers(0, 2))
        self.conv1 = nn.Conv2d(3, K1, 3, padding=pad, stride=int(rng.integers(1, 3)))
        self.conv2 = nn.Conv2d(K1, K2, 3, padding=1)
        self.skip = nn.Conv2d(K1, K2, 1) if rng.random() < 0.5 else None
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.pool = nn.MaxPool2d(2) if rng.random() < 0.5 else nn.AvgPool2d(2)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * K2, 12),
                                  self.relu3, nn.Linear(12, C))  # fmt: skip

    def forward(self, x):
        x = self.relu1(self.conv1(x))
        y = self.conv2(x)
        y = y if self.skip is None else y + self.skip(x)
        return self.head(self.pool(self.relu2(y)))


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_random_networks_of_relu_modules(layer, dtype):
    full = 0
    for seed in range(20):
        torch.manual_seed(seed)
        net, x = Random(seed).to(dtype).eval(), torch.randn(1, 3, 18, 22, dtype=dtype)
        for target in (0, 1):
            script = SID_a4.explain(net, x, target, layer=net.get_submodule(layer))
            tool = seenby.explain(net, x, target, layer=layer)
            agree = [agrees(getattr(tool, name), getattr(script, name))
                     for name in ("R", "alpha", "L_c")]  # fmt: skip
            full += all(agree)
    assert full >= 20  # of forty
