"""What a network's ending means: each task on networks whose maps are known by hand."""

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seenby import InputError, explain, explain_many
from seenby.core.recorder import ForwardRecorder
from seenby.core.tasks import read_ending


class Body(nn.Module):
    """Two convolutions; the head reads the means of the last maps, or each cell for itself."""

    def __init__(self, outputs=5, ending=lambda y: y):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3)
        self.head, self.ending = nn.Linear(6, outputs), ending

    def forward(self, x):
        A = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.ending(self.head(A.mean((2, 3))))


def network(outputs=5, ending=lambda y: y, seed=0):
    torch.manual_seed(seed)
    return Body(outputs, ending).double().eval()


def pictures(B=3):
    return torch.rand(B, 1, 12, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def maps_by_hand(net, x, weights):
    """Of a score w . mean(ReLU(conv2)): L_c (B, u, v), and R by ReLUs that are guided by hand.

    conv2 is the layer; the gradient at its output is w / (u v) where it is above zero.
    """
    with torch.no_grad():
        first = net.conv1(x)
        A = net.conv2(F.relu(first))
        u, v = A.shape[2:]
        g = (weights / (u * v))[None, :, None, None] * (A > 0)
        L_c = F.relu((g.mean((2, 3), keepdim=True) * A).sum(1))
        g = F.conv_transpose2d(g.clamp(min=0), net.conv2.weight)
        R = F.conv_transpose2d((g * (first > 0)).clamp(min=0), net.conv1.weight)
    return L_c, R


def assert_maps(explanation, L_c, R, factor=1.0):
    torch.testing.assert_close(explanation.L_c, factor * L_c, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(explanation.R, factor * R, rtol=1e-12, atol=1e-15)
    assert R.any()


@pytest.mark.parametrize("ending", [
    torch.sigmoid, nn.Sigmoid(), F.logsigmoid, torch.special.expit, lambda y: y.sigmoid(),
    lambda y: torch.sigmoid(y).view(-1, 5), lambda y: {"logits": torch.sigmoid(y)},
    lambda y: y.sigmoid().clamp(1e-6, 1 - 1e-6), lambda y: y.sigmoid().to(y).clone().contiguous(),
    lambda y: torch.cat([y, -y], 1).sigmoid()[:, :5],
])  # fmt: skip
def test_a_sigmoid_over_several_labels_is_undone(ending):
    x, plain, ended = pictures(), network(), network(ending=ending)
    for net in (plain, ended):
        net.head.weight.data *= 1e3  # so sure that float64's sigmoids are 0 and 1
    found, expected = explain(ended, x, 3, "conv2"), explain(plain, x, 3, "conv2")
    assert_maps(found, *maps_by_hand(plain, x, plain.head.weight[3]))
    assert torch.equal(found.L_c, expected.L_c)
    assert (found.task, expected.task) == ("multilabel", "classes")
    assert found.final_activation == "sigmoid"
    torch.testing.assert_close(found.probabilities, plain(x).sigmoid())
    assert torch.equal(found.predicted, plain(x) > 0)
    assert not found.may_be_probability.any()


@pytest.mark.parametrize("ending", [
    lambda y: y.softmax(1), lambda y: y.log_softmax(-1), nn.Softmax(1), nn.LogSoftmax(dim=1),
    lambda y: F.softmax(y, dim=1).squeeze(), lambda y: (y.softmax(1), "more"),
    lambda y: y.softmax(1).clip(1e-9, 1), lambda y: y.softmax(1).float().double(),
])  # fmt: skip
def test_a_softmax_is_undone(ending):
    x, plain, ended = pictures(), network(), network(ending=ending)
    found = explain(ended, x, 3, "conv2")
    assert_maps(found, *maps_by_hand(plain, x, plain.head.weight[3]))
    assert (found.task, found.final_activation) == ("classes", "softmax")
    torch.testing.assert_close(found.probabilities, plain(x).softmax(1))


@pytest.mark.parametrize("ending", [
    lambda y: y, torch.sigmoid, lambda y: y[:, 0], lambda y: torch.sigmoid(y).squeeze(1),
    lambda y: y.squeeze(), lambda y: {"out": y[:, 0]},
])  # fmt: skip
def test_one_logit_speaks_for_class_1_and_against_class_0(ending):
    x = pictures()
    net = network(1, ending)
    w = net.head.weight[0].detach()
    z = network(1)(x).detach()
    zero, one = explain_many(net, x, [0, 1], "conv2")
    assert_maps(one, *maps_by_hand(net, x, w))
    assert_maps(zero, *maps_by_hand(net, x, -w))
    assert (one.task, one.logits.shape) == ("binary", (3, 1))
    torch.testing.assert_close(one.probabilities, torch.cat([(-z).sigmoid(), z.sigmoid()], 1))
    assert torch.equal(one.predicted, torch.cat([z <= 0, z > 0], 1))
    assert torch.equal(explain(net, x).target, (z[:, 0] > 0).long())
    # A network of two classes with weights (-w, w) / 2 says the same, with half the gradient.
    two = network(2)
    two.conv1, two.conv2 = net.conv1, net.conv2
    two.head.weight.data = torch.stack([-w, w]) / 2
    two.head.bias.data = torch.stack([-net.head.bias[0], net.head.bias[0]]).detach() / 2
    half = explain(two, x, 1, "conv2")
    assert_maps(half, *maps_by_hand(net, x, w), factor=0.5)
    torch.testing.assert_close(half.probabilities, one.probabilities)


@pytest.mark.parametrize("ending", [
    lambda y: y.flatten(1), lambda y: y[..., None].flatten(1), lambda y: torch.reshape(y, (-1, 5)),
    lambda y: y.view(-1, 5), lambda y: y[:, None].squeeze(1),
])  # fmt: skip
def test_a_change_of_shape_is_no_softmax(ending):
    found = explain(network(ending=ending), pictures(), 3, "conv2")
    assert (found.task, found.final_activation) == ("classes", "")


def test_one_logit_of_one_picture_in_no_axis_at_all():
    net = network(1, torch.squeeze)
    assert net(pictures(1)).shape == ()
    assert explain(net, pictures(1)).logits.shape == (1, 1)


def test_a_number_moves_up_or_down():
    net, x = network(3), pictures()
    w = net.head.weight[2].detach()
    up, down, plain = explain_many(net, x, ["up:2", "down:2", 2], "conv2", task="regression")
    assert_maps(up, *maps_by_hand(net, x, w))
    assert_maps(down, *maps_by_hand(net, x, -w))
    assert torch.equal(plain.R, up.R)
    assert (up.target_name, down.target_name, up.target.tolist()) == ("up", "down", [2, 2, 2])
    assert up.probabilities is None
    assert up.predicted is None
    assert explain(net, x, task="regression").target.tolist() == [0, 0, 0]
    for wrong in ("up", "up:x", "sideways:1"):
        with pytest.raises(InputError, match="regression: give up:0 or down:0, or another output"):
            explain(net, x, wrong, task="regression")
    with pytest.raises(InputError, match="class 3 was given; the network has classes 0 to 2"):
        explain(net, x, "up:3", task="regression")
    with pytest.raises(InputError, match="the task is regression, which ranks no classes"):
        explain_many(net, x, ["top:2"], task="regression")


class Dense(Body):
    """A class for each pixel: the head reads each cell, and its answer is enlarged."""

    def forward(self, x):
        A = F.relu(self.conv2(F.relu(self.conv1(x))))
        y = F.linear(A.permute(0, 2, 3, 1), self.head.weight, self.head.bias).permute(0, 3, 1, 2)
        return self.ending(F.interpolate(y, x.shape[2:], mode="nearest"))


def test_a_softmax_over_the_columns_of_a_picture_is_none_over_classes():
    found = explain(Dense(4, lambda y: y.softmax(-1)).double(), pictures(), 2, "conv2")
    assert (found.task, found.final_activation) == ("segmentation", "")


def test_the_background_of_a_segmentation_comes_last():
    wins = torch.tensor([[0, 0, 0, 0, 0, 2, 2, 1], [0, 0, 0, 0, 0, 0, 0, 0]])
    y = F.one_hot(wins, 3).movedim(2, 1)[:, :, None].float()  # (B, classes, 1, 8)
    ending = read_ending(y, 2)
    assert ending.predicted.tolist() == [[False, False, True], [True, False, False]]
    assert ending.probabilities.tolist() == [[5 / 8, 1 / 8, 2 / 8], [1, 0, 0]]


@pytest.mark.parametrize("ending", [lambda y: y, lambda y: {"out": y.softmax(1), "aux": y}])
def test_a_segmentation_is_explained_where_the_class_wins(ending):
    torch.manual_seed(0)
    net, x = Dense(4, ending).double(), pictures()
    net.head.bias.data += torch.tensor([0.0, 0.0, 0.1, 0.1])
    y = Dense.forward(SimpleNamespace(**net._modules, ending=lambda y: y), x)
    leaf, by_hand = x.clone().requires_grad_(), torch.zeros(3, 4, dtype=torch.float64)
    for b in range(3):
        for c in range(4):
            wins = y[b].argmax(0) == c
            by_hand[b, c] = wins.double().mean()
    c = int(by_hand.sum(0).argmax())
    found = explain(net, leaf, c, "conv2")
    assert (found.task, found.logits.shape) == ("segmentation", (3, 4, 12, 16))
    torch.testing.assert_close(found.probabilities, by_hand)
    # The sum written out: at conv2's output it is the head's row where the class wins.
    A = net.conv2(F.relu(net.conv1(x))).detach().requires_grad_()
    cells = F.linear(F.relu(A).permute(0, 2, 3, 1), net.head.weight, net.head.bias)
    full = F.interpolate(cells.permute(0, 3, 1, 2), x.shape[2:], mode="nearest")
    y_c = sum(full[b, c][y[b].argmax(0) == c].sum() for b in range(3))
    (g,) = torch.autograd.grad(y_c, A)
    L_c = F.relu((g.mean((2, 3), keepdim=True) * A.detach()).sum(1))
    assert L_c.any()
    torch.testing.assert_close(found.L_c, L_c, rtol=1e-12, atol=1e-15)


def test_a_mask_is_a_segmentation_of_two_classes():
    torch.manual_seed(0)
    net, x = Dense(1, torch.sigmoid).double(), pictures()
    z = net(x)
    zero, one = explain_many(net, x, [0, 1], "conv2")
    share = (z > 0.5).double().mean((1, 2, 3))
    torch.testing.assert_close(one.probabilities, torch.stack([1 - share, share], 1))
    assert one.task == "segmentation"
    assert zero.L_c.any() or one.L_c.any()


def test_an_embedding_is_compared_with_another_pictures():
    net, x = network(), pictures()
    like = net(pictures(5)[4:]).detach()[0]
    A = net.conv2(F.relu(net.conv1(x))).detach().requires_grad_()
    y = net.head(F.relu(A).mean((2, 3)))
    cosine = (y * like).sum(1) / (y.norm(dim=1) * like.norm())
    (g,) = torch.autograd.grad(cosine.sum(), A)
    L_c = F.relu((g.mean((2, 3), keepdim=True) * A.detach()).sum(1))
    for target in (like, like[None], like.expand(3, 5)):
        found = explain(net, x, target, "conv2", task="embedding")
        torch.testing.assert_close(found.L_c, L_c, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(found.probabilities, cosine.detach()[:, None])
        assert (found.target, found.target_name) == (None, "like reference")
    for wrong in (None, 3, like[:2]):
        with pytest.raises(InputError, match=r"embedding, whose target .*; give --like"):
            explain(net, x, wrong, task="embedding")


def test_the_same_logits_are_another_task_where_it_is_named():
    net, x = network(), pictures()
    found = explain(net, x, task="multilabel")
    torch.testing.assert_close(found.probabilities, net(x).sigmoid())
    sure = explain(network(ending=torch.sigmoid), x, task="classes")
    torch.testing.assert_close(sure.probabilities, net(x).softmax(1))
    with pytest.raises(InputError, match=r"task binary was given, which takes \(B, 1\)"):
        explain(net, x, task="binary")
    with pytest.raises(InputError, match="task 'magic' was given; give one of classes, "):
        explain(net, x, task="magic")


def by_hand_softmax(y):
    return y.exp() / y.exp().sum(1, keepdim=True)


def test_probabilities_without_a_softmax_are_said_to_be_such():
    x = pictures()
    found = explain(network(ending=by_hand_softmax), x)
    assert found.may_be_probability.tolist() == [True] * 3
    torch.testing.assert_close(found.probabilities, network()(x).softmax(1))  # not once more
    found = explain(network(ending=lambda y: 1 / (1 + (-y).exp())), x)
    assert found.may_be_probability.tolist() == [True] * 3
    assert not explain(network(), x).may_be_probability.any()
    one = explain(network(1, lambda y: 1 / (1 + (-y).exp())), x)
    assert one.may_be_probability.all()
    numbers = explain(network(ending=by_hand_softmax), x, task="regression")
    assert not numbers.may_be_probability.any()


def test_logarithms_of_probabilities_that_nothing_tells_are_said_to_be_such():
    x = pictures()
    for ending in (lambda y: y - y.logsumexp(1, keepdim=True),
                   lambda y: torch.log(y.softmax(1) + 1e-8)):
        assert explain(network(5, ending), x).may_be_probability.all()
    rows = torch.tensor([[-1.0, -2.0, -3.0], [0.0, 0.0, 0.0], [-50.0, 0.0, -40.0]])
    assert read_ending(rows, 3).may_be_probability.tolist() == [False, False, True]


def test_one_row_for_several_pictures_is_not_one_number_each():
    net, x = network(3, lambda y: y.mean(0, keepdim=True)), pictures()
    assert net(x).shape == (1, len(x))
    with pytest.raises(InputError, match=r"gives \(1, 3\) of float\d+, and it is not clear"):
        explain(net, x)


def test_what_comes_out_in_an_object_keeps_no_graph():
    found = explain(network(5, lambda y: SimpleNamespace(scores=y, size=3)), pictures(),
                    lambda output: output.scores[:, 0])
    assert not found.logits.scores.requires_grad
    assert found.logits.size == 3


def test_a_segmentation_in_half_precision_has_scores_that_it_can_hold():
    y = torch.full((1, 2, 300, 300), 3.0).half()
    y[:, 1] += 1
    assert read_ending(y, 1).scores.tolist() == [[0, 360_000]]


def test_two_logits_within_0_and_1_are_probabilities_if_they_sum_to_1():
    rows = torch.tensor([[0.25, 0.75], [0.25, 0.5], [-0.25, 1.25]])
    assert read_ending(rows, 3).may_be_probability.tolist() == [True, False, False]


Logits = type("Logits", (), {})


@pytest.mark.parametrize("output", [
    lambda y: y, lambda y: (y, torch.zeros(3, 2, 4, 4)), lambda y: [y], lambda y: {"logits": y},
    lambda y: OrderedDict(aux=y.flip(0), out=y), lambda y: {"scores": y, "ids": torch.zeros(3)},
    lambda y: SimpleNamespace(logits=y, hidden=[y]), lambda y: y[..., None, None],
])  # fmt: skip
def test_the_logits_are_found_in_what_a_network_returns(output):
    y = torch.randn(3, 5)
    found = read_ending(output(y), 3)
    assert torch.equal(found.y, y)
    assert found.task == "classes"


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (lambda y: (y, y), r"gives tuple of \(3, 5\) of float64, \(3, 5\) of float64"),
        (lambda y: {"boxes": y, "scores": y}, "gives dict of boxes, scores, and it is not"),
        (lambda y: [{"boxes": y}] * 3, "gives list of dict of boxes, dict of boxes, dict of"),
        (lambda y: (), "gives tuple of nothing, and it"),
        (lambda y: y.long(), r"gives \(3, 5\) of int64, and it"),
        (lambda y: y[None], r"gives \(1, 3, 5\) of float64, and it"),
        (lambda y: "cat", "gives str, and it"),
    ],
)
def test_an_output_that_is_not_plain_is_named_with_the_cure(output, words):
    net = network(ending=output)
    with pytest.raises(InputError, match=f"the network {words}.*; wrap it in FILE.py in a "):
        explain(net, pictures(), 2, "conv2")
    with pytest.raises(InputError, match=r"the network gives .*; wrap it in FILE.py in a "):
        explain(net, pictures())


@pytest.mark.parametrize("ending", [
    lambda y: y.sigmoid()[:, 0], lambda y: y.sigmoid().squeeze(1), lambda y: y.sigmoid()[..., None],
    lambda y: torch.sigmoid(y).select(1, 0), lambda y: y.sigmoid().clip(1e-6, 1 - 1e-6)[:, 0],
])  # fmt: skip
def test_a_sigmoid_of_one_logit_is_undone_also_where_it_is_picked_out(ending):
    x, plain, ended = pictures(), network(1), network(1, ending)
    plain.head.bias.data -= plain(x).mean()
    ended.load_state_dict(plain.state_dict())
    found, expected = explain(ended, x), explain(plain, x)
    assert (found.task, found.final_activation) == ("binary", "sigmoid")
    for name in ("logits", "probabilities", "predicted", "target", "L_c", "R"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert not expected.predicted[:, 1].all()  # as would be read of probabilities


def test_one_class_of_a_softmax_is_not_undone():
    """Its logit alone does not tell it."""
    found = explain(network(2, ending=lambda y: y.softmax(1)[:, 1]), pictures())
    assert (found.final_activation, found.task) == ("", "binary")
    assert found.may_be_probability.all()


def test_logits_that_are_all_zero_are_not_said_to_look_like_probabilities():
    assert not read_ending(torch.zeros(3, 5), 3).may_be_probability.any()


def test_an_output_changed_behind_its_softmax_is_taken_as_it_is():
    x = torch.rand(3, 5)
    with torch.no_grad(), ForwardRecorder(x, {}):
        y = x.softmax(1)
        assert read_ending(y, 3).final_activation == "softmax"
        y.mul_(2)
    assert read_ending(y, 3).final_activation == ""
    assert read_ending(y, 3).y is y
    in_place = explain(network(ending=lambda y: y.sigmoid_()), pictures())
    assert (in_place.final_activation, in_place.may_be_probability.all().item()) == ("", True)


@pytest.mark.parametrize("C", [1, 4])
def test_a_segmentation_that_gives_probabilities_is_told(C):
    class Enlarged(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, C, 1)

        def forward(self, x):
            y = self.b(F.relu(self.a(x)))
            return F.interpolate(y.sigmoid() if C == 1 else y.softmax(1), x.shape[2:])

    found = explain(Enlarged(), torch.randn(2, 3, 16, 16))
    assert (found.task, found.final_activation) == ("segmentation", "")
    assert found.may_be_probability.tolist() == [True, True]


def test_the_logarithm_of_a_softmax_is_undone():
    net, x = network(), pictures()
    found = explain(network(ending=lambda y: y.softmax(1).log()), x)
    assert found.final_activation == "softmax"
    torch.testing.assert_close(found.logits, net(x).detach())


class Passing(torch.Tensor):
    """As fastai's pictures do, it hands its attributes on to what is made of it."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        out = super().__torch_function__(func, types, args, kwargs or {})
        given = next((each for each in args if isinstance(each, Passing)), None)
        if isinstance(out, Passing) and given is not None and out is not given:
            for name, value in vars(given).items():
                vars(out).setdefault(name, value)
        return out


def test_a_sigmoid_in_the_middle_is_no_ending_for_pictures_that_pass_attributes_on():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return 5 * self.head(self.conv(x).relu().mean((2, 3))).sigmoid()

    net, x = Scaled(), torch.rand(2, 3, 9, 9)
    plain, passed = explain(net, x, 1), explain(net, x.as_subclass(Passing), 1)
    assert (passed.task, passed.final_activation) == (plain.task, plain.final_activation)
    assert torch.equal(passed.R, plain.R)
    assert type(passed.R) is torch.Tensor
