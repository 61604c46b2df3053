"""What can't be explained is told in one line, before anything runs."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import DigitCNN, assert_same
from PIL import Image
from torch import nn

from seenby import InputError, explain
from seenby.core import speedups

X = torch.rand(2, 1, 28, 28)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (None, "x is no tensor but None; give pictures (B, C, H, W), prepared as in the network's "
               "training"),
        (X.numpy(), "x is no tensor but numpy.ndarray; give pictures (B, C, H, W)"),
        (Image.new("L", (28, 28)), "x is no tensor but PIL.Image; give pictures"),
        ([X[0], X[1]], "x is no tensor but list; give pictures"),
        ((X * 255).byte(), "x is of torch.uint8; give floating-point numbers, scaled and "
                           "normalised as in the network's training"),
        (X.to(torch.complex64), "x is of torch.complex64; give floating-point numbers"),
        (X[0], "x has the shape (1, 28, 28); give pictures (B, C, H, W), which x[None] makes of a "
               "single one"),
        (X[0, 0], "x has the shape (28, 28); give pictures (B, C, H, W), at least one"),
        (X[None], "x has the shape (1, 2, 1, 28, 28); give pictures (B, C, H, W), at least one"),
        (X[:0], "x has the shape (0, 1, 28, 28); give pictures (B, C, H, W), at least one"),
        (X[..., :0], "x has the shape (2, 1, 28, 0); give pictures (B, C, H, W), at least one"),
    ],
)  # fmt: skip
def test_what_is_no_picture(x, words):
    net, calls = DigitCNN(), []
    net.register_forward_pre_hook(lambda module, args: calls.append(1))
    with pytest.raises(InputError) as error:
        explain(net, x)
    assert str(error.value).startswith(words)
    assert calls == []


@pytest.mark.parametrize("layer", [None, "conv2"])
def test_pictures_of_another_type_than_the_weights(layer):
    words = (r"x is of torch.float16 on cpu, the weights of torch.float32 on cpu \(.*c10::Half.*\)"
             r"; give both alike, as by x.to\('cpu', torch.float32\)")
    with pytest.raises(InputError, match=words):
        explain(DigitCNN(), X.half(), layer=layer)
    with pytest.raises(InputError, match=r"x is of torch.float32 on cpu, .* of torch.bfloat16"):
        explain(DigitCNN().bfloat16(), X, layer=layer)
    with pytest.raises(InputError, match=r"x is of torch.float32 on cpu, .* on meta"):
        explain(DigitCNN().to("meta"), X, layer=layer)


class Casts(DigitCNN):
    def forward(self, x):
        return super().forward(x.to(self.fc1.weight.dtype))


class Fails(DigitCNN):
    def forward(self, x):
        raise RuntimeError(self.words)


def test_networks_that_see_to_the_type_themselves():
    net = Casts()
    explanation = explain(net, X.double(), 3)
    torch.testing.assert_close(explanation.R, explain(net, X, 3).R.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert explain(DigitCNN(), X.bfloat16(), 3).R.dtype == torch.bfloat16


def test_other_errors_of_a_network_are_its_own():
    net = Fails()
    for net.words, x in ("something else", X), ("out of memory", X.half()):
        with pytest.raises(RuntimeError, match=net.words) as error:
            explain(net, x)
        assert type(error.value) is RuntimeError


@pytest.mark.parametrize("method", ["scorecam", "GradCAM", None, 3, ["gradcam"]])
def test_methods_that_there_are_not(method):
    with pytest.raises(InputError, match=r"^method .* was given; give one of gradcam, "):
        explain(DigitCNN(), X, method=method)


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (None, "the network is no module but None; give a torch.nn.Module"),
        (DigitCNN, "the network is no module but type; give a torch.nn.Module"),
        (np.ones(2), "the network is no module but numpy.ndarray; give a torch.nn.Module"),
    ],
)
def test_what_is_no_network(net, words):
    with pytest.raises(InputError) as error:
        explain(net, X)
    assert str(error.value) == words


def scripted():
    with warnings.catch_warnings(action="ignore"):
        return torch.jit.script(nn.Sequential(nn.ReLU(), nn.Flatten()))


def quantised(net):
    with warnings.catch_warnings(action="ignore"):
        return torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)


def exported(net):
    return torch.export.export(net.eval(), (X[:1],)).module()


def lazy():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.LazyLinear(3))


def made_in_inference_mode():
    with torch.inference_mode():
        return DigitCNN()


def with_statistics_of_inference_mode():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(1352, 3))
    with torch.inference_mode():
        net[1].running_mean = torch.zeros(2)
    return net


REFUSED = {
    "scripted": (scripted, "the network is scripted, which hides what it does; give the module it "
                           "was made from"),
    "a part is scripted": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), scripted()), "is scripted"),
    "quantised": (lambda: quantised(DigitCNN()), "the network is quantised, and has no gradients; "
                  "give the one in floating point that it was made from"),
    "exported": (lambda: exported(DigitCNN()), "the network is exported, and calls none of its "
                 "layers; give the module it was made from"),
    "lazy": (lazy, "the network has lazy layers, which have no weights yet; call it once with x"),
    "made in inference mode": (made_in_inference_mode, "the network was made under "
                               "torch.inference_mode, whose tensors take part in no gradient"),
}  # fmt: skip


@pytest.mark.parametrize("is_named", [False, True])
@pytest.mark.parametrize("kind", REFUSED)
def test_networks_without_gradients_are_refused(kind, is_named):
    build, words = REFUSED[kind]
    net = build()
    modes = [module.training for module in net.modules()]
    layer = next(name for name, _ in net.named_modules() if name) if is_named else None
    with pytest.raises(InputError) as error:
        explain(net, X[:1], layer=layer)
    assert words in str(error.value)
    assert [module.training for module in net.modules()] == modes


def test_statistics_of_inference_mode_are_explained_but_by_pytorchs_own_batch_norm():
    net, usual = with_statistics_of_inference_mode().eval(), nn.BatchNorm2d(2).eval()
    found = explain(net, X[:1], 0, "0")
    net[1] = usual
    torch.testing.assert_close(found.R, explain(net, X[:1], 0, "0").R)
    assert found.R.any()
    with speedups.off(), pytest.raises(InputError, match=r"made under torch\.inference_mode"):
        explain(with_statistics_of_inference_mode(), X[:1], 0, "0")


def test_how_the_lines_say_that_it_is_fixed():
    net = made_in_inference_mode()
    net.load_state_dict({k: v.clone() for k, v in net.state_dict().items()}, assign=True)
    assert explain(net, X).R.any()
    net = lazy()
    net(X)
    assert explain(net, X).R.any()


def test_kinds_that_are_no_worse_than_others():
    """Traced by torch.fx, in training for quantisation, in part exported: their gradients are."""
    net = DigitCNN()
    assert_same(explain(torch.fx.symbolic_trace(net), X, 3), explain(net, X, 3))
    aware = torch.ao.nn.qat.Linear(50, 10, qconfig=torch.ao.quantization.default_qat_qconfig)
    net.fc2, before = aware, copy.deepcopy(aware.state_dict())
    assert explain(net, X, 3).R.any()
    for key, value in aware.state_dict().items():  # of its observers
        assert torch.equal(value, before[key])
    half = exported(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()))
    net = nn.Sequential(half, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    with pytest.raises(InputError, match="the network is exported"):
        explain(net, X)


class Volumes(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv3d(1, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(F.relu(self.conv(x)).mean((2, 3, 4)))


def test_a_network_of_volumes_is_not_asked_for_a_convolution():
    with pytest.raises(InputError, match=r"x has the shape .* give pictures \(B, C, H, W\)"):
        explain(Volumes(), torch.rand(1, 1, 8, 8, 8))
    words = r"the network sees volumes \(.*\); give one that sees pictures \(B, C, H, W\)$"
    with pytest.raises(InputError, match=words):
        explain(Volumes(), torch.rand(1, 1, 8, 8))


@pytest.mark.parametrize("layer", [None, "conv2"])
def test_within_torch_func(layer):
    net, words = DigitCNN(), "explain was called within torch.func, as by vmap or grad"
    with pytest.raises(InputError, match=words):
        torch.func.vmap(lambda x: explain(net, x[None], layer=layer).R)(X)
    with pytest.raises(InputError, match=words):
        torch.func.grad(lambda x: explain(net, x, layer=layer).R.sum())(X)
