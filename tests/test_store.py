"""The output folder: every file whole or not there, and each under a name of its own."""

import errno
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from course import COURSE
from PIL import Image
from running import course_run, files_in, seenby, table_in

from seenby import Style, explain, overlay
from seenby.outputs.colors import enlarged
from seenby.outputs.store import (
    OutputFolder,
    Result,
    atomic_write,
    file_name,
    forget_parts,
    to_float16_if_safe,
)
from seenby.outputs.table import explained_row, skipped_row


def test_a_file_is_whole_or_not_there(tmp_path):
    path, aside = tmp_path / "folder" / "result.txt", tmp_path / "aside"
    with pytest.raises(RuntimeError), atomic_write(path, aside) as part:
        part.write_text("half")
        raise RuntimeError
    assert files_in(tmp_path) == []
    with atomic_write(path, aside) as part:
        part.write_text("all")
        assert part.parent == aside
        assert not path.exists()
    assert path.read_text() == "all"
    with pytest.raises(KeyboardInterrupt), atomic_write(path, aside) as part:
        part.write_text("half of the next")
        raise KeyboardInterrupt
    assert (path.read_text(), files_in(tmp_path)) == ("all", ["folder/result.txt"])


def test_a_result_folder_on_another_disk(digit_folder, tmp_path, monkeypatch):
    move, refused = Path.replace, []

    def replace(path, target):
        if Path(target).parent.name in ("raw", "overlays"):
            refused.append(target)
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        move(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    assert course_run(tmp_path / "out", digit_folder)[0] == 0
    assert len(refused) == 16
    for folder in ("raw", "overlays"):
        assert files_in(tmp_path / "out" / folder) == [f"image_{i}.png" for i in range(8)]
        for path in (tmp_path / "out" / folder).iterdir():
            Image.open(path).load()
    assert not [name for name in files_in(tmp_path / "out") if name.startswith((".", "_"))]


def test_hostile_names_stay_inside_the_output_folder(digits, tmp_path):
    (pictures := tmp_path / "hostile").mkdir()
    digits[5].image.save(pictures / "%2e%2e%2f..%2fescape.png")
    digits[5].image.save(pictures / "=1+1.png")
    (pictures / "a\nb.png").write_bytes(b"hello")
    Path(os.fsdecode(os.fsencode(pictures) + b"/\xff.png")).write_bytes(b"hello")
    code, _, err = course_run(tmp_path / "out", pictures)
    assert (code, err.count("\n")) == (1, 2)
    names = [row["image"] for row in table_in(tmp_path / "out")]
    assert names == ["2e_2e_2f.._2fescape", "1_1", "a_b", "picture"]
    inside = {path.parts[len(tmp_path.parts)] for path in tmp_path.rglob("*")}
    assert inside == {"hostile", "out"}


# ----------------------------------------------------------------------------- what files hold


@pytest.fixture(scope="module")
def run(digit_folder, tmp_path_factory):
    """A run over the eight digits."""
    out = tmp_path_factory.mktemp("run")
    assert course_run(out, digit_folder)[0] == 0
    return out


def test_pictures_are_what_the_network_saw_and_the_map_over_it(run, network, digits):
    for digit in digits:
        raw = Image.open(run / "raw" / f"{digit.name}.png")
        assert (raw.mode, raw.size) == ("L", (28, 28))
        np.testing.assert_array_equal(raw, digit.image)
        explanation = explain(network.module, network.tensor([digit.image]))
        shown = np.asarray(Image.open(run / "overlays" / f"{digit.name}.png"), int)
        expected = np.asarray(overlay(enlarged(digit.image), explanation, Style()), int)
        assert np.abs(shown - expected).max() <= 6


def test_the_figure_is_large_enough_to_be_pasted(run):
    with Image.open(run / "seenby.png") as grid:
        assert grid.width > 1.5 * grid.height
        assert round(grid.info["dpi"][0]) == 300
        assert grid.width / 300 > 16 / 2.54  # pasted at 16 cm it is reduced, not enlarged
        assert len(np.unique(np.asarray(grid.convert("RGBA")).view(np.uint32))) > 500  # colours


def test_maps_of_several_classes_never_overwrite_each_other(digits, tmp_path):
    for label in ("2", "5"):
        (tmp_path / "d" / label).mkdir(parents=True)
        digits[int(label)].image.save(tmp_path / "d" / label / "dog.png")
    targets = ("--target", "label", "5", "5")
    assert course_run(tmp_path / "out", tmp_path / "d", *targets)[0] == 0
    rows = [(row["image"], row["target"]) for row in table_in(tmp_path / "out")]
    assert rows == [("dog", "2"), ("dog", "5"), ("dog-2", "5"), ("dog-2", "5")]
    names = files_in(tmp_path / "out" / "overlays")
    assert names == ["dog-2@5.png", "dog@2.png", "dog@5.png"]


def test_names_of_maps_tell_what_there_is_several_of(network, digits):
    explanation = explain(network.module, network.tensor([digits[5].image]), 3, method="gradcam++")
    names = [file_name("dog", explanation, *which)
             for which in ((False, False), (True, False), (False, True), (True, True))]  # fmt: skip
    assert names == ["dog", "dog@3", "dog@gradcam++", "dog@3@gradcam++"]


def test_uncropped_overlays_lie_on_the_whole_picture(digits, tmp_path):
    large = digits[5].image.resize((140, 140), Image.Resampling.NEAREST)
    sheet = Image.new("L", (300, 140), 50)
    sheet.paste(large, (80, 0))
    sheet.save(tmp_path / "sheet.png")
    given = (tmp_path / "sheet.png", "--opacity", 1, "--colormap", "gray")
    course_run(tmp_path / "out", *given, "--uncropped")
    full = Image.open(tmp_path / "out" / "overlays" / "sheet.png")
    assert full.size == (300, 140)
    course_run(tmp_path / "out", *given)
    square = np.asarray(Image.open(tmp_path / "out" / "overlays" / "sheet.png").convert("L"), float)
    # The network sees the 140 x 140 pixels in the middle; there each map has its peak.
    whole = np.asarray(full.convert("L"))
    seen = whole[:, 80:220]
    y, x = np.unravel_index(seen.argmax(), (140, 140))
    y28, x28 = (n / 8 for n in np.unravel_index(square.argmax(), square.shape))
    assert abs(x / 140 * 28 - x28) < 1
    assert abs(y / 140 * 28 - y28) < 1
    np.testing.assert_array_equal(whole[:, :80], np.full((140, 80), 50))  # what it did not see
    np.testing.assert_array_equal(whole[:, 220:], np.full((140, 80), 50))


OWN = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 7, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, 2))
"""


@pytest.mark.parametrize("size", [(1, 28), (28, 1), (1, 200), (300, 1), (3, 500)])
def test_uncropped_overlays_of_thin_pictures(tmp_path, size):
    """Of a line a cut from the middle is no whole pixel wide: one is shown all the same."""
    Image.new("L", size, 200).save(tmp_path / "thin.png")
    (tmp_path / "own.py").write_text(OWN)
    for name, model in (("course", COURSE), ("own", ("--model", f"{tmp_path / 'own.py'}:Net"))):
        words = (*model, "--uncropped", "--panels", "raw", "--out", tmp_path / name)
        assert seenby(tmp_path / "thin.png", *words)[0] == 0
        with Image.open(tmp_path / name / "overlays" / "thin.png") as full:
            assert full.size == size


# ------------------------------------------------------------------------------ the batches' parts


@pytest.fixture
def folder(tmp_path):
    return OutputFolder(
        tmp_path, tmp_path / ".seenby.0.parts", Style(), overlays=True, raw=True, panels=False,
        save_maps="float32", uncropped=False, name_targets=False, name_methods=False,
    )  # fmt: skip


@pytest.fixture
def result(network, digits):
    """What became of the fifth digit, under another name."""

    def of(name):
        picture = replace(digits[5], name=name)
        explanation = explain(network.module, network.tensor([picture.image]))
        rows = [explained_row(picture, explanation, network.classes)]
        return Result(picture, [explanation], rows)

    return of


def test_parts_become_one_table_in_their_order(folder, result, digits, tmp_path):
    broken = replace(digits[5], name="c", image=None, note="broken")
    folder.write_batch(10, [Result(broken, [], [skipped_row(broken)])])
    folder.write_batch(2, [result("a"), result("b")])
    assert folder.finished_batches() == [2, 10]
    assert [(n, [row["image"] for row in rows]) for n, rows in folder.read_parts()] == [
        (2, ["a"]), (2, ["b"]), (10, ["c"]),
    ]  # fmt: skip
    tally = folder.merge_parts(8, "all")
    assert [row["image"] for row in table_in(tmp_path)] == ["a", "b", "c"]
    assert (tally.explained, tally.skipped) == (2, ["broken"])
    (folder.parts / "3.csv").touch()  # a part without a row is not finished
    assert folder.finished_batches() == [2, 10]
    forget_parts(tmp_path)
    assert folder.finished_batches() == []
    assert files_in(tmp_path) == ["maps/000002.npz", "overlays/a.png", "overlays/b.png",
                                  "raw/a.png", "raw/b.png", "seenby.csv"]  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="os.sync")
def test_what_a_part_stands_for_is_on_the_disk_before_it(folder, result, tmp_path, monkeypatch):
    def sync():
        there.append([name for name in files_in(tmp_path) if not name.startswith(".")])
        assert folder.finished_batches() == []

    there: list[list[str]] = []
    monkeypatch.setattr("os.sync", sync)
    folder.write_batch(0, [result("a")])
    assert there == [["maps/000000.npz", "overlays/a.png", "raw/a.png"]]
    assert folder.finished_batches() == [0]


def test_maps_that_this_run_did_not_write_are_removed(folder, result, tmp_path):
    folder.write_batch(2, [result("a")])
    shutil.copy(tmp_path / "maps" / "000002.npz", tmp_path / "maps" / "000007.npz")
    (tmp_path / "maps" / "mine.npz").touch()
    (tmp_path / "maps" / "2000-mine.npz").touch()
    folder.remove_other_maps()
    assert files_in(tmp_path / "maps") == ["000002.npz", "2000-mine.npz", "mine.npz"]
    with np.load(tmp_path / "maps" / "000002.npz") as maps:
        assert sorted(maps) == ["R", "heatmap", "image", "method", "target", "target_index"]
        assert [maps[n][0] for n in ("image", "target", "target_index", "method")] == [
            "a", "5", 5, "gradcam",
        ]  # fmt: skip
        explanation = result("a").explanations[0]
        np.testing.assert_array_equal(maps["heatmap"], explanation.heatmap)
        np.testing.assert_array_equal(maps["R"], explanation.R)


@pytest.mark.parametrize(
    ("top", "expected"),
    [(0, "float16"), (1, "float16"), (0.01, "float16"), (1e-4, "float32"), (1e5, "float32")],
)
def test_half_precision_is_for_what_it_can_hold(top, expected):
    values = np.array([0, -top], np.float32)
    assert to_float16_if_safe(values, "float16").dtype == expected
    assert to_float16_if_safe(values, "float32").dtype == "float32"
    np.testing.assert_allclose(to_float16_if_safe(values, "float16"), values, rtol=1e-3)


def test_panels_as_pictures_where_they_are_asked_for(folder, result, tmp_path):
    style = Style(("overlay", "guided", "raw", "cam"))
    of = result("a")
    assert replace(folder, style=style).panel_folders() == []
    asked = replace(folder, style=style, panels=True, save_maps=None, raw=False, overlays=False)
    assert asked.panel_folders() == ["guided", "cam"]
    asked.write_batch(0, [of])
    names = [name for name in files_in(tmp_path) if not name.startswith(".")]
    assert names == ["cam/a.png", "guided/a.png"]
    explanation = of.explanations[0]
    for panel, values, signed in (("cam", explanation.heatmap[0], False),
                                  ("guided", explanation.R[0, 0], True)):  # fmt: skip
        shown = np.asarray(Image.open(tmp_path / panel / "a.png"))
        np.testing.assert_array_equal(shown, style.colorize(values.numpy(), signed))


def test_text_of_every_kind_is_recorded(folder, tmp_path):
    content = {"name": "über", "path": Path("a/b"), "type": torch.float16}
    folder.save_json("some.json", content)
    assert (tmp_path / "some.json").read_text(encoding="utf-8") == (
        '{\n "name": "über",\n "path": "a/b",\n "type": "torch.float16"\n}\n'
    )


def test_a_class_name_longer_than_csv_expects_of_a_cell(digit_folder, tmp_path):
    names = [f"class {c}" for c in range(9)] + ["long " * 40_000]
    (tmp_path / "names.txt").write_text("\n".join(names))
    words = ("--class-names", tmp_path / "names.txt", "--target", "9", "--no-overlays", "--no-raw")
    code, _, err = course_run(tmp_path / "out", digit_folder / "5", *words, "--panels", "raw")
    assert (code, err) == (0, "")
    assert "long " * 39_999 + "long" in (tmp_path / "out" / "seenby.csv").read_text()
