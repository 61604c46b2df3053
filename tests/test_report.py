"""What is handed in: the report's pages, the zip's bytes, and every way in which it can fail."""

import argparse
import ast
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from functools import partial

import numpy as np
import pypdf
import pytest
import torch
from PIL import Image

import SID_a4
from SID_a4 import HERE, InputError

import build  # isort: skip  (report/build.py; a folder of that name may lie about)

REPORT = HERE / "report"
EVIDENCE = json.loads((REPORT / "evidence.json").read_text())
EXAMPLES = HERE / "data" / "example_digits.json"


def words_in(pages):
    return " ".join(" ".join(page.extract_text() for page in pages).split())


@pytest.fixture(scope="module")
def net():
    return SID_a4.load_network()


@pytest.fixture(scope="module")
def digits():
    return SID_a4.read_pictures([EXAMPLES])


# ------------------------------------------------------------------------------ made in full, once


@pytest.fixture(scope="module")
def handed_in(tmp_path_factory):
    """All of it made once, with every option that needs no other data or weights."""
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
    first = iter([lambda folder: archive.extractall(folder) or ""])
    return lambda script, folder: next(first, partial(run, script))(folder)


@pytest.fixture(scope="module")
def report(handed_in):
    return pypdf.PdfReader(handed_in / "D111111_a4_report.pdf")


@pytest.fixture(scope="module")
def text(report):
    return words_in(report.pages)


@pytest.mark.slow
def test_the_zip_holds_what_the_assignment_wants(archive, handed_in):
    digits = [f"outputs/{kind}/image_{i}.png" for kind in ("gradcam", "raw") for i in range(8)]
    assert archive.namelist() == sorted([
        "D111111_a4.py", "D111111_a4_report.pdf", "README.md", "data/example_digits.json",
        "mnist_model.pth", "requirements.txt", "outputs/D111111_a4.csv", "outputs/D111111_a4.png",
        *digits,
    ])  # fmt: skip
    for name, source in (("D111111_a4.py", "SID_a4.py"), ("requirements.txt",) * 2,
                         ("mnist_model.pth",) * 2, ("data/example_digits.json",) * 2):  # fmt: skip
        assert archive.read(name) == (HERE / source).read_bytes()
    alone = (handed_in / "D111111_a4_report.pdf").read_bytes()
    assert archive.read("D111111_a4_report.pdf") == alone


@pytest.mark.slow
def test_the_zips_readme_says_how_to_run_it_and_names_what_is_there(archive):
    readme = archive.read("README.md").decode()
    assert readme.startswith("# D111111: ")
    assert len(readme.splitlines()) <= 30
    names = set(re.findall(r"(?m)^\| `([^`]+)` \|", readme))
    top = {re.sub("/.*", "/", name) for name in archive.namelist()} - {"README.md", "outputs/"}
    assert {name for name in names if not name.startswith("outputs/")} == top
    assert all(any(there.startswith(name) for there in archive.namelist()) for name in names)


@pytest.mark.slow
def test_the_report_has_three_pages_at_most_and_embedded_fonts(report):
    assert 2 <= len(report.pages) <= 3
    assert {round(float(side)) for page in report.pages for side in page.mediabox[2:]} == {595, 842}
    assert len(build.fonts_of(report.pages)) > 5
    assert all(build.embedded(font) for font in build.fonts_of(report.pages))
    assert sizes_in(report.pages) == {12}


@pytest.mark.slow
def test_the_report_answers_every_question(text):
    for heading in ("q1", "q3.1", "q3.3", "q3.4", "q3.5", "Findings", "References"):
        assert heading in text, heading
    for words in ("procedure", "end for", "the ReLU after the sum", "Guided Grad-CAM"):
        assert words.lower().replace(" ", "") in text.lower().replace(" ", ""), words
    for words in ("A. Student", "Deep Learning", "D111111", "The seven was hardest"):
        assert words in text, words
    for shape in ("(1,1,28,28)", "(1,10,12,12)", "(1,10,8,8)"):
        assert shape in text.replace(" ", ""), shape


@pytest.mark.slow
def test_the_reports_numbers_are_the_runs_and_the_studys(text, archive, net):
    rows = list(csv.DictReader(io.StringIO(archive.read("outputs/D111111_a4.csv").decode())))
    assert "8 of 8 are read right" in text
    assert build.percent(min(row["probability"] for row in rows)) in text
    accuracy = EVIDENCE["networks"]["course, shipped"]["accuracy"]
    assert f"{100 * accuracy:.2f} % of MNIST" in text
    parameters = sum(weight.numel() for weight in net.parameters())
    assert f"{parameters:,} parameters" in text
    own = EVIDENCE["placement"]["course, other seeds"]["pad"]["3"]
    assert f"correlate by {own['own'][0]:.2f} with occlusion" in text
    mean, low, high = own["difference"]
    assert f"adds is {mean:.2f} ({low:.2f} to {high:.2f})" in text
    assert f"torch {torch.__version__.partition('+')[0]}" in text
    assert f"{EVIDENCE['displacement']['pad 0']['worst']}." in text


@pytest.mark.slow
def test_the_report_shows_the_grid_of_that_run(report, archive):
    with Image.open(io.BytesIO(archive.read("outputs/D111111_a4.png"))) as grid:
        wanted = np.asarray(grid.convert("RGB"))
    shown = [image.image for page in report.pages for image in page.images]
    same = [np.asarray(i.convert("RGB")) for i in shown if i.size == wanted.shape[1::-1]]
    assert len(same) == 1
    assert np.array_equal(same[0], wanted)


@pytest.mark.slow
def test_the_same_bytes_again(handed_in, archive, tmp_path, monkeypatch):
    """From the results of the first time, which are run anew to be compared with the zip's."""
    monkeypatch.setattr(build, "run", results_of(archive, build.run))
    words = ["D111111", "--author", "A. Student", "--course", "Deep Learning"]
    body = ["--body", str(handed_in / "mine.typ")]
    assert build.main([*words, *body, "--out", str(tmp_path)]) == 0
    for name in ("D111111_a4.zip", "D111111_a4_report.pdf"):
        assert (tmp_path / name).read_bytes() == (handed_in / name).read_bytes(), name


@pytest.mark.slow
def test_the_zip_gives_its_results_again_elsewhere(archive, tmp_path):
    """In an empty folder, with a fresh environment, by the two lines of its own README."""
    archive.extractall(tmp_path)
    shutil.rmtree(tmp_path / "outputs")
    lines = re.findall("(?m)^    (.+)$", (tmp_path / "README.md").read_text())
    assert len(lines) == 2
    names = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    packages = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    for line in lines:
        line = line.replace("python3 ", f"{sys.executable} ", 1)
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=names | packages,
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr
    again = {f"outputs/{p.relative_to(tmp_path / 'outputs').as_posix()}": p.read_bytes()
             for p in (tmp_path / "outputs").rglob("*") if p.is_file()}  # fmt: skip
    assert again.keys() == {name for name in archive.namelist() if name.startswith("outputs/")}
    first, second = (csv.DictReader(io.StringIO(content["outputs/D111111_a4.csv"].decode()))
                     for content in (again, {n: archive.read(n) for n in again}))  # fmt: skip
    for row, other in zip(first, second, strict=True):
        assert abs(float(row.pop("probability")) - float(other.pop("probability"))) < 1e-4
        assert row == other
    for name in (name for name in again if name.endswith(".png")):
        with Image.open(io.BytesIO(again[name])) as one, \
                Image.open(io.BytesIO(archive.read(name))) as other:  # fmt: skip
            assert one.size == other.size
            apart = np.abs(np.subtract(one.convert("RGB"), other.convert("RGB"), dtype=float))
            assert apart.mean() < 0.5, name


# ------------------------------------------------------------------------ other data, another pad


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    """47 digits without labels, as a course hands them out."""
    path = tmp_path_factory.mktemp("course") / "47_data.json"
    pictures = [item["image"] for item in json.loads(EXAMPLES.read_text())]
    path.write_text(json.dumps([pictures[i % 8] for i in range(47)]))
    return path


@pytest.mark.slow
def test_other_data_weights_and_pad_from_end_to_end(unlabelled, elsewhere, capsys):
    change(elsewhere / "mnist_model.pth")
    out = elsewhere / "out"
    assert build.main(["D2", "--data", str(unlabelled), "--pad", "1", "--out", str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "pad       1, as asked" in said
    assert said[-3:] == [
        "note      other weights than the study's: --findings adds what it found",
        f"written   {out / 'D2_a4_report.pdf'}", f"written   {out / 'D2_a4.zip'}",
    ]  # fmt: skip
    with zipfile.ZipFile(out / "D2_a4.zip") as opened:
        names = [name for name in opened.namelist() if name.startswith("data/")]
        assert names == ["data/47_data.json"]
        assert opened.read(names[0]) == unlabelled.read_bytes()
        assert opened.read("mnist_model.pth") == (elsewhere / "mnist_model.pth").read_bytes()
        assert opened.read("outputs/D2_a4.csv").count(b"\n") == 48
        changed = opened.read("D2_a4.py").decode()
        readme = opened.read("README.md").decode()
    assert "Maps are padded by 1, as the course asks" in readme
    assert "47 test digits" in readme
    lines = zip((HERE / "SID_a4.py").read_text().splitlines(), changed.splitlines(), strict=True)
    ((before, after),) = [pair for pair in lines if pair[0] != pair[1]]
    assert after == before.replace("default=PAD", "default=1")
    text = words_in(pypdf.PdfReader(out / "D2_a4_report.pdf").pages)
    assert "first 16 of 47" in text
    for words in ("read right", *STUDY):
        assert words not in text, words


def test_without_other_data_the_examples_are_copied_and_else_never(tmp_path):
    data = tmp_path / "data"
    (data / "7").mkdir(parents=True)
    shutil.copy(EXAMPLES, data)
    (data / "README.md").write_text("no digit")
    (data / ".hidden.json").write_text("[]")
    assert copied([data], tmp_path / "one") == [EXAMPLES.name]
    for name in ("course.json", "7/photo.jpg", "b.png"):
        (data / name).write_bytes(b"as it is")
    assert copied([data], tmp_path / "two") == ["7/photo.jpg", "b.png", "course.json"]
    assert (tmp_path / "two" / "b.png").read_bytes() == b"as it is"


def copied(sources, folder):
    folder.mkdir()
    build.copy_data(sources, folder)
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_file_takes_its_label_along(tmp_path, digits):
    (tmp_path / "7").mkdir()
    digits[7].image.save(tmp_path / "7" / "mine.png")
    for name, source in (("one", tmp_path / "7" / "mine.png"), ("two", tmp_path / "7")):
        assert copied([source], tmp_path / name) == ["7/mine.png"]
        (picture,) = SID_a4.read_pictures([tmp_path / name])
        assert (picture.name, picture.label) == ("mine", "7")


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["a/x.json", "b/x.json"], "two files are named x.json; rename one of them"),
        (["digits.txt"], "digits.txt is not read from data/; give a .json or a picture"),
        (["x.json", EXAMPLES.name], f"{EXAMPLES.name} is not read from data/"),
        ([".x.json"], ".x.json is not read from data/"),
    ],
)
def test_data_that_the_script_would_not_read_alike(names, complaint, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("[]")
    with pytest.raises(InputError) as error:
        copied([tmp_path / name for name in names], tmp_path / "data")
    assert complaint in str(error.value)


def test_a_script_whose_pad_is_elsewhere_is_not_changed_unseen(elsewhere, tmp_path):
    script = elsewhere / "SID_a4.py"
    script.write_text(script.read_text().replace("default=PAD", "default=3"))
    (tmp_path / "handin").mkdir()
    build.copy_needed("D1_a4.py", 3, tmp_path / "handin")
    with pytest.raises(InputError, match="no --pad whose default is PAD"):
        build.copy_needed("D1_a4.py", 1, tmp_path / "handin")


# ----------------------------------------------------------------- the report's words, by its facts


@pytest.fixture(scope="module")
def desk(tmp_path_factory, net, digits):
    """The figures of the committed results."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copy(HERE / "outputs" / "SID_a4.png", folder / "grid.png")
    build.draw_way(net, digits[0]).savefig(folder / "way.png")
    return folder


@pytest.fixture(scope="module")
def facts(net, digits, tmp_path_factory):
    """Of the committed results, as if the example digits had been run."""
    folder = tmp_path_factory.mktemp("handin")
    (folder / "data").mkdir()
    shutil.copy(EXAMPLES, folder / "data")
    (folder / "outputs").symlink_to(HERE / "outputs")
    return lambda *words: build.facts_of(given(words), net, digits[0], folder)


def given(words):
    return build.build_parser().parse_args([*words])


def of_rows(rows):
    """The facts of these labels, predictions and notes."""
    return build.counted([
        {"label": label, "predicted": predicted, "probability": f"0.{i:04}", "note": note}
        for i, (label, predicted, note) in enumerate(rows, 9953)
    ])  # fmt: skip


def typeset(desk, facts, body=""):
    """Its pages as words."""
    desk.joinpath("out.pdf").write_bytes(build.typeset(desk, facts | {"body": bool(body)}, body))
    text = words_in(pypdf.PdfReader(desk / "out.pdf").pages)
    return re.sub(r"(?<=[a-z])- (?=[a-z])", "", text)  # words that a line's end broke


def test_only_labelled_digits_are_counted(desk, facts):
    seven, none = ("7", "7", ""), ("", "7", "")
    text = typeset(desk, facts() | of_rows([none] * 8))
    assert "read right" not in text
    assert "shows all 8 digits. The predicted class has a probability of 99.5% to 99.6%." in text
    text = typeset(desk, facts() | of_rows([none, seven, ("1", "7", ""), seven, none]))
    assert "shows all 5 digits; 2 of 3 with a label are read right" in text
    text = typeset(desk, facts() | of_rows([seven]))
    assert "shows the digit; 1 of 1 is read right" in text
    assert "The predicted class has a probability of 99.5%. " in text


def test_more_digits_than_the_figure_holds(desk, facts):
    rows = [("7", "7", "")] * 40 + [("1", "7", SID_a4.NO_EVIDENCE)] * 7
    text = typeset(desk, facts() | of_rows(rows))
    assert "shows the first 16 of 47 digits; 40 of 47 are read right" in text
    assert "has a probability of 99.5% to >99.9%." in text
    assert "The first 16 of 47 digits, each with its Grad-CAM" in text
    assert "Where nothing speaks for the class, in 7 of 47, the map is empty." in text
    text = typeset(desk, facts() | of_rows(rows[:16]))
    assert "shows all 16 digits; 16 of 16 are read right" in text
    assert "Each digit, its Grad-CAM" in text


def test_photographs_are_told_of(desk, facts):
    assert "Photographs" not in typeset(desk, facts())
    text = typeset(desk, facts() | of_rows([("", "7", SID_a4.FRAMED), ("", "1", "")]))
    assert re.search("1 of the 2 pictures, not of 28 . 28 pixels, was framed as MNIST frames", text)


STUDY = ("Findings", "nobody chose", "correlation", "Adebayo", "Figure 3", "NaNs", "99.23")


def test_findings_of_other_weights_are_left_out_or_said_to_be_of_others(desk, facts, monkeypatch):
    own = typeset(desk, facts())
    assert all(words in own for words in STUDY)
    assert "not those handed in" not in own
    monkeypatch.setattr(build, "studied", lambda: False)
    text = typeset(desk, facts())
    assert not [words for words in STUDY if words in text]
    assert "Figure 2" in text
    text = typeset(desk, facts("--findings"))
    assert [words for words in STUDY if words in text] == [*STUDY]
    assert "The weights measured here are not those handed in, but those that came with" in text
    assert "11,330 parameters " in text  # and no accuracy of other weights


PLAIN = "with 0, the plain resize of the libraries, up to 5.25."
PAD_3 = [
    "Why pad 3, and not 0 or 1.", "each cell where it looked", "is padded by 3 and",
    f"exactly there; with 1, as in many course solutions, up to 2.8 pixels beside it; {PLAIN}",
    "3 cells of zeros on each side, found from the stride",
]  # fmt: skip
PAD_1 = [
    "Pad 1. Convolutions", "so 3 are missing on each side", "is padded by 1 and",
    f"draws its value up to 2.8 pixels beside it; with 3 exactly there; {PLAIN}",
    "1 cell of zeros on each side, as the course asks",
]  # fmt: skip


def test_the_words_follow_the_pad(desk, facts):
    text = typeset(desk, facts())
    assert [words for words in PAD_3 if words not in text] == []
    assert "as the course asks" not in text
    assert re.search(r"(?i)explain.{1,20}= ?3 ?, ?layer", text)
    text = typeset(desk, facts("--pad", "1"))
    assert [words for words in PAD_1 if words not in text] == []
    assert "found from the stride" not in text
    assert "each cell where it looked" not in text
    assert re.search(r"(?i)explain.{1,20}= ?1 ?, ?layer", text)


def test_where_a_pad_draws_a_cell_is_what_the_study_measured():
    found = EVIDENCE["displacement"]
    assert found["sees"] == build.SEES
    np.testing.assert_allclose(build.looks_at(8), found["looks at"])
    for pad in (0, 1, 3):
        measured = found[f"pad {pad}"]
        np.testing.assert_allclose(build.drawn_at(8, pad), measured["drawn at"], atol=0.006)
        assert build.off(pad, 8) == measured["worst"]


def test_the_studys_plots_and_then_the_figures_width_give_way(desk, facts):
    tried = []
    for lines in (0, 12, 16, 24):
        typeset(desk, facts(), "One line.\n\n" * lines)
        now = json.loads((desk / "facts.json").read_text())
        tried.append((now["plots"], now["width"]))
    assert tried[0] == (True, 100)
    assert tried[-1][0] is False
    assert [build.TRIES.index(each) for each in tried] == sorted(map(build.TRIES.index, tried))


def test_the_pseudocodes_procedures_are_the_scripts():
    source = (REPORT / "report.typ").read_text()
    called = set(re.findall(r"#called\[(\w+)\]", source))
    tree = ast.parse((HERE / "SID_a4.py").read_text())
    there = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert called <= there
    assert {"forth_and_back", "keep_A", "keep_dyc_dA", "keep_positive", "explain"} <= called
    (explain,) = [node for node in tree.body if getattr(node, "name", "") == "explain"]
    assigned = [name for node in ast.walk(explain) if isinstance(node, ast.Assign)
                for name in ast.walk(node.targets[0]) if isinstance(name, ast.Name)]  # fmt: skip
    steps = [name.id for name in sorted(assigned, key=lambda name: name.lineno)]
    lines = source[source.index("#algorithm(3") :]
    marks = {"alpha": "$alpha_k^c arrow.l", "L_c": "$L^c arrow.l", "R": ", R arrow.l",
             "padded": '$"padded" arrow.l', "heatmap": '$"heatmap" arrow.l'}  # fmt: skip
    assert [name for name in steps if name in marks] == [*marks]
    places = [lines.index(mark) for mark in marks.values()]
    assert places == sorted(places)


def test_the_report_tells_of_hooks_and_modules(desk, facts):
    text = typeset(desk, facts())
    assert "TorchFunctionMode" not in text
    for words in ("A forward hook on conv2 keeps", "full backward hooks on the three ReLU modules",
                  "never fire"):  # fmt: skip
        assert words in text, words


# ------------------------------------------------------------------------------ twelve point


def sizes_in(pages):
    """Of all text, the scripts of formulas aside."""
    return {points for _, font, points in build.written(pages)
            if not ("Math" in font and points in build.SCRIPTS)}  # fmt: skip


def test_the_committed_example_is_of_this_script_and_study():
    build.check(REPORT / "SID_a4_report.pdf", HERE / "outputs" / "SID_a4.png")
    example = pypdf.PdfReader(REPORT / "SID_a4_report.pdf")
    assert len(example.pages) <= 3
    assert sizes_in(example.pages) == {12}
    text = words_in(example.pages)
    found = EVIDENCE["placement"]["course, other seeds"]
    assert f"correlate by {found['pad']['3']['own'][0]:.2f} with occlusion" in text
    with (HERE / "outputs" / "SID_a4.csv").open() as file:
        probabilities = [row["probability"] for row in csv.DictReader(file)]
    assert f"{build.percent(min(probabilities))} to {build.percent(max(probabilities))}." in text


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("#text(10pt)[small print]", "'small print' is set in 10 point; set it in 12"),
        ("#text(14pt)[LOUD]", "'LOUD' is set in 14 point; set it in 12"),
        ("#scale(75%)[shrunk]", "'shrunk' is set in 9 point; set it in 12"),
        ("#rotate(90deg, text(8pt)[turned])", "'turned' is set in 8 point; set it in 12"),
        ("#text(8.4pt)[as a script]", "'as a script' is set in 8.4 point; set it in 12"),
        ("$#text(9pt)[$x^2$]$", "is set in 9 point; set it in 12"),
    ],
)
def test_every_character_is_measured(desk, facts, body, complaint):
    typeset(desk, facts(), body)
    with pytest.raises(InputError) as error:
        build.check(desk / "out.pdf", desk / "grid.png")
    assert complaint in str(error.value)


def test_scripts_footnotes_tables_and_turned_text_of_a_body_may_be(desk, facts):
    body = "= A\n== B\n$x_(i_j)^2$ #rotate(30deg)[t] `code` #footnote[n] #table([c]) #smallcaps[d]"
    assert "code" in typeset(desk, facts(), body)
    build.check(desk / "out.pdf", desk / "grid.png")


def test_a_report_with_another_size_font_or_figure_is_refused(tmp_path, monkeypatch):
    other = tmp_path / "other.png"
    Image.new("RGB", (123, 45)).save(other)
    report = REPORT / "SID_a4_report.pdf"
    with pytest.raises(InputError, match=r"lacks the figure other\.png"):
        build.check(report, other)
    with (
        monkeypatch.context() as patch,
        pytest.raises(InputError, match=r"in 12 point; set it in 11"),
    ):
        patch.setattr(build, "POINTS", 11)
        build.check(report, other)
    monkeypatch.setattr(build, "embedded", lambda font: "Mono" not in font["/BaseFont"])
    with pytest.raises(InputError, match=r"the font /\w+\+DejaVuSansMono is not embedded"):
        build.check(report, other)


# ------------------------------------------------------------------------------- what can fail


@pytest.mark.parametrize("id_", ["D11 111", "../D111111", "D111111_a4", "", "Ð111111", "D\n1"])
def test_an_id_that_is_not_letters_and_digits_is_refused(id_, capsys):
    with pytest.raises(SystemExit) as stop:
        build.main([id_])
    assert stop.value.code == 2
    assert "letters and digits alone, as D111111" in capsys.readouterr().err.splitlines()[-1]


def test_without_an_id_it_is_the_projects_example():
    assert vars(given([])) == vars(argparse.Namespace(
        id="SID", author="", course="", data=None, pad=3, findings=False, body=None, out=REPORT,
    ))  # fmt: skip
    assert given(["d1"]).id == "D1"


def failing(words, capsys):
    with pytest.raises(SystemExit) as stop:
        build.main(words)
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    return said[0]


@pytest.mark.slow
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
    said = failing(["D1", "--body", str(tmp_path / "nothing.typ")], capsys)
    assert "nothing.typ can't be read (No such file or directory)" in said


@pytest.mark.parametrize("pad", ["-1", "11", "1.5"])
def test_a_pad_that_the_script_does_not_take(pad, capsys):
    assert "argument --pad: invalid" in failing(["D1", "--pad", pad], capsys)


def change(weights):
    state = torch.load(weights, weights_only=True)
    torch.save({key: value * 1.01 for key, value in state.items()}, weights)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A copy of what the builder takes, to be broken."""
    for name in (*build.NEEDED, "data/example_digits.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(HERE / name, tmp_path / name)
    monkeypatch.setattr(build, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["mnist_model.pth", "requirements.txt", "SID_a4.py"])
def test_a_missing_file_is_named(elsewhere, capsys, name):
    (elsewhere / name).unlink()
    said = failing(["D1", "--out", str(elsewhere / "out")], capsys)
    assert f"{name} can't be copied" in said
    assert not (elsewhere / "out").exists()


def test_data_that_are_not_there_are_named(elsewhere, capsys):
    words = ["D1", "--out", str(elsewhere / "out")]
    assert "no.json can't be copied (No such file" in failing([*words, "--data", "no.json"], capsys)
    shutil.rmtree(elsewhere / "data")
    assert "data can't be copied" in failing(words, capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [("mnist_model.pth", "no state dict, or not whole"), ("data/broken.png", "can't be read")],
)
def test_a_script_that_stops_says_why(elsewhere, capsys, name, words):
    (elsewhere / name).write_bytes(b"no weights, no digit")
    said = failing(["D1", "--out", str(elsewhere / "out")], capsys)
    assert "D1_a4.py stopped and said:" in said
    assert words in said


@pytest.mark.slow
def test_results_that_do_not_come_again_are_refused(archive, tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        for name in archive.namelist():
            content = archive.read(name)
            other.writestr(name, content + b"more" if name.endswith(".csv") else content)
    with pytest.raises(
        InputError, match=r"other\.zip does not write its own outputs/D111111_a4\.csv"
    ):
        build.prove(tmp_path / "other.zip", "D111111_a4.py")


def test_other_weights_are_not_those_of_the_study(elsewhere):
    assert build.studied()
    assert EVIDENCE["networks"]["course, shipped"]["accuracy"] == 0.9923
    change(elsewhere / "mnist_model.pth")
    assert not build.studied()


# --------------------------------------------------------------------------------- a digit's way


def shown(axes):
    return axes.get_images()[0].get_array()


def test_the_way_shows_each_map_and_its_weight(net, digits):
    figure = build.draw_way(net, digits[3])
    tiles = [axes for axes in figure.axes if shown(axes).shape == (8, 8)]
    explanation = SID_a4.explain(net, SID_a4.normalised([digits[3].image]))
    weights = [axes.get_xlabel() for axes in tiles if axes.get_xlabel().startswith("$")]
    assert weights == [f"${1000 * a:+.1f}$" for a in explanation.alpha[0]]
    maps = np.stack([shown(axes) for axes in tiles[:10]])
    summed = np.tensordot(explanation.alpha[0].numpy(), maps, 1).clip(0)
    np.testing.assert_allclose(shown(tiles[10]), summed, atol=1e-5)


@pytest.mark.parametrize("pad", [0, 1, 3])
def test_the_way_shows_its_pad_and_where_cells_are_drawn(net, digits, pad):
    figure = build.draw_way(net, digits[3], pad)
    raw, padded, placed = figure.axes[0], *figure.axes[-2:]
    assert f"pad {pad}" in [text.get_text() for text in figure.texts]
    assert shown(padded).shape == (8 + 2 * pad,) * 2
    drawn = EVIDENCE["displacement"][f"pad {pad}"]["drawn at"]
    for axes, centres in ((raw, EVIDENCE["displacement"]["looks at"]), (placed, drawn)):
        (dots,) = axes.get_lines()
        np.testing.assert_allclose(np.unique(dots.get_xdata()), centres, atol=0.006)
        np.testing.assert_allclose(np.unique(dots.get_ydata()), centres, atol=0.006)
        assert len(dots.get_xdata()) == 64


def test_of_more_maps_the_way_shows_those_that_matter_most(digits):
    net = SID_a4.CourseCNN(10, 20).eval()
    figure = build.draw_way(net, digits[3])
    alpha = SID_a4.explain(net, SID_a4.normalised([digits[3].image])).alpha[0].numpy()
    most = sorted(np.argsort(-abs(alpha))[:10])
    written = [axes.get_xlabel() for axes in figure.axes if axes.get_xlabel().startswith("$")]
    assert written == [f"${1000 * a:+.1f}$" for a in alpha[most]]
    assert any("10 of 20 maps" in text.get_text() for text in figure.texts)
    assert max(axes.get_position().x1 for axes in figure.axes) <= 1
