"""What is handed in: the report's pages, the zip's bytes, and every way in which it can fail."""

import csv
import io
import json
import shutil
import zipfile
from functools import partial

import build
import numpy as np
import pypdf
import pytest
import torch
from PIL import Image

import SID_a4
from SID_a4 import HERE, Complaint

REPORT = HERE / "report"


@pytest.fixture(scope="module")
def handed_in(tmp_path_factory):
    """All of it made once, with every option."""
    out = tmp_path_factory.mktemp("handin")
    (out / "mine.typ").write_text("= Remarks\n\nThe *seven* was hardest, $1 + 1 = 2$.")
    words = ["d111111", "--author", "A. Student", "--course", "Deep Learning"]
    assert build.main([*words, "--body", str(out / "mine.typ"), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def archive(handed_in):
    with zipfile.ZipFile(handed_in / "D111111_a4.zip") as opened:
        yield opened


def results_of(archive, run):
    """In place of the first run; what comes after it is run."""
    first = iter([archive.extractall])
    return lambda script, folder: next(first, partial(run, script))(folder)


@pytest.fixture(scope="module")
def report(handed_in):
    return pypdf.PdfReader(handed_in / "D111111_a4_report.pdf")


@pytest.fixture(scope="module")
def text(report):
    return " ".join(" ".join(page.extract_text() for page in report.pages).split())


def test_the_zip_holds_what_the_assignment_wants(archive, handed_in):
    digits = [f"outputs/{kind}/image_{i}.png" for kind in ("gradcam", "raw") for i in range(8)]
    assert archive.namelist() == sorted([
        "D111111_a4.py", "D111111_a4_report.pdf", "data/test_data.json", "mnist_model.pth",
        "requirements.txt", "outputs/D111111_a4.csv", "outputs/D111111_a4.png", *digits,
    ])  # fmt: skip
    assert archive.read("D111111_a4.py") == (HERE / "SID_a4.py").read_bytes()
    alone = (handed_in / "D111111_a4_report.pdf").read_bytes()
    assert archive.read("D111111_a4_report.pdf") == alone


def test_the_report_has_three_pages_at_most_and_embedded_fonts(report):
    assert 2 <= len(report.pages) <= 3
    assert {round(float(side)) for page in report.pages for side in page.mediabox[2:]} == {595, 842}
    assert len(build.fonts_of(report.pages)) > 5
    assert all(build.embedded(font) for font in build.fonts_of(report.pages))
    assert build.body_size(report.pages) == 12


def test_the_report_answers_every_question(text):
    for heading in ("q1", "q3.1", "q3.3", "q3.4", "q3.5", "Findings", "References"):
        assert heading in text, heading
    for words in ("procedure", "end for", "the ReLU after the sum", "Guided Grad-CAM"):
        assert words.lower().replace(" ", "") in text.lower().replace(" ", ""), words
    for words in ("A. Student", "Deep Learning", "D111111", "The seven was hardest"):
        assert words in text, words
    for shape in ("(1,1,28,28)", "(1,10,12,12)", "(1,10,8,8)"):
        assert shape in text.replace(" ", ""), shape


def test_the_reports_numbers_are_the_runs_and_the_studys(text, archive, network):
    rows = list(csv.DictReader(io.StringIO(archive.read("outputs/D111111_a4.csv").decode())))
    assert "8 of 8 are read right" in text
    for row in rows:
        assert row["probability"] in text
    evidence = json.loads((REPORT / "evidence.json").read_text())
    accuracy = evidence["networks"]["course, shipped"]["accuracy"]
    assert f"{100 * accuracy:.2f} % of MNIST" in text
    parameters = sum(weight.numel() for weight in network.net.parameters())
    assert f"{parameters:,} parameters" in text
    own = evidence["placement"]["course, other seeds"]["pad"]["3"]
    assert f"correlate by {own['own'][0]:.2f} with occlusion" in text
    mean, low, high = own["difference"]
    assert f"adds is {mean:.2f} ({low:.2f} to {high:.2f})" in text
    assert f"torch {torch.__version__.partition('+')[0]}" in text
    assert f"{evidence['displacement']['pad 0']['worst']}." in text


def test_the_report_shows_the_grid_of_that_run(report, archive):
    with Image.open(io.BytesIO(archive.read("outputs/D111111_a4.png"))) as grid:
        wanted = np.asarray(grid.convert("RGB"))
    shown = [image.image for page in report.pages for image in page.images]
    same = [np.asarray(i.convert("RGB")) for i in shown if i.size == wanted.shape[1::-1]]
    assert len(same) == 1
    assert np.array_equal(same[0], wanted)


def test_the_same_bytes_again(handed_in, archive, tmp_path, monkeypatch):
    """From the results of the first time, which are run anew to be compared with the zip's."""
    monkeypatch.setattr(build, "run", results_of(archive, build.run))
    words = ["D111111", "--author", "A. Student", "--course", "Deep Learning"]
    body = ["--body", str(handed_in / "mine.typ")]
    assert build.main([*words, *body, "--out", str(tmp_path)]) == 0
    for name in ("D111111_a4.zip", "D111111_a4_report.pdf"):
        assert (tmp_path / name).read_bytes() == (handed_in / name).read_bytes(), name


def test_the_committed_example_is_of_this_script_and_study():
    example = pypdf.PdfReader(REPORT / "SID_a4_report.pdf")
    assert len(example.pages) <= 3
    text = " ".join(" ".join(page.extract_text() for page in example.pages).split())
    found = json.loads((REPORT / "evidence.json").read_text())["placement"]["course, other seeds"]
    assert f"correlate by {found['pad']['3']['own'][0]:.2f} with occlusion" in text
    with (HERE / "outputs" / "SID_a4.csv").open() as file:
        assert all(row["probability"] in text for row in csv.DictReader(file))


# ------------------------------------------------------------------------------- what can fail


@pytest.mark.parametrize("given", ["D11 111", "../D111111", "D111111_a4", "", "Ð111111", "D\n1"])
def test_an_id_that_is_not_letters_and_digits_is_refused(given, capsys):
    with pytest.raises(SystemExit) as stop:
        build.main([given])
    assert stop.value.code == 2
    assert "letters and digits alone, as D111111" in capsys.readouterr().err.splitlines()[-1]


def failing(words, capsys):
    assert build.main(words) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    return said[0]


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("#pagebreak() " * 3 + "end", "the report has 6 pages, 3 are allowed; shorten it"),
        ('#read("/etc/passwd")', "the report can't be typeset"),
    ],
)
def test_a_body_that_breaks_the_report(body, complaint, tmp_path, capsys, archive, monkeypatch):
    monkeypatch.setattr(build, "run", results_of(archive, build.run))
    path = tmp_path / "mine.typ"
    path.write_text(body)
    out = tmp_path / "out"
    assert complaint in failing(["D111111", "--body", str(path), "--out", str(out)], capsys)
    assert not out.exists()


def test_a_body_that_can_not_be_read(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        build.main(["D1", "--body", str(tmp_path / "nothing.typ")])
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "nothing.typ can't be read (No such file or directory)" in said


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A copy of what the builder takes, to be broken."""
    for name in ("SID_a4.py", *build.NEEDED):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(HERE / name, tmp_path / name)
    monkeypatch.setattr(build, "ROOT", tmp_path)
    return tmp_path


def test_a_missing_file_is_named(elsewhere, capsys):
    (elsewhere / "mnist_model.pth").unlink()
    said = failing(["D1", "--out", str(elsewhere / "out")], capsys)
    assert "mnist_model.pth can't be copied" in said
    assert not (elsewhere / "out").exists()


def test_a_script_that_stops_says_why(elsewhere, capsys):
    (elsewhere / "mnist_model.pth").write_bytes(b"no weights")
    said = failing(["D1", "--out", str(elsewhere / "out")], capsys)
    assert "D1_a4.py stopped and said:" in said
    assert "is truncated or no checkpoint" in said


def test_results_that_do_not_come_again_are_refused(archive, tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        for name in archive.namelist():
            content = archive.read(name)
            other.writestr(name, content + b"more" if name.endswith(".csv") else content)
    with pytest.raises(
        Complaint, match=r"other\.zip does not write its own outputs/D111111_a4\.csv"
    ):
        build.prove(tmp_path / "other.zip", "D111111_a4.py")


def test_other_weights_have_no_accuracy_of_these(elsewhere):
    assert build.accuracy() == 0.9923
    state = torch.load(elsewhere / "mnist_model.pth", weights_only=True)
    torch.save({key: value * 1.01 for key, value in state.items()}, elsewhere / "mnist_model.pth")
    assert build.accuracy() is None


def test_a_report_with_another_size_font_or_figure_is_refused(handed_in, tmp_path, monkeypatch):
    other = tmp_path / "other.png"
    Image.new("RGB", (123, 45)).save(other)
    report = handed_in / "D111111_a4_report.pdf"
    with pytest.raises(Complaint, match=r"lacks the figure other\.png"):
        build.check(report, other)
    with (
        monkeypatch.context() as patch,
        pytest.raises(Complaint, match=r"in 12 point; set it in 11"),
    ):
        patch.setattr(build, "POINTS", 11)
        build.check(report, other)
    monkeypatch.setattr(build, "embedded", lambda font: "Mono" not in font["/BaseFont"])
    with pytest.raises(Complaint, match=r"the font /\w+\+DejaVuSansMono is not embedded"):
        build.check(report, other)


def shown(axes):
    return axes.get_images()[0].get_array()


def test_the_way_shows_each_map_and_its_weight(network, digits):
    figure = build.draw_way(network, digits[3])
    tiles = [axes for axes in figure.axes if shown(axes).shape == (8, 8)]
    explanation = SID_a4.explain(network.net, network.tensor([digits[3].image]))
    weights = [axes.get_xlabel() for axes in tiles if axes.get_xlabel().startswith("$")]
    assert weights == [f"${1000 * a:+.1f}$" for a in explanation.alpha[0]]
    maps = np.stack([shown(axes) for axes in tiles[:10]])
    summed = np.tensordot(explanation.alpha[0].numpy(), maps, 1).clip(0)
    np.testing.assert_allclose(shown(tiles[10]), summed, atol=1e-5)
