"""What may come in, what it becomes, and what is said of the rest."""

import json
import pickle
import struct
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import SID_a4
from SID_a4 import SUFFIXES, class_number, file_name, read_pictures

RAMP = np.arange(784).reshape(28, 28) % 256  # every grey there is


@pytest.fixture
def read(tmp_path, network):
    """Reads JSON content, an image or a file as the program would."""

    def pictures(content, name="test_data.json", invert=False):
        path = tmp_path / name
        if isinstance(content, Image.Image):
            content.save(path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(json.dumps(content))
        return list(read_pictures([path], network, invert))

    return pictures


def grey(values):
    return Image.fromarray(np.asarray(values, np.uint8))


rows, flat = RAMP.tolist(), RAMP.flatten().tolist()


@pytest.mark.parametrize(
    ("content", "names", "labels"),
    [
        ([rows, rows], ["image_0", "image_1"], ["", ""]),
        ([flat], ["image_0"], [""]),
        ([[rows], [rows]], ["image_0", "image_1"], ["", ""]),  # (N, 1, 28, 28), as torch lists it
        ({"seven": rows, "a/b": flat}, ["seven", "a_b"], ["", ""]),
        ([{"image": rows, "label": 7}, {"image": flat}], ["image_0", "image_1"], ["7", ""]),
        ({"x": {"image": rows, "label": 0}}, ["x"], ["0"]),
        ([{"image": rows, "label": 3.0}], ["image_0"], ["3"]),
        ({"image": rows, "other": rows}, ["image", "other"], ["", ""]),
    ],
)
def test_every_form_of_json(read, content, names, labels):
    pictures = read(content)
    assert [picture.name for picture in pictures] == names
    assert [picture.label for picture in pictures] == labels
    for picture in pictures:
        np.testing.assert_array_equal(picture.image, RAMP)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (RAMP / 255, RAMP),
        (RAMP / 255 * 1.0000001, RAMP),  # a float's rounding
        ((RAMP > 99).astype(int), (RAMP > 99) * 255),
        (RAMP * 0.999, np.round(RAMP * 0.999)),
        (np.zeros((28, 28)), np.zeros((28, 28))),
    ],
)
def test_numbers_from_0_to_1_and_fractions(read, pixels, expected):
    (picture,) = read([pixels.tolist()])
    np.testing.assert_array_equal(picture.image, expected)


def test_the_range_is_the_files_and_not_each_pictures(read):
    dark = (RAMP > 99).astype(int).tolist()  # 0 and 1 among pictures of 0 to 255
    found = read([rows, dark, rows])
    np.testing.assert_array_equal(found[1].image, RAMP > 99)
    unit = (RAMP / 255).tolist()
    good, bad, also = read([unit, (RAMP / 100).tolist(), unit])
    assert "holds numbers from 0 to 2.55" in bad.note
    np.testing.assert_array_equal(good.image, also.image)


def spoiled(value):
    pixels = RAMP.tolist()
    pixels[3][4] = value
    return pixels


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is broken or empty (Expecting value"),
        (b"[[0, 1", "is broken or empty"),
        (b"\xff\xfe\x00", "is broken or empty"),
        (b"[" * 100_000, "is broken or empty"),
        (b"3", "is broken or empty (no pictures)"),
        (b'"text"', "is broken or empty (no pictures)"),
        (b"null", "is broken or empty (no pictures)"),
        ([], "is broken or empty (no pictures)"),
        ({}, "is broken or empty (no pictures)"),
        ([[]], "image_0 in {} has the size 0"),
        ([spoiled(float("nan"))], "image_0 in {} holds numbers from nan to nan"),
        ([spoiled(float("inf"))], "holds numbers from 0 to inf"),
        ([spoiled(-1)], "holds numbers from -1 to 255"),
        ([spoiled(256)], "holds numbers from 0 to 256"),
        ([(RAMP / 255 * 1.5).tolist()], "holds numbers from 0 to 1.5"),
        ([spoiled(10**400)], "holds something that is not a number"),
        ([spoiled("7")], "holds something that is not a number"),
        ([spoiled(None)], "holds something that is not a number"),
        ([(RAMP > 9).tolist()], "holds something that is not a number"),
        ([[*RAMP.tolist()[:-1], [0] * 27]], "is ragged"),
        ([spoiled([1, 2])], "is ragged"),
        ([np.zeros((32, 32)).tolist()], "has the size 32 x 32"),
        ([np.zeros((3, 28, 28)).tolist()], "has the size 3 x 28 x 28"),
        ([[0] * 783], "has the size 783"),
        ([{"pixels": rows}], "holds something that is not a number"),
        (b'{"a": [0], "a": [1]}', "is broken or empty (a name stands in it twice)"),
        ({"a\nb": 3}, "a b in {} has the size 1"),
        ({"x": "text"}, "x in {} holds something that is not a number"),
    ],
)
def test_json_that_is_wrong_says_what_and_how_to_mend_it(read, tmp_path, content, words):
    (picture,) = read(content)
    assert picture.image is None
    assert words.format(tmp_path / "test_data.json") in picture.note
    assert picture.note.endswith(
        "; give 28 x 28 or 784 numbers a picture, from 0 to 255 or from 0 to 1"
    )
    assert "\n" not in picture.note


def test_one_wrong_picture_does_not_spoil_the_others(read):
    good, bad, also_good = read([rows, spoiled(-1), flat])
    assert (bad.image, bad.name) == (None, "image_1")
    np.testing.assert_array_equal(good.image, RAMP)
    np.testing.assert_array_equal(also_good.image, RAMP)


def test_a_label_that_is_no_class_is_said_and_not_used(read):
    (picture,) = read([{"image": rows, "label": "seven"}])
    assert picture.label == ""
    assert "label seven is no class of the network" in picture.note


# ---------------------------------------------------------------------------------- image files


def test_a_picture_of_the_right_size_keeps_every_pixel(read):
    (picture,) = read(grey(RAMP), "digit.png")
    assert (picture.name, picture.label) == ("digit", "")
    np.testing.assert_array_equal(picture.image, RAMP)


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix != ".json"])
def test_every_format(read, suffix):
    (picture,) = read(grey(RAMP // 128 * 255), f"digit{suffix}")
    difference = np.asarray(picture.image, int) - RAMP // 128 * 255
    assert np.abs(difference).mean() < 10  # JPEG and WebP are lossy


def test_colour_palette_and_transparency_become_the_grey_a_viewer_shows(read):
    colours = Image.new("RGB", (28, 28), (200, 100, 50))
    assert np.unique(read(colours, "c.png")[0].image) == [124]  # 0.299 R + 0.587 G + 0.114 B
    assert np.unique(read(colours.quantize(4), "p.png")[0].image) == [124]
    clear = Image.new("RGBA", (28, 28), (0, 0, 0, 0))
    assert np.unique(read(clear, "clear.png")[0].image) == [255]
    half = Image.new("LA", (28, 28), (100, 128))
    assert np.unique(read(half, "half.png")[0].image)[0] in (177, 178)  # 0.5 * 100 + 0.5 * 255


def test_16_bit_grey_is_scaled_and_not_clipped(read):
    deep = Image.fromarray((RAMP * 257).astype(np.uint16))
    np.testing.assert_array_equal(read(deep, "deep.png")[0].image, RAMP)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((RAMP / 255).astype(np.float32), RAMP),
        (RAMP.astype(np.float32), RAMP),
        (RAMP.astype(np.int32), RAMP),
        ((RAMP * 257).astype(np.int32), RAMP),
    ],
)
def test_float_and_32_bit_tiffs_are_read_in_their_range(read, values, expected):
    np.testing.assert_array_equal(read(Image.fromarray(values), "deep.tiff")[0].image, expected)


@pytest.mark.parametrize("value", [np.nan, -1.0, 1e9])
def test_float_tiffs_out_of_range_are_refused(read, value):
    values = RAMP.astype(np.float32)
    values[3, 3] = value
    (picture,) = read(Image.fromarray(values), "deep.tiff")
    assert picture.image is None
    assert "deep.tiff holds numbers from " in picture.note


def test_a_picture_taken_sideways_is_turned(read, tmp_path):
    picture, exif = grey(RAMP), Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    (found,) = read((tmp_path / "turned.png").read_bytes(), "again.png")
    np.testing.assert_array_equal(found.image, np.rot90(RAMP, -1))


def test_large_pictures_are_reduced_with_antialiasing_in_their_own_proportions(read):
    stripes = np.tile([0, 255], (280, 140)).astype(np.uint8)  # finer than a pixel of the network
    (picture,) = read(Image.fromarray(stripes), "fine.png")
    assert np.asarray(picture.image)[2:-2, 2:-2].min() > 120
    assert np.asarray(picture.image)[2:-2, 2:-2].max() < 135
    tall = np.zeros((280, 140), np.uint8)
    tall[20:260, 20:120] = 255  # a block, 100 wide and 240 high
    ink = np.asarray(read(Image.fromarray(tall), "tall.png")[0].image) > 127
    assert (ink.any(0).sum(), ink.any(1).sum()) == (10, 24)
    assert ink.any(0)[9:19].all()


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (28, 28), (5, 40)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_the_border_is_the_median_of_the_edges(size, mode):
    values = np.random.default_rng(sum(size)).integers(0, 256, (*size, len(mode)), np.uint8)
    image = Image.fromarray(values.squeeze(2) if mode == "L" else values)
    edges = (values[0], values[-1], values[:, 0], values[:, -1])
    assert SID_a4.border_of(image) == int(np.median(np.concatenate(edges)))


def test_a_bright_border_is_mentioned_and_invert_mends_it(read):
    ink = np.full((28, 28), 255)
    ink[10:18, 12:16] = 0
    (paper,) = read(grey(ink), "paper.png")
    assert paper.note == "bright border: if this is dark ink on white paper, add --invert"
    (inverted,) = read(grey(ink), "paper.png", invert=True)
    assert inverted.note == ""
    np.testing.assert_array_equal(inverted.image, 255 - ink)
    (wide,) = read(grey(np.repeat(ink, 2, axis=0)), "high.png", invert=True)
    assert np.asarray(wide.image)[:, :6].max() == 0  # what fills the sides is inverted paper
    (bright,) = read(grey(np.repeat(ink, 2, axis=0)), "high.png")
    assert np.asarray(bright.image)[:, :6].min() == 255


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is an empty file"), (b"hello", "is not an image"), ("cut", "is truncated or broken")],
)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".tiff"])
def test_files_that_are_no_pictures(read, tmp_path, content, words, suffix):
    if content == "cut":
        noise = grey(np.random.default_rng(0).integers(0, 256, (60, 60)))
        noise.save(path := tmp_path / f"whole{suffix}")
        content = path.read_bytes()[: path.stat().st_size // 2]
    (picture,) = read(content, f"bad{suffix}")
    assert picture.image is None
    assert f"bad{suffix} {words}" in picture.note
    assert "; give a whole PNG, JPEG," in picture.note


# ------------------------------------------------------------------------------ folders, names


def test_a_folder_is_read_in_name_order_and_lazily(tmp_path, network):
    for name in ("b.png", "a.PNG", "d.jpg"):
        grey(RAMP).save(tmp_path / name)
    (tmp_path / "c.json").write_text(json.dumps([rows, rows]))
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "folder.png").mkdir()
    pictures = read_pictures([tmp_path], network)
    names = [next(pictures).name, next(pictures).name]
    (tmp_path / "d.jpg").write_bytes(b"changed after the first was read")
    rest = list(pictures)
    assert [*names, *(p.name for p in rest)] == ["a", "b", "image_0", "image_1", "d"]
    assert rest[-1].image is None


def test_one_stray_entry_spoils_only_itself(read):
    bad, good = read([3, rows])
    assert "image_0 in " in bad.note
    assert "has the size 1" in bad.note
    np.testing.assert_array_equal(good.image, RAMP)


def test_names_are_safe_and_never_meet():
    taken: dict[str, int] = {}
    names = [
        "a",
        "A",
        "a-2",
        "a",
        "../../etc/passwd",
        "=1+2",
        "über",
        "\udcff",
        "",
        "x" * 300,
        "a\nb",
    ]
    found = [file_name(name, taken) for name in names]
    assert found[:8] == ["a", "A-2", "a-2-2", "a-3", "etc_passwd", "1_2", "über", "picture"]
    assert found[8:] == ["picture-2", "x" * 200, "a_b"]
    assert len({name.casefold() for name in found}) == len(found)


# -------------------------------------------------------------------- other networks' pictures


@pytest.fixture
def wide(network):
    """A colour network with an input that is not square, and named classes."""
    classes = ("tabby cat", "polar_bear", "dog")
    return replace(
        network, size=(20, 30), cover=(20, 30), mean=(0.5,) * 3, std=(0.5,) * 3, classes=classes
    )


def test_what_is_cut_away_is_known(wide, tmp_path):
    pixels = np.zeros((100, 120, 3), np.uint8)
    pixels[10:90, 0:120] = (200, 100, 50)  # what is left: 120 x 80 of the middle
    Image.fromarray(pixels).save(path := tmp_path / "p.png")
    (picture,) = read_pictures([path], wide, keep=True)
    assert (picture.image.mode, picture.image.size) == ("RGB", (30, 20))
    assert picture.box == (0, 8, 120, 88)  # of rows: 25 are resized to 20, two and a half cut off
    assert picture.whole.size == (120, 100)
    assert np.asarray(picture.image)[5:15].min(axis=(0, 1)).tolist() == [200, 100, 50]
    assert read_pictures([path], wide).__next__().whole is None


def test_sub_folders_are_labels_however_they_are_spelt(wide, tmp_path):
    (tmp_path / ".hidden").mkdir()
    grey(RAMP).save(tmp_path / ".hidden" / "a.png")
    (tmp_path / "._a.png").write_bytes(b"what macOS leaves")
    for folder in ("Tabby_Cat", "n02134084_polar-bear", "2", "unknown", "."):
        (tmp_path / folder).mkdir(exist_ok=True)
        grey(RAMP).save(tmp_path / folder / "a.png")
    found = [(p.name, p.label, p.note) for p in read_pictures([tmp_path], wide)]
    assert found == [
        ("a", "", ""),
        ("a-2", "dog", ""),
        ("a-3", "tabby cat", ""),
        ("a-4", "polar_bear", ""),
        ("a-5", "", "label unknown is no class of the network"),
    ]


def test_classes_by_name_and_number():
    classes = ("tabby cat", "polar_bear", "dog")
    names = ["tabby cat", "TABBY-CAT", "1", "3", "-1", "1.0", "", "cat"]
    expected = [0, 0, 1, None, None, None, None, None]
    assert [class_number(name, classes) for name in names] == expected
    assert class_number("7", tuple("0123456789")) == 7
    assert class_number("1", ("1", "0")) == 0  # a name before a number
    assert class_number("9" * 5000, classes) is None  # int() would refuse as many digits


def write_mnist(folder, pixels, labels):
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">4i", 2051, len(pixels), 28, 28) + np.uint8(pixels).tobytes()
        )
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2i", 2049, len(labels)) + bytes(labels)
        )


def test_torchvisions_data_sets_are_read_where_they_lie(network, wide, tmp_path):
    write_mnist(tmp_path, [RAMP, 255 - RAMP], [1, 2])
    one, two = read_pictures([f"mnist:{tmp_path}"], network)
    assert [(p.name, p.label) for p in (one, two)] == [("mnist_0", "1"), ("mnist_1", "2")]
    np.testing.assert_array_equal(two.image, 255 - RAMP)
    others = list(read_pictures([f"mnist:{tmp_path}"], wide))  # three classes of something else
    assert [p.label for p in others] == ["", ""]
    assert others[0].note == "label 1 - one is no class of the network"


def test_cifar10_is_read_where_it_lies(wide, tmp_path, monkeypatch):
    datasets = SID_a4.import_torchvision().datasets
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *arguments: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.arange(2 * 3072).reshape(2, 3072).astype(np.uint8)
    batch = {"data": pixels, "labels": [2, 0]}
    (folder / "test_batch").write_bytes(pickle.dumps(batch))
    names = {"label_names": ["tabby cat", "polar_bear", "dog"]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names))
    network = replace(wide, size=(32, 32), cover=(32, 32))
    one, two = read_pictures([f"cifar10:{tmp_path}"], network)
    assert [(p.name, p.label) for p in (one, two)] == [
        ("cifar10_0", "dog"),
        ("cifar10_1", "tabby cat"),
    ]
    expected = pixels[1].reshape(3, 32, 32).transpose(1, 2, 0)
    np.testing.assert_array_equal(two.image, expected)


def test_a_data_set_that_cannot_be_had(network, tmp_path, monkeypatch):
    datasets = SID_a4.import_torchvision().datasets
    monkeypatch.setattr(
        datasets.CIFAR10, "download", lambda self: (_ for _ in ()).throw(OSError("no net"))
    )
    with pytest.raises(SID_a4.Complaint, match=r"cifar10 is not in .* \(no net\); put torchvision"):
        next(read_pictures([f"cifar10:{tmp_path}"], network))
