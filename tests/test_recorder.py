"""What is recorded of a forward pass: the maps, their stride, and how it ends."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import DigitCNN, grad_cam_oracle
from torch import nn

from seenby import InputError, explain
from seenby.core.recorder import stride_resized

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


class Half(nn.Module):
    def forward(self, a):
        return a[:, :1].expand(-1, 2, -1, -1)


class Identical(nn.Module):
    """Its layer hands on what it was given, or a view of it, which is overwritten afterwards."""

    def __init__(self, same, name):
        super().__init__()
        self.conv, self.same, self.fc = nn.Conv2d(1, 2, 3), same, nn.Linear(2, 2)
        self.name = name

    def forward(self, x):
        a = self.conv(x)
        b = self.same(a) if self.name is None else self.same(**{self.name: a})
        a.add_(9)
        return self.fc(b.mean((2, 3)))


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(
    ("same", "name"), [(nn.Identity(), None), (nn.Identity(), "input"), (Half(), None)]
)
def test_maps_of_a_layer_that_changes_nothing_are_not_overwritten(same, name, guided):
    net, x = Identical(same, name), torch.randn(2, 1, 6, 6)
    with torch.no_grad():
        A = same(net.conv(x))
        net.fc.weight.copy_(torch.tensor([[1.0, 1.0], [-1.0, -0.5]]) * 36)
    explanation = explain(net, x, 1, layer="same", guided=guided)
    expected = F.relu((explanation.alpha[:, :, None, None] * A).sum(1))
    torch.testing.assert_close(explanation.L_c, expected)


class Pair(NamedTuple):
    maps: torch.Tensor
    more: int


class GivesPair(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.conv, self.kind = nn.Conv2d(1, 2, 3), kind

    def forward(self, x):
        return self.kind(self.conv(x), 5)


@pytest.mark.parametrize("kind", [Pair, lambda *both: tuple(both), lambda *both: [*both]])
def test_of_several_things_the_first_is_the_maps(kind):
    class Net(Identical):
        def forward(self, x):
            pair = self.same(x)
            assert isinstance(pair, type(kind(1, 2)))
            assert pair[1] == 5
            return self.fc(pair[0].mean((2, 3)))

    net, x = Net(GivesPair(kind), None), torch.randn(2, 1, 6, 6)
    assert torch.equal(explain(net, x, 1, "same").L_c, explain(net, x, 1, "same.conv").L_c)


def test_a_layer_that_gives_whole_numbers_is_no_map():
    class Rounds(nn.Module):
        def forward(self, a):
            return a.detach().round().long()

    class Net(Identical):
        def forward(self, x):
            a = self.conv(x)
            return self.fc((a + self.same(a)).mean((2, 3)))

    with pytest.raises(InputError, match=r"layer same gives \(1, 2, 4, 4\), which are no cells"):
        explain(Net(Rounds(), None), torch.rand(1, 1, 6, 6), 1, "same")


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
        (None, lambda x, w: x.mT.mT.permute(0, 1, 3, 2).permute(0, 1, 3, 2)),
        (None, lambda x, w: x.flatten(1).view(x.shape)),
        ((0.5, 0.5), lambda x, w: F.interpolate(x, scale_factor=2)),
        ((2.4, 5), lambda x, w: F.interpolate(x, (10, 5), mode="bilinear")),
        ((2.875, 6), lambda x, w: F.interpolate(x, (9, 5), mode="bilinear", align_corners=True)),
        ((0.5, 1), lambda x, w: nn.Upsample((48, 25), mode="bicubic")(x)),
        ((1, 1), lambda x, w: x.flip(1).roll(1, 0)[:, [1, 0]]),
        ((1, 1), lambda x, w: x.index_select(1, torch.tensor([1, 0]))),
        ((1, 1), lambda x, w: torch.einsum("bchw,cd->bdhw", x, w[:, :, 0, 0])),
        (None, lambda x, w: x.flip(3)),
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


class InPlaceBlock(nn.Module):
    """Hands on what it was given, changed; who still holds that has the block's output."""

    def __init__(self, block):
        super().__init__()
        self.conv, self.block, self.after = nn.Conv2d(2, 4, 3), block, nn.Conv2d(4, 4, 3, 1, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        before = self.conv(x)
        A = self.block(before)
        return self.fc((self.after(A).relu() + before).mean((2, 3)))


class Adds(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, 1, 1)

    def forward(self, x):
        x += self.conv(2 * x)
        return x


@pytest.mark.parametrize(("block", "is_old_one_also_A"), [
    (Adds(), True), (nn.ReLU(inplace=True), True), (nn.Identity(), False), (nn.ReLU(), False),
])  # fmt: skip
def test_what_a_layer_changed_in_place_is_its_output_wherever_it_is_used(block, is_old_one_also_A):
    net, x = InPlaceBlock(block).double().eval(), torch.randn(2, 2, 8, 8, dtype=torch.float64)
    found = explain(net, x, 1, "block")
    with torch.no_grad():
        before = net.conv(x)
        A = block(before)
    A = (A if is_old_one_also_A else A.clone()).requires_grad_()
    skip = A if is_old_one_also_A else before
    y = net.fc((net.after(A).relu() + skip).mean((2, 3)))
    (dyc_dA,) = torch.autograd.grad(y[:, 1].sum(), A)
    torch.testing.assert_close(found.logits, y.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.alpha, dyc_dA.mean((2, 3)), rtol=1e-12, atol=1e-14)
    assert found.L_c.any()


def test_a_layer_that_works_in_place_and_whose_result_nobody_uses():
    class InPlace(InPlaceBlock):
        def forward(self, x):
            before = self.conv(x)
            self.block(before)
            return self.fc(before.mean((2, 3)))

    net, x = InPlace(nn.ReLU(inplace=True)).eval(), torch.randn(2, 2, 8, 8)
    found = explain(net, x, 1, "block")
    torch.testing.assert_close(found.alpha, (net.fc.weight[1] / 36).detach().expand(2, 4))


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


# -------------------------------------------------------------------------------- the ending


def test_softmax_at_the_end_changes_nothing(network, digits):
    x = network.tensor([digit.image for digit in digits])
    plain = explain(network.module, x, layer="conv2")
    for end in (nn.LogSoftmax(1), nn.Softmax(1)):
        ended = explain(nn.Sequential(network.module, end), x, layer="0.conv2")
        for name in ("logits", "alpha", "heatmap", "R", "guided_cam"):
            assert torch.equal(getattr(ended, name), getattr(plain, name))


class Reshaped(nn.Module):
    def __init__(self, reshape):
        super().__init__()
        self.conv, self.reshape = nn.Conv2d(1, 3, 3), reshape

    def forward(self, x):
        return self.reshape(self.conv(x).sigmoid())


@pytest.mark.parametrize(
    "reshape",
    [
        lambda p: p.view(len(p), -1),
        lambda p: torch.flatten(input=p, start_dim=1),
        lambda p: p.reshape(len(p), 48),
    ],
)
def test_an_ending_that_is_reshaped_is_known_for_one_picture_and_for_several(reshape):
    torch.manual_seed(0)
    net, x = Reshaped(reshape), torch.rand(3, 1, 6, 6)
    found = explain(net, x, 1, layer="conv")
    assert (found.task, found.undone) == ("multilabel", "sigmoid")
    torch.testing.assert_close(found.logits, net.conv(x).flatten(1).detach())
    torch.testing.assert_close(found.L_c[:1], explain(net, x[:1], 1, layer="conv").L_c)


def test_a_softmax_that_is_changed_afterwards_is_no_softmax():
    """It was once taken for the logits before it, where a class is first that it leaves out."""

    class Masked(DigitCNN):
        def forward(self, x):
            p = F.softmax(super().forward(x), 1)
            p[:, 3] = 0  # PyTorch knows no way back through this
            return p

    with pytest.raises(InputError, match="modified by an inplace operation"):
        explain(Masked(), torch.rand(4, 1, 28, 28))
