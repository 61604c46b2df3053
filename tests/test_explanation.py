"""The heart: maps with known answers, three oracles, and a caller who notices nothing."""

import copy
import gc
import warnings
import weakref
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import SID_a4
from SID_a4 import Complaint, CourseCNN, explain, explain_each, find_layer, place


class GuidedReLU(torch.autograd.Function):
    """The oracle of guided backpropagation: ReLU's own backward pass, written out."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x > 0) * (gradient > 0)


class Net(nn.Module):
    """Two convolutions, a skip, a head; every ReLU is the one it is given."""

    def __init__(self, relu, skip="none"):
        super().__init__()
        self.relu, self.skip = relu, skip
        self.conv1, self.conv2 = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(6 * 4 * 4, 12), nn.Linear(12, 5)

    def forward(self, x):
        a = self.conv1(x)
        b = self.relu(a.clone() if self.skip == "pre" else a)
        y = self.conv2(b)
        if self.skip == "pre":  # a feeds both a ReLU and the sum
            y = y + a
        elif self.skip == "add_":
            y += b
        y = self.relu(F.max_pool2d(y, 2))
        return self.fc2(self.relu(self.fc1(y.flatten(1))))


def guided_oracle(net, x, c):
    twin = copy.deepcopy(net)
    del twin.relu
    twin.relu = GuidedReLU.apply
    x = x.clone().requires_grad_()
    (R,) = torch.autograd.grad(twin(x)[range(len(x)), c].sum(), x)
    return R


def grad_cam_oracle(head, A, c):
    """Eqs. 1 and 2, with loops instead of tensor algebra; head: from A to the logits."""
    A = A.detach().requires_grad_()
    (g,) = torch.autograd.grad(head(A)[range(len(A)), c].sum(), A)
    maps = []
    for i in range(len(A)):
        L = torch.zeros_like(A[i, 0])
        for k in range(A.shape[1]):
            L = L + g[i, k].sum() / g[i, k].numel() * A[i, k].detach()
        maps.append(L.clamp(min=0))
    return torch.stack(maps)


RELUS = {
    "module": nn.ReLU(),
    "inplace": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu inplace": lambda x: F.relu(x, inplace=True),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "x.relu()": lambda x: x.relu(),
    "x.relu_()": lambda x: x.relu_(),
    "clamp(min=0)": lambda x: x.clamp(min=0),
    "torch.clamp(x, 0)": lambda x: torch.clamp(x, 0),
    "clamp_min": lambda x: x.clamp_min(0.0),
    "clamp tensor": lambda x: x.clamp(min=torch.tensor(0.0)),
    "clip": lambda x: x.clip(0),
    "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "maximum of 0": lambda x: torch.maximum(torch.zeros(()).to(x), x),
    "maximum by name": lambda x: torch.maximum(x, other=torch.zeros_like(x)),
    "max": lambda x: torch.max(x, torch.zeros_like(x)),
    "x.max()": lambda x: x.max(torch.zeros(()).to(x)),
    "fmax": lambda x: torch.fmax(x, torch.zeros_like(x)),
    "threshold": nn.Threshold(0.0, 0.0),
    "leaky of 0": nn.LeakyReLU(0.0),
    "in place on rows": lambda x: F.relu(x.flatten(1), inplace=True).view(x.shape),
    "in place on a view": lambda x: x.view_as(x).relu_(),
}


@pytest.mark.parametrize("skip", ["none", "pre", "add_"])
@pytest.mark.parametrize("spelling", RELUS)
def test_guided_backprop_through_every_kind_of_relu(spelling, skip):
    net = Net(RELUS[spelling], skip).double().eval()
    x, c = torch.randn(3, 2, 8, 8, dtype=torch.float64), [1, 4, 0]
    found = explain(net, x, c, layer="conv2")
    torch.testing.assert_close(found.R, guided_oracle(net, x, c), rtol=1e-12, atol=1e-14)
    plain = torch.autograd.grad(net(x.requires_grad_())[range(3), c].sum(), x)[0]
    assert (found.R - plain).abs().max() > 0.1 * plain.abs().max()  # not the plain gradient


@pytest.mark.parametrize("spelling", [
    lambda x: x.clamp(min=-0.5), lambda x: x.clamp(max=0.5), lambda x: torch.clamp(x, -1, 1),
    lambda x: F.threshold(x, 0.3, 0.0), lambda x: F.hardtanh(x), lambda x: F.leaky_relu(x, 0.1),
    lambda x: torch.maximum(x, torch.full_like(x, 0.1)), lambda x: x.clamp_min(0.2),
])  # fmt: skip
def test_other_bounds_are_no_relus(spelling):
    net = Net(spelling, "none").double().eval()
    x, c = torch.randn(3, 2, 8, 8, dtype=torch.float64), [1, 4, 0]
    found = explain(net, x, c, layer="conv2")
    assert found.relus == 0
    (plain,) = torch.autograd.grad(net(x.requires_grad_())[range(3), c].sum(), x)
    torch.testing.assert_close(found.R, plain, rtol=1e-12, atol=1e-14)


def test_grad_cam_by_hand():
    """A_0 = x and A_1 = 2x - 3, y_0 = mean(A_0) - mean(A_1): L = ReLU((3 - x) / 6)."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight[:] = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
        net[0].bias[:] = torch.tensor([0.0, -3.0])
        net[3].weight[:] = torch.tensor([[1.0, -1.0], [2.0, 0.0]])
        net[3].bias[:] = 0
    x = torch.tensor([[[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]]])
    found = explain(net, x, target=0)
    sixth = 1 / 6
    torch.testing.assert_close(found.alpha, torch.tensor([[sixth, -sixth]]))
    expected = torch.tensor([[[3 * sixth, 2 * sixth, sixth], [0.0, 0.0, 0.0]]])
    torch.testing.assert_close(found.cells, expected)
    torch.testing.assert_close(found.L_c, expected)  # stride 1, nothing lost: it lies as it is
    torch.testing.assert_close(found.logits, torch.tensor([[0.5, 5.0]]))
    assert (found.layer, found.stride, found.pad) == ("0", (1, 1), (0, 0))
    torch.testing.assert_close(
        explain(net, x).cells, x[:, 0] / 3
    )  # predicted: 1, y_1 = 2 mean(A_0)


def test_guided_backprop_by_hand():
    """y = relu(3a) - relu(2a) - relu(-a): at a > 0 only the first ReLU lets 3 through."""
    net = nn.Sequential(
        nn.Conv2d(1, 3, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(6, 1, False)
    )
    with torch.no_grad():
        net[0].weight[:] = torch.tensor([3.0, 2.0, -1.0]).view(3, 1, 1, 1)
        net[3].weight[:] = torch.tensor([[1.0, 1.0, -1.0, -1.0, -1.0, -1.0]])
    x = torch.tensor([[[[2.0, -2.0]]]])
    found = explain(net, x, target=0, pad=0)
    torch.testing.assert_close(found.R, torch.tensor([[[[3.0, 0.0]]]]))  # plain: [[1, 1]]
    torch.testing.assert_close(found.guided_cam, found.R * found.L_c[:, None])


def test_course_network_against_float64_autograd():
    net = CourseCNN().double().eval()
    x, c = torch.rand(5, 1, 28, 28, dtype=torch.float64), [0, 3, 9, 3, 7]

    def head(A):
        y = F.relu(F.max_pool2d(A, 2)).flatten(1)
        return net.fc2(F.relu(net.fc1(y)))

    A = net.conv2(F.relu(F.max_pool2d(net.conv1(x), 2)))
    found = explain(net, x, c)
    torch.testing.assert_close(found.cells, grad_cam_oracle(head, A, c), rtol=1e-12, atol=1e-15)
    assert found.cells.shape == (5, 8, 8)
    assert found.cells.amax() > 0
    torch.testing.assert_close(found.logits, net(x))
    in_float32 = explain(net.float(), x.float(), c)
    torch.testing.assert_close(in_float32.L_c.double(), found.L_c, rtol=1e-5, atol=1e-8)


class ModuleCNN(CourseCNN):
    """The course network with the ReLU modules that the libraries can see."""

    def __init__(self):
        super().__init__()
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, x):
        x = self.relu1(F.max_pool2d(self.conv1(x), 2))
        x = self.relu2(F.max_pool2d(self.conv2(x), 2))
        return self.fc2(self.relu3(self.fc1(x.flatten(1))))


def test_against_captum():
    from captum.attr import GuidedBackprop, GuidedGradCam, LayerGradCam

    net, c = ModuleCNN().double().eval(), torch.tensor([2, 5, 2])
    x = torch.randn(3, 1, 28, 28, dtype=torch.float64)
    found = explain(net, x, c, pad=0)
    with warnings.catch_warnings(action="ignore"):  # it warns of its own hooks
        cam = LayerGradCam(net, net.conv2).attribute(x, c, relu_attributions=True)[:, 0]
        R = GuidedBackprop(net).attribute(x, c)
        both = GuidedGradCam(net, net.conv2).attribute(x, c, interpolate_mode="bilinear")
    torch.testing.assert_close(found.cells, cam.detach(), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(found.R, R.detach(), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(found.guided_cam, both.detach(), rtol=1e-6, atol=1e-12)
    assert found.guided_cam.abs().max() > 0


def test_against_pytorch_grad_cam():
    from pytorch_grad_cam import GradCAM, GuidedBackpropReLUModel
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    net, x = ModuleCNN().eval(), torch.randn(3, 1, 28, 28)
    found = explain(net, x, [2, 5, 2], pad=0)
    cam = GradCAM(twin := copy.deepcopy(net), [twin.conv2])
    theirs = cam(x, [ClassifierOutputTarget(c) for c in (2, 5, 2)])
    low, high = found.L_c.flatten(1).aminmax(dim=1)  # it shows the smallest value as zero
    ours = (found.L_c - low[:, None, None]) / (high - low)[:, None, None]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for i, c in enumerate((2, 5, 2)):  # it can't explain a batch
        R = GuidedBackpropReLUModel(copy.deepcopy(net), "cpu")(x[i : i + 1], c)
        np.testing.assert_allclose(found.R[i, 0], R[..., 0], rtol=1e-5, atol=1e-7)


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
    found = explain(net, x, 1, layer="0")
    torch.testing.assert_close(found.cells, expected)
    assert A.min() < -1
    assert not torch.allclose(expected, grad_cam_oracle(lambda A: fc(A.flatten(1)), A, [1, 1]))


@pytest.mark.parametrize("B", [1, 3])
def test_a_relu_written_into_a_part_of_a_tensor(B):
    def first_four(x):
        x = x * 1.0
        x[:, :4].relu_()  # into x, which goes on
        return x

    net, x = Net(first_four).double().eval(), torch.randn(B, 2, 8, 8).double()
    found = explain(net, x, 1, layer="conv2")
    torch.testing.assert_close(found.logits, net(x), rtol=1e-12, atol=1e-14)
    guided = GuidedReLU.apply
    net.relu = lambda x: torch.cat([guided(x[:, :4]), x[:, 4:]], 1)
    fed = x.clone().requires_grad_()
    (R,) = torch.autograd.grad(net(fed)[:, 1].sum(), fed)
    torch.testing.assert_close(found.R, R, rtol=1e-12, atol=1e-14)
    assert (found.relus, found.unguided) == (3, ())


def test_a_relu_that_is_a_function_of_autograd_is_not_called_guided():
    """Its own way back is not PyTorch's, and what happens in it is hidden."""
    x, c = torch.randn(3, 2, 8, 8).double(), [1, 4, 0]
    found = explain(Net(GuidedReLU.apply).double().eval(), x, c)
    assert found.unguided == ("clamp in an autograd.Function",)


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
    found = explain(net, x, 1, layer="same", guided=False)
    expected = F.relu((found.alpha[:, :, None, None] * A).sum(1))
    torch.testing.assert_close(found.cells, expected)


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
    found = explain(net, x, 1, guided=guided)
    assert found.layer == "features"
    net.keep = lambda A: None
    torch.testing.assert_close(found.cells, explain(net, x, 1, guided=guided).cells)


class Checkpointed(nn.Module):
    """What is computed a second time, on the way back, must come out as it did the first time."""

    def __init__(self, checkpoint):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.checkpoint, self.fc = checkpoint, nn.Linear(4 * 64, 3)

    def block(self, x, conv, bn):
        x = F.relu(bn(conv(x)))
        return x.view(len(x), -1).view(x.shape)

    def forward(self, x):
        x = self.checkpoint(self.block, x, self.conv1, self.bn1)
        x = self.checkpoint(self.block, x, self.conv2, self.bn2)
        return self.fc(x.flatten(1))


@pytest.mark.parametrize("targets", [[0], [0, 2]])
def test_networks_that_compute_anew_on_the_way_back(targets):
    """For a batch batch-norm is written in another way, which is not known on the way back."""
    plain = Checkpointed(lambda block, *given: block(*given)).double()
    twin, x = copy.deepcopy(plain), torch.randn(2, 2, 8, 8).double()
    twin.checkpoint = partial(checkpoint, use_reentrant=False)
    known = explain_each(plain, x[:1], targets)
    for found, each in zip(explain_each(twin, x[:1], targets), known, strict=True):
        for name in ("logits", "cells", "R"):
            torch.testing.assert_close(getattr(found, name), getattr(each, name))
        assert (found.relus, found.unguided, found.stride) == (2, (), each.stride)
    with pytest.raises(Complaint, match="switch off no_grad and checkpoints within the network"):
        explain_each(twin, x, targets)


class Frozen(Net):
    def forward(self, x):
        with torch.no_grad():
            x = self.conv1(x)
        return self.fc2(self.relu(self.fc1(F.max_pool2d(self.conv2(x), 2).flatten(1))))


def test_networks_without_a_graph_within_are_told_how_to_have_one():
    net, x = Frozen(nn.ReLU()), torch.randn(2, 2, 8, 8)
    assert explain(net, x, layer="conv2", guided=False).cells.shape == (2, 8, 8)
    with pytest.raises(Complaint, match=r"^the pixels do not lead .*; explain without guided maps"):
        explain(net, x, layer="conv2")
    with pytest.raises(Complaint, match=r"^layer conv1 does not lead .* switch off no_grad"):
        explain(net, x, layer="conv1", guided=False)


class Rows(CourseCNN):
    """As many tutorials write it, which pictures that lie channels-last refuse."""

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        assert x.detach().view(dtype=torch.int32).shape == x.shape  # another kind of view
        return self.fc2(F.relu(self.fc1(x.view(-1, 160))))


@pytest.mark.parametrize("B", [1, 4])
def test_a_network_that_views_its_maps_as_rows(B):
    net, x = CourseCNN(), torch.rand(B, 1, 28, 28)
    rows = Rows()
    rows.load_state_dict(net.state_dict())
    found, expected = explain(rows, x), explain(net, x)
    torch.testing.assert_close(found.L_c, expected.L_c)
    torch.testing.assert_close(found.R, expected.R)


class Layouts(nn.Module):
    """Notes how the gradients of its maps lie in memory."""

    def __init__(self, rows):
        super().__init__()
        self.conv, self.rows, self.fc, self.seen = nn.Conv2d(2, 6, 3), rows, nn.Linear(96, 5), []

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        if x.requires_grad:
            x.grad_fn.register_prehook(self.look)
        return self.fc(self.rows(x))

    def look(self, gradients):
        self.seen.append(gradients[0].is_contiguous(memory_format=torch.channels_last))


ROWS = {
    "view": lambda x: x.view(len(x), -1),
    "flatten": lambda x: x.flatten(1),
    "torch.flatten": lambda x: torch.flatten(x, 1),
    "nn.Flatten": nn.Flatten(),
    "reshape": lambda x: x.reshape(-1, 96),
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_gradients_lie_as_the_maps_do(rows):
    """What goes forward in channels-last and back in another layout is copied at every step."""
    net, x = Layouts(rows).double(), torch.rand(3, 2, 10, 10, dtype=torch.float64)
    plain = explain(net, x, 0, "conv")
    assert net.seen == [True, True]  # plain and guided
    for i, picture in enumerate(x):
        torch.testing.assert_close(plain.R[i], explain(net, picture[None], 0, "conv").R[0])
    assert plain.R.any()
    targets = [0, [3, 1, 2], 4]
    for found, target in zip(explain_each(net, x, targets, "conv"), targets, strict=True):
        same(found, explain(net, x, target, "conv"))


def test_a_tensor_of_the_networks_own_that_is_viewed_keeps_no_hook():
    scale = torch.rand(1, 96, 1, 1, requires_grad=True)  # not among the parameters
    net = Layouts(lambda x: x.flatten(1) * scale.flatten(1))
    assert explain(net, torch.rand(3, 2, 10, 10), 0, "conv").R.any()
    assert not scale._backward_hooks


class ThroughAView(nn.Module):
    """What is written through a view stands in what it views."""

    def __init__(self, view):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 6, 3)
        self.view, self.fc = view, nn.Linear(6, 5)

    def forward(self, x):
        x = self.conv1(x)
        rows = self.view(x)
        rows.mul_(3)
        rows[:, ::2].sub_(0.5)
        x = self.conv2(F.relu(x))
        return self.fc(F.relu(x).mean((2, 3)))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.view(len(x), -1),
        lambda x: x.view(size=(len(x), -1)),
        lambda x: x.view_as(torch.empty(len(x), 4 * 9, 9)),
        lambda x: x.view(len(x), 2, 18, 9).view(-1, 18 * 9),
    ],
    ids=["view", "by keyword", "view_as", "twice"],
)
@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_what_is_written_through_a_view_stands_in_the_maps(view, layer):
    torch.manual_seed(2)
    net, x = ThroughAView(view).double(), torch.rand(3, 2, 11, 11, dtype=torch.float64)
    found = explain(net, x, 1, layer)
    torch.testing.assert_close(found.logits, net(x))
    for one, picture in zip(found, x, strict=True):
        same(one, explain(net, picture[None], 1, layer))
    assert found.R.any()


# ------------------------------------------------------------------------------- placement


def centres_by_nan_probing(net, S):
    """Where each cell of conv2 looks: the middle of the pixels whose NaN reaches it."""
    x = torch.zeros(S * S, 1, S, S, dtype=torch.float64)
    x.view(S * S, S * S).fill_diagonal_(float("nan"))
    A = net.conv2(F.relu(F.max_pool2d(net.conv1(x), 2)))[:, 0]
    u, v = A.shape[1:]
    seen = A.isnan().view(S, S, u, v)
    p = torch.arange(S, dtype=torch.float64)
    y = torch.stack([p[seen[:, :, i, 0].any(1)].mean() for i in range(u)])
    x = torch.stack([p[seen[:, :, 0, j].any(0)].mean() for j in range(v)])
    return y, x


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_each_cell_lands_on_the_centre_of_its_receptive_field(precision):
    net = CourseCNN().double()
    y, x = centres_by_nan_probing(net, 28)
    torch.testing.assert_close(y, torch.arange(8) * 2.0 + 6.5, check_dtype=False)
    cells = torch.eye(64, dtype=precision).view(64, 8, 8)
    pads, placed = place(cells, (28, 28), (2, 2), "auto")
    assert pads == (3, 3)
    p = torch.arange(28, dtype=precision)
    mass = placed.sum((1, 2))
    down = (placed.sum(2) @ p / mass).view(8, 8)[:, 0]
    across = (placed.sum(1) @ p / mass).view(8, 8)[0]
    assert (down - y).abs().max() < 1e-4
    assert (across - x).abs().max() < 1e-4
    peaks = placed.flatten(1).argmax(1).view(8, 8)
    assert ((peaks[:, 0] // 28 - y).abs() <= 0.5).all()


def test_pad_is_the_border_the_network_lost(network):
    found = explain(network.net, torch.rand(1, 1, 28, 28))
    assert (found.layer, found.stride, found.pad) == ("conv2", (2, 2), (3, 3))
    torch.testing.assert_close(place(found.cells, (28, 28), (2, 2), "auto")[1], found.L_c)
    # Three cells of zeros, then the plain resize, is the same where whole cells are lost.
    padded = F.interpolate(F.pad(found.cells, (3, 3, 3, 3))[:, None], (28, 28), mode="bilinear")
    torch.testing.assert_close(padded[:, 0], found.L_c)


@pytest.mark.parametrize("N", [0, 1, 2])
def test_a_pad_that_was_asked_for_is_padded_and_stretched_bit_for_bit(network, N):
    found = explain(network.net, torch.rand(2, 1, 28, 28), pad=N)
    padded = F.pad(found.cells, (N, N, N, N))[:, None]
    assert torch.equal(found.L_c, F.interpolate(padded, 28, mode="bilinear")[:, 0])
    assert found.pad == (N, N)
    assert found.L_c.any()


@pytest.mark.parametrize(
    ("S", "n", "s", "pad"),
    [(224, 13, 16, 0.5), (299, 8, 32, 0.671875), (299, 10, 32, -0.328125), (28, 8, 2, 3),
     (30, 7, 3, 1.5), (224, 7, 32, 0)],
)  # fmt: skip
def test_placement_is_linear_between_the_cells_centres(S, n, s, pad):
    """NumPy's interpolation as the oracle: it clamps beyond the last point, which is zero here
    for each whole cell of pad."""
    cells = torch.rand(1, n, n, dtype=torch.float64)
    pads, placed = place(cells, (S, S), (s, s), "auto")
    assert pads == (pad, pad)
    whole = max(0, int(pad))
    centres = (S - 1) / 2 + s * (np.arange(-whole, n + whole) - (n - 1) / 2)
    padded, p = np.pad(cells[0].numpy(), whole), np.arange(S)
    across = np.stack([np.interp(p, centres, line) for line in padded])
    expected = np.stack([np.interp(p, centres, line) for line in across.T]).T
    np.testing.assert_allclose(placed[0], expected, atol=1e-12)


def test_a_picture_that_is_not_square_has_a_pad_for_each_axis():
    net = nn.Sequential(
        nn.Conv2d(1, 2, (5, 3)), nn.MaxPool2d((2, 4)), nn.Flatten(), nn.LazyLinear(3)
    )
    x = torch.rand(1, 1, 24, 34)
    net(x)
    found = explain(net, x)
    assert (found.layer, found.stride) == ("0", (1, 1))
    assert found.pad == (2, 1)
    assert found.L_c.shape == (1, 24, 34)


class Strided(nn.Module):
    def __init__(self, trunk):
        super().__init__()
        self.trunk, self.last, self.fc = trunk, nn.Conv2d(2, 2, 1), nn.LazyLinear(3)

    def forward(self, x):
        return self.fc(self.last(self.trunk(x)).flatten(1))


class Trunk(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, 2, 3, 3))
        self.go = forward

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
    found = explain(net, x)
    assert (found.layer, found.stride) == ("last", stride)
    if stride is None:
        stretched = F.interpolate(found.cells[:, None], (24, 25), mode="bilinear")[:, 0]
        assert torch.equal(found.L_c, stretched)


# ----------------------------------------------------------------------------------- layer


class Block(nn.Module):
    def __init__(self, K, out, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(K, out, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)

    def forward(self, x):
        return F.relu(self.conv2(F.relu(self.conv1(x))))


class Squeeze(nn.Module):
    def __init__(self, K):
        super().__init__()
        self.fc = nn.Conv2d(K, K, 1)

    def forward(self, x):
        return x * self.fc(x.mean((2, 3), keepdim=True)).sigmoid()


class Listed(nn.Module):
    """Blocks in a ModuleList, which is never called itself."""

    def __init__(self):
        super().__init__()
        self.body = nn.Module()
        self.blocks = nn.ModuleList([Block(1, 2, 2), Block(2, 2)])
        self.fc = nn.Linear(2, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((2, 3)))


def head():
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]


@pytest.mark.parametrize(
    ("layer", "net"),
    [
        ("conv2", CourseCNN()),
        ("1", nn.Sequential(Block(1, 2, 2), nn.Sequential(Block(2, 4, 2), Block(4, 4)), *head())),
        ("0.2", nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 4, 3),
                                            nn.ReLU(), nn.MaxPool2d(2)), *head())),
        ("0", nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), *head())),
        ("0.0", nn.Sequential(nn.Sequential(Block(1, 4), nn.MaxPool2d(2), Squeeze(4)), *head())),
        ("0", nn.Sequential(nn.Sequential(Block(1, 4), Squeeze(4)), *head())),
        ("blocks.1", Listed()),
    ],
)  # fmt: skip
def test_the_default_layer_is_the_last_block_at_its_resolution(layer, net):
    assert find_layer(net, torch.rand(1, 1, 28, 28)) == layer


def test_networks_and_layers_without_maps_are_refused():
    x = torch.rand(1, 1, 4, 4)
    with pytest.raises(Complaint, match="no two-dimensional convolution"):
        explain(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), x)
    with pytest.raises(Complaint, match=r"layer fc1 gives \(1, 50\)"):
        explain(CourseCNN(), torch.rand(1, 1, 28, 28), layer="fc1")
    with pytest.raises(Complaint, match="layer unused gives NoneType; name a conv"):
        net = CourseCNN()
        net.unused = nn.Conv2d(1, 1, 1)
        explain(net, torch.rand(1, 1, 28, 28), layer="unused")


def test_before_a_mean_and_a_linear_layer_grad_cam_is_cam():
    """There dy_c / dA_k is the weight w_k of the class over the number of cells."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    x = torch.rand(2, 1, 9, 9)
    found = explain(net, x, [2, 0])
    w = net[3].weight[[2, 0]].detach()
    torch.testing.assert_close(found.alpha, w / 49)
    cam = torch.stack([sum(w[i, k] * net[0](x)[i, k] for k in range(4)) for i in range(2)])
    torch.testing.assert_close(found.cells, (cam / 49).clamp(min=0).detach())


# ----------------------------------------------------------------------------- conveniences


def same(a, b):
    """Equal as far as the order of sums allows: to 1e-6, or much better in float64."""
    for name, value in vars(a).items():
        other = getattr(b, name)
        if isinstance(value, torch.Tensor):
            close = 1e-6 if value.dtype == torch.float32 else 1e-12
            value, other = value.double(), other.double()
            scale = float(value.abs().max())
            torch.testing.assert_close(value, other, rtol=0, atol=close * scale)
        else:
            assert value == other


def test_a_batch_is_what_its_pictures_are_one_by_one(network, digits):
    x = network.tensor([digit.image for digit in digits])
    together = explain(network.net, x)
    for i, one in enumerate(together):
        same(one, explain(network.net, x[i : i + 1]))
    assert together.target.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_two_calls_agree_and_gradients_do_not_add_up():
    net, x = CourseCNN(), torch.rand(2, 1, 28, 28)
    first, other, again = (explain(net, x, c) for c in (1, 2, 1))
    assert torch.equal(first.R, again.R)
    assert torch.equal(first.L_c, again.L_c)
    assert not torch.equal(first.R, other.R)
    assert not x.requires_grad
    assert x.grad is None


def test_one_forward_pass_serves_every_map():
    net, calls = CourseCNN(), []
    net.fc2.register_forward_hook(lambda module, args, out: calls.append(len(out)))
    explain(net, torch.rand(16, 1, 28, 28), layer="conv2")
    assert calls == [16]
    explain(net, torch.rand(16, 1, 28, 28))
    assert calls == [16, 1, 16]  # finding the layer takes one picture


def test_softmax_at_the_end_changes_nothing(network, digits):
    x = network.tensor([digit.image for digit in digits])
    plain = explain(network.net, x, layer="conv2")
    for end in (nn.LogSoftmax(1), nn.Softmax(1)):
        ended = explain(nn.Sequential(network.net, end), x, layer="0.conv2")
        for name in ("logits", "alpha", "L_c", "R", "guided_cam"):
            assert torch.equal(getattr(ended, name), getattr(plain, name))


def test_what_was_not_asked_for_is_not_computed():
    found = explain(CourseCNN(), torch.rand(1, 1, 28, 28), guided=False)
    assert found.R is None
    assert found.guided_cam is None
    assert found.L_c.shape == (1, 28, 28)


@contextmanager
def kept_for_the_way_back():
    """The shapes of the tensors that autograd keeps."""
    kept = []

    def keep(tensor):
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "densenet121"])
def test_grad_cam_alone_is_the_same_and_builds_no_graph_for_the_trunk(name):
    net, x = models.get_model(name, weights=None), torch.rand(2, 3, 64, 64)
    with kept_for_the_way_back() as of_both:
        both = explain(net, x, 3)
    with kept_for_the_way_back() as of_one:
        alone = explain(net, x, 3, guided=False)
    same(replace(both, R=None, guided_cam=None), alone)
    assert sum(map(torch.Size.numel, of_one)) < 0.1 * sum(map(torch.Size.numel, of_both))
    assert torch.is_grad_enabled()
    with torch.no_grad():
        explain(net, x, guided=False)
        assert not torch.is_grad_enabled()


def test_frozen_networks_no_grad_and_inference_mode():
    net, x = CourseCNN(), torch.rand(2, 1, 28, 28)
    expected = explain(net, x, 3)
    net.requires_grad_(False)
    same(explain(net, x, 3), expected)
    with torch.no_grad():
        same(explain(net, x, 3), expected)
    with torch.inference_mode():
        same(explain(net, x.clone(), 3), expected)


class Careless(nn.Sequential):
    """Works in place on its very input."""

    def forward(self, x):
        x -= 0.5
        return super().forward(x)


def test_a_network_that_works_in_place_on_its_input():
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)]
    x = torch.rand(1, 1, 8, 8)
    before = x.clone()
    found, right = (
        explain(net, pixels, 0)
        for net, pixels in ((Careless(*layers), x), (nn.Sequential(*layers), x - 0.5))
    )
    torch.testing.assert_close(found.R, right.R)
    alone = explain(Careless(*layers), x, 0, guided=False)
    torch.testing.assert_close(alone.L_c, right.L_c)
    assert torch.equal(x, before)


class Turning(nn.Sequential):
    """Asks for its input's gradient, and turns it in place."""

    def forward(self, x):
        x.register_hook(lambda gradient: None)
        return super().forward(x.transpose_(2, 3))


@pytest.mark.parametrize("guided", [True, False])
def test_a_network_that_hooks_and_turns_its_very_input(guided):
    layers = [nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)]
    x = torch.rand(1, 1, 9, 12)
    found = explain(Turning(*layers), x, 0, layer="0", guided=guided)
    torch.testing.assert_close(found.cells, explain(nn.Sequential(*layers), x.mT, 0).cells)
    assert found.L_c.shape == (1, 9, 12)  # the caller's picture is as it was


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


def test_an_activation_that_fails_is_not_noted():
    class Trying(CourseCNN):
        def forward(self, x):
            with pytest.raises(NotImplementedError):
                F.silu(torch.ones(2, dtype=torch.int64))
            return super().forward(x)

    assert explain(Trying(), torch.rand(1, 1, 28, 28)).unguided == ()


def test_a_map_without_positive_evidence_is_zero_and_finite():
    net = CourseCNN()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    found = explain(net, torch.rand(1, 1, 28, 28))
    for name in ("L_c", "R", "guided_cam"):
        assert torch.equal(getattr(found, name), torch.zeros_like(getattr(found, name)))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (10, "class 10 was given; the network has classes 0 to 9"),
        (-1, "class -1 was given; the network has classes 0 to 9"),
        ([0, 12], "class 12 was given"),
        (1.5, "class 1.5 was given"),
        (True, "class True was given"),
        ([3], "targets of shape (1,) were given for 2 pictures"),
        ([[3], [4]], "targets of shape (2, 1) were given for 2 pictures"),
        ("cat", "target cat is no class; give one number, or one a picture"),
        ([None, 3], "target [None, 3] is no class"),
    ],
)
def test_targets_that_fit_no_class_or_picture(target, words):
    with pytest.raises(Complaint) as complaint:
        explain(CourseCNN(), torch.rand(2, 1, 28, 28), target)
    assert words in str(complaint.value)


# -------------------------------------------------------------------------- nothing is left


@pytest.mark.parametrize("guided", [True, False])
def test_nothing_of_a_call_outlives_it(guided):
    """A hook that holds what holds the graph would keep every call's graph for good."""
    net, seen = CourseCNN(), []
    net.conv2.register_forward_hook(lambda module, args, out: seen.append(weakref.ref(out)))
    found = explain(net, torch.rand(2, 1, 28, 28), layer="conv2", guided=guided)
    gc.collect()
    assert [reference() for reference in seen] == [None]
    assert found.L_c.grad_fn is None


def state_of(net):
    """Everything a caller could notice."""
    hooks = [
        [list(getattr(module, name)) for name in vars(module) if name.endswith("_hooks")]
        for module in net.modules()
    ]
    return (
        [id(module) for module in net.modules()], [module.training for module in net.modules()],
        hooks, [p.requires_grad for p in net.parameters()], [p.grad for p in net.parameters()],
        [getattr(module, "inplace", None) for module in net.modules()],
        {key: value.tolist() for key, value in net.state_dict().items()},
    )  # fmt: skip


class Breaks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("in the middle")


class Fails(nn.Module):
    armed = ""

    def forward(self, x):
        if self.armed == "forward":
            raise RuntimeError("in the middle")
        return Breaks.apply(x) if self.armed == "backward" else x


@pytest.mark.parametrize("fails", ["", "forward", "backward"])
def test_the_network_comes_back_exactly_as_it_was(fails):
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5),
        Fails(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip
    net[1].eval()  # the user froze one batch-norm and trains the rest
    net[0].weight.requires_grad_(False)
    net[7].register_forward_hook(lambda module, args, out: out)
    net(torch.rand(2, 1, 8, 8)).sum().backward()
    net[7].weight.grad = None
    net[4].armed = fails
    before = copy.deepcopy([p.grad for p in net.parameters()]), state_of(net)
    x = torch.rand(2, 1, 8, 8)
    if fails:
        with pytest.raises((RuntimeError, Complaint), match="in the middle"):
            explain(net, x, layer="0")
    else:
        same(explain(net, x), explain(net, x))  # dropout is asleep
    grads, state = [p.grad for p in net.parameters()], state_of(net)
    for old, new in zip(before[0], grads, strict=True):
        assert (old is None and new is None) or torch.equal(old, new)
    assert state[:4] == before[1][:4]
    assert state[5:] == before[1][5:]
    x = torch.rand(2, 1, 8, 8, requires_grad=True)
    if not fails:  # and its gradients are plain again
        assert torch.autograd.grad(net.eval()(x).sum(), x)[0].lt(0).any()


# ----------------------------------------------------------------------------------- methods


def weights_by_definition(method, A, g):
    """alpha of every method, straight from the papers, for one picture (K, u, v)."""
    alphas = []
    for A_k, g_k in zip(A, g, strict=True):
        if method == "gradcam":
            alphas.append(g_k.mean())
        elif method == "counterfactual":
            alphas.append((-g_k).mean())
        elif method == "xgradcam":
            alphas.append((torch.nan_to_num(A_k / A_k.sum()) * g_k).sum())
        else:
            a = g_k**2 / (2 * g_k**2 + A_k.sum() * g_k**3)
            alphas.append((torch.nan_to_num(a) * g_k.clamp(min=0)).sum())
    return torch.stack(alphas)


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "xgradcam", "counterfactual"])
def test_every_method_is_its_papers(method):
    net, c = CourseCNN().double().eval(), [3, 1, 4]
    x = torch.rand(3, 1, 28, 28, dtype=torch.float64)
    A = F.relu(net.conv2(F.relu(F.max_pool2d(net.conv1(x), 2)))).detach().requires_grad_()

    class Rest(nn.Module):
        def __init__(self):
            super().__init__()
            self.maps, self.fc1, self.fc2 = nn.Conv2d(10, 10, 1), net.fc1, net.fc2
            nn.init.dirac_(self.maps.weight)
            nn.init.zeros_(self.maps.bias)

        def forward(self, A):
            y = F.relu(F.max_pool2d(self.maps(A), 2)).flatten(1)
            return self.fc2(F.relu(self.fc1(y)))

    rest = Rest().double()
    (g,) = torch.autograd.grad(rest(A)[range(3), c].sum(), A)
    found = explain(rest, A, c, layer="maps", method=method)
    assert found.method == method
    for i in range(3):
        alpha = weights_by_definition(method, A[i].detach(), g[i])
        torch.testing.assert_close(found.alpha[i], alpha, rtol=1e-9, atol=1e-15)
        L = sum(a * A_k for a, A_k in zip(alpha, A[i].detach(), strict=True)).clamp(min=0)
        torch.testing.assert_close(found.cells[i], L, rtol=1e-9, atol=1e-15)
    assert found.cells.any()


def test_methods_stay_finite_where_maps_or_gradients_are_zero():
    net = CourseCNN()
    with torch.no_grad():
        net.conv2.weight.zero_()
        net.conv2.bias.zero_()
    for method in ("gradcam++", "xgradcam"):
        assert torch.equal(
            explain(net, torch.rand(1, 1, 28, 28), method=method).L_c.sum(), torch.tensor(0.0)
        )


def test_ten_classes_and_four_methods_cost_one_forward_pass(network, digits):
    x, calls = network.tensor([digit.image for digit in digits[:2]]), []
    handle = network.net.fc2.register_forward_hook(lambda *arguments: calls.append(1))
    methods = ["gradcam", "gradcam++", "xgradcam", "counterfactual"]
    each = explain_each(network.net, x, [*range(10), [0, 1]], "conv2", methods)
    handle.remove()
    assert len(calls) == 1
    assert [(int(e.target[0]), e.method) for e in each[:5]] == [
        (0, "gradcam"), (0, "gradcam++"), (0, "xgradcam"), (0, "counterfactual"), (1, "gradcam")
    ]  # fmt: skip
    same(each[14], explain(network.net, x, 3, method="xgradcam"))
    same(each[40], explain(network.net, x))


class Counted(torch.autograd.Function):
    """Nothing, whose backward passes are counted; NumPy can't take several targets at once."""

    walks, numpy = 0, False

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        Counted.walks += 1
        return torch.from_numpy(gradient.numpy().copy()) if Counted.numpy else gradient


class Attention(nn.Module):
    """(B, K, u, v) -> (B, K): its cells look at each other."""

    def __init__(self):
        super().__init__()
        self.heads = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, A):
        rows = A.flatten(2).transpose(1, 2)
        return self.heads(rows, rows, rows)[0].amax(1)


MEAN = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Headed(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.trunk, self.head, self.end = nn.Conv2d(2, 6, 3), head, nn.Linear(6, 5)

    def forward(self, x):
        return self.end(self.head(Counted.apply(F.relu(self.trunk(x)))))


@pytest.mark.parametrize(
    ("head", "numpy", "walks"),
    [
        (MEAN, False, 1),
        (MEAN, True, 4),  # one in vain
        (nn.Sequential(nn.GroupNorm(2, 6), *MEAN), False, 3),
        (Attention(), False, 1),
    ],
    ids=["mean", "numpy", "group norm", "attention"],
)
def test_several_targets_walk_the_head_once_where_they_can(monkeypatch, head, numpy, walks):
    monkeypatch.setattr(Counted, "numpy", numpy)
    net, x = Headed(head).double(), torch.rand(4, 2, 9, 9, dtype=torch.float64)
    targets = [2, None, [4, 3, 2, 1]]
    for guided in (False, True):
        monkeypatch.setattr(Counted, "walks", 0)
        each = explain_each(net, x, targets, "trunk", guided=guided)
        assert Counted.walks == walks * (1 + guided)  # for the plain gradients, for the guided ones
        for found, target in zip(each, targets, strict=True):
            same(found, explain(net, x, target, "trunk", guided=guided))
    assert each[0].cells.any()
    assert each[0].R.any()


class Halves(nn.Module):
    """Hands on one half of its maps, and leaves the other one for the network to find."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3)

    def forward(self, x):
        self.other, half = self.conv(x).chunk(2, 1)
        return half


class AroundIt(nn.Module):
    """The logits know the pixels through the layer, and past it."""

    def __init__(self, past):
        super().__init__()
        self.past, self.layer, self.conv = past, Halves(), nn.Conv2d(2, 3, 3)
        self.end = nn.Linear(3, 5)

    def forward(self, x):
        maps = F.relu(self.layer(x))
        if self.past == "half":
            maps = maps + F.relu(self.layer.other)
        elif self.past == "skip":
            maps = maps + F.relu(self.conv(x))
        return self.end(maps.mean((2, 3)))


@pytest.mark.parametrize("past", ["nothing", "half", "skip"])
def test_guided_maps_of_several_targets_know_the_ways_past_the_layer(past):
    torch.manual_seed(1)
    net, x = AroundIt(past).double(), torch.rand(2, 2, 9, 9, dtype=torch.float64)
    for target, found in zip(range(5), explain_each(net, x, range(5), "layer"), strict=True):
        same(found, explain(net, x, target, "layer"))
    assert found.R.abs().amax((1, 2, 3)).all()


NORMS = {
    "as usual": nn.BatchNorm2d(6),
    "no weight": nn.BatchNorm2d(6, affine=False),
    "of the batch": nn.BatchNorm2d(6, track_running_stats=False),
    "of rows": nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(6), nn.Unflatten(2, (7, 7))),
}


def plainly_explained(net, x, targets):
    """Of a network without ReLU: its logits, and as R their plain gradient, are PyTorch's own."""
    found = explain(net, x, targets, "0")
    leaf = x.clone().requires_grad_()
    logits = net.eval()(leaf)
    (R,) = torch.autograd.grad(logits[range(len(x)), targets].sum(), leaf)
    torch.testing.assert_close(found.logits, logits.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.R, R, rtol=1e-10, atol=1e-14)
    return found


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_batch_norm_is_pytorchs_own(norm):
    """Written as x * scale + shift; without a ReLU, R is the plain gradient."""
    net = nn.Sequential(nn.Conv2d(2, 6, 3), norm, nn.Softplus(), nn.Flatten(), nn.Linear(294, 5))
    net.double()
    for name, values in net.state_dict().items():
        if "batches" not in name:  # a variance is positive
            values.copy_(torch.rand_like(values) + 0.5)
    x = torch.randn(3, 2, 9, 9, dtype=torch.float64)
    found = plainly_explained(net, x, [4, 0, 2])
    half = explain(net.bfloat16(), x.bfloat16(), [4, 0, 2], "0")
    assert half.logits.dtype == half.R.dtype == torch.bfloat16
    torch.testing.assert_close(half.logits.double(), found.logits, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("B", [1, 8])
def test_alike_pixels_stay_alike(network, digits, B):
    """Of equal numbers a pooling takes the first; rounding must leave black paper as even as it is.

    Otherwise guided maps are another network's: by up to a sixth of their largest value, once.
    """
    x, twin = network.tensor([digit.image for digit in digits]), copy.deepcopy(network.net).double()
    exact = explain(twin, x.double(), layer="conv2")
    for i in range(0, 8, B):
        found = explain(network.net, x[i : i + B], layer="conv2")
        torch.testing.assert_close(found.R.double(), exact.R[i : i + B], rtol=0, atol=1e-6)
    assert exact.R.abs().amax((1, 2, 3)).min() > 0.2


class Called(nn.Module):
    """A convolution that is a function."""

    def __init__(self, **how):
        super().__init__()
        self.weight, self.how = nn.Parameter(torch.randn(6, 1, 3, 2)), how

    def forward(self, x):
        return F.conv2d(input=x, weight=self.weight, **self.how)


class SeesItself(nn.Module):
    """Its weights depend on the pictures."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)

    def forward(self, x):
        weight = self.conv.weight * x.square().mean()
        return F.conv2d(x, weight, self.conv.bias + x.mean(), (1, 1), (0, 0), (1, 1), 1)


class ByOne(nn.Module):
    """One picture at a time, without a batch."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)

    def forward(self, x):
        return torch.stack([self.conv(each) for each in x])


CONVOLUTIONS = {
    "grey": nn.Conv2d(1, 6, 3),
    "no bias": nn.Conv2d(1, 6, 3, bias=False),
    "strides and pads": nn.Conv2d(1, 6, (3, 4), (2, 1), (0, 2)),
    "strides of numpy": nn.Conv2d(1, 6, 3, (np.int64(2), np.int64(1))),
    "a stride for both": nn.Conv2d(1, 6, 3, padding=1),
    "the same in brackets": nn.Conv2d(1, 6, 3, padding=1),
    "dilated": nn.Conv2d(1, 6, 3, dilation=2),
    "same": nn.Conv2d(1, 6, 3, padding="same"),
    "circular": nn.Conv2d(1, 6, 3, padding=1, padding_mode="circular"),
    "three channels": nn.Conv2d(3, 6, 3),
    "groups": nn.Conv2d(4, 6, 3, groups=2),
    "called": Called(),
    "called by name": Called(stride=2, padding=(1, 0), dilation=(1, 1), groups=1),
    "one by one": ByOne(),
    "with weights that see the picture": SeesItself(),
}

CONVOLUTIONS["a stride for both"].stride = 2
CONVOLUTIONS["the same in brackets"].stride = (2,)


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("S", [9, 60])
@pytest.mark.parametrize("convolution", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution_is_pytorchs_own(convolution, S, B):
    """The way back to grey pixels is computed in another way."""
    torch.manual_seed(3)
    channels = getattr(convolution, "in_channels", 1)
    tail = [nn.Softplus(), nn.Conv2d(6, 4, 2), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    net = nn.Sequential(convolution, *tail, nn.Linear(16, 5)).double()
    x = torch.randn(B, channels, S, S, dtype=torch.float64)
    found = plainly_explained(net, x, [4, 0, 2][:B])
    assert found.stride == explain(net.float(), x.float(), layer="0").stride is not None
    assert explain(net.bfloat16(), x.bfloat16(), layer="0").R.dtype == torch.bfloat16


def test_of_a_batch_norm_nothing_is_kept_for_the_way_back():
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(294, 5))
    with kept_for_the_way_back() as kept:
        explain(net, torch.rand(3, 2, 9, 9), 0, "0")
    assert (3, 2, 9, 9) in kept  # what the convolution takes
    assert (3, 6, 7, 7) not in kept


# ---------------------------------------------------------------------- networks of others

models = SID_a4.import_torchvision().models

KNOWN = [
    ("alexnet", 224, "features.10", 16, 0.5),
    ("vgg16", 224, "features.28", 16, 0),
    ("resnet18", 224, "layer4", 32, 0),
    ("resnet50", 224, "layer4", 32, 0),
    ("mobilenet_v2", 224, "features", 32, 0),
    ("googlenet", 224, "inception5b", 32, 0),
    ("densenet121", 224, "features", 32, 0),
    ("squeezenet1_0", 224, "classifier.1", 16, 0.5),
    ("inception_v3", 299, "Mixed_7c", 32, 0.671875),
    ("shufflenet_v2_x1_0", 224, "conv5", 32, 0),
    ("convnext_tiny", 224, "features", None, None),
]


@pytest.mark.parametrize(("name", "S", "layer", "stride", "pad"), KNOWN)
def test_layer_stride_and_pad_of_torchvisions_networks(name, S, layer, stride, pad):
    inner = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    net = models.get_model(name, weights=None, **inner)
    found = explain(net, torch.rand(1, 3, S, S), guided=False)
    assert found.layer == layer
    assert found.stride == (stride and (stride, stride))
    assert found.pad == (None if pad is None else (pad, pad))


def test_layer_stride_and_pad_of_timms_xception():
    timm = pytest.importorskip("timm")
    found = explain(timm.create_model("legacy_xception"), torch.rand(1, 3, 299, 299), guided=False)
    assert (found.layer, found.stride, found.pad) == ("conv4", (32, 32), (-0.328125,) * 2)


class EveryReLUIsGuided(torch.overrides.TorchFunctionMode):
    """An oracle for whole networks: every ReLU is replaced by one that guides by itself."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = func.__name__.rstrip("_")
        if name == "hardtanh":  # as nn.ReLU6 calls it
            return Guided6.apply(args[0])
        if name == "relu":
            return GuidedReLU.apply(args[0])
        return func(*args, **(kwargs or {}))


class Guided6(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(0, 6)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x > 0) * (x < 6) * (gradient > 0)


@pytest.mark.parametrize(
    "name", ["inception_v3", "googlenet", "densenet121", "resnet18", "mobilenet_v2"]
)
def test_guided_backprop_through_functional_shared_and_in_place_relus(name):
    inner = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    net = models.get_model(name, weights=None, **inner).double().eval()
    S = 96 if name == "inception_v3" else 64
    x = torch.rand(1, 3, S, S, dtype=torch.float64)
    found = explain(net, x, 5)
    leaf = x.clone().requires_grad_()
    with EveryReLUIsGuided():
        y = net(leaf)
    (R,) = torch.autograd.grad(y[:, 5].sum(), leaf)
    torch.testing.assert_close(found.R, R, rtol=1e-9, atol=1e-12 * float(R.abs().max()))
    leaf = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(net(leaf)[:, 5].sum(), leaf)
    assert (R - plain).abs().max() > 0.1 * plain.abs().max()
    assert found.relus > 10
    assert found.unguided == ()


@pytest.mark.parametrize(
    ("name", "relus", "others"),
    [("efficientnet_b0", 0, {"silu", "sigmoid"}), ("convnext_tiny", 0, {"gelu"}),
     ("mobilenet_v3_small", 1, {"hardswish", "hardsigmoid"})],
)  # fmt: skip
def test_activations_that_guided_backprop_is_not_defined_for_are_named(name, relus, others):
    found = explain(models.get_model(name, weights=None), torch.rand(1, 3, 64, 64))
    assert (min(found.relus, 1), set(found.unguided)) == (relus, others)


def test_a_skip_before_the_relu_of_xception_is_not_clamped():
    timm = pytest.importorskip("timm")
    net = timm.create_model("legacy_xception").double().eval()
    x = torch.rand(1, 3, 96, 96, dtype=torch.float64)
    found, leaf = explain(net, x, 5), x.clone().requires_grad_()
    with EveryReLUIsGuided():
        y = net(leaf)
    (R,) = torch.autograd.grad(y[:, 5].sum(), leaf)
    torch.testing.assert_close(found.R, R, rtol=1e-9, atol=1e-12 * float(R.abs().max()))
    assert R.abs().max() > 0


def test_a_wrong_layer_names_the_nearest():
    with pytest.raises(Complaint, match="no layer conv9; the nearest names are conv2, conv1, fc2"):
        explain(CourseCNN(), torch.rand(1, 1, 28, 28), layer="conv9")


@pytest.mark.parametrize("pad", [-1, 1.5, "same"])
def test_a_pad_that_is_no_number_of_cells_is_refused(pad):
    with pytest.raises(Complaint, match=r"pad .* was given; give 'auto' or a number of cells"):
        explain(CourseCNN(), torch.rand(1, 1, 28, 28), pad=pad)


class Cut(nn.Module):
    def forward(self, x):
        return x.detach().flatten(1).requires_grad_()


def test_a_layer_that_does_not_lead_to_the_logits_is_named():
    with pytest.raises(Complaint, match="layer 0 does not lead to the logits"):
        explain(nn.Sequential(nn.Conv2d(1, 1, 1), Cut()), torch.rand(1, 1, 4, 4))


def test_what_is_no_logits_is_refused():
    class Two(CourseCNN):
        def forward(self, x):
            return super().forward(x), x

    with pytest.raises(Complaint, match="the network gives tuple; give one that returns logits"):
        explain(Two(), torch.rand(1, 1, 28, 28))


def test_a_network_that_makes_more_pictures_of_one_is_refused():
    class Halves(CourseCNN):
        def forward(self, x):
            return super().forward(torch.cat([x, x]))[: len(x)]

    with pytest.raises(Complaint, match=r"layer conv2 gives \(2, 10, 8, 8\); name a convolution"):
        explain(Halves(), torch.rand(1, 1, 28, 28), layer="conv2")


def test_scripted_networks_are_refused():
    with warnings.catch_warnings(action="ignore"):
        scripted = torch.jit.script(nn.Sequential(nn.ReLU(), nn.Flatten()))
    for net in (nn.Sequential(nn.Conv2d(1, 2, 3), scripted), scripted):
        with pytest.raises(Complaint, match=r"is scripted.* give the module it was made from"):
            explain(net, torch.rand(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("activation", "relus", "unguided"),
    [
        (nn.LogSigmoid(), 0, ("log_sigmoid",)),
        (nn.LSTM(4, 4), 0, ("lstm",)),
        (nn.GRU(4, 4), 0, ("gru",)),
        (nn.RNN(4, 4), 0, ("rnn_tanh",)),
        (nn.RNN(4, 4, nonlinearity="relu"), 0, ("rnn_relu",)),
        (nn.GLU(), 0, ("glu",)),
        (lambda x: x + torch.arange(4).clamp(min=0), 0, ()),  # of whole numbers: no activation
    ],
)
def test_activations_that_are_no_relus_are_named(activation, relus, unguided):
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.activation = nn.Conv2d(1, 4, 3), activation

        def forward(self, x):
            found = self.activation(self.conv(x).mean(3).transpose(1, 2))
            return (found[0] if isinstance(found, tuple) else found).sum(1)

    found = explain(Rows(), torch.rand(2, 1, 8, 8))
    assert (found.relus, found.unguided) == (relus, unguided)


def test_a_softmax_that_is_changed_afterwards_is_no_softmax():
    """It was once taken for the logits before it, where a class is first that it leaves out."""

    class Masked(CourseCNN):
        def forward(self, x):
            p = F.softmax(super().forward(x), 1)
            p[:, 3] = 0  # PyTorch knows no way back through this
            return p

    with pytest.raises(Complaint, match="modified by an inplace operation"):
        explain(Masked(), torch.rand(4, 1, 28, 28))
