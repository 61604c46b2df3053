#!/usr/bin/env python3
"""Are the maps right, and can they be trusted? Seven studies, each beside its controls.

    python benchmarks/evidence.py                     MNIST in data/mnist, as torchvision keeps it
    python benchmarks/evidence.py --data mnist.npz    x_train, y_train, x_test, y_test in a file
    python benchmarks/evidence.py --real FOLDER       more trained networks, with their pictures
    python benchmarks/evidence.py --only trust        one study anew, beside those that were kept
    python benchmarks/evidence.py --quick --out OUT   fewer pictures and networks, within a minute

It writes evidence.json and its plots to report/. A study measures picture by picture; what is
written is the mean with its 95 % interval, from drawing pictures anew (bootstrap). The course
network is the shipped one, whose seed was chosen, and others, whose seeds were not.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import itertools
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import confusion
import evidence_plots
import numpy as np
import subjects
import torch
import torch.nn.functional as F
from evidence_plots import KEPT, Tree
from scipy.stats import rankdata
from subjects import CHUNK, OTHERS, SHIPPED, WEIGHTS, Subject
from torch import Tensor, nn
from tqdm import tqdm
from train_mnist import correlation, load_mnist

from seenby import METHODS, InputError, explain, explain_many
from seenby.core.placement import gaussian_blur, interpolation_matrix, place
from SID_a4 import CourseCNN

Values = dict[tuple[str, ...], Tensor]  # what was measured -> one number for each picture


@dataclass(frozen=True)
class Effort:
    """How many pictures, passes and networks each study gets."""

    seeds: int = 3  # course networks beside the shipped one
    epochs: int = 3  # of their training
    occluded: int = 500  # pictures, of which a slow network gets its share
    deleted: int = 200
    steps: int = 8  # of a deletion
    randomised: int = 150
    draws: int = 3  # of random weights
    shapley: int = 100
    samples: int = 15  # orders in which patches appear
    mistakes: int = 100
    pairs: int = 100  # pictures of two shapes
    tried: int = 500  # digits whose maps a verdict is asked of
    tried_others: int = 200  # CIFAR's pictures, and those of shapes
    drawn: int = 1500  # steps of a transformer's training on drawn shapes


QUICK = Effort(1, 1, 24, 24, 4, 24, 1, 10, 2, 10, 20, 12, 12, 30)


# -------------------------------------------------------------------------- maps and their worth


def maps_of(subject: Subject, target: Tensor, pad: Any = "auto") -> dict[str, Tensor]:
    """By every method, (N, H, W); guided ones are signed, their channels summed."""
    parts = []
    for x, c in subject.chunks(target):
        found = explain_many(subject.net, x, [c], None, list(METHODS), pad)
        R, guided_cam = found[0].R, found[0].guided_cam
        assert R is not None
        assert guided_cam is not None
        parts.append({e.method: e.heatmap for e in found})
        parts[-1] |= {"guided": R.sum(1), "guided-gradcam": guided_cam.sum(1)}
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def cells_of(subject: Subject, target: Tensor) -> tuple[Tensor, float]:
    """Grad-CAM as the layer has it (N, u, v), and the pad of the rule."""
    found = [explain(subject.net, x, c, guided=False) for x, c in subject.chunks(target)]
    assert found[0].pad is not None
    return torch.cat([e.L_c for e in found]), found[0].pad[0]


def interval(values: Tensor) -> list[float]:
    """The mean over pictures and its 95 % interval; of NaN, what could not be measured, none."""
    v = values.double().numpy()
    v = v[~np.isnan(v)]
    if not len(v):
        return []
    drawn = np.random.default_rng(0).multinomial(len(v), np.full(len(v), 1 / len(v)), 2000)
    low, high = np.quantile(drawn @ v / len(v), (0.025, 0.975))
    return [round(float(number), 4) for number in (v.mean(), low, high)]


def tree(values: Values) -> Tree:
    """The intervals, filed under each word of their key."""
    found: Tree = {}
    for (*folders, name), numbers in values.items():
        folder = found
        for word in folders:
            folder = folder.setdefault(word, {})
        folder[name] = interval(numbers)
    return found


def pooled(networks: list[Values], how: Callable[[list[Tensor]], Tensor]) -> Values:
    """What all of them have."""
    keys = [key for key in networks[0] if all(key in each for each in networks)]
    return {key: how([each[key] for each in networks]) for key in keys}


def mean_of(values: list[Tensor]) -> Tensor:
    """A picture's mean over networks, so that an interval remains one over pictures."""
    return torch.stack(values).mean(0)


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's, picture by picture (N,); a constant map agrees with nothing: 0."""
    ranks = (torch.from_numpy(rankdata(m.flatten(1).numpy(), axis=1)) for m in (a, b))
    return correlation(*ranks)


def normalised(maps: Tensor) -> Tensor:
    return maps / maps.abs().amax((1, 2), keepdim=True).clamp(min=1e-30)


def another(maps: Tensor) -> Tensor:
    """The control: the next picture's."""
    return maps.roll(1, 0)


@torch.no_grad()
def areas(subject: Subject, target: Tensor, maps: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Under the probability of the class, as pixels are covered (deletion), or shown (insertion),
    from the map's highest on. Equal ones are covered in smooth blobs, drawn by lot: pixel by pixel
    they would be salt and pepper, which destroys a picture faster than any map."""
    x, N, pixels = subject.x, len(maps), maps[0].numel()
    noise = torch.randn(maps.shape, generator=torch.Generator().manual_seed(0))
    lot = gaussian_blur(noise, min(maps.shape[1:]) / 10).flatten(1)
    order = np.lexsort((lot.numpy(), -maps.flatten(1).numpy()), axis=1)
    rank = torch.from_numpy(order.argsort(1)).view(N, 1, *maps.shape[1:])

    def area(shown: Callable[[Tensor], Tensor]) -> Tensor:
        curve = []
        for k in range(steps + 1):
            mixed = torch.where(shown(rank < round(k * pixels / steps)), x, subject.cover)
            logits = subject.net(mixed)
            curve.append(logits.softmax(1).gather(1, target[:, None])[:, 0])
        return torch.trapezoid(torch.stack(curve, 1)) / steps

    return area(lambda highest: ~highest), area(lambda highest: highest)


def worth(subject: Subject, target: Tensor, maps: Tensor, steps: int) -> dict[str, Tensor]:
    """More is better: deletion as what is left to one. Ink is what a digit is made of."""
    deletion, insertion = areas(subject, target, maps, steps)
    found = {"deletion": 1 - deletion, "insertion": insertion}
    if subject.name.startswith("course"):
        ink = (subject.x[:, 0] - subject.cover) * CourseCNN.STD > 0.5
        energy = maps.relu()
        found["energy"] = (energy * ink).sum((1, 2)) / energy.sum((1, 2)).clamp(min=1e-30)
        highest = maps.flatten(1).argmax(1, keepdim=True)
        hit = ink.flatten(1).gather(1, highest)[:, 0] & maps.flatten(1).any(1)
        found["pointing"] = hit.double()
    return found


# ------------------------------------------------------------------------------------ the studies


def displacement() -> Tree:
    """Pixels between where a cell of the course network looks and where its value is drawn."""
    S, net = 28, subjects.shipped_network()
    x = torch.zeros(S, 1, S, S)
    x[range(S), :, range(S)] = torch.nan  # the p-th picture: row p
    with torch.no_grad():
        maps = net.get_submodule("conv2")(F.relu(F.max_pool2d(net.get_submodule("conv1")(x), 2)))
    seen = maps.isnan().any((1, 3)).double()  # (p, j): does cell j look at row p?
    looks = (seen * torch.arange(S)[:, None]).sum(0) / seen.sum(0)
    found: Tree = {"sees": int(seen.sum(0).max()), "looks at": looks.tolist()}
    n = len(looks)
    for pad in (0, 1, 3):
        ramp = torch.arange(1.0, n + 1).view(1, n, 1).expand(1, n, n)  # the cells' own numbers
        rows = place(ramp, (S, S), None, pad)[1][0, :, S // 2]
        inner = (rows > 1.001) & (rows < n - 0.001) & (rows.diff(prepend=rows[:1]) > 0)
        line = np.polyfit(rows[inner], torch.arange(S)[inner], 1)
        drawn = np.polyval(line, np.arange(1, n + 1))
        off = np.abs(drawn - looks.numpy())
        found[f"pad {pad}"] = {
            "drawn at": drawn.round(4).tolist(),
            "mean": round(off.mean(), 4),
            "worst": round(off.max(), 4),
        }
    return found


def placement(subject: Subject, effort: Effort) -> Values:
    """Correlation with occlusion, for pads and shifts (cells, down and across) around the rule.

    Beside it that of another picture's map, and that of the map averaged over occlusion's square:
    what covering a square takes away is what lies in all of it.
    """
    subject = subject.first(effort.occluded)
    target = subject.logits.argmax(1)
    drops, (cells, rule) = subject.drops(target), cells_of(subject, target)
    S, n = subject.x.shape[2], cells.shape[1]

    def agreement(pad: float, down: int = 0, across: int = 0) -> dict[str, Tensor]:
        weights = interpolation_matrix(S, n, pad, cells.dtype, cells.device)
        moved = ((torch.arange(S) - shift).clamp(0, S - 1) for shift in (down, across))
        rows, columns = (weights[at] for at in moved)
        maps = rows @ cells @ columns.T
        own = correlation(subject.at_patches(maps), drops)
        other = correlation(subject.at_patches(another(maps)), drops)
        averaged = correlation(subject.at_patches(subject.over_patches(maps)), drops)
        return {"own": own, "another's": other, "difference": own - other, "averaged": averaged}

    best, found = agreement(rule), Values()
    for pad in (rule + more for more in (-3, -2, -1, -0.5, 0, 0.5, 1, 2)):
        if n + 2 * pad > 1:
            found |= {("pad", f"{pad:g}", name): v for name, v in agreement(pad).items()}
            for name in ("own", "difference", "averaged"):
                value = best[name] - found["pad", f"{pad:g}", name]
                found["pad", f"{pad:g}", f"{name}, rule's minus this"] = value
    half = round(S / (n + 2 * rule) / 2)  # of a cell, in pixels
    for down, across in itertools.product((-2, -1, 0, 1, 2), repeat=2):
        values, key = agreement(rule, down * half, across * half), f"{down / 2:g} {across / 2:g}"
        found |= {("shift", key, name): v for name, v in values.items() if name != "averaged"}
        found["shift", key, "own, rule's minus this"] = best["own"] - values["own"]
    return found


def faithfulness(subject: Subject, effort: Effort) -> Values:
    """Deletion, insertion, ink; each beside all ones, another picture's map and the mean map."""
    subject = subject.first(effort.deleted)
    target = subject.logits.argmax(1)
    cells, rule = cells_of(subject, target)
    found = Values()
    for pad in sorted({0, min(1, rule), rule}):  # the libraries', the courses', ours
        asked: Any = "auto" if pad == rule else pad
        size, n = subject.x.shape[2], cells.shape[1]
        weights = interpolation_matrix(size, n, pad, cells.dtype, cells.device)
        ones = worth(subject, target, weights @ torch.ones_like(cells) @ weights.T, effort.steps)
        for name, maps in maps_of(subject, target, asked).items():
            if name == "guided" and pad != rule:  # the same for any pad
                continue
            maps, key = normalised(maps), (name, f"pad {pad:g}")
            value = worth(subject, target, maps, effort.steps)
            found |= {(*key, measure, "value"): v for measure, v in value.items()}
            others = (maps.sum(0) - maps) / (len(maps) - 1)
            controls = {"all ones": ones} | {
                control: worth(subject, target, other, effort.steps)
                for control, other in (("another's", another(maps)), ("mean map", others))
            }
            for (control, theirs), measure in itertools.product(controls.items(), value):
                found[*key, measure, f"minus {control}"] = value[measure] - theirs[measure]
    return found


def sanity(subject: Subject, effort: Effort) -> Values:
    """Adebayo et al. 2018: rank correlation with the map of a network whose layers are random from
    the top down to the one named. A map that does not change does not tell what was learnt."""
    subject = subject.first(effort.randomised)
    target = subject.logits.argmax(1)
    before = maps_of(subject, target)
    found = Values()
    for name, maps in before.items():
        found[name, "another picture"] = rank_correlation(maps, another(maps))
    for seed in range(effort.draws):
        torch.manual_seed(seed)
        net = copy.deepcopy(subject.net)
        for layer, child in reversed(list(net.named_children())):
            if not list(child.parameters()):  # a ReLU
                continue
            for module in child.modules():
                if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
                    module.reset_parameters()
            for name, after in maps_of(replace(subject, net=net), target).items():
                same = rank_correlation(before[name], after) / effort.draws
                found[name, layer] = found.get((name, layer), torch.zeros(1)) + same
    return found


def methods(subject: Subject, effort: Effort) -> Values:
    """Rank correlations over patches of 4 x 4 pixels, with one another and with Shapley values."""
    subject = subject.first(effort.shapley)
    target = subject.logits.argmax(1)
    maps = maps_of(subject, target)
    maps |= {"Shapley": shapley(subject, target, effort.samples, 0),
             "Shapley again": shapley(subject, target, effort.samples, 1)}  # fmt: skip
    patches = {name: F.avg_pool2d(m[:, None].double(), 4)[:, 0] for name, m in maps.items()}
    pairs = itertools.combinations(patches, 2)
    found: Values = {(a, b): rank_correlation(patches[a], patches[b]) for a, b in pairs}
    theirs = another(patches["Shapley"])
    for name, values in patches.items():
        found[name, "Shapley of another picture"] = rank_correlation(values, theirs)
    return found


def shapley(subject: Subject, target: Tensor, samples: int, seed: int) -> Tensor:
    """Captum's sampling: the mean gain of a patch over random orders in which patches appear."""
    from captum.attr import ShapleyValueSampling

    H, W = subject.x.shape[2:]
    patch = torch.arange(H)[:, None] // 4 * (W // 4) + torch.arange(W) // 4
    torch.manual_seed(seed)
    with torch.no_grad():
        values: Tensor = ShapleyValueSampling(subject.net).attribute(
            subject.x, subject.cover, target, feature_mask=patch[None, None], n_samples=samples
        )
    return values[:, 0]


def costs(subject: Subject, effort: Effort) -> Tree:
    """How many forward passes a picture takes, and how many times as long as one it takes."""
    subject = subject.first(CHUNK)
    x, target, net = subject.x, subject.logits.argmax(1), subject.net
    runs: dict[str, Callable[[], object]] = {
        "Grad-CAM alone": lambda: explain(net, x, target, "conv2", guided=False),
        "all three maps": lambda: explain(net, x, target, "conv2"),
        "four methods and guided": lambda: maps_of(subject, target),
        "Shapley": lambda: shapley(subject, target, effort.samples, 0),
    }
    found: Tree = {}
    for name, run in runs.items():
        passes: list[int] = []
        with net.register_forward_hook(lambda _net, args, _out, n=passes: n.append(len(args[0]))):
            run()
        with torch.no_grad():
            once = [seconds(lambda: net(x)) for _ in range(21)]
        took = [seconds(run) for _ in range(1 if name == "Shapley" else 7)]
        found[name] = {
            "forward passes": sum(passes) / len(x),
            "times as long as one": round(statistics.median(took) / statistics.median(once), 1),
        }
    return found


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def mistakes(subject: Subject, effort: Effort) -> Values:
    """The maps of the class predicted and of the true one, where these differ; as the control, of
    the class predicted and of the second best, where the first is right."""
    top = subject.logits.topk(2).indices
    right = top[:, 0] == subject.y
    empty = (~cells_of(subject, top[:, 0])[0].flatten(1).any(1)).double()
    found = Values()
    for name, chosen, second in (("wrong", ~right, subject.y), ("right", right, top[:, 1])):
        found["empty", name, "all"] = empty[chosen]
        for c in range(10):
            found["empty", name, str(c)] = empty[chosen & (subject.y == c)]
        few = chosen.nonzero()[: round(effort.mistakes * subject.share), 0]
        if len(few):
            both = two_classes(subject.of(few), top[few, 0], second[few])
            found |= {(name, *key): values for key, values in both.items()}
    return found


def two_classes(subject: Subject, first: Tensor, second: Tensor) -> Values:
    """How far apart the maps of two classes lie, and if each agrees with occlusion of its own."""
    maps = [maps_of(subject, c)["gradcam"] for c in (first, second)]
    drops = [subject.drops(c) for c in (first, second)]
    at = [subject.at_patches(m) for m in maps]
    empty = [~m.flatten(1).any(1) for m in maps]
    apart = (centre(maps[0]) - centre(maps[1])).norm(dim=1)
    found = Values()
    found["one with the other",] = correlation(*maps)
    found["pixels apart",] = torch.where(empty[0] | empty[1], torch.nan, apart)
    for k, name in enumerate(("first", "second")):
        found[name, "empty"] = empty[k].double()
        found[name, "with own occlusion"] = correlation(at[k], drops[k])
        found[name, "with the other's occlusion"] = correlation(at[k], drops[1 - k])
    return found


def centre(maps: Tensor) -> Tensor:
    """(N, 2), the centre of mass."""
    mass = maps.sum((1, 2)).clamp(min=1e-30)
    rows, columns = maps.sum(2), maps.sum(1)
    pixels = [torch.arange(S, dtype=maps.dtype) for S in maps.shape[1:]]
    return torch.stack([rows @ pixels[0] / mass, columns @ pixels[1] / mass], 1)


def two_objects(subject: Subject, _effort: Effort) -> Values:
    """Of each class's map, the share that lies on its own object, not on the other's.

    A map that does not depend on the class has a mean of exactly one half.
    """
    shares, regions = dict[str, list[Tensor]](), subject.regions
    assert regions is not None
    for k in (0, 1):
        for name, maps in maps_of(subject, subject.y[:, k]).items():
            own, other = ((maps.relu() * regions[:, i]).sum((1, 2)) for i in (k, 1 - k))
            share = torch.where(own + other > 0, own / (own + other), 0.5)
            shares.setdefault(name, []).append(share)
    found = Values()
    for name, of_each in shares.items():
        both = torch.cat(of_each)
        found |= {(name, "share on its own"): both, (name, "more than half"): (both > 0.5).double()}
    return found


STUDIES = (placement, faithfulness, sanity, methods, mistakes)
STUDY_NAMES = [*(study.__name__ for study in STUDIES), two_objects.__name__, "trust"]


def networks(options: argparse.Namespace, effort: Effort) -> list[tuple[Any, Any]]:
    """How each is made, and the studies it is in."""
    mnist, real = load_mnist(options.data, download=False), options.real
    lacking = [name for name in subjects.FILES if real and not (real / name).exists()]
    if lacking:
        raise InputError(f"--real {real} lacks {lacking[0]}; give a folder with "
                         f"{', '.join(subjects.FILES)}, or leave it away")  # fmt: skip
    found: list[tuple[Any, Any]] = [
        (partial(subjects.course_subject, *mnist, seed, effort.epochs), STUDIES)
        for seed in range(1 + effort.seeds)
    ]
    found += [(partial(subjects.shapes_subject, effort.pairs), [two_objects])]
    if real:
        found += [(partial(subjects.cifar_subject, real), STUDIES),
                  (partial(subjects.squeezenet_subject, real), [placement, faithfulness]),
                  (lambda: subjects.pasted_pairs(subjects.squeezenet_subject(real)), [two_objects]),
                  (partial(subjects.dog_and_cat, real), [two_objects])]  # fmt: skip
    return found


def measured(options: argparse.Namespace, effort: Effort) -> Tree:
    """All that is asked for; of --only, beside what an earlier study in --out found of the rest."""
    kept = options.out / KEPT.name
    found: Tree = json.loads(kept.read_text()) if options.only else {}
    wanted = options.only or STUDY_NAMES
    weights = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    found |= {"weights": weights, "counts": asdict(effort), "displacement": displacement()}
    plan = [(make, [study for study in studies if study.__name__ in wanted])
            for make, studies in networks(options, effort)]  # fmt: skip
    values: dict[str, dict[str, Values]] = {}
    with tqdm(total=sum(1 + len(studies) for _, studies in plan), disable=None) as bar:
        for make, studies in plan if options.only != ["trust"] else ():
            subject = make()
            found.setdefault("networks", {})[subject.name] = described(subject)
            if subject.name == SHIPPED and not options.only:
                found["costs"] = costs(subject, effort)
            bar.update()
            for study in studies:
                bar.set_description(f"{subject.name}: {study.__name__}")
                values.setdefault(study.__name__, {})[subject.name] = study(subject, effort)
                bar.update()
    for study in STUDIES:
        if of := values.get(study.__name__):
            seeds = [each for name, each in of.items() if name.startswith("course, seed")]
            of[OTHERS] = pooled(seeds, torch.cat if study is mistakes else mean_of)
    if "trust" in wanted:
        mnist = load_mnist(options.data, download=False)
        found["trust"] = confusion.study(mnist, options.real, effort)
    trees = {name: {who: tree(v) for who, v in of.items()} for name, of in values.items()}
    return found | trees


def described(subject: Subject) -> Tree:
    if subject.y.ndim == 2:
        return {"pictures": len(subject.x)}
    right = (subject.logits.argmax(1) == subject.y).double().mean()
    return {"pictures": len(subject.x), "accuracy": round(float(right), 4)}


def written(found: Tree) -> str:
    """JSON, an interval a line."""
    text = json.dumps(found, indent=1)
    return re.sub(r"\[[^][{}]*\]", lambda m: re.sub(r"\s+", " ", m[0]), text) + "\n"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="an .npz with x_train, y_train, x_test, y_test")
    add("--real", type=Path, help=f"a folder with {', '.join(subjects.FILES)}")
    add("--out", type=Path, default=KEPT.parent, help="(default: %(default)s)")
    add("--only", nargs="+", choices=STUDY_NAMES, metavar="STUDY",
        help=f"these alone: {', '.join(STUDY_NAMES)}; the rest of --out's evidence.json is kept")
    add("--quick", action="store_true", help="a smaller study")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(argv)
    try:
        found = measured(options, QUICK if options.quick else Effort())
    except InputError as problem:
        parser.error(str(problem))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / KEPT.name).write_text(written(found))
    evidence_plots.draw(found, options.out)
    print(f"written   {options.out / KEPT.name} and its plots beside it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
