"""explain: maps with known answers, three oracles, and a caller who notices nothing."""

import copy
import gc
import warnings
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import DigitCNN, assert_same, grad_cam_oracle, kept_for_backward, untrained
from torch import nn

from seenby import InputError, explain, explain_many
from seenby.core.placement import interpolation_matrices
from seenby.core.search import find_layer
from SID_a4 import CourseCNN


def test_grad_cam_by_hand():
    """A_0 = x and A_1 = 2x - 3, y_0 = mean(A_0) - mean(A_1): L = ReLU((3 - x) / 6)."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight[:] = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
        net[0].bias[:] = torch.tensor([0.0, -3.0])
        net[3].weight[:] = torch.tensor([[1.0, -1.0], [2.0, 0.0]])
        net[3].bias[:] = 0
    x = torch.tensor([[[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]]])
    explanation = explain(net, x, target=0)
    sixth = 1 / 6
    torch.testing.assert_close(explanation.alpha, torch.tensor([[sixth, -sixth]]))
    expected = torch.tensor([[[3 * sixth, 2 * sixth, sixth], [0.0, 0.0, 0.0]]])
    torch.testing.assert_close(explanation.L_c, expected)
    torch.testing.assert_close(explanation.heatmap, expected)  # of stride 1: it lies as it is
    torch.testing.assert_close(explanation.logits, torch.tensor([[0.5, 5.0]]))
    assert (explanation.layer, explanation.stride, explanation.pad) == ("0", (1, 1), (0, 0))
    predicted = explain(net, x)  # 1, of which y_1 = 2 mean(A_0)
    torch.testing.assert_close(predicted.L_c, x[:, 0] / 3)


@pytest.mark.parametrize("network", [CourseCNN, DigitCNN])  # ReLUs as modules and as functions
def test_course_network_against_float64_autograd(network):
    net = network().double().eval()
    x, c = torch.rand(5, 1, 28, 28, dtype=torch.float64), [0, 3, 9, 3, 7]

    def head(A):
        y = F.relu(F.max_pool2d(A, 2)).flatten(1)
        return net.fc2(F.relu(net.fc1(y)))

    A = net.conv2(F.relu(F.max_pool2d(net.conv1(x), 2)))
    explanation = explain(net, x, c)
    torch.testing.assert_close(explanation.L_c, grad_cam_oracle(head, A, c), rtol=1e-12, atol=1e-15)
    assert explanation.L_c.shape == (5, 8, 8)
    assert explanation.L_c.amax() > 0
    torch.testing.assert_close(explanation.logits, net(x))
    in_float32 = explain(net.float(), x.float(), c)
    heatmap = in_float32.heatmap.double()
    torch.testing.assert_close(heatmap, explanation.heatmap, rtol=1e-5, atol=1e-8)


def test_against_captum():
    from captum.attr import GuidedBackprop, GuidedGradCam, LayerGradCam

    net, c = CourseCNN().double().eval(), torch.tensor([2, 5, 2])
    x = torch.randn(3, 1, 28, 28, dtype=torch.float64)
    explanation = explain(net, x, c, pad=0)
    with warnings.catch_warnings(action="ignore"):  # it warns of its own hooks
        cam = LayerGradCam(net, net.conv2).attribute(x, c, relu_attributions=True)[:, 0]
        R = GuidedBackprop(net).attribute(x, c)
        both = GuidedGradCam(net, net.conv2).attribute(x, c, interpolate_mode="bilinear")
    torch.testing.assert_close(explanation.L_c, cam.detach(), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(explanation.R, R.detach(), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(explanation.guided_cam, both.detach(), rtol=1e-6, atol=1e-12)
    assert explanation.guided_cam.abs().max() > 0


def test_against_pytorch_grad_cam():
    from pytorch_grad_cam import GradCAM, GuidedBackpropReLUModel
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    net, x = CourseCNN().eval(), torch.randn(3, 1, 28, 28)
    explanation = explain(net, x, [2, 5, 2], pad=0)
    cam = GradCAM(twin := copy.deepcopy(net), [twin.conv2])
    theirs = cam(x, [ClassifierOutputTarget(c) for c in (2, 5, 2)])
    low, high = explanation.heatmap.flatten(1).aminmax(dim=1)  # it shows the smallest value as zero
    ours = (explanation.heatmap - low[:, None, None]) / (high - low)[:, None, None]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for i, c in enumerate((2, 5, 2)):  # it can't explain a batch
        R = GuidedBackpropReLUModel(copy.deepcopy(net), "cpu")(x[i : i + 1], c)
        np.testing.assert_allclose(explanation.R[i, 0], R[..., 0], rtol=1e-5, atol=1e-7)


def test_a_batch_is_what_its_pictures_are_one_by_one(network, digits):
    x = network.tensor([digit.image for digit in digits])
    together = explain(network.module, x)
    for i, one in enumerate(together):
        assert_same(one, explain(network.module, x[i : i + 1]))
    assert together.target.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_two_calls_agree_and_gradients_do_not_add_up():
    net, x = DigitCNN(), torch.rand(2, 1, 28, 28)
    first, other, again = (explain(net, x, c) for c in (1, 2, 1))
    assert torch.equal(first.R, again.R)
    assert torch.equal(first.heatmap, again.heatmap)
    assert not torch.equal(first.R, other.R)
    assert not x.requires_grad
    assert x.grad is None


def test_one_forward_pass_serves_every_map():
    net, calls = DigitCNN(), []
    net.fc2.register_forward_hook(lambda module, args, out: calls.append(len(out)))
    explain(net, torch.rand(16, 1, 28, 28), layer="conv2")
    assert calls == [16]
    explain(net, torch.rand(16, 1, 28, 28))
    assert calls == [16, 1, 16]  # finding the layer takes one picture


def test_ten_classes_and_four_methods_cost_one_forward_pass(network, digits):
    x, calls = network.tensor([digit.image for digit in digits[:2]]), []
    handle = network.module.fc2.register_forward_hook(lambda *arguments: calls.append(1))
    methods = ["gradcam", "gradcam++", "xgradcam", "counterfactual"]
    explanations = explain_many(network.module, x, [*range(10), [0, 1]], "conv2", methods)
    handle.remove()
    assert len(calls) == 1
    assert [(int(e.target[0]), e.method) for e in explanations[:5]] == [
        (0, "gradcam"), (0, "gradcam++"), (0, "xgradcam"), (0, "counterfactual"), (1, "gradcam")
    ]  # fmt: skip
    assert_same(explanations[14], explain(network.module, x, 3, method="xgradcam"))
    assert_same(explanations[40], explain(network.module, x))


def test_what_was_not_asked_for_is_not_computed():
    explanation = explain(DigitCNN(), torch.rand(1, 1, 28, 28), guided=False)
    assert explanation.R is None
    assert explanation.guided_cam is None
    assert explanation.heatmap.shape == (1, 28, 28)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "densenet121"])
def test_grad_cam_alone_is_the_same_and_builds_no_graph_for_the_trunk(name):
    net, x = untrained(name), torch.rand(2, 3, 64, 64)
    layer = find_layer(net, x[:1]).name  # the search itself needs a graph, of one picture
    with kept_for_backward() as of_both:
        both = explain(net, x, 3, layer)
    with kept_for_backward() as of_one:
        alone = explain(net, x, 3, layer, guided=False)
    nothing_guided = {"R": None, "guided_cam": None, "relu_calls": 0, "other_activations": ()}
    assert_same(replace(both, **nothing_guided), alone)
    assert sum(map(torch.Size.numel, of_one)) < 0.1 * sum(map(torch.Size.numel, of_both))
    assert torch.is_grad_enabled()
    with torch.no_grad():
        explain(net, x, guided=False)
        assert not torch.is_grad_enabled()


class Careless(nn.Sequential):
    """Works in place on its very input."""

    def forward(self, x):
        x -= 0.5
        return super().forward(x)


def test_a_network_that_works_in_place_on_its_input():
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)]
    x = torch.rand(1, 1, 8, 8)
    before = x.clone()
    right = explain(nn.Sequential(*layers), x - 0.5, 0)
    torch.testing.assert_close(explain(Careless(*layers), x, 0).R, right.R)
    alone = explain(Careless(*layers), x, 0, guided=False)
    torch.testing.assert_close(alone.heatmap, right.heatmap)
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
    explanation = explain(Turning(*layers), x, 0, layer="0", guided=guided)
    torch.testing.assert_close(explanation.L_c, explain(nn.Sequential(*layers), x.mT, 0).L_c)
    assert explanation.heatmap.shape == (1, 9, 12)  # the caller's picture is as it was


def test_a_map_without_positive_evidence_is_zero_and_finite():
    net = DigitCNN()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    explanation = explain(net, torch.rand(1, 1, 28, 28))
    for name in ("heatmap", "R", "guided_cam"):
        values = getattr(explanation, name)
        assert torch.equal(values, torch.zeros_like(values))


@pytest.mark.parametrize("guided", [True, False])
def test_nothing_of_a_call_outlives_it(guided):
    """A hook that holds what holds the graph would keep every call's graph for good."""
    net, seen = DigitCNN(), []
    net.conv2.register_forward_hook(lambda module, args, out: seen.append(weakref.ref(out)))
    explanation = explain(net, torch.rand(2, 1, 28, 28), layer="conv2", guided=guided)
    gc.collect()
    assert [reference() for reference in seen] == [None]
    assert explanation.heatmap.grad_fn is None


# --------------------------------------------------------------------------- what is refused


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
        ("cat", "target 'cat' was given; the task is classes: give classes by their numbers, or "),
        ([None, 3], "target [None, 3] is no class"),
    ],
)
def test_targets_that_fit_no_class_or_picture(target, words):
    with pytest.raises(InputError) as error:
        explain(DigitCNN(), torch.rand(2, 1, 28, 28), target)
    assert words in str(error.value)


def test_networks_and_layers_without_maps_are_refused():
    x = torch.rand(1, 1, 4, 4)
    with pytest.raises(InputError, match="no layer of the network gives maps"):
        explain(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), x)
    with pytest.raises(InputError, match=r"layer fc1 gives \(1, 50\) of .* such as conv2, conv1$"):
        explain(DigitCNN(), torch.rand(1, 1, 28, 28), layer="fc1")
    with pytest.raises(InputError, match="layer unused is not called; name one that gives maps"):
        net = DigitCNN()
        net.unused = nn.Conv2d(1, 1, 1)
        explain(net, torch.rand(1, 1, 28, 28), layer="unused")


def test_what_is_no_logits_is_refused():
    class Two(DigitCNN):
        def forward(self, x):
            return super().forward(x), super().forward(x)

    words = r"gives tuple of \(1, 10\) of float32, \(1, 10\) of float32, .*; wrap it in FILE.py"
    with pytest.raises(InputError, match=words):
        explain(Two(), torch.rand(1, 1, 28, 28))


def test_a_network_that_makes_more_pictures_of_one_is_refused():
    class Halves(DigitCNN):
        def forward(self, x):
            return super().forward(torch.cat([x, x]))[: len(x)]

    with pytest.raises(InputError, match=r"layer conv2 gives \(2, 10, 8, 8\) of float32, which"):
        explain(Halves(), torch.rand(1, 1, 28, 28), layer="conv2")


@pytest.mark.parametrize("methods", [["gradcam", "magic"], ["magic", "gradcam"]])
def test_an_unknown_method_is_refused_before_any_forward_pass(methods):
    net, calls = DigitCNN(), []
    net.register_forward_pre_hook(lambda module, args: calls.append(1))
    x = torch.rand(1, 1, 28, 28)
    words = "method 'magic' was given; give one of gradcam, gradcam++, xgradcam, counterfactual"
    for refused in (lambda: explain(net, x, method="magic"),
                    lambda: explain_many(net, x, [None], methods=methods)):
        with pytest.raises(InputError) as error:
            refused()
        assert str(error.value) == words
    assert calls == []
    explain(net, x, method="gradcam")
    assert calls == [1, 1]  # the layer is looked for, then the picture is explained


def test_further_inputs_may_be_of_inference_mode():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

        def forward(self, x, scale, *, shift):
            return self.fc(F.relu(self.conv(x)).mean((2, 3))) * scale + shift

    net, x = Scaled(), torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        scale, shift = torch.rand(2, 1), torch.rand(2, 1)
        found = explain(net, x, 1, args=(scale,), kwargs={"shift": shift})
    expected = explain(net, x, 1, args=(scale.clone(),), kwargs={"shift": shift.clone()})
    assert torch.equal(found.R, expected.R)


def test_where_others_make_tensors_changes_nothing():
    net, x = DigitCNN(), torch.rand(2, 1, 28, 28)
    expected = explain(net, x, 1)
    interpolation_matrices.cache_clear()
    with torch.device("meta"):
        found = explain(net, x, 1)
    assert torch.equal(found.heatmap, expected.heatmap)


def test_a_pad_may_be_numpys():
    net, x = DigitCNN(), torch.rand(2, 1, 28, 28)
    found, expected = explain(net, x, 1, pad=np.int64(2)), explain(net, x, 1, pad=2)
    assert torch.equal(found.heatmap, expected.heatmap)


def test_methods_are_a_list():
    with pytest.raises(InputError, match="methods 'gradcam' was given; give a list of methods"):
        explain_many(DigitCNN(), torch.rand(1, 1, 28, 28), [1], methods="gradcam")


def test_explanations_are_told_apart():
    """Two of them are equal if they are the same one: tensors have no single answer."""
    net, x = DigitCNN(), torch.rand(2, 1, 28, 28)
    first, second = explain(net, x), explain(net, x)
    assert first != second
    assert len({first, second, first}) == 2
    assert first in [second, first]


def test_a_network_that_switches_gradients_on_itself():
    class Switches(DigitCNN):
        def forward(self, x):
            with torch.set_grad_enabled(True):
                x = F.relu(F.max_pool2d(self.conv1(x), 2))
                A = self.conv2(x)
            x = F.relu(F.max_pool2d(A, 2))
            return self.fc2(F.relu(self.fc1(x.flatten(1))))

    net, x = Switches(), torch.rand(2, 1, 28, 28)
    both = [explain(net, x, 1, "conv2", guided=guided) for guided in (True, False)]
    assert torch.equal(both[0].L_c, both[1].L_c)
    assert both[1].L_c.any()
    assert both[1].R is None


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "xgradcam"])
def test_of_half_precision_the_maps_are_made_in_single_precision(method):
    """The sums over many cells exceed what 16 bits hold, and small products are zero in them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))  # fmt: skip
    with torch.no_grad():
        net[0].bias += 1
        net[2].bias += 9
        net[6].weight.abs_()
    x = torch.rand(1, 3, 128, 128)
    expected = explain(net, x, 0, "3", method)
    found = explain(net.half(), x.half(), 0, "3", method)
    for name in ("L_c", "guided_cam"):
        a, b = getattr(expected, name), getattr(found, name)
        assert (a - b).norm() <= 0.1 * a.norm() > 0
