"""What is explained: classes, the most probable ones, and any score that a function makes."""

import pytest
import torch
import torch.nn.functional as F
from oracles import DigitCNN
from test_tasks import Body, assert_maps, maps_by_hand, network, pictures
from torch import nn

from seenby import InputError, explain, explain_many
from seenby.core.targets import embedding_of


def test_a_function_of_the_output_is_explained_as_the_class_that_it_picks():
    net, x = network(), pictures()
    expected = explain(net, x, 3)
    found = explain(net, x, lambda y: y[:, 3])
    for name in ("alpha", "L_c", "heatmap", "R", "guided_cam", "logits", "probabilities"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert (found.target, found.target_name, found.layer) == (None, "<lambda>", expected.layer)
    assert [each.L_c.shape for each in found] == [(1, 8, 12)] * 3


def test_a_function_sees_the_raw_output_whatever_it_is():
    x, plain = pictures(), network()
    net = network(ending=lambda y: [{"boxes": row.outer(row), "scores": row} for row in y])

    def difference(found):
        return torch.stack([each["scores"][3] - each["scores"][1] for each in found])

    found = explain(net, x, difference, "conv2")
    assert_maps(found, *maps_by_hand(plain, x, plain.head.weight[3] - plain.head.weight[1]))
    assert (found.task, found.probabilities, found.target_name) == ("", None, "difference")
    torch.testing.assert_close(found.logits[0]["scores"], plain(x)[0].detach())
    assert not found.logits[0]["boxes"].requires_grad
    assert explain(net, x, difference).layer == "conv2"
    with pytest.raises(InputError, match="gives list of dict of boxes, scores"):
        explain_many(net, x, [difference, 3], "conv2")


def test_a_function_that_knows_the_pictures():
    """As a loss knows their labels; also while the layer is searched."""
    net, x, labels = network(), pictures(), torch.tensor([4, 0, 2])
    found = explain(net, x, lambda y: -F.cross_entropy(y, labels, reduction="none"))
    p = net(x).softmax(1).detach()
    weights = (torch.eye(5).to(p)[labels] - p) @ net.head.weight.detach()
    assert found.layer == "conv2"
    for b, picture in enumerate(found):
        L_c, R = maps_by_hand(net, x[b : b + 1], weights[b])
        torch.testing.assert_close(picture.L_c, L_c, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(picture.R, R, rtol=1e-12, atol=1e-15)
    assert found.L_c.flatten(1).any(1).tolist() == [True] * 3
    assert found.R.any()


@pytest.mark.parametrize(
    "ending",
    [
        lambda y: y.T[:, :, None].expand(5, 3, 4),  # (T, B, C), as what reads lines of text gives
        lambda y: torch.cat([y, y])[:, :4],
        lambda y: y.flatten(),
        lambda y: (y, y.argmax(1), y),
    ],
)
def test_what_is_not_one_row_a_picture_is_left_whole(ending):
    net, x = network(ending=ending), pictures()
    whole = explain(net, x, score_in, "conv2")
    expected = explain(network(), x, 3, "conv2")
    assert whole.task == ""
    assert whole.is_finite.tolist() == [True] * 3
    for part, alone in zip(whole, expected, strict=True):
        assert torch.equal(part.L_c, alone.L_c)
        assert part.is_finite.tolist() == [True]
        assert str(part.logits) == str(whole.logits)


def score_in(output):
    """That of class 3, from each of these endings."""
    if isinstance(output, tuple):
        return output[0][:, 3]
    if output.ndim == 3:
        return output[3, :, 0]
    return output.view(3, 5)[:, 3] if output.ndim == 1 else output[:3, 3]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda y: y, r"<lambda> gave \(3, 5\) of float64; return a number .* a tensor \(3,\)"),
        (lambda y: y.sum(), r"<lambda> gave \(\) of float64; return a number"),
        (lambda y: 3.0, "<lambda> gave float; return a number"),
        (lambda y: y.argmax(1), r"<lambda> gave \(3,\) of int64; return a number"),
        (lambda y: y[:, 1].detach(), "numbers that have no gradient; compute them from the output"),
    ],
)
def test_a_function_that_gives_no_scores(function, words):
    with pytest.raises(InputError, match=words):
        explain(network(), pictures(), function, "conv2")


def test_it_is_still_one_forward_pass():
    net, calls = network(), []
    net.register_forward_hook(lambda *_: calls.append(1))
    explain_many(net, pictures(), [lambda y: y[:, 0], "top:2", 4], "conv2")
    assert len(calls) == 1


def test_the_three_most_probable():
    net, x = network(), pictures()
    found = explain_many(net, x, ["top:3", None], "conv2")
    ranks = net(x).argsort(1, descending=True)
    assert [each.target.tolist() for each in found] == [*ranks.T[:3].tolist(), ranks[:, 0].tolist()]
    for each in found:
        for b, picture in enumerate(each):
            alone = explain(net, x[b : b + 1], int(each.target[b]), "conv2")
            torch.testing.assert_close(picture.L_c, alone.L_c, rtol=1e-12, atol=1e-15)
            torch.testing.assert_close(picture.R, alone.R, rtol=1e-12, atol=1e-15)
    for too_many in ("top:6", "top:25"):
        words = "top:6 or more was given; the network has 5 classes: give top:5"
        with pytest.raises(InputError, match=words):
            explain_many(net, x, [too_many], "conv2")
    with pytest.raises(InputError, match="target 'top:0' was given; the task is classes: give "):
        explain(net, x, "top:0", "conv2")
    for no_list in (3, None, "top:2"):
        with pytest.raises(InputError, match=r"targets .* was given; give a list of targets"):
            explain_many(net, x, no_list, "conv2")
    with pytest.raises(InputError, match="layer 0 was given; give a module of the network, or its"):
        explain(net, x, 3, 0)
    assert explain_many(net, x, [], "conv2") == explain_many(net, x, []) == []
    with pytest.raises(InputError, match="top:2 was given, which is 2 targets; give it to"):
        explain(net, x, "top:2", "conv2")
    one = explain_many(network(1), x, ["top:2"], "conv2")
    assert (one[0].target + one[1].target).tolist() == [1, 1, 1]


class WithDate(Body):
    """Takes a date with each picture, and a switch."""

    def forward(self, x, date, *, scale=1.0):
        return super().forward(x) * scale + date[:, None]


def test_a_network_that_takes_more_than_pictures():
    torch.manual_seed(0)
    net, x, plain = WithDate().double(), pictures(), network()
    date = torch.arange(3.0).double()
    found = explain(net, x, 3, args=(date,), kwargs={"scale": 2.0})
    assert_maps(found, *maps_by_hand(plain, x, 2 * plain.head.weight[3]))
    torch.testing.assert_close(found.logits, 2 * plain(x) + date[:, None])
    named = explain(net, x, 3, kwargs={"date": date, "scale": 2.0})
    assert torch.equal(named.R, found.R)
    for given in ({"args": date}, {"args": None}, {"kwargs": [("date", date)]}):
        with pytest.raises(InputError, match=r"were given; give args=\(mask,\), say, or kwargs="):
            explain(net, x, 3, **given)
    for given in ({}, {"kwargs": {"dates": date}}, {"args": (date, date)}):
        for layer in (None, "conv2"):
            with pytest.raises(InputError, match=r"takes more than pictures \(.*; give the r"):
                explain(net, x, layer=layer, **given)


def test_a_type_error_within_the_network_is_not_called_a_missing_input():
    with pytest.raises(TypeError, match="can only concatenate str"):
        explain(network(ending=lambda y: "a" + 3), pictures(), layer="conv2")


def test_a_missing_input_is_not_called_a_wrong_size(tmp_path):
    from seenby import load_network

    (tmp_path / "own.py").write_text(
        "import torch.nn as nn\n"
        "class Net(nn.Module):\n"
        "    def forward(self, x, meta):\n"
        "        return x\n"
    )
    words = r"takes more than pictures \(missing a required argument: 'meta'\); .* in FILE.py wrap"
    with pytest.raises(InputError, match=words):
        load_network(f"{tmp_path / 'own.py'}:Net", size=(8, 8))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large",
     pytest.param("fcn_resnet50", marks=pytest.mark.slow)],
)  # fmt: skip
def test_torchvisions_segmentations_equal_the_sum_written_out(name):
    from seenby.machine import import_torchvision

    models = import_torchvision().models.segmentation
    net = getattr(models, name)(weights=None, weights_backbone=None, num_classes=5).double().eval()
    x = torch.rand(2, 3, 65, 97, dtype=torch.float64)
    c = int(explain(net, x, guided=False).target[0])
    found = explain(net, x, c, guided=False)
    assert found.task == "segmentation"
    A = []

    def cut(_module, _args, output):
        A.append(output.detach().requires_grad_())
        return A[0].clone()  # what follows may work in place

    with net.get_submodule(found.layer).register_forward_hook(cut):
        y = net(x)["out"]
    (g,) = torch.autograd.grad(y[:, c][y.argmax(1) == c].sum(), A[0], allow_unused=True)
    alpha = g.mean((2, 3))
    torch.testing.assert_close(found.alpha, alpha, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(found.probabilities[:, c], (y.argmax(1) == c).double().mean((1, 2)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_detectors_boxes_by_a_function(monkeypatch):
    from seenby.machine import import_torchvision

    boxes = import_torchvision().ops.boxes
    net = import_torchvision().models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64,
        box_score_thresh=0.0,
    ).eval()  # fmt: skip
    x = torch.rand(1, 3, 64, 64)
    # Where torchvision's own operators are missing, all boxes stay, the surest first.
    monkeypatch.setattr(boxes, "batched_nms", lambda _, scores, *more: scores.argsort().flip(0))

    def first_score(found):
        return torch.stack([each["scores"][0] for each in found])

    with pytest.raises(InputError, match="gives list of dict of boxes, labels, scores, and it"):
        explain(net, x)
    found = explain(net, x, first_score, "backbone.body.16")
    assert (found.target_name, found.task) == ("first_score", "")
    assert found.R.any()
    assert found.alpha.any()




def test_a_direction_is_for_a_regression():
    words = "target 'up:0' was given; the task is classes: give classes by their numbers, or top:3"
    with pytest.raises(InputError, match=words):
        explain(DigitCNN(), torch.rand(1, 1, 28, 28), "up:0")


def test_an_embedding_leaves_the_picture_as_it_is():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, x):
            return self.conv(x.mul_(2)).mean((2, 3))

    net, x = InPlace(), torch.rand(1, 1, 8, 8)
    before = x.clone()
    found = embedding_of(net, x)
    assert torch.equal(x, before)
    assert torch.equal(found, net(x.clone())[0].detach())
