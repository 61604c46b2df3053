"""The plot of a trial: a row for each gain, both fills in it, legible at 8 cm."""

from matplotlib.backends.backend_agg import FigureCanvasAgg

from seenby.outputs.forest import draw_forest, short

GROUPS = {
    "the maps, less those of": {
        "a flat map": {"mean colour": (0.6, 0.5, 0.7), "blur": (0.4, 0.3, 0.45)},
        "another picture's": {"mean colour": (0.1, 0.0, 0.2), "blur": (0.2, 0.1, 0.3)},
    },
    "the default, less": {"pad 0": {"mean colour": (0, -0.1, 0.1), "blur": (0, -0.2, 0.2)}},
}


def test_each_gain_is_a_row_with_both_fills():
    figure = draw_forest("These maps point", "40 pictures", GROUPS)
    (axes,) = figure.axes
    labels = [text.get_text() for text in axes.texts]
    assert labels == ["the maps, less those of", "a flat map", "another picture's",
                      "the default, less", "pad 0"]  # fmt: skip
    assert [text.get_weight() for text in axes.texts] == [
        "bold", "normal", "normal", "bold", "normal"]  # fmt: skip
    lines = [line for line in axes.lines if len(line.get_xdata()) == 2][:-1]  # the last is zero's
    assert [list(line.get_xdata()) for line in lines] == [
        [low, high] for gains in GROUPS.values() for gain in gains.values()
        for _, low, high in gain.values()]  # fmt: skip
    dots = [line for line in axes.lines if len(line.get_xdata()) == 1]
    assert [dot.get_xdata()[0] for dot in dots] == [0.6, 0.4, 0.1, 0.2, 0, 0]
    heights = [float(dot.get_ydata()[0]) for dot in dots]
    assert heights == sorted(heights)  # as they are listed, from the top down
    assert figure.get_suptitle() == "These maps point\n40 pictures"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "covered by mean colour", "covered by blur"]  # fmt: skip


def test_it_is_8_cm_wide_and_nothing_is_cut_off():
    long = {"the maps, less those of": GROUPS["the maps, less those of"],
            "the default, less": {f"layer blocks.{k}.a_very_long_name.conv": gain for k, gain in
                                  enumerate(GROUPS["the maps, less those of"].values())}}
    figure = draw_forest("No better than a flat map or another picture's or their mirror image",
                         "40 pictures x 24 sets, 39 of 40 classified correctly", long)  # fmt: skip
    assert round(figure.get_figwidth() * 2.54, 2) == 8
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    (axes,) = figure.axes
    words = [*axes.texts, axes.xaxis.label, figure._suptitle, *figure.legends[0].get_texts()]
    for text in words:
        box = text.get_window_extent(renderer)
        assert box.x0 >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert text.get_fontsize() >= 7  # points, as printed
    assert axes.bbox.width > 0.4 * figure.bbox.width


def test_a_group_without_rows_has_no_words():
    figure = draw_forest("Title", "counts", GROUPS | {"the default, less": {}})
    assert "the default, less" not in [text.get_text() for text in figure.axes[0].texts]


def test_a_long_name_keeps_its_end():
    assert short("layer conv1") == "layer conv1"
    assert short("layer blocks.3.a_long_name.conv_pwl") == "layer bl...name.conv_pwl"
    assert len(short("x" * 99)) == 24
