"""What people look at: colours, scales, headings and the words in an empty panel."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

import SID_a4
from SID_a4 import GRAD_CAM, GUIDED, Picture, draw_grid, explain, overlay, table_row

DIGITS = tuple("0123456789")


@pytest.fixture
def column(network, digits):
    """The second digit and its explanation, with a change."""

    def changed(label="1", **change):
        x = network.tensor([digits[1].image])
        explanation = replace(explain(network.net, x), **change)
        return replace(digits[1], label=label), explanation

    return changed


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


def test_a_map_is_coloured_over_0_to_1_of_its_own_maximum():
    L_c = np.array([[0.0, 0.1, 0.2, 0.4]])  # smallest value above zero stays above zero below
    painted = GRAD_CAM.paint(L_c[:, 1:])
    expected = colormaps["jet"]([[0.25, 0.5, 1.0]], bytes=True)[..., :3]
    np.testing.assert_array_equal(painted, expected)
    np.testing.assert_array_equal(GRAD_CAM.paint(L_c * 1e-9), GRAD_CAM.paint(L_c))


def test_a_signed_map_has_zero_in_the_middle():
    painted = GUIDED.paint(np.array([[-4.0, -2.0, 0.0, 1.0]]))
    expected = colormaps["RdBu_r"]([[0.0, 0.25, 0.5, 0.625]], bytes=True)[..., :3]
    np.testing.assert_array_equal(painted, expected)


def test_the_raw_picture_is_shown_as_dark_as_it_is(column):
    picture, explanation = column()
    dim = replace(picture, image=Image.new("L", (28, 28), 40))
    figure = draw_grid([dim], [explanation], DIGITS)
    assert np.unique(figure.axes[0].images[0].get_array()) == [40]


def test_a_flat_map_is_finite():
    zeros = np.zeros((2, 2))
    np.testing.assert_array_equal(GRAD_CAM.paint(zeros)[0, 0], (0, 0, 127))
    np.testing.assert_array_equal(
        GUIDED.paint(zeros)[0, 0], colormaps["RdBu_r"](0.5, bytes=True)[:3]
    )


def test_overlay_blends_the_map_and_not_its_square(column):
    L_c = torch.zeros(1, 28, 28)
    L_c[0, :14], L_c[0, 14:] = 1.0, 0.5
    picture, explanation = column(L_c=L_c)
    black = replace(picture, image=Image.new("L", (28, 28)))
    found = np.asarray(overlay(black, explanation), int)
    assert found.shape == (224, 224, 3)
    for row, value in ((40, 1.0), (200, 0.5)):
        jet = np.array(colormaps["jet"](value, bytes=True)[:3])
        assert np.abs(found[row, 100] - jet / 2).max() <= 1
    white = replace(picture, image=Image.new("L", (28, 28), 255))
    assert np.abs(np.asarray(overlay(white, explanation), int) - found - 127.5).max() <= 1


def test_overlay_enlarges_by_whole_pixels_until_it_is_224_high(column):
    picture, explanation = column(L_c=torch.ones(1, 100, 50))
    found = overlay(replace(picture, image=Image.new("RGB", (50, 100))), explanation)
    assert found.size == (150, 300)


def test_an_empty_map_says_so_in_words(column):
    zero = torch.zeros(1, 28, 28)
    picture, explanation = column(L_c=zero, guided_cam=zero[None])
    assert texts(draw_grid([picture], [explanation], DIGITS)).count("no\npositive\nevidence") == 2
    assert table_row(picture, explanation, DIGITS)["note"] == "no positive evidence"
    black = replace(picture, image=Image.new("L", (28, 28)))
    written = np.asarray(overlay(black, explanation))
    assert (written == 255).all(2).sum() > 100  # white words on the empty map
    assert "no\npositive\nevidence" not in texts(draw_grid([column()[0]], [column()[1]], DIGITS))


def test_headings_tell_prediction_probability_label_and_class(column):
    picture, explanation = column()
    words = texts(draw_grid([picture], [explanation], DIGITS))
    probability = explanation.logits.softmax(1)[0, 1].item()
    assert words[:4] == ["image_1", "1", f"{probability:.1%}", "1"]
    assert words[4:8] == ["picture", "predicted", "probability", "label"]
    assert "maps for" not in words
    without = texts(draw_grid([replace(picture, label="")], [explanation], DIGITS))
    assert "label" not in without
    other = texts(draw_grid([picture], [replace(explanation, target=torch.tensor([7]))], DIGITS))
    assert other[4] == "7"
    assert "maps for" in other


def test_a_wrong_prediction_stands_out_without_colour(column):
    right, wrong = (
        draw_grid([p], [e], DIGITS).axes[0].texts[1] for p, e in (column(), column("7"))
    )
    assert (right.get_text(), right.get_bbox_patch()) == ("1", None)
    assert wrong.get_text() == "1 \N{BALLOT X}"
    assert wrong.get_bbox_patch() is not None


def test_names_are_never_read_as_mathematics(column):
    picture, explanation = column()
    figure = draw_grid([replace(picture, name="$x_{")], [explanation], DIGITS)
    figure.savefig(io.BytesIO(), format="png")
    long = draw_grid([replace(picture, name="a" * 60)], [explanation], DIGITS)
    assert texts(long)[0] == "aaaaaaaaaa..."


def test_the_figure_shows_the_pixels_themselves(network, digits):
    x = network.tensor([digit.image for digit in digits])
    explanations = list(explain(network.net, x))
    figure = draw_grid(digits, explanations, network.classes)
    figure.savefig(buffer := io.BytesIO(), format="png")
    drawn = Image.open(buffer)
    assert drawn.width > 1.5 * drawn.height  # landscape
    assert round(drawn.info["dpi"][0]) == 300
    pixels, images = np.asarray(drawn.convert("RGB"), int), figure.axes[0].images
    assert len(images) == 8 * 4 + 3  # and three scales of colours
    for image in images[:32]:
        left, right, bottom, top = (round(300 * inch) for inch in image.get_extent())
        panel, shown = np.asarray(image.get_array(), int), pixels[top:bottom, left:right]
        p = ((np.arange(28) + 0.5) * (bottom - top) / 28).astype(int)
        np.testing.assert_allclose(shown[p][:, p], panel, atol=1)


def test_panels_are_what_they_are_called(network, digits):
    explanation = explain(network.net, network.tensor([digits[3].image]))
    raw, cam, R, both = SID_a4.panels(digits[3], explanation).values()
    np.testing.assert_array_equal(raw, np.stack([digits[3].image] * 3, 2))
    np.testing.assert_array_equal(cam, explanation.L_c[0])
    np.testing.assert_array_equal(R, explanation.R[0, 0])
    np.testing.assert_allclose(both, explanation.R[0, 0] * explanation.L_c[0])


def test_a_row_of_the_table(column):
    picture, explanation = column("7")
    row = table_row(replace(picture, note="a note"), explanation, DIGITS)
    assert list(row) == list(SID_a4.COLUMNS)
    assert float(row.pop("probability")) == pytest.approx(
        explanation.logits.softmax(1).max().item(), abs=1e-6
    )
    assert row == {
        "image": "image_1", "label": "7", "predicted": "1", "target": "1", "layer": "conv2",
        "method": "gradcam", "note": "a note",
    }  # fmt: skip
    skipped = table_row(Picture("x", None, "", "broken"), None, DIGITS)
    assert (skipped["image"], skipped["note"], skipped["predicted"]) == ("x", "skipped: broken", "")
