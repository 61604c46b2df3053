"""Where a map lies in the picture: each cell where it looks; and how a map is blurred."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import DigitCNN
from torch import nn

from seenby import InputError, explain
from seenby.core.placement import gaussian_blur, place


def centres_by_nan_probing(net, S):
    """Where each cell of conv2 looks: the middle of the pixels whose NaN reaches it."""
    x = torch.zeros(S * S, 1, S, S, dtype=torch.float64)
    x.view(S * S, S * S).fill_diagonal_(float("nan"))
    A = net.conv2(F.relu(F.max_pool2d(net.conv1(x), 2)))[:, 0]
    u, v = A.shape[1:]
    seen = A.isnan().view(S, S, u, v)
    p = torch.arange(S, dtype=torch.float64)
    y = torch.stack([p[seen[:, :, i, 0].any(1)].mean() for i in range(u)])
    x = torch.stack([p[seen[:, :, 0, j].any(0)].mean() for j in range(v)])
    return y, x


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_each_cell_lands_on_the_centre_of_its_receptive_field(precision):
    net = DigitCNN().double()
    y, x = centres_by_nan_probing(net, 28)
    torch.testing.assert_close(y, torch.arange(8) * 2.0 + 6.5, check_dtype=False)
    L_c = torch.eye(64, dtype=precision).view(64, 8, 8)  # one cell after the other
    pads, placed = place(L_c, (28, 28), (2, 2), "auto")
    assert pads == (3, 3)
    p = torch.arange(28, dtype=precision)
    mass = placed.sum((1, 2))
    down = (placed.sum(2) @ p / mass).view(8, 8)[:, 0]
    across = (placed.sum(1) @ p / mass).view(8, 8)[0]
    assert (down - y).abs().max() < 1e-4
    assert (across - x).abs().max() < 1e-4
    peaks = placed.flatten(1).argmax(1).view(8, 8)
    assert ((peaks[:, 0] // 28 - y).abs() <= 0.5).all()


def test_pad_is_the_border_the_network_lost(network):
    explanation = explain(network.module, torch.rand(1, 1, 28, 28))
    assert (explanation.layer, explanation.stride, explanation.pad) == ("conv2", (2, 2), (3, 3))
    _, heatmap = place(explanation.L_c, (28, 28), (2, 2), "auto")
    torch.testing.assert_close(heatmap, explanation.heatmap)
    # Three cells of zeros, then the plain resize, is the same where whole cells are lost.
    padded = F.interpolate(F.pad(explanation.L_c, (3, 3, 3, 3))[:, None], (28, 28), mode="bilinear")
    torch.testing.assert_close(padded[:, 0], explanation.heatmap)


@pytest.mark.parametrize("N", [0, 1, 2])
def test_a_pad_that_was_asked_for_is_padded_and_stretched_bit_for_bit(network, N):
    explanation = explain(network.module, torch.rand(2, 1, 28, 28), pad=N)
    padded = F.pad(explanation.L_c, (N, N, N, N))[:, None]
    assert torch.equal(explanation.heatmap, F.interpolate(padded, 28, mode="bilinear")[:, 0])
    assert explanation.pad == (N, N)
    assert explanation.heatmap.any()


@pytest.mark.parametrize(
    ("S", "n", "s", "pad"),
    [(224, 13, 16, 0.5), (299, 8, 32, 0.671875), (299, 10, 32, -0.328125), (28, 8, 2, 3),
     (30, 7, 3, 1.5), (224, 7, 32, 0)],
)  # fmt: skip
def test_placement_is_linear_between_the_cells_centres(S, n, s, pad):
    """NumPy's interpolation is the oracle.

    It clamps beyond the last point, which is zero here for each whole cell of pad.
    """
    L_c = torch.rand(1, n, n, dtype=torch.float64)
    pads, placed = place(L_c, (S, S), (s, s), "auto")
    assert pads == (pad, pad)
    whole = max(0, int(pad))
    centres = (S - 1) / 2 + s * (np.arange(-whole, n + whole) - (n - 1) / 2)
    padded, p = np.pad(L_c[0].numpy(), whole), np.arange(S)
    across = np.stack([np.interp(p, centres, line) for line in padded])
    expected = np.stack([np.interp(p, centres, line) for line in across.T]).T
    np.testing.assert_allclose(placed[0], expected, atol=1e-12)


def test_a_picture_that_is_not_square_has_a_pad_for_each_axis():
    net = nn.Sequential(
        nn.Conv2d(1, 2, (5, 3)), nn.MaxPool2d((2, 4)), nn.Flatten(), nn.LazyLinear(3)
    )
    x = torch.rand(1, 1, 24, 34)
    net(x)
    explanation = explain(net, x)
    assert (explanation.layer, explanation.stride) == ("0", (1, 1))
    assert explanation.pad == (2, 1)
    assert explanation.heatmap.shape == (1, 24, 34)


@pytest.mark.parametrize("pad", [-1, 1.5, "same", True])
def test_a_pad_that_is_no_number_of_cells_is_refused(pad):
    with pytest.raises(InputError, match=r"pad .* was given; give 'auto' or a number of cells"):
        explain(DigitCNN(), torch.rand(1, 1, 28, 28), pad=pad)


def test_blur_is_a_gaussian_of_that_many_pixels():
    point = torch.zeros(1, 41, 61)
    point[0, 20, 30] = 1
    blurred = gaussian_blur(point, 2.5)[0]
    p = torch.arange(61.0) - 30
    assert blurred.sum() == pytest.approx(1, abs=1e-5)
    assert (blurred.sum(0) * p**2).sum().sqrt() == pytest.approx(2.5, rel=1e-3)
    ones = torch.ones(1, 9, 9)
    torch.testing.assert_close(gaussian_blur(ones, 3.0), ones)  # the border does not darken
    assert gaussian_blur(point, 0) is point
    with torch.device("meta"):  # what is made without a word on its device would be there
        assert torch.equal(gaussian_blur(point, 2.5)[0], blurred)
