"""The backward passes: guided to the pixels, and as few as there can be."""

import copy
import random
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from oracles import EveryReLUIsGuided, TwoConvolutions, assert_same, untrained
from torch import nn
from torch.utils.checkpoint import checkpoint

from seenby import InputError, explain, explain_many
from seenby.core.backward import edges_on_every_path, nodes_behind, nodes_between


def test_guided_backprop_by_hand():
    """y = relu(3a) - relu(2a) - relu(-a): at a > 0 only the first ReLU lets 3 through."""
    net = nn.Sequential(
        nn.Conv2d(1, 3, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(6, 1, False)
    )
    with torch.no_grad():
        net[0].weight[:] = torch.tensor([3.0, 2.0, -1.0]).view(3, 1, 1, 1)
        net[3].weight[:] = torch.tensor([[1.0, 1.0, -1.0, -1.0, -1.0, -1.0]])
    x = torch.tensor([[[[2.0, -2.0]]]])
    explanation = explain(net, x, target=1, pad=0)  # its one logit speaks for class 1
    torch.testing.assert_close(explanation.R, torch.tensor([[[[3.0, 0.0]]]]))  # plain: [[1, 1]]
    torch.testing.assert_close(explanation.guided_cam, explanation.R * explanation.heatmap[:, None])


@pytest.mark.parametrize(
    "name", ["inception_v3", "googlenet", "densenet121", "resnet18", "mobilenet_v2"]
)
def test_guided_backprop_through_functional_shared_and_in_place_relus(name):
    net = untrained(name).double().eval()
    S = 96 if name == "inception_v3" else 64
    x = torch.rand(1, 3, S, S, dtype=torch.float64)
    explanation = explain(net, x, 5)
    leaf = x.clone().requires_grad_()
    with EveryReLUIsGuided():
        y = net(leaf)
    (R,) = torch.autograd.grad(y[:, 5].sum(), leaf)
    torch.testing.assert_close(explanation.R, R, rtol=1e-9, atol=1e-12 * float(R.abs().max()))
    leaf = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(net(leaf)[:, 5].sum(), leaf)
    assert (R - plain).abs().max() > 0.1 * plain.abs().max()
    assert explanation.relu_calls > 10
    assert explanation.other_activations == ()


def test_a_skip_before_the_relu_of_xception_is_not_clamped():
    timm = pytest.importorskip("timm")
    net = timm.create_model("legacy_xception").double().eval()
    x = torch.rand(1, 3, 96, 96, dtype=torch.float64)
    explanation, leaf = explain(net, x, 5), x.clone().requires_grad_()
    with EveryReLUIsGuided():
        y = net(leaf)
    (R,) = torch.autograd.grad(y[:, 5].sum(), leaf)
    torch.testing.assert_close(explanation.R, R, rtol=1e-9, atol=1e-12 * float(R.abs().max()))
    assert R.abs().max() > 0


# --------------------------------------------------------------------------- several targets


class Twice(torch.autograd.Function):
    """Of the network's own: several targets at once would end the process, at .data in them."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        gradient.data.mul_(2)
        return gradient


class Attention(nn.Module):
    """(B, K, u, v) -> (B, K): its cells look at each other."""

    def __init__(self):
        super().__init__()
        self.heads = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, A):
        rows = A.flatten(2).transpose(1, 2)
        return self.heads(rows, rows, rows)[0].amax(1)


MEAN = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Walks:
    """No list: what a network keeps in one is put back."""

    count = 0

    def add(self):
        self.count += 1


class Headed(nn.Module):
    """Counts the backward passes."""

    def __init__(self, head, function=lambda x: 2 * x):
        super().__init__()
        self.trunk, self.head, self.end = nn.Conv2d(2, 6, 3), head, nn.Linear(6, 5)
        self.function, self.walks = function, Walks()

    def forward(self, x):
        x = F.relu(self.trunk(x))
        if x.requires_grad:
            x.register_hook(lambda _: self.walks.add())
        return self.end(self.head(self.function(x)))


@pytest.mark.parametrize(
    ("head", "function", "walks"),
    [
        (MEAN, lambda x: 2 * x, 1),
        (MEAN, Twice.apply, 3),
        (nn.Sequential(nn.GroupNorm(2, 6), *MEAN), lambda x: 2 * x, 3),
        (Attention, lambda x: 2 * x, 1),
    ],
    ids=["mean", "function", "group norm", "attention"],
)
def test_several_targets_walk_the_head_once_where_they_can(head, function, walks):
    head = head() if head is Attention else head  # with the test's own random weights
    net, x = Headed(head, function).float(), torch.rand(4, 2, 9, 9)
    targets = [2, None, [4, 3, 2, 1]]
    for guided in (False, True):
        net.walks = Walks()
        explanations = explain_many(net, x, targets, "trunk", guided=guided)
        # For the plain gradients, and for the guided ones.
        assert net.walks.count == walks * (1 + guided)
        for explanation, target in zip(explanations, targets, strict=True):
            assert_same(explanation, explain(net, x, target, "trunk", guided=guided))
    assert explanations[0].L_c.any()
    assert explanations[0].R.any()


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
    explanations = explain_many(net, x, range(5), "layer")
    for target, explanation in zip(range(5), explanations, strict=True):
        assert_same(explanation, explain(net, x, target, "layer"))
    assert explanation.R.abs().amax((1, 2, 3)).all()


# --------------------------------------------------------------------------- without a graph


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
    """For a batch batch-norm is written in another way, which is not known on the way back: then
    PyTorch's own takes its place."""
    plain = Checkpointed(lambda block, *given: block(*given)).double()
    twin, x = copy.deepcopy(plain), torch.randn(2, 2, 8, 8).double()
    twin.checkpoint = partial(checkpoint, use_reentrant=False)
    for B in (1, 2):
        known = explain_many(plain, x[:B], targets)
        for explanation, expected in zip(explain_many(twin, x[:B], targets), known, strict=True):
            for name in ("logits", "L_c", "R"):
                torch.testing.assert_close(getattr(explanation, name), getattr(expected, name))
            assert (explanation.relu_calls, explanation.other_activations) == (2, ())
            assert explanation.stride == expected.stride


class Frozen(TwoConvolutions):
    def forward(self, x):
        with torch.no_grad():
            x = self.conv1(x)
        return self.fc2(self.relu(self.fc1(F.max_pool2d(self.conv2(x), 2).flatten(1))))


def test_networks_without_a_graph_within_are_told_how_to_have_one():
    net, x = Frozen(nn.ReLU()), torch.randn(2, 2, 8, 8)
    assert explain(net, x, layer="conv2", guided=False).L_c.shape == (2, 8, 8)
    fix = "explain without guided maps, or switch off no_grad"
    for layer in ("conv1", "conv2"):
        with pytest.raises(InputError, match=rf"^the pixels do not lead .*; {fix}"):
            explain(net, x, layer=layer)
    # Without guided maps the graph begins behind it.
    found = explain(net, x, 1, layer="conv1", guided=False)
    A = net.conv1(x).detach().requires_grad_()
    y = net.fc2(net.relu(net.fc1(F.max_pool2d(net.conv2(A), 2).flatten(1))))
    (dyc_dA,) = torch.autograd.grad(y[:, 1].sum(), A)
    torch.testing.assert_close(found.alpha, dyc_dA.mean((2, 3)))


class Cut(nn.Module):
    def forward(self, x):
        return x.detach().flatten(1).requires_grad_()


def test_a_layer_that_does_not_lead_to_the_logits_is_named():
    with pytest.raises(InputError, match="layer 0 does not lead to the logits"):
        explain(nn.Sequential(nn.Conv2d(1, 1, 1), Cut()), torch.rand(1, 1, 4, 4))


def test_nodes_between_two_tensors():
    """y = relu(x) + tanh(x * a), with a way into nowhere, and one from another leaf."""
    x, a = torch.rand(3, requires_grad=True), torch.rand(3, requires_grad=True)
    relu, tanh = x.relu(), (x * a).tanh()
    aside, cached = relu.exp(), a.sin()
    y = relu + tanh + cached
    between = nodes_between(y, x)
    assert {relu.grad_fn, tanh.grad_fn, y.grad_fn} <= between
    assert {aside.grad_fn, cached.grad_fn} & between == set()
    kinds = sorted(node.name().partition("Backward")[0] for node in between)
    assert kinds == ["Add", "Add", "Mul", "Relu", "Tanh", "torch::autograd::AccumulateGrad"]
    assert nodes_between(cached, x) == set()


def paths_without(edge, y, x):
    """Whether x is reached from y by a way that does not lead through an edge."""
    visited, to_visit = {edge}, [(y.grad_fn, y.output_nr)]
    while to_visit:
        if (step := to_visit.pop()) not in visited:
            visited.add(step)
            to_visit += step[0].next_functions if step[0] else ()
    return any(getattr(node, "variable", None) is x for node, _ in visited - {edge})


@pytest.mark.parametrize("seed", range(30))
def test_edges_that_every_path_passes_are_those_without_which_there_is_none(seed):
    """Of random graphs: sums, products with oneself, halves, residual ways and dead ends."""
    draw = random.Random(seed)
    x = torch.rand(4, requires_grad=True)
    tensors = [x.sin()]
    for _ in range(12):
        a, b = draw.choices(tensors[-3:], k=2)
        half, other = (a + b).chunk(2)
        tensors.append(draw.choice([a + b, a * a, a.sin(), torch.cat([half, half]),
                                    torch.cat([other, other])]))
    y = tensors[-1].sum()
    found = edges_on_every_path(y, x)
    nodes, _ = nodes_behind(y)
    edges = {(y.grad_fn, y.output_nr)} | {edge for node in nodes for edge in node.next_functions
                                          if edge[0]}  # fmt: skip
    assert found == {edge for edge in edges if not paths_without(edge, y, x)}
    assert 2 <= len(found) <= len(edges)


def test_where_no_path_leads_back_none_can_be_barred():
    a, x = torch.rand(2, requires_grad=True), torch.rand(2, requires_grad=True)
    assert edges_on_every_path((a * 2).sum(), x) is None
