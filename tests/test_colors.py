"""A map in colours, by itself and over its picture."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from seenby import InputError, Style, explain, overlay
from seenby.outputs.colors import array_of, enlarged, palette

STYLE = Style()


@pytest.fixture(scope="module")
def one(network, digits):
    """The explanation of the second digit."""
    return explain(network.module, network.tensor([digits[1].image]))


def test_a_map_is_coloured_over_0_to_1_of_its_own_maximum():
    L_c = np.array([[0.0, 0.1, 0.2, 0.4]])  # smallest value above zero stays above zero below
    painted = STYLE.colorize(L_c[:, 1:])
    expected = colormaps["jet"]([[0.25, 0.5, 1.0]], bytes=True)[..., :3]
    np.testing.assert_array_equal(painted, expected)
    np.testing.assert_array_equal(STYLE.colorize(L_c * 1e-9), STYLE.colorize(L_c))


def test_a_signed_map_has_zero_in_the_middle():
    painted = STYLE.colorize(np.array([[-4.0, -2.0, 0.0, 1.0]]), signed=True)
    expected = colormaps["RdBu_r"]([[0.0, 0.25, 0.5, 0.625]], bytes=True)[..., :3]
    np.testing.assert_array_equal(painted, expected)


@pytest.mark.parametrize(
    ("given", "words"),
    [({"colormap": "jett"}, "'jett' is unknown to matplotlib; give jet, "),
     ({"opacity": 3}, "opacity 3 was given; give a number from 0 to 1"),
     ({"opacity": -0.1}, "opacity -0.1 was given; give")],
)  # fmt: skip
def test_a_style_that_can_not_be_drawn_is_refused_at_once(given, words):
    with pytest.raises(InputError, match=words):
        Style(**given)


def test_a_few_pixels_of_a_gradient_do_not_make_the_rest_pale():
    values = np.ones((50, 50))
    values[0, :2] = 1000, -1000
    painted = np.asarray(STYLE.colorize(values, signed=True))
    strongest, weakest = colormaps["RdBu_r"]([1.0, 0.0], bytes=True)[:, :3]
    np.testing.assert_array_equal(painted[1:], np.broadcast_to(strongest, (49, 50, 3)))
    np.testing.assert_array_equal(painted[0, :2], [strongest, weakest])


def test_a_flat_map_is_finite():
    zeros = np.zeros((2, 2))
    middle = colormaps["RdBu_r"](0.5, bytes=True)[:3]
    assert STYLE.colorize(zeros).getpixel((0, 0)) == (0, 0, 127)
    assert STYLE.colorize(zeros, signed=True).getpixel((0, 0)) == tuple(middle)


@pytest.mark.parametrize("name", ["jet", "viridis", "RdBu_r"])
def test_a_table_of_colours_is_matplotlibs(name):
    expected = colormaps[name](np.arange(256), bytes=True)[:, :3]
    assert palette(name) == expected.tobytes()


def test_overlay_blends_the_map_and_not_its_square(one):
    heatmap = torch.zeros(1, 28, 28)
    heatmap[0, :14], heatmap[0, 14:] = 1.0, 0.5
    explanation = replace(one, heatmap=heatmap)
    found = np.asarray(overlay(Image.new("L", (224, 224)), explanation, STYLE), int)
    assert found.shape == (224, 224, 3)
    for row, value in ((40, 1.0), (200, 0.5)):
        jet = np.array(colormaps["jet"](value, bytes=True)[:3])
        assert np.abs(found[row, 100] - jet / 2).max() <= 1
    between = np.array(colormaps["jet"](0.75, bytes=True)[:3])  # half-way from one to the other
    assert np.abs(found[111:113, 100].mean(0) - between / 2).max() <= 8
    white = overlay(Image.new("L", (224, 224), 255), explanation, STYLE)
    assert np.abs(np.asarray(white, int) - found - 127.5).max() <= 1
    faint = overlay(Image.new("L", (224, 224)), explanation, replace(STYLE, opacity=0.25))
    assert np.abs(np.asarray(faint, int) - found / 2).max() <= 1
    default = overlay(Image.new("L", (224, 224)), explanation)
    np.testing.assert_array_equal(default, found)


def test_an_overlay_in_a_part_of_a_picture_leaves_the_rest_alone(one):
    explanation = replace(one, heatmap=torch.ones(1, 28, 28))
    picture = Image.new("RGB", (100, 60), (10, 20, 30))
    found = np.asarray(overlay(picture, explanation, STYLE, box=(20, 0, 80, 60)))
    np.testing.assert_array_equal(found[:, :20], np.full((60, 20, 3), (10, 20, 30)))
    np.testing.assert_array_equal(found[:, 80:], np.full((60, 20, 3), (10, 20, 30)))
    red = np.array(colormaps["jet"](1.0, bytes=True)[:3])
    expected = (np.array((10, 20, 30)) + red) / 2
    assert np.abs(found[1:59, 21:79].astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("size", "is_said"), [(224, True), (100, True), (99, False)])
def test_an_empty_map_says_so_in_words_where_they_can_be_read(one, size, is_said):
    zero = torch.zeros(1, 28, 28)
    explanation = replace(one, L_c=zero[:, :8, :8], heatmap=zero)
    written = np.asarray(overlay(Image.new("L", (size, size)), explanation, STYLE))
    assert (written != written[-1, -1]).any() == is_said  # the words, on the empty map
    if size == 224:
        assert (written == 255).all(2).sum() > 100  # they are white


def test_small_pictures_are_enlarged_by_whole_pixels_until_they_are_224_high():
    pixels = np.arange(28 * 20, dtype=np.uint8).reshape(28, 20)
    found = np.asarray(enlarged(Image.fromarray(pixels)))
    np.testing.assert_array_equal(found, pixels.repeat(8, 0).repeat(8, 1))
    assert enlarged(Image.new("RGB", (50, 300))).size == (50, 300)


def test_an_explanation_of_several_pictures_is_refused_with_the_cure(network, digits):
    both = explain(network.module, network.tensor([digit.image for digit in digits[:2]]))
    words = "an explanation of 2 pictures was given; iterate over it, each picture has one"
    with pytest.raises(InputError, match=words):
        overlay(digits[0].image, both)
    for i, explanation in enumerate(both):
        np.testing.assert_array_equal(array_of(explanation.heatmap), both.heatmap[i])
