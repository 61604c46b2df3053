"""The trial of maps, on networks of which it is known by construction where they look."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from confusion import as_if
from torch import nn
from train_mnist import jittered

from seenby import InputError, explain, trust
from seenby.scores import DEFAULT, FILLS, MIRRORED, MOVED, OWN
from seenby.trials import (
    COVERED,
    GRID,
    SETS,
    Choice,
    box,
    displaced,
    draw_sets,
    edges,
    fills,
    make_plan,
    masks_of,
    observe,
    redraw,
    tile_masses,
)  # fmt: skip
from seenby.verdict import judge
from SID_a4 import CourseCNN

S, N = 32, 24  # pixels and pictures


STRIPES = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]).expand(5, 5)  # upright


class Upright(nn.Module):
    """For class 0: how much of the picture has upright stripes. For class 1: how little."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(1, 1, 5, padding=2), nn.ReLU()
        self.head = nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(STRIPES / 25)
            self.conv.bias.fill_(-0.5)
            self.head.weight.copy_(torch.tensor([[400.0], [-400.0]]))

    def forward(self, x):
        return self.head(self.relu(self.conv(x)).mean((2, 3)))


class Blind(nn.Module):
    """Logits that no pixel changes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(0 * F.relu(self.conv(x)).mean((2, 3))) + 7


@pytest.fixture(scope="module")
def corners():
    """Noise with stripes in the middle of each corner's tile, in one of them upright."""
    random = torch.Generator().manual_seed(0)
    x = 0.2 * torch.randn(N, 1, S, S, generator=random)
    for picture, upright in zip(x[:, 0], torch.randint(4, (N,), generator=random), strict=True):
        for corner in range(4):
            top, left = (1 + 25 * int(side) for side in divmod(corner, 2))
            stripes = STRIPES if corner == upright else STRIPES.T
            picture[top : top + 5, left : left + 5] = stripes
    return x


@pytest.fixture(scope="module")
def seen(corners):
    plan = make_plan(Upright().eval(), corners[:1])
    return [observe(plan, corners[i : i + 1], None, i) for i in range(N)]


# ------------------------------------------------------------------------------- what is covered


def test_sets_cover_as_many_tiles_each_and_every_tile_as_often():
    sets = draw_sets(torch.Generator().manual_seed(3))
    assert sets.shape == (SETS, GRID**2)
    assert (sets.sum(1) == COVERED).all()
    assert torch.equal(sets, draw_sets(torch.Generator().manual_seed(3)))
    many = torch.stack([draw_sets(torch.Generator().manual_seed(i)) for i in range(300)])
    assert (many.mean((0, 1)) - COVERED / GRID**2).abs().max() < 0.02


@pytest.mark.parametrize("size", [(32, 32), (30, 17), (4, 7)])
def test_a_mask_covers_the_tiles_of_its_set_and_masses_are_theirs(size):
    sets = draw_sets(torch.Generator().manual_seed(0))
    masks = masks_of(sets, torch.zeros(1, 3, *size))
    assert masks.shape == (SETS, 1, 1, *size)
    maps = torch.rand(2, *size)
    masses = tile_masses(maps)
    torch.testing.assert_close(masses.sum(1), maps.sum((1, 2)))
    torch.testing.assert_close(masses @ sets.T, (maps[:, None] * masks[:, 0, 0]).sum((2, 3)))


def test_a_picture_is_covered_by_its_mean_colour_and_by_itself_blurred():
    x = torch.rand(1, 3, 40, 40)
    x[0, :, 20, 20] = 50
    mean, blurred = fills(x)
    torch.testing.assert_close(mean.flatten(), x.mean((0, 2, 3)))
    assert blurred.shape == x.shape
    assert blurred[0, 0, 20, 20] == pytest.approx(0.5 + 50 / (2 * torch.pi * 16), abs=0.1)


def test_a_map_is_displaced_by_mirrors_and_by_a_tile():
    maps = torch.rand(1, 8, 12)
    found = displaced(maps)
    assert torch.equal(found[OWN], maps)
    assert [each[2, 1] for each in found[MIRRORED]] == [maps[0, 5, 1], maps[0, 2, 10],
                                                        maps[0, 5, 10]]  # fmt: skip
    assert [each[2, 4] for each in found[MOVED]] == [maps[0, 0, 4], maps[0, 4, 4], maps[0, 2, 1],
                                                     maps[0, 2, 7]]  # fmt: skip
    of_tiles = displaced(tile_masses(maps).view(1, GRID, GRID))
    for name, each in found.items():  # also where a map is known by its tiles alone
        torch.testing.assert_close(tile_masses(each), of_tiles[name].flatten(1))


def test_a_box_is_the_flat_map_placed_alike_or_the_middle(network, digits):
    x = network.tensor([digits[0].image])
    explanation = explain(network.module, x, guided=False)
    placed = box(explanation, "auto")
    assert placed[0, 14, 14] == 1
    assert placed[0, 0].sum() == 0
    assert placed.mean() == pytest.approx((8 / 14) ** 2, abs=0.01)
    middle = box(explain(network.module, x, pad=0, guided=False), 0)
    assert middle[0, 7:21, 7:21].min() == 1
    assert middle.sum() == 14**2


def test_edges_are_where_the_picture_changes():
    x = torch.zeros(1, 2, 8, 8)
    x[:, :, 4:] = 3
    assert edges(x)[0, :, 5].tolist() == pytest.approx([0, 0, 0, 4.5**0.5, 4.5**0.5, 0, 0, 0])


def test_a_network_drawn_anew_has_other_weights_of_the_same_size_and_leaves_its_own():
    net = nn.Sequential(nn.Conv2d(3, 64, 7), nn.BatchNorm2d(64))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    copied = nn.Sequential(nn.Conv2d(3, 64, 7), nn.BatchNorm2d(64))
    redraw(copied, net, torch.Generator().manual_seed(7))
    new, old = (module[0].weight.detach().flatten() for module in (copied, net))
    assert new.std().item() == pytest.approx(old.std().item(), rel=0.05)
    assert torch.corrcoef(torch.stack([new, old]))[0, 1].abs() < 0.05
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


# ------------------------------------------------------------------------------- what is concluded


def test_maps_of_the_corner_where_the_network_looks_are_accepted(seen):
    found = judge(seen)
    assert found.verdict == "points"
    assert found.sentences[0].startswith("these maps point at what the network uses: better than "
                                         "a flat map by ")  # fmt: skip
    assert min(low for name in ("flat", "another's", "mirrored")
               for _, low, _ in found.minus[name].values()) > 0.3  # fmt: skip
    assert (found.pictures, found.sets, found.labelled) == (N, SETS, 0)
    assert found.sentences[2].startswith("they beat a box in the middle by ")


def test_their_mirror_images_are_not(seen):
    flipped = [as_if(o, o.tiles[OWN].view(1, GRID, GRID).flip(2).flatten(1)) for o in seen]
    found = judge(flipped)
    assert found.verdict == "no better"
    assert "no better than" in found.sentences[0]
    assert "their mirror image" in found.sentences[0]
    assert found.minus["mirrored"]["blur"][2] < 0.05


def test_nor_are_maps_that_lie_a_quarter_beside_their_place(seen):
    for axis in (1, 2):
        moved = [as_if(o, o.tiles[OWN].view(1, GRID, GRID).roll(1, axis).flatten(1)) for o in seen]
        found = judge(moved)
        assert found.verdict == "no better"
        assert "themselves moved" in found.sentences[0]


def test_empty_maps_are_not(corners):
    plan = make_plan(Upright().eval(), corners[:1], layer="relu", method="gradcam++")
    seen = [observe(plan, corners[i : i + 1], None, i) for i in range(N)]
    found = judge([as_if(o, torch.zeros(1, GRID**2)) for o in seen])
    assert found.verdict == "no better"
    assert found.headline == ("No better than a flat map, another picture's, their mirror image or "
                              "themselves moved")  # fmt: skip
    assert found.correlation[OWN] == dict.fromkeys(FILLS, (0, 0, 0))
    assert any(s.startswith("the default does better by ") for s in found.sentences)


def test_maps_of_what_lets_the_logit_rise_when_it_is_covered_score_below_zero(corners):
    net, x = Upright().eval(), corners
    plan = make_plan(net, x[:1], 1, "relu")
    against = explain(net, x, 1, "relu", "counterfactual", guided=False).heatmap[:, None]
    found = judge([as_if(observe(plan, x[i : i + 1], 1, i), tile_masses(against[i]))
                   for i in range(N)])  # fmt: skip
    assert max(high for _, _, high in found.correlation[OWN].values()) < -0.5
    assert found.verdict == "no better"


def test_a_network_that_ignores_its_input_does_not_respond(corners):
    found = trust(Blind().eval(), corners)
    assert found.verdict == "no response"
    assert found.sentences[0] == "the network does not respond to what is covered"
    assert len(found.sentences) == 2  # and the counts: nothing is said of controls


def test_maps_of_a_random_network_are_never_accepted_for_the_trained_one(network, digits):
    x = network.tensor([digit.image for digit in digits]).repeat(3, 1, 1, 1)
    x = jittered(x, torch.Generator().manual_seed(0))
    plan = make_plan(network.module, x[:1])
    target = explain(network.module, x, guided=False).target
    seen = [observe(plan, x[i : i + 1], None, i) for i in range(len(x))]
    for seed in range(20):
        torch.manual_seed(seed)
        maps = tile_masses(explain(CourseCNN().eval(), x, target, guided=False).heatmap)
        found = judge([as_if(o, tiles[None]) for o, tiles in zip(seen, maps, strict=True)])
        assert found.verdict != "points", seed


def test_the_same_call_says_the_same(corners):
    net = Upright().train()
    first, second = (trust(net, corners[:9], labels=labels) for labels in ([0] * 9, torch.zeros(9)))
    assert vars(first) == vars(second)
    assert net.training
    assert (first.labelled, first.correct) == (9, 9)
    assert first.sentences[-1] == ("of 9 pictures, each covered 48 times; 9 of 9 with a label are "
                                   "classified correctly")  # fmt: skip


def test_what_is_asked_for_is_compared_with_the_default(network, digits):
    x = network.tensor([digit.image for digit in digits])
    plan = make_plan(network.module, x[:1], layer="conv1", pad=1)
    assert plan.asked == Choice("conv1", "gradcam", 1)
    assert {name: (c.layer, c.method, c.pad) for name, c in plan.others.items()} == {
        DEFAULT: ("conv2", "gradcam", "auto"),
        "layer conv1": ("conv1", "gradcam", "auto"),
        "pad 0": ("conv2", "gradcam", 0), "pad 1": ("conv2", "gradcam", 1),
        "method gradcam++": ("conv2", "gradcam++", "auto"),
        "method xgradcam": ("conv2", "xgradcam", "auto"),
    }  # fmt: skip
    assert DEFAULT not in make_plan(network.module, x[:1]).others
    found = trust(network.module, x, layer="conv1", pad=1)
    assert any("the default" in sentence for sentence in found.sentences)


class Small(Upright):
    """There is memory for six pictures at once."""

    most = 0

    def forward(self, x):
        if len(x) > 6:
            raise RuntimeError("out of memory")
        Small.most = max(Small.most, len(x))
        return super().forward(x)


def test_a_lack_of_memory_halves_the_passes(corners):
    assert trust(Small().eval(), corners[:8]).minus == trust(Upright().eval(), corners[:8]).minus
    assert Small.most == 6


def test_what_is_no_network_is_refused(network, corners):
    with pytest.raises(InputError, match=r"the network is no module but seenby\.Network; give a "):
        trust(network, corners)


@pytest.mark.parametrize(("n", "labels"), [(1, None), (4, [0, 1])])
def test_too_few_pictures_or_labels_are_refused(n, labels, corners):
    with pytest.raises(InputError, match=f"{n} pictures.* were given; give 2 to 1000"):
        trust(Upright(), corners[:n], labels=labels)


def test_a_target_that_is_no_class_of_each_picture_is_refused(corners):
    with pytest.raises(InputError, match="target 'cat' was given; the task is classes: give "):
        trust(Upright(), corners[:8], target="cat")
    with pytest.raises(InputError, match=r"targets of shape \(2,\) were given for 8 pictures"):
        trust(Upright(), corners[:8], target=[0, 1])


def test_a_target_for_each_picture(corners):
    net = Upright().eval()
    first, *same = (trust(net, corners[:8], target=each)
                    for each in (0, [0] * 8, np.zeros(8, int), torch.zeros(8).long()))
    assert all(vars(each) == vars(first) for each in same)
    assert vars(trust(net, corners[:8], target=[0] * 7 + [1])) != vars(first)


def test_the_most_probable_class_stays_the_same_while_tiles_are_covered(network, digits):
    x = network.tensor([digit.image for digit in digits])
    classes = explain(network.module, x, guided=False).target
    first, *others = (trust(network.module, x, target=each) for each in (classes, None, "top:1"))
    assert all(vars(each) == vars(first) for each in others)


class Pooled(Upright):
    """Its last layer sees no places, which a search without gradients does not know."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(1, 4, 5, padding=2), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(self.relu(self.conv(x)).mean((2, 3), keepdim=True)).flatten(1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_mode_of_the_caller_changes_nothing(mode, corners):
    net = Pooled().eval()
    expected = trust(net, corners[:8])
    assert "layer conv" not in expected.correlation  # it is the default
    with mode():
        assert vars(trust(net, corners[:8].clone())) == vars(expected)


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_is_no_class_is_refused(label, corners):
    words = f"label {label} was given; the network has classes 0 to 1"
    with pytest.raises(InputError, match=words):
        trust(Upright().eval(), corners[:8], labels=[0] * 7 + [label])


@pytest.mark.parametrize(
    ("method", "words"),
    [("counterfactual", "whose maps show what speaks against"), ("scorecam", "give one of ")],
)
def test_a_method_that_can_not_be_tried_is_refused(method, words, corners):
    with pytest.raises(InputError, match=words):
        trust(Upright().eval(), corners[:8], method=method)


class OneNumber(Upright):
    """The logit of class 0 alone."""

    def forward(self, x):
        return super().forward(x)[:, :1]


def brightness(output):
    return output[:, 0]


@pytest.mark.parametrize(
    ("task", "target", "points"),
    [
        ("binary", None, True),  # all are of class 1
        ("regression", "up:0", True),
        ("regression", "down:0", False),
        ("multilabel", 0, True),
        ("embedding", torch.ones(1), False),
        (None, brightness, True),
    ],
)
def test_any_task_and_target_can_be_tried(task, target, points, corners):
    found = trust(OneNumber().eval(), corners, target, layer="relu", task=task)
    assert (found.verdict == "points") == points
