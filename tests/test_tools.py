"""How the shipped digits and weights were made."""

import json

import draw_digits
import mutate
import numpy as np
import pytest
import torch
import train_mnist
from torch import nn

from SID_a4 import HERE, CourseCNN


def test_the_committed_digits_are_the_tools_own(tmp_path):
    drawn = draw_digits.as_json(
        (digit, draw_digits.framed(draw_digits.inked(digit))) for digit in draw_digits.STROKES
    )
    kept = json.loads((HERE / "data" / "test_data.json").read_text())
    for mine, theirs in zip(json.loads(drawn), kept, strict=True):
        assert mine["label"] == theirs["label"]
        assert np.abs(np.subtract(mine["image"], theirs["image"])).max() <= 2


def test_digits_are_framed_as_in_mnist():
    items = json.loads((HERE / "data" / "test_data.json").read_text())
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


def test_training_that_is_not_good_enough_writes_nothing(stripes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_mnist, "MIN_ACCURACY", 1.1)
    out = tmp_path / "model.pth"
    arguments = ["--data", stripes, "--out", out, "--seeds", 1, "--epochs", 1, "--occluded", 10]
    assert train_mnist.main([*map(str, arguments)]) == 1
    assert "no seed reached 110.0%" in capsys.readouterr().err
    assert not out.exists()


def test_every_mutant_of_the_mathematics_can_still_be_made():
    source = (HERE / "SID_a4.py").read_text()
    assert len(mutate.MUTANTS) >= 30
    for name, (old, new) in mutate.MUTANTS.items():
        assert source.count(old) == 1, name
        assert old != new
        compile(source.replace(old, new), name, "exec")
