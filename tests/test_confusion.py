"""The trial of the verdict: its situations are what they are called, and its counts are right."""

import confusion
import pytest
import torch
from confusion import as_if
from subjects import Subject
from torch import nn

from seenby import explain
from seenby.scores import MIRRORED, MOVED, OWN
from seenby.trials import tile_masses


@pytest.fixture(scope="module")
def subject(network, digits):
    x = network.tensor([digit.image for digit in digits])
    return Subject("course", network.module, x, torch.arange(8))


@pytest.fixture(scope="module")
def seen(subject):
    return list(confusion.watch(subject))


def test_each_situation_is_what_it_is_called(subject, seen):
    net, x = subject.net, subject.x[3:4]
    o, tiles = seen[3]

    def masses(c=None, **how):
        return tile_masses(explain(net, x, c, guided=False, **how).heatmap)

    assert tiles.keys() >= {"default", *confusion.WRONG}
    assert o.correct
    second = explain(net, x, guided=False).logits[0].topk(2).indices[1]
    for name, expected in {
        "default": masses(),
        "counterfactual": masses(method="counterfactual"),
        "runner-up": masses(second[None]),
        "pad off by 3": masses(pad=0),
        "stem": masses(layer="conv1"),
        "Grad-CAM++": masses(method="gradcam++"),
    }.items():
        torch.testing.assert_close(tiles[name], expected, msg=name)
    square = tiles["default"].view(4, 4)
    assert torch.equal(tiles["mirrored"].view(4, 4)[1, 0], square[1, 3])
    assert torch.equal(tiles["shifted"].view(4, 4)[1, 2], square[1, 1])
    blob = tiles["centre blob"].view(4, 4)
    assert blob[1, 1] > 2 * blob[0, 1] > 4 * blob[0, 0]
    others = [masses(torch.tensor([c])) for c in range(10) if c != 3]
    assert any(torch.allclose(tiles["random class"], other) for other in others)


def test_random_weights_are_fresh_and_the_network_keeps_its_own(subject):
    net = subject.net
    before = {name: value.clone() for name, value in net.state_dict().items()}
    last = confusion.with_random_weights(net, [confusion.last_layer(net)], 1)
    changed = [name for name, value in last.state_dict().items() if not value.equal(before[name])]
    assert changed == ["fc2.weight", "fc2.bias"]
    blank = confusion.with_random_weights(net, [*net.modules()], 1)
    assert not any(value.equal(before[name]) for name, value in blank.state_dict().items())
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())
    assert isinstance(confusion.last_layer(nn.Sequential(nn.Conv2d(1, 2, 3))), nn.Conv2d)


def test_another_map_is_judged_with_its_own_mirror_images_and_moves(seen):
    o, tiles = seen[0]
    changed = as_if(o, tiles["mirrored"])
    assert torch.equal(changed.tiles[OWN], tiles["mirrored"])
    assert torch.equal(changed.tiles[MIRRORED][1], tiles["default"][0])
    assert torch.equal(as_if(o, tiles["shifted"]).tiles[MOVED][3], tiles["default"][0])
    torch.testing.assert_close(as_if(o, tiles["default"]).tiles, o.tiles)


def test_verdicts_are_counted_by_situation_and_number(seen):
    many = [seen[i % 8] for i in range(24)]
    found = confusion.confusion(many)
    assert found.keys() == many[0][1].keys()
    for counts in found.values():
        assert counts.keys() == {"10", "20", "24"}
        assert [sum(of.values()) for of in counts.values()] == [10, 10, 1]
    assert found["centre blob"]["24"] == {"no better": 1}
