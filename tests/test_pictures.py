"""What may come in, what it becomes, and what is said of the rest."""

import os
import pickle
import struct
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from course import COURSE
from PIL import EpsImagePlugin, Image

from seenby import InputError, Preprocessing, read_pictures
from seenby.inputs.pictures import NO_CONTRAST, SUFFIXES, resize_and_crop, to_mode, unique_file_name
from seenby.machine import import_torchvision

RAMP = np.arange(784).reshape(28, 28) % 256  # every grey there is
DIGITS = Preprocessing((28, 28), (28, 28), (0.1307,), (0.3081,))


@pytest.fixture
def read(tmp_path):
    """Reads an image or the bytes of a file as the tool would."""

    def pictures(content, name, invert=False):
        path = tmp_path / name
        if isinstance(content, Image.Image):
            content.save(path)
        else:
            path.write_bytes(content)
        return list(read_pictures([path], DIGITS, tuple("0123456789"), invert))

    return pictures


def grey(values):
    return Image.fromarray(np.asarray(values, np.uint8))


# ---------------------------------------------------------------------------------- image files


def test_a_picture_of_the_right_size_keeps_every_pixel(read):
    (picture,) = read(grey(RAMP), "digit.png")
    assert (picture.name, picture.label, picture.note) == ("digit", "", "")
    np.testing.assert_array_equal(picture.image, RAMP)


def test_a_single_source(tmp_path):
    grey(RAMP).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), str(tmp_path)):
        assert [picture.name for picture in read_pictures(source, DIGITS)] == ["a"]


@pytest.mark.parametrize("suffix", SUFFIXES)
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


@pytest.mark.parametrize("invert", [False, True])
def test_a_picture_of_next_to_one_shade_is_told(read, invert):
    """As of a scanner that writes its 12 bits into 16: 4095 of 65535 is 16 of 255."""
    scan = Image.fromarray((RAMP * 4095 // 255).astype(np.uint16))
    (picture,) = read(scan, "scan.png", invert)
    assert (np.ptp(np.asarray(picture.image)), picture.note) == (16, NO_CONTRAST)
    for brightest, note in ((31, NO_CONTRAST), (32, "")):
        assert read(grey(RAMP * brightest // 255), "dark.png", invert)[0].note == note


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
    tall[100:180, 20:120] = 255  # a block, 100 wide and 80 high, in the middle
    ink = np.asarray(read(Image.fromarray(tall), "tall.png")[0].image) > 127
    assert (ink.any(0).sum(), ink.any(1).sum()) == (20, 16)
    assert ink.any(0)[4:24].all()
    assert ink.any(1)[6:22].all()


def test_dark_ink_on_white_paper_is_inverted(read):
    ink = np.full((28, 28), 255)
    ink[10:18, 12:16] = 0
    (paper,) = read(grey(ink), "paper.png")
    np.testing.assert_array_equal(paper.image, ink)
    (inverted,) = read(grey(ink), "paper.png", invert=True)
    assert inverted.note == ""
    np.testing.assert_array_equal(inverted.image, 255 - ink)
    (wide,) = read(grey(np.repeat(ink, 2, axis=0)), "high.png", invert=True)
    assert np.asarray(wide.image)[:, :6].max() == 0
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
    assert picture.note.endswith("; give a whole PNG, JPEG, GIF, BMP, TIFF or WebP picture")
    assert "\n" not in picture.note


def test_one_wrong_picture_does_not_spoil_the_others(tmp_path):
    for name in ("a", "b", "c"):
        grey(RAMP).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"hello")
    good, bad, also_good = read_pictures([tmp_path], DIGITS)
    assert (bad.image, bad.name) == (None, "b")
    np.testing.assert_array_equal(good.image, RAMP)
    np.testing.assert_array_equal(also_good.image, RAMP)


def test_a_phones_jpeg_of_several_frames_is_a_picture(tmp_path):
    """Pillow calls such a file an MPO, whatever its suffix."""
    first, second = grey(RAMP // 128 * 255), grey(np.zeros((28, 28)))
    first.save(path := tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[second])
    with Image.open(path) as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    (picture,) = read_pictures([path], DIGITS)
    difference = np.asarray(picture.image, int) - RAMP // 128 * 255
    assert np.abs(difference).mean() < 10


# ------------------------------------------------------------------- a picture runs no program

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 28 28
%%EndComments
0 0 28 28 rectfill
%%EOF
"""


def stand_in_for_ghostscript(folder):
    """A gs that says when it is called: the folder for PATH, and the file that is then there."""
    (folder / "bin").mkdir()
    program, called = folder / "bin" / "gs", folder / "called"
    program.write_text(f'#!/bin/sh\n: > "{called}"\n')
    program.chmod(0o755)
    return program.parent, called


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_no_ghostscript_is_called_whatever_a_file_is_called(read, tmp_path, monkeypatch):
    programs, called = stand_in_for_ghostscript(tmp_path)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # look for it again
    for suffix in SUFFIXES:
        (picture,) = read(EPS, f"eps{suffix}")
        assert picture.image is None
        assert f"eps{suffix} is not an image; give a whole PNG, JPEG" in picture.note
    assert not called.exists()
    with Image.open(tmp_path / "eps.png") as image, pytest.raises(OSError):  # noqa: PT011
        image.load()  # as Pillow does it by itself; the stand-in draws nothing
    assert called.exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_a_run_calls_no_ghostscript(tmp_path):
    programs, called = stand_in_for_ghostscript(tmp_path)
    (folder := tmp_path / "folder").mkdir()
    for suffix in SUFFIXES:
        (folder / f"eps{suffix}").write_bytes(EPS)
    code = """if True:
        import sys
        from pathlib import Path
        from PIL import Image
        from seenby.command_line import main
        folder, called, *course = sys.argv[1:]
        for file in sorted(Path(folder).glob("eps.*")):
            print(file.suffix, main([str(file), *course]))
        print(main([folder, *course]), Path(called).exists())
        try:
            Image.open(folder + "/eps.png").load()
        except Exception:
            print("alone:", Path(called).exists())
        """
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(called), *COURSE, "--out", f"{tmp_path}/out"],
        env=os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    names = sorted(SUFFIXES)
    assert done.stdout.splitlines() == [*(f"{name} 2" for name in names), "2 False", "alone: True"]
    *lines, last = done.stderr.splitlines()
    for suffix, line in zip(names, lines, strict=True):
        assert line.startswith(f"seenby: error: {folder}/eps{suffix} is not an image; give a ")
    assert f"eps{names[0]} is not an image; give" in last
    assert "(and 7 more were skipped)" in last
    assert not (tmp_path / "out").exists()


def damaged_tiff(path):
    """A TIFF that Pillow hands to libtiff, which writes to standard error what is wrong with it."""
    grey(np.random.default_rng(0).integers(0, 256, (99, 99))).save(path, compression="tiff_lzw")
    content = bytearray(path.read_bytes())
    for at in range(100, len(content) - 400, 37):
        content[at] ^= 0x55
    path.write_bytes(content)


def tiff_of_many_samples(path):
    """Of which Pillow logs that they are too many."""
    entries = [(256, 4), (257, 4), (258, 8), (259, 1), (262, 1), (273, 8), (277, 60_000), (278, 4),
               (279, 16)]  # fmt: skip
    packed = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in entries)
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(99))


@pytest.mark.slow
def test_pillow_logs_no_lines(tmp_path):
    """In a process of its own: pytest listens to what is logged."""
    tiff_of_many_samples(tmp_path / "a.tif")
    code = ("import sys; from seenby import Preprocessing, read_pictures\n"
            "print(*(p.note for p in read_pictures(sys.argv[1:], Preprocessing())))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.tif"], capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert f"{tmp_path}/a.tif is not an image; give " in done.stdout
    assert done.stderr == ""


def test_libtiff_writes_no_lines_of_its_own(tmp_path, capfd):
    damaged_tiff(tmp_path / "a.tif")
    (picture,) = read_pictures([tmp_path / "a.tif"], DIGITS)
    assert picture.note.startswith(f"{tmp_path}/a.tif is truncated or broken (decoder error ")
    assert capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_one_line_for_each_damaged_tiff_also_from_workers(tmp_path, workers):
    """In a process that has read no picture before."""
    (folder := tmp_path / "folder").mkdir()
    grey(RAMP).save(folder / "whole.png")
    for i in range(8):
        damaged_tiff(folder / f"{i}.tif")
    words = ["--batch-size", "1", "--workers", workers, "--quiet", "--out", f"{tmp_path}/out"]
    done = subprocess.run([sys.executable, "-m", "seenby", str(folder), *words, *COURSE],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 1
    assert [line[:17] for line in done.stderr.splitlines()] == ["seenby: skipped: "] * 8


def test_grey_that_is_premultiplied_is_read(read, tmp_path):
    """As Photoshop writes it; Pillow reads it in a mode that it converts to no other but LA."""
    image = Image.new("LA", (28, 28), (60, 100))
    image.save(tmp_path / "a.tif")
    content = (tmp_path / "a.tif").read_bytes()
    extra = struct.pack("<HHIH", 338, 3, 1, 2)  # the second sample: opacity beside the grey
    assert content.count(extra) == 1
    (picture,) = read(content.replace(extra, struct.pack("<HHIH", 338, 3, 1, 1)), "b.tif")
    with Image.open(tmp_path / "b.tif") as changed:
        assert changed.mode == "La"
    whole = 255 - 100 + 60  # over white
    assert np.asarray(picture.image) == pytest.approx(whole, abs=1)


# ------------------------------------------------------------------------------ folders, names


def test_a_folder_is_read_in_name_order_and_lazily(tmp_path):
    for name in ("b.png", "a.PNG", "d.jpg"):
        grey(RAMP).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "c.json").write_text("[[0, 1], [2, 3]]")  # nor that
    (tmp_path / "folder.png").mkdir()
    pictures = read_pictures([tmp_path], DIGITS)
    names = [next(pictures).name, next(pictures).name]
    (tmp_path / "d.jpg").write_bytes(b"changed after the first was read")
    rest = list(pictures)
    assert [*names, *(p.name for p in rest)] == ["a", "b", "d"]
    assert rest[-1].image is None


def test_linked_folders_are_read_too(tmp_path):
    (tmp_path / "in" / "cat").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for where in ("in/cat/a.png", "elsewhere/b.png"):
        Image.new("L", (28, 28)).save(tmp_path / where)
    (tmp_path / "in" / "dog").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    found = read_pictures(tmp_path / "in", Preprocessing(), ("cat", "dog"))
    assert [(each.name, each.label) for each in found] == [("a", "cat"), ("b", "dog")]


def test_what_is_left_out_of_a_folder_is_said_once(tmp_path, capsys):
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    (tmp_path / "b.HEIC").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("nothing to see")
    (tmp_path / "labels.csv").write_text("image,labels\na,cat\nsub/a.png,dog\nc.png,dog\n")
    for _ in range(2):
        assert len(list(read_pictures(tmp_path, Preprocessing()))) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"seenby: {tmp_path}: 1 pictures are of kinds that are not read, such as b.HEIC, and are "
        "left out; convert them to PNG or JPEG",
        f"seenby: {tmp_path}/labels.csv: 2 rows name no picture in this folder, such as sub/a.png; "
        "put the table beside its pictures",
    ]


def test_a_picture_of_one_colour_is_of_one_shade(tmp_path):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    (picture,) = read_pictures(tmp_path / "red.png", Preprocessing())
    assert picture.note == NO_CONTRAST


def test_sources_are_read_in_the_order_given(tmp_path):
    for name in ("b.png", "a.png"):
        grey(RAMP).save(tmp_path / name)
    sources = [tmp_path / "b.png", str(tmp_path), tmp_path / "a.png"]
    names = [picture.name for picture in read_pictures(sources, DIGITS)]
    assert names == ["b", "a", "b-2", "a-2"]


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
    found = [unique_file_name(name, taken) for name in names]
    assert found[:8] == ["a", "A-2", "a-2-2", "a-3", "etc_passwd", "1_2", "über", "picture"]
    assert found[8:] == ["picture-2", "x" * 200, "a_b"]
    assert len({name.casefold() for name in found}) == len(found)


# --------------------------------------------------------------- what a network makes of pictures

CLASSES = ("tabby cat", "polar_bear", "dog")


@pytest.fixture
def wide():
    """Of a colour network with an input that is not square."""
    return Preprocessing((20, 30), (20, 30), (0.5,) * 3, (0.5,) * 3)


def test_what_is_cut_away_is_known(wide, tmp_path):
    pixels = np.zeros((100, 120, 3), np.uint8)
    pixels[10:90, 0:120] = (200, 100, 50)  # what is left: 120 x 80 of the middle
    Image.fromarray(pixels).save(path := tmp_path / "p.png")
    (picture,) = read_pictures([path], wide, CLASSES, keep_original=True)
    assert (picture.image.mode, picture.image.size) == ("RGB", (30, 20))
    # Of rows: 25 are resized to 20, two and a half cut off.
    assert picture.crop_box == (0, 8, 120, 88)
    assert picture.original.size == (120, 100)
    assert np.asarray(picture.image)[5:15].min(axis=(0, 1)).tolist() == [200, 100, 50]
    assert next(read_pictures([path], wide, CLASSES)).original is None


def test_resized_to_cover_and_then_cut():
    pixels = np.zeros((40, 80), np.uint8)
    pixels[:, 20:60] = 255
    to = Preprocessing((20, 20), (40, 40), (0.5,), (0.5,))
    crop, box = resize_and_crop(Image.fromarray(pixels), to)
    assert np.unique(crop) == [255]
    assert box == (30, 10, 50, 30)


def test_a_mode_that_is_there_already_is_not_converted():
    image = Image.new("L", (2, 2), 7)
    assert to_mode(image, "L") is image
    assert to_mode(image, "RGB").getpixel((0, 0)) == (7, 7, 7)


def test_pixels_become_numbers_channel_by_channel():
    to = Preprocessing((2, 3), (2, 3), (0.0, 0.5, 1.0), (1.0, 0.5, 2.0))
    x = to.tensor([Image.new("RGB", (3, 2), (255, 51, 0)), Image.new("RGB", (3, 2))])
    assert x.shape == (2, 3, 2, 3)
    assert x.is_contiguous()
    torch.testing.assert_close(x[:, :, 1, 2], torch.tensor([[1.0, -0.6, -0.5], [0.0, -1.0, -0.5]]))
    assert (to.mode, DIGITS.mode) == ("RGB", "L")


def test_sub_folders_are_labels_however_they_are_spelt(wide, tmp_path):
    (tmp_path / ".hidden").mkdir()
    grey(RAMP).save(tmp_path / ".hidden" / "a.png")
    (tmp_path / "._a.png").write_bytes(b"what macOS leaves")
    for folder in ("Tabby_Cat", "n02134084_polar-bear", "2", "unknown", "."):
        (tmp_path / folder).mkdir(exist_ok=True)
        grey(RAMP).save(tmp_path / folder / "a.png")
    found = [(p.name, p.label, p.note) for p in read_pictures([tmp_path], wide, CLASSES)]
    assert found == [
        ("a", "", ""),
        ("a-2", "dog", ""),
        ("a-3", "tabby cat", ""),
        ("a-4", "polar_bear", ""),
        ("a-5", "", "label unknown is no class of the network"),
    ]


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


def test_torchvisions_data_sets_are_read_where_they_lie(wide, tmp_path):
    write_mnist(tmp_path, [RAMP, 255 - RAMP], [1, 2])
    one, two = read_pictures([f"mnist:{tmp_path}"], DIGITS, tuple("0123456789"))
    assert [(p.name, p.label) for p in (one, two)] == [("mnist_0", "1"), ("mnist_1", "2")]
    np.testing.assert_array_equal(two.image, 255 - RAMP)
    others = list(read_pictures([f"mnist:{tmp_path}"], wide, CLASSES))  # three of something else
    assert [p.label for p in others] == ["", ""]
    assert others[0].note == "label 1 - one is no class of the network"


def test_cifar10_is_read_where_it_lies(wide, tmp_path, monkeypatch):
    datasets = import_torchvision().datasets
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *arguments: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.arange(2 * 3072).reshape(2, 3072).astype(np.uint8)
    batch = {"data": pixels, "labels": [2, 0]}
    (folder / "test_batch").write_bytes(pickle.dumps(batch))
    names = {"label_names": ["tabby cat", "polar_bear", "dog"]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names))
    preprocessing = replace(wide, crop_size=(32, 32), resize_size=(32, 32))
    one, two = read_pictures([f"cifar10:{tmp_path}"], preprocessing, CLASSES)
    assert [(p.name, p.label) for p in (one, two)] == [
        ("cifar10_0", "dog"),
        ("cifar10_1", "tabby cat"),
    ]
    expected = pixels[1].reshape(3, 32, 32).transpose(1, 2, 0)
    np.testing.assert_array_equal(two.image, expected)


def test_a_data_set_that_cannot_be_had(tmp_path, monkeypatch):
    datasets = import_torchvision().datasets
    monkeypatch.setattr(
        datasets.CIFAR10, "download", lambda self: (_ for _ in ()).throw(OSError("no net"))
    )
    words = r"cifar10 is not in .* and could not be downloaded \(no net\); put torchvision"
    with pytest.raises(InputError, match=words):
        next(read_pictures([f"cifar10:{tmp_path}"], DIGITS))
