"""One batch of a run: which pictures it holds, and what becomes of each of them."""

from __future__ import annotations

import itertools
import math
import signal
import zlib
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from seenby.core.explanation import Explanation, explain, explain_many
from seenby.core.placement import gaussian_blur
from seenby.core.targets import Like, Target
from seenby.inputs.classes import class_index
from seenby.inputs.networks import Network
from seenby.inputs.pictures import Item, Picture, list_items, load_picture
from seenby.machine import split_on_oom, threads_for
from seenby.outputs.figure import SIGNED
from seenby.outputs.store import Result
from seenby.outputs.table import NOT_FINITE, explained_row, prediction, skipped_row, unpicked_row
from seenby.settings import Settings

Prediction = tuple[str, str]  # the classes and their probabilities, as in the table


class Source:
    """The pictures that a run was given."""

    def __init__(self, settings: Settings, network: Network) -> None:
        self.settings = settings
        # Not the network itself: a worker needs no copy of it.
        self.preprocessing, self.classes = network.preprocessing, network.labels

    def items(self) -> Iterator[Item]:
        """All there are, or --limit; that counts those that are picked, where some are picked."""
        limit = self.settings.limit if self.settings.pick == "all" else None
        return itertools.islice(list_items(self.settings.images, self.classes), limit)

    def load(self, item: Item) -> Picture:
        settings = self.settings
        return load_picture(item, self.preprocessing, self.classes, settings.invert,
                            settings.uncropped, require_label="label" in settings.target)


def fingerprint(network: Network, settings: Settings,
                targets: tuple[Target, ...]) -> tuple[str, int]:
    """Of the settings, the weights, the FILE.py of a network of one's own and the pictures' names,
    which are counted, too."""
    mark, total = settings.fingerprint(), 0
    if network.file:
        mark = zlib.crc32(network.file.read_bytes(), mark)
    likes = (target.embedding for target in targets if isinstance(target, Like))
    for weight in [*network.module.parameters(), *network.module.buffers(), *likes]:
        array: Any = weight.detach().contiguous().numpy()
        mark = zlib.crc32(array, mark)
    for item in Source(settings, network).items():
        words = f"{item.name} {item.label}"
        mark, total = zlib.crc32(words.encode(errors="replace"), mark), total + 1
    return f"{mark:08x}", total


class Batches(IterableDataset[tuple[int, list[Picture]]]):
    """The batches that are wanted and not done, decoded; each worker of a DataLoader has its share.
    """

    def __init__(self, source: Source, wanted: Container[int], done: Container[int] = ()) -> None:
        self.source, self.wanted, self.done = source, wanted, done

    def __iter__(self) -> Iterator[tuple[int, list[Picture]]]:
        first, step = 0, 1
        if worker := get_worker_info():
            first, step = worker.id, worker.num_workers
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for what started it
        batches = enumerate(batched(self.source.items(), self.source.settings.batch_size))
        to_do = ((n, items) for n, items in batches if n in self.wanted and n not in self.done)
        for number, items in itertools.islice(to_do, first, None, step):
            yield number, [self.source.load(item) for item in items]


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def explain_batch(batch: list[Picture], network: Network, settings: Settings,
                  targets: Sequence[Target], picks_left: int) -> list[Result]:
    """What becomes of each picture; --pick chooses among them, at most picks_left."""
    readable = [picture for picture in batch if picture.image is not None]
    predictions: dict[str, Prediction] = {}
    with threads_for(network.module, math.prod(network.preprocessing.crop_size)):
        if settings.pick != "all":
            guesses = split_on_oom(partial(predict, network), readable)
            predictions = {p.name: guess for p, guess in zip(readable, guesses, strict=True)}
            right = settings.pick == "correct"
            readable = [p for p in readable
                        if p.label and (p.label == predictions[p.name][0]) == right][:picks_left]
        work = partial(explain_pictures, network, settings, targets)
        found = split_on_oom(work, readable)
    explanations = {p.name: each for p, each in zip(readable, found, strict=True)}
    return [result_of(picture, explanations.get(picture.name), predictions.get(picture.name),
                      network.classes) for picture in batch]


def result_of(picture: Picture, explanations: list[Explanation] | None,
              prediction: Prediction | None, classes: Sequence[str]) -> Result:
    """explanations: None if it was not picked or not read; empty if one is not finite."""
    if explanations:
        rows = [explained_row(picture, explanation, classes) for explanation in explanations]
        return Result(picture, explanations, rows)
    if explanations is None and prediction:
        return Result(picture, [], [unpicked_row(picture, *prediction)])
    if explanations is not None:
        note = f"{picture.name}: {NOT_FINITE}; give another picture"
        picture = replace(picture, note=note)
    return Result(picture, [], [skipped_row(picture)])


def predict(network: Network, pictures: list[Picture]) -> list[Prediction]:
    explanation = explain(network.module, tensor_of(network, pictures), layer=network.layer,
                          guided=False, task=network.task)
    (explanation,) = to_cpu([explanation])
    return [prediction(each, network.classes) for each in explanation]


def explain_pictures(network: Network, settings: Settings, targets: Sequence[Target],
                     pictures: list[Picture]) -> list[list[Explanation]]:
    """Of each picture: target by target, methods within; none where one of them is not finite."""
    words: dict[Any, Any] = {"predicted": None}
    if "label" in targets:  # then a picture without a label was not read
        words["label"] = [class_index(p.label, network.classes) for p in pictures]
    guided = any(panel in SIGNED for panel in settings.style.panels)
    explanations = to_cpu(explain_many(
        network.module, tensor_of(network, pictures), [words.get(t, t) for t in targets],
        network.layer, settings.method, settings.pad, guided, task=network.task,
    ))  # fmt: skip
    blurred = [replace(explanation, heatmap=gaussian_blur(explanation.heatmap, settings.blur))
               for explanation in explanations]
    finite = torch.stack([each.is_finite for each in blurred]).all(0).tolist()
    by_picture = zip(*blurred, strict=True)
    return [list(each) if is_finite else [] for each, is_finite in zip(by_picture, finite,
                                                                       strict=True)]


def tensor_of(network: Network, pictures: Sequence[Picture]) -> Tensor:
    images = [p.image for p in pictures if p.image is not None]
    assert len(images) == len(pictures), "pictures that could not be read were left out before"
    return network.tensor(images)


def to_cpu(explanations: list[Explanation]) -> list[Explanation]:
    """The same on the CPU, in one transfer: each one waits for all that a GPU has yet to do."""
    if all(explanation.L_c.device.type == "cpu" for explanation in explanations):
        return explanations
    sent = {id(t): t for e in explanations for t in e.tensors().values()}
    # Of one number even a contiguous tensor may have any stride, with which it can't be viewed.
    flat = (t.contiguous().as_strided((t.numel(),), (1,)) for t in sent.values())
    bytes_ = torch.cat([t.view(torch.uint8) for t in flat]).cpu()
    parts = dict(zip(sent, bytes_.split([t.nbytes for t in sent.values()]), strict=True))
    # A clone begins at an address that any type of number may have.
    return [explanation.apply(lambda t: parts[id(t)].clone().view(t.dtype).view(t.shape))
            for explanation in explanations]
