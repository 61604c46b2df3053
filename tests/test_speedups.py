"""The same results in less time: as PyTorch's own, and switched off for comparison."""

import copy
import os
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import (
    DigitCNN,
    EveryReLUIsGuided,
    as_after_training,
    assert_same,
    kept_for_backward,
    models,
    untrained,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

from seenby import InputError, explain, explain_many
from seenby.core import speedups
from SID_a4 import CourseCNN


@pytest.fixture
def replaced(monkeypatch):
    """Which of PyTorch's functions had their replacements called, by name."""
    names = []

    def noted(name, replacement):
        def call(*args, **kwargs):
            names.append(name)
            return replacement(*args, **kwargs)

        return call

    noting = {function: noted(function.__name__, replacement)
              for function, replacement in speedups.REPLACEMENTS.items()}
    monkeypatch.setattr(speedups, "REPLACEMENTS", noting)
    return names


class SmallVGG(nn.Module):
    """Convolutions with batch norm, poolings, and a head of three layers."""

    def __init__(self):
        super().__init__()
        layers = []
        for K, out in ((3, 8), (8, 16), (16, 16)):
            layers += [nn.Conv2d(K, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True),
                       nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(256, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 5))

    def forward(self, x):
        return self.head(self.features(x).view(len(x), -1))


def grouped():
    """A network with group norm."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3),
        nn.GroupNorm(4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 13 * 13, 5),
    )  # fmt: skip


def replaced_without_a_difference(net, x, targets, tolerance, names):
    """Asserts that maps are the same without replacements; the functions that have them otherwise.

    Of random weights Grad-CAM may be empty, but then its counterfactual is not.
    """
    methods = ["gradcam", "counterfactual"]
    faster, functions = explain_many(net, x, targets, methods=methods), {*names}
    names.clear()
    with speedups.off():
        plain = explain_many(net, x, targets, methods=methods)
    assert names == []
    for found, expected in zip(faster, plain, strict=True):
        assert_close(found, expected, tolerance)
        assert expected.R.any()
    assert any(expected.guided_cam.any() for expected in plain)
    return functions


def assert_close(found, expected, tolerance):
    """Two explanations, equal to a share of each tensor's largest value."""
    for name, value in {f.name: getattr(expected, f.name) for f in fields(expected)}.items():
        if isinstance(value, torch.Tensor):
            difference = (getattr(found, name).double() - value.double()).abs().max()
            assert difference <= tolerance * value.double().abs().max(), name
        else:
            assert getattr(found, name) == value, name


NETWORKS = {  # how it is made, the pictures, the targets, and which functions are replaced
    "course": (CourseCNN, (3, 1, 28, 28), [None], {"conv2d", "flatten"}),
    "course, one picture": (CourseCNN, (1, 1, 28, 28), [None], {"conv2d", "flatten"}),
    "course, several targets": (CourseCNN, (3, 1, 28, 28), [None, 7, [0, 1, 2]],
                                {"conv2d", "flatten"}),
    "ResNet-18": (lambda: untrained("resnet18"), (2, 3, 64, 64), [None],
                  {"conv2d", "batch_norm", "flatten"}),
    "ResNet-18, several targets": (lambda: untrained("resnet18"), (2, 3, 64, 64), [None, 7, 8],
                                   {"conv2d", "batch_norm", "flatten"}),
    "VGG-like with batch norm": (SmallVGG, (2, 3, 32, 32), [None],
                                 {"conv2d", "batch_norm", "view"}),
    "DenseNet-121": (lambda: untrained("densenet121"), (2, 3, 64, 64), [None],
                     {"conv2d", "batch_norm", "flatten"}),
    "group norm": (grouped, (2, 3, 32, 32), [None, [4, 0]], {"conv2d", "flatten"}),
}


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-10), ("float32", 1e-4)])
@pytest.mark.parametrize("name", NETWORKS)
def test_without_them_the_maps_are_the_same(name, precision, tolerance, replaced):
    build, shape, targets, functions = NETWORKS[name]
    dtype = getattr(torch, precision)
    net, x = as_after_training(build()).to(dtype), torch.rand(shape, dtype=dtype)
    assert replaced_without_a_difference(net, x, targets, tolerance, replaced) == functions


def parameters_of(name):
    return models.get_model_weights(name).DEFAULT.meta["num_params"]


CLASSIFIERS = [name for name in models.list_models(module=models) if parameters_of(name) < 15e7]


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_without_them_torchvisions_classifiers_give_the_same_maps(name, replaced):
    S = {"inception_v3": 75, "maxvit_t": 224}.get(name, 64)  # these take no smaller ones
    options = {"image_size": S} if name.startswith("vit_") else {}
    net = as_after_training(untrained(name, **options)).double()
    x = torch.rand(2, 3, S, S, dtype=torch.float64)
    assert "conv2d" in replaced_without_a_difference(net, x, [None], 1e-10, replaced)


def test_off_is_off_and_on_again_afterwards(replaced):
    net, x = SmallVGG(), torch.rand(2, 3, 32, 32)
    with speedups.off():
        assert speedups.replacements() == {}
        explain(net, x)
        with speedups.off():
            explain(net, x)
        explain(net, x)  # the inner one switches nothing on
    assert replaced == []
    with pytest.raises(InputError, match="class 99 was given"), speedups.off():
        explain(net, x, 99)
    assert replaced == []
    explain(net, x)
    assert {"conv2d", "batch_norm", "view"} <= set(replaced)


def are_channels_last(x):
    """Whether a network is given pictures (B, 3, H, W) that lie channels-last, at each pass."""
    seen, net = [], SmallVGG().to(x.dtype)
    net.features[0].register_forward_pre_hook(lambda module, args: seen.append(
        args[0].is_contiguous(memory_format=torch.channels_last)))
    explain(net, x, layer="features.8")
    return seen


def test_off_leaves_the_pictures_as_they_lie():
    x = torch.rand(2, 3, 32, 32)
    assert are_channels_last(x) == [True]
    with speedups.off():
        assert are_channels_last(x) == [False]
    assert are_channels_last(x[:1]) == [False]  # of one picture it is no gain


def test_where_a_convolution_is_a_matrix_product_pictures_stay_as_they_lie(monkeypatch):
    x = torch.rand(2, 3, 32, 32)
    assert are_channels_last(x.double()) == [False]
    assert are_channels_last(x.bfloat16()) == [True]
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert are_channels_last(x) == [False]
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert are_channels_last(x) == [False]


TIES = """
import torch
from torch import nn

from seenby import explain

torch.set_num_threads(1)
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(),
                    nn.Flatten(), nn.Linear(8 * 100, 5)).double()
x = torch.full((4, 3, 27, 27), -0.4, dtype=torch.float64)
x[:, :, 13:16, 2:23] = torch.rand(4, 3, 3, 21, dtype=torch.float64)
R = explain(net, x, 1, "0").R
single = torch.cat([explain(net, picture[None], 1, "0").R for picture in x])
print(float((R - single).abs().max() / single.abs().max()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["AVX2", "AVX512", "SSE4_2"])
def test_equal_pixels_give_equal_numbers_on_other_processors(instructions):
    """Channels-last in float64, 0.09 of the maximum away with those of AVX2."""
    environment = os.environ | {"MKL_ENABLE_INSTRUCTIONS": instructions}
    run = subprocess.run([sys.executable, "-c", TIES], env=environment, capture_output=True,
                         text=True, check=True)  # fmt: skip
    assert float(run.stdout) <= 1e-12


def test_off_leaves_the_backward_pass_of_grey_pixels_to_pytorch(monkeypatch):
    calls, backward = [], speedups.OneChannelConv2d.backward

    def noted(ctx, gradient):
        calls.append(1)
        return backward(ctx, gradient)

    monkeypatch.setattr(speedups.OneChannelConv2d, "backward", staticmethod(noted))
    net, x = CourseCNN(), torch.rand(2, 1, 28, 28)
    with speedups.off():
        explain(net, x)
    assert calls == []
    explain(net, x)
    assert calls == [1]


# ----------------------------------------------------------------------------- convolutions


def plainly_explained(net, x, targets):
    """Of a network without ReLU: its logits, and as R their plain gradient, are PyTorch's own."""
    explanation = explain(net, x, targets, "0")
    leaf = x.clone().requires_grad_()
    logits = net.eval()(leaf)
    (R,) = torch.autograd.grad(logits[range(len(x)), targets].sum(), leaf)
    torch.testing.assert_close(explanation.logits, logits.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(explanation.R, R, rtol=1e-10, atol=1e-14)
    return explanation


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
    explanation = plainly_explained(net, x, [4, 0, 2][:B])
    assert explanation.stride == explain(net.float(), x.float(), layer="0").stride is not None
    assert explain(net.bfloat16(), x.bfloat16(), layer="0").R.dtype == torch.bfloat16


@pytest.mark.parametrize("B", [1, 8])
def test_alike_pixels_stay_alike(network, digits, B):
    """Of equal numbers a pooling takes the first; rounding must leave black paper as even as it is.

    Otherwise guided maps are another network's: by up to a sixth of their largest value, once.
    """
    x = network.tensor([digit.image for digit in digits])
    exact = explain(copy.deepcopy(network.module).double(), x.double(), layer="conv2")
    for i in range(0, 8, B):
        explanation = explain(network.module, x[i : i + B], layer="conv2")
        torch.testing.assert_close(explanation.R.double(), exact.R[i : i + B], rtol=0, atol=1e-6)
    assert exact.R.abs().amax((1, 2, 3)).min() > 0.2


ROWS_IN_SCRIPT = torch.jit.CompilationUnit("""
def rows(x):
    return x.view(x.size(0), -1)
""").rows


class RowsBehind(torch.autograd.Function):
    """Views its gradient's maps as rows, which no recorder sees."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.view(len(gradient), -1).view(gradient.shape)


@pytest.mark.parametrize(
    "rows", [ROWS_IN_SCRIPT, lambda x: RowsBehind.apply(x).flatten(1), RowsBehind.apply]
)
def test_views_that_are_not_seen_do_without(rows):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 3)

        def forward(self, x):
            return self.fc(rows(self.conv(x).relu()).flatten(1))

    net, x = Net(), torch.rand(2, 3, 8, 8)
    found = explain(net, x, 1, "conv")
    with speedups.off():
        expected = explain(net, x, 1, "conv")
    torch.testing.assert_close(found.R, expected.R)
    torch.testing.assert_close(found.L_c, expected.L_c)


def test_other_errors_are_not_tried_again():
    calls = []

    class FailsOnce(nn.Sequential):
        def forward(self, x):
            calls.append(len(x))
            if len(calls) == 1:
                raise RuntimeError("the first call fails")
            return super().forward(x)

    net = FailsOnce(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    with pytest.raises(RuntimeError, match="the first call fails"):
        explain(net, torch.rand(2, 3, 8, 8), 1, "0")
    assert calls == [2]


@pytest.mark.parametrize(("size", "kernel", "is_product"), [(28, 5, True), (512, 5, True),
                                                            (512, 7, False), (64, 63, False)])
def test_the_gradient_of_a_large_kernel_is_left_to_onednn(size, kernel, is_product):
    x = torch.rand(1, 1, size, size, requires_grad=True)
    out = speedups.conv2d(x, torch.rand(1, 1, kernel, kernel), None, (1, 1), (0, 0), (1, 1), 1)
    assert ("OneChannel" in out.grad_fn.name()) == is_product


def test_grey_pixels_of_one_map_through_a_checkpoint():
    """It takes what is saved by its place, and the maps are of the pixels' own shape."""

    class Checkpointed(nn.Module):
        def __init__(self, is_on):
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU())
            self.conv, self.head, self.is_on = nn.Conv2d(1, 4, 3), nn.Linear(4, 3), is_on

        def forward(self, x):
            h = checkpoint(self.first, x, use_reentrant=False) if self.is_on else self.first(x)
            return self.head(self.conv(h).relu().mean((2, 3)))

    on, off = Checkpointed(True).double(), Checkpointed(False).double()
    on.load_state_dict(off.state_dict())
    x = torch.randn(2, 1, 9, 9).double()
    for layer in ("conv", "first.0"):
        assert_same(explain(on, x, 1, layer), explain(off, x, 1, layer))


def test_grey_pixels_within_torch_func():
    class Ensemble(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.body = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 2, 3)
            self.scales = nn.Parameter(torch.rand(3))

        def forward(self, x):
            x = self.stem(x)
            one_each = torch.func.vmap(lambda s: self.body(x * s).relu().mean((2, 3)))
            return one_each(self.scales).mean(0)

    net, x = Ensemble().double(), torch.rand(2, 1, 9, 9).double()
    found = explain(net, x, 1, "stem")
    with speedups.off():
        assert_same(explain(net, x, 1, "stem"), found)
    with pytest.raises(InputError, match=r"runs within torch\.func, as by vmap; name one outs"):
        explain(net, x, 1, "body")


def test_grey_pixels_are_explained_under_autocast(network, digits):
    x = network.tensor([digits[0].image])
    with torch.autocast("cpu", torch.bfloat16):
        found = explain(network.module, x, layer="conv2")
        with speedups.off():
            plain = explain(network.module, x, layer="conv2")
    assert found.logits.dtype == torch.bfloat16
    assert_close(found, plain, 0)


# ------------------------------------------------------------------------------- batch norms


NORMS = {
    "as usual": nn.BatchNorm2d(6),
    "no weight": nn.BatchNorm2d(6, affine=False),
    "of the batch": nn.BatchNorm2d(6, track_running_stats=False),
    "of rows": nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(6), nn.Unflatten(2, (7, 7))),
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_batch_norm_is_pytorchs_own(norm):
    """Written as x * scale + shift; without a ReLU, R is the plain gradient."""
    net = nn.Sequential(nn.Conv2d(2, 6, 3), norm, nn.Softplus(), nn.Flatten(), nn.Linear(294, 5))
    net.double()
    for name, values in net.state_dict().items():
        if "batches" not in name:  # a variance is positive
            values.copy_(torch.rand_like(values) + 0.5)
    x = torch.randn(3, 2, 9, 9, dtype=torch.float64)
    explanation = plainly_explained(net, x, [4, 0, 2])
    half = explain(net.bfloat16(), x.bfloat16(), [4, 0, 2], "0")
    assert half.logits.dtype == half.R.dtype == torch.bfloat16
    torch.testing.assert_close(half.logits.double(), explanation.logits, rtol=0.05, atol=0.05)


def test_of_a_batch_norm_nothing_is_kept_for_backward():
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(294, 5))
    with kept_for_backward() as kept:
        explain(net, torch.rand(3, 2, 9, 9), 0, "0")
    assert (3, 2, 9, 9) in kept  # what the convolution takes
    assert (3, 6, 7, 7) not in kept


@pytest.mark.parametrize("name", ["VGG-like with batch norm", "ResNet-18"])
def test_in_low_precision_nothing_more_is_lost(name):
    """Where scale and shift are rounded to 8 bits, 0.1 of R's norm."""
    build, shape, *_ = NETWORKS[name]
    net, x = as_after_training(build()).eval(), torch.rand(shape)

    def by_hand(net, x):
        leaf = x.clone().requires_grad_()
        with EveryReLUIsGuided():
            logits = net(leaf)
        return torch.autograd.grad(logits[:, 1].sum(), leaf)[0]

    def assert_near(R, expected):
        assert (R - expected).norm() <= 1e-4 * expected.norm() > 0

    with torch.autocast("cpu", torch.bfloat16):
        assert_near(explain(net, x, 1).R, by_hand(net, x))
    net, x = net.bfloat16(), x.bfloat16()
    assert_near(explain(net, x, 1).R.float(), by_hand(net, x).float())


# -------------------------------------------------------------------------------------- views


class Rows(DigitCNN):
    """As many tutorials write it, which pictures that lie channels-last refuse."""

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        assert x.detach().view(dtype=torch.int32).shape == x.shape  # another kind of view
        return self.fc2(F.relu(self.fc1(x.view(-1, 160))))


@pytest.mark.parametrize("B", [1, 4])
def test_a_network_that_views_its_maps_as_rows(B):
    net, x = DigitCNN(), torch.rand(B, 1, 28, 28)
    rows = Rows()
    rows.load_state_dict(net.state_dict())
    explanation, expected = explain(rows, x), explain(net, x)
    torch.testing.assert_close(explanation.heatmap, expected.heatmap)
    torch.testing.assert_close(explanation.R, expected.R)


class Layouts(nn.Module):
    """Notes how the gradients of its maps lie in memory."""

    def __init__(self, rows, note=lambda layout: None):
        super().__init__()
        self.conv, self.rows, self.fc, self.note = nn.Conv2d(2, 6, 3), rows, nn.Linear(96, 5), note

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        if x.requires_grad:
            x.grad_fn.register_prehook(self.look)
        return self.fc(self.rows(x))

    def look(self, gradients):
        self.note(gradients[0].is_contiguous(memory_format=torch.channels_last))


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
    seen = []
    net, x = Layouts(rows, seen.append), torch.rand(3, 2, 10, 10)
    plain = explain(net, x, 0, "conv")
    assert seen == [True, True]  # plain and guided
    for i, picture in enumerate(x):
        torch.testing.assert_close(plain.R[i], explain(net, picture[None], 0, "conv").R[0])
    assert plain.R.any()
    targets = [0, [3, 1, 2], 4]
    for explanation, target in zip(explain_many(net, x, targets, "conv"), targets, strict=True):
        assert_same(explanation, explain(net, x, target, "conv"))


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
    explanation = explain(net, x, 1, layer)
    torch.testing.assert_close(explanation.logits, net(x))
    for one, picture in zip(explanation, x, strict=True):
        assert_same(one, explain(net, picture[None], 1, layer))
    assert explanation.R.any()


class WritesInto(nn.Module):
    """A network that changes its maps through another shape of theirs, as an ablation does."""

    def __init__(self, how):
        super().__init__()
        self.how, self.a, self.b = how, nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        A = self.a(x)
        return self.fc(F.relu(self.b(F.relu(self.how(A)))).mean((2, 3)))


def first_cells(A):
    """As for whoever knows how the numbers lie in memory."""
    return A.as_strided((len(A), 8, 4, 4), (8 * 16 * 16, 16 * 16, 16, 1))


def zeroed(view):
    def change(A):
        view(A).zero_()
        return A

    return change


PER_PICTURE = [
    zeroed(lambda A: A.flatten(1)[:, :1000]), zeroed(lambda A: A.reshape(len(A), -1)[:, :1000]),
    zeroed(lambda A: A[:, :4].view(len(A), -1)), zeroed(lambda A: A.contiguous()[:, :4]),
    zeroed(lambda A: A.view(len(A), 8, -1)[:, :3]), zeroed(lambda A: A[:, 2:].flatten(2)),
    first_cells,
]  # fmt: skip
def written_later(view):
    """Written to is what the view is of."""

    def change(A):
        seen = view(A)
        A.mul_(3)
        return seen.view(A.shape)

    return change


def stale(A):
    seen = A.permute(0, 2, 3, 1)
    A.view(len(A), -1).relu_()
    return seen.permute(0, 3, 1, 2)


def relaid(A):
    A.to(memory_format=torch.contiguous_format).mul_(2)
    return A


PER_PICTURE += [
    written_later(lambda A: A.contiguous()), written_later(lambda A: A.reshape(len(A), -1)),
    written_later(lambda A: A.ravel()), stale, relaid,
]  # fmt: skip
FOR_ALL = [  # other pictures are changed otherwise; of a batch the second one is a copy
    zeroed(lambda A: A.ravel()[:1000]),
    zeroed(lambda A: A.permute(1, 0, 2, 3)[:4].reshape(4, -1)),
]


@pytest.mark.parametrize("how", PER_PICTURE + FOR_ALL)
def test_what_is_written_through_a_view_is_written_for_a_batch_too(how):
    net, x = WritesInto(how).eval(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        logits = net(x)
    found = explain(net, x, 1, "b")
    torch.testing.assert_close(found.logits, logits)
    for i in (0, 1) if how in PER_PICTURE else ():
        alone = explain(net, x[i : i + 1], 1, "b")
        for name in ("logits", "L_c", "R"):
            each, expected = getattr(found, name)[i : i + 1], getattr(alone, name)
            torch.testing.assert_close(each, expected, atol=1e-6 * float(expected.abs().max()),
                                       rtol=1e-4)


class Tokens(nn.Module):
    """A batch-norm whose maps become tokens, so that its gradient comes with its channels last."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.mix, self.fc = nn.Linear(8, 6), nn.Linear(6, 5)

    def forward(self, x):
        rows = self.bn(self.conv(x)).flatten(2).transpose(1, 2)
        return self.fc(self.mix(rows).tanh().mean(1))


def test_of_one_picture_batch_norm_has_its_gradient_whatever_its_order():
    """PyTorch's own is wrong there: finite differences tell."""
    net, x = as_after_training(Tokens().double().eval()), torch.randn(1, 3, 9, 9).double()
    found, v = explain(net, x, 1, "conv"), torch.randn_like(x)
    with torch.no_grad():
        slope = (net(x + 1e-6 * v) - net(x - 1e-6 * v))[0, 1] / 2e-6
    torch.testing.assert_close((found.R * v).sum(), slope, rtol=1e-6, atol=1e-9)
    both = explain(net, torch.cat([x, -x]), 1, "conv")
    for name in ("logits", "L_c", "R"):
        torch.testing.assert_close(getattr(both, name)[:1], getattr(found, name), rtol=1e-9,
                                   atol=1e-12)  # fmt: skip
