"""The tools: how digits and weights were made, mutants, and the search for files that break it."""

import importlib
import json
import sys
from contextlib import nullcontext
from pathlib import Path

import draw_digits
import mutate
import numpy as np
import pytest
import torch
import train_mnist
from course import ROOT
from torch import nn

from SID_a4 import CourseCNN


def test_the_committed_digits_are_the_tools_own(tmp_path):
    drawn = draw_digits.as_json(
        (digit, draw_digits.framed(draw_digits.inked(digit))) for digit in draw_digits.STROKES
    )
    kept = json.loads((ROOT / "data" / "example_digits.json").read_text())
    for mine, theirs in zip(json.loads(drawn), kept, strict=True):
        assert mine["label"] == theirs["label"]
        assert np.abs(np.subtract(mine["image"], theirs["image"])).max() <= 2


def test_digits_are_framed_as_in_mnist():
    items = json.loads((ROOT / "data" / "example_digits.json").read_text())
    assert [item["label"] for item in items] == list(range(8))
    p = np.arange(28)
    for item in items:
        pixels = np.array(item["image"])
        rows, columns = (np.flatnonzero(pixels.any(axis)) for axis in (1, 0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
        centre = pixels.sum(1) @ p / pixels.sum(), pixels.sum(0) @ p / pixels.sum()
        assert np.abs(np.subtract(centre, 13.5)).max() <= 1
        assert len(np.unique(pixels)) > 30  # antialiased


class Corner(nn.Module):
    """Ten times the brightest pixel of the upper left 4 x 4, as a logit of class 0."""

    def forward(self, x):
        y = 10 * x[:, 0, :4, :4].amax((1, 2))
        return torch.stack([y, -y], 1)


def test_occlusion_shows_what_the_logit_depends_on():
    x = torch.zeros(1, 1, 28, 28)
    x[0, 0, 2, 2] = 1
    drops = train_mnist.occlusion(Corner(), x, torch.tensor([0]))
    expected = torch.zeros(28, 28)
    half = train_mnist.PATCH // 2
    expected[: 3 + half, : 3 + half] = 10
    torch.testing.assert_close(drops[0], expected)


def test_correlation_is_pearsons():
    a, b = torch.rand(3, 5, 5), torch.rand(3, 5, 5)
    expected = [np.corrcoef(x.flatten(), y.flatten())[0, 1] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(train_mnist.correlation(a, b), expected, atol=1e-6)
    assert train_mnist.correlation(torch.zeros(1, 5, 5), b[:1]) == 0


def test_jitter_moves_a_picture_a_little_and_keeps_its_background():
    x = torch.full((64, 1, 28, 28), -CourseCNN.MEAN / CourseCNN.STD)
    x[:, :, 10:18, 10:18] = 2.8
    moved = train_mnist.jittered(x, torch.Generator().manual_seed(0))
    torch.testing.assert_close(moved[:, :, 0], x[:, :, 0])
    p = torch.arange(28.0)
    ink = moved - x[0, 0, 0, 0]
    centre = (ink.sum(2) @ p / ink.sum((2, 3)))[:, 0]
    assert (centre - 13.5).abs().max() < 2.5
    assert centre.std() > 0.5


@pytest.fixture
def stripes(tmp_path):
    """A file of pictures that a network learns in a few steps: a bright bar a class."""
    random = np.random.default_rng(0)
    y = random.integers(0, 10, 2000)
    x = random.integers(0, 60, (2000, 28, 28))
    for i, c in enumerate(y):
        x[i, 2 + 2 * c : 5 + 2 * c, 4:24] = 255
    x = x.astype(np.uint8)
    np.savez(path := tmp_path / "stripes.npz", x_train=x, y_train=y, x_test=x[:500], y_test=y[:500])
    return path


@pytest.mark.slow
def test_training_chooses_measures_and_writes(stripes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_mnist, "MIN_ACCURACY", 0.5)
    monkeypatch.setattr(train_mnist, "MAX_EMPTY", 1)
    out = tmp_path / "model.pth"
    arguments = ["--data", stripes, "--out", out, "--seeds", 2, "--epochs", 2, "--occluded", 20]
    assert train_mnist.main([*map(str, arguments)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["seed 0", "seed 1"]
    scores = [float(line.split("occlusion ")[1].split(";")[0]) for line in lines[:2]]
    assert lines[2] == f"seed {scores.index(max(scores))} is written to {out}"
    again = train_mnist.train(train_mnist.load_mnist(stripes)[0], scores.index(max(scores)), 2)
    for key, value in torch.load(out, weights_only=True).items():
        torch.testing.assert_close(value, again.state_dict()[key], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_training_that_is_not_good_enough_writes_nothing(stripes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_mnist, "MIN_ACCURACY", 1.1)
    out = tmp_path / "model.pth"
    arguments = ["--data", stripes, "--out", out, "--seeds", 1, "--epochs", 1, "--occluded", 10]
    assert train_mnist.main([*map(str, arguments)]) == 1
    assert "no seed reached 110.0%" in capsys.readouterr().err
    assert not out.exists()


# --------------------------------------------------------------------------------- tools/mutate.py


def test_every_mutant_of_the_mathematics_can_still_be_made():
    assert len(mutate.MUTANTS) >= 60
    for name, (file, old, new) in mutate.MUTANTS.items():
        source = (ROOT / file).read_text()
        assert source.count(old) == 1, name
        assert old != new
        compile(source.replace(old, new), name, "exec")


def test_every_mutant_has_tests_that_may_catch_it():
    """Those of its file, as they are named after it, and those of what uses the file."""
    for file, _, _ in mutate.MUTANTS.values():
        tests = mutate.tests_of(file, ROOT)
        own = "test_sid_a4" if file == "SID_a4.py" else f"test_{Path(file).stem}.py"
        assert tests[0].startswith(f"tests/{own}"), file
        assert len(tests) >= 2


PROBE = """
from pathlib import Path

import SID_a4
from seenby.core import placement

ROOT = Path(__file__).resolve().parent.parent


def test_it_is_the_copy():
    assert Path(placement.__file__).is_relative_to(ROOT)
    assert Path(SID_a4.__file__).is_relative_to(ROOT)


def test_pad():
    assert placement.auto_pad((28, 28), (8, 8), (2, 2)) == (3, 3)
"""


@pytest.mark.slow
def test_a_mutant_is_made_where_its_tests_look(tmp_path, monkeypatch):
    """Though the original is on the path, as an installed one would be."""
    mutate.copy_to(folder := tmp_path / "copy")
    assert not (folder / ".git").exists()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (folder / "tests" / "test_probe.py").write_text(PROBE)
    monkeypatch.setattr(mutate, "tests_of", lambda *_: ["tests/test_probe.py"])
    nothing = (mutate.PLACEMENT, "def auto_pad", "\n\ndef auto_pad")
    monkeypatch.setitem(mutate.MUTANTS, "nothing is changed", nothing)
    before = (folder / mutate.PLACEMENT).read_text()
    assert mutate.survives("nothing is changed", folder)
    assert not mutate.survives("pad: not halved", folder)
    assert (folder / mutate.PLACEMENT).read_text() == before
    monkeypatch.setattr(mutate, "tests_of", lambda *_: ["tests/test_of_nothing.py"])
    with pytest.raises(SystemExit, match=r"test_of_nothing\.py ended with 4"):
        mutate.survives("pad: not halved", folder)


# ----------------------------------------------------------------------------------- tools/fuzz.py


@pytest.fixture
def fuzz(monkeypatch):
    """The search, with a stand-in for what leads it: each file that it begins with is tried."""
    class Atheris:
        def instrument_imports(self, include):
            return nullcontext()

        def Setup(self, words, try_one):
            self.folder, self.try_one = Path(words[-1]), try_one

        def Fuzz(self):
            for path in self.folder.iterdir():
                self.try_one(path.read_bytes())

    monkeypatch.setitem(sys.modules, "atheris", Atheris())
    monkeypatch.delitem(sys.modules, "fuzz", raising=False)
    return importlib.import_module("fuzz")


def test_the_search_begins_with_what_both_doors_read(fuzz, monkeypatch):
    read, counts = fuzz.read, []
    monkeypatch.setattr(fuzz, "read", lambda *given: counts.append(read(*given)))
    for kind, expected in (("json", [8]), ("weights", [2]), ("image", [2] * len(fuzz.SUFFIXES)),
                           ("names", [2, 2]), ("labels", [1]), ("table", [1])):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["fuzz.py", kind, "-runs=9"])
        counts.clear()
        fuzz.main()
        assert counts == expected, kind
        assert read(kind, b"") == 0
        assert read(kind, b"\x89PNG") == 0


@pytest.mark.parametrize(
    ("kind", "reader"),
    [
        ("json", "SID_a4.read_pictures"),
        ("json", "fuzz.read_class_names"),
        ("image", "SID_a4.read_pictures"),
        ("image", "fuzz.read_pictures"),
        ("weights", "SID_a4.load_network"),
        ("weights", "fuzz.build_with_checkpoint"),
    ],
)
def test_the_search_ends_when_a_reader_raises_anything_else(fuzz, monkeypatch, kind, reader):
    def broken(*_):
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(reader, broken)
    with pytest.raises(RuntimeError, match="unforeseen"):
        fuzz.read(kind, b"")
