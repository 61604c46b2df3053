"""The methods: each weighs the maps as its paper says."""

import pytest
import torch
import torch.nn.functional as F
from oracles import DigitCNN
from torch import nn

from seenby import METHODS, explain
from seenby.core.methods import Method


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
    net, c = DigitCNN().double().eval(), [3, 1, 4]
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
    explanation = explain(rest, A, c, layer="maps", method=method)
    assert explanation.method == method
    for i in range(3):
        alpha = weights_by_definition(method, A[i].detach(), g[i])
        torch.testing.assert_close(explanation.alpha[i], alpha, rtol=1e-9, atol=1e-15)
        L_c = sum(a * A_k for a, A_k in zip(alpha, A[i].detach(), strict=True)).clamp(min=0)
        torch.testing.assert_close(explanation.L_c[i], L_c, rtol=1e-9, atol=1e-15)
    assert explanation.L_c.any()


class Tokens(nn.Module):
    """Of 8 x 12 pixels a class token and 2 x 3 patches, which a head that is not linear reads."""

    def __init__(self):
        super().__init__()
        self.patches, self.mix = nn.Conv2d(3, 5, 4, 4), nn.Linear(5, 5)
        self.relu, self.head = nn.ReLU(), nn.Linear(7 * 5, 4)

    def tokens(self, x):
        patches = self.patches(x).flatten(2).transpose(1, 2)
        return torch.cat([patches.new_ones(len(x), 1, 5), patches], 1)

    def rest(self, A):
        return self.head(A.flatten(1).tanh())

    def forward(self, x):
        return self.rest(self.relu(self.mix(self.tokens(x))))


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "xgradcam", "counterfactual"])
def test_every_method_weighs_tokens_as_maps(method):
    net, c = Tokens().double(), [2, 0]
    x = torch.rand(2, 3, 8, 12, dtype=torch.float64)
    A = F.relu(net.mix(net.tokens(x))).detach().requires_grad_()
    (g,) = torch.autograd.grad(net.rest(A)[range(2), c].sum(), A)
    explanation = explain(net, x, c, layer="relu", method=method)
    for i in range(2):
        # As (K, u, v), one token after the other, without the class token.
        maps, gradients = (torch.stack([torch.stack([t[i, 1 + 3 * row + column].detach()
                                                     for column in range(3)], 1)
                                        for row in range(2)], 1) for t in (A, g))
        alpha = weights_by_definition(method, maps, gradients)
        torch.testing.assert_close(explanation.alpha[i], alpha, rtol=1e-9, atol=1e-15)
        L_c = sum(a * A_k for a, A_k in zip(alpha, maps, strict=True)).clamp(min=0)
        assert L_c.shape == (2, 3)
        torch.testing.assert_close(explanation.L_c[i], L_c, rtol=1e-9, atol=1e-15)
    assert explanation.L_c.any()


def test_methods_stay_finite_where_maps_or_gradients_are_zero():
    net = DigitCNN()
    with torch.no_grad():
        net.conv2.weight.zero_()
        net.conv2.bias.zero_()
    for method in ("gradcam++", "xgradcam"):
        heatmap = explain(net, torch.rand(1, 1, 28, 28), method=method).heatmap
        assert torch.equal(heatmap.sum(), torch.tensor(0.0))


def test_before_a_mean_and_a_linear_layer_grad_cam_is_cam():
    """There dy_c / dA_k is the weight w_k of the class over the number of cells."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    x = torch.rand(2, 1, 9, 9)
    explanation = explain(net, x, [2, 0])
    w = net[3].weight[[2, 0]].detach()
    torch.testing.assert_close(explanation.alpha, w / 49)
    cam = torch.stack([sum(w[i, k] * net[0](x)[i, k] for k in range(4)) for i in range(2)])
    torch.testing.assert_close(explanation.L_c, (cam / 49).clamp(min=0).detach())


@pytest.mark.parametrize("method", METHODS)
def test_negative_activations_are_looked_for_where_the_method_assumes_a_relu(method):
    """Of two pictures one has them; the formulas of these two methods are made for the other."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    nn.init.ones_(net[0].weight)
    nn.init.zeros_(net[0].bias)
    x = torch.stack([torch.rand(1, 4, 4), torch.rand(1, 4, 4) - 0.5])
    negative = explain(net, x, 0, method=method).negative_activations
    if method in ("gradcam++", "xgradcam"):
        assert negative.tolist() == [False, True]
    else:
        assert negative is None


def test_only_the_counterfactual_speaks_against_the_class():
    assert [name for name, method in METHODS.items() if method.against] == ["counterfactual"]


class Exact(nn.Module):
    """Goes on in single precision, also under autocast."""

    def forward(self, a):
        return a.float() * 1.001


@pytest.mark.parametrize("method", METHODS)
def test_maps_are_as_exact_as_what_they_are_made_of_also_under_autocast(method):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 40, 3), Exact(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    x = torch.rand(2, 1, 20, 20)
    net(x)
    A = []
    net[1].register_forward_hook(lambda module, args, output: A.append(output.detach()))
    with torch.autocast("cpu", torch.bfloat16):
        found = explain(net, x, 1, "1", method)
    expected = F.relu((found.alpha[:, :, None, None] * A[0]).sum(1))
    assert found.L_c.dtype == found.heatmap.dtype == torch.float32
    torch.testing.assert_close(found.L_c, expected, rtol=1e-5, atol=1e-6 * float(expected.max()))


def test_to_add_a_method_a_record_is_added(monkeypatch):
    """Here the largest gradient of each map is its weight."""
    method = Method(lambda A, dyc_dA: dyc_dA.amax((2, 3)), "Max-CAM", assumes_relu=True)
    monkeypatch.setitem(METHODS, "max", method)
    net, x = DigitCNN().double(), torch.rand(2, 1, 28, 28, dtype=torch.float64)
    maps, after = [], net.conv2.register_forward_hook(lambda module, args, out: maps.append(out))
    explanation = explain(net, x, 3, layer="conv2", method="max")
    after.remove()
    A = maps[0].detach().requires_grad_()
    head = net.fc2(F.relu(net.fc1(F.relu(F.max_pool2d(A, 2)).flatten(1))))
    (dyc_dA,) = torch.autograd.grad(head[:, 3].sum(), A)
    alpha = dyc_dA.amax((2, 3))
    torch.testing.assert_close(explanation.alpha, alpha)
    expected = (alpha[:, :, None, None] * A.detach()).sum(1).clamp(min=0)
    torch.testing.assert_close(explanation.L_c, expected)
    assert explanation.method == "max"
    assert explanation.negative_activations.all()
