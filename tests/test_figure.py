"""What people look at: colours, scales, headings and the words in an empty panel."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

import SID_a4
from SID_a4 import Picture, Style, draw_grid, enlarged, explain, overlay, panel, table_row

DIGITS = tuple("0123456789")
STYLE = Style()


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
    painted = STYLE.paint(L_c[:, 1:])
    expected = colormaps["jet"]([[0.25, 0.5, 1.0]], bytes=True)[..., :3]
    np.testing.assert_array_equal(painted, expected)
    np.testing.assert_array_equal(STYLE.paint(L_c * 1e-9), STYLE.paint(L_c))


def test_a_signed_map_has_zero_in_the_middle():
    painted = STYLE.paint(np.array([[-4.0, -2.0, 0.0, 1.0]]), signed=True)
    expected = colormaps["RdBu_r"]([[0.0, 0.25, 0.5, 0.625]], bytes=True)[..., :3]
    np.testing.assert_array_equal(painted, expected)


def test_the_raw_picture_is_shown_as_dark_as_it_is(column):
    picture, explanation = column()
    dim = replace(picture, image=Image.new("L", (28, 28), 40))
    figure = draw_grid([dim], [explanation], DIGITS)
    assert np.unique(figure.axes[0].images[0].get_array()) == [40]


def test_a_flat_map_is_finite():
    zeros = np.zeros((2, 2))
    np.testing.assert_array_equal(STYLE.paint(zeros)[0, 0], (0, 0, 127))
    np.testing.assert_array_equal(
        STYLE.paint(zeros, signed=True)[0, 0], colormaps["RdBu_r"](0.5, bytes=True)[:3]
    )


def test_overlay_blends_the_map_and_not_its_square(column):
    L_c = torch.zeros(1, 28, 28)
    L_c[0, :14], L_c[0, 14:] = 1.0, 0.5
    _, explanation = column(L_c=L_c)
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


def test_small_pictures_are_enlarged_by_whole_pixels_until_they_are_224_high():
    pixels = np.arange(28 * 20, dtype=np.uint8).reshape(28, 20)
    found = np.asarray(enlarged(Image.fromarray(pixels)))
    np.testing.assert_array_equal(found, pixels.repeat(8, 0).repeat(8, 1))
    assert enlarged(Image.new("RGB", (50, 300))).size == (50, 300)


def test_an_empty_map_says_so_in_words(column):
    zero = torch.zeros(1, 28, 28)
    picture, explanation = column(cells=zero[:, :8, :8], L_c=zero, guided_cam=zero[None])
    assert texts(draw_grid([picture], [explanation], DIGITS)).count("no\npositive\nevidence") == 2
    assert table_row(picture, explanation, DIGITS)["note"] == "no positive evidence"
    written = np.asarray(overlay(Image.new("L", (224, 224)), explanation, STYLE))
    assert (written == 255).all(2).sum() > 100  # white words on the empty map
    assert "no\npositive\nevidence" not in texts(draw_grid([column()[0]], [column()[1]], DIGITS))


def test_headings_tell_prediction_probability_label_and_class(column):
    picture, explanation = column()
    words = texts(draw_grid([picture], [explanation], DIGITS))
    probability = explanation.logits.softmax(1)[0, 1].item()
    said = f"{probability:.1%}" if probability < 0.9995 else ">99.9%"
    assert words[:4] == ["image_1", "1", said, "1"]
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


def test_certainty_is_never_rounded_up(column):
    picture, explanation = column(logits=torch.tensor([[0.0, 20.0]]))
    assert ">99.9%" in texts(draw_grid([picture], [explanation], DIGITS))


def test_the_table_has_the_predictions_probability_whatever_is_explained(column):
    picture, explanation = column(target=torch.tensor([7]))
    row = table_row(picture, explanation, DIGITS)
    best = explanation.logits.softmax(1).max().item()
    assert (row["predicted"], row["target"]) == ("1", "7")
    assert float(row["probability"]) == pytest.approx(best, abs=1e-6)


def test_few_pictures_make_a_landscape_sheet_too(column):
    figure = draw_grid([column()[0]], [column()[1]], DIGITS)
    assert figure.get_figwidth() >= 1.4 * figure.get_figheight() - 1e-6


@pytest.mark.parametrize(
    ("relus", "others", "title", "words"),
    [
        (3, (), "Guided\nBackprop", ""),
        (
            3,
            ("hardswish",),
            "Partly guided\nBackprop",
            "hardswish: guided at the ReLUs, plain there",
        ),
        (0, ("silu",), "Plain\ngradient", "silu: the plain gradient is shown"),
        (0, (), "Plain\ngradient", "any activation but ReLU: the plain gradient is shown"),
    ],
)
def test_a_plain_gradient_is_never_called_guided(column, relus, others, title, words):
    picture, explanation = column(relus=relus, unguided=others)
    assert title in texts(draw_grid([picture], [explanation], DIGITS))
    assert table_row(picture, explanation, DIGITS)["note"].endswith(words)


def test_panels_come_in_the_order_given_and_in_the_colours_asked_for(column):
    picture, explanation = column()
    style = Style(("overlay", "gradcam"), "viridis", 0.3)
    figure = draw_grid([picture], [explanation], DIGITS, style)
    over, cam = figure.axes[0].images[:2]
    np.testing.assert_array_equal(
        over.get_array(), np.asarray(overlay(picture.image, explanation, style))
    )
    viridis = colormaps["viridis"](
        explanation.L_c[0].numpy() / explanation.L_c.max().item(), bytes=True
    )
    np.testing.assert_allclose(np.asarray(cam.get_array(), int), viridis[..., :3], atol=1)
    named = [text for text in texts(figure) if text in ("Overlay", "Grad-CAM", "Raw")]
    assert named == ["Overlay", "Grad-CAM"]


def test_several_methods_are_told_apart(column):
    one, two = column(), column(method="xgradcam")
    words = texts(draw_grid([one[0], two[0]], [one[1], two[1]], DIGITS))
    assert {"method", "Grad-CAM", "XGrad-CAM", "CAM", "where the\nevidence lies"} <= set(words)
    assert "XGrad-CAM" in texts(draw_grid([two[0]], [two[1]], DIGITS))
    against = column(method="counterfactual")
    words = texts(draw_grid([against[0]], [against[1]], DIGITS))
    assert {"Counter-\nfactual", "where the\nevidence against it lies"} <= set(words)


def test_an_overlay_in_a_part_of_a_picture_leaves_the_rest_alone(column):
    _, explanation = column(L_c=torch.ones(1, 28, 28))
    picture = Image.new("RGB", (100, 60), (10, 20, 30))
    found = np.asarray(overlay(picture, explanation, STYLE, box=(20, 0, 80, 60)))
    np.testing.assert_array_equal(found[:, :20], np.full((60, 20, 3), (10, 20, 30)))
    np.testing.assert_array_equal(found[:, 80:], np.full((60, 20, 3), (10, 20, 30)))
    red = np.array(colormaps["jet"](1.0, bytes=True)[:3])
    expected = (np.array((10, 20, 30)) + red) / 2
    assert np.abs(found[1:59, 21:79].astype(int) - expected).max() <= 1


def test_names_are_never_read_as_mathematics(column):
    picture, explanation = column()
    figure = draw_grid([replace(picture, name="$x_{")], [explanation], DIGITS)
    figure.savefig(io.BytesIO(), format="png")
    long = draw_grid([replace(picture, name="a" * 60)], [explanation], DIGITS)
    assert texts(long)[0] == "aaaa...aaaaa"


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
    raw, cam, R, both, over = (panel(name, digits[3], explanation, STYLE) for name in SID_a4.PANELS)
    np.testing.assert_array_equal(raw, np.stack([digits[3].image] * 3, 2))
    np.testing.assert_array_equal(cam, explanation.L_c[0])
    np.testing.assert_array_equal(R, explanation.R[0, 0])
    np.testing.assert_allclose(both, explanation.R[0, 0] * explanation.L_c[0])
    np.testing.assert_array_equal(over, overlay(digits[3].image, explanation, STYLE))


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
