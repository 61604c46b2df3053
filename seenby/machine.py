"""The machine that a run is on: its memory, threads, processes, signals and its torchvision."""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch
from torch import nn
from torch.distributed.rendezvous import rendezvous

from seenby.errors import PROGRAM, is_out_of_memory, warn_once

Given = TypeVar("Given")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """This process among those that torchrun started; without torchrun there is one."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @classmethod
    def from_environment(cls) -> Ranks:
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        return cls(*(int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")))

    def all_gather(self, about: str, word: str = "") -> set[bytes]:
        """What the ranks say about something; blocks until all of them have said it.

        It goes through torchrun's store. A process group could not be built once torchrun had to
        start a rank again, as the store still has the addresses of the dead.
        """
        if self.world_size == 1:
            return {word.encode()}
        store, *_ = next(rendezvous("env://"))
        keys = [f"{about} {rank}" for rank in range(self.world_size)]
        store.set(keys[self.rank], word)
        while not store.check(keys):  # the store's own wait would not hear of Ctrl-C
            time.sleep(0.1)
        return {*map(store.get, keys)}


def keep_freed_memory() -> None:
    """Freed memory stays with the process, for the next batch.

    Linux hands it out anew page by page, which is slow enough to take a quarter of VGG-16's time,
    and two thirds of a batch-norm's.
    """
    libc("mallopt", -4, 0)  # M_MMAP_MAX
    libc("mallopt", -1, 2**31 - 1)  # M_TRIM_THRESHOLD


def hand_over_often() -> None:
    """Threads ask for Python's lock after one millisecond and not five: the writers need it often,
    and for a moment. 2,000 digits take 0.98 of the time.
    """
    sys.setswitchinterval(0.001)


def return_freed_memory() -> None:
    libc("malloc_trim", 0)


def libc(name: str, *numbers: int) -> None:
    """Call a function that the GNU C library has; other systems do without."""
    with suppress(AttributeError, OSError, TypeError):
        getattr(ctypes.CDLL(None), name)(*numbers)


@contextmanager
def threads_for(net: nn.Module, pixels: int) -> Iterator[None]:
    """One thread for a network that a second core makes no faster, such as an MNIST CNN.

    The other cores decode and write meanwhile: on two of them a run takes 0.55 to 0.87 times as
    long.
    """
    work = pixels * sum(weight.numel() for weight in net.parameters())
    before = torch.get_num_threads()
    if is_small := work < 10**8:  # an MNIST CNN has a tenth of it, a ResNet-20 three times as much
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if is_small:
            torch.set_num_threads(before)


def split_on_oom(work: Callable[[list[Given]], list[Result]], items: list[Given]) -> list[Result]:
    """work(items), one result for each; where memory does not suffice, one half after the other."""
    try:
        return work(items) if items else []
    except (MemoryError, RuntimeError) as error:
        if len(items) == 1 or not is_out_of_memory(error):
            raise
    # Not within the except clause: as long as the error lives, so does the memory of what failed.
    half = len(items) // 2
    return_freed_memory()
    warn_once(f"not enough memory for {len(items)} pictures at once, so {half} now; --batch-size "
              f"{half} begins there")
    return split_on_oom(work, items[:half]) + split_on_oom(work, items[half:])


def default_workers() -> int:
    """Processes that decode pictures: the cores of this rank but the one that the network needs."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(0, min(4, (os.cpu_count() or 1) // ranks - 1))


def on_sigint(*_signal: Any) -> NoReturn:
    """Ctrl-C. An exception would not do: raised while C++ calls back, it is printed and lost.

    Half-written files lie among the parts, where the next run overwrites or removes them.
    """
    for worker in multiprocessing.active_children():
        worker.kill()
    os.write(2, f"{PROGRAM}: interrupted; every file is whole, --resume goes on\n".encode())
    os._exit(130)


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
