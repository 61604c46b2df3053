"""What people look at: panels, scales, headings and the words in an empty panel."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.textpath import text_to_path
from PIL import Image

from seenby import InputError, Picture, Style, draw_grid, explain, overlay
from seenby.outputs.figure import PANELS, panel_image, panel_map, percent
from seenby.outputs.fonts import fitted, fonts_for, letters_of
from seenby.outputs.table import explained_row

DIGITS = tuple("0123456789")
STYLE = Style()


@pytest.fixture
def column(network, digits):
    """The second digit and its explanation, with a change."""

    def changed(label="1", **change):
        x = network.tensor([digits[1].image])
        explanation = replace(explain(network.module, x), **change)
        return replace(digits[1], label=label), explanation

    return changed


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


def test_the_raw_picture_is_shown_as_dark_as_it_is(column):
    picture, explanation = column()
    dim = replace(picture, image=Image.new("L", (28, 28), 40))
    figure = draw_grid([dim], [explanation], DIGITS)
    assert np.unique(figure.axes[0].images[0].get_array()) == [40]


def test_an_empty_map_says_so_in_words(column):
    zero = torch.zeros(1, 28, 28)
    picture, explanation = column(L_c=zero[:, :8, :8], heatmap=zero, guided_cam=zero[None])
    assert texts(draw_grid([picture], [explanation], DIGITS)).count("no\npositive\nevidence") == 2
    assert explained_row(picture, explanation, DIGITS)["note"] == "no positive evidence"
    written = np.asarray(overlay(Image.new("L", (224, 224)), explanation, STYLE))
    assert (written == 255).all(2).sum() > 100  # white words on the empty map
    assert "no\npositive\nevidence" not in texts(draw_grid([column()[0]], [column()[1]], DIGITS))


def test_an_empty_map_of_what_speaks_against_a_class_says_the_opposite(column):
    zero = torch.zeros(1, 28, 28)
    picture, explanation = column(L_c=zero[:, :8, :8], heatmap=zero, guided_cam=zero[None],
                                  method="counterfactual")  # fmt: skip
    said = texts(draw_grid([picture], [explanation], DIGITS))
    assert said.count("nothing\nspeaks\nagainst it") == 2
    assert explained_row(picture, explanation, DIGITS)["note"] == "nothing speaks against it"


def test_a_gradient_that_is_nowhere_says_so_too(column):
    picture, explanation = column(R=torch.zeros(1, 1, 28, 28))
    assert "no\ngradient" in texts(draw_grid([picture], [explanation], DIGITS))
    assert "no\ngradient" not in texts(draw_grid([column()[0]], [column()[1]], DIGITS))


def test_headings_tell_prediction_probability_label_and_class(column):
    picture, explanation = column()
    words = texts(draw_grid([picture], [explanation], DIGITS))
    probability = explanation.logits.softmax(1)[0, 1].item()
    said = f"{probability:.1%}" if probability < 0.9995 else ">99.9%"
    assert words[:4] == ["image_1", "1", said, "1"]
    assert words[4:8] == ["picture", "predicted", "probability", "label"]
    assert "maps for" not in words
    assert "its probability" not in words
    without = texts(draw_grid([replace(picture, label="")], [explanation], DIGITS))
    assert "label" not in without


def test_a_target_that_is_not_the_predicted_class_has_its_own_probability(column):
    logits = torch.log(torch.tensor([[0.02, 0.9, 0.08]]))
    (picture, first), (_, second) = (
        column(logits=logits, target=torch.tensor([c])) for c in (1, 2)
    )
    words = texts(draw_grid([picture] * 2, [first, second], ("cat", "dog", "fox")))
    assert words[:6] == ["image_1", "dog \N{BALLOT X}", "90.0%", "1", "dog", "90.0%"]
    assert words[6:12] == ["image_1", "dog \N{BALLOT X}", "90.0%", "1", "fox", "8.0%"]
    assert words[12:18] == ["picture", "predicted", "probability", "label", "maps for",
                            "its probability"]  # fmt: skip


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
    numbers = [1.0, 0.9995, 0.9994, 0.5, 0.0005, 0.0004, 0.0]
    words = [">99.9%", ">99.9%", "99.9%", "50.0%", "0.1%", "<0.1%", "<0.1%"]
    assert [percent(number) for number in numbers] == words


def test_few_pictures_make_a_landscape_sheet_too(column):
    figure = draw_grid([column()[0]], [column()[1]], DIGITS)
    assert figure.get_figwidth() >= 1.4 * figure.get_figheight() - 1e-6


@pytest.mark.parametrize(
    ("relu_calls", "others", "title", "words"),
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
def test_a_plain_gradient_is_never_called_guided(column, relu_calls, others, title, words):
    picture, explanation = column(relu_calls=relu_calls, other_activations=others)
    assert title in texts(draw_grid([picture], [explanation], DIGITS))
    assert explained_row(picture, explanation, DIGITS)["note"].endswith(words)


def test_a_panel_that_is_none_is_refused(column):
    picture, explanation = column()
    with pytest.raises(InputError, match="panel 'foo' was given; give some of raw, cam, guided,"):
        draw_grid([picture], [explanation], DIGITS, Style(("raw", "foo")))


def test_panels_come_in_the_order_given_and_in_the_colours_asked_for(column):
    picture, explanation = column()
    style = Style(("overlay", "cam"), "viridis", 0.3)
    figure = draw_grid([picture], [explanation], DIGITS, style)
    over, cam = figure.axes[0].images[:2]
    np.testing.assert_array_equal(
        over.get_array(), np.asarray(overlay(picture.image, explanation, style))
    )
    viridis = colormaps["viridis"](
        explanation.heatmap[0].numpy() / explanation.heatmap.max().item(), bytes=True
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
    assert {"Counterfactual", "where evidence\nlies against it"} <= set(words)


@pytest.mark.parametrize(
    ("words", "weight", "size"),
    [("7", "bold", 13), ("golden retriever", "normal", 9), ("African elephant", "bold", 9),
     ("50.4% - 54.2%", "normal", 9), ("white wolf, Arctic wolf, Canis lupus tundrarum", "bold", 9),
     ("W" * 30, "bold", 9)],
)  # fmt: skip
def test_what_stands_over_a_column_is_no_wider_than_it(words, weight, size):
    fitting, smaller = fitted(words, size, weight)
    font = FontProperties(weight=weight, size=smaller)
    width = text_to_path.get_text_width_height_descent(fitting, font, False)[0]
    assert width < 62  # points: a column has as many
    assert 6 <= smaller <= size
    assert (fitting == words) == (len(words) < 20)
    if fitting != words:
        first, last = fitting.split("...")
        assert words.startswith(first)
        assert words.endswith(last)
        assert width > 45  # no shorter than it must be


def test_letters_that_the_usual_font_lacks_come_from_another(column, monkeypatch):
    """\U0001d434 is in DejaVu Serif, which comes with matplotlib, and not in DejaVu Sans."""
    picture, explanation = column()
    named = replace(picture, name="\U0001d434 7")
    families, lacking = fonts_for(named.name)
    assert (families[0], lacking) == ("sans-serif", set())
    assert "\U0001d434" in letters_of(findfont(FontProperties(family=families[1:])))
    figure = draw_grid([named], [explanation], DIGITS)
    assert [text.get_fontfamily() for text in figure.axes[0].texts[:2]] == [families, families[:1]]
    assert not any("no font" in text for text in texts(figure))

    fonts_for.cache_clear()
    monkeypatch.setattr(fontManager, "ttflist", [])
    with pytest.warns(UserWarning, match="Glyph 119860"):  # as Matplotlib says, too
        bare = draw_grid([named], [explanation], DIGITS)
    fonts_for.cache_clear()
    assert texts(bare)[-1] == "no font here has U+1D434: install one that does"
    assert bare.get_figheight() == pytest.approx(figure.get_figheight() + 0.19)


@pytest.mark.parametrize("relus", [0, 3])
@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "xgradcam", "counterfactual"])
def test_no_words_leave_the_sheet(column, relus, method):
    """Of many columns, which leave no margin over."""
    picture, explanation = column(method=method)
    explanation = replace(explanation, relu_calls=relus, other_activations=("silu",))
    for methods in ([explanation], [explanation, column()[1]]):
        explanations = (methods * 16)[:16]
        figure = draw_grid([picture] * 16, explanations, DIGITS, Style(tuple(PANELS)))
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        width, height = canvas.get_width_height()
        for text in figure.axes[0].texts:
            box = text.get_window_extent(canvas.get_renderer())
            assert box.x0 >= 0, text
            assert box.x1 <= width, text
            assert box.y0 >= 0, text
            assert box.y1 <= height, text


def test_names_are_never_read_as_mathematics(column):
    picture, explanation = column()
    figure = draw_grid([replace(picture, name="$x_{")], [explanation], DIGITS)
    figure.savefig(io.BytesIO(), format="png")
    long = draw_grid([replace(picture, name="a" * 60)], [explanation], DIGITS)
    assert texts(long)[0] == f"{'a' * 6}...{'a' * 6}"


def test_the_figure_shows_the_pixels_themselves(network, digits):
    x = network.tensor([digit.image for digit in digits])
    explanations = list(explain(network.module, x))
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
    explanation = explain(network.module, network.tensor([digits[3].image]))
    heatmap, R = explanation.heatmap[0].numpy(), explanation.R[0, 0].numpy()
    expected = {
        "raw": digits[3].image.convert("RGB"),
        "cam": STYLE.colorize(heatmap),
        "guided": STYLE.colorize(R, signed=True),
        "guided-cam": STYLE.colorize(R * heatmap, signed=True),
        "overlay": overlay(digits[3].image, explanation, STYLE),
    }
    assert list(expected) == list(PANELS)
    for name, image in expected.items():
        np.testing.assert_array_equal(panel_image(name, digits[3], explanation, STYLE), image)


def test_a_panel_adds_the_channels_of_a_colour(column):
    R = torch.stack([torch.full((28, 28), value) for value in (1.0, 2.0, -4.0)])[None]
    _, explanation = column(R=R, guided_cam=2 * R)
    np.testing.assert_array_equal(panel_map("guided", explanation), np.full((28, 28), -1))
    np.testing.assert_array_equal(panel_map("guided-cam", explanation), np.full((28, 28), -2))


def test_panels_that_there_are_not_are_asked_for_in_vain(network, digits):
    explanation = explain(network.module, network.tensor([digits[3].image]), guided=False)
    words = r"panel guided was asked for, but .* guided=False; make them with guided=True"
    with pytest.raises(InputError, match=words):
        panel_map("guided", explanation)
    unread = Picture("x", None, "", "x is broken")
    with pytest.raises(InputError, match=r"x was not read \(x is broken\); leave it out"):
        draw_grid([unread], [explanation], DIGITS)


def test_a_figure_of_nothing_is_refused():
    with pytest.raises(InputError, match="no pictures were given; give one at least"):
        draw_grid([], [], ())
