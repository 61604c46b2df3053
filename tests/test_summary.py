"""What a run says at its end, and the table of layers."""

import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch
from course import COURSE, WEIGHTS, course_network
from running import course_run, seenby, table_in

from seenby import InputError, explain, load_network
from seenby.outputs.summary import (
    NO_PICTURES,
    Tally,
    accuracy_lines,
    each_axis,
    notes_of,
    nothing_explained,
    pad_sentence,
    skipped_lines,
    summary,
)
from seenby.outputs.table import explained_row, skipped_row, unpicked_row
from seenby.pipeline import table_of_layers


@pytest.fixture(scope="module")
def run(digit_folder, tmp_path_factory):
    """A run over the eight digits: its folder, and what it said."""
    out = tmp_path_factory.mktemp("run")
    code, said, err = course_run(out, digit_folder)
    assert (code, err) == (0, "")
    return out, said


def test_the_account_is_short_and_tells_the_pad_and_why(run):
    out, said = run
    lines = said.splitlines()
    names = ["network", "task", "prepared", "layer", "pad", "pictures", "accuracy", "written"]
    assert [line[:10].strip() for line in lines if line[0] != " "] == names
    assert lines[0] == "network   CourseCNN of SID_a4.py, mnist_model.pth"
    assert lines[1] == "task      classes: one of several, with probabilities by softmax"
    assert lines[2] == "prepared  resized to cover 28, cut to 28, mean 0.1307, std 0.3081 (given)"
    assert lines[3] == "layer     conv2, 10 maps of 8 x 8"
    assert lines[4] == "pad       3: 28 pixels at stride 2 make 14 cells, the map has 8"
    assert lines[5].startswith("pictures  8 explained in ")
    assert lines[6] == "accuracy  8 of 8 with a label are right (100.0%)"
    assert lines[7] == " " * 10 + ", ".join(f"{c} 1/1" for c in range(8))
    assert lines[8] == f"written   {out}/seenby.png and .csv, run.json"
    assert lines[9:] == [" " * 10 + "beside them overlays/, raw/"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "overlays/, raw/"),
        (["--save-maps", "float16"], "overlays/, raw/, maps/"),
        (["--no-overlays", "--no-raw"], ""),
        (["--no-overlays"], "raw/"),
        (["--gallery"], "overlays/, raw/, cam/, guided/, guided-cam/"),
    ],
)
def test_the_account_names_what_was_written(digit_folder, tmp_path, options, said):
    pictures = digit_folder / "5", digit_folder / "6"
    _, out, _ = course_run(tmp_path / "out", *pictures, *options)
    written = out[out.index("\nwritten") + 1 :].splitlines()
    written = [line for line in written if not line.startswith("gallery")]
    assert written[0] == f"written   {tmp_path}/out/seenby.png and .csv, run.json"
    assert written[1:] == [" " * 10 + f"beside them {said}"] * bool(said)
    folders = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    assert folders == {word.strip(",/") for word in said.split()}


def test_no_positive_evidence_is_said_in_table_and_account(digit_folder, tmp_path):
    state = torch.load(WEIGHTS, weights_only=True)
    state["fc2.weight"].zero_()  # nothing in the maps speaks for any class
    torch.save(state, tmp_path / "blank.pth")
    weights = ("--weights", tmp_path / "blank.pth")
    code, out, _ = course_run(tmp_path / "out", digit_folder, *weights)
    assert code == 0
    assert "note      no positive evidence (8)" in out
    assert {row["note"] for row in table_in(tmp_path / "out")} == {"no positive evidence"}


def test_methods_made_for_maps_after_a_relu_say_so(digit_folder, tmp_path):
    methods = ("--method", "gradcam", "xgradcam", "--limit", "1")
    out = course_run(tmp_path / "out", digit_folder, *methods)[1]
    words = "note xgradcam is made for maps after a ReLU, but those of conv2 have negative values"
    assert words in " ".join(out.split())
    assert [bool(row["note"]) for row in table_in(tmp_path / "out")] == [False, True]


def test_the_figure_says_what_it_leaves_out(digit_folder, tmp_path, run):
    targets = ("--target", "0", "1", "2", "--panels", "raw")
    out = course_run(tmp_path / "out", digit_folder, *targets)[1]
    assert "; the figure shows the first 6 of 24 columns" in out  # two whole pictures
    assert "; the figure" not in run[1]
    assert "; the figure shows the first 3\n" in course_run(
        tmp_path / "out", digit_folder, "--columns", 3, "--panels", "raw"
    )[1]  # fmt: skip


def test_random_weights_are_said_loudly(digit_folder, tmp_path):
    words = ("--model", "squeezenet1_1", "--weights", "none", "--size", "64", "--panels", "raw")
    code, out, err = seenby(digit_folder / "5", "--out", tmp_path / "out", *words)
    assert code == 0
    assert "squeezenet1_1 of torchvision, RANDOM weights" in out
    assert err == "seenby: the weights are RANDOM: these maps mean nothing\n"


def test_the_course_network_may_be_random_too(digit_folder, tmp_path):
    words = ("--weights", "none", "--quiet")
    code, out, err = course_run(tmp_path / "out", digit_folder, *words)
    assert (code, out) == (0, "")
    assert err == "seenby: the weights are RANDOM: these maps mean nothing\n"


def test_a_pad_that_was_asked_for_is_told_where_the_stride_is_lost(digit_folder, tmp_path):
    common = ["--model", "convnext_tiny", "--weights", "none", "--size", "64", "--panels", "raw"]
    common += [digit_folder / "5", "--out", tmp_path / "out"]
    assert "pad       1, as asked" in seenby(*common, "--pad", "1")[1]
    words = "pad       none: the stride up to features is not known, the map is stretched"
    assert words in seenby(*common)[1]


# ------------------------------------------------------------------------------ line by line


@pytest.fixture(scope="module")
def explanation(network, digits):
    return explain(network.module, network.tensor([digits[5].image]))


def test_the_pad_and_why_it_is_so(explanation):
    words = "3: 28 pixels at stride 2 make 14 cells, the map has 8"
    assert pad_sentence(explanation, "auto") == words
    asked = "1, as asked: cells of zeros around the map, then stretched"
    assert pad_sentence(replace(explanation, pad=(1.0, 1.0)), 1) == asked
    lost = replace(explanation, pad=None, stride=None)
    words = "none: the stride up to conv2 is not known, the map is stretched"
    assert pad_sentence(lost, "auto") == words
    cell = replace(lost, L_c=torch.ones(1, 1, 1))
    words = "none: the map is one cell, which stands for the whole picture"
    assert pad_sentence(cell, "auto") == words
    wide = replace(explanation, pad=(1.0, 0.5), stride=(2, 4), L_c=torch.ones(1, 12, 6))
    assert pad_sentence(wide, "auto") == (
        "1 x 0.5: 28 pixels at stride 2 make 14 cells, the map has 12 and 28 pixels at stride 4 "
        "make 7 cells, the map has 6"
    )


def test_one_number_for_both_axes_where_they_agree():
    assert each_axis((2, 2)) == "2"
    assert each_axis((0.5, 2.0)) == "0.5 x 2"
    assert each_axis(()) == ""


def test_what_is_counted(network, digits, explanation):
    tally = Tally()
    right = explained_row(digits[5], explanation, network.classes)
    wrong = explained_row(replace(digits[5], name="b", label="3"), explanation, network.classes)
    tally.add([right, right], batch=0, columns=3)
    tally.add([unpicked_row(replace(digits[6], name="c"), "6", "0.500000")], batch=0, columns=3)
    tally.add([skipped_row(replace(digits[7], image=None, note="broken"))], batch=1, columns=3)
    tally.add([wrong, wrong | {"note": "one; two"}], batch=1, columns=3)
    assert (tally.explained, tally.not_picked, tally.skipped) == (2, 1, ["broken"])
    assert tally.total == 4
    assert tally.in_figure == {"image_5": 0}  # two columns each: the second has no room in three
    assert tally.notes == Counter({"one": 1, "two": 1})
    assert (tally.seen, tally.correct) == (
        Counter({"5": 1, "3": 1, "6": 1}), Counter({"5": 1, "6": 1, "3": 0}),
    )  # fmt: skip
    assert accuracy_lines(tally, network, "") == [
        "accuracy  2 of 3 with a label are right (66.7%)", " " * 10 + "3 0/1, 5 1/1, 6 1/1",
    ]  # fmt: skip
    network = replace(network, title="a network", notes=("three",))
    said = summary(network, explanation, "auto", tally, seconds=1.26, total=tally.total,
                   columns=3, per_picture=2, written="here\nand there")  # fmt: skip
    assert said.splitlines() == [
        "network   a network",
        "task      classes: one of several, with probabilities by softmax",
        "prepared  resized to cover 28, cut to 28, mean 0.1307, std 0.3081 (given)",
        "layer     conv2, 10 maps of 8 x 8",
        "pad       3: 28 pixels at stride 2 make 14 cells, the map has 8",
        "pictures  2 explained in 1.3 s, 1 skipped, 1 not picked; the figure shows the",
        "          first 2 of 4 columns",
        "accuracy  2 of 3 with a label are right (66.7%)",
        "          3 0/1, 5 1/1, 6 1/1",
        "note      one (1)",
        "note      two (1)",
        "note      three",
        "written   here",
        "          and there",
    ]


def test_a_first_picture_is_in_the_figure_however_many_columns_it_needs(network, digits,
                                                                        explanation):  # fmt: skip
    tally = Tally()
    row = explained_row(digits[5], explanation, network.classes)
    tally.add([row] * 4, batch=7, columns=3)
    assert tally.in_figure == {"image_5": 7}


def test_many_classes_are_counted_in_lines_that_break_between_them(network):
    tally = Tally(seen=Counter({f"class {c:02}": 2 for c in range(20)}),
                  correct=Counter({f"class {c:02}": 1 for c in range(20)}))  # fmt: skip
    first, *lines = accuracy_lines(tally, network, "")
    assert first == "accuracy  20 of 40 with a label are right (50.0%)"
    assert len(lines) > 2
    assert all(line.startswith(" " * 10 + "class") and len(line) <= 80 for line in lines)
    words = "".join(line[10:] + " " for line in lines).strip()
    assert words == ", ".join(f"class {c:02} 1/2" for c in range(20))
    assert accuracy_lines(Tally(), network, "") == []


def test_why_nothing_is_explained():
    tally = Tally(seen=Counter({"3": 8}), not_picked=8)
    assert str(nothing_explained(tally, "wrong")) == (
        "no picture is wrong (of 8 with a label); give others, or another --pick"
    )
    assert str(nothing_explained(Tally(not_picked=3), "wrong")) == (
        "--pick wrong was given, but no picture has a label of the network's; give some in folders "
        "that are named after their classes"
    )
    assert str(nothing_explained(Tally(), "all")) == NO_PICTURES
    assert str(nothing_explained(Tally(skipped=["a; give b"]), "all")) == "a; give b"
    error = nothing_explained(Tally(skipped=["a; give b", "c", "d"]), "correct")
    assert str(error) == "a; give b (and 2 more were skipped)"
    assert isinstance(error, InputError)


def test_of_many_notes_the_commonest_are_told():
    few = Tally(notes=Counter({f"label {n} is no class": n + 1 for n in range(10)}))
    assert notes_of(few) == [f"label {n} is no class ({n + 1})" for n in range(9, -1, -1)]
    many = Tally(notes=Counter({f"label {n} is no class": n + 1 for n in range(13)}))
    assert notes_of(many) == [*(f"label {n} is no class ({n + 1})" for n in range(12, 2, -1)),
                              "and 3 others, see note in the table"]


def test_many_skipped_pictures_are_counted(digit_folder, tmp_path):
    assert skipped_lines(["a", "b"]) == ["skipped: a", "skipped: b"]
    assert skipped_lines(["a"] * 20) == ["skipped: a"] * 20
    more = "and 2 more, see status in the table"
    assert skipped_lines(["a"] * 22) == [*["skipped: a"] * 20, more]
    (data := tmp_path / "data").mkdir()
    shutil.copy(digit_folder / "5" / "image_5.png", data)
    for i in range(50):
        (data / f"bad{i:02}.png").write_bytes(b"no picture")
    code, _, err = course_run(tmp_path / "out", data)
    lines = err.splitlines()
    assert (code, len(lines)) == (1, 21)
    assert lines[19].startswith(f"seenby: skipped: {data}/bad19.png is not an image")
    assert lines[20] == "seenby: and 30 more, see status in the table"
    assert [row["status"] for row in table_in(tmp_path / "out")].count("skipped") == 50


# ---------------------------------------------------------------------------- the table of layers


def test_the_layer_table_has_the_labs_figures():
    lines = table_of_layers(load_network("alexnet", "none")).splitlines()
    assert lines[1].split() == ["features.0", "(Conv2d)", "(1,", "64,", "55,", "55)", "23,296",
                                "23,296", "4", "0.5"]  # fmt: skip
    assert lines[21].split()[-2:] == ["4,097,000", "61,100,840"]
    assert lines[-2] == "parameters: 61,100,840 total, 61,100,840 trainable, 0 non-trainable"
    assert lines[-1].startswith("MB: input 0.57, forward and backward 8.38, parameters 233.08, ")
    vgg = table_of_layers(load_network("vgg16", "none"))
    assert "parameters: 138,357,544 total" in vgg
    assert "MB: input 0.57, forward and backward 218.78, parameters 527.79" in vgg
    course = course_network()
    course.module.conv1.weight.requires_grad_(False)
    assert "250 non-trainable" in table_of_layers(course)
    assert "conv2 (Conv2d)  (1, 10, 8, 8)         2,510       2,770       2    3" in (
        table_of_layers(course)
    )


def test_the_layer_table_is_printed_without_a_download_and_without_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = seenby("--model", "squeezenet1_1", "--list-layers")
    assert code == 0
    assert "parameters: 1,235,496 total" in out
    assert "classifier.1 (Conv2d)" in out
    assert err == ""
    assert list(tmp_path.iterdir()) == []


def test_the_layer_table_of_a_network_of_ones_own():
    code, out, _ = seenby(*COURSE, "--list-layers")
    assert code == 0
    assert out == table_of_layers(course_network()) + "\n"
