"""The host: its memory, threads, processes and signals."""

from __future__ import annotations

import ctypes
import importlib
import math
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch.distributed.rendezvous import rendezvous

from seenby.errors import no_memory

if TYPE_CHECKING:
    from seenby.inputs.networks import Network
    from seenby.inputs.pictures import Picture

SCRIPT, STEM = "seenby", "seenby"


RANK, LOCAL_RANK, WORLD = (
    int(os.environ[name]) if "TORCHELASTIC_RUN_ID" in os.environ else single
    for name, single in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))
)
PATIENCE = 60 if WORLD > 1 else 0  # seconds, in which a shared folder must show what is in it


def libc(name: str, *numbers: int) -> None:
    """A function that the GNU C library has; others do without."""
    with suppress(AttributeError, OSError, TypeError):
        getattr(ctypes.CDLL(None), name)(*numbers)


@contextmanager
def threads_for(network: Network) -> Iterator[None]:
    """One for the course network and its like, which a second core makes no faster.

    It decodes and writes meanwhile: on two cores the run takes 0.55 to 0.87 times as long.
    """
    work = sum(weight.numel() for weight in network.net.parameters()) * math.prod(network.size)
    before = torch.get_num_threads()
    if small := work < 10**8:  # the course network's is a tenth of it, a ResNet-20's three times
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if small:
            torch.set_num_threads(before)


def halved(work: Callable[[list[Picture]], list[Any]], pictures: list[Picture]) -> list[Any]:
    """work's result for each; where memory does not suffice for all, half and half."""
    try:
        return work(pictures) if pictures else []
    except (MemoryError, RuntimeError) as error:
        if len(pictures) == 1 or not no_memory(error):
            raise
    # Here and not above: what failed is still in memory as long as the error is.
    half = len(pictures) // 2
    libc("malloc_trim", 0)  # what was kept, for a smaller batch
    say_once(f"no memory for {len(pictures)} pictures at once, so {half}; --batch-size {half} "
             "saves the attempt")
    return halved(work, pictures[:half]) + halved(work, pictures[half:])


@cache
def say_once(words: str) -> None:
    print(f"{SCRIPT}: {words}", file=sys.stderr)


def heard_of_all(about: str, word: str = "") -> set[bytes]:
    """What each rank says, once all have; if one can't, torchrun ends them all."""
    if WORLD == 1:
        return {word.encode()}
    store, *_ = next(rendezvous("env://"))
    words = [f"{about} {rank}" for rank in range(WORLD)]
    store.set(words[RANK], word)
    while not store.check(words):  # its own wait would not hear of Ctrl-C
        time.sleep(0.1)
    return {*map(store.get, words)}


def interrupted(*_signal: Any) -> NoReturn:
    """Ctrl-C. An exception would not do: raised while C++ calls back, it is printed and lost.

    What is half written lies among the parts, where the next run overwrites or removes it.
    """
    for worker in multiprocessing.active_children():
        worker.kill()
    os.write(2, f"{SCRIPT}: interrupted; every file is whole, --resume goes on\n".encode())
    os._exit(130)


def spare_cores() -> int:
    """For decoding: not the one that the network of this rank needs at least."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(0, min(4, (os.cpu_count() or 1) // ranks - 1))


def import_torchvision() -> Any:
    """torchvision, also beside a CPU-only PyTorch.

    The registry's torchvision is built for CUDA; there its import stops with "operator
    torchvision::nms does not exist". Classifiers need none of these operators, only their names.
    """
    while True:
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            missing = re.search(r"operator (torchvision::\w+) does not exist", str(error))
            if not missing:
                raise
            torch.library.define(missing[1], "(Tensor x) -> Tensor")
