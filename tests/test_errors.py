"""A mistake is told in one line; what is nobody's mistake passes through."""

import argparse

import pytest

from seenby import InputError, errors
from seenby.errors import (
    as_input_error,
    closest_names,
    is_dead_worker,
    is_out_of_memory,
    message_of,
    one_line,
    warn,
    warn_once,
)


def test_whatever_goes_wrong_is_told_with_its_own_words_and_the_fix():
    for error in (ValueError("too much"), KeyError("too much"), SystemExit("too much")):
        words, fix = r"^the file x \('?too much'?\); give another$", "give another"
        with pytest.raises(InputError, match=words) as raised, as_input_error("the file x", fix):
            raise error
        assert raised.value.__cause__ is error


def test_the_words_may_be_made_of_the_error():
    telling = as_input_error(lambda error: f"a {type(error).__name__} happened", "give another")
    with pytest.raises(InputError, match=r"^a ValueError happened; give another$"), telling:
        raise ValueError
    with as_input_error("nothing", "nothing"):
        pass


@pytest.mark.parametrize(
    "error",
    [
        InputError("told already; give another"),
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate "
                     "memory: you tried to allocate 8 bytes."),
        RuntimeError("could not create a primitive"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
        KeyboardInterrupt(),
    ],
)  # fmt: skip
def test_a_lack_of_memory_and_a_dead_worker_are_nobodys_mistake(error):
    with pytest.raises(type(error)) as raised, as_input_error("what", "fix"):
        raise error
    assert raised.value is error


def test_lacks_are_told_from_mistakes():
    assert not is_out_of_memory(ValueError("memory of an elephant"))
    assert not is_dead_worker(ValueError("DataLoader"))
    assert is_out_of_memory(MemoryError())


def test_argparse_keeps_the_words_of_a_mistake():
    """It would replace those of a plain ValueError by words of its own."""

    def convert(text):
        raise InputError(f"{text} was given; give another")

    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--x", type=convert)
    with pytest.raises(argparse.ArgumentError, match="argument --x: 3 was given; give another"):
        parser.parse_args(["--x", "3"])
    assert isinstance(InputError("x"), ValueError)


def test_an_errors_own_words():
    assert message_of(OSError(28, "No space left on device", "file")) == "No space left on device"
    assert message_of(ValueError("one\n  two")) == "one two"
    assert message_of(KeyError()) == "KeyError"
    assert message_of(ValueError("x" * 400)) == "x" * 150


def test_words_that_fit_on_one_line_anywhere():
    assert one_line("a\nb\t c\r\n") == "a b c"
    assert one_line("\udcff.png").isascii()
    assert one_line("über") == "über"


def test_the_three_names_that_are_spelt_most_alike():
    names = ["cat", "cart", "dog", "card", "carts"]
    assert closest_names("cart", names) == "cart, carts, cat"
    assert closest_names("zzz", ["a"]) == "a"
    assert closest_names("a", []) == ""


def test_warnings_name_the_program_and_some_come_once(capsys, monkeypatch):
    monkeypatch.setattr(errors, "_warned", set())
    warn("one\ntwo")
    assert capsys.readouterr() == ("", "seenby: one two\n")
    for _ in range(3):
        warn_once("the same")
    warn_once("another")
    assert capsys.readouterr() == ("", "seenby: the same\nseenby: another\n")


def test_a_mistake_is_told_in_one_line_whatever_it_names():
    assert str(InputError("weights a.pth: x\n\ud800 is none")) == "weights a.pth: x \\ud800 is none"
