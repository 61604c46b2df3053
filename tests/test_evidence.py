"""The studies measure what they say, and docs/evidence.md quotes what they found."""

import json
from operator import itemgetter

import confusion
import evidence
import evidence_plots
import numpy as np
import pytest
import scipy.stats
import subjects
import torch
import torch.nn.functional as F
import train_mnist
from PIL import Image
from subjects import Subject
from torch import nn

from SID_a4 import CourseCNN

NONE = torch.tensor([])


# -------------------------------------------------------------------------------- statistics


def test_an_interval_is_that_of_the_mean():
    values = torch.randn(400) * 3 + 1
    mean, low, high = evidence.interval(values)
    error = float(values.std()) / 20
    assert mean == pytest.approx(float(values.mean()), abs=1e-4)
    assert (mean - low, high - mean) == pytest.approx((1.96 * error,) * 2, rel=0.15)
    assert evidence.interval(torch.full((9,), 0.25)) == [0.25] * 3
    assert evidence.interval(torch.tensor([torch.nan, 2.0])) == [2, 2, 2]
    assert evidence.interval(NONE) == []


def test_rank_correlation_is_spearmans_also_with_ties():
    a, b = torch.rand(3, 6, 6).round(decimals=1), torch.rand(3, 6, 6)
    expected = [scipy.stats.spearmanr(x.ravel(), y.ravel())[0] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(evidence.rank_correlation(a, b), expected, atol=1e-9)
    assert evidence.rank_correlation(torch.zeros(1, 6, 6), b[:1]) == 0


def test_values_are_filed_under_each_word():
    values = {("pad", "3", "own"): torch.ones(2), ("pad", "3", "other"): torch.zeros(2)}
    assert evidence.tree(values) == {"pad": {"3": {"own": [1, 1, 1], "other": [0, 0, 0]}}}


def test_networks_are_pooled_picture_by_picture():
    one, two = {("a",): torch.tensor([0.0, 1])}, {("a",): torch.tensor([1.0, 3])}
    assert evidence.pooled([one, two], evidence.mean_of)["a",].tolist() == [0.5, 2]
    assert evidence.pooled([one, two], torch.cat)["a",].tolist() == [0, 1, 1, 3]
    assert evidence.pooled([one, {}], torch.cat) == {}


# -------------------------------------------------------------------------------- measures


class OnePixel(nn.Module):
    """Sure of class 0 where the pixel in row 1, column 2 is bright, of class 1 where it is not."""

    def forward(self, x):
        y = 40 * x[:, 0, 1, 2] - 20
        return torch.stack([y, -y], 1)


def test_areas_under_deletion_and_insertion_by_hand():
    subject = Subject("one pixel", OnePixel(), torch.ones(2, 1, 4, 5), NONE)
    maps = torch.rand(2, 4, 5)
    maps[0, 1, 2], maps[1, 1, 2] = 2, -1  # first and last
    deletion, insertion = evidence.areas(subject, torch.tensor([0, 0]), maps, steps=10)
    np.testing.assert_allclose(deletion, [0.05, 0.95], atol=1e-6)
    np.testing.assert_allclose(insertion, [0.95, 0.05], atol=1e-6)


def test_a_flat_map_covers_pixels_in_an_order_drawn_by_lot():
    subject = Subject("one pixel", OnePixel(), torch.ones(300, 1, 4, 5), NONE)
    flat, target = torch.ones(300, 4, 5), torch.zeros(300, dtype=torch.long)
    deletion, insertion = evidence.areas(subject, target, flat, steps=10)
    assert deletion.mean() == pytest.approx(0.5, abs=0.06)
    torch.testing.assert_close(insertion, 1 - deletion)


class Left(nn.Module):
    """How much of what it sees differs from its left neighbour."""

    def forward(self, x):
        y = 4 * x.diff(dim=3).abs().mean((1, 2, 3))
        return torch.stack([y, 0 * y], 1)


def test_equal_pixels_are_covered_in_blobs_and_not_pixel_by_pixel():
    subject = Subject("left", Left(), torch.ones(20, 1, 28, 28), NONE)
    flat, target = torch.ones(20, 28, 28), torch.zeros(20, dtype=torch.long)
    deletion, _ = evidence.areas(subject, target, flat, steps=2)
    # At the half of the way salt and pepper has 0.5 neighbours that differ.
    neighbours = torch.logit(2 * deletion - 0.5) / 4
    assert neighbours.max() < 0.25


def test_energy_and_pointing_by_hand():
    black = -CourseCNN.MEAN / CourseCNN.STD
    x = torch.full((3, 1, 28, 28), black)
    x[:, 0, 5, 5:9] = black + 1 / CourseCNN.STD  # white
    x[:, 0, 6, 5:9] = black + 0.4 / CourseCNN.STD  # grey: no ink
    maps = torch.zeros(3, 28, 28)
    maps[0, 5, 5], maps[0, 6, 5], maps[0, 20, 20] = 3, 2, -7
    maps[1, 6, 6], maps[1, 5, 6] = 3, 1
    subject = Subject("course, by hand", CourseCNN(), x, NONE, black)
    found = evidence.worth(subject, torch.zeros(3, dtype=torch.long), maps, steps=2)
    np.testing.assert_allclose(found["energy"], [3 / 5, 1 / 4, 0])
    np.testing.assert_allclose(found["pointing"], [1, 0, 0])


def test_the_centre_of_a_map():
    maps = torch.zeros(2, 5, 6)
    maps[0, 1, 2], maps[0, 3, 2] = 1, 3
    assert evidence.centre(maps).tolist() == [[2.5, 2], [0, 0]]


def test_occlusion_looks_at_every_step_th_pixel():
    whole = train_mnist.occlusion(OnePixel(), torch.rand(1, 1, 9, 9), torch.tensor([0]), 3, 1, 0.0)
    few = train_mnist.occlusion(OnePixel(), torch.rand(1, 1, 9, 9), torch.tensor([0]), 3, 2, 0.0)
    assert (whole[0] != 0).nonzero().tolist() == [[i, j] for i in range(3) for j in range(1, 4)]
    subject = Subject("one pixel", OnePixel(), torch.rand(1, 1, 9, 9), NONE, step=2)
    assert subject.at_patches(whole != 0).tolist() == (few != 0).tolist()


def test_shapley_values_of_a_linear_network_are_what_each_patch_adds():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    x, target = torch.rand(2, 1, 8, 8), torch.tensor([2, 0])
    subject = Subject("linear", net, x, NONE, cover=0.25)
    found = evidence.shapley(subject, target, 3, seed=0)
    adds = (x[:, 0] - 0.25) * net[1].weight[target].view(2, 8, 8)
    patches = F.avg_pool2d(adds[:, None], 4, divisor_override=1)
    expected = patches.repeat_interleave(4, 2).repeat_interleave(4, 3)[:, 0]
    torch.testing.assert_close(found, expected.detach())


# -------------------------------------------------------------------------------- studies


def test_where_cells_look_and_where_they_are_drawn():
    found = evidence.displacement()
    assert found["looks at"] == [6.5 + 2 * j for j in range(8)]
    worst = {pad: found[pad]["worst"] for pad in ("pad 0", "pad 1", "pad 3")}
    assert worst == pytest.approx({"pad 0": 5.25, "pad 1": 2.8, "pad 3": 0}, abs=1e-3)
    assert found["pad 0"]["mean"] == pytest.approx(3, abs=1e-3)


class Local(nn.Module):
    """How much of a blob's grey there is: the sum over cells of 5 x 5 pixels, at stride 2."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 5, stride=2, bias=False)
        nn.init.constant_(self.conv.weight, 0.04)

    def forward(self, x):
        y = self.conv(x).sum((1, 2, 3))
        return torch.stack([y, -y], 1)


def test_the_rule_is_the_optimum_where_a_cell_tells_what_its_pixels_tell():
    x = torch.zeros(30, 1, 29, 29)
    for picture, corner in zip(x[:, 0], torch.randint(4, 20, (30, 2)).tolist(), strict=True):
        picture[corner[0] : corner[0] + 5, corner[1] : corner[1] + 5] = 1
    subject = Subject("local", Local(), x, NONE, patch=5)
    found = evidence.placement(subject, evidence.QUICK)
    means = {key: float(v.mean()) for key, v in found.items()}
    pads = {key[1]: mean for key, mean in means.items() if key[0] == "pad" and key[2] == "own"}
    shifts = {key[1]: mean for key, mean in means.items() if key[0] == "shift" and key[2] == "own"}
    assert (max(pads, key=pads.get), max(shifts, key=shifts.get)) == ("0.75", "0 0")
    assert pads["0.75"] == shifts["0 0"] > 0.9
    for key, mean in means.items():
        if key[2].startswith("own, rule's minus") and key[1] not in ("0.75", "0 0"):
            assert mean == pytest.approx(pads["0.75"] - (pads | shifts)[key[1]], abs=1e-6)
            assert mean > 0
    assert means["pad", "0.75", "another's"] < 0.3


def test_the_sanity_check_leaves_the_network_as_it_was_and_is_seeded(network, digits):
    x = network.tensor([digit.image for digit in digits])
    subject = Subject("course", network.module, x, NONE)
    state = {key: value.clone() for key, value in network.module.state_dict().items()}
    first, second = (evidence.sanity(subject, evidence.QUICK) for _ in range(2))
    assert list(dict.fromkeys(layer for _, layer in first)) == [
        "another picture", "fc2", "fc1", "conv2", "conv1",
    ]  # fmt: skip
    for key, value in first.items():
        assert torch.equal(value, second[key])
        assert value.abs().max() < 1
    for key, value in network.module.state_dict().items():
        assert torch.equal(value, state[key])
    # It barely changes with the head, which decides, as Adebayo et al. found.
    assert first["guided", "fc2"].mean() > 0.75 > first["gradcam", "fc2"].mean()


@pytest.mark.slow  # it trains
def test_two_shapes_in_one_picture_and_the_map_of_each():
    subject = subjects.shapes_subject(60)
    there = F.one_hot(subject.y, 3).sum(1) > 0
    assert ((subject.logits > 0) == there).double().mean() > 0.9
    found = evidence.two_objects(subject, evidence.QUICK)
    of = torch.cat([subject.y[:, 0], subject.y[:, 1]])  # the map's class
    own = found["gradcam", "share on its own"]
    assert own.mean() > 0.7
    assert max(float(own[of == c].mean()) for c in range(3)) > 0.9
    assert found["counterfactual", "share on its own"].mean() < own.mean() - 0.2


class Blind(nn.Module):
    """The same logit for every class."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x):
        return F.relu(self.conv(x)).mean((1, 2, 3))[:, None].expand(-1, 3)


def test_maps_that_ignore_the_class_share_by_halves():
    y = torch.tensor([[0, 1], [2, 1], [1, 0]])
    x = subjects.shapes(y, torch.Generator().manual_seed(0))
    subject = Subject("blind", Blind(), x, y, regions=subjects.halves(x))
    for (_, name), value in evidence.two_objects(subject, evidence.QUICK).items():
        if name == "share on its own":
            assert value.mean() == pytest.approx(0.5, abs=1e-6)


def test_pairs_are_pasted_both_ways_round():
    subject = Subject("three", nn.Identity(), torch.arange(3.0).view(3, 1, 1, 1), torch.arange(3))
    pairs = subjects.pasted_pairs(subject)
    assert pairs.x[:, 0, 0].tolist() == pairs.y.tolist()
    assert sorted(pairs.y.tolist()) == [[i, j] for i in range(3) for j in range(3) if i != j]
    assert pairs.regions[0, :, 0].tolist() == [[True, False], [False, True]]


def test_the_residual_network_has_the_weights_of_the_paper():
    net = subjects.CifarResNet()
    assert sum(p.numel() for p in net.parameters()) == 464154  # 0.46 million
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10)


# -------------------------------------------------------------------------------- the whole


@pytest.fixture(scope="module")
def like_mnist(tmp_path_factory, digits, network):
    """The drawn digits, jittered, and noisy enough that some are read wrong."""
    x = network.tensor([digit.image for digit in digits]).repeat(40, 1, 1, 1)
    random = torch.Generator().manual_seed(0)
    x = train_mnist.jittered(x, random) * CourseCNN.STD + CourseCNN.MEAN
    noise = torch.randn(x.shape, generator=random)
    x += 0.5 * torch.rand(len(x), 1, 1, 1, generator=random) * noise
    pixels, y = (x[:, 0].clamp(0, 1) * 255).byte().numpy(), np.tile(np.arange(8), 40)
    path = tmp_path_factory.mktemp("mnist") / "like_mnist.npz"
    np.savez(path, x_train=pixels, y_train=y, x_test=pixels, y_test=y)
    return path


def intervals_in(found):
    if isinstance(found, dict):
        for value in found.values():
            yield from intervals_in(value)
    elif isinstance(found, list) and len(found) == 3:
        yield found


@pytest.mark.slow
def test_a_quick_study(like_mnist, tmp_path, capsys):
    words = ["--data", str(like_mnist), "--quick", "--out", str(tmp_path)]
    assert evidence.main(words) == 0
    assert "evidence.json" in capsys.readouterr().out
    found = json.loads((tmp_path / "evidence.json").read_text())
    course = {"course, shipped", "course, seed 1", "course, other seeds"}
    for study in ("placement", "faithfulness", "sanity", "methods", "mistakes"):
        assert set(found[study]) == course, study
    assert set(found["two_objects"]) == {"small CNN, shapes"}
    assert set(found["trust"]) == {"course, shipped", "course, seed 1", "padded CNN, digits",
                                   "small transformer, digits", "small transformer, shapes",
                                   "small CNN, shapes"}  # fmt: skip
    for each in found["trust"].values():
        assert each["pictures"] == 12
        assert {*confusion.WRONG, "default"} <= each["verdicts"].keys()
        for counts in each["verdicts"].values():
            assert [sum(of.values()) for of in counts.values()] == [10, 1]
    changed = found | {"another": "kept", "placement": {}}
    (tmp_path / "evidence.json").write_text(json.dumps(changed))
    assert evidence.main([*words, "--only", "placement"]) == 0
    again = json.loads((tmp_path / "evidence.json").read_text())
    assert again == found | {"another": "kept"}
    assert 0.5 < found["networks"]["course, shipped"]["accuracy"] < 1
    every = list(intervals_in(found))
    assert len(every) > 1000
    assert all(low <= mean <= high for mean, low, high in every)
    assert found["costs"]["all three maps"]["forward passes"] == 1
    assert found["costs"]["Shapley"]["forward passes"] == 1 + evidence.QUICK.samples * 49
    for name in evidence_plots.PLOTS:
        with Image.open(tmp_path / f"evidence_{name}.png") as plot:
            assert plot.width == 945  # 8 cm at 300 dpi
            assert np.asarray(plot.convert("L")).std() > 10
    rule = found["placement"]["course, shipped"]["pad"]["3"]
    assert rule["own, rule's minus this"] == [0, 0, 0]
    methods = found["methods"]["course, shipped"]
    assert methods["Shapley"]["Shapley again"][0] > methods["gradcam"]["Shapley"][0]


def test_without_mnist_it_says_where_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_mnist, "ROOT", tmp_path)
    with pytest.raises(SystemExit) as stop:
        evidence.main(["--out", str(tmp_path / "out")])
    said = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2
    assert "MNIST is not in" in said
    assert "download=True" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [None, b"no zip"])
def test_a_file_that_is_no_mnist_gets_one_line(content, tmp_path, capsys):
    path = tmp_path / "other.npz"
    if content:
        path.write_bytes(content)
    for main in (evidence.main, train_mnist.main):
        with pytest.raises(SystemExit) as stop:
            main(["--data", str(path)])
        assert stop.value.code == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"--data {path} can't be read" in said
        assert "x_train, y_train, x_test and y_test" in said


def test_a_folder_without_the_networks_gets_one_line(like_mnist, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        evidence.main(["--data", str(like_mnist), "--quick", "--real", str(tmp_path)])
    assert stop.value.code == 2
    assert "lacks cifar10_resnet32.th" in capsys.readouterr().err.splitlines()[-1]


# -------------------------------------------------------------------------------- the page

KEPT = json.loads(evidence_plots.KEPT.read_text())
PAGE = evidence_plots.PAGE.read_text()
README = evidence_plots.ROOT / "README.md"


def test_the_page_has_the_table_of_the_study():
    assert evidence_plots.table(KEPT) in PAGE


def found(*path, digits=2):
    value = KEPT
    for word in path:
        value = value[word]
    return f"{value[0] if isinstance(value, list) else value:.{digits}f}"


def test_the_page_has_the_verdicts_of_the_study():
    assert evidence_plots.verdicts(KEPT) in PAGE


def test_the_pages_count_the_verdicts():
    page, readme = (" ".join(text.split()) for text in (PAGE, README.read_text()))
    counts = [evidence_plots.accepted(each, confusion.WRONG) for each in KEPT["trust"].values()]
    called_right, wrong = map(sum, zip(*counts, strict=True))
    assert called_right == 0
    assert f"Of {wrong:,} judgements of wrong maps, none called them right. 43 said" in page
    assert f"of {wrong:,} judgements of maps that were made wrong, none called" in readme
    beside = [evidence_plots.accepted(each, ["pad off by 3"]) for each in KEPT["trust"].values()]
    called_right, all_beside = map(sum, zip(*beside, strict=True))
    assert f"{called_right} of {all_beside} called maps right that lie three cells" in readme
    assert f"in {called_right} judgements of {all_beside}" in page
    at_full = {name: each["verdicts"]["default"][str(each["pictures"])]
               for name, each in KEPT["trust"].items()}  # fmt: skip
    points = sum("points" in of for of in at_full.values())
    assert f"the own maps of {points} of {len(at_full)} networks are accepted" in page
    of_coverings = [each["of coverings"] for each in KEPT["trust"].values()]
    assert sorted(of_coverings) == ["like edges"] * 3 + ["points"] * 8
    assert "all four controls on all eleven networks, and the edges, too, on eight" in page
    scores = KEPT["trust"]["small transformer, shapes"]["scores"]
    own, reach = (min(each.values(), key=itemgetter(1))[0] for each in scores.values())
    assert f"reaches {own:.2f} of {reach:.2f}" in page
    off = sum("points" in each["verdicts"]["pad off by 3"][str(each["pictures"])]
              for each in KEPT["trust"].values())  # fmt: skip
    assert off == 3
    assert "three cells off were accepted on three networks of eleven" in page


def test_the_page_lists_every_wrong_map_that_was_called_half_right():
    verdicts = {(name, situation): each["verdicts"][situation].values()
                for name, each in KEPT["trust"].items() for situation in confusion.WRONG}
    cases = {key: [of.get("like edges", 0) for of in of_sizes]
             for key, of_sizes in verdicts.items() if any("like edges" in of for of in of_sizes)}
    assert sum(map(sum, cases.values())) == 43
    assert cases == {  # with 10, 20, 40 and 80 pictures, of ten; with all, of one
        ("small CNN, shapes", "random weights 3"): [0, 0, 4, 10, 1],
        ("small CNN, shapes", "random last layer"): [1, 2, 3, 9, 1],
        ("small transformer, shapes", "random class"): [0, 0, 0, 2, 1],
        ("small transformer, shapes", "random weights 2"): [0, 0, 5, 3, 1],
    }
    head = "| network | maps | called not better than the edges |"
    table = PAGE.partition(head)[2].partition("\n\n")[0]
    assert [tuple(row.split(" | ")[:2]) for row in table.splitlines()[2:]] == [
        (f"| {name}", situation.replace(" 3", ", one network of three").replace(
            " 2", ", one network of three")) for name, situation in cases]  # fmt: skip


SEEDS, PHOTOS, RESNET = "course, other seeds", "SqueezeNet, pasted pairs", "ResNet-32, CIFAR-10"
PAD, AWAY = ("placement", SEEDS, "pad"), "rule's minus this"
QUOTED = {
    "of the {} it gains": [(*PAD, "0", f"own, {AWAY}")],
    "gains, {} is the digit's own": [(*PAD, "0", f"difference, {AWAY}")],
    "guided backprop keeps a rank correlation of {}": [("sanity", SEEDS, "guided", "fc2")],
    "Grad-CAM of {}, as between two digits": [("sanity", SEEDS, "gradcam", "fc2")],
    "(ResNet-32: {} and {})": [
        ("sanity", RESNET, "guided", "linear"),
        ("sanity", RESNET, "gradcam", "linear"),
    ],
    "rank patches {} like Grad-CAM, another digit's {} (ResNet-32: {}, {})": [
        ("methods", SEEDS, "gradcam", "Shapley"),
        ("methods", SEEDS, "gradcam", "Shapley of another picture"),
        ("methods", RESNET, "gradcam", "Shapley"),
        ("methods", RESNET, "gradcam", "Shapley of another picture"),
    ],
}


@pytest.mark.parametrize("words", QUOTED)
def test_the_page_quotes_what_was_found(words):
    text = words.format(*(found(*path) for path in QUOTED[words]))
    assert text in " ".join(PAGE.split())


def test_the_page_quotes_counts_and_pixels():
    page, apart = " ".join(PAGE.split()), ("mistakes", SEEDS)
    wrong, right = (found(*apart, k, "pixels apart", digits=1) for k in ("wrong", "right"))
    assert f"the true one's ({wrong} pixels)" in page
    assert f"of a digit read right ({right})" in page
    assert (
        f"{100 * KEPT['mistakes'][SEEDS]['empty']['right']['all'][0]:.1f} % of the maps" in page
    )
    passes = KEPT["costs"]["Shapley"]["forward passes"]
    assert f"for {passes:.0f} forward passes instead of 1" in page
    pairs = KEPT["two_objects"][PHOTOS]
    maps = 2 * KEPT["networks"][PHOTOS]["pictures"]
    cam, plus = (round(maps * pairs[m]["more than half"][0]) for m in ("gradcam", "gradcam++"))
    assert f"{cam} of {maps} maps of photos" in page
    assert f"Grad-CAM++: {plus})" in page
    drawn = KEPT["two_objects"]["small CNN, shapes"]["gradcam"]["more than half"][0]
    assert f"on drawn shapes {100 * drawn:.0f} %" in page


def test_what_the_words_claim_is_so():
    pads = KEPT["placement"][SEEDS]["pad"]
    assert max(pads, key=lambda pad: pads[pad]["own"]) == "3"
    deletion = KEPT["faithfulness"][SEEDS]["gradcam"]["pad 3"]["deletion"]
    assert deletion["minus all ones"][2] < 0  # the whole interval
    assert f"less, by {-deletion['minus all ones'][0]:.2f}, because" in " ".join(PAGE.split())
    harms = [KEPT["faithfulness"][who]["gradcam"][pad]["deletion"]["minus all ones"]
             for who, pad in ((RESNET, "pad 0"), ("SqueezeNet, ImageNet", "pad 0.5"))]  # fmt: skip
    assert min(low for _, low, _ in harms) > 0
    assert "lot: by {:.2f} and {:.2f}.".format(*(mean for mean, *_ in harms)) in PAGE
    sanity = KEPT["sanity"][SEEDS]["gradcam"]
    assert abs(sanity["fc2"][0] - sanity["another picture"][0]) < 0.02
    resnet = KEPT["placement"][RESNET]["pad"]
    assert max(resnet, key=lambda pad: resnet[pad]["own"]) == "-0.5"
    assert f"half a cell, by {-resnet['-0.5'][f'own, {AWAY}'][0]:.2f}, on ResNet-32" in PAGE
    squeeze = KEPT["placement"]["SqueezeNet, ImageNet"]["pad"]
    assert max(squeeze, key=lambda pad: squeeze[pad]["own"]) == "-0.5"  # the rule's is 0.5
    assert f"one, by {-squeeze['-0.5'][f'own, {AWAY}'][0]:.2f}, on SqueezeNet" in PAGE
    def less(interval):  # of what the rule has more
        mean, low, high = interval
        return f"{-mean:.2f} ({-high:.2f} to {-low:.2f})".replace("-0.00", "0.00")

    page = " ".join(PAGE.split())
    blurred = f"averaged, {AWAY}"
    both = less(resnet["-0.5"][blurred]), less(squeeze["-0.5"][blurred])
    assert "pad is better by {} and {}, which is no difference".format(*both) in page
    assert max(pads, key=lambda pad: pads[pad]["averaged"]) == "5"
    assert f"5 is better than the rule's 3 by {less(pads['5'][blurred])}" in page
    own = pads["1"][f"difference, {AWAY}"]
    assert "gain is {:.2f} ({:.2f} to {:.2f})".format(*own) in page
    assert KEPT["two_objects"]["SqueezeNet, dog and cat"]["gradcam"]["more than half"][0] == 1
    shares = [{method: KEPT["two_objects"][who][method]["share on its own"][0]
               for method in ("guided", "gradcam")}
              for who in ("small CNN, shapes", "SqueezeNet, pasted pairs")]
    words = "{:.2f} to {:.2f} of it lies on that object, where Grad-CAM has {:.2f} to {:.2f}"
    maps = " ".join(evidence_plots.PAGE.with_name("maps.md").read_text().split())
    assert words.format(*(share[m] for m in ("guided", "gradcam") for share in shares)) in maps
