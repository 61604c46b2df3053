"""Class names: read from a file, found however they are spelt, one of their own for each class."""

import json

import pytest
from running import course_run, table_in

from seenby import InputError
from seenby.inputs.classes import (
    class_index,
    class_indices,
    imagenet_ids,
    names_for,
    normalise_name,
    read_class_names,
    target_class,
)
from seenby.machine import import_torchvision

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def test_classes_by_name_and_number():
    classes = ("tabby cat", "polar_bear", "dog")
    names = ["tabby cat", "TABBY-CAT", "1", "3", "-1", "1.0", "", "cat"]
    expected = [0, 0, 1, None, None, None, None, None]
    assert [class_index(name, classes) for name in names] == expected
    assert class_index("7", tuple("0123456789")) == 7
    assert class_index("1", ("1", "0")) == 0  # a name before a number
    assert class_index("9" * 5000, classes) is None  # int() would refuse as many digits


def test_an_exact_name_goes_before_one_that_is_spelt_alike():
    classes = ("Polar bear", "polar bear")
    assert [class_index(name, classes) for name in classes] == [0, 1]
    assert class_indices(("n02134084_polar-bear",))["polar bear"] == 0
    worn = ("cardigan", "Cardigan", "Pembroke")  # the second one is a dog
    names = ["n02113186_Cardigan", "n02963159_cardigan", "pembroke", "PEMBROKE", "cardigan"]
    assert [class_index(name, worn) for name in names] == [1, 0, 2, 2, 0]


@pytest.mark.parametrize(
    ("name", "plain"),
    [("n02391049_Polar-Bear", "polar bear"), ("__Tabby_Cat__", "tabby cat"), ("n1_x", "n1 x"),
     ("Straße", "strasse"), ("7", "7")],
)  # fmt: skip
def test_names_in_one_spelling(name, plain):
    assert normalise_name(name) == plain


def test_words_of_target():
    classes = ("cat", "dog", "fox")
    words = ["predicted", "label", "dog", "2", "FOX"]
    assert [target_class(word, classes) for word in words] == ["predicted", "label", 1, 2, 2]
    words = r"^class foxx was given; give a number from 0 to 2, or a name such as fox, "
    with pytest.raises(InputError, match=words):
        target_class("foxx", classes)
    with pytest.raises(InputError, match=r"; give a number from 0 to 1$"):  # no names
        target_class("2", ("0", "1"))


def test_a_name_for_each_class():
    assert names_for(2, None, ("cat", "dog")) == ("cat", "dog")  # the network's own
    assert names_for(3, None, ("cat", "dog")) == ("0", "1", "2")  # which are of another count
    assert names_for(2, ["x", "y"], ("cat", "dog")) == ("x", "y")
    with pytest.raises(InputError, match="1 class names were given; the network has 2: name each"):
        names_for(2, ["x"], ())
    with pytest.raises(InputError, match="1 class names were given; the network has no classes: d"):
        names_for(0, ["x"])
    words = "the class name x appears twice; give each class one of its own"
    with pytest.raises(InputError, match=words):
        names_for(2, ["x", "x"], ())


@pytest.mark.parametrize(
    "content",
    ["cat\ndog\n", " cat \r\n\r\ndog", '["cat", "dog"]', ' [" cat", "dog "]', "\ufeffcat\ndog"],
)
def test_a_file_of_names(tmp_path, content):
    (path := tmp_path / "names").write_text(content, encoding="utf-8")
    assert read_class_names(str(path)) == ("cat", "dog")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"[1, 2]", "no list of names"), (b'{"cat": 1}', "not numbered from 0 to 0"),
     (b'{"0": 1}', "no list of names"), (b'{"a": 0, "b": 0}', "not numbered from 0 to 1"),
     (b"[1, ", "Expecting value"), (b"\xff\xfe\x00", "'utf-8' codec can't decode"),
     (None, "No such file or directory")],
)  # fmt: skip
def test_a_file_that_holds_no_names(tmp_path, content, words):
    path = tmp_path / "names"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_class_names(str(path))
    assert str(error.value).startswith(f"{path} ({words}")
    assert str(error.value).endswith("; give a file of class names, one a line or a JSON list")


def test_names_by_their_numbers(tmp_path):
    for content in ('{"0": "cat", "1": "dog"}', '{"dog": 1, "cat": 0}'):
        (tmp_path / "names").write_text(content)
        assert read_class_names(str(tmp_path / "names")) == ("cat", "dog")


def test_a_folder_that_is_called_by_a_number_is_of_the_class_of_that_name():
    classes = tuple(map(str, range(1, 11)))
    assert [class_index(f"{n:02}", classes) for n in range(1, 11)] == [*range(10)]
    assert class_index("0", classes) == 0  # by number, as no class is called so
    assert class_index("11", classes) is None
    assert class_index("02", ("cat", "dog", "7")) == 2


def test_the_numbers_of_imagenets_folders():
    imagenet = import_torchvision().models.ResNet18_Weights.DEFAULT.meta["categories"]
    classes = tuple(imagenet)
    assert class_index("n02391049", classes) == class_index("zebra", classes) == 340
    assert class_index("n02012849_crane", classes) == 134  # the bird, of two cranes
    assert class_index("n03126707", classes) == 517
    assert class_index("n00000000_zebra", classes) is None
    assert class_index("n02391049_zebra", ("horse", "zebra")) == 1  # of others by its name
    ids = list(imagenet_ids())
    assert len(ids) == 1000
    assert ids == sorted(ids)


def test_class_names_from_a_file(digit_folder, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(WORDS) + "\n")
    given = ("--class-names", tmp_path / "names.txt", "--target", "Nine")
    assert course_run(tmp_path / "out", digit_folder, *given)[0] == 0
    rows = table_in(tmp_path / "out")
    assert [row["predicted"] for row in rows] == WORDS[:8]
    assert [row["label"] for row in rows] == WORDS[:8]
    assert {row["target"] for row in rows} == {"nine"}
    assert {row["target_index"] for row in rows} == {"9"}
    (tmp_path / "names.json").write_text(json.dumps(WORDS))
    given = ("--class-names", tmp_path / "names.json")
    assert course_run(tmp_path / "out", digit_folder, *given)[0] == 0
    assert [row["predicted"] for row in table_in(tmp_path / "out")] == WORDS[:8]


def test_no_label_is_not_the_class_called_none():
    assert class_index("(none)", ("none", "cat")) is None
    assert class_index("none", ("none", "cat")) == 0
