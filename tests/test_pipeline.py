"""A whole run: what it reads, what it writes, and what it says."""

import shutil
from pathlib import Path

import pytest
from course import COURSE
from PIL import Image
from running import course_run, files_in, record_in, seenby, table_in

from seenby import InputError, draw_grid, load_network
from seenby.batch import fingerprint
from seenby.machine import Ranks
from seenby.outputs.table import COLUMNS
from seenby.pipeline import execute, prepare
from seenby.settings import Settings


@pytest.fixture
def go(tmp_path):
    """A run with the course network into tmp_path/out: its exit code, stdout and stderr."""
    return lambda *words: course_run(tmp_path / "out", *words)


@pytest.fixture(scope="module")
def run(digit_folder, tmp_path_factory):
    """A run over the eight digits, from the folder where one stands into the default one."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        said = seenby(digit_folder, *COURSE)
    return home, said


def test_a_run_writes_these_files_where_one_stands(run):
    home, (code, _, err) = run
    assert (code, err) == (0, "")
    names = [f"image_{i}.png" for i in range(8)]
    expected = [f"{folder}/{name}" for folder in ("overlays", "raw") for name in names]
    expected = sorted(["run.json", "seenby.csv", "seenby.png", *expected])
    assert files_in(home / "outputs") == expected
    assert [path.name for path in home.iterdir()] == ["outputs"]
    assert sorted(path.name for path in (home / "outputs").iterdir()) == [
        "overlays", "raw", "run.json", "seenby.csv", "seenby.png",
    ]  # fmt: skip


def test_the_runs_table_is_right(run, network, digits):
    rows = table_in(run[0] / "outputs")
    assert [row["predicted"] for row in rows] == list("01234567")
    for row, digit in zip(rows, digits, strict=True):
        logits = network.module(network.tensor([digit.image]))
        best = logits.softmax(1).max().item()
        assert tuple(row) == COLUMNS
        assert float(row["predicted_probability"]) == pytest.approx(best, abs=2e-6)
        assert float(row["target_probability"]) == pytest.approx(best, abs=2e-6)
        assert (row["image"], row["label"], row["status"]) == (digit.name, digit.label, "explained")
        assert (row["target"], row["target_index"]) == (row["label"], row["label"])
        assert (row["layer"], row["method"], row["note"]) == ("conv2", "gradcam", "")


def test_raw_pictures_read_again_give_the_same_results(run, tmp_path):
    raw = run[0] / "outputs" / "raw"
    assert course_run(tmp_path, raw, "--quiet") == (0, "", "")
    for again, row in zip(table_in(tmp_path), table_in(run[0] / "outputs"), strict=True):
        assert again == row | {"label": ""}


def test_quiet_prints_nothing(go, tmp_path, digit_folder):
    assert go(digit_folder, "--quiet") == (0, "", "")
    assert len(table_in(tmp_path / "out")) == 8


def test_one_unreadable_picture_is_named_and_the_others_are_explained(go, tmp_path, digit_folder):
    shutil.copytree(digit_folder, tmp_path / "data")
    (tmp_path / "data" / "a.png").write_bytes(b"not a picture")
    code, out, err = go(tmp_path / "data", "--quiet")
    assert (code, out) == (1, "")
    assert err.startswith(f"seenby: skipped: {tmp_path}/data/a.png is not an image; give ")
    assert err.count("\n") == 1
    first, *rest = table_in(tmp_path / "out")
    assert (first["image"], first["status"]) == ("a", "skipped")
    assert first["note"].startswith(f"{tmp_path}/data/a.png is not an image; give ")
    assert not first["predicted"]
    assert [row["predicted"] for row in rest] == list("01234567")
    assert "1 skipped" in go(tmp_path / "data")[1]


def test_more_pictures_than_a_batch_or_the_figure_holds(go, tmp_path, digit_folder):
    code, out, err = go(digit_folder, digit_folder, "--batch-size", 3)
    assert (code, err) == (0, "")
    rows = table_in(tmp_path / "out")
    assert [row["image"] for row in rows[7:10]] == ["image_7", "image_0-2", "image_1-2"]
    for one, two in zip(rows[:8], rows[8:], strict=True):
        assert (one["predicted"], one["note"]) == (two["predicted"], two["note"])
    assert "16 explained" in out
    assert len(files_in(tmp_path / "out" / "overlays")) == 16


def test_workers_decode_the_same_pictures(run, go, tmp_path, digit_folder):
    assert go(digit_folder, "--batch-size", 1, "--workers", 2, "--quiet") == (0, "", "")
    same = [name for name in files_in(tmp_path / "out") if name.startswith("raw/")]
    assert len(same) == 8
    for name in same:
        with Image.open(tmp_path / "out" / name) as one, Image.open(
            run[0] / "outputs" / name
        ) as two:
            assert one.tobytes() == two.tobytes()
    assert [row["predicted"] for row in table_in(tmp_path / "out")] == list("01234567")


def test_a_figure_of_fewer_columns(go, tmp_path, digit_folder, monkeypatch):
    figures = []
    monkeypatch.setattr("seenby.pipeline.draw_grid",
                        lambda *given: figures.append(given) or draw_grid(*given))  # fmt: skip
    assert go(digit_folder, "--columns", 3, "--batch-size", 2)[0] == 0
    assert go(digit_folder, "--columns", 3, "--target", "3", "4")[0] == 0
    assert go(digit_folder, "--columns", 3, "--target", "3", "4", "5", "6")[0] == 0
    shown = [[(p.name, int(e.target)) for p, e in zip(pictures, explanations, strict=True)]
             for pictures, explanations, *_ in figures]  # fmt: skip
    assert shown == [
        [("image_0", 0), ("image_1", 1), ("image_2", 2)],
        [("image_0", 3), ("image_0", 4)],  # whole pictures
        [("image_0", 3), ("image_0", 4), ("image_0", 5)],  # one at least
    ]
    assert len(table_in(tmp_path / "out")) == 32


def test_a_run_begins_anew_where_another_wrote(go, tmp_path, digit_folder):
    (old := tmp_path / "out" / ".seenby.00000000.parts").mkdir(parents=True)
    (old / "0.csv").write_text("left behind")
    (tmp_path / "out" / "mine.txt").write_text("mine")
    (tmp_path / "out" / ".SID_a4.00000000.parts").mkdir()  # another program's
    assert go(digit_folder)[0] == 0
    kept = sorted(path.name for path in (tmp_path / "out").iterdir() if path.name[0] == ".")
    assert kept == [".SID_a4.00000000.parts"]
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


# -------------------------------------------------------------------------------- before it begins


def test_a_fingerprint_is_of_settings_weights_names_and_labels(digit_folder, tmp_path, network):
    settings = Settings(images=(str(digit_folder),))
    mark, total = fingerprint(network, settings, ())
    assert total == 8
    assert fingerprint(network, settings, ()) == (mark, total)
    shutil.copytree(digit_folder, tmp_path / "other")
    shutil.move(tmp_path / "other" / "7", tmp_path / "other" / "9")
    labels = Settings(images=(str(tmp_path / "other"),))
    other = load_network(COURSE[1], "none", size=(28, 28), mean=(0.1307,), std=(0.3081,))
    marks = {mark, fingerprint(network, labels, ())[0], fingerprint(other, settings, ())[0],
             fingerprint(network, Settings(images=settings.images, blur=1.0), ())[0]}  # fmt: skip
    assert len(marks) == 4


def test_a_fingerprint_is_of_the_file_that_a_network_is_made_by(tmp_path, digit_folder):
    """The weights are those of before, but not what the file does with them."""
    (own := tmp_path / "own.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv, self.fc = torch.nn.Conv2d(1, 2, 3), torch.nn.Linear(2, 3)\n"
        "    def forward(self, x):\n"
        "        return self.fc(self.conv(x).relu().mean((2, 3)))\n"
    )
    settings = Settings(images=(str(digit_folder),), model=f"{own}:Net")
    network = load_network(f"{own}:Net", size=(28, 28), mean=(0.5,), std=(0.5,))
    before = fingerprint(network, settings, ())
    own.write_text(own.read_text().replace("return self", "return -self"))
    assert fingerprint(network, settings, ())[0] != before[0]
    assert fingerprint(network, settings, ())[1] == before[1] == 8


def test_a_search_that_ends_early_says_so(tmp_path, digit_folder):
    words = ("--pick", "correct", "--limit", 2, "--batch-size", 3)
    _, said, _ = course_run(tmp_path, digit_folder, *words)
    assert "2 explained in" in said
    assert "1 not picked; the search ended after 3 of 8" in " ".join(said.split())
    assert "3 of 3 with a label are right (100.0%), as far as it went" in said
    assert "ended" not in course_run(tmp_path, digit_folder, "--pick", "correct")[1]


def test_several_processes_do_not_pick_with_a_limit(digit_folder, tmp_path, network):
    settings = Settings(images=(str(digit_folder),), pick="wrong", limit=3, out=tmp_path / "out")
    words = "--pick with --limit was given to several processes, .* or use one process"
    with pytest.raises(InputError, match=words):
        execute(settings, Ranks(0, 0, 2))
    assert prepare(settings, network, Ranks()).total == 8
    assert not Path(settings.out).exists()


def test_a_run_from_settings(digit_folder, tmp_path, capsys):
    """Without a command line, as a notebook may do it."""
    settings = Settings(
        images=(str(digit_folder),), model=COURSE[1], weights=COURSE[3], size=(28, 28),
        mean=(0.1307,), std=(0.3081,), out=tmp_path / "out", raw=False,
    )  # fmt: skip
    assert execute(settings, Ranks()) == 0
    assert "8 explained" in capsys.readouterr().out
    assert not (tmp_path / "out" / "raw").exists()
    assert record_in(tmp_path / "out")["settings"]["raw"] is False
