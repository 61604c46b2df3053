"""What several files of tests share: small networks, and what their maps are compared with."""

import copy
from contextlib import contextmanager
from dataclasses import fields

import torch
import torch.nn.functional as F
from torch import nn

from seenby.machine import import_torchvision

models = import_torchvision().models


def untrained(name, **options):
    """A classifier of torchvision with random weights."""
    if name in ("googlenet", "inception_v3"):  # they draw theirs in another way, which takes long
        options["init_weights"] = False
    return models.get_model(name, weights=None, **options)


@torch.no_grad()
def as_after_training(net):
    """A new batch norm changes nothing, and some heads are all zero: give them other numbers."""
    for name, values in net.named_buffers():
        if name.endswith("running_var"):
            values.copy_(torch.rand_like(values) + 0.5)
        elif name.endswith("running_mean"):
            values.normal_(std=0.1)
    for parameter in net.parameters():
        if not parameter.any():
            parameter.normal_(std=0.1)
    return net


class DigitCNN(nn.Module):
    """The course network's layers, but its ReLUs are spelt F.relu."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 10, 5), nn.Conv2d(10, 10, 5)
        self.fc1, self.fc2 = nn.Linear(160, 50), nn.Linear(50, 10)

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class TwoConvolutions(nn.Module):
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


class GuidedReLU6(torch.autograd.Function):
    """The same of nn.ReLU6."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(0, 6)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x > 0) * (x < 6) * (gradient > 0)


class EveryReLUIsGuided(torch.overrides.TorchFunctionMode):
    """An oracle for whole networks: every ReLU is replaced by one that guides by itself."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = func.__name__.rstrip("_")
        if name == "hardtanh":  # as nn.ReLU6 calls it
            return GuidedReLU6.apply(args[0])
        if name == "relu":
            return GuidedReLU.apply(args[0])
        return func(*args, **(kwargs or {}))


def guided_oracle(net, x, c):
    """R of TwoConvolutions, whose ReLU is replaced by the one that guides."""
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
        L_c = torch.zeros_like(A[i, 0])
        for k in range(A.shape[1]):
            L_c = L_c + g[i, k].sum() / g[i, k].numel() * A[i, k].detach()
        maps.append(L_c.clamp(min=0))
    return torch.stack(maps)


def assert_same(a, b):
    """Two explanations, equal as far as the order of sums allows: to 1e-6, in float64 to 1e-12."""
    for name in (field.name for field in fields(a)):
        value, other = getattr(a, name), getattr(b, name)
        if isinstance(value, torch.Tensor):
            close = 1e-6 if value.dtype == torch.float32 else 1e-12
            value, other = value.double(), other.double()
            scale = float(value.abs().max())
            torch.testing.assert_close(value, other, rtol=0, atol=close * scale)
        else:
            assert value == other


@contextmanager
def kept_for_backward():
    """The shapes of the tensors that autograd keeps."""
    kept = []

    def keep(tensor):
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


class Block(nn.Module):
    def __init__(self, K, out, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(K, out, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)

    def forward(self, x):
        return F.relu(self.conv2(F.relu(self.conv1(x))))


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
