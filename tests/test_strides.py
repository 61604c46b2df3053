"""How many pixels lie from cell to cell: what is followed, and what is known to be lost."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seenby import explain
from seenby.core.strides import stride_resized


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
        (None, lambda x, w: x.mT.mT.permute(0, 1, 3, 2).permute(0, 1, 3, 2)),
        (None, lambda x, w: x.flatten(1).view(x.shape)),
        ((0.5, 0.5), lambda x, w: F.interpolate(x, scale_factor=2)),
        ((2.4, 5), lambda x, w: F.interpolate(x, (10, 5), mode="bilinear")),
        ((2.875, 6), lambda x, w: F.interpolate(x, (9, 5), mode="bilinear", align_corners=True)),
        ((0.5, 1), lambda x, w: nn.Upsample((48, 25), mode="bicubic")(x)),
        ((1, 1), lambda x, w: x.flip(1).roll(1, 0)[:, [1, 0]]),
        ((1, 1), lambda x, w: x.index_select(1, torch.tensor([1, 0]))),
        ((1, 1), lambda x, w: x[:, :, :, :][..., :]),
        ((1, 1), lambda x, w: torch.einsum("bchw,cd->bdhw", x, w[:, :, 0, 0])),
        (None, lambda x, w: x.flip(3)),
        (None, lambda x, w: F.interpolate(x, (24, 24)).transpose_(2, 3)),
        (None, lambda x, w: torch.empty_like(x).copy_(x.flip(3))),
        (None, lambda x, w: x.index_copy(3, torch.arange(24, -1, -1), x)),
        (None, lambda x, w: F.interpolate(x, (24, 24)) @ torch.eye(24).flip(0)),
        (None, lambda x, w: F.pad(x, (4, -4))),
        (None, lambda x, w: F.pad(x, (-4, 0))),
        ((2, 2), lambda x, w: F.conv2d(F.pad(x, (0, 1, 0, 1)), w, stride=2)),
        ((1, 1), lambda x, w: F.conv2d(x.flip(3), w, padding=1) + x),
        (None, lambda x, w: torch.flip(x, dims=(-2,))),
        (None, lambda x, w: torch.flip(x, [1, 2])),
        (None, lambda x, w: x.roll((1, 2), (2, 3))),
        (None, lambda x, w: x.roll(5)),
        (None, lambda x, w: torch.rot90(x, 2, (2, 3))),
        (None, lambda x, w: x[..., torch.arange(24, -1, -1)]),
        (None, lambda x, w: x[:, :, torch.arange(23, -1, -1)]),
        (None, lambda x, w: x.index_select(2, torch.arange(23, -1, -1))),
        (None, lambda x, w: F.interpolate(x, (24, 24)).mT),
        (None, lambda x, w: torch.einsum("bchw->bcwh", F.interpolate(x, (24, 24)))),
        (None, lambda x, w: torch.fft.ifft2(torch.fft.fft2(x)).real.flip(3)),
        (None, lambda x, w: torch.fft.fft2(x).real),
        (None, lambda x, w: F.grid_sample(x, torch.rand(1, 24, 25, 2), align_corners=False)),
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


def test_of_a_single_row_its_corners_have_no_distance():
    one, more = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 6, 8)
    assert stride_resized((2, 3), one, more, False) == (2 / 6, 3 / 2)
    assert stride_resized((2, 3), one, more, True) is None
    assert stride_resized((2, 3), more, one, True) is None


def test_nothing_is_noted_on_what_was_there_before():
    """As positions are, which to() hands back: the next picture may be of another size."""

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.pos, self.table = nn.Parameter(torch.rand(1, 4, 8, 8)), torch.rand(1, 4, 8, 8)
            self.conv, self.last = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1)
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            x = F.adaptive_avg_pool2d(self.conv(x), 8)
            x = self.pos.to(x) * self.table.type_as(x) * x
            return self.fc(self.last(x).mean((2, 3)))

    net, large, small = Positions(), torch.rand(1, 2, 40, 40), torch.rand(1, 2, 8, 8)
    before = explain(net, large, 0, "last")
    assert before.stride is None
    assert explain(net, small, 0, "last").stride == (1, 1)
    assert not vars(net.pos)
    assert not vars(net.table)
    after = explain(net, large, 0, "last")
    assert after.stride is None
    assert torch.equal(after.heatmap, before.heatmap)


class LastAxis(nn.Module):
    """A convolution as large in every axis, whose channels are then the last one."""

    def __init__(self, K):
        super().__init__()
        self.conv, self.last, self.fc = nn.Conv2d(1, K, 2, 2), nn.Linear(K, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.fc(self.last(self.conv(x).permute(0, 2, 3, 1)).relu().mean((1, 2)))


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_channels_that_come_last_are_known_also_where_they_are_as_many_as_the_rows(memory):
    torch.manual_seed(0)
    net, x = LastAxis(6), torch.rand(2, 1, 12, 12).contiguous(memory_format=memory)
    found = explain(net, x, 1, layer="last")
    assert found.grid.layout == "NHWC"
    A = net.last(net.conv(x).permute(0, 2, 3, 1)).detach().requires_grad_()  # (B, 6, 6, 6)
    g = torch.autograd.grad(net.fc(A.relu().mean((1, 2)))[:, 1].sum(), A)[0]
    expected = F.relu((A * g.mean((1, 2), keepdim=True)).sum(3))
    torch.testing.assert_close(found.L_c, expected.detach())


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


class Decoder(nn.Module):
    """As many channels as rows and columns, of a stride that is not known."""

    def __init__(self, up):
        super().__init__()
        self.up, self.last, self.fc = up, nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.last(self.up(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("up", [
    nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ConvTranspose2d(4, 8, 2, 2)),
    nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(8)),
])  # fmt: skip
def test_what_a_convolution_gives_are_maps_also_where_the_stride_is_not_known(up):
    net, x = Decoder(up).double().eval(), torch.randn(2, 3, 16, 16).double()
    found = explain(net, x, 1)
    assert (found.layer, found.grid.layout, found.stride) == ("last", "NCHW", None)
    A = net.last(net.up(x)).detach().requires_grad_()
    (dyc_dA,) = torch.autograd.grad(net.fc(A.relu().mean((2, 3)))[:, 1].sum(), A)
    alpha = dyc_dA.mean((2, 3))
    torch.testing.assert_close(found.alpha, alpha)
    torch.testing.assert_close(found.L_c, (alpha[:, :, None, None] * A).sum(1).relu().detach())
