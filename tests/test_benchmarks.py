"""The benchmarks compare like with like, and the README quotes what they found."""

import json

import numpy as np
import peers
import pytest
import scale
import torch

from SID_a4 import HERE


@pytest.mark.filterwarnings("ignore")  # Captum warns of its own hooks
@pytest.mark.parametrize("n_classes", [1, 2])
def test_all_contestants_find_the_same_maps(n_classes):
    found = peers.cell("course", 3, n_classes, rounds=2)
    assert found["layer"] == "conv2"
    theirs = found["difference"]
    assert set(theirs) == set(peers.CONTESTANTS) - {"floor", "SID_a4"}
    for who, difference in theirs.items():
        assert difference["Grad-CAM"] < 1e-4, who
        assert difference.get("guided", 0) < 1e-4, who
    assert {who for who, d in theirs.items() if "guided" in d} == {"Captum", "pytorch-grad-cam"}
    for low, high in ((1, 0), (0, 2)):  # the median lies between the others
        for times in found["times ours"].values():
            assert times[low] <= times[high]


def test_a_difference_is_seen():
    cells, R = torch.rand(2, 4, 4), torch.rand(2, 1, 8, 8)
    other = R.clone()
    other[1, 0, 3, 3] += float(R.max()) / 10
    found = peers.difference((cells.flip(0), other), (cells, R))
    assert found["Grad-CAM"] > 0.1
    assert found["guided"] == pytest.approx(0.1, rel=1e-4)


def test_ratios_are_taken_within_a_round():
    assert peers.spread([2.0, 20.0, 6.0], [1.0, 10.0, 2.0]) == [2, 2, 3]


def test_the_readme_has_the_table_of_the_benchmark():
    kept = json.loads(peers.KEPT.read_text())["cells"]
    assert peers.marked(kept) in (HERE / "README.md").read_text()


def test_the_slope_of_a_power_law():
    counts = [1000, 3000, 10000]
    found = scale.slope(counts, [0.002 * n**1.25 for n in counts])
    assert found == {"slope": 1.25, "R2": 1.0}


def test_scale_measures_decoding_and_merging(tmp_path):
    assert scale.decoding(tmp_path, 5) > 1
    assert scale.merging(tmp_path, 20) > 100
    table = np.loadtxt(tmp_path / "SID_a4.csv", str, delimiter=",", skiprows=1)
    assert table[:, 0].tolist() == [f"{i:08}" for i in range(320)]
