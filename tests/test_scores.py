"""Scores by hand: what a map's mass in covered tiles tells of the fall."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from seenby.scores import (
    ANOTHER,
    FLAT,
    MIRRORED,
    OWN,
    Observation,
    correlations,
    intervals,
    map_of_falls,
    responds,
    scores_of,
    scores_of_coverings,
    split_half,
    thirds,
)
from seenby.trials import draw_sets


def observed(seed, strength=1.0, noise=0.0):
    """A picture whose tiles have weights of their own, and a network that adds them up."""
    random = torch.Generator().manual_seed(seed)
    sets, weights = draw_sets(random), torch.rand(16, generator=random)
    falls = strength * (sets @ weights) + noise * torch.randn(2, len(sets), generator=random)
    flat = torch.ones(3, 16)
    return Observation(sets, 5.0, falls, {OWN: weights[None], MIRRORED: flat}, None)


def test_the_correlation_is_pearsons():
    o, tiles = observed(0, noise=1.0), torch.rand(2, 16)
    found = correlations(o, tiles)
    for f, k in ((0, 0), (1, 1)):
        expected = np.corrcoef(o.falls[f], o.sets @ tiles[k])[0, 1]
        assert found[f, k] == pytest.approx(expected, abs=1e-6)


def test_a_map_that_tells_all_scores_one_and_its_negative_minus_one():
    o = observed(0)
    found = correlations(o, torch.cat([o.tiles[OWN], 1 - o.tiles[OWN]]))
    torch.testing.assert_close(found, torch.tensor([[1.0, -1], [1, -1]]).double())


@pytest.mark.parametrize("tiles", [torch.zeros(1, 16), torch.full((1, 16), 0.3)])
def test_a_map_without_mass_or_with_the_same_everywhere_scores_nothing(tiles):
    assert correlations(observed(0), tiles).tolist() == [[0], [0]]


@pytest.mark.parametrize("noise", [0.0, 1e-7, torch.nan])
def test_a_logit_that_does_not_move_beyond_rounding_gives_no_score(noise):
    o = observed(0, strength=0, noise=noise)
    assert correlations(o, o.tiles[OWN]).tolist() == [[0], [0]]
    assert not responds(o)
    assert responds(observed(0, noise=0.1))


def test_another_pictures_is_the_mean_over_all_others():
    some = [observed(seed) for seed in range(4)]
    scores = scores_of(some)
    assert scores[FLAT].abs().max() == 0
    torch.testing.assert_close(scores[MIRRORED], torch.zeros(4, 2).double())
    torch.testing.assert_close(scores[OWN], torch.ones(4, 2).double())
    for i, o in enumerate(some):
        others = [correlations(o, other.tiles[OWN])[:, 0] for other in some if other is not o]
        torch.testing.assert_close(scores[ANOTHER][i], torch.stack(others).mean(0))


def test_of_several_ways_the_best_counts():
    some = [observed(seed) for seed in range(4)]
    both = [replace(o, tiles=o.tiles | {MIRRORED: torch.cat([torch.rand(2, 16), o.tiles[OWN]])})
            for o in some]  # fmt: skip
    torch.testing.assert_close(scores_of(both)[MIRRORED], scores_of(some)[OWN])


def test_a_map_of_the_falls_has_its_mass_where_covering_lets_the_score_fall():
    o = observed(0)
    weights = torch.zeros(16)
    weights[[0, 3, 9]] = torch.tensor([-1.0, 2.0, 1.0])
    mass = map_of_falls(replace(o, falls=(o.sets @ weights).expand(2, -1)))[0]
    assert mass.argsort(descending=True)[:2].tolist() == [3, 9]
    assert mass[3] > 1.3 * mass[9] > 2 * mass.sort().values[-3]
    assert mass[0] == 0  # covered it lets the score rise
    still = replace(o, falls=torch.zeros(2, 24))
    assert map_of_falls(still).tolist() == [[0] * 16]


def test_maps_of_half_of_the_coverings_are_tried_on_the_other_half():
    known = scores_of_coverings([observed(seed) for seed in range(40)])
    assert known.shape == (40, 2)
    assert known.mean() > 0.65
    random = torch.Generator().manual_seed(0)
    chance = [replace(observed(seed), falls=torch.randn(2, 24, generator=random))
              for seed in range(200)]  # fmt: skip
    assert scores_of_coverings(chance).mean().abs() < 0.04  # on the same half it would be 0.8
    one = replace(observed(0), falls=torch.stack([torch.zeros(24), observed(0).falls[1]]))
    assert scores_of_coverings([one])[0, 0] == 0
    assert scores_of_coverings([one])[0, 1] > 0.5


def test_intervals_are_those_of_the_mean_and_wider_for_few():
    random = torch.Generator().manual_seed(1)
    values = torch.randn(400, 2, generator=random, dtype=torch.double) + torch.tensor([0.0, 5])
    for fill, column in (("mean colour", 0), ("blur", 1)):
        mean, low, high = intervals(values)[fill]
        error = 1.96 * float(values[:, column].std()) / 20
        assert mean == pytest.approx(float(values[:, column].mean()), abs=1e-4)
        assert (mean - low, high - mean) == pytest.approx((error, error), rel=0.1)
    # Of ten pictures 95 % of the intervals hold the truth.
    few = torch.randn(300, 10, 2, generator=random, dtype=torch.double)
    hold = [low < 0 < high for values in few for _, low, high in intervals(values).values()]
    assert 0.92 < sum(hold) / len(hold) < 0.98
    assert intervals(values) == intervals(values)


def test_reliability_is_high_where_halves_agree_and_low_where_they_do_not():
    agree = [observed(seed, noise=0.0 if seed % 2 else 9.0) for seed in range(60)]
    assert split_half(agree) > 0.9
    assert split_half([observed(seed, noise=1.0) for seed in range(60)]) < 0.6
    same = [replace(o, tiles={OWN: torch.ones(1, 16)}) for o in agree]
    assert split_half(same) == 0


def test_thirds():
    assert thirds(torch.tensor([0.3, -1, 0.9, 0.2, 0.5, 0.4])) == (
        "middle", "low", "high", "low", "high", "middle")  # fmt: skip
