"""The script: what digits may come in, what they become, and what is said of the rest."""

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

import SID_a4
from SID_a4 import EXAMPLES, FRAMED, HERE, load_network, normalised, read_pictures

RAMP = np.arange(784).reshape(28, 28) % 256  # every grey there is
rows, flat = RAMP.tolist(), RAMP.flatten().tolist()


@pytest.fixture
def read(tmp_path):
    """Reads JSON content, an image or a file as the program would."""

    def pictures(content, name="test_data.json", invert=False):
        path = tmp_path / name
        if isinstance(content, Image.Image):
            content.save(path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(json.dumps(content))
        return read_pictures([path], invert)

    return pictures


def grey(values):
    return Image.fromarray(np.asarray(values, np.uint8))


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
        ([{"image": rows, "label": None}], ["image_0"], [""]),
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
    np.testing.assert_array_equal(read([rows, dark, rows])[1].image, RAMP > 99)
    unit = (RAMP / 255).tolist()
    good, bad, also = read([unit, (RAMP / 100).tolist(), unit])
    assert bad.image is None
    np.testing.assert_array_equal(good.image, also.image)
    np.testing.assert_array_equal(good.image, RAMP)


def spoiled(value):
    pixels = RAMP.tolist()
    pixels[3][4] = value
    return pixels


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[[0, 1", b"\xff\xfe\x00", b"[" * 100_000, b"3", b'"text"', b"null", [], {}, [[]],
        [spoiled(float("nan"))], [spoiled(float("inf"))], [spoiled(-1)], [spoiled(256)],
        [spoiled(10**400)], [spoiled("x")], [spoiled(None)], [[*RAMP.tolist()[:-1], [0] * 27]],
        [spoiled([1, 2])], [np.zeros((32, 32)).tolist()], [np.zeros((3, 28, 28)).tolist()],
        [[0] * 783], [{"pixels": rows}], {"a\nb": 3}, {"x": "text"}, [3, [4], "five"],
    ],
)  # fmt: skip
def test_json_that_is_wrong_says_so_in_one_line_and_how_to_mend_it(read, tmp_path, content):
    (picture,) = read(content)
    assert picture.image is None
    assert str(tmp_path / "test_data.json") in picture.note
    assert picture.note.endswith(SID_a4.GIVE)
    assert "\n" not in picture.note


@pytest.mark.parametrize("entry", [7, [7], {"image": 7}, "text", None])
def test_a_large_file_without_pictures_is_refused_at_once(read, entry):
    begun = time.process_time()
    (picture,) = read([entry] * (500_000 if entry == 7 else 100_000))
    assert picture.image is None
    assert len(picture.note) < 400
    assert time.process_time() - begun < 4


def test_fractions_that_fit_neither_range_are_refused(read):
    (picture,) = read([(RAMP / 255 * 1.5).tolist()])  # as 0 to 255 it would be nearly black
    assert picture.image is None
    assert picture.note.endswith(SID_a4.GIVE)


def test_a_folder_named_by_a_digit_labels_what_is_in_it(tmp_path):
    for folder in ("7", "12", "seven"):
        (tmp_path / folder).mkdir()
        grey(RAMP).save(tmp_path / folder / f"of_{folder}.png")
    found = {picture.name: picture.label for picture in read_pictures([tmp_path])}
    assert found == {"of_12": "", "of_7": "7", "of_seven": ""}


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_deep_pictures_out_of_range_are_refused(read, value):
    values = RAMP.astype(np.float32)
    values[3, 3] = value
    (picture,) = read(Image.fromarray(values), "deep.tiff")
    assert picture.image is None
    assert "it holds numbers from " in picture.note


def test_one_wrong_picture_does_not_spoil_the_others(read):
    good, bad, also_good, number = read([rows, spoiled(-1), flat, 3])
    assert (bad.image, bad.name) == (None, "image_1")
    assert "image_1 in " in bad.note
    assert number.image is None
    np.testing.assert_array_equal(good.image, RAMP)
    np.testing.assert_array_equal(also_good.image, RAMP)


def test_a_label_that_is_no_class_is_said_and_not_used(read):
    (picture,) = read([{"image": rows, "label": "seven"}])
    assert (picture.label, picture.note) == ("", "label seven is no digit")


# ---------------------------------------------------------------------------------- image files


def test_a_picture_of_the_right_size_keeps_every_pixel(read):
    (picture,) = read(grey(RAMP), "digit.png")
    assert (picture.name, picture.label) == ("digit", "")
    np.testing.assert_array_equal(picture.image, RAMP)


@pytest.mark.parametrize("suffix", [kind for kind in SID_a4.KINDS if kind != ".json"])
def test_every_format(read, suffix):
    (picture,) = read(grey(RAMP // 128 * 255), f"digit{suffix}")
    assert np.abs(np.asarray(picture.image, int) - RAMP // 128 * 255).mean() < 10  # some are lossy


def test_a_phones_jpeg_of_several_pictures_opens(tmp_path):
    first = grey(np.kron(RAMP, np.ones((10, 10)))).convert("RGB")
    first.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[first])
    (picture,) = read_pictures([tmp_path / "phone.jpg"])
    assert picture.image.size == (28, 28)


def test_colour_palette_and_transparency_become_the_grey_a_viewer_shows(read):
    colours = Image.new("RGB", (28, 28), (200, 100, 50))
    assert np.unique(read(colours, "c.png")[0].image) == [124]  # 0.299 R + 0.587 G + 0.114 B
    assert np.unique(read(colours.quantize(4), "p.png")[0].image) == [124]
    assert np.unique(read(colours.convert("CMYK"), "k.tiff")[0].image) == [124]
    clear = Image.new("RGBA", (28, 28), (0, 0, 0, 0))
    assert np.unique(read(clear, "clear.png")[0].image) == [255]
    half = Image.new("LA", (28, 28), (100, 128))
    assert np.unique(read(half, "half.png")[0].image)[0] in (177, 178)  # 0.5 * 100 + 0.5 * 255


def test_16_bit_grey_is_scaled_and_not_clipped(read):
    deep = Image.fromarray((RAMP * 257).astype(np.uint16))
    np.testing.assert_allclose(read(deep, "deep.png")[0].image, RAMP, atol=1)


def test_a_picture_taken_sideways_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    grey(RAMP).save(tmp_path / "turned.png", exif=exif)
    (found,) = read_pictures([tmp_path / "turned.png"])
    np.testing.assert_array_equal(found.image, np.rot90(RAMP, -1))


def test_a_bright_border_is_mentioned_and_invert_mends_it(read):
    ink = np.full((28, 28), 255)
    ink[10:18, 12:16] = 0
    for content, name in ((grey(ink), "paper.png"), ([ink.tolist()], "paper.json")):
        (paper,) = read(content, name)
        words = "bright border: of dark ink on white add --invert, else save it on black"
        assert paper.note == words
        (inverted,) = read(content, name, invert=True)
        assert inverted.note == ""
        np.testing.assert_array_equal(inverted.image, 255 - ink)


@pytest.mark.parametrize("content", [b"", b"hello", "cut"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".tiff"])
def test_files_that_are_no_pictures(read, tmp_path, content, suffix):
    if content == "cut":
        noise = grey(np.random.default_rng(0).integers(0, 256, (60, 60)))
        noise.save(path := tmp_path / f"whole{suffix}")
        content = path.read_bytes()[: path.stat().st_size // 2]
    (picture,) = read(content, f"bad{suffix}")
    assert picture.image is None
    assert f"bad{suffix} can't be read (" in picture.note
    assert picture.note.endswith(SID_a4.GIVE)


@pytest.mark.filterwarnings("ignore")
def test_more_than_80_million_pixels_are_refused(tmp_path):
    Image.new("1", (9000, 9000)).save(tmp_path / "large.png")
    begun = time.process_time()
    (picture,) = read_pictures([tmp_path / "large.png"])
    assert picture.image is None
    assert "exceeds limit of 80000000 pixels" in picture.note
    assert time.process_time() - begun < 1


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n%%EndComments\nshowpage\n%%EOF\n"
STAND_IN = "#!/bin/sh\ntouch {}/called\nexit 1\n"


@pytest.mark.skipif(sys.platform == "win32", reason="a stand-in of POSIX")
def test_ghostscript_is_never_started_under_any_suffix(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "in").mkdir()
    gs = tmp_path / "bin" / "gs"
    gs.write_text(STAND_IN.format(tmp_path))
    gs.chmod(0o755)
    for suffix in (*SID_a4.KINDS, ".eps", ".ps", ""):
        (tmp_path / "in" / f"digit{suffix}").write_bytes(POSTSCRIPT)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    files = map(str, sorted((tmp_path / "in").iterdir()))
    code = "import sys; from SID_a4 import *; print({p.image for p in read_pictures(sys.argv[1:])})"
    command = [sys.executable, "-c", code, *files]
    done = subprocess.run(command, env=environment, cwd=HERE, capture_output=True, text=True,
                          check=True)  # fmt: skip
    assert done.stdout == "{None}\n"
    assert not (tmp_path / "called").exists()
    careless = "import sys; from PIL import Image; Image.open(sys.argv[1]).load()"
    eps = str(tmp_path / "in" / "digit.png")
    subprocess.run([sys.executable, "-c", careless, eps], env=environment, capture_output=True,
                   check=False)  # fmt: skip
    assert (tmp_path / "called").exists()  # the stand-in would have been


@pytest.mark.slow
def test_pillow_writes_no_lines_of_its_own(tmp_path):
    tags = [(256, 4), (257, 4), (258, 8), (259, 1), (262, 1), (273, 8), (277, 60_000), (278, 4),
            (279, 16)]  # fmt: skip
    packed = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    many = b"II*\0" + struct.pack("<IH", 8, len(tags)) + packed + bytes(99)
    (tmp_path / "b.tif").write_bytes(many)  # Pillow logs that it has too many samples
    command = [sys.executable, HERE / "SID_a4.py", tmp_path / "b.tif", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    start = f"SID_a4.py: error: {tmp_path}/b.tif can't be read (cannot identify image file "
    assert (done.returncode, done.stderr[: len(start)]) == (2, start)
    assert done.stderr.count("\n") == 1


# ------------------------------------------------------------------------------ folders, names


def test_a_folder_is_read_in_name_order_and_nothing_but_digits(tmp_path):
    for name in ("b.png", "a.PNG", "d.jpg", ".hidden.png", "._a.png"):
        grey(RAMP).save(tmp_path / name)
    (tmp_path / "c.json").write_text(json.dumps([rows, rows]))
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "folder.png").mkdir()
    found = read_pictures([tmp_path])
    assert [p.name for p in found] == ["a", "b", "image_0", "image_1", "d"]


def test_the_example_digits_are_read_only_if_alone(tmp_path):
    examples = tmp_path / EXAMPLES
    examples.write_bytes((HERE / "data" / EXAMPLES).read_bytes())
    (tmp_path / "README.md").write_text("not a picture")
    assert len(read_pictures([tmp_path])) == 8
    grey(RAMP).save(tmp_path / "mine.png")
    assert [p.name for p in read_pictures([tmp_path])] == ["mine"]
    assert len(read_pictures([tmp_path, examples])) == 9


def test_names_are_safe_and_never_meet(read):
    names = ["a", "A", "A-1", "../../etc/passwd", "=1+2", "über", "\udcff", ".", "x" * 300, "a\nb"]
    found = [p.name for p in read(dict.fromkeys(names, rows))]
    assert found == ["a", "A-1", "A-1-2", "etc_passwd", "1_2", "über", "picture", "picture-7",
                     "x" * 50, "a_b"]  # fmt: skip
    twice = read_pictures([HERE / "data" / EXAMPLES] * 3)
    assert len({picture.name.casefold() for picture in twice}) == 24


# --------------------------------------------------------------------------------- photographs


def strokes(digit, hand):
    """The strokes of a digit as a hand draws them: white ink on black, 1000 x 1000 pixels."""
    import draw_digits  # which the tools lend

    points = {**draw_digits.STROKES,
              8: [[(72, 30), (50, 12), (28, 30), (50, 62), (80, 96), (50, 128), (20, 98), (50, 62),
                   (72, 30)]],
              9: [[(80, 40), (54, 12), (24, 36), (44, 66), (78, 48), (80, 36)],
                  [(80, 36), (76, 84), (64, 130)]]}  # fmt: skip
    sheet, pen = Image.new("L", (1000, 1000)), hand.choice([16, 30, 60, 110])
    draw = ImageDraw.Draw(sheet)
    for stroke in points[digit]:
        curve = draw_digits.smooth(hand.normal(stroke, 1.5)) * 6 + (200, 80)
        draw.line([tuple(point) for point in curve.tolist()], 255, int(pen), "curve")
        for x, y in curve[[0, -1]]:
            draw.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), 255)
    return sheet


def photograph(digit, hand, dark_ink):
    """Uneven light, noise, a turn of up to 10 degrees, 300 to 2000 pixels, near or far."""
    sheet = strokes(digit, hand).rotate(hand.uniform(-10, 10), Image.Resampling.BILINEAR)
    high = int(np.exp(hand.uniform(np.log(300), np.log(2000))))
    wide = int(high * hand.uniform(0.75, 1.33))
    side = int(min(high, wide) * hand.uniform(0.55, 1.0))
    canvas = Image.new("L", (wide, high))
    corner = int(hand.uniform(0, wide - side)), int(hand.uniform(0, high - side))
    canvas.paste(sheet.resize((side, side)).filter(ImageFilter.GaussianBlur(high / 700)), corner)
    ink = np.asarray(canvas, np.float32) / 255
    x, y = np.linspace(-0.5, 0.5, wide)[None], np.linspace(-0.5, 0.5, high)[:, None]
    turn = hand.uniform(0, 2 * np.pi)
    light = 1 + hand.uniform(0, 0.5) * (np.cos(turn) * x + np.sin(turn) * y)
    paper, pen = (hand.uniform(150, 210), hand.uniform(30, 80)) if dark_ink else (
        hand.uniform(25, 60), hand.uniform(150, 210))  # fmt: skip
    noise = hand.uniform(2, 8) * hand.standard_normal(ink.shape, np.float32)
    return grey(((paper + (pen - paper) * ink) * light.astype(np.float32) + noise).clip(0, 255))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    hand, folder = np.random.default_rng(4), tmp_path_factory.mktemp("photos")
    for n in range(60):
        picture, exif = photograph(n % 10, hand, dark_ink=n % 3 > 0), Image.Exif()
        if n % 4 == 0:
            picture = picture.transpose(Image.Transpose.ROTATE_90)
            exif[0x0112] = 6
        picture.save(folder / f"{n:03}.jpg", quality=90, exif=exif)
    return read_pictures([folder])


@pytest.mark.slow
def test_photographs_of_digits_are_read(photographs):
    assert all(picture.note == FRAMED for picture in photographs)
    y = load_network()(normalised([picture.image for picture in photographs]))
    right = [c == n % 10 for n, c in enumerate(y.argmax(1).tolist())]
    assert np.mean(right) >= 0.95


@pytest.mark.slow
def test_photographs_are_framed_as_mnist_frames_its_digits(photographs):
    p = np.arange(28)
    for picture in photographs:
        pixels = np.asarray(picture.image, float)
        rows_, columns = (np.flatnonzero(pixels.any(axis)) for axis in (1, 0))
        assert max(np.ptp(rows_), np.ptp(columns)) + 1 <= 20
        centre = pixels.sum(1) @ p / pixels.sum(), pixels.sum(0) @ p / pixels.sum()
        assert np.abs(np.subtract(centre, 13.5)).max() <= 1
        assert pixels.max() > 200


def test_invert_replaces_the_guess_of_a_photographs_polarity(read):
    hand = np.random.default_rng(1)
    light = grey(np.asarray(strokes(3, hand)) // 2 + 60)  # light ink on dark paper
    dark = grey(255 - np.asarray(light))
    guesses = [np.asarray(read(photo, "3.png")[0].image) for photo in (light, dark)]
    np.testing.assert_array_equal(*guesses)
    (told,) = read(dark, "3.png", invert=True)
    np.testing.assert_array_equal(told.image, guesses[0])
    (mistold,) = read(light, "3.png", invert=True)
    assert mistold.image is None or np.abs(np.asarray(mistold.image, int) - guesses[0]).mean() > 9


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_photograph_without_ink_is_refused(read, value):
    noise = np.random.default_rng(0).normal(value, 2, (300, 400)).clip(0, 255)
    (picture,) = read(grey(noise), "empty.png")
    assert picture.image is None
    assert "no ink in it" in picture.note


@pytest.mark.parametrize("shape", [(2, 60_000), (60_000, 2), (1, 29)])
def test_a_strip_is_refused_in_the_same_words(read, shape):
    (picture,) = read(grey(np.zeros(shape)), "strip.png")
    assert picture.image is None
    assert "no ink in it" in picture.note


def test_digits_of_28_pixels_are_never_framed(read):
    (picture,) = read(grey(RAMP), "digit.png")
    assert picture.note == ""
    (picture,) = read(grey(np.full((28, 28), 30)), "digit.png")
    np.testing.assert_array_equal(picture.image, np.full((28, 28), 30))


def test_a_picture_that_is_wrong_does_not_darken_those_from_0_to_1(read):
    unit = RAMP / 255
    wrong = unit.copy()
    wrong[3, 4] = np.nan
    good, bad, also = read([unit.tolist(), wrong.tolist(), unit.tolist()])
    assert bad.image is None
    np.testing.assert_array_equal(good.image, RAMP)
    np.testing.assert_array_equal(also.image, RAMP)


def test_hidden_files_and_folders_are_not_read(tmp_path, monkeypatch):
    for folder in ("seen", ".ipynb_checkpoints"):
        (tmp_path / folder).mkdir()
        grey(RAMP).save(tmp_path / folder / "a.png")
        grey(RAMP).save(tmp_path / folder / ".b.png")
    assert [picture.name for picture in read_pictures([tmp_path])] == ["a"]
    assert [p.name for p in read_pictures([tmp_path / ".ipynb_checkpoints"])] == ["a"]
    monkeypatch.chdir(tmp_path)
    assert [picture.name for picture in read_pictures([Path()])] == ["a"]


def test_a_picture_from_0_to_1_in_a_file_from_0_to_255_is_not_taken_for_a_black_one(tmp_path):
    rows_ = (RAMP % 256).tolist()
    (tmp_path / "both.json").write_text(json.dumps([rows_, rows_, (RAMP % 256 / 255).tolist()]))
    *whole, odd = read_pictures([tmp_path / "both.json"])
    assert all(np.array_equal(picture.image, RAMP % 256) for picture in whole)
    assert odd.image is None
    assert odd.note.startswith(f"image_2 in {tmp_path}/both.json is no such picture; give whole")
