"""What is said of which gains: the rule, and the words."""

from dataclasses import replace

import pytest
import torch

from seenby.scores import DEFAULT, EDGES, OWN, Observation
from seenby.trials import displaced, draw_sets
from seenby.verdict import (
    DECIDING,
    FEWEST,
    as_json,
    decide,
    judge,
    pictures_needed,
    sentence_beside,
    sentence_of_others,
    weaker,
    words_of,
)


def gain(mean, width, blur=None):
    blur = mean if blur is None else blur
    return {"mean colour": (mean, mean - width, mean + width),
            "blur": (blur, blur - width, blur + width)}


def gains(**given):
    controls = (*DECIDING, EDGES)
    names = dict(zip(("flat", "another", "mirrored", "moved", "edges"), controls, strict=True))
    return {names[name]: given.get(name, gain(0.3, 0.1)) for name in names}


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ({}, "points"),
        ({"another": gain(0.13, 0.1)}, "points"),
        ({"another": gain(0.12, 0.1)}, "cannot tell"),  # the bound must lie above EPS
        ({"another": gain(0.3, 0.1, blur=0.11)}, "cannot tell"),  # on both fills
        ({"edges": gain(0.13, 0.1)}, "points"),
        ({"edges": gain(0.12, 0.1)}, "like edges"),
        ({"edges": gain(0.3, 0.1, blur=-0.1)}, "like edges"),
        ({"edges": gain(-0.1, 0.05), "another": gain(0.12, 0.1)}, "cannot tell"),
        ({"edges": gain(-0.1, 0.05), "another": gain(0, 0.04)}, "no better"),
        ({"another": gain(0, 0.04)}, "no better"),
        ({"another": gain(0, 0.05)}, "cannot tell"),  # the bound must lie below DELTA
        ({"another": gain(0, 0.04, blur=0.3)}, "cannot tell"),
        ({"flat": gain(-0.3, 0.1), "mirrored": gain(-0.2, 0.1)}, "no better"),
    ],
)
def test_the_rule(given, verdict):
    assert decide(gains(**given), 40)[0] == verdict
    assert decide(gains(**given), FEWEST - 1)[0] == "cannot tell"


def test_the_words():
    assert decide(gains(another=gain(0.2, 0.1, blur=0.15)), 40)[1:] == (
        "These maps point at what the network uses",
        "these maps point at what the network uses: better than a flat map by 0.30 (0.20 to 0.40), "
        "another picture's by 0.15 (0.05 to 0.25), their mirror image by 0.30 (0.20 to 0.40), "
        "themselves moved by 0.30 (0.20 to 0.40)",
    )
    assert decide(gains(edges=gain(0.1, 0.09)), 40)[1:] == (
        "Perhaps not better than the picture's edges",
        "these maps are perhaps not better than the picture's edges, which no network draws; they "
        "beat a flat map by 0.30 (0.20 to 0.40), another picture's by 0.30 (0.20 to 0.40), their "
        "mirror image by 0.30 (0.20 to 0.40), themselves moved by 0.30 (0.20 to 0.40)",
    )
    assert decide(gains(edges=gain(-0.1, 0.1)), 40)[1] == "Not better than the picture's edges"
    assert decide(gains(another=gain(0, 0.04), mirrored=gain(-0.1, 0.1)), 40)[1:] == (
        "No better than another picture's or their mirror image",
        "these maps are no better than another picture's or their mirror image: by 0.00 (-0.04 to "
        "0.04), -0.10 (-0.20 to 0.00)",
    )
    assert decide(gains(another=gain(0.121, 0.2)), 40)[1:] == (
        "Cannot tell with 40 pictures", "cannot tell with 40 pictures; about 160 would do",
    )  # fmt: skip
    assert decide(gains(), 1)[1:] == (
        "Cannot tell with 1 picture", "cannot tell with 1 picture; about 40 would do",
    )  # fmt: skip


def test_how_many_pictures_would_do():
    # To accept, 0.2 must shrink to 0.1: nearly four times as many.
    assert pictures_needed(gains(another=gain(0.121, 0.2)), 40) == "about 160 would do"
    # To reject, 0.1 must shrink to 0.05.
    assert pictures_needed(gains(another=gain(0, 0.099)), 40) == "about 160 would do"
    assert pictures_needed(gains(another=gain(0.035, 0.2)), 40) == "more than 1000 would be needed"
    apart = gains(another=gain(0.3, 0.1, blur=-0.1))
    assert pictures_needed(apart, 40) == "the two fills disagree, so more would not help"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (gain(0.2, 0.1), "they beat a box by 0.20 (0.10 to 0.30)"),
        (gain(0.1, 0.1), "whether they beat a box cannot be told: 0.10 (0.00 to 0.20)"),
        (gain(0, 0.04, blur=0.005), "a box does as well: 0.01 (-0.04 to 0.04)"),
        (gain(-0.2, 0.1), "a box does better by 0.20 (0.10 to 0.30)"),
    ],
)
def test_what_is_said_of_a_control_beside(given, sentence):
    assert sentence_beside("a box", "does", given) == sentence


def test_what_is_said_of_other_layers_pads_and_methods():
    others = {"pad 0": gain(-0.2, 0.1), "layer conv1": gain(0.1, 0.05)}
    assert sentence_of_others(others) == (
        "the default with layer conv1 does better by 0.10 (0.05 to 0.15)")  # fmt: skip
    assert sentence_of_others({"pad 0": others["pad 0"], "pad 1": gain(0.05, 0.1)}) == (
        "none of pad 0, pad 1 does better")  # fmt: skip


# ------------------------------------------------------------------------------- a whole judgement


def observed(seed, noise, correct=None):
    """Weights of the tiles, which the map knows, and other maps that know nothing."""
    random = torch.Generator().manual_seed(seed)
    sets, weights = draw_sets(random), torch.rand(16, generator=random)
    falls = sets @ weights + noise * torch.randn(2, len(sets), generator=random)
    maps = {name: torch.rand(1, 16, generator=random) for name in (
        "box", EDGES, "redrawn", DEFAULT, "layer conv1", "pad 0")}  # fmt: skip
    own = {name: each.flatten(1) for name, each in displaced(weights.view(1, 4, 4)).items()}
    maps |= own | {DEFAULT: weights[None]}
    return Observation(sets, 5.0, falls, maps, correct)


def test_a_judgement():
    some = [observed(seed, 0.2, seed % 4 == 3) for seed in range(40)]
    found = judge(some)
    assert found.verdict == "points"
    assert (found.pictures, found.sets, found.labelled, found.correct) == (40, 24, 40, 10)
    first, reach, box, edges, redrawn, default, others, counts = found.sentences
    assert first.startswith("these maps point at what the network uses: better than a flat map by ")
    own, coverings = (words_of(weaker(found.correlation[name])) for name in ("own", "coverings"))
    assert reach == (f"their own score is {own}; maps made of half of the coverings score "
                     f"{coverings} on the other half")  # fmt: skip
    assert own > "0.9" > coverings > "0.5"
    assert reach.count("reached") == 0
    worse = judge([replace(o, tiles=o.tiles | {OWN: o.tiles["box"]}) for o in some])
    assert worse.sentences[1].endswith(" on the other half, so that much can be reached")
    assert box.startswith("they beat a box in the middle by ")
    assert edges.startswith("they beat the edges of the picture by ")
    assert redrawn.startswith("they beat a network of freshly drawn weights by ")
    assert default == "the default does as well: 0.00 (0.00 to 0.00)"
    assert others == "none of layer conv1, pad 0 does better"
    assert counts == ("of 40 pictures, each covered 48 times; 10 of 40 with a label are "
                      "classified correctly")  # fmt: skip
    assert set(found.default_minus) == {"layer conv1", "pad 0"}
    assert set(found.minus) == {"flat", "another's", "mirrored", "moved", "box", "edges", "redrawn"}
    assert str(found).splitlines() == [*found.sentences]
    assert as_json(found)["eps"] == 0.02
    assert as_json(found)["verdict"] == "points"


def test_thirds_are_told_only_where_they_are_reliable():
    reliable = judge([observed(seed, 2.0 * (seed % 3)) for seed in range(60)])
    assert reliable.reliability > 0.6
    assert [reliable.thirds.count(third) for third in ("low", "middle", "high")] == [20, 20, 20]
    chance = judge([observed(seed, 3.0) for seed in range(60)])
    assert chance.reliability < 0.6
    assert chance.thirds is None
    few = judge([observed(seed, 0.1) for seed in range(4)])
    assert (few.reliability, few.verdict) == (None, "cannot tell")
    assert len(few.sentences) == 2  # and the counts: of so few nothing is told
