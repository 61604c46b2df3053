"""Networks with every ending, by the command: what the account, the table and the record say."""

import csv

import numpy as np
import pytest
from PIL import Image
from running import record_in, seenby, table_in

from seenby import InputError, load_network
from seenby.inputs.classes import label_of, read_labels
from seenby.inputs.pictures import NO_CONTRAST

NETWORKS = """
import torch
from torch import nn

class Body(nn.Module):
    '''Each output is a multiple of the brightness of one quarter, less a half.'''
    def __init__(self, outputs=4, ending=lambda y: y):
        super().__init__()
        self.conv, self.ending = nn.Conv2d(1, 4, 1, bias=False), ending
        self.head = nn.Linear(16, outputs)
        nn.init.ones_(self.conv.weight)
        nn.init.constant_(self.head.bias, -20)
        nn.init.zeros_(self.head.weight)
        for i in range(outputs):
            self.head.weight.data[i, i] = 40  # of the first channel's quarter i
    def forward(self, x):
        A = torch.relu(self.conv(x))
        return self.ending(self.head(nn.functional.adaptive_avg_pool2d(A, 2).flatten(1)))

def classes(): return Body()
def binary(): return Body(1, torch.sigmoid)
def labels(): return Body(4, torch.sigmoid)
def handmade(): return Body(4, lambda y: y.exp() / y.exp().sum(1, keepdim=True))
def nan(): return Body(4, lambda y: y / 0 * 0)

class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 1)
        self.conv.weight.data[:] = torch.tensor([0.0, 1.0, -1.0]).view(3, 1, 1, 1)
        self.conv.bias.data[:] = torch.tensor([0.0, -0.5, 0.2])
    def forward(self, x): return {"out": self.conv(x)}
"""
FEED = ("--size", "32", "--mean", "0", "--std", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The words that name one of the networks."""
    path = tmp_path_factory.mktemp("own") / "nets.py"
    path.write_text(NETWORKS)
    return lambda name: ("--model", f"{path}:{name}", *FEED)


def quarters(*bright):
    """32 x 32, of which these quarters are white, from the upper left row by row."""
    pixels = np.zeros((32, 32), np.uint8)
    for i in bright:
        pixels[i // 2 * 16 : i // 2 * 16 + 16, i % 2 * 16 : i % 2 * 16 + 16] = 255
    return Image.fromarray(pixels)


@pytest.fixture
def pictures(tmp_path):
    (folder := tmp_path / "pictures").mkdir()
    for name, bright in (("a", [0]), ("b", [1, 2]), ("c", [])):
        quarters(*bright).save(folder / f"{name}.png")
    return folder


def cells(out, *columns):
    return [tuple(row[column] for column in columns) for row in table_in(out)]


def account(out_of):
    return {line[:10].strip(): line[10:] for line in out_of.splitlines() if line[0] != " "}


def test_one_logit_and_two_class_names(model, pictures, tmp_path):
    (names := tmp_path / "names.txt").write_text("dog\ncat\n")
    words = (*model("binary"), "--class-names", names, "--target", "cat", "dog", "--out", tmp_path)
    code, said, err = seenby(pictures / "a.png", pictures / "b.png", *words)
    assert (code, err) == (0, "")
    assert cells(tmp_path, "image", "predicted", "target", "target_index",
                 "target_probability") == [
        ("a", "cat", "cat", "1", "1.000000"), ("a", "cat", "dog", "0", "0.000000"),
        ("b", "dog", "cat", "1", "0.000000"), ("b", "dog", "dog", "0", "1.000000"),
    ]  # fmt: skip
    words = "task binary: one logit z for class 1, and -z for class 0; explained before its sigmoid"
    assert words in " ".join(said.split())
    assert [record_in(tmp_path)[name] for name in ("task", "final_activation", "classes")] == [
        "binary", "sigmoid", 2,
    ]  # fmt: skip


def test_folders_named_after_the_two_classes(model, tmp_path):
    for label, bright in (("0", []), ("1", [0])):
        (folder := tmp_path / "pictures" / label).mkdir(parents=True)
        quarters(*bright).save(folder / "x.png")
    quarters(0).save(tmp_path / "pictures" / "0" / "wrong.png")
    said = seenby(tmp_path / "pictures", *model("binary"), "--out", tmp_path)[1]
    assert account(said)["accuracy"] == "2 of 3 with a label are right (66.7%)"


def test_labels_are_judged_one_by_one(model, pictures, tmp_path):
    (pictures / "labels.csv").write_text("image,labels\na.png,0\nb,2;1\nc.png,3\n")
    code, said, err = seenby(pictures, *model("labels"), "--out", tmp_path)
    assert (code, err) == (0, "")
    assert cells(tmp_path, "image", "label", "predicted", "predicted_probability", "target") == [
        ("a", "0", "0", "1.000000", "0"), ("b", "1; 2", "1; 2", "1.000000; 1.000000", "1"),
        ("c", "3", "(none)", "", "0"),
    ]  # fmt: skip
    words = "2 of 3 with labels have all of them right (66.7%); of single labels 91.7% are"
    assert words in " ".join(said.split())
    picked = ("--pick", "wrong", "--out", tmp_path / "wrong")
    assert seenby(pictures, *model("labels"), *picked)[0] == 0
    rows = table_in(tmp_path / "wrong")
    assert [row["status"] for row in rows] == ["not picked", "not picked", "explained"]
    code, _, err = seenby(pictures, *model("labels"), "--target", "label", "--out", tmp_path / "l")
    assert code == 1
    assert "b has 1; 2 for --target label; name one of them" in err


def test_an_empty_cell_of_labels_means_none_of_them(model, pictures, tmp_path):
    (pictures / "labels.csv").write_text("image,labels\nc.png,\n")
    said = seenby(pictures, *model("labels"), "--out", tmp_path)[1]
    assert cells(tmp_path, "label", "predicted")[2] == ("(none)", "(none)")
    assert "1 of 1 with labels have all of them right (100.0%)" in " ".join(said.split())


def test_the_three_most_probable_labels(model, pictures, tmp_path):
    words = (*model("labels"), "--target", "top:3", "predicted")
    assert seenby(pictures / "b.png", *words, "--out", tmp_path)[0] == 0
    rows = cells(tmp_path, "target", "target_probability")
    assert rows == [("1", "1.000000"), ("2", "1.000000"), ("0", "0.000000")]
    words = "top:5 or more was given; the network has 4 classes: give top:4"
    said = seenby(pictures, *model("classes"), "--target", "top:5", "--out", tmp_path)[2]
    assert said == f"seenby: error: {words}\n"


def test_numbers_move_up_or_down(model, pictures, tmp_path):
    words = ("--task", "regression", "--target", "up:1", "down:1")
    code, said, err = seenby(pictures / "b.png", *model("classes"), *words, "--out", tmp_path)
    assert (code, err) == (0, "")
    columns = "predicted", "target", "target_index", "target_probability", "note"
    assert cells(tmp_path, *columns) == [
        ("", "up:1", "up1", "", ""), ("", "down:1", "down1", "", "no positive evidence"),
    ]  # fmt: skip
    names = sorted(path.name for path in (tmp_path / "overlays").iterdir())
    assert names == ["b@down1.png", "b@up1.png"]
    assert "task      regression: numbers" in said
    assert "accuracy" not in said
    assert seenby(pictures, *model("classes"), "--task", "regression", "--out", tmp_path)[0] == 0
    assert {row["target"] for row in table_in(tmp_path)} == {"up:0"}


def test_a_segmentation_is_of_the_commonest_class_but_the_background(model, pictures, tmp_path):
    code, said, err = seenby(pictures, *model("Dense"), "--out", tmp_path)
    assert (code, err) == (0, "")
    assert cells(tmp_path, "image", "predicted", "predicted_probability", "target") == [
        ("a", "2", "0.750000", "2"), ("b", "1", "0.500000", "1"), ("c", "2", "1.000000", "2"),
    ]  # fmt: skip
    assert "task      segmentation: a class for each pixel" in said
    seenby(pictures / "c.png", *model("Dense"), "--target", "1", "--out", tmp_path)
    assert [note.split("; ")[:2] for (note,) in cells(tmp_path, "note")] == [
        [NO_CONTRAST, "the class wins no pixel"]]  # fmt: skip


def test_an_embedding_is_compared_with_a_picture(model, pictures, tmp_path):
    (tmp_path / "none").mkdir()
    words = (*model("classes"), "--task", "embedding", "--like", pictures / "a.png")
    code, said, err = seenby(pictures, *words, "--out", tmp_path)
    assert (code, err) == (0, "")
    rows = cells(tmp_path, "image", "predicted", "target", "target_index", "target_probability")
    assert rows[0] == ("a", "", "like a", "", "1.000000")
    assert rows[1] == ("b", "", "like a", "", "-0.500000")
    assert "task      embedding: a vector" in said
    for words, what in (
        (("--task", "embedding"), "the task is embedding; give --like PICTURE, which others are"),
        (("--like", pictures / "a.png"), "--like was given, which is for embeddings; give --task"),
        (("--task", "embedding", "--like", pictures), "has several pictures; give one picture"),
        (("--task", "embedding", "--like", tmp_path / "none"), "has no picture; give one picture"),
        (("--task", "binary"), "task binary was given, which takes (B, 1); the network gives"),
    ):
        code, _, err = seenby(pictures, *model("classes"), *words, "--out", tmp_path)
        assert code == 2
        assert what in err


def test_a_handmade_softmax_is_said_to_look_like_one(model, pictures, tmp_path):
    said = seenby(pictures, *model("handmade"), "--out", tmp_path)[1]
    assert all("no softmax or sigmoid was seen" in row["note"] for row in table_in(tmp_path))
    assert "note      the outputs look like probabilities, or their" in said


def test_nan_is_said_in_python_too(model, pictures):
    from seenby import draw_grid, explain, read_pictures
    from seenby.outputs.table import explained_row

    network = load_network(model("classes")[1], size=(32, 32), mean=(0.0,), std=(1.0,))
    broken = load_network(model("nan")[1], size=(32, 32), mean=(0.0,), std=(1.0,), layer="conv")
    (picture,) = read_pictures([pictures / "a.png"], network.preprocessing)
    explanation = explain(broken.module, network.tensor([picture.image]), 1, "conv")
    assert explanation.is_finite.tolist() == [False]
    row = explained_row(picture, explanation, broken.classes)
    assert "the network outputs NaN or infinity" in row["note"]
    figure = draw_grid([picture], [explanation], broken.classes)
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words.count("NaN or\ninfinity") == 3


def test_what_was_assumed_of_a_networks_pictures_is_said(model, pictures, tmp_path):
    out = ("--out", tmp_path)
    said = seenby(pictures, *model("classes"), *out)[1]
    assert account(said)["prepared"] == "resized to cover 32, cut to 32, mean 0, std 1 (given)"
    assert "nets.py, as it comes, RANDOM unless it loads weights" in " ".join(
        said.split())  # fmt: skip
    said = " ".join(seenby(pictures, *model("classes")[:4], *out)[1].split())
    assert "std 0.226 (size given, mean, std ImageNet's, guessed; give --mean, --std)" in said
    said = " ".join(seenby(pictures, *model("classes")[:2], *out)[1].split())
    assert "cover 256, cut to 224, mean 0.449, std 0.226 (ImageNet's, guessed; give --size," in said
    assert record_in(tmp_path)["preprocessing"]["from"] == (
        "ImageNet's, guessed; give --size, --mean, --std")  # fmt: skip


def test_no_more_right_than_by_guessing_is_said(model, tmp_path):
    for label in range(4):
        (folder := tmp_path / "pictures" / str(label)).mkdir(parents=True)
        for i in range(5):
            quarters((label + (i > 0)) % 4).save(folder / f"{i}.png")
    words = (*model("classes"), "--out", tmp_path, "--no-overlays", "--no-raw")
    said = " ".join(seenby(tmp_path / "pictures", *words)[1].split())
    assert "accuracy 4 of 20 with a label are right (20.0%)" in said
    assert "note no more are right than by guessing: --size, --mean, --std, the order of" in said
    said = seenby(tmp_path / "pictures", *words, "--limit", "19")[1]
    assert "guessing" not in said


def test_imagenets_names_are_not_kept_in_silence(tmp_path):
    import torch

    from seenby.machine import import_torchvision

    net = import_torchvision().models.squeezenet1_0(weights=None)
    torch.save(net.state_dict(), path := tmp_path / "mine.pth")
    network = load_network("squeezenet1_0", str(path), layer="features.12")
    assert network.classes[0] == "tench"
    (note,) = network.notes
    assert note.startswith("the names of the 1000 classes are ImageNet's, assumed of squeezenet1_")
    assert note.endswith("mine.pth; give --class-names")
    assert network.prepared_by == "torchvision's for it, assumed of these weights"
    names = tuple(map(str, range(1000)))
    assert load_network("squeezenet1_0", str(path), class_names=names).notes == ()
    assert load_network("squeezenet1_0", "none").notes == ()
    assert load_network("squeezenet1_0", "none").prepared_by == "the weights' own"


@pytest.mark.parametrize(
    ("content", "words"),
    [("a,b\n1,2\n", "it lacks a column"), ("", "it lacks a column"), ("\xff\xfe", "it lacks")],
)
def test_a_table_of_labels_that_is_none(tmp_path, content, words):
    (path := tmp_path / "labels.csv").write_text(content)
    with pytest.raises(InputError, match=rf"labels.csv can't be read \({words}.*; give the c"):
        read_labels(path)


def test_labels_by_file_or_by_name(tmp_path):
    with (path := tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "labels"), ("a.png", "cat; dog"), ("b", "")])
    assert read_labels(path) == {"a.png": "cat; dog", "b": "(none)"}
    classes = ("dog", "Polar_Bear", "cat")
    assert label_of("cat; dog", classes) == ("dog; cat", "")
    assert label_of("polar bear;1", classes) == ("Polar_Bear", "")
    assert label_of("cat;cow", classes) == ("", "label cow is no class of the network")
    assert label_of("cow", ()) == ("cow", "")
    assert label_of("", classes) == ("", "")
