"""From pictures to files, batch by batch."""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import signal
import sys
import time
import zlib
from collections import deque
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from threading import Barrier
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from seenby.core.explanation import Explanation, explain, explain_each
from seenby.core.layers import layer_table
from seenby.core.placement import blurred
from seenby.errors import Complaint
from seenby.inputs.classes import numbered, target_of
from seenby.inputs.networks import Network, load_network
from seenby.inputs.pictures import Item, Picture, decoded, items_in
from seenby.machine import (
    PATIENCE,
    RANK,
    SCRIPT,
    STEM,
    WORLD,
    halved,
    heard_of_all,
    libc,
    threads_for,
)
from seenby.outputs.store import merged, numbers_of, rows_in, save_figure, write_block
from seenby.outputs.summary import Tally, account
from seenby.outputs.table import Row, table_row

FREE = ("device", "grid", "out", "quiet", "resume", "workers")  # settings that change no part
WRITERS = 2  # threads
Options = argparse.Namespace  # of the command line
Result = tuple[Picture, list[Explanation], list[Row]]  # no explanation: unreadable, or not picked


class Blocks(IterableDataset[tuple[int, list[Picture]]]):
    """The wanted blocks that are not done, decoded; each worker of a DataLoader has its share."""

    def __init__(self, network: Network, options: Options, wanted: Container[int] = (),
                 done: Container[int] = ()) -> None:
        self.network = replace(network, net=nn.Identity())  # a worker needs no copy of it
        self.options, self.wanted, self.done = options, wanted, done

    def items(self) -> Iterator[Item]:
        """All there are, or --limit; that counts those that are picked, where some are picked."""
        limit = self.options.limit if self.options.pick == "all" else None
        return itertools.islice(items_in(self.options.images, self.network.classes), limit)

    def __iter__(self) -> Iterator[tuple[int, list[Picture]]]:
        how = self.options.invert, self.options.full_size, "label" in self.options.target
        first, step = 0, 1
        if worker := get_worker_info():
            first, step = worker.id, worker.num_workers
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for what started it
        items = self.items()
        blocks = enumerate(iter(lambda: [*itertools.islice(items, self.options.batch_size)], []))
        todo = (b for b in blocks if b[0] in self.wanted and b[0] not in self.done)
        for number, block in itertools.islice(todo, first, None, step):
            yield number, [decoded(item, self.network, *how) for item in block]


def run(options: Options) -> int:
    """Reads, explains and writes, block by block; 1 if a picture had to be left out."""
    started = time.perf_counter()
    feed = {name: given for name in ("size", "mean", "std") if (given := getattr(options, name))}
    network = load_network(options.model, options.weights, options.layer, options.classes, **feed)
    if options.layers:
        print(layer_table(network))
        return 0
    if options.weights == "none" and RANK == 0:
        print(f"{SCRIPT}: the weights are RANDOM: these maps mean nothing", file=sys.stderr)
    options.target = [target_of(word, network.classes) for word in options.target]
    if WORLD > 1 and options.pick != "all" and options.limit:
        raise Complaint("--pick with --limit was given to several processes, of which none knows "
                        "what the others picked; leave one of them away, or use one process")
    mark, total = fingerprint(network, options)
    options.parts = options.out / f".{STEM}.{mark}.parts"
    if not options.resume and WORLD == 1:  # what was begun before is forgotten
        for begun in options.out.glob(".*.parts"):
            shutil.rmtree(begun)
    if len(heard_of_all("pictures", mark)) > 1:
        raise Complaint("the processes don't see the same pictures, settings and weights; run them "
                        "again when nothing changes any more")
    at_hand = explain_blocks(network, options, total)
    heard_of_all("end")
    if RANK:
        return 0
    if not complete(options, total):
        raise Complaint(f"{options.parts} is no longer complete, as when another run writes into "
                        "the same folder; add --resume, and give each run an --out of its own")
    tally = merged(options, total)
    columns = columns_of(tally, at_hand, network, options)
    save_figure(columns, network, options)
    shutil.rmtree(options.parts)
    for note in tally.skipped:
        print(f"{SCRIPT}: {note}", file=sys.stderr)
    if not options.quiet:
        print(account(network, options, tally, columns[0][1], time.perf_counter() - started))
    # To torchrun a rank that ends with 1 has failed, and it would start all of them again.
    return 1 if tally.skipped and WORLD == 1 else 0


def fingerprint(network: Network, options: Options) -> tuple[str, int]:
    """Of the settings, the weights and the pictures' names, which are counted, too."""
    settings = {k: str(v) for k, v in vars(options).items() if k not in FREE}
    mark, total = zlib.crc32(json.dumps(settings).encode()), 0
    weights: list[Any] = [*network.net.parameters(), *network.net.buffers()]
    for weight in weights:
        mark = zlib.crc32(weight.detach().contiguous().numpy(), mark)
    for name, label, _ in Blocks(network, options).items():
        mark, total = zlib.crc32(f"{name} {label}".encode(errors="replace"), mark), total + 1
    return f"{mark:08x}", total


def explain_blocks(network: Network, options: Options, total: int) -> dict[int, list[Result]]:
    """This rank's blocks; decoding, explaining and writing overlap. Returns the figure's blocks."""
    # Freed memory stays here for the next batch: Linux hands it out anew page by page, which is
    # slow enough to take a quarter of VGG-16's time, and two thirds of a batch-norm's.
    libc("mallopt", -4, 0)  # M_MMAP_MAX
    libc("mallopt", -1, 2**31 - 1)  # M_TRIM_THRESHOLD
    network.net.to(options.device)
    done = set(numbers_of(options.parts))
    blocks = Blocks(network, options, range(RANK, sys.maxsize, WORLD), done)
    workers = options.workers if total > 4 * options.batch_size else 0
    loader = DataLoader(blocks, batch_size=None, num_workers=workers)
    at_hand: dict[int, list[Result]] = {}
    columns, left, last = 0, still_to_pick(options), max(done, default=-1)
    with progress(total, len(done), options) as bar, ThreadPoolExecutor(WRITERS) as pool:
        writing: deque[Future[None]] = deque()
        # All threads start now: one that lacks memory is waited for for ever.
        pool.map(Barrier(WRITERS).wait, [5] * WRITERS)
        for number, block in loader:
            if left <= 0 and number > last:  # what was done before the last was picked before it
                break
            results = explained(network, block, left, options)
            if columns < options.grid:
                at_hand[number] = [result for result in results if result[1]]
                columns += sum(len(explanations) for _, explanations, _ in results)
            writing.append(pool.submit(write_block, number, results, options))
            if len(writing) > WRITERS:
                writing.popleft().result()
            bar.update(len(block))
            left -= sum(bool(explanations) for _, explanations, _ in results)
        for each in writing:
            each.result()
    libc("malloc_trim", 0)  # what was kept, for the figure
    return at_hand


def complete(options: Options, total: int) -> bool:
    """Whether every block that is needed has its part."""
    blocks, end = -(-total // options.batch_size), time.monotonic() + PATIENCE
    while len(numbers_of(options.parts)) < blocks and still_to_pick(options) > 0:
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def progress(total: int, done: int, options: Options) -> Any:
    """A bar on standard error, for a person, on what takes longer than two seconds."""
    from tqdm import tqdm

    hidden = True if options.quiet or RANK else None  # None: unless it is a terminal
    share, before = -(-total // WORLD), done * options.batch_size // WORLD
    return tqdm(total=share, initial=min(before, share), delay=2, disable=hidden, unit=" pictures")


def still_to_pick(options: Options) -> int:
    """With --pick, --limit counts the pictures that were picked, also before --resume."""
    if options.pick == "all" or options.limit is None:
        return sys.maxsize
    picked = {row["image"] for _, rows in rows_in(options.parts) for row in rows if row["target"]}
    return int(options.limit) - len(picked)


def explained(network: Network, block: list[Picture], left: int, options: Options) -> list[Result]:
    """The block's pictures, each with its explanations, target by target, and its rows."""
    chosen = [picture for picture in block if picture.image is not None]
    said: dict[str, str] = {}
    with threads_for(network):
        if options.pick != "all":
            names = halved(partial(predictions, network), chosen)
            said = {p.name: name for p, name in zip(chosen, names, strict=True)}
            right = options.pick == "right"
            chosen = [p for p in chosen if p.label and (p.label == said[p.name]) == right][:left]
        each = halved(partial(explanations_of, network, options), chosen)
    found = {picture.name: ones for picture, ones in zip(chosen, each, strict=True)}
    results = []
    for picture in block:
        ones = found.get(picture.name, [])
        if picture.name in found and not ones:
            note = f"{picture.name}: the network answers with NaN or infinity; give another picture"
            picture = replace(picture, note=note)
        each_or_none: Sequence[Explanation | None] = ones or [None]
        other = "" if picture.name in found else said.get(picture.name, "")
        rows = [table_row(picture, one, network.classes, other) for one in each_or_none]
        results.append((picture, ones, rows))
    return results


def explanations_of(network: Network, options: Options,
                    pictures: list[Picture]) -> list[list[Explanation]]:
    """Of each picture: target by target, and method by method; none where one is not finite."""
    guided = any(name.startswith("guided") for name in options.panels)
    words: dict[str | int, Any] = {"predicted": None}
    if "label" in options.target:  # then a picture without a label is none of these
        words["label"] = [numbered(network.classes)[p.label] for p in pictures]
    targets = [words.get(target, target) for target in options.target]
    x, how = tensor_of(network, pictures), (network.layer, options.method, options.pad)
    found = fetched(explain_each(network.net, x, targets, *how, guided))
    placed = (replace(each, L_c=blurred(each.L_c, options.blur)) for each in found)
    good = torch.stack([*map(finite, found)]).all(0).tolist()
    return [list(ones) if fine else [] for *ones, fine in zip(*placed, good, strict=True)]


def predictions(network: Network, pictures: list[Picture]) -> list[str]:
    x = tensor_of(network, pictures)
    y = explain(network.net, x, layer=network.layer, guided=False).logits
    return [network.classes[c] for c in y.argmax(1).tolist()]


def tensor_of(network: Network, pictures: Sequence[Picture]) -> Tensor:
    return network.tensor([p.image for p in pictures if p.image])


def finite(explanation: Explanation) -> Tensor:
    """(B,) whether the network answers with numbers."""
    maps = (explanation.logits, explanation.L_c, explanation.R, explanation.guided_cam)
    return torch.stack([m.isfinite().flatten(1).all(1) for m in maps if m is not None]).all(0)


def fetched(explanations: list[Explanation]) -> list[Explanation]:
    """The same on the CPU, in one transfer: each one waits for all that a GPU has yet to do."""
    sent = {id(t): t for e in explanations for t in vars(e).values() if isinstance(t, Tensor)}
    bytes_ = torch.cat([t.contiguous().flatten().view(torch.uint8) for t in sent.values()]).cpu()
    parts = dict(zip(sent, bytes_.split([t.nbytes for t in sent.values()]), strict=True))
    # A clone begins at an address that any type of number may have.
    return [e.map(lambda t: parts[id(t)].clone().view(t.dtype).view(t.shape)) for e in explanations]


def columns_of(tally: Tally, at_hand: dict[int, list[Result]], network: Network,
               options: Options) -> list[tuple[Picture, Explanation]]:
    """Of the figure. What another rank, or an earlier run, has explained is explained again."""
    missing = set(tally.shown.values()) - at_hand.keys()
    blocks = iter(Blocks(network, options, missing))
    for number, block in itertools.islice(blocks, len(missing)):
        at_hand[number] = explained(network, block, sys.maxsize, options)
    results = [result for number in sorted(at_hand) for result in at_hand[number]]
    columns = [(p, one) for p, found, _ in results if p.name in tally.shown for one in found]
    return columns[: options.grid]
