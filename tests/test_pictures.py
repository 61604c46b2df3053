"""What may come in, what it becomes, and what is said of the rest."""

import json

import numpy as np
import pytest
from PIL import Image

from SID_a4 import SUFFIXES, file_name, read_pictures

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
        (rows, ["image_0"], [""]),
        (flat, ["image_0"], [""]),
        ([[rows], [rows]], ["image_0", "image_1"], ["", ""]),  # (N, 1, 28, 28), as torch lists it
        ({"seven": rows, "a/b": flat}, ["seven", "a_b"], ["", ""]),
        ([{"image": rows, "label": 7}, {"image": flat}], ["image_0", "image_1"], ["7", ""]),
        ({"image": flat, "label": "3"}, ["image_0"], ["3"]),
        ({"x": {"image": rows, "label": 0}}, ["x"], ["0"]),
        ([{"name": "mine", "image": rows}], ["mine"], [""]),
    ],
)
def test_every_form_of_json(read, content, names, labels):
    pictures = read(content)
    assert [picture.name for picture in pictures] == names
    assert [picture.label for picture in pictures] == labels
    for picture in pictures:
        np.testing.assert_array_equal(picture.image, RAMP)


def test_numbers_from_0_to_1_and_fractions(read):
    unit = (RAMP / 255).tolist()
    black_or_white = (RAMP > 99).astype(int).tolist()
    fractions = (RAMP * 0.999).tolist()
    first, second, third, black = read([unit, black_or_white, fractions, np.zeros(784).tolist()])
    np.testing.assert_array_equal(first.image, RAMP)
    np.testing.assert_array_equal(second.image, (RAMP > 99) * 255)
    np.testing.assert_array_equal(third.image, np.round(RAMP * 0.999))
    assert not np.asarray(black.image).any()


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
        ([*RAMP.tolist()[:-1], [0] * 27], "is ragged"),
        ([spoiled([1, 2])], "is ragged"),
        ([np.zeros((32, 32)).tolist()], "has the size 32 x 32"),
        ([np.zeros((3, 28, 28)).tolist()], "has the size 3 x 28 x 28"),
        ([[0] * 783], "has the size 1 x 783"),
        ([{"pixels": rows}], "holds something that is not a number"),
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
