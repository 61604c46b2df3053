"""Makes the script importable, and torchvision with it, which the reference libraries import."""

import os
import sys
from pathlib import Path

# Two workers test at once; threads of their own, and of what they start, would fight for the cores.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools"), str(ROOT / "benchmarks"), str(ROOT / "report")]


def pytest_configure(config):
    """Not in the process that only hands out the tests: the imports alone take seconds."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        import SID_a4

        SID_a4.import_torchvision()


LONGEST = ["test_long_runs", "test_survives", "test_report", "test_gallery", "test_run"]


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
    """The network as it is shipped."""
    import SID_a4

    return SID_a4.load_network()


@pytest.fixture(scope="session")
def digits(network):
    import SID_a4

    return list(SID_a4.read_pictures([ROOT / "data"], network))
