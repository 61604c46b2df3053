"""Which operations are ReLUs, however they are spelt, and which others are named."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from oracles import DigitCNN, GuidedReLU, GuidedReLU6, TwoConvolutions, guided_oracle, untrained
from torch import nn

from seenby import explain

with warnings.catch_warnings(action="ignore"):  # TorchScript is in use, but no longer developed

    @torch.jit.script
    def scripted(x):
        return torch.relu(x)

    @torch.jit.script
    def scripted_clamp(x):
        return torch.clamp(x, min=0.0)

    @torch.jit.script
    def scripted_silu(x):
        return F.silu(x)

    @torch.jit.script
    def fused(x):
        return torch.relu(x) * 1.0

    fused(torch.randn(3, requires_grad=True))  # from the next call on, it is one node
    traced = torch.jit.trace(torch.relu, (torch.randn(3),))


def assigned(x):
    x = x * 1.0
    x[x < 0] = 0
    return x


def assigned_in_a_view(x):
    x = x * 1.0
    rows = x.flatten(1)
    rows[rows <= 0] = 0.0
    return x


def multiplied_in_place(x):
    x = x * 1.0
    x *= x > 0
    return x


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
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "where of zeros": lambda x: torch.where(x < 0, torch.zeros_like(x), x),
    "x.where": lambda x: x.where(x > 0, 0.0),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0),
    "masked_fill_": lambda x: (x * 1.0).masked_fill_(x <= 0, 0),
    "masked_scatter": lambda x: x.masked_scatter(x < 0, torch.zeros_like(x)),
    "x[x < 0] = 0": assigned,
    "x[x < 0] = 0 in a view": assigned_in_a_view,
    "index_put": lambda x: x.index_put((x < 0,), torch.zeros(()).to(x)),
    "x * (x > 0)": lambda x: x * (x > 0),
    "(x > 0) * x": lambda x: torch.multiply(x > 0, x),
    "x * (x > 0).float()": lambda x: x * (x > 0).to(x.dtype),
    "x *= x > 0": multiplied_in_place,
    "vmap": torch.func.vmap(F.relu),
    "vmap of clamp": torch.func.vmap(lambda x: x.clamp(min=0)),
    "scripted": lambda x: scripted(x),
    "scripted clamp": lambda x: scripted_clamp(x),
    "traced": lambda x: traced(x),
    "in place on rows": lambda x: F.relu(x.flatten(1), inplace=True).view(x.shape),
    "in place on a view": lambda x: x.view_as(x).relu_(),
}


@pytest.mark.parametrize("skip", ["none", "pre", "add_"])
@pytest.mark.parametrize("spelling", RELUS)
def test_guided_backprop_through_every_kind_of_relu(spelling, skip):
    net = TwoConvolutions(RELUS[spelling], skip).double().eval()
    x, c = torch.randn(3, 2, 8, 8, dtype=torch.float64), [1, 4, 0]
    explanation = explain(net, x, c, layer="conv2")
    torch.testing.assert_close(explanation.R, guided_oracle(net, x, c), rtol=1e-12, atol=1e-14)
    plain = torch.autograd.grad(net(x.requires_grad_())[range(3), c].sum(), x)[0]
    assert (explanation.R - plain).abs().max() > 0.1 * plain.abs().max()  # not the plain gradient


RELU6 = {  # of both bounds, the gradient is zero above 6
    "ReLU6": nn.ReLU6(),
    "F.relu6": F.relu6,
    "hardtanh": nn.Hardtanh(0.0, 6.0, inplace=True),
    "clamp": lambda x: x.clamp(0, 6),
}


@pytest.mark.parametrize("spelling", RELU6)
def test_guided_backprop_through_relu6(spelling):
    net = TwoConvolutions(RELU6[spelling]).double().eval()
    x, c = 9 * torch.randn(3, 2, 8, 8, dtype=torch.float64), [1, 4, 0]
    explanation = explain(net, x, c, layer="conv2")
    del net.relu
    net.relu = GuidedReLU6.apply
    leaf = x.clone().requires_grad_()
    (R,) = torch.autograd.grad(net(leaf)[range(3), c].sum(), leaf)
    torch.testing.assert_close(explanation.R, R, rtol=1e-12, atol=1e-14)
    assert (explanation.relu_calls, explanation.other_activations) == (3, ())


def compiled_ahead(x):
    from functorch.compile import aot_function, nop  # takes seconds

    with warnings.catch_warnings(action="ignore"):  # it looks at .grad of what has none
        return aot_function(torch.relu, nop)(x)


NAMED = {  # ReLUs that can't be guided, or may not be: the name that is told
    "x - min(x, 0)": (lambda x: x - torch.minimum(x, torch.zeros_like(x)), "minimum"),
    "x - x.clamp(max=0)": (lambda x: x - x.clamp(max=0), "clamp"),
    "x - x.clamp_max(0)": (lambda x: x - x.clamp_max(0), "clamp_max"),
    "(x + abs(x)) / 2": (lambda x: (x + x.abs()) / 2, "abs"),
    "-min(-x, 0)": (lambda x: -torch.min(-x, torch.zeros(()).to(x)), "min"),
    "autograd.Function": (GuidedReLU.apply, "clamp in an autograd.Function"),
    "fused TorchScript": (fused, "TorchScript"),
    "scripted SiLU": (scripted_silu, "silu"),
    "functorch": (compiled_ahead, "aot_function"),
}
UNSEEN = {  # the docs say so
    "largest of a stack": lambda x: torch.stack([x, torch.zeros_like(x)]).amax(0),
    "max of a stack": lambda x: torch.stack([x, torch.zeros_like(x)]).max(0).values,
}


def explained_beside_its_plain_gradient(spelling):
    net = TwoConvolutions(spelling).double().eval()
    x, c = torch.randn(3, 2, 8, 8, dtype=torch.float64), [1, 4, 0]
    explanation = explain(net, x, c, layer="conv2")
    (plain,) = torch.autograd.grad(net(x.requires_grad_())[range(3), c].sum(), x)
    return explanation, plain


@pytest.mark.parametrize("spelling", NAMED)
def test_what_can_not_be_guided_is_named(spelling):
    function, name = NAMED[spelling]
    explanation, plain = explained_beside_its_plain_gradient(function)
    assert (explanation.relu_calls, explanation.other_activations) == (0, (name,))
    torch.testing.assert_close(explanation.R, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("spelling", UNSEEN)
def test_what_the_docs_call_unseen_is_so(spelling):
    explanation, plain = explained_beside_its_plain_gradient(UNSEEN[spelling])
    assert (explanation.relu_calls, explanation.other_activations) == (0, ())
    torch.testing.assert_close(explanation.R, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("spelling", [
    lambda x: x.clamp(min=-0.5), lambda x: x.clamp(max=0.5), lambda x: torch.clamp(x, -1, 1),
    lambda x: F.threshold(x, 0.3, 0.0), lambda x: F.hardtanh(x), lambda x: F.leaky_relu(x, 0.1),
    lambda x: torch.maximum(x, torch.full_like(x, 0.1)), lambda x: x.clamp_min(0.2),
    lambda x: x.masked_fill(x < 0.2, 0), lambda x: x.masked_fill(x < 0, 0.1), lambda x: x * (x < 0),
    lambda x: x * torch.linspace(-1, 1, x.numel()).view(x.shape),
    torch.func.vmap(lambda x: x.clamp(min=0.1)),
])  # fmt: skip
def test_other_bounds_are_no_relus(spelling):
    explanation, plain = explained_beside_its_plain_gradient(spelling)
    assert explanation.relu_calls == 0
    torch.testing.assert_close(explanation.R, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("B", [1, 3])
def test_a_relu_written_into_a_part_of_a_tensor(B):
    def first_four(x):
        x = x * 1.0
        x[:, :4].relu_()  # into x, which goes on
        return x

    net, x = TwoConvolutions(first_four).double().eval(), torch.randn(B, 2, 8, 8).double()
    explanation = explain(net, x, 1, layer="conv2")
    torch.testing.assert_close(explanation.logits, net(x), rtol=1e-12, atol=1e-14)
    guided = GuidedReLU.apply
    net.relu = lambda x: torch.cat([guided(x[:, :4]), x[:, 4:]], 1)
    leaf = x.clone().requires_grad_()
    (R,) = torch.autograd.grad(net(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(explanation.R, R, rtol=1e-12, atol=1e-14)
    assert (explanation.relu_calls, explanation.other_activations) == (3, ())


def test_a_relu_that_is_a_function_of_autograd_is_not_called_guided():
    """Its own way back is not PyTorch's, and what happens in it is hidden."""
    x, c = torch.randn(3, 2, 8, 8).double(), [1, 4, 0]
    explanation = explain(TwoConvolutions(GuidedReLU.apply).double().eval(), x, c)
    assert explanation.other_activations == ("clamp in an autograd.Function",)


class Clamp(torch.autograd.Function):
    """It bears the name of one of PyTorch's nodes, and hands its gradient through."""

    @staticmethod
    def forward(ctx, x):
        return torch.maximum(x, torch.zeros_like(x))

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class ReLU(Clamp):
    pass


@pytest.mark.parametrize("function", [Clamp, ReLU])
def test_a_function_is_not_taken_for_the_node_whose_name_it_bears(function):
    x, net = torch.randn(2, 2, 8, 8).double(), TwoConvolutions(function.apply).double().eval()
    found, leaf = explain(net, x, 1), x.clone().requires_grad_()
    assert (found.relu_calls, found.other_activations) == (0, ("maximum in an autograd.Function",))
    torch.testing.assert_close(found.R, torch.autograd.grad(net(leaf)[:, 1].sum(), leaf)[0])


def test_the_gradient_of_a_relu_that_a_network_takes_itself_is_not_guided():
    class Energy(TwoConvolutions):
        def forward(self, x):
            y = super().forward(x)
            (gradient,) = torch.autograd.grad(y.logsumexp(1).sum(), x, create_graph=True)
            return y + gradient.mean()

    x = torch.randn(2, 2, 8, 8).double()
    relus = explain(TwoConvolutions(F.relu).double().eval(), x, 1).relu_calls
    assert explain(Energy(F.relu).double().eval(), x, 1).relu_calls == relus > 0


@pytest.mark.parametrize(
    ("name", "relus", "others"),
    [("efficientnet_b0", 0, {"silu", "sigmoid"}), ("convnext_tiny", 0, {"gelu"}),
     ("mobilenet_v3_small", 1, {"hardswish", "hardsigmoid"})],
)  # fmt: skip
def test_activations_that_guided_backprop_is_not_defined_for_are_named(name, relus, others):
    explanation = explain(untrained(name), torch.rand(1, 3, 64, 64))
    assert (min(explanation.relu_calls, 1), set(explanation.other_activations)) == (relus, others)


@pytest.mark.parametrize(
    ("activation", "relus", "others"),
    [
        (nn.LogSigmoid(), 0, {"log_sigmoid"}),
        (nn.LSTM(4, 4), 0, {"lstm"}),
        (nn.GRU(4, 4), 0, {"gru", "sigmoid", "tanh"}),  # with what it is made of
        (nn.RNN(4, 4), 0, {"rnn_tanh", "tanh"}),
        (nn.RNN(4, 4, nonlinearity="relu"), 2, {"rnn_relu"}),  # of two pictures
        (nn.GLU(), 0, {"glu"}),
        (lambda x: x + torch.arange(4).clamp(min=0), 0, set()),  # of whole numbers: no activation
    ],
)
def test_activations_that_are_no_relus_are_named(activation, relus, others):
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.activation = nn.Conv2d(1, 4, 3), activation

        def forward(self, x):
            rows = self.activation(self.conv(x).mean(3).transpose(1, 2))
            return (rows[0] if isinstance(rows, tuple) else rows).sum(1)

    explanation = explain(Rows(), torch.rand(2, 1, 8, 8))
    assert (explanation.relu_calls, {*explanation.other_activations}) == (relus, others)


def test_an_activation_that_fails_is_not_noted():
    class Trying(DigitCNN):
        def forward(self, x):
            with pytest.raises(NotImplementedError):
                F.silu(torch.ones(2, dtype=torch.int64))
            return super().forward(x)

    assert explain(Trying(), torch.rand(1, 1, 28, 28)).other_activations == ()


# ------------------------------------------------------------------------------- the ways between


class Beside(DigitCNN):
    """A network of ReLUs, and something beside the ways from its logits to the pixels."""

    def __init__(self, beside):
        super().__init__()
        self.table, self.bias, self.beside = nn.Linear(2, 8), nn.Linear(8, 50), beside

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return self.fc2(F.relu(self.fc1(x.flatten(1)) + self.beside(self, x)))


def of_a_table(activation):
    """As Swin v2 makes the biases of its attention from a table of positions."""
    return lambda net, x: net.bias(activation(net.table(torch.ones(2))))


def into_nowhere(activation):
    """As a head that only trains."""

    def beside(net, x):
        activation(x).sum()
        return 0

    return beside


def without_a_graph(activation):
    def beside(net, x):
        with torch.no_grad():
            return activation(x).mean()

    return beside


@pytest.mark.parametrize("activation", [F.relu, F.silu, lambda x: x * (x > 0), torch.abs])
@pytest.mark.parametrize("where", [of_a_table, into_nowhere, without_a_graph])
def test_what_lies_beside_the_ways_is_neither_guided_nor_named(where, activation):
    net, x = Beside(where(activation)), torch.rand(2, 1, 28, 28)
    explanation = explain(net, x, 3)
    assert (explanation.relu_calls, explanation.other_activations) == (3, ())
    assert explain(net, x, 3, guided=False).relu_calls == 0  # no way to the pixels is looked at


def test_a_relu_that_makes_a_table_of_positions_does_not_make_a_network_partly_guided():
    explanation = explain(untrained("swin_v2_t"), torch.rand(1, 3, 64, 64))
    assert (explanation.relu_calls, explanation.other_activations) == (0, ("gelu",))


def test_no_hook_is_left_in_a_graph_that_is_not_of_the_forward_pass():
    """A cache of the caller's may have one, as that of a bias."""
    net = Beside(lambda net, x: net.cache[0])
    leaf = torch.randn(1, 50, requires_grad=True)
    net.cache = [F.relu(leaf)]
    explanation = explain(net, torch.rand(2, 1, 28, 28), 3)
    assert explanation.relu_calls == 3
    (gradient,) = torch.autograd.grad(-net.cache[0].sum(), leaf)
    assert torch.equal(gradient, -(leaf > 0).float())


def test_what_a_score_is_made_with_is_not_the_networks():
    net, x = DigitCNN(), torch.rand(2, 1, 28, 28)
    expected = explain(net, x, lambda logits: -logits[:, 3])
    for score in (lambda logits: -F.relu(logits[:, 3] + 9),
                  lambda logits: -F.leaky_relu(logits[:, 3] + 9)):
        explanation = explain(net, x, score)
        torch.testing.assert_close(explanation.R, expected.R)
        assert (explanation.relu_calls, explanation.other_activations) == (3, ())
    assert expected.R.any()


class InPlace(DigitCNN):
    """Activations in place, into a part of a tensor that goes on."""

    def forward(self, x):
        x = F.max_pool2d(self.conv1(x), 2)
        F.silu(x[:, :4], inplace=True)
        x = self.conv2(x)
        return self.fc2(F.relu(self.fc1(F.max_pool2d(x, 2).flatten(1))))


def test_an_activation_in_a_part_of_a_tensor_is_named():
    explanation = explain(InPlace(), torch.rand(2, 1, 28, 28))
    assert (explanation.relu_calls, explanation.other_activations) == (1, ("silu",))


@pytest.mark.parametrize("spelling", [
    lambda x: x * (x > 0), lambda x: x * (x > 0).float(), lambda x: (x >= 0).to(x) * x,
    lambda x: torch.where(x > 0, x, 0.0), lambda x: x.masked_fill(x < 0, 0),
    lambda x: (x > 0).double().type_as(x) * x, lambda x: x * (x.detach() > 0),
    lambda x: x * ~(x < 0), lambda x: x * torch.logical_not(x < 0), lambda x: x * (x.data > 0),
])  # fmt: skip
def test_a_mask_by_sign_is_a_relu_also_of_what_has_no_negative_value(spelling):
    """Of one picture, and of a batch in which another one has some."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(4, 3), Spelt(spelling), nn.Linear(3, 5)).double()  # fmt: skip
    x = torch.rand(2, 1, 8, 8).double()
    x[1] *= 99
    with torch.no_grad():
        net[4].weight.copy_(-torch.rand(3, 4))
        net[4].bias.fill_(2)
        assert net[:5](x[:1]).min() > 0 > net[:5](x).min()
    both, alone = explain(net, x, 1), explain(net, x[:1], 1)
    assert both.relu_calls == alone.relu_calls == 2
    torch.testing.assert_close(both.R[:1], alone.R, rtol=1e-12, atol=1e-14)


class Spelt(nn.Module):
    def __init__(self, spelling):
        super().__init__()
        self.forward = spelling


def test_ones_that_are_no_sign_make_no_relu():
    """Of a mask that hides nothing it can't be told what it is."""
    net = TwoConvolutions(lambda x: x.abs() * torch.ones_like(x, requires_grad=False))
    found = explain(net.eval(), torch.randn(2, 2, 8, 8), 1, "conv2")
    assert (found.relu_calls, found.other_activations) == (0, ("abs",))


class Maxout(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        larger = torch.maximum(F.relu(self.a(x) - 4), self.b(x))
        return self.fc(self.c(larger).mean((2, 3)))


def test_the_larger_of_two_branches_is_no_relu_where_one_is_zero_by_chance():
    net, x = Maxout().double(), torch.randn(2, 3, 16, 16).double()
    x[1] *= 9
    assert not F.relu(net.a(x[:1]) - 4).any()
    assert F.relu(net.a(x) - 4).any()
    both, alone = explain(net, x, 1, "c"), explain(net, x[:1], 1, "c")
    assert both.relu_calls == alone.relu_calls == 1
    torch.testing.assert_close(both.R[:1], alone.R, rtol=1e-12, atol=1e-14)


def test_a_mask_on_complex_numbers_is_no_relu():
    class Filter(nn.Module):
        def forward(self, x):
            z = torch.fft.rfft2(x)
            return torch.fft.irfft2(z * (z.abs() > 1), s=x.shape[2:])

    net = nn.Sequential(nn.Conv2d(3, 8, 3), Filter(), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                        nn.Flatten(), nn.Linear(8, 5))  # fmt: skip
    assert explain(net, torch.randn(2, 3, 16, 16), 1).relu_calls == 1


@pytest.mark.parametrize("spelling", [lambda x: x * (x > 0), lambda x: torch.where(x > 0, x, 0.0),
                                      lambda x: x.masked_fill(x < 0, 0)])  # fmt: skip
@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_a_picture_that_is_no_number_changes_nothing_for_the_others(spelling, odd):
    net, x = TwoConvolutions(spelling).double().eval(), torch.randn(2, 2, 8, 8).double()
    expected = explain(net, x, 1, "conv2")
    x[1, 0, 2, 2] = odd
    found = explain(net, x, 1, "conv2")
    assert found.relu_calls == expected.relu_calls
    torch.testing.assert_close(found.R[0], expected.R[0], rtol=1e-12, atol=1e-14)


def test_a_mask_that_is_guided_is_not_named_as_well():
    net = TwoConvolutions(lambda x: torch.where(x > 0, x, 0.0)).eval()
    assert explain(net, torch.randn(2, 2, 8, 8), 1, "conv2").other_activations == ()


def test_a_mask_within_vmap():
    each = torch.func.vmap(lambda x: x * (x > 0))
    net, x = TwoConvolutions(each).eval(), torch.randn(2, 2, 8, 8)
    plain = TwoConvolutions(nn.ReLU()).eval()
    plain.load_state_dict(net.state_dict())
    torch.testing.assert_close(explain(net, x, 1, "conv2").L_c, explain(plain, x, 1, "conv2").L_c)
