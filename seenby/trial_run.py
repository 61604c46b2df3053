"""--trust: the trial of a run's maps, in the account, in trust.json and in trust.png."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seenby.batch import Source, tensor_of
from seenby.core.targets import Like, Target
from seenby.errors import InputError
from seenby.inputs.classes import class_index
from seenby.inputs.networks import Network
from seenby.machine import threads_for
from seenby.outputs.forest import draw_forest
from seenby.outputs.store import OutputFolder, atomic_write
from seenby.outputs.table import EXPLAINED, Row, is_correct
from seenby.scores import BOX, COVERINGS, EDGES, OWN, REDRAWN, Observation
from seenby.settings import Settings
from seenby.trials import Plan, make_plan, observe
from seenby.verdict import DECIDING, Trust, as_json, judge, weaker

FILES = ("trust.json", "trust.png")
ROWS = DECIDING | {BOX: "a box in the middle", EDGES: "the picture's edges",
                   REDRAWN: "freshly drawn weights"}


def try_maps(settings: Settings, network: Network, targets: Sequence[Target],
             output: OutputFolder) -> tuple[list[str], list[str]]:
    """Run the trial: its sentences for the account, and the names of the files that it wrote.

    It is of the first target and method, and of pictures spread evenly over those explained, as a
    folder begins with pictures of one class.
    """
    for name in FILES:
        (output.folder / name).unlink(missing_ok=True)  # an earlier run's would be believed
    if settings.trust is None:
        return [], []
    if settings.weights == "none":
        return ["no verdict: the weights are RANDOM"], []
    rows = [rows[0] for _, rows in output.read_parts() if rows[0]["status"] == EXPLAINED]
    n = min(settings.trust, len(rows))
    chosen = {row["image"]: row for row in (rows[i * len(rows) // n] for i in range(n))}
    with threads_for(network.module, math.prod(network.preprocessing.crop_size)):
        names, observations = observe_pictures(settings, network, targets[0], output, chosen)
    trust = judge(observations)
    asked = {"network": network.title, "layer": network.layer, "method": settings.method[0],
             "pad": settings.pad, "target": target_title(targets[0])}
    named = dict(zip(names, trust.thirds, strict=True)) if trust.thirds else None
    output.save_json(FILES[0], asked | as_json(trust) | {"thirds": named})
    output.save_figure(FILES[1], forest_of(trust))
    sentences = [*trust.sentences]
    if len(targets) > 1 or len(settings.method) > 1:
        sentences.append(f"tried with {target_title(targets[0])} and {settings.method[0]} alone")
    return sentences, [*FILES]


def observe_pictures(settings: Settings, network: Network, target: Target, output: OutputFolder,
                     chosen: Mapping[str, Row]) -> tuple[list[str], list[Observation]]:
    """The chosen pictures' names and what was seen of each; an interrupted run's are kept.

    chosen: by name, what the table says of each.
    """
    from tqdm import tqdm

    source, plan = Source(settings, network), None
    observations: dict[str, Observation] = {}
    hidden = True if settings.quiet else None  # None: unless a terminal
    with tqdm(total=len(chosen), desc="trust", delay=2, disable=hidden, unit=" pictures") as bar:
        for item in (item for item in source.items() if item.name in chosen):
            picture = source.load(item)
            if picture.image is None:  # any more
                raise InputError(picture.note)
            x = tensor_of(network, [picture])
            c = None if target == "predicted" else target
            if target == "label":
                c = class_index(picture.label, network.classes)
            plan = plan or plan_for(settings, network, c, x)
            file = output.parts / f"trust_{picture.name}.pt"
            if not file.exists():
                seen = observe(plan, x, c, zlib.crc32(picture.name.encode()))
                seen = replace(seen, correct=is_correct(chosen[picture.name]))
                with atomic_write(file, output.parts) as part:
                    torch.save(vars(seen), part)
            observations[picture.name] = Observation(**torch.load(file, weights_only=True))
            bar.update()
    return [*observations], [*observations.values()]


def read_thirds(folder: Path) -> tuple[dict[str, str], float]:
    """Of trust.json: the pictures' thirds (low, middle, high) and their reliability, if they are
    reliable."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        trust = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
        return dict(trust["thirds"]), float(trust["reliability"])
    return {}, 0.0


def plan_for(settings: Settings, network: Network, target: Target, x: Tensor) -> Plan:
    default_layer = "" if settings.layer else network.layer
    return make_plan(network.module, x, target, network.layer, settings.method[0], settings.pad,
                     network.task, default_layer, settings.batch_size)


def target_title(target: Target) -> str:
    return f"like {target.name}" if isinstance(target, Like) else str(target)


def forest_of(trust: Trust) -> Any:
    right = f", {trust.correct} of {trust.labelled} classified correctly" if trust.labelled else ""
    counts = f"{trust.pictures} pictures x {trust.sets} sets{right}"
    own, reach = (weaker(trust.correlation[name])[0] for name in (OWN, COVERINGS))
    counts += f"\nthey score {own:.2f}, maps made of half of the coverings {reach:.2f}"
    return draw_forest(trust.headline, counts, {
        "the maps, less those of": {words: trust.minus[name] for name, words in ROWS.items()},
        "the default, less": trust.default_minus,
    })  # fmt: skip
