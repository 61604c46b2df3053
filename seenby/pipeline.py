"""A run: from pictures to files, batch by batch; decoding, explaining and writing overlap."""

from __future__ import annotations

import itertools
import shutil
import sys
import time
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from typing import Any

import torch
from torch.utils.data import DataLoader

from seenby.batch import Batches, Source, explain_batch, fingerprint, tensor_of
from seenby.core.explanation import Explanation
from seenby.core.layers import list_layers
from seenby.core.targets import Like, Ranked, Target, embedding_of, expand_targets
from seenby.errors import InputError, warn
from seenby.inputs.classes import target_class
from seenby.inputs.networks import Network, load_network
from seenby.inputs.pictures import Picture, read_picture
from seenby.machine import Ranks, hand_over_often, keep_freed_memory, return_freed_memory
from seenby.outputs.figure import draw_grid
from seenby.outputs.record import run_record
from seenby.outputs.store import STEM, OutputFolder, Result, forget_parts, remove_page
from seenby.outputs.summary import Tally, layer_table, skipped_lines, summary
from seenby.outputs.table import EXPLAINED
from seenby.settings import Settings, require_consistent
from seenby.trial_run import try_maps

WRITERS = 2  # threads
SHARED_FOLDER_TIMEOUT = 60  # seconds, in which a folder of several machines must show what is in it


@dataclass(frozen=True)
class Run:
    """What is known before the first picture is read, and stays so."""

    settings: Settings
    network: Network
    targets: tuple[Target, ...]  # "predicted" and "label" among them
    ranks: Ranks
    output: OutputFolder
    total: int  # pictures


def execute(settings: Settings, ranks: Ranks) -> int:
    """Read, explain and write; 1 if a picture had to be left out, else 0."""
    started = time.perf_counter()
    require_consistent(settings, ranks)
    network = load_network(settings.model, settings.weights, settings.layer, settings.class_names,
                           settings.size, settings.mean, settings.std, settings.task)
    if settings.list_layers:
        print(table_of_layers(network))
        return 0
    if settings.weights == "none" and ranks.rank == 0:
        warn("the weights are RANDOM: these maps mean nothing")
    run = prepare(settings, network, ranks)
    figure_batches = explain_batches(run)
    ranks.all_gather("end")
    if ranks.rank:
        return 0
    wait_for_parts(run)
    tally = run.output.merge_parts(settings.columns, settings.pick)
    columns = figure_columns(run, tally, figure_batches)
    trust = try_maps(settings, network, run.targets, run.output)
    finish(run, tally, columns, trust, time.perf_counter() - started)
    # To torchrun a rank that ends with 1 has failed, and it would start all of them again.
    is_incomplete = tally.skipped or has_changed(run, tally)
    return 1 if is_incomplete and ranks.world_size == 1 else 0


def prepare(settings: Settings, network: Network, ranks: Ranks) -> Run:
    """Look at what there is to do, the same in every rank."""
    targets = targets_of(settings, network)
    mark, total = fingerprint(network, settings, targets)
    if not settings.resume and ranks.world_size == 1:
        forget_parts(settings.out)
    if not ranks.rank:
        remove_page(settings.out, settings.gallery)
    if len(ranks.all_gather("pictures", mark)) > 1:
        raise InputError("the processes don't see the same pictures, settings and weights; run "
                         "them again when nothing changes any more")
    output = OutputFolder(
        settings.out, settings.out / f".{STEM}.{mark}.parts", settings.style,
        overlays=settings.overlays, raw=settings.raw, panels=settings.gallery,
        save_maps=settings.save_maps, uncropped=settings.uncropped,
        name_targets=len(targets) > 1, name_methods=len(settings.method) > 1,
    )  # fmt: skip
    return Run(settings, network, targets, ranks, output, total)


def targets_of(settings: Settings, network: Network) -> tuple[Target, ...]:
    """The words of --target, or the picture of --like, as explain_many takes them, each once."""
    if network.task != "embedding":
        words = expand_targets(settings.target)
        targets = (target_class(w, network.classes) if isinstance(w, str) else w for w in words)
        # A class may be given by its name and by its number.
        return tuple(dict.fromkeys("predicted" if t == Ranked(0) else t for t in targets))
    assert settings.like, "require_consistent"
    picture = read_picture(settings.like, network.preprocessing)
    embedding = embedding_of(network.module, tensor_of(network, [picture]))
    return (Like(embedding, picture.name),)


def explain_batches(run: Run) -> dict[int, list[Result]]:
    """Do this rank's batches. Returns those that the figure needs."""
    settings, ranks, output = run.settings, run.ranks, run.output
    keep_freed_memory()
    hand_over_often()
    run.network.module.to(settings.device)
    done = set(output.finished_batches())
    mine = range(ranks.rank, sys.maxsize, ranks.world_size)  # however many there are
    batches = Batches(Source(settings, run.network), mine, done)
    workers = settings.workers if run.total > 4 * settings.batch_size else 0
    loader = DataLoader(batches, batch_size=None, num_workers=workers)
    figure_batches: dict[int, list[Result]] = {}
    columns, picked = 0, count_picked(run)
    with progress_bar(run, len(done)) as bar, ThreadPoolExecutor(WRITERS) as pool:
        writing: deque[Future[None]] = deque()
        # A pool starts a thread only when none is idle. As they wait for each other, for at most 5
        # seconds, both start now: where memory lacks, the run ends here, and never hangs later.
        pool.map(Barrier(WRITERS).wait, [5] * WRITERS)
        for number, batch in loader:
            if (picks_left := count_picks_left(settings, picked, number)) <= 0:
                break
            results = explain_batch(batch, run.network, settings, run.targets, picks_left)
            picked[number] = sum(bool(result.explanations) for result in results)
            if columns < settings.columns:
                figure_batches[number] = [result for result in results if result.explanations]
                columns += sum(len(result.explanations) for result in results)
            writing.append(pool.submit(output.write_batch, number, results))
            if len(writing) > WRITERS:
                writing.popleft().result()
            bar.update(len(batch))
        for future in writing:
            future.result()
    return_freed_memory()  # for the figure
    return figure_batches


def count_picked(run: Run) -> Counter[int]:
    """How many pictures of each finished batch were picked; counted only where it matters."""
    if run.settings.pick == "all" or run.settings.limit is None:
        return Counter()
    return Counter(number for number, rows in run.output.read_parts()
                   if rows[0]["status"] == EXPLAINED)


def count_picks_left(settings: Settings, picked: Counter[int], number: int = sys.maxsize) -> int:
    """With --pick, --limit counts the pictures that were picked, here in the batches before one.

    Batches behind it may be done already, before --resume: they must not take away its picks.
    """
    if settings.pick == "all" or settings.limit is None:
        return sys.maxsize
    return settings.limit - sum(n for batch, n in picked.items() if batch < number)


def progress_bar(run: Run, done: int) -> Any:
    """On standard error, for a person, on what takes longer than two seconds."""
    from tqdm import tqdm

    hidden = True if run.settings.quiet or run.ranks.rank else None  # None: unless a terminal
    world_size = run.ranks.world_size
    share, before = -(-run.total // world_size), done * run.settings.batch_size // world_size
    return tqdm(total=share, initial=min(before, share), delay=2, disable=hidden, unit=" pictures")


def wait_for_parts(run: Run) -> None:
    """Until every batch that is needed has its part, as a shared folder may show it late."""
    patience = SHARED_FOLDER_TIMEOUT if run.ranks.world_size > 1 else 0
    end = time.monotonic() + patience
    batches = -(-run.total // run.settings.batch_size)
    while (len(run.output.finished_batches()) < batches
           and count_picks_left(run.settings, count_picked(run)) > 0):
        if time.monotonic() > end:
            raise InputError(f"{run.output.parts} is no longer complete, as when another run "
                             "writes into the same folder; add --resume, and give each run an "
                             "--out of its own")
        time.sleep(0.1)


def figure_columns(run: Run, tally: Tally,
                   at_hand: dict[int, list[Result]]) -> list[tuple[Picture, Explanation]]:
    """What the figure shows. What another rank, or an earlier run, explained is explained again."""
    missing = set(tally.in_figure.values()) - at_hand.keys()
    batches = iter(Batches(Source(run.settings, run.network), missing))
    picked = count_picked(run) if missing else Counter()
    for number, batch in itertools.islice(batches, len(missing)):
        picks_left = count_picks_left(run.settings, picked, number)  # as before, to the last digit
        at_hand[number] = explain_batch(batch, run.network, run.settings, run.targets, picks_left)
    results = [result for number in sorted(at_hand) for result in at_hand[number]]
    columns = [(r.picture, explanation) for r in results if r.picture.name in tally.in_figure
               for explanation in r.explanations]
    return columns[: run.settings.columns]


def finish(run: Run, tally: Tally, columns: list[tuple[Picture, Explanation]],
           trust: tuple[list[str], list[str]], seconds: float) -> None:
    """Write the figure and the record of the run, and say what was done; trust: try_maps'."""
    settings, output, (sentences, more) = run.settings, run.output, trust
    if settings.save_maps:
        output.remove_other_maps()
    pictures, explanations = zip(*columns, strict=True)
    figure = draw_grid(pictures, explanations, run.network.classes, settings.style)
    output.save_figure(f"{STEM}.png", figure)
    output.save_json("run.json", run_record(settings.changing_results(), run.network,
                                            explanations[0], settings.pad, tally))
    shutil.rmtree(output.parts)
    if has_changed(run, tally):
        warn(f"the pictures changed while they were read: {run.total} were listed, {tally.total} "
             "are in the table; run it again")
    for line in skipped_lines(tally.skipped):
        warn(line)
    if not settings.quiet:
        print(summary(
            run.network, explanations[0], settings.pad, tally, seconds=seconds, total=run.total,
            columns=settings.columns, per_picture=len(run.targets) * len(settings.method),
            written=output.written(more), trust=sentences,
        ))  # fmt: skip


def has_changed(run: Run, tally: Tally) -> bool:
    """Whether other pictures were read than were listed."""
    return run.settings.pick == "all" and tally.total != run.total


def table_of_layers(network: Network) -> str:
    preprocessing = network.preprocessing
    size, channels = preprocessing.crop_size, len(preprocessing.mean)
    layers = list_layers(network.module, torch.zeros(1, channels, *size))
    return layer_table(layers, network.module, size, channels)
