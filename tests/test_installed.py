"""The tool as a stranger gets it: a wheel, in an environment of its own, from an empty folder."""

import subprocess
import sys

import pytest
from course import FEED, ROOT, WEIGHTS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The folder of the commands of a fresh environment without the development packages."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("seenby-*.whl")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    pins = ROOT / "requirements.txt"
    run(folder / "venv/bin/pip", "install", "-q", "-c", pins, wheel, cwd=folder)
    return folder / "venv" / "bin"


def run(*words, cwd):
    """Its standard output, without the tests' PYTHONPATH, which would find the repository."""
    done = subprocess.run([*map(str, words)], cwd=cwd, capture_output=True, text=True,
                          env={"PATH": "/usr/bin:/bin", "HOME": str(cwd)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_package_and_its_page(environment):
    (wheel,) = environment.parent.parent.glob("seenby-*.whl")
    names = run("python3", "-m", "zipfile", "-l", wheel, cwd=environment)
    assert "seenby/gallery.html" in names
    assert "seenby/py.typed" in names
    assert "SID_a4" not in names
    assert "tests/" not in names


def test_the_command_explains_itself(environment, tmp_path):
    words = run(environment / "seenby", "--help", cwd=tmp_path)
    assert words.startswith("usage: seenby ")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_its_gallery_and_the_python_door(environment, tmp_path, digits):
    digits[5].image.save(tmp_path / "five.png")
    (tmp_path / "net.py").write_text((ROOT / "SID_a4.py").read_text())
    words = ["five.png", "--model", "net.py:CourseCNN", "--weights", WEIGHTS, *FEED, "--quiet"]
    assert run(environment / "seenby", *words, cwd=tmp_path) == ""
    row = (tmp_path / "outputs" / "seenby.csv").read_text().splitlines()[1]
    assert row.startswith("five,,explained,5,")
    said = run(environment / "python", "-m", "seenby.gallery", "outputs", cwd=tmp_path)
    assert said.startswith("1 picture: open ")
    assert "<title>" in (tmp_path / "outputs" / "index.html").read_text()
    code = "from seenby import explain; print(explain.__module__)"
    assert run(environment / "python", "-c", code, cwd=tmp_path) == "seenby.core.explanation\n"
