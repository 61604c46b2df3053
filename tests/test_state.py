"""The network's state: as in use while it is explained, and afterwards exactly as it was."""

import copy
import gc
import os
import threading
import warnings
import weakref
import zlib
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import DigitCNN, assert_same, untrained
from torch import nn

from seenby import InputError, explain
from seenby.core import state
from seenby.core.state import borrowed


def attributes_of(net):
    """Every module's attributes, and what is in the dicts, lists and sets among them: by id."""

    def inside(value):
        if isinstance(value, dict):
            return [(id(key), id(item)) for key, item in value.items()]
        return [*map(id, value)] if isinstance(value, (list, set)) else None

    return [{name: (id(value), inside(value)) for name, value in vars(module).items()}
            for module in net.modules()]  # fmt: skip


def state_of(net):
    """Everything that a caller could notice; the modes and hooks are among the attributes."""
    weights = [*net.parameters(), *net.buffers()]
    return (
        attributes_of(net), [(type(module), module.training) for module in net.modules()],
        [(w.requires_grad, w.grad is None, w._version, w.data_ptr(), {**vars(w)}) for w in weights],
        {key: zlib.crc32(value.contiguous().numpy(force=True))
         for key, value in net.state_dict().items()},
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
    grads, before = copy.deepcopy([p.grad for p in net.parameters()]), state_of(net)
    x = torch.rand(2, 1, 8, 8)
    if fails:
        with pytest.raises((RuntimeError, InputError), match="in the middle"):
            explain(net, x, layer="0")
    else:
        assert_same(explain(net, x), explain(net, x))  # dropout is asleep
    assert state_of(net) == before
    for old, weight in zip(grads, net.parameters(), strict=True):
        assert (old is None and weight.grad is None) or torch.equal(old, weight.grad)
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


def keep_shape(module, args, output):
    module.shapes.append(output.shape)


def keep_gradient(module, gradient):
    module.gradients["last"] = gradient


class Keeps(nn.Module):
    """Changes all that a module can keep, in its forward pass and in the backward one."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.cache, self.calls, self.seen, self.last = {}, [0], {"x"}, None
        self.full = {"kept": torch.ones(2), "lost": torch.ones(2)}
        self.counts, self.order = Counter(conv=5), {"a": 1, "b": 2}
        self.register_buffer("peak", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("maps", torch.zeros(2, 4, 6, 6))
        self.plain = self.conv.weight * 1  # as a weight norm keeps it
        self.fails, self.conv.shapes, self.norm.gradients = False, [(1, 1, 1)], {}
        self.fc.norm, self.fc.unit = 1.0, "pixels"
        self.conv.register_forward_hook(keep_shape)
        self.norm.register_full_backward_pre_hook(keep_gradient)

    def forward(self, x):
        x = self.norm(self.conv(x))
        self.cache["bias"] = self.fc.bias * 2
        self.calls.append(len(self.calls))
        self.seen.add(tuple(x.shape))
        self.last, self.plain = x, self.conv.weight * 2
        self.full["new"] = self.full.pop("lost", None)
        self.full["kept"] = torch.zeros(2)
        self.counts["conv"] += 1
        self.order["a"] = self.order.pop("a")  # now the last one
        with torch.no_grad():
            self.peak.copy_(torch.maximum(self.peak, x.amax()))  # in place
            self.mean = x.mean((0, 2, 3))  # another tensor
            self.maps[: len(x)].copy_(x)
            self.maps.add_(x)
        self.register_buffer("grid", torch.arange(3))
        self.extra = nn.Identity()
        self.conv.seen, self.fc.seen = x, x  # on layers of PyTorch's, one of them with a hook
        self.fc.norm = x.norm()
        vars(self.fc).pop("unit", None)
        self.register_forward_hook(lambda module, args, out: None)
        x.register_hook(self.look)
        if self.fails:
            raise RuntimeError("in the middle")
        return self.fc(x.relu().mean((2, 3)))

    def look(self, gradient):
        self.cache["gradient"] = gradient


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("fails", [False, True])
def test_what_the_modules_keep_is_as_before(mode, fails):
    net = getattr(Keeps(), mode)()
    graph = (net.norm(net.conv(torch.rand(2, 1, 8, 8))).mean() * net.peak).sum()  # saves peak
    net.fails = fails
    before = state_of(net)
    if fails:
        with pytest.raises(RuntimeError, match="in the middle"):
            explain(net, torch.rand(2, 1, 8, 8), layer="conv")
    else:
        assert explain(net, torch.rand(2, 1, 8, 8), layer="conv").R.any()
        explain(net, torch.rand(2, 1, 8, 8))
    assert state_of(net) == before
    graph.backward()  # it needs the peak of before, and its version


class Loud(nn.Module):
    """As RepVGG merges its branches: what its train() and eval() do can't be undone."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 2, 3), nn.Linear(2, 3)

    def train(self, mode=True):
        raise AssertionError("its own train() was called")

    def forward(self, x):
        assert not self.training
        return self.fc(self.conv(x).mean((2, 3)))


def test_a_modules_own_train_is_never_called():
    net = Loud()
    assert explain(net, torch.rand(1, 1, 8, 8)).R.any()
    assert net.training


class Slotted(nn.Module):
    """An attribute that is in no __dict__, and a mode that is computed."""

    __slots__ = ("note",)

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.note = nn.Conv2d(1, 2, 3), nn.Linear(2, 3), "kept"

    @property
    def training(self):
        return self._mode

    @training.setter
    def training(self, mode):
        self._mode = mode

    def forward(self, x):
        assert not self.training
        return self.fc(self.conv(x).mean((2, 3)))


def test_modules_with_slots_and_properties():
    net = Slotted()
    before = state_of(net)
    assert explain(net, torch.rand(1, 1, 8, 8)).R.any()
    assert state_of(net) == before
    assert net.training
    assert net.note == "kept"


def reparametrised():
    from torch.nn.utils import parametrizations, spectral_norm, weight_norm

    with warnings.catch_warnings(action="ignore"):  # the old ones are still in use
        old = weight_norm(spectral_norm(nn.Conv2d(4, 4, 3), "weight"), "bias", dim=0)
    return nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(1, 4, 3)), nn.ReLU(), old, nn.ReLU(),
        parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


class WritesUnseen(nn.Module):
    """Into buffers and other tensors, in ways of which some do not raise the version."""

    def __init__(self):
        super().__init__()
        self.register_buffer("ema", torch.zeros(4))
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))
        self.register_buffer("rows", torch.zeros(1, 4).expand(3, 4))
        self.kept, self.last = torch.zeros(4), deque(maxlen=3)

    def forward(self, x):
        mean = x.detach().mean((0, 2, 3))
        self.ema.data.lerp_(mean, 0.1)
        self.count.numpy()[0] += 1
        self.kept += mean
        self.last.append(1)
        return F.batch_norm(x, self.mean, self.var, training=True)


def test_what_is_written_without_a_new_version_is_put_back():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), WritesUnseen(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net[1].last.extend([7, 8])
    before, kept = state_of(net), net[1].kept.clone()
    assert explain(net, torch.rand(2, 2, 8, 8)).L_c.any()
    assert state_of(net) == before
    assert torch.equal(net[1].kept, kept)
    assert list(net[1].last) == [7, 8]


def test_a_buffer_that_can_not_be_written_is_left_alone(tmp_path):
    np.save(tmp_path / "prior.npy", np.ones(4, np.float32))
    with warnings.catch_warnings(action="ignore"):  # that it is not writable; that CSR is young
        prior = torch.from_numpy(np.load(tmp_path / "prior.npy", mmap_mode="r"))
        sparse = torch.eye(4).to_sparse_csr()
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.register_buffer("prior", prior)
    net.register_buffer("sparse", sparse)
    assert explain(net, torch.rand(2, 2, 8, 8)).L_c.any()


class Grows(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("rows", torch.ones(3))
        self.register_buffer("count", torch.zeros(1))
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x):
        self.rows.resize_(7).fill_(2)
        self.count += 1
        self.weight.requires_grad_()
        return x * self.weight


def test_a_buffer_that_grows_and_a_weight_that_is_thawed():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), Grows(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert explain(net, torch.rand(2, 2, 8, 8), layer="0").L_c.any()
    assert net[1].rows.tolist() == [1, 1, 1]
    assert net[1].count == 0
    assert not net[1].weight.requires_grad
    assert net[0].weight.requires_grad


def test_a_network_that_is_trained_for_quantisation_is_as_before():
    from torch.ao import quantization

    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(8, 5)).train()  # fmt: skip
    net.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    with warnings.catch_warnings(action="ignore"):  # it moves into another package
        quantization.prepare_qat(net, inplace=True)
    net(torch.randn(2, 3, 16, 16))
    before = state_of(net)
    assert explain(net, 3 * torch.randn(2, 3, 16, 16), 1).L_c.any()
    assert state_of(net) == before


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_parametrised_weights_keep_their_graph(mode):
    net, x = getattr(reparametrised(), mode)(), torch.rand(2, 1, 8, 8)
    net(x)
    before = state_of(net)
    assert explain(net, x).R.any()
    assert state_of(net) == before
    assert net[2].weight.grad_fn is not None


# ---------------------------------------------------------------------------- caches of families


FAMILIES = ["levit_128s", "levit_conv_128s", "efficientvit_m0", "efficientformer_l1",
            "efficientformerv2_s0", "tiny_vit_5m_224"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_caches_of_attention_biases_are_as_before(name):
    """They are filled in eval mode, and would be of frozen weights, and of old ones."""
    timm = pytest.importorskip("timm")
    net, other = (timm.create_model(name).eval() for _ in range(2))
    biases, x = biases_of(other), torch.rand(1, 3, 224, 224)
    for bias in biases:
        bias.data.normal_()
    explain(net, x)
    net.load_state_dict(other.state_dict())
    explain(other, x)
    logits = other(x)
    assert torch.equal(net(x), logits)
    logits.sum().backward()
    assert biases
    assert [bias.grad is None for bias in biases] == [False] * len(biases)


def biases_of(net):
    return [weight for name, weight in net.named_parameters() if "attention_biases" in name]


# ------------------------------------------------------------------------------ forty networks


ZOO = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet",
    "inception_v3", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf",
    "regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5",
    "squeezenet1_0", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32", "maxvit_t",
    "timm:levit_128s", "timm:efficientvit_m0", "timm:tiny_vit_5m_224", "timm:efficientformer_l1",
    "timm:efficientformerv2_s0", "timm:repvgg_a0", "timm:fastvit_t8", "timm:mobileone_s0",
    "timm:nf_resnet50", "timm:nfnet_f0", "timm:coatnet_nano_rw_224", "timm:botnet26t_256",
    "timm:lambda_resnet26t", "timm:hrnet_w18_small", "timm:deit_tiny_distilled_patch16_224",
    "timm:mixer_s32_224", "timm:poolformer_s12", "timm:xcit_nano_12_p16_224",
    "timm:edgenext_xx_small",
]  # fmt: skip


def of_the_zoo(name):
    """The network in train mode but for its first half, a weight frozen; and a picture."""
    if name.startswith("timm:"):
        net = pytest.importorskip("timm").create_model(name.removeprefix("timm:"))
    else:
        net = untrained(name)
    modules = list(net.train().modules())
    for module in modules[len(modules) // 2 :]:
        module.training = False
    next(net.parameters()).requires_grad_(False)
    return net, torch.rand(1, 3, 256 if "256" in name else 224, 256 if "256" in name else 224)


def fails(*_):
    raise RuntimeError("in the middle")


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_networks_of_the_zoo_come_back_as_they_were(name):
    net, x = of_the_zoo(name)
    before = state_of(net)
    explanation = explain(net, x)
    assert state_of(net) == before
    layer = net.get_submodule(explanation.layer)
    handle = layer.register_forward_hook(fails)
    armed = state_of(net)
    with pytest.raises(RuntimeError, match="in the middle"):
        explain(net, x, layer=explanation.layer)
    assert state_of(net) == armed
    handle.remove()
    handle = layer.register_forward_hook(lambda module, args, out: (
        Breaks.apply(out) if isinstance(out, torch.Tensor) else fails()))
    armed = state_of(net)
    with pytest.raises((RuntimeError, InputError), match="in the middle"):
        explain(net, x, 0, explanation.layer)
    assert state_of(net) == armed
    handle.remove()
    assert state_of(net) == before


# ------------------------------------------------------------------------------------- threads


class Trainable(nn.Module):
    """With all that an explanation must switch off."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 4, 3), nn.Linear(4, 3)
        self.norm, self.drop = nn.BatchNorm2d(6), nn.Dropout(0.5)

    def forward(self, x):
        x = self.conv2(self.norm(self.conv1(x)).relu())
        return self.fc(self.drop(x.relu().mean((2, 3))))


def in_threads(work, items):
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(work, items))


@pytest.mark.parametrize("kind", ["train", "eval", "frozen"])
def test_threads_that_explain_one_network_take_turns(kind):
    net = Trainable()
    net(torch.rand(4, 1, 12, 12))
    net.train(kind == "train").requires_grad_(kind != "frozen")
    pictures, before = torch.rand(320, 1, 1, 12, 12), state_of(net)
    layers = ["conv2", None, "conv1", "norm"]

    def work(i):
        return explain(net, pictures[i], i % 3, layers[i % 4])

    single = list(map(work, range(320)))
    for found, expected in zip(in_threads(work, range(320)), single, strict=True):
        assert (found.layer, found.relu_calls) == (expected.layer, expected.relu_calls)
        for name in ("logits", "L_c", "R", "guided_cam"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
    assert state_of(net) == before
    assert state._in_use == {}


def test_threads_that_explain_networks_with_a_common_part_take_turns():
    trunk = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5))
    heads = [nn.Sequential(trunk, nn.Conv2d(6, C, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
             for C in (2, 3)]  # fmt: skip
    pictures, before = torch.rand(80, 1, 1, 12, 12), [state_of(net) for net in heads]

    def work(i):
        return explain(heads[i % 2], pictures[i], 0, "0.0")

    single = list(map(work, range(80)))
    for found, expected in zip(in_threads(work, range(80)), single, strict=True):
        assert torch.equal(found.R, expected.R)
    assert [state_of(net) for net in heads] == before


class Waits(nn.Sequential):
    """Tells that its forward pass began, and waits for another event."""

    def forward(self, x):
        self.began.set()
        assert self.goes_on.wait(30)
        return super().forward(x)


def waiting():
    net = Waits(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    net.began, net.goes_on = threading.Event(), threading.Event()
    return net


def test_other_networks_need_not_wait():
    net, x = waiting(), torch.rand(1, 1, 8, 8)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(explain, net, x, 0, "0")
        assert net.began.wait(30)
        assert explain(DigitCNN(), torch.rand(1, 1, 28, 28)).R.any()
        assert not slow.done()
        net.goes_on.set()
        assert slow.result(30).R.any()


def test_a_call_that_fails_lets_others_go_on():
    net, x = DigitCNN(), torch.rand(1, 1, 28, 28)
    with pytest.raises(InputError, match="class 99 was given"):
        explain(net, x, 99)
    assert in_threads(lambda i: explain(net, x).layer, range(3)) == ["conv2"] * 3


def test_within_itself_nothing_is_left_to_change():
    net = Trainable()
    with borrowed(net), borrowed(net.norm), borrowed(net):
        assert not any(module.training for module in net.modules())
        held = state._in_use[threading.get_ident()]
        assert held == {*net.modules()}
        other = Trainable()
        with borrowed(other):
            assert state._in_use[threading.get_ident()] == held | {*other.modules()}
        assert state._in_use[threading.get_ident()] == held
        assert not any(weight.requires_grad for weight in net.parameters())
    assert all(module.training for module in net.modules())


def compiler():
    """A backend of torch.compile, and the list of what it was called with."""
    graphs = []

    def backend(graph, _example):
        graphs.append(graph)
        return graph.forward

    return backend, graphs


class CompiledInside(nn.Module):
    """A module of it, in place, and a function."""

    def __init__(self, net, backend):
        super().__init__()
        self.net = net
        self.relu = torch.compile(lambda x: torch.relu(x), backend=backend)
        net.compile(backend=backend)

    def forward(self, x):
        return self.net(self.relu(x))


@pytest.mark.parametrize("kind", ["whole", "of one graph", "inside"])
def test_a_compiled_network_is_explained_as_it_was_written(kind):
    net, (backend, graphs), x = Trainable().eval(), compiler(), torch.randn(2, 1, 12, 12)
    net(torch.rand(4, 1, 12, 12))
    written = net if kind != "inside" else nn.Sequential(nn.ReLU(), net)
    expected = explain(written, x)
    if kind == "inside":
        compiled = CompiledInside(net, backend)
    else:
        compiled = torch.compile(net, backend=backend, fullgraph=kind == "of one graph")
    compilations = []
    for _ in range(2):  # before the first call and after it
        found = explain(compiled, x)
        assert (found.relu_calls, found.other_activations) == (expected.relu_calls, ())
        assert found.layer.endswith("conv2")
        for name in ("logits", "L_c", "heatmap", "R"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
        compilations.append(len(graphs))
        compiled(x)
        compilations.append(len(graphs))
    parts = 2 if kind == "inside" else 1
    assert compilations == [0, parts, parts, parts]


def test_others_are_compiled_again_when_the_last_explanation_ends():
    first, second, x = waiting(), waiting(), torch.rand(1, 1, 8, 8)
    backend, graphs = compiler()
    double = torch.compile(lambda x: 2 * x, backend=backend)
    with ThreadPoolExecutor(2) as pool:
        running = []
        for net in (first, second):
            running.append(pool.submit(explain, net, x, 0, "0"))
            assert net.began.wait(30)
        assert torch.equal(double(x), 2 * x)
        assert not graphs
        for net, future in zip((first, second), running, strict=True):
            net.goes_on.set()
            future.result(30)
    assert torch.equal(double(x), 2 * x)
    assert len(graphs) == 1


def test_weights_that_are_computed_stay_as_they_are():
    """As in meta-learning, where a layer's weight is a tensor that a step has made."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3))
    first = net[3].weight
    del net[3].weight
    net[3]._parameters["weight"] = fast = first * 1.0
    explain(net.train(), torch.rand(2, 1, 8, 8))
    assert all(module.training for module in net.modules())
    assert net[0].weight.requires_grad
    assert net[3].weight is fast
    assert fast.grad_fn is not None


def test_no_network_is_kept_alive():
    net = DigitCNN()
    explain(net, torch.rand(1, 1, 28, 28))
    reference = weakref.ref(net)
    del net
    gc.collect()
    assert reference() is None


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_forked_child_does_not_wait_for_its_parents_threads():
    """As a DataLoader's worker that explains, started while another thread explains."""
    net, x = waiting(), torch.rand(1, 1, 8, 8)
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(explain, net, x, 0, "0")
        assert net.began.wait(30)
        with warnings.catch_warnings(action="ignore"):  # newer Pythons warn of threads
            child = os.fork()
        if not child:
            net.goes_on = threading.Event()  # its lock, too, belongs to the parent's thread
            net.goes_on.set()
            threading.Timer(20, os._exit, [1]).start()
            os._exit(0 if explain(net, x, 0, "0").R.any() else 1)
        _, status = os.waitpid(child, 0)
        assert not busy.done()
        net.goes_on.set()
        assert busy.result(30).R.any()
    assert os.waitstatus_to_exitcode(status) == 0
