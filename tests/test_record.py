"""run.json: what was run, with what, and what was assumed."""

import torch
from course import FEED, MODEL, ROOT, WEIGHTS
from running import course_run, record_in

import seenby
from seenby import explain
from seenby.outputs.record import run_record
from seenby.outputs.summary import Tally
from seenby.settings import Settings

TARGETS = ("--target", "predicted", "3", "--pick", "correct", "--blur", "1.5")


def test_a_record_says_what_was_run_and_assumed(digit_folder, digits, tmp_path):
    (pictures := tmp_path / "pictures").mkdir()
    for label, digit in (("5", digits[5]), ("6", digits[6]), ("4", digits[7])):
        (pictures / label).mkdir()
        digit.image.save(pictures / label / f"{digit.name}.png")
    (pictures / "6" / "broken.png").write_bytes(b"hello")
    assert course_run(tmp_path / "out", pictures, *TARGETS)[0] == 1
    assert record_in(tmp_path / "out") == {
        "seenby": seenby.__version__,
        "torch": torch.__version__,
        "network": "CourseCNN of SID_a4.py, mnist_model.pth",
        "task": "classes", "final_activation": "", "notes": [],
        "prepared": "resized to cover 28, cut to 28, mean 0.1307, std 0.3081 (given)",
        "layer": "conv2", "grid": "8 x 8",
        "maps": [10, 8, 8],
        "pad": "3: 28 pixels at stride 2 make 14 cells, the map has 8",
        "preprocessing": {
            "crop_size": [28, 28], "resize_size": [28, 28], "mean": [0.1307], "std": [0.3081],
            "interpolation": "bilinear", "from": "given",
        },
        "classes": 10,
        "pictures": {"explained": 2, "skipped": 1, "not picked": 1},
        "accuracy": {"labelled": 3, "correct": 2},
        "settings": {
            "images": [str(pictures)], "pick": "correct", "limit": None, "invert": False,
            "model": MODEL, "weights": WEIGHTS, "class_names": None, "size": [28, 28],
            "mean": [0.1307], "std": [0.3081], "task": None, "like": None,
            "target": ["predicted", "3"], "method": ["gradcam"],
            "layer": None, "pad": "auto",
            "style": {"panels": ["raw", "cam", "guided", "guided-cam"], "colormap": "jet",
                      "opacity": 0.5},
            "blur": 1.5, "uncropped": False, "overlays": True, "raw": True, "save_maps": None,
            "gallery": False, "batch_size": 16,
        },
    }  # fmt: skip
    assert (ROOT / "SID_a4.py").samefile(MODEL.rpartition(":")[0])
    assert FEED == ("--size", "28", "--mean", "0.1307", "--std", "0.3081")


def test_a_pad_that_was_asked_for_is_recorded_as_such(network, digits):
    explanation = explain(network.module, network.tensor([digits[5].image]), pad=1)
    record = run_record(Settings().changing_results(), network, explanation, 1, Tally(explained=1))
    assert record["pad"] == "1, as asked: cells of zeros around the map, then stretched"
    assert record["pictures"] == {"explained": 1, "skipped": 0, "not picked": 0}
    assert record["accuracy"] == {"labelled": 0, "correct": 0}


def test_equal_runs_write_equal_bytes_however_they_are_done(digit_folder, tmp_path):
    records = []
    for name, workers in (("a", 0), ("b", 2), ("c", 0)):
        how = ("--batch-size", 1, "--workers", workers, "--quiet", "--columns", 3 + workers)
        assert course_run(tmp_path / name, digit_folder, *how) == (0, "", "")
        records.append((tmp_path / name / "run.json").read_bytes())
    assert records[0] == records[1] == records[2]
    assert course_run(tmp_path / "d", digit_folder, "--batch-size", 1, "--pad", 2)[0] == 0
    assert (tmp_path / "d" / "run.json").read_bytes() != records[0]
