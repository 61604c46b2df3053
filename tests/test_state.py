"""The network's state: as in use while it is explained, and afterwards exactly as it was."""

import copy
import warnings

import pytest
import torch
from oracles import DigitCNN, assert_same
from torch import nn

from seenby import InputError, explain


def state_of(net):
    """Everything that a caller could notice."""
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
        with pytest.raises((RuntimeError, InputError), match="in the middle"):
            explain(net, x, layer="0")
    else:
        assert_same(explain(net, x), explain(net, x))  # dropout is asleep
    grads, state = [p.grad for p in net.parameters()], state_of(net)
    for old, new in zip(before[0], grads, strict=True):
        assert (old is None and new is None) or torch.equal(old, new)
    assert state[:4] == before[1][:4]
    assert state[5:] == before[1][5:]
    x = torch.rand(2, 1, 8, 8, requires_grad=True)
    if not fails:  # and its gradients are plain again
        assert torch.autograd.grad(net.eval()(x).sum(), x)[0].lt(0).any()


def test_frozen_networks_no_grad_and_inference_mode():
    net, x = DigitCNN(), torch.rand(2, 1, 28, 28)
    expected = explain(net, x, 3)
    net.requires_grad_(False)
    assert_same(explain(net, x, 3), expected)
    with torch.no_grad():
        assert_same(explain(net, x, 3), expected)
    with torch.inference_mode():
        assert_same(explain(net, x.clone(), 3), expected)


def test_scripted_networks_are_refused():
    with warnings.catch_warnings(action="ignore"):
        scripted = torch.jit.script(nn.Sequential(nn.ReLU(), nn.Flatten()))
    for net in (nn.Sequential(nn.Conv2d(1, 2, 3), scripted), scripted):
        with pytest.raises(InputError, match=r"is scripted.* give the module it was made from"):
            explain(net, torch.rand(1, 1, 4, 4))
