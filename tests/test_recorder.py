"""What is recorded of a forward pass: the maps, their stride, and how it ends."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from oracles import DigitCNN, assert_same, grad_cam_oracle
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


class Tapped(nn.Module):
    """Reads its maps by hooks of its own, as feature extractors do; a ReLU overwrites them."""

    def __init__(self, inplace=True):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace), nn.Conv2d(4, 4, 3),
                                  nn.ReLU(inplace))
        self.head, self.taps = nn.Linear(8, 3), {}
        for i in (0, 2) if inplace else (1, 3):
            self.body[i].register_forward_hook(
                lambda _module, _args, output, i=i: self.taps.__setitem__(i, output))

    def forward(self, x):
        self.body(x)
        return self.head(torch.cat([tap.mean((2, 3)) for tap in self.taps.values()], 1))


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("layer", ["body.0", "body.2"])
def test_a_network_that_holds_the_maps_sees_them_overwritten(layer, guided):
    net, plain = Tapped().double(), Tapped(inplace=False).double()
    plain.load_state_dict(net.state_dict())
    x = torch.randn(2, 1, 9, 9).double()
    found, expected = (explain(each, x, 1, layer, guided=guided) for each in (net, plain))
    torch.testing.assert_close(found.logits, net(x).detach())
    assert_same(found, expected)
    assert found.L_c.any()


def test_a_layer_whose_last_call_gives_a_number_is_told():
    class GivesANumber(nn.Module):
        def forward(self, x):
            return 3 if x.ndim == 2 else x * 2.0

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.twice, self.head = nn.Conv2d(1, 4, 3), GivesANumber(), nn.Linear(4, 2)

        def forward(self, x):
            y = self.twice(self.conv(x)).relu_().mean((2, 3))
            self.twice(y)
            return self.head(y)

    with pytest.raises(InputError, match="layer twice gives int, which are no cells of the pict"):
        explain(Net(), torch.rand(1, 1, 9, 9), 0, "twice")


class Compared(nn.Module):
    """Two pictures by one body; the other one comes first, or last."""

    def __init__(self, is_last):
        super().__init__()
        self.body, self.is_last = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), is_last
        self.head = nn.Linear(8, 2)

    def forward(self, x, other):
        if self.is_last:
            x, other = self.body(x), self.body(other)
        else:
            other, x = self.body(other), self.body(x)
        return self.head(torch.cat([x.mean((2, 3)), other.mean((2, 3))], 1))


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("is_last", [True, False])
@pytest.mark.parametrize("layer", [None, "body", "body.0"])
def test_the_maps_are_those_of_the_pictures_and_not_of_what_they_are_compared_with(
        layer, is_last, guided):
    net, (x, other) = Compared(is_last).double(), torch.rand(2, 3, 1, 9, 9).double()
    found = explain(net, x, 1, layer, args=(other,), guided=guided)
    is_whole = found.layer == "body"
    A = (net.body if is_whole else net.body[0])(x).detach()

    def head(A):
        seen = A if is_whole else F.relu(A)
        both = seen.mean((2, 3)), net.body(other).mean((2, 3))
        return net.head(torch.cat(both, 1))

    torch.testing.assert_close(found.L_c, grad_cam_oracle(head, A, [1, 1, 1]))
    assert found.stride == (1, 1)


class HooksItself(nn.Module):
    """As a network of a well-known lesson does, it keeps a gradient by a hook of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        h = self.a(x).relu()
        h.register_hook(lambda gradient: None)
        return {"logits": self.head(self.b(h).relu().mean((2, 3)))}


def test_grad_cam_alone_of_a_network_that_hooks_its_own_maps():
    net, x = HooksItself().double(), torch.rand(2, 1, 9, 9).double()
    alone, both = explain(net, x, 1, guided=False), explain(net, x, 1)
    assert (alone.layer, alone.R) == ("b", None)
    torch.testing.assert_close(alone.L_c, both.L_c)


class FrozenBody(HooksItself):
    def forward(self, x):
        with torch.no_grad():
            h = self.b(self.a(x).relu())
        return {"logits": self.head(h.relu().mean((2, 3)))}


def test_grad_cam_alone_of_a_network_without_gradients_before_its_head():
    net, x = FrozenBody().double(), torch.rand(2, 1, 9, 9).double()
    found = explain(net, x, 1, "b", guided=False)
    A = net.b(net.a(x).relu()).detach()
    expected = grad_cam_oracle(lambda A: net.head(F.relu(A).mean((2, 3))), A, [1, 1])
    torch.testing.assert_close(found.L_c, expected)


def test_a_layer_that_gives_a_view_twice_is_one_layer():
    class Both(nn.Module):
        def __init__(self, is_view):
            super().__init__()
            self.conv, self.is_view = nn.Conv2d(1, 8, 3), is_view

        def forward(self, x):
            h = self.conv(x).chunk(2, 1)[0]
            h = h if self.is_view else h.clone()
            return h, h

    class Skips(nn.Module):
        def __init__(self, is_view):
            super().__init__()
            self.both, self.head = Both(is_view), nn.Linear(8, 3)

        def forward(self, x):
            on, skip = self.both(x)
            return self.head(torch.cat([on.relu().mean((2, 3)), skip.mean((2, 3))], 1))

    view, own = Skips(True).double(), Skips(False).double()
    own.load_state_dict(view.state_dict())
    x = torch.rand(2, 1, 9, 9).double()
    assert_same(explain(view, x, 1, "both"), explain(own, x, 1, "both"))


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

    with pytest.raises(InputError, match=r"layer same gives \(1, 2, 4, 4\) of int64, which are"):
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
    assert (found.task, found.final_activation) == ("multilabel", "sigmoid")
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


class ReadByHook(nn.Module):
    """As a backbone whose tokens a decoder collects by hooks; they are a view of maps."""

    def __init__(self, both):
        super().__init__()
        self.conv, self.turn = nn.Conv2d(2, 4, 2, 2), Turned()
        self.both, self.fc = both, nn.Linear(4, 3)
        self.turn.register_forward_hook(lambda _module, _args, output: self.kept.append(output))

    def forward(self, x):
        self.kept = []
        tokens = self.turn(self.conv(x))
        rows = self.kept[0] * 2 + tokens if self.both else self.kept[0]
        return self.fc(rows.mean(1))


class Turned(nn.Module):
    def forward(self, A):
        return A.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("both", [True, False])
def test_a_network_that_reads_the_layer_by_a_hook_of_its_own(both):
    net, x = ReadByHook(both).double(), torch.randn(2, 2, 8, 8).double()
    found = explain(net, x, 1, "turn")
    alpha = net.fc.weight[1].detach() * (3 if both else 1) / 16
    torch.testing.assert_close(found.alpha, alpha.expand(2, 4))
