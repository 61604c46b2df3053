"""The words on the command line, and the settings that they make."""

import argparse
import re
from pathlib import Path

import pytest
from PIL import Image
from running import course_run, seenby, table_in

from seenby import METHODS, InputError, Style
from seenby.inputs.pictures import SUFFIXES
from seenby.option_types import names_pictures, number_between, parse_size
from seenby.options import build_parser, parse_settings
from seenby.outputs.figure import PANELS
from seenby.settings import Settings

MODEL = ("--model", "resnet18")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder where one stands, with pictures in it and a file that is named like a class."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.PNG", "c.jpg", "sub/d.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("L", (28, 28), 100).save(name)
    Path("3").write_text("notes")
    Path("gradcam").write_text("notes")
    Path("notes.txt").write_text("notes")
    return tmp_path


def settings(*words):
    return parse_settings([*map(str, words)])


def test_the_least_that_can_be_said(here):
    assert settings("a.png", *MODEL) == Settings(images=("a.png",), model="resnet18")
    assert settings("a.png", *MODEL).out == Path("outputs")


def test_every_option_has_its_place(here):
    Path("names.txt").write_text("cat\ndog\n")
    given = settings(
        "a.png", "--pick", "wrong", "--limit", 3, "--invert", *MODEL, "--weights", "none",
        "--class-names", "names.txt", "--size", "20x30", "--mean", "0.5", "--std", "0.25",
        "--device", "cpu", "--list-layers", "--target", "label", 3, "--method", "xgradcam",
        "--layer", "conv1", "--pad", 2, "--out", "there", "--panels", "raw", "overlay",
        "--columns", 7, "--colormap", "viridis", "--opacity", 0.25, "--blur", 1.5, "--uncropped",
        "--no-overlays", "--no-raw", "--save-maps", "float16", "--gallery", "--batch-size", 5,
        "--workers", 0, "--resume", "--quiet",
    )  # fmt: skip
    assert given == Settings(
        images=("a.png",), pick="wrong", limit=3, invert=True, model="resnet18", weights="none",
        class_names=("cat", "dog"), size=(20, 30), mean=(0.5,), std=(0.25,), device="cpu",
        list_layers=True, target=("label", "3"), method=("xgradcam",), layer="conv1", pad=2,
        style=Style(("raw", "overlay"), "viridis", 0.25), blur=1.5, uncropped=True, columns=7,
        overlays=False, raw=False, save_maps="float16", gallery=True, out=Path("there"),
        batch_size=5, workers=0, resume=True, quiet=True,
    )  # fmt: skip


# ------------------------------------------------------------------------------------- lists


def test_numbers_take_spaces_and_commas(here):
    for name in ("mean", "std"):
        spaces = settings("a.png", *MODEL, f"--{name}", "0.485", "0.456", "0.406")
        commas = settings("a.png", *MODEL, f"--{name}", "0.485,0.456,0.406")
        mixed = settings("a.png", *MODEL, f"--{name}", "0.485,0.456", "0.406")
        assert getattr(spaces, name) == (0.485, 0.456, 0.406)
        assert spaces == commas == mixed
        same = settings("a.png", *MODEL, f"--{name}", "0.5", "0.5", "0.5")
        assert getattr(same, name) == (0.5, 0.5, 0.5)


LISTS = [
    ("target", ("3", "label")),
    ("method", ("xgradcam", "gradcam")),
    ("panels", ("overlay", "raw")),
    ("mean", ("0.5", "0.25")),
    ("std", ("0.5", "0.25")),
]


def listed(given, name):
    return given.style.panels if name == "panels" else getattr(given, name)


@pytest.mark.parametrize(("name", "words"), LISTS)
def test_pictures_behind_the_words_of_a_list_are_pictures(here, name, words):
    expected = words if name not in ("mean", "std") else (0.5, 0.25)
    for pictures in (("a.png",), ("b.PNG", "sub/"), ("sub/d.png", "./sub")):
        given = settings(*MODEL, f"--{name}", *words, *pictures)
        assert (listed(given, name), given.images) == (expected, pictures)
        given = settings("c.jpg", *MODEL, f"--{name}", *words, *pictures, "--quiet")
        assert (listed(given, name), given.images) == (expected, ("c.jpg", *pictures))
        among = settings(*MODEL, f"--{name}", words[0], *pictures, words[1])
        assert (listed(among, name), among.images) == (expected, pictures)


@pytest.mark.parametrize(("name", "words"), LISTS)
def test_files_alone_behind_a_list_leave_its_default(here, name, words):
    given = settings(*MODEL, f"--{name}", "a.png", "c.jpg")
    assert given.images == ("a.png", "c.jpg")
    assert listed(given, name) == listed(Settings(), name)


@pytest.mark.parametrize(("name", "words"), LISTS[1:])
def test_other_words_that_do_not_fit_a_list_are_mistakes(here, name, words):
    for word in ("magic", "7th"):
        with pytest.raises(InputError, match=f"argument --{name}: '{word}' was given; give "):
            settings("a.png", *MODEL, f"--{name}", *words, word)


@pytest.mark.parametrize(("name", "words"), LISTS[1:])
def test_what_is_there_behind_such_a_list_is_looked_at(here, name, words):
    given = settings("a.png", *MODEL, f"--{name}", *words, "sub")  # no class can have this name
    assert given.images == ("a.png", "sub")
    for missing in ("nope.png", "nope/"):
        with pytest.raises(InputError, match=f"^{missing} does not exist; give "):
            settings("a.png", *MODEL, f"--{name}", *words, missing)


def test_a_folder_that_is_missing_behind_classes_is_named(here):
    with pytest.raises(InputError, match=r"^nope/ does not exist; give "):
        settings(*MODEL, "--target", "3", "nope/")


@pytest.mark.parametrize("name", ["target", "method", "panels"])
def test_what_is_named_twice_is_made_once(here, name):
    words = dict(LISTS)[name]
    given = settings("a.png", *MODEL, f"--{name}", *words, words[0])
    assert listed(given, name) == words


def test_pictures_before_between_and_behind_options(here):
    given = settings("a.png", *MODEL, "b.PNG", "--pad", 1, "--invert", "c.jpg", "sub")
    assert given.images == ("a.png", "b.PNG", "c.jpg", "sub")
    assert (given.pad, given.invert, given.model) == (1, True, "resnet18")


def test_words_that_name_pictures(here):
    named = ["a.png", "b.PNG", "sub/", "./sub", str(here)]
    others = ["nope.png", "3", "gradcam", "notes.txt", "sub", "", "x" * 5000]
    assert [names_pictures(word) for word in named] == [True] * len(named)
    assert [names_pictures(word) for word in others] == [False] * len(others)


def test_a_class_is_no_file_or_folder_of_the_same_name(here):
    given = settings("a.png", *MODEL, "--target", "3", "sub", "--method", "gradcam")
    assert (given.target, given.method) == (("3", "sub"), ("gradcam",))
    assert given.images == ("a.png",)


def test_a_run_for_a_class_that_is_also_a_file(here, digit_folder):
    assert course_run(here / "out", digit_folder, "--target", "3")[0] == 0
    assert [row["target"] for row in table_in(here / "out")] == ["3"] * 8


def test_pictures_may_stand_behind_a_list(tmp_path, digits):
    digits[5].image.save(tmp_path / "five.png")
    words = ("--target", "3", tmp_path / "five.png", "--quiet")
    assert course_run(tmp_path / "out", *words) == (0, "", "")
    (row,) = table_in(tmp_path / "out")
    assert (row["image"], row["predicted"], row["target"]) == ("five", "5", "3")


# ------------------------------------------------------------------------------ what is refused


def test_without_a_model_it_says_what_to_give_with_two_examples(here):
    for words in (["a.png"], ["a.png", "--pad", "1"], [], ["--list-layers"]):
        with pytest.raises(InputError) as error:
            settings(*words)
        assert str(error.value) == (
            "no network was given; give --model resnet50, or --model my_net.py:MyNet --weights "
            "mine.pth for one of your own"
        )
    code, out, err = seenby("a.png")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("seenby: error: no network was given; give --model resnet50, or --model")


def test_without_pictures_it_says_what_to_give(here):
    words = re.escape("no pictures were given; give files or folders with " + " ".join(SUFFIXES))
    with pytest.raises(InputError, match=words):
        settings(*MODEL)
    assert settings(*MODEL, "--list-layers").images == ()


def test_a_table_of_layers_needs_no_download(here):
    assert settings(*MODEL, "--list-layers").weights == "none"
    assert settings(*MODEL, "--list-layers", "--weights", "w.pth").weights == "w.pth"
    assert settings("--model", "my.py:Net", "--list-layers").weights is None
    assert settings("a.png", *MODEL).weights is None


@pytest.mark.parametrize("gallery", [(), ("--gallery",)])
def test_reading_from_where_it_writes_is_refused(here, gallery):
    with pytest.raises(InputError, match=r"would write into .*, which is read; give another"):
        settings(here, *MODEL, "--out", here / "out", *gallery)
    for name in ("raw", "overlays", *(("guided", "cam") if gallery else ())):
        (here / name / "5").mkdir(parents=True)
        picture = here / name / "5" / "five.png"
        Image.new("L", (60, 60)).save(picture)
        for source in (picture, picture.parent, here / name):
            words = re.escape(f"--out {here} would write into {source}, which is read")
            with pytest.raises(InputError, match=words):
                settings(source, *MODEL, "--out", here, *gallery)
    assert settings(here / "raw", *MODEL, "--out", here / "out", *gallery).out == here / "out"
    assert settings("a.png", *MODEL, "--out", ".").images == ("a.png",)


def test_a_run_into_what_it_reads_changes_nothing(tmp_path):
    assert seenby(tmp_path, *MODEL, "--out", tmp_path / "out")[0] == 2
    (tmp_path / "raw" / "5").mkdir(parents=True)
    picture = tmp_path / "raw" / "5" / "five.png"
    Image.new("L", (60, 60)).save(picture)
    for source in (picture, picture.parent, tmp_path / "raw"):
        code, _, err = course_run(tmp_path, source)
        assert code == 2
        assert f"would write into {source}, which is read" in err
    with Image.open(picture) as untouched:
        assert untouched.size == (60, 60)


@pytest.mark.parametrize("name", ["raw", "overlays", "seenby.png", "seenby.csv", "run.json"])
def test_what_stands_in_the_way_in_the_output_folder_is_found_too(tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).mkdir() if "." in name else (out / name).write_text("a file")
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    code, _, err = course_run(out, tmp_path / "a.png")
    assert code == 2
    assert err.startswith("seenby: error: argument --out: can't write to ")
    assert [path.name for path in out.iterdir()] == [name]


# ------------------------------------------------------------------------------------- types


def test_numbers_between_two_others():
    whole, real = number_between(int, 0, 999, "auto"), number_between(float, 0, 1)
    assert [whole("auto"), whole("0"), whole("999"), real("0.25")] == ["auto", 0, 999, 0.25]
    for convert, words in ((whole, ("-1", "1000", "1.5", "", "x")), (real, ("nan", "inf", "2"))):
        for word in words:
            with pytest.raises(InputError, match=f"^'{word}' was given; give "):
                convert(word)


def test_sizes():
    assert parse_size("224") == (224, 224)
    assert parse_size("160x224") == (160, 224)
    for word in ("0", "-1", "1x2x3", "x", "", "99999", "1.5", "٣x٣x"):
        with pytest.raises(InputError, match="was given; give pixels, as in 224 or 160x224"):
            parse_size(word)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--mean", "nan"], "argument --mean: 'nan' was given; give a number a channel, as in"),
        (["--mean", "0.5,"], "argument --mean: '0.5,' was given; give a number a channel"),
        (["--std", "inf"], "argument --std: 'inf' was given; give a number a channel"),
        (["--method", "magic"],
         "argument --method: 'magic' was given; give some of " + ", ".join(METHODS)),
        (["--panels", "raw", "x"],
         "argument --panels: 'x' was given; give some of " + ", ".join(PANELS)),
        (["--device", "cuda:77"], "argument --device: cuda:77 is not available ("),
        (["--device", "toaster"], "argument --device: toaster is not available (no such device); "),
        (["--colormap", "jett"], "argument --colormap: 'jett' is unknown to matplotlib; give jet"),
        (["--pick", "right"], "argument --pick: invalid choice: 'right' (choose from"),
        (["--save-maps", "int8"], "argument --save-maps: invalid choice: 'int8' (choose from"),
        (["--columns", "0"], "argument --columns: '0' was given; give a number from 1 to 100"),
        (["--workers", "-1"], "argument --workers: '-1' was given; give a number from 0 to 256"),
        (["--targets", "3"], "unrecognized arguments: --targets 3; see --help"),
        (["--mea", "0.5"], "unrecognized arguments: --mea 0.5; see --help"),
        (["--target"], "argument --target: expected at least one argument; see --help"),
        (["--out", ""], "argument --out: can't write to (it has no name); give a folder you"),
        ([""], "argument IMAGES: an empty name does not exist; give picture files"),
        (["mnist:"], "argument IMAGES: mnist: does not exist; give picture files"),
    ],
)  # fmt: skip
def test_words_that_are_refused(here, words, says):
    with pytest.raises(InputError) as error:
        settings("a.png", *MODEL, *words)
    assert str(error.value).startswith(says)
    assert ";" in str(error.value)


def test_help_tells_every_option_and_default(capsys):
    with pytest.raises(SystemExit) as end:
        parse_settings(["--help"])
    assert end.value.code == 0
    words = " ".join(capsys.readouterr().out.split()).replace("- ", "-")  # where a line broke
    actions = [action for action in build_parser()._actions if action.dest != "help"]
    assert len(actions) > 25
    for action in actions:
        assert (action.option_strings or [action.metavar])[-1] in words
        assert action.help
        is_switch = isinstance(action, (argparse._StoreTrueAction, argparse._StoreFalseAction))
        said = "(default: " in action.help or action.dest in ("images", "model")
        assert said or is_switch or action.dest == "save_maps", action.dest
    for option in ("IMAGES", "--weights", "--pad", "--target", "--invert", "--out", "--quiet"):
        assert option in words
    for default in (
        "all", "pretrained, or as FILE.py makes it", "predicted", "auto", "outputs", "cpu",
        "gradcam", "raw cam guided guided-cam", "8", "jet", "0.5", "16",
    ):  # fmt: skip
        assert re.search(rf"\(default: [^)]*{default}[^)]*\)", words), default


def test_each_setting_has_its_option():
    """And with the same default, but where there must be something, or it is made of several."""
    defaults = vars(build_parser().parse_args([]))
    style = {"panels", "colormap", "opacity"}
    expected = {**vars(Settings()), **vars(Settings().style)}
    assert defaults.keys() - {"more_images"} == expected.keys() - {"style"}
    assert style <= defaults.keys()
    for name, value in defaults.items():
        if name not in ("more_images", "images"):
            assert value == expected[name], name


def test_a_picture_that_is_missing_behind_a_list_is_named():
    with pytest.raises(InputError, match=r"^nope.png does not exist; give "):
        parse_settings(["--std", "0.3081", "nope.png", "--model", "resnet18"])
