"""What the tests share: the repository on the path, the course network, and eight digits."""

import os
import sys
from pathlib import Path

# Two workers test at once; threads of their own, and of what they start, would fight for the cores.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = [str(ROOT), *(str(ROOT / name) for name in ("tests", "tools", "benchmarks", "report"))]
sys.path[:0] = FOLDERS
os.environ["PYTHONPATH"] = os.pathsep.join(FOLDERS[:2])  # for the processes that tests start


def pytest_configure(config):
    """torchvision, which the reference libraries import; not in the process that only hands out."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        from seenby.machine import import_torchvision

        import_torchvision()


LONGEST = ["test_long_runs", "test_survives", "test_report", "test_gallery", "test_pipeline"]


def pytest_collection_modifyitems(items):
    """The longest files first, or one worker would wait for the other at the end."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(autouse=True)
def _seed():
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def network():
    """The course network with its shipped weights, as the tool sees it."""
    from course import course_network

    return course_network()


@pytest.fixture(scope="session")
def digits(network):
    """The eight example digits, read by the script, as pictures of the tool with their labels."""
    from course import example_digits

    return example_digits()


@pytest.fixture(scope="session")
def digit_folder(tmp_path_factory, digits):
    """0/image_0.png to 7/image_7.png: a sub-folder's name is the label."""
    folder = tmp_path_factory.mktemp("digits")
    for digit in digits:
        (folder / digit.label).mkdir()
        digit.image.save(folder / digit.label / f"{digit.name}.png")
    return folder
