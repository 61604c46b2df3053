"""The machine: cores, memory, processes, and a torchvision that is built for another PyTorch."""

import ctypes
import importlib
import os

import pytest
import torch
from torch import nn

from seenby import errors, machine
from seenby.machine import (
    Ranks,
    default_workers,
    import_torchvision,
    libc,
    split_on_oom,
    threads_for,
)
from seenby.settings import Settings


def test_cores_that_there_are_not_do_not_decode(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "640")
    assert default_workers() == 0


@pytest.mark.parametrize(
    ("cores", "ranks", "workers"),
    [(1, None, 0), (2, None, 1), (4, None, 3), (64, None, 4), (4, 2, 1), (2, 2, 0),
     (None, None, 0)],
)  # fmt: skip
def test_all_cores_but_one_decode(monkeypatch, cores, ranks, workers):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if ranks:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert default_workers() == workers
    assert 0 <= Settings().workers <= 4


def test_the_ranks_are_torchruns(monkeypatch):
    for name, value in (("RANK", "3"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert Ranks.from_environment() == Ranks(0, 0, 1)  # what others set says nothing
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert Ranks.from_environment() == Ranks(rank=3, local_rank=1, world_size=4)


def test_one_process_hears_itself():
    assert Ranks().all_gather("pictures", "mine") == {b"mine"}
    assert Ranks().all_gather("end") == {b""}


def test_ranks_hear_what_each_of_them_says(monkeypatch):
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True)
    monkeypatch.setattr("seenby.machine.rendezvous", lambda _: iter([(store, 0, 2)]))
    store.set("pictures 1", "theirs")
    assert Ranks(0, 0, 2).all_gather("pictures", "mine") == {b"mine", b"theirs"}
    store.set("end 0", "")
    assert Ranks(1, 1, 2).all_gather("end") == {b""}  # they agree


def test_small_networks_have_one_thread_and_afterwards_as_before():
    small, large = nn.Linear(100, 100), nn.Linear(1000, 1000)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threads_for(small, 784):
            assert torch.get_num_threads() == 1
        with threads_for(large, 784):
            assert torch.get_num_threads() == 2
        with pytest.raises(KeyError), threads_for(small, 784):
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_what_does_not_fit_into_memory_is_halved_until_it_does(monkeypatch, capsys):
    monkeypatch.setattr(errors, "_warned", set())
    sizes, returned = [], []
    monkeypatch.setattr(machine, "return_freed_memory", lambda: returned.append(True))

    def work(items):
        sizes.append(len(items))
        if len(items) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return [10 * item for item in items]

    assert split_on_oom(work, [1, 2, 3, 4, 5, 6, 7]) == [10, 20, 30, 40, 50, 60, 70]
    assert sizes == [7, 3, 1, 2, 4, 2, 2]
    assert len(returned) == 3
    assert capsys.readouterr().err.splitlines() == [
        "seenby: not enough memory for 7 pictures at once, so 3 now; --batch-size 3 begins there",
        "seenby: not enough memory for 3 pictures at once, so 1 now; --batch-size 1 begins there",
        "seenby: not enough memory for 4 pictures at once, so 2 now; --batch-size 2 begins there",
    ]
    assert split_on_oom(work, []) == []
    assert sizes[-1] == 2  # nothing is asked for nothing


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("out of memory"), RuntimeError("x")])
def test_what_halving_does_not_help_is_raised(error):
    calls = []

    def work(items):
        calls.append(len(items))
        raise error

    with pytest.raises(type(error)) as raised:
        split_on_oom(work, [1] if errors.is_out_of_memory(error) else [1, 2, 3])
    assert raised.value is error
    assert len(calls) == 1


def test_a_system_without_the_gnu_c_library_does_without(monkeypatch):
    called = []

    class GNU:
        def malloc_trim(self, *numbers):
            called.append(numbers)

    monkeypatch.setattr(ctypes, "CDLL", lambda _: GNU())
    libc("malloc_trim", 0)
    libc("mallopt", -4, 0)  # there is none
    assert called == [(0,)]

    def nothing(_):
        raise OSError("no C library")

    monkeypatch.setattr(ctypes, "CDLL", nothing)
    libc("malloc_trim", 0)
    assert called == [(0,)]


def test_torchvision_beside_a_pytorch_without_its_operators(monkeypatch):
    missing, defined, asked = ["nms", "roi_align"], [], []

    def import_module(name):
        asked.append(name)
        if missing:
            raise RuntimeError(f"operator torchvision::{missing[0]} does not exist")
        return "torchvision itself"

    def define(name, signature):
        defined.append((name, signature))
        missing.remove(name.rpartition("::")[2])

    monkeypatch.setattr(importlib, "import_module", import_module)
    monkeypatch.setattr(torch.library, "define", define)
    assert import_torchvision() == "torchvision itself"
    assert defined == [(f"torchvision::{name}", "(Tensor x) -> Tensor")
                       for name in ("nms", "roi_align")]  # fmt: skip
    assert asked == ["torchvision"] * 3

    def broken(name):
        raise RuntimeError("something else")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(RuntimeError, match="something else"):
        import_torchvision()
