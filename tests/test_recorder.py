"""What is recorded of a forward pass: the maps, their stride, and how it ends."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import DigitCNN, grad_cam_oracle
from torch import nn

from seenby import InputError, explain

# ---------------------------------------------------------------------------------- the maps


class AddOne(nn.Module):
    def forward(self, x):
        x += 1
        return x


@pytest.mark.parametrize("inplace", [nn.ReLU(inplace=True), nn.Sequential(AddOne(), nn.ReLU())])
def test_maps_are_those_of_the_layer_although_an_in_place_operation_follows(inplace):
    conv, fc = nn.Conv2d(1, 4, 3).double(), nn.Linear(4 * 36, 3).double()
    net = nn.Sequential(conv, inplace, nn.Flatten(), fc)
    plus = 0 if isinstance(inplace, nn.ReLU) else 1
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    A = conv(x).detach()
    expected = grad_cam_oracle(lambda A: fc(F.relu(A + plus).flatten(1)), A, [1, 1])
    explanation = explain(net, x, 1, layer="0")
    torch.testing.assert_close(explanation.L_c, expected)
    assert A.min() < -1
    assert not torch.allclose(expected, grad_cam_oracle(lambda A: fc(A.flatten(1)), A, [1, 1]))


class Identical(nn.Module):
    """Its layer hands on the tensor that it was given, which is overwritten afterwards."""

    def __init__(self):
        super().__init__()
        self.conv, self.same, self.fc = nn.Conv2d(1, 2, 3), nn.Identity(), nn.Linear(2, 2)

    def forward(self, x):
        a = self.conv(x)
        b = self.same(a)
        a.add_(9)
        return self.fc(b.mean((2, 3)))


def test_maps_of_a_layer_that_changes_nothing_are_not_overwritten():
    net, x = Identical(), torch.randn(2, 1, 6, 6)
    with torch.no_grad():
        A = net.conv(x)
    explanation = explain(net, x, 1, layer="same", guided=False)
    expected = F.relu((explanation.alpha[:, :, None, None] * A).sum(1))
    torch.testing.assert_close(explanation.L_c, expected)


class Hooked(nn.Module):
    """As many tutorials write it: the network itself keeps the gradients of its maps."""

    def __init__(self, keep):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
        self.keep, self.fc = keep, nn.Linear(4 * 8 * 8, 3)

    def forward(self, x):
        x = self.features(x)
        self.keep(x)
        return self.fc(x.flatten(1))


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize(
    "keep", [lambda A: A.register_hook(lambda g: None), torch.Tensor.retain_grad]
)
def test_networks_that_hook_their_own_maps(keep, guided):
    net, x = Hooked(keep).eval(), torch.randn(2, 1, 12, 12)
    explanation = explain(net, x, 1, guided=guided)
    assert explanation.layer == "features"
    net.keep = lambda A: None
    torch.testing.assert_close(explanation.L_c, explain(net, x, 1, guided=guided).L_c)


# -------------------------------------------------------------------------------- the stride


class Strided(nn.Module):
    def __init__(self, trunk):
        super().__init__()
        self.trunk, self.last, self.fc = trunk, nn.Conv2d(2, 2, 1), nn.LazyLinear(3)

    def forward(self, x):
        return self.fc(self.last(self.trunk(x)).flatten(1))


class Trunk(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.w, self.go = nn.Parameter(torch.randn(2, 2, 3, 3)), forward

    def forward(self, x):
        return self.go(x, self.w)


@pytest.mark.parametrize(
    ("stride", "trunk"),
    [
        ((1, 1), lambda x, w: F.conv2d(x, w)),
        ((2, 2), lambda x, w: F.conv2d(x, w, None, 2)),
        ((2, 3), lambda x, w: F.conv2d(x, w, stride=(2, 3))),
        ((3, 3), lambda x, w: F.max_pool2d(x, 3)),
        ((3, 3), lambda x, w: F.max_pool2d(x, np.int64(3))),
        ((1, 1), lambda x, w: F.max_pool2d(x, 3, 1)),
        ((4, 2), lambda x, w: F.avg_pool2d(x, kernel_size=(4, 2))),
        ((2, 2), lambda x, w: torch.max_pool2d(x, 2)),
        ((2, 2), lambda x, w: F.max_pool2d(x, 2, return_indices=True)[0]),
        ((6, 6), lambda x, w: F.relu(F.avg_pool2d(F.conv2d(x, w, stride=3), 2)) * 2),
        ((2, 2), lambda x, w: F.conv2d(F.pad(x, (1, 1, 1, 1)), w, stride=2)),
        ((2, 2), lambda x, w: torch.cat([F.max_pool2d(c, 2) for c in x.chunk(2, 1)], 1)),
        ((1, 1), lambda x, w: x * x.mean((2, 3), keepdim=True).sigmoid()),
        ((1, 1), lambda x, w: x * F.avg_pool2d(x, tuple(x.shape[2:])).sigmoid()),
        ((1, 1), lambda x, w: x + F.interpolate(F.max_pool2d(x, 2), x.shape[2:])),
        ((2, 2), lambda x, w: F.max_pool2d(x, 2, ceil_mode=True) + F.avg_pool2d(x, 13, 1)),
        ((1, 1), lambda x, w: F.avg_pool2d(x, 13, 1) + F.max_pool2d(x, 2, ceil_mode=True)),
        ((1, 1), lambda x, w: x + x.permute(0, 2, 3, 1).permute(0, 3, 1, 2)),
        (None, lambda x, w: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2)),
        (None, lambda x, w: x.flatten(1).view(x.shape)),
        (None, lambda x, w: F.interpolate(x, scale_factor=2)),
        (None, lambda x, w: F.adaptive_avg_pool2d(x, 5)),
    ],
)
def test_the_stride_is_followed_or_known_to_be_lost(stride, trunk):
    net, x = Strided(Trunk(trunk)), torch.rand(1, 2, 24, 25)
    net(x)
    explanation = explain(net, x)
    assert (explanation.layer, explanation.stride) == ("last", stride)
    if stride is None:
        stretched = F.interpolate(explanation.L_c[:, None], (24, 25), mode="bilinear")[:, 0]
        assert torch.equal(explanation.heatmap, stretched)


class OfParts(nn.Module):
    """ReLUs of views, on the way to its second convolution."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(1, 6, 3), nn.Conv2d(4, 2, 3), nn.Linear(2, 3)

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x), 2)[:, :4])
        x = torch.cat([F.relu(part) for part in x.chunk(2, 1)], 1)
        return self.fc(self.conv2(x).mean((2, 3)))


def test_a_relu_of_a_view_keeps_the_stride():
    assert explain(OfParts(), torch.rand(1, 1, 12, 12), 0).stride == (2, 2)


# -------------------------------------------------------------------------------- the ending


def test_softmax_at_the_end_changes_nothing(network, digits):
    x = network.tensor([digit.image for digit in digits])
    plain = explain(network.module, x, layer="conv2")
    for end in (nn.LogSoftmax(1), nn.Softmax(1)):
        ended = explain(nn.Sequential(network.module, end), x, layer="0.conv2")
        for name in ("logits", "alpha", "heatmap", "R", "guided_cam"):
            assert torch.equal(getattr(ended, name), getattr(plain, name))


def test_a_softmax_that_is_changed_afterwards_is_no_softmax():
    """It was once taken for the logits before it, where a class is first that it leaves out."""

    class Masked(DigitCNN):
        def forward(self, x):
            p = F.softmax(super().forward(x), 1)
            p[:, 3] = 0  # PyTorch knows no way back through this
            return p

    with pytest.raises(InputError, match="modified by an inplace operation"):
        explain(Masked(), torch.rand(4, 1, 28, 28))
