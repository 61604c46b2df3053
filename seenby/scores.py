"""How well each map tells which tiles of a picture matter: scores, their means and bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

FILLS = ("mean colour", "blur")  # what covers a tile; both must agree
RESAMPLES = 2000

# The names of maps; what else was tried is named after how it is made, as in "layer conv1".
OWN, FLAT, ANOTHER, MIRRORED, MOVED = "own", "flat", "another's", "mirrored", "moved"
BOX, EDGES, REDRAWN, COVERINGS = "box", "edges", "redrawn", "coverings"
DEFAULT = "default"

Interval = tuple[float, float, float]  # the mean, and its 95 % bounds
Intervals = dict[str, Interval]  # on each fill


@dataclass(frozen=True, eq=False)
class Observation:
    """What was seen of one picture. A map is its mass in each of the T tiles."""

    sets: Tensor  # (M, T) 1 where a tile was covered
    y_c: float  # the score that is explained
    falls: Tensor  # (fills, M) by how much it fell
    tiles: dict[str, Tensor]  # (K, T) of OWN, of each control in K ways, of what else was tried
    correct: bool | None  # whether it is classified correctly; None: it has no label


def scores_of(observations: Sequence[Observation]) -> dict[str, Tensor]:
    """(N, fills) of each map: how well its mass under the covered tiles tells the fall.

    Of a control in K ways, such as three mirror images, the one with the highest mean counts:
    where a map is misplaced, one of them leads back, and an average would hide it.
    """
    scores = {}
    for name in observations[0].tiles:
        ways = torch.stack([correlations(o, o.tiles[name]) for o in observations])  # (N, fills, K)
        scores[name] = ways[:, :, ways.mean((0, 1)).argmax()]
    scores[FLAT] = torch.zeros_like(scores[OWN])  # its mass is the same in every set
    own = torch.cat([o.tiles[OWN] for o in observations])  # (N, T)
    with_all = torch.stack([correlations(o, own) for o in observations])  # (N, fills, N)
    total = with_all.sum(2) - with_all.diagonal(dim1=0, dim2=2).T
    scores[ANOTHER] = total / max(1, len(observations) - 1)
    return scores


def correlations(o: Observation, tiles: Tensor) -> Tensor:
    """(fills, K) of the fall with the mass of each map (K, T) in what was covered.

    Of a map without mass, or as much of it in every set, it is 0; so it is without a fall.
    """
    mass = tiles.double() @ o.sets.double().T  # (K, M)
    a, b = centred_falls(o), mass - mass.mean(1, keepdim=True)
    b = b * (b.abs().amax(1) > 1e-6 * mass.abs().amax(1))[:, None]
    lengths = a.norm(dim=1)[:, None] * b.norm(dim=1)
    correlation: Tensor = a @ b.T / lengths.clamp(min=1e-300)
    return correlation.nan_to_num(0, 0, 0)


def responds(o: Observation) -> bool:
    return bool(centred_falls(o).any())


def centred_falls(o: Observation) -> Tensor:
    """(fills, M) less their mean; zero where they may be the rounding of float32 alone."""
    falls, noise = o.falls.double(), 1e-5 * max(abs(o.y_c), float(o.falls.abs().max()), 1e-20)
    moves = falls.std(1, keepdim=True) > noise
    return torch.where(moves, falls - falls.mean(1, keepdim=True), 0)


def scores_of_coverings(observations: Sequence[Observation]) -> Tensor:
    """(N, fills) of maps made of half of the sets, on the other half: a map can reach that much."""

    def scores(o: Observation) -> Tensor:
        first, second = (half(o, start) for start in (0, 1))
        both = correlations(second, map_of_falls(first)) + correlations(first, map_of_falls(second))
        return both[:, 0] / 2

    return torch.stack([*map(scores, observations)])


def map_of_falls(o: Observation) -> Tensor:
    """(1, T) by how much each tile lets the score fall: a ridge regression on both fills, as there
    are fewer sets in a half than tiles."""
    a, sets = centred_falls(o), o.sets.double()
    a = (a / a.norm(dim=1, keepdim=True).clamp(min=1e-300)).sum(0)  # (M,)
    sets = sets - sets.mean(0)
    w = torch.linalg.solve(sets.T @ sets + torch.eye(sets.shape[1]).double(), sets.T @ a)
    mass: Tensor = w.clamp(min=0)[None]
    return mass


def half(o: Observation, start: int) -> Observation:
    """Every other set."""
    return replace(o, sets=o.sets[start::2], falls=o.falls[:, start::2])


def intervals(values: Tensor) -> Intervals:
    """Of values (N, fills): the mean, and the 95 % of the means of pictures drawn anew."""
    N = len(values)
    random = torch.Generator().manual_seed(0)  # the same draws for every control
    drawn = torch.randint(N, (RESAMPLES, N), generator=random)
    means, mean = values[drawn].mean(1), values.mean(0)  # (RESAMPLES, fills)
    bounds = means.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype), 0)
    # Of few pictures the drawn means are too narrow, by Student's t and the divisor N.
    low, high = mean + (bounds - mean) * (1 + 2 / N)
    rows = zip(mean.tolist(), low.tolist(), high.tolist(), strict=True)
    return {fill: (round(m, 4), round(lo, 4), round(hi, 4))
            for fill, (m, lo, hi) in zip(FILLS, rows, strict=True)}


def split_half(observations: Sequence[Observation]) -> float:
    """The reliability of one picture's score: of two halves of its sets, by Spearman and Brown."""

    def scores(start: int) -> Tensor:
        halves = (half(o, start) for o in observations)
        return torch.stack([correlations(o, o.tiles[OWN]).mean() for o in halves])

    r = float(torch.corrcoef(torch.stack([scores(0), scores(1)]))[0, 1].nan_to_num(0))
    return round(2 * r / (1 + r), 4) if r > 0 else 0.0


def thirds(scores: Tensor) -> tuple[str, ...]:
    ranks = scores.argsort().argsort() * 3 // len(scores)
    return tuple(("low", "middle", "high")[rank] for rank in ranks.tolist())
