"""README, docs/ and CHANGELOG say what is so: links, commands, options, examples, numbers."""

import ast
import json
import re
import shlex
import tracemalloc
from pathlib import Path

import document_options
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import seenby
from seenby import METHODS, InputError, explain
from seenby.core.methods import Method
from seenby.inputs.pictures import unique_file_name
from seenby.options import parse_settings
from seenby.outputs.figure import PANELS
from seenby.outputs.table import COLUMNS

ROOT = Path(__file__).resolve().parent.parent
DOCS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}  # fmt: skip
README = DOCS["README.md"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
PAGES = DOCS | {"CHANGELOG.md": CHANGELOG,
                "data/README.md": (ROOT / "data" / "README.md").read_text(encoding="utf-8")}
OF_TORCHRUN = {"--standalone", "--nproc-per-node", "--nnodes", "--max-restarts", "--rdzv-backend",
               "--rdzv-endpoint"}


def blocks(text, kind):
    """The fenced blocks of a kind: python, sh."""
    return re.findall(rf"(?ms)^```{kind}\n(.*?)^```$", text)


def commands(text):
    """The lines of the sh blocks without their comments, continued lines joined, as words."""
    lines = "".join(blocks(text, "sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


# ------------------------------------------------------------------------------ the first screen


def test_the_readme_is_short_and_names_the_scripts_length():
    assert len(README.splitlines()) <= 170
    (length,) = re.findall(r"one file of (\d+) lines", README)
    script = (ROOT / "SID_a4.py").read_text(encoding="utf-8")
    assert int(length) == len(script.splitlines())


def test_the_readmes_two_lines_that_ci_runs():
    install = "python3 -m venv .venv && .venv/bin/pip install -r"
    assert re.findall("(?m)^python3 -m venv.*$", README) == [
        f"{install} requirements.txt && .venv/bin/python SID_a4.py",
        f"{install} requirements-dev.txt && .venv/bin/python -m pytest",
    ]


def test_the_readme_leads_to_every_page():
    for name in DOCS.keys() - {"README.md"}:
        assert f"]({name})" in README, name
    assert len(DOCS) >= 15


# ------------------------------------------------------------------------------ links and names


def slug(heading):
    """As GitHub names a heading in a link."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("name", PAGES)
def test_every_link_and_picture_is_there(name):
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        if link.startswith(("http:", "https:")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.is_file(), link
        if anchor:
            headings = re.findall("(?m)^#+ (.*)$", target.read_text(encoding="utf-8"))
            assert anchor in map(slug, headings), link


def test_every_test_that_a_page_names_exists():
    files = {path.name for path in (ROOT / "tests").glob("test_*.py")}
    sources = [(ROOT / "tests" / name).read_text(encoding="utf-8") for name in files]
    there = {name for source in sources for name in re.findall(r"def (test_\w+)", source)}
    named = [name for text in DOCS.values()
             for name in re.findall(r"`(?:tests/)?(test_\w+(?:\.\.\.|\.py)?)`", text)]
    assert len(named) > 30
    for name in named:
        if name.endswith("..."):
            assert any(other.startswith(name.removesuffix("...")) for other in there), name
        else:
            assert name in files | there, name


def test_the_page_for_developers_has_a_line_for_every_file():
    page = DOCS["docs/developing.md"]
    rows = re.findall(r"(?m)^\| (`[\w., `]+`) \| ", page)
    named = [name for row in rows for name in re.findall(r"`(\w+\.(?:py|html))`", row)]
    files = [path.name for path in (ROOT / "seenby").rglob("*")
             if path.suffix in (".py", ".html")
             and (path.name != "__init__.py" or path.parent.name == "seenby")]  # fmt: skip
    assert sorted(named) == sorted(files)


def test_the_pages_name_the_columns_the_methods_and_the_panels():
    output, maps = DOCS["docs/output.md"], DOCS["docs/maps.md"]
    table = output.partition("## seenby.csv")[2].partition("\n## ")[0]
    assert tuple(re.findall(r"(?m)^\| `(\w+)` \|", table)) == COLUMNS
    table = maps.partition("## Methods")[2].partition("\n## ")[0]
    assert re.findall(r"(?m)^\| `([\w+]+)` \|", table) == list(METHODS)
    table = maps.partition("## Panels")[2].partition("\n## ")[0]
    assert re.findall(r"(?m)^\| `([\w-]+)` \|", table) == list(PANELS)


def test_the_changes_lead_to_this_version():
    assert re.findall(r"(?m)^## (\S+)", CHANGELOG)[0] == seenby.__version__


# ------------------------------------------------------------------------------ options, commands


def test_the_page_of_options_is_the_parsers():
    assert DOCS["docs/options.md"] == document_options.page()


def test_every_option_that_a_page_names_exists():
    folders = (".", "seenby", "report", "benchmarks", "tools")
    sources = [path.read_text(encoding="utf-8")
               for folder in folders for path in (ROOT / folder).glob("*.py")]
    there = {option for source in sources for option in re.findall(r'"(--[a-z][\w-]*)"', source)}
    assert {"--uncropped", "--pad", "--author"} <= there
    for name, text in DOCS.items():
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))
        assert named - there - OF_TORCHRUN - {"--help"} == set(), name


@pytest.fixture
def _any_file(monkeypatch):
    """For the parser everything that a command names is there."""
    for name, stand_in in {"existing_source": str, "output_folder": Path, "parse_device": str,
                           "read_class_names": lambda name: (name,)}.items():
        monkeypatch.setattr(f"seenby.options.{name}", stand_in)


@pytest.mark.usefixtures("_any_file")
def test_every_command_that_a_page_quotes_is_understood():
    quoted = []
    for text in (*DOCS.values(), seenby.options.EPILOG):
        inline = [shlex.split(words) for words in re.findall(r"`(seenby [^`]+)`", text)]
        epilog = [shlex.split(line) for line in re.findall(r"(?m)^  (seenby .*)$", text)]
        quoted += [*inline, *epilog, *commands(text)]
    settings = []
    for words in quoted:
        if words[:1] == ["torchrun"]:
            words = words[words.index("seenby") :]
        if words[0] == "seenby" and not {"IMAGES", "--help"} & {*words}:
            settings.append(parse_settings(words[1:]))
    assert len(settings) > 30
    assert {"resnet50", "SID_a4.py:CourseCNN"} <= {each.model for each in settings}
    assert any(each.target == ("bull mastiff", "tiger cat") for each in settings)


@pytest.mark.usefixtures("_any_file")
def test_a_command_of_an_older_version_is_not_understood():
    with pytest.raises(InputError, match="--grid"):
        parse_settings(["a.png", "--model", "resnet50", "--grid", "5"])


# ------------------------------------------------------------------------------ examples


def test_the_readmes_example_runs_and_prints_what_it_says(capsys):
    (example,) = blocks(README, "python")
    exec(example, {})
    said = capsys.readouterr().out.splitlines()
    promised = re.findall(r"(?m)^print\(.*?\)  # (\d+|\([\d, ]+\))", example)
    assert len(promised) == len(said) == 4
    for line, promise in zip(said, promised, strict=True):
        numbers = line.removeprefix("torch.Size([").removesuffix("])")
        assert numbers == promise.strip("()")


def test_the_examples_of_the_python_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((300, 200), 90).convert("RGB").save("photo.jpg")
    space = {}
    for example in blocks(DOCS["docs/python.md"], "python"):
        exec(example, space)
    assert {path.name for path in tmp_path.iterdir()} == {
        "photo.jpg", "figure.png", "overlays.png", "overlay.png"}  # fmt: skip
    *order, verdict, gain, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in order] == ["gradcam", "gradcam++"] * 2
    assert [line.partition(" ")[2] for line in order[2:]] == ["[3, 3]"] * 2
    assert verdict in ("points", "like edges", "no better", "cannot tell")
    assert len(gain.split(", ")) == 3
    assert last.startswith("the network has no layer layer5; the nearest names are layer4,")
    assert {name.name for node in ast.walk(ast.parse(example_of_imports())) for name in
            getattr(node, "names", [])} == set(seenby.__all__)  # fmt: skip


def example_of_imports():
    return blocks(DOCS["docs/python.md"], "python")[0]


@pytest.mark.usefixtures("_any_file")
def test_the_method_of_the_page_for_developers_is_a_method_everywhere(monkeypatch):
    example = blocks(DOCS["docs/developing.md"], "python")[0]
    space = {"F": F, "Tensor": Tensor, "Method": Method}
    exec(example, space)
    ((name, method),) = space["METHODS"].items()
    monkeypatch.setitem(METHODS, name, method)
    settings = parse_settings(["a.png", "--model", "resnet18", "--method", name, "gradcam"])
    assert settings.method == (name, "gradcam")
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(36, 3))
    explanation = explain(net, torch.rand(2, 1, 5, 5), method=name)
    weight = net[2].weight[explanation.target].view(2, 4, 3, 3)  # dy_c / dA
    torch.testing.assert_close(explanation.alpha, weight.detach().clamp(min=0).mean((2, 3)))


# ------------------------------------------------------------------------------ numbers


CELLS = json.loads((ROOT / "benchmarks" / "peers.json").read_text())["cells"]
SCALE = json.loads((ROOT / "benchmarks" / "scale.json").read_text())


def resnet50():
    """Of 32 pictures and one class."""
    (cell,) = (c for c in CELLS if (c["network"], c["batch"], c["classes"]) == ("resnet50", 32, 1))
    return cell


def test_the_readmes_numbers_are_the_benchmarks():
    captum, other = (resnet50()["times ours"][who][0] for who in ("Captum", "pytorch-grad-cam"))
    text = " ".join(README.split())
    assert f"take Captum {captum:.1f} times and pytorch-grad-cam {other:.1f} times as long" in text


def test_memory_and_long_runs_are_the_benchmarks():
    page, MiB = DOCS["docs/speed.md"], resnet50()["MiB"]
    ours = f"{MiB['seenby']:.0f} | {MiB['seenby, Grad-CAM alone']:.0f}"
    for who, memory in {"seenby": ours, "Captum": f"{MiB['Captum']:.0f} |",
                        "pytorch-grad-cam": f"{MiB['pytorch-grad-cam']:.0f} |",
                        "torchcam": f"| {MiB['torchcam (Grad-CAM alone)']:.0f}",
                        "the floor": f"{MiB['floor']:.0f} |"}.items():
        assert f"\n| {who} | {memory} |\n" in page
    runs = [f"| {run['pictures per second']} | {run['slope']:.2f} |" for run in SCALE["runs"]]
    assert re.findall(r"\| \d+ \| [\d.]+ \|(?=\n)", page.partition("## Long runs")[2]) == runs
    peaks = {run["overlays"]: (run["MiB"][0], run["MiB"][-1]) for run in SCALE["runs"]}
    assert peaks["none"] == (305, 305)
    assert peaks["all"] == (308, 311)
    assert "305 MB, or 308 and 311 where pictures are written" in page
    apart = max(each.get("guided", 0) for cell in CELLS if cell["network"] != "densenet121"
                for each in cell["difference"].values())  # whose last ReLU others do not see
    assert f"by up to {apart:.2f} of their maximum" in page


def test_what_is_said_of_a_gpu_was_measured():
    page = " ".join(DOCS["docs/speed.md"].partition("## On a GPU")[2].split())
    found = json.loads(ROOT.joinpath("benchmarks", "gpu.json").read_text())
    run, written = found["run: stage by stage"], found["run: and two pictures for each"]
    shares, both = run["share of the batches' time"], found["run: table and figure, batches of 64"]
    assert found["environment"]["torch"].startswith("2.11.")
    assert "PyTorch 2.11 with CUDA 13.0" in page
    for words in (
        f"take {both['seconds']:.1f} s, {both['pictures per second']:.0f} pictures per second, and "
        f"{both['GPU MiB'] / 1000:.1f} GB",
        f"the network has {shares['network']:.0%}".replace("%", " %"),
        f"preparing the pictures {shares['prepare']:.0%}".replace("%", " %"),
        f"decoding (by four workers) {shares['decode']:.0%}".replace("%", " %"),
        f"transfers {shares['transfer'] + shares['transfer back']:.0%}".replace("%", " %"),
        f"With two pictures written for each it is {written['pictures per second']:.0f} per second",
    ):
        assert words in page
    nets = [found[f"maps: {net}"] for net in ("course", "resnet50", "vit_b_16")]
    apart = [max(net["float32"].values()) for net in nets]
    assert max(apart) < 8e-5
    assert max(max(net["float64"].values()) for net in nets) < 1e-14
    assert f"ResNet-50 are {nets[1]['float32 as PyTorch is set']['R']:.3f} away" in page
    assert found["smoke: no memory"]["tried"][0] == 4096


def test_how_far_it_goes_is_calculated_from_the_benchmarks():
    page = " ".join(DOCS["docs/speed.md"].partition("## How far it goes")[2].split())
    explaining = resnet50()["seconds"]["seenby"] * SCALE["cores"] / 32  # core-seconds a picture
    reading = 1 / SCALE["per second"]["decode"]
    hours = (explaining + reading) * 1e9 / 3600  # for a billion
    for words in (f"takes {explaining:.2f} core-seconds a picture",
                  f"reading a JPEG {reading:.3f}",
                  f"are {hours / 20_000:.1f} core-hours: two hours on two cores",
                  f"{hours / 1000:.0f},000 core-hours, or {hours / 64 / 24:.0f} machines of 64",
                  f"{SCALE['per second']['merge'] // 1000},000 rows a second"):
        assert words in page
    assert 1e9 / SCALE["per second"]["merge"] / 3600 == pytest.approx(5.5, abs=0.1)
    assert "five and a half hours for a billion" in page
    taken = {}
    tracemalloc.start()
    for i in range(10_000):
        unique_file_name(f"picture_{i:08}", taken)
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert 50 < memory / 10_000 < 150  # "about 100 MB a million"
    assert "about 100 MB a million" in page


def test_the_numbers_of_placement_are_the_studys():
    evidence = json.loads((ROOT / "report" / "evidence.json").read_text())
    agreement = evidence["placement"]["course, other seeds"]["pad"]["0"]
    gain, own = (agreement[f"{which}, rule's minus this"][0] for which in ("own", "difference"))
    text = " ".join(README.split())
    assert f"raises its correlation with occlusion by {gain:.2f}; but another digit's" in text
    assert f"map gains {gain - own:.2f} by this" in text
    shifts = evidence["placement"]["ResNet-32, CIFAR-10"]["shift"]
    page = " ".join(DOCS["docs/placement.md"].split())
    here, there = (shifts[shift]["own"][0] for shift in ("0 0", "-0.5 -0.5"))
    assert f"(correlation {here:.2f})" in page
    assert f"theoretical centres ({there:.2f})" in page
    for pad in ("0", "1", "3"):
        drawn = evidence["displacement"][f"pad {pad}"]
        first, *_, last = drawn["drawn at"]
        row = rf"\| pad {pad}.*?\| {first:g} to {last:g} \| {drawn['mean']} \| {drawn['worst']} \|"
        assert re.search(row, page), row
    assert f"{evidence['displacement']['pad 0']['worst']} pixels" in text
