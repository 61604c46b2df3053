"""A layer's output as cells: which tensors are grids, and where each cell stands."""

import pytest
import torch
from torch import nn

from seenby import InputError, explain
from seenby.core.grids import Grid, find_grid, token_grid
from seenby.core.strides import STRIDE


def tensor(*shape):
    return torch.arange(float(torch.Size(shape).numel())).view(shape)


@pytest.mark.parametrize(
    ("tokens", "size", "expected"),
    [
        (196, (224, 224), (14, 14, 0)),  # Mixer, or a ViT that pools
        (197, (224, 224), (14, 14, 1)),  # ViT: a class token
        (198, (224, 224), (14, 14, 2)),  # DeiT: and one for distillation
        (261, (224, 224), (16, 16, 5)),  # DINOv2: and four registers
        (1374, (518, 518), (37, 37, 5)),
        (50, (224, 224), (7, 7, 1)),
        (17, (64, 64), (4, 4, 1)),  # not (3, 3, 8)
        (61, (96, 160), (6, 10, 1)),
        (45, (80, 128), (5, 8, 5)),  # not (5, 9, 0), which leaves a remainder
        (61, (100, 160), (6, 10, 1)),  # patches of 16 leave a strip of four
        (70, (100, 150), (7, 10, 0)),  # ... or are filled up
    ],
)
def test_where_no_map_was_seen_tokens_are_patches_by_the_pictures_proportions(tokens, size,
                                                                              expected):
    u, v, prefix = expected
    assert token_grid(tokens, 32, *size, ()) == Grid(u, v, "tokens", prefix)


@pytest.mark.parametrize(("tokens", "size"), [
    (768, (224, 224)), (1, (28, 28)), (768, (28, 28)),
    (28, (28, 28)),  # a picture's rows, one by one: not 5 x 5 and 3 others
    (65, (100, 160)),
])  # fmt: skip
def test_tokens_that_are_no_patches(tokens, size):
    assert token_grid(tokens, 32, *size, ()) is None


@pytest.mark.parametrize(("tokens", "K", "maps", "expected"), [
    (196, 32, [(14, 14)], (14, 14, 0)),
    (201, 32, [(56, 56), (14, 14)], (14, 14, 5)),
    (65, 64, [(8, 8)], (8, 8, 1)),  # as many channels as patches
    (64, 64, [(8, 8)], (8, 8, 0)),
    (66, 64, [(8, 8)], None), (72, 64, [(8, 8)], None),  # of (B, K, cells) K is the number
    (64, 49, [(8, 8), (7, 7)], None),  # (B, K, cells): 64 maps of 7 x 7
    (64, 64, [(8, 8), (4, 4)], (8, 8, 0)),
    (65, 10, [(6, 10)], (6, 10, 5)),
    (9, 32, [(3, 3), (2, 2)], (3, 3, 0)),  # not 2 x 2 and 5 others
    (196, 32, [(56, 56), (28, 28)], (14, 14, 0)),  # patches that were merged
    (49, 32, [(27, 27)], (7, 7, 0)), (50, 32, [(14, 14)], (7, 7, 1)),
    (16, 32, [(64, 64)], None),  # latents
    (10, 32, [(4, 4)], None), (100, 32, [(14, 14), (7, 7)], None),  # queries
    (32, 64, [(8, 32), (1, 32)], (1, 32, 0)),  # the columns of a line of text
    (16, 64, [(8, 32), (1, 32)], (1, 16, 0)), (1, 32, [(1, 1)], None),
])  # fmt: skip
def test_tokens_are_as_many_as_the_cells_of_a_map_that_was_seen(tokens, K, maps, expected):
    grid = token_grid(tokens, K, 224, 224, tuple(maps))
    assert grid == (expected and Grid(*expected[:2], "tokens", expected[2]))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 768, 7, 7), Grid(7, 7, "NCHW")),
        ((2, 7, 7, 768), Grid(7, 7, "NHWC")),
        ((2, 7, 7, 7), Grid(7, 7, "NHWC")),  # either: of the other one the stride is mostly known
        ((2, 512, 1, 1), Grid(1, 1, "NCHW")),
        ((2, 197, 192), Grid(14, 14, "tokens", 1)),
        ((2, 1, 196, 384), None),  # one window of 196 tokens
        ((2, 4, 49, 64), None),  # four windows
        ((24, 49, 49), None),  # attention matrices
        ((128, 7, 7, 32), None),  # windows where the pictures should be
        ((2, 1000), None),
        ((2, 64, 3, 7, 7), None),  # a volume
    ],
)
def test_which_outputs_are_grids(shape, expected):
    assert find_grid(torch.zeros(shape), 2, (224, 224)) == expected


def test_what_is_no_tensor_of_real_numbers_is_no_grid():
    assert find_grid(None, 2, (224, 224)) is None
    assert find_grid(torch.zeros(2, 7, 7, 7, dtype=torch.int64), 2, (224, 224)) is None


def test_where_the_stride_was_followed_no_proportions_are_needed():
    """A network for lines of text: its cells are narrow."""
    output = torch.zeros(1, 32, 1, 25)
    assert find_grid(output, 1, (32, 100)) is None
    setattr(output, STRIDE, (32, 4))
    assert find_grid(output, 1, (32, 100)) == Grid(1, 25, "NCHW")


def test_wide_pictures_tell_the_layouts_apart():
    assert find_grid(torch.zeros(1, 10, 6, 10), 1, (96, 160)) == Grid(6, 10, "NCHW")
    assert find_grid(torch.zeros(1, 6, 10, 6), 1, (96, 160)) == Grid(6, 10, "NHWC")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((1, 1, 2, 2), Grid(2, 2, "NCHW")), ((1, 2, 3, 3), Grid(2, 3, "NHWC"))],
)
def test_of_two_readings_the_one_whose_cells_are_nearer_to_squares(shape, expected):
    assert find_grid(torch.zeros(shape), 1, (64, 80)) == expected


def test_each_cell_comes_from_its_place():
    nchw, nhwc, tokens = tensor(2, 5, 3, 4), tensor(2, 3, 4, 5), tensor(2, 2 + 3 * 4, 5)
    maps = [Grid(3, 4, "NCHW").maps(nchw), Grid(3, 4, "NHWC").maps(nhwc),
            Grid(3, 4, "tokens", 2).maps(tokens)]  # fmt: skip
    for b in range(2):
        for k in range(5):
            for i in range(3):
                for j in range(4):
                    assert maps[0][b, k, i, j] == nchw[b, k, i, j]
                    assert maps[1][b, k, i, j] == nhwc[b, i, j, k]
                    assert maps[2][b, k, i, j] == tokens[b, 2 + 4 * i + j, k]
    assert [grid.channels(t) for grid, t in ((Grid(3, 4, "NCHW"), nchw), (Grid(3, 4, "NHWC"), nhwc),
                                             (Grid(3, 4, "tokens", 2), tokens))] == [5, 5, 5]


def test_a_grid_in_words():
    assert str(Grid(8, 8, "NCHW")) == "8 x 8"
    assert str(Grid(14, 14, "tokens")) == "14 x 14 patches"
    assert str(Grid(14, 14, "tokens", 1)) == "14 x 14 patches and 1 class token"
    assert str(Grid(37, 37, "tokens", 5)) == "37 x 37 patches and 5 other tokens"


def test_the_attention_between_tokens_is_no_map():
    """As many rows as columns, whose number would cut a square picture, too."""
    assert find_grid(torch.rand(2, 3, 197, 197), 2, (224, 224), [(14, 14)]) is None
    assert find_grid(torch.rand(2, 3, 49, 49), 2, (224, 224), [(56, 56)]) is None
    for cells in (56, 28, 14, 7):
        found = find_grid(torch.rand(2, 3, cells, cells), 2, (224, 224), [(56, 56)])
        assert found == Grid(cells, cells, "NCHW")


def test_what_is_convolved_but_lies_otherwise_than_the_picture_is_no_map():
    """As where the pixels of each patch are rows, and the patches columns."""

    class Unfolds(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.mix = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 1)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            y = self.conv(x).unfold(2, 2, 2).unfold(3, 2, 2)  # (B, 4, 8, 8, 2, 2)
            y = self.mix(y.permute(0, 1, 4, 5, 2, 3).reshape(len(x), 4, 4, 64))
            return self.head(y.mean((2, 3)))

    net, x = Unfolds(), torch.rand(2, 3, 32, 32)
    with pytest.raises(InputError, match=r"layer mix gives \(2, 4, 4, 64\) .* no cells"):
        explain(net, x, 0, "mix")
    assert explain(net, x, 0).layer == "conv"
