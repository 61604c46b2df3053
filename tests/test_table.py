"""What the table says of each picture, column by column."""

import csv
import io
from dataclasses import replace

import pytest
import torch
from running import course_run, table_in

from seenby import Picture, draw_grid, explain, read_pictures
from seenby.outputs.figure import percent
from seenby.outputs.table import (
    COLUMNS,
    escape_formulas,
    explained_row,
    guided_note,
    is_correct,
    method_title,
    notes_in,
    skipped_row,
    unescape_formula,
    unpicked_row,
)

DIGITS = tuple("0123456789")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture
def column(network, digits):
    """The second digit and its explanation, with a change."""

    def changed(label="1", **change):
        x = network.tensor([digits[1].image])
        explanation = replace(explain(network.module, x), **change)
        return replace(digits[1], label=label), explanation

    return changed


def test_the_columns_are_these_and_no_others():
    assert COLUMNS == (
        "image", "label", "status", "predicted", "predicted_probability", "target",
        "target_index", "target_probability", "layer", "method", "note",
    )  # fmt: skip


def test_the_table_has_the_predictions_probability_whatever_is_explained(column):
    picture, explanation = column(target=torch.tensor([7]))
    row = explained_row(picture, explanation, DIGITS)
    probabilities = explanation.logits.softmax(1)[0]
    assert (row["predicted"], row["target"], row["target_index"]) == ("1", "7", "7")
    best = probabilities.max().item()
    assert float(row["predicted_probability"]) == pytest.approx(best, abs=1e-6)
    assert float(row["target_probability"]) == pytest.approx(probabilities[7].item(), abs=1e-6)
    assert best != pytest.approx(probabilities[7].item(), abs=1e-3)


def test_a_row_of_the_table(column):
    picture, explanation = column("7")
    row = explained_row(replace(picture, note="a note"), explanation, DIGITS)
    assert list(row) == list(COLUMNS)
    for name in ("predicted_probability", "target_probability"):
        assert float(row.pop(name)) == pytest.approx(
            explanation.logits.softmax(1).max().item(), abs=1e-6
        )
    assert row == {
        "image": "image_1", "label": "7", "status": "explained", "predicted": "1", "target": "1",
        "target_index": "1", "layer": "conv2", "method": "gradcam", "note": "a note",
    }  # fmt: skip


def test_rows_of_pictures_that_are_not_explained():
    skipped = skipped_row(Picture("x", None, "3", "broken"))
    known = {"image": "x", "label": "3", "status": "skipped", "note": "broken"}
    assert skipped == dict.fromkeys(COLUMNS, "") | known
    unpicked = unpicked_row(Picture("x", None, "3", "bright"), "cat", "0.250000")
    known |= {"status": "not picked", "predicted": "cat", "predicted_probability": "0.250000"}
    assert unpicked == dict.fromkeys(COLUMNS, "") | known | {"note": "bright"}


def test_notes_of_the_maps_stand_behind_those_of_the_picture(column):
    zero = torch.zeros(1, 8, 8)
    picture, explanation = column(
        L_c=zero, method="xgradcam", negative_activations=torch.tensor([True]), relu_calls=0
    )
    row = explained_row(replace(picture, note="a note"), explanation, DIGITS)
    assert notes_in(row) == [
        "a note",
        "no positive evidence",
        "guided backprop is not defined for any activation but ReLU: the plain gradient is shown",
        "xgradcam is made for maps after a ReLU, but those of conv2 have negative values",
    ]
    assert guided_note(replace(explanation, R=None)) == ""  # nothing is shown that could mislead
    skipped = skipped_row(Picture("x", None, "", "one; with a semicolon"))
    assert notes_in(skipped) == ["one; with a semicolon"]


def test_a_method_of_another_version_is_called_as_it_is_called_there():
    assert method_title("gradcam++") == "Grad-CAM++"
    assert method_title("fullgrad") == "fullgrad"


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'", "", "a=1"])
def test_a_cell_is_no_formula_and_comes_back_as_it_was(cell):
    escaped = escape_formulas({"image": cell})["image"]
    assert not escaped.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert unescape_formula(escaped) == cell


# -------------------------------------------------------------------------------- of a whole run


@pytest.fixture(scope="module")
def of_labels(digit_folder, tmp_path_factory):
    """The maps for each digit's label and for a nine; two digits lie in the folder of another.

    The output folder, the figure, and the folder that was read.
    """
    folder = tmp_path_factory.mktemp("table")
    names, pictures = folder / "names.txt", folder / "pictures"
    names.write_text("\n".join(WORDS))
    for label, source in zip("01254367", range(8), strict=True):
        (pictures / label).mkdir(parents=True)
        file = digit_folder / str(source) / f"image_{source}.png"
        (pictures / label / file.name).write_bytes(file.read_bytes())
    figures = []
    with pytest.MonkeyPatch.context() as patch:

        def keeping(*given):
            figures.append(draw_grid(*given))
            return figures[0]

        patch.setattr("seenby.pipeline.draw_grid", keeping)
        given = ("--target", "label", "nine", "--class-names", names, "--columns", 16)
        assert course_run(folder / "out", pictures, *given)[0] == 0
    return folder / "out", figures[0], pictures


def test_each_row_has_its_own_targets_probability(of_labels, network):
    out, _, pictures = of_labels
    rows = table_in(out)
    labels = [WORDS[i] for i in range(8)]
    assert [row["target"] for row in rows] == [c for label in labels for c in (label, "nine")]
    wrong = [(row["label"], row["predicted"]) for row in rows[::2] if row["label"] !=
             row["predicted"]]  # fmt: skip
    assert wrong == [("three", "five"), ("five", "three")]
    found = read_pictures([pictures], network.preprocessing, WORDS)
    for i, picture in enumerate(found):
        probabilities = network.module(network.tensor([picture.image])).softmax(1)[0]
        for row in rows[2 * i : 2 * i + 2]:
            c = int(row["target_index"])
            assert (row["image"], row["label"], row["target"]) == (
                picture.name, picture.label, WORDS[c],
            )  # fmt: skip
            target, predicted = (float(row[f"{name}_probability"])
                                 for name in ("target", "predicted"))  # fmt: skip
            assert target == pytest.approx(probabilities[c].item(), abs=2e-6)
            assert predicted == pytest.approx(probabilities.max().item(), abs=2e-6)
            assert (row["status"], row["layer"], row["method"]) == ("explained", "conv2", "gradcam")
            assert row["note"] == ""


def test_the_figure_has_each_targets_probability_too(of_labels):
    out, figure, _ = of_labels
    words = [text.get_text() for text in figure.axes[0].texts]
    headings = ["picture", "predicted", "probability", "label", "maps for", "its probability"]
    assert words[6 * 16 : 6 * 17] == headings
    for i, row in enumerate(table_in(out)):
        *_, target, probability = words[6 * i : 6 * (i + 1)]
        expected = percent(float(row["target_probability"]))
        assert (target, probability) == (row["target"], expected)


def test_the_file_is_a_table_of_these_columns(of_labels):
    content = (of_labels[0] / "seenby.csv").read_text(encoding="utf-8")
    header, *rows = csv.reader(io.StringIO(content))
    assert tuple(header) == COLUMNS
    assert {len(row) for row in rows} == {len(COLUMNS)}
    assert len(rows) == 16


def test_every_status(digit_folder, digits, tmp_path):
    pictures = tmp_path / "pictures"
    for label, digit in (("0", digits[0]), ("9", digits[1]), ("2", digits[2])):
        (pictures / label).mkdir(parents=True)
        digit.image.save(pictures / label / f"{digit.name}.png")
    (pictures / "2" / "broken.png").write_bytes(b"hello")
    digits[3].image.save(pictures / "no_label.png")
    code, out, err = course_run(tmp_path / "out", pictures, "--pick", "wrong")
    assert code == 1
    assert "pictures  1 explained in " in out
    assert "1 skipped, 3 not picked" in out
    note = f"{pictures}/2/broken.png is not an image; give a whole PNG, JPEG, GIF, BMP, TIFF or "
    note += "WebP picture"
    assert err == f"seenby: skipped: {note}\n"
    rows = {row["image"]: row for row in table_in(tmp_path / "out")}
    assert list(rows) == ["no_label", "image_0", "broken", "image_2", "image_1"]
    names = ("label", "status", "predicted", "target", "note")
    said = {image: tuple(row[name] for name in names) for image, row in rows.items()}
    assert said == {
        "no_label": ("", "not picked", "3", "", ""),
        "image_0": ("0", "not picked", "0", "", ""),
        "broken": ("2", "skipped", "", "", note),
        "image_2": ("2", "not picked", "2", "", ""),
        "image_1": ("9", "explained", "1", "1", ""),
    }
    for image, row in rows.items():
        assert bool(row["predicted_probability"]) == (image != "broken")
        assert bool(row["target_probability"]) == (image == "image_1")
        assert row["layer"] == ("conv2" if image == "image_1" else "")


@pytest.mark.parametrize(("label", "predicted", "expected"), [
    ("cat", "cat", True), ("cat", "dog", False), ("cat", "cat; dog", False),
    ("cat; dog", "cat; dog", True), ("", "cat", None), ("cat", "", None),
])  # fmt: skip
def test_a_picture_is_right_where_all_its_labels_are(label, predicted, expected):
    assert is_correct({"label": label, "predicted": predicted}) is expected
