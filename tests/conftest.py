"""Makes the script importable, and torchvision with it, which the reference libraries import."""

import os
import sys
from pathlib import Path

# Two workers test at once; threads of their own, and of what they start, would fight for the cores.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools"), str(ROOT / "benchmarks"), str(ROOT / "report")]

import SID_a4  # noqa: E402

SID_a4.import_torchvision()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first, or one worker would wait for it at the end."""
    items.sort(key=lambda item: item.path.stem != "test_long_runs")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def network() -> SID_a4.Network:
    """The network as it is shipped."""
    return SID_a4.load_network()


@pytest.fixture(scope="session")
def digits(network: SID_a4.Network) -> list[SID_a4.Picture]:
    return list(SID_a4.read_pictures([ROOT / "data"], network))
