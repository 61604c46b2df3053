"""The script: network, explanation, figure and command line, each against known values."""

import ast
import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from PIL import Image
from torch import nn

import SID_a4
from SID_a4 import (
    HERE,
    CourseCNN,
    InputError,
    Picture,
    draw_grid,
    explain,
    load_network,
    main,
    normalised,
    overlay,
    read_pictures,
)

EXAMPLES = HERE / "data" / "example_digits.json"
SCRIPT = HERE / "SID_a4.py"


@pytest.fixture(scope="module")
def net():
    return load_network()


@pytest.fixture(scope="module")
def digits():
    return read_pictures([EXAMPLES])


@pytest.fixture(scope="module")
def x(digits):
    return normalised([digit.image for digit in digits])


# -------------------------------------------------------------------------------- the file itself


def test_the_file_is_short_and_its_functions_fit_in_one_look():
    source = SCRIPT.read_text()
    assert len(source.splitlines()) <= 500
    lengths = [node.end_lineno - node.lineno + 1 for node in ast.walk(ast.parse(source))
               if isinstance(node, ast.FunctionDef)]  # fmt: skip
    assert max(lengths) <= 40


def test_it_imports_the_standard_library_and_four_packages():
    tree = ast.parse(SCRIPT.read_text())
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    outside = {name.split(".")[0] for name in names} - sys.stdlib_module_names
    assert outside == {"torch", "numpy", "PIL", "matplotlib"}


def test_it_is_written_in_python_3_9():
    source = SCRIPT.read_text()
    tree = ast.parse(source, feature_version=(3, 9))
    assert not any(isinstance(node, getattr(ast, "Match", ())) for node in ast.walk(tree))
    for newer in ("strict=", "has_transparency_data", "Union |"):
        assert newer not in source
    vermin = shutil.which("vermin") or str(Path(sys.executable).parent / "vermin")
    if not Path(vermin).exists():
        pytest.skip("vermin is not installed")
    command = [vermin, "--no-tips", "--target=3.9-", str(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_its_packages_are_those_of_requirements_txt():
    block = re.search(r"(?ms)^# /// script\n(.*?)^# ///$", SCRIPT.read_text())[1]
    assert 'requires-python = ">=3.9"' in block
    names = re.findall(r'"([a-z]+)>=[\d.]+"', block)
    pins = (HERE / "requirements.txt").read_text().split()
    assert names == [pin.split("==")[0] for pin in pins]
    assert names == ["torch", "torchvision", "numpy", "pillow", "matplotlib"]


# --------------------------------------------------------------------------------------- network


def test_the_forward_pass_is_the_courses(net):
    x, w = torch.randn(3, 1, 28, 28), net.state_dict()
    y = F.max_pool2d(F.conv2d(x, w["conv1.weight"], w["conv1.bias"]), 2).clamp(min=0)
    assert y.shape == (3, 10, 12, 12)
    y = F.max_pool2d(F.conv2d(y, w["conv2.weight"], w["conv2.bias"]), 2).clamp(min=0).flatten(1)
    y = (y @ w["fc1.weight"].T + w["fc1.bias"]).clamp(min=0) @ w["fc2.weight"].T + w["fc2.bias"]
    torch.testing.assert_close(net(x), y)


def test_input_is_normalised_as_in_training():
    pixels = np.arange(784, dtype=np.uint8).reshape(28, 28)
    x = normalised([Image.fromarray(pixels)] * 2)
    assert x.shape == (2, 1, 28, 28)
    torch.testing.assert_close(x[1, 0], (torch.from_numpy(pixels) / 255 - 0.1307) / 0.3081)


def test_shipped_weights_know_their_digits(net, digits, x):
    assert [str(c) for c in net(x).argmax(1).tolist()] == [digit.label for digit in digits]
    assert [digit.label for digit in digits] == list("01234567")


@pytest.fixture
def saved(tmp_path):
    def load(content, **how):
        torch.save(content, path := tmp_path / "weights.pth", **how)
        return load_network(path)

    return load


@pytest.mark.parametrize("sizes", [(10, 10, 50, 10), (10, 20, 50, 10), (3, 5, 7, 10)])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_sized_from_the_checkpoint_however_it_is_wrapped(saved, sizes, wrapper, prefix):
    expected = CourseCNN(*sizes).eval()
    state = {prefix + key: value for key, value in expected.state_dict().items()}
    loaded = saved({wrapper: state, "epoch": 3} if wrapper else state)
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(loaded(x), expected(x))
    assert not loaded.training


def test_old_format_and_half_precision_load(saved):
    half = CourseCNN().half()
    loaded = saved(half.state_dict(), _use_new_zipfile_serialization=False)
    assert loaded.fc1.weight.dtype == torch.float32
    assert torch.equal(loaded.fc1.weight.half(), half.fc1.weight)


class Hostile:
    def __reduce__(self):
        import os

        return os.mkdir, ("executed",)


def test_code_in_a_checkpoint_is_never_run(tmp_path, monkeypatch, saved):
    monkeypatch.chdir(tmp_path)
    for how in ({}, {"_use_new_zipfile_serialization": False}):
        with pytest.raises(InputError, match=r"give a file written by torch.save\(net.state_dict"):
            saved({"fc1.weight": Hostile()}, **how)
        assert not (tmp_path / "executed").exists()


def renamed(state):
    return {key.replace("conv1", "features.0"): value for key, value in state.items()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (renamed, "conv1.weight is missing in the file, (10, 1, 5, 5) in the network"),
        (lambda s: s | {"conv1.weight": torch.zeros(64, 3, 7, 7)},
         "conv1.weight is (64, 3, 7, 7) in the file, (64, 1, 5, 5) in the network"),
        (lambda s: s | {"fc1.weight": torch.zeros(50, 9216)},
         "fc1.weight is (50, 9216) in the file, (50, 160) in the network"),
        (lambda s: s | {"fc3.bias": torch.zeros(2)},
         "fc3.bias is (2,) in the file, missing in the network"),
        (lambda s: s | {"fc2.bias": torch.tensor(0.0)}, "fc2.bias is () in the file, (10,)"),
        (lambda s: s | {"fc2.weight": torch.tensor(0.0)}, "fc2.weight is () in the file"),
        (lambda s: s | {"fc2.bias": torch.full((10,), torch.nan)}, "fc2.bias holds no plain"),
        (lambda s: s | {"fc2.bias": torch.full((10,), torch.inf)}, "fc2.bias holds no plain"),
        (lambda s: {"epoch": 3}, "no state dict"),
        (lambda s: {}, "conv1.weight is missing"),
        (lambda s: torch.zeros(3), "no state dict"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_named(saved, change, words):
    with pytest.raises(InputError) as complaint:
        saved(change(CourseCNN().state_dict()))
    assert words in str(complaint.value)
    assert "; give " in str(complaint.value) or "; train" in str(complaint.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "no state dict, or not whole"), (b"hello", "no state dict, or not whole"),
     (None, "no such file"), ("half", "no state dict, or not whole"),
     ("folder", "no such file")],
)  # fmt: skip
def test_files_that_are_no_weights(tmp_path, content, words):
    path = tmp_path / "weights.pth"
    if content == "half":
        whole = (HERE / "mnist_model.pth").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        load_network(path)


# ----------------------------------------------------------------------------------- explanation


class GuidedReLU(torch.autograd.Function):
    """The oracle of guided backpropagation: ReLU's own backward pass, written out."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x > 0) * (gradient > 0)


def oracle(net, x, c):
    """L_c and R of a CourseCNN without any hook: the passes written out, eqs. 1 and 2 as loops."""
    def trunk(x, relu):
        return net.conv2(relu(F.max_pool2d(net.conv1(x), 2)))

    def head(A, relu):
        return net.fc2(relu(net.fc1(relu(F.max_pool2d(A, 2)).flatten(1))))

    rows = range(len(x))
    A = trunk(x, torch.relu).detach().requires_grad_()
    (g,) = torch.autograd.grad(head(A, torch.relu)[rows, c].sum(), A)
    L_c = torch.zeros_like(A[:, 0])
    for i in rows:
        for k in range(A.shape[1]):
            L_c[i] = L_c[i] + g[i, k].sum() / g[i, k].numel() * A[i, k].detach()
    x = x.clone().requires_grad_()
    y = head(trunk(x, GuidedReLU.apply), GuidedReLU.apply)
    (R,) = torch.autograd.grad(y[rows, c].sum(), x)
    return L_c.clamp(min=0).detach(), R


def assert_near(found, expected, most):
    assert ((found - expected).abs().max() / expected.abs().max()).item() <= most


@pytest.mark.parametrize("maps", [10, 20])
@pytest.mark.parametrize("target", [None, 3, [0, 9, 3, 3, 1, 2, 7, 8]])
def test_against_float64_autograd(net, x, maps, target):
    """F.relu in the forward pass would be guided by nobody: R is off by half then."""
    torch.manual_seed(0)
    net64 = (net if maps == 10 else CourseCNN(10, 20)).double()
    try:
        found = explain(net64, x.double(), target)
        c = net64(x.double()).argmax(1) if target is None else torch.tensor(target).expand(8)
        assert torch.equal(found.target, c)
        L_c, R = oracle(net64, x.double(), c)
        assert found.L_c.dtype == found.R.dtype == torch.float64
        assert_near(found.L_c, L_c, 1e-12)
        assert_near(found.R, R, 1e-12)
        torch.testing.assert_close(found.guided_cam, R * found.heatmap[:, None])
    finally:
        net64.float()


def test_each_of_the_three_relus_is_guided(net, x):
    found = explain(net, x)
    for name in ("relu1", "relu2", "relu3"):
        awake = getattr(net, name)
        setattr(net, name, nn.Hardtanh(0, 1e9))  # the same function, which nothing guides
        other = explain(net, x).R
        setattr(net, name, awake)
        assert (other - found.R).abs().max() > 0.1 * found.R.abs().max(), name


def test_the_guides_sleep_while_alpha_is_computed(net, x, monkeypatch):
    right = explain(net, x).L_c
    whole = SID_a4.forth_and_back

    def awake(*args):
        with SID_a4.guided(net):
            return whole(*args)

    monkeypatch.setattr(SID_a4, "forth_and_back", awake)
    assert (explain(net, x).L_c - right).abs().max() > 0.5 * right.max()


def test_grad_cam_by_hand():
    """A_0 = x and A_1 = 2x - 3, y_0 = mean(A_0) - mean(A_1): L = ReLU((3 - x) / 6)."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight[:] = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
        net[0].bias[:] = torch.tensor([0.0, -3.0])
        net[3].weight[:] = torch.tensor([[1.0, -1.0], [2.0, 0.0]])
        net[3].bias[:] = 0
    x = torch.tensor([[[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]]])
    found = explain(net, x, 0, pad=0, layer=net[0])
    torch.testing.assert_close(found.alpha, torch.tensor([[1.0, -1.0]]) / 6)
    torch.testing.assert_close(found.L_c, F.relu((3 - x[:, 0]) / 6))
    torch.testing.assert_close(found.heatmap, found.L_c)


@pytest.mark.parametrize("N", [0, 1, 3])
def test_pad_is_zeros_around_the_map_and_then_a_bilinear_resize(net, x, N):
    found = explain(net, x, pad=N)
    padded = F.pad(found.L_c, (N, N, N, N))[:, None]
    expected = F.interpolate(padded, (28, 28), mode="bilinear")[:, 0]
    assert torch.equal(found.heatmap, expected)


def test_pad_puts_each_cell_on_the_centre_of_what_it_sees(net):
    """Cell 4 of 8 sees pixels 8 to 21 (7 + 2 * 4 - ... of 28): its centre is at 14.5."""
    L_c = torch.zeros(1, 8, 8)
    L_c[0, 4, 4] = 1
    padded = F.pad(L_c, (SID_a4.PAD,) * 4)[:, None]
    found = F.interpolate(padded, (28, 28), mode="bilinear")[0, 0]
    p = torch.arange(28.0)
    field = torch.zeros(1, 1, 28, 28, requires_grad=True)
    A = net.conv2(net.relu1(F.avg_pool2d(net.conv1(field), 2)))
    (g,) = torch.autograd.grad(A[0, :, 4, 4].sum(), field)
    seen = p[g[0, 0].abs().sum(0) > 0]
    assert (found.sum(0) @ p / found.sum()).item() == pytest.approx(seen.mean().item(), abs=1e-4)


def test_the_network_comes_back_as_it_was(net, x):
    class Fails(CourseCNN):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("after all hooks were set")

    for net_, fails in ((CourseCNN().train(), False), (Fails().train(), True)):
        net_.conv1.weight.requires_grad_(False)
        before = {key: value.clone() for key, value in net_.state_dict().items()}
        if fails:
            with pytest.raises(RuntimeError, match="after all"):
                explain(net_, x)
        else:
            explain(net_, x)
        for module in net_.modules():
            assert module.training
            assert not {**module._forward_hooks, **module._backward_hooks}
        assert [p.requires_grad for p in net_.parameters()] == [False] + [True] * 7
        assert all(p.grad is None for p in net_.parameters())
        assert all(torch.equal(before[key], value) for key, value in net_.state_dict().items())


def test_frozen_weights_and_no_grad_outside(net, x):
    expected, frozen = explain(net, x), load_network().requires_grad_(False)
    with torch.no_grad():
        found = explain(frozen, x.requires_grad_(False))
    for name in ("logits", "L_c", "R", "heatmap", "guided_cam"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert x.grad is None


def test_an_in_place_relu_behind_the_layer_raises_and_never_bends_a_map():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(27, 2))
    with pytest.raises(RuntimeError, match="modified inplace"):
        explain(net, torch.rand(1, 1, 5, 5), layer=net[0])
    assert not any(m._forward_hooks or m._backward_hooks for m in net.modules())


def test_a_batch_is_what_its_pictures_are_one_by_one(net, x):
    together = explain(net, x)
    for i in range(len(x)):
        alone = explain(net, x[i : i + 1])
        torch.testing.assert_close(together.L_c[i], alone.L_c[0])
        torch.testing.assert_close(together.R[i], alone.R[0])


def test_a_target_that_is_no_class_raises(net, x):
    for target in (10, -1):
        with pytest.raises(RuntimeError):
            explain(net, x, target)


# ---------------------------------------------------------------------------------------- figure


@pytest.fixture
def column(net, digits):
    """The second digit and its explanation, with a change."""

    def changed(label="1", **change):
        explanation = explain(net, normalised([digits[1].image]))
        fields = explanation._asdict() | change
        return [Picture("image_1", digits[1].image, label)], type(explanation)(**fields)

    return changed


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


def test_a_map_is_coloured_over_0_to_1_of_its_own_maximum():
    values = np.array([[0.1, 0.2, 0.4]])
    expected = colormaps["jet"]([[0.25, 0.5, 1.0]], bytes=True)[..., :3]
    np.testing.assert_array_equal(SID_a4.coloured(values), expected)
    np.testing.assert_array_equal(SID_a4.coloured(values * 1e-9), expected)


def test_a_signed_map_has_zero_in_the_middle_and_a_flat_one_is_finite():
    found = SID_a4.coloured(np.array([[-4.0, -2.0, 0.0, 1.0]]), "RdBu_r")
    expected = colormaps["RdBu_r"]([[0.0, 0.25, 0.5, 0.625]], bytes=True)[..., :3]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(SID_a4.coloured(np.zeros((2, 2)))[0, 0], (0, 0, 127))


def test_overlay_blends_the_map_half_and_half():
    heatmap = torch.zeros(28, 28)
    heatmap[:14], heatmap[14:] = 1.0, 0.5
    found = np.asarray(overlay(Image.new("L", (224, 224)), heatmap), int)
    assert found.shape == (224, 224, 3)
    for row, value in ((40, 1.0), (200, 0.5)):
        jet = np.array(colormaps["jet"](value, bytes=True)[:3])
        assert np.abs(found[row, 100] - jet / 2).max() <= 1
    white = np.asarray(overlay(Image.new("L", (224, 224), 255), heatmap), int)
    assert np.abs(white - found - 127.5).max() <= 1


def test_an_empty_map_says_so_in_words(column):
    zero = torch.zeros(1, 28, 28)
    pictures, empty = column(L_c=zero[:, :8, :8], heatmap=zero, guided_cam=zero[None])
    words = texts(draw_grid(pictures, empty))
    assert (words.count("no\npositive\nevidence"), words.count("all\nzero")) == (1, 1)
    assert SID_a4.table_row(pictures[0], empty, 0)["note"] == "no positive evidence"
    assert "no\npositive\nevidence" not in texts(draw_grid(*column()))


def test_headings_tell_prediction_probability_label_and_class(column):
    words = texts(draw_grid(*column()))
    assert words[:4] == ["picture", "predicted", "probability", "label"]
    for word in ("image_1", "1", "85.8%"):
        assert word in words
    assert "maps for" not in words
    assert "label" not in texts(draw_grid(*column("")))
    assert {"7", "maps for"} <= set(texts(draw_grid(*column(target=torch.tensor([7])))))
    assert ">99.9%" in texts(draw_grid(*column(logits=torch.tensor([[0.0, 20.0]]))))


def test_a_wrong_prediction_stands_out_without_colour(column):
    assert "1 \N{BALLOT X}" not in texts(draw_grid(*column()))
    figure = draw_grid(*column("7"))
    (wrong,) = [t for t in figure.axes[0].texts if t.get_text() == "1 \N{BALLOT X}"]
    assert wrong.get_color() == "crimson"


def test_the_figure_shows_the_pixels_themselves_in_one_band_of_eight(net, digits, x, tmp_path):
    explanation = explain(net, x)
    figure = draw_grid(digits, explanation)
    figure.savefig(tmp_path / "figure.png")
    drawn = Image.open(tmp_path / "figure.png")
    assert drawn.width > 1.5 * drawn.height
    pixels, images = np.asarray(drawn.convert("RGB"), int), figure.axes[0].images
    assert len(images) == 8 * 4 + 3
    panels = [image for image in images if np.shape(image.get_array())[:2] == (28, 28)]
    for image in panels:
        left, right, bottom, top = (round(300 * inch) for inch in image.get_extent())
        panel, shown = np.asarray(image.get_array(), int), pixels[top:bottom, left:right]
        p = ((np.arange(28) + 0.5) * (bottom - top) / 28).astype(int)
        np.testing.assert_allclose(shown[p][:, p], panel, atol=1)
    np.testing.assert_array_equal(panels[0].get_array(), np.stack([digits[0].image] * 3, 2))
    jet = SID_a4.coloured(explanation.heatmap[0].numpy())
    np.testing.assert_array_equal(panels[1].get_array(), jet)


@pytest.mark.parametrize(("n", "images", "bands"), [(1, 7, 1), (9, 42, 2), (16, 70, 2)])
def test_bands_of_eight(net, digits, n, images, bands):
    pictures = [digits[i % 8] for i in range(n)] + digits[:1]  # the last one is not asked for
    explanation = explain(net, normalised([p.image for p in pictures]))
    figure = draw_grid(pictures[: n] if n < 16 else pictures, explanation)
    assert len(figure.axes[0].images) == images
    assert texts(figure).count("Guided\nBackprop") == bands
    width = figure.get_figwidth()
    assert width >= 1.4 * figure.get_figheight() / bands - 1e-6


# ------------------------------------------------------------------------------------ a whole run


def table_in(folder, stem="SID_a4"):
    with (folder / f"{stem}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def files_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    """The script alone in a folder, under a student's id, run from somewhere else."""
    home = tmp_path_factory.mktemp("home")
    shutil.copy(SCRIPT, home / "D111111_a4.py")
    shutil.copy(HERE / "mnist_model.pth", home)
    (home / "data").mkdir()
    shutil.copy(EXAMPLES, home / "data")
    command = [sys.executable, str(home / "D111111_a4.py")]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    return home, done


def test_the_default_run_writes_the_assignment(default_run):
    home, done = default_run
    assert (done.returncode, done.stderr) == (0, "")
    expected = [f"{folder}/image_{i}.png" for folder in ("gradcam", "raw") for i in range(8)]
    assert files_in(home / "outputs") == ["D111111_a4.csv", "D111111_a4.png", *expected]


def test_the_default_runs_table_is_right(default_run, net, digits, x):
    text = (default_run[0] / "outputs" / "D111111_a4.csv").read_text()
    assert text.splitlines()[0] == "image,label,predicted,probability,target,note"
    rows = table_in(default_run[0] / "outputs", "D111111_a4")
    for row, digit, p in zip(rows, digits, net(x).softmax(1).amax(1), strict=True):
        assert float(row.pop("probability")) == pytest.approx(p.item(), abs=2e-6)
        label = digit.label
        assert row == {"image": f"image_{label}", "label": label, "predicted": label,
                       "target": label, "note": ""}  # fmt: skip


def test_the_default_runs_pictures_are_right(default_run, net, digits, x):
    out, heatmaps = default_run[0] / "outputs", explain(net, x).heatmap
    for digit, heatmap in zip(digits, heatmaps, strict=True):
        raw = Image.open(out / "raw" / f"{digit.name}.png")
        assert raw.mode == "L"
        np.testing.assert_array_equal(raw, digit.image)
        large = digit.image.resize((224, 224), Image.Resampling.NEAREST)
        shown = np.asarray(Image.open(out / "gradcam" / f"{digit.name}.png"), int)
        assert np.abs(shown - np.asarray(overlay(large, heatmap), int)).max() <= 6
    with Image.open(out / "D111111_a4.png") as grid:
        assert grid.width / 300 > 16 / 2.54  # pasted at 16 cm it is reduced, not enlarged
        assert round(grid.info["dpi"][0]) == 300


def test_the_account_is_short_and_tells_the_pad_and_why(default_run):
    lines = default_run[1].stdout.splitlines()
    assert lines[0] == "network   CourseCNN (10 and 10 maps), mnist_model.pth"
    assert lines[1] == "layer     conv2, 10 maps of 8 x 8"
    assert lines[2] == "pad       3: 28 pixels at stride 2 make 14 cells, the map has 8"
    assert lines[3].startswith("pictures  8 explained in ")
    assert lines[4] == "accuracy  8 of 8 with a label are right (100.0%)"
    assert lines[5] == "          0 1/1, 1 1/1, 2 1/1, 3 1/1, 4 1/1"
    assert lines[6] == "          5 1/1, 6 1/1, 7 1/1"
    assert lines[7] == "note      these are the example digits: put your own into data/ (8)"
    assert "D111111_a4.png" in lines[8]
    assert max(map(len, lines[:8])) <= 80


def test_the_committed_results_are_the_default_runs(default_run):
    rows, kept = table_in(default_run[0] / "outputs", "D111111_a4"), table_in(HERE / "outputs")
    for row, expected in zip(rows, kept, strict=True):
        near = pytest.approx(float(expected.pop("probability")), abs=1e-4)
        assert float(row.pop("probability")) == near
        assert row == expected
    with (
        Image.open(HERE / "outputs" / "SID_a4.png") as mine,
        Image.open(default_run[0] / "outputs" / "D111111_a4.png") as theirs,
    ):
        difference = np.asarray(mine.convert("RGB"), int) - np.asarray(theirs.convert("RGB"), int)
        assert (np.abs(difference) > 8).mean() < 0.01


@pytest.fixture
def go(tmp_path, capsys):
    """Runs main with an output folder of its own: (exit code, stdout, stderr)."""

    def run(*arguments):
        try:
            code = main([*map(str, arguments), "--out", str(tmp_path / "out")])
        except SystemExit as end:
            code = end.code
        return (code, *capsys.readouterr())

    return run


def test_raw_pictures_read_again_give_the_same_results(default_run, go, tmp_path):
    assert go(default_run[0] / "outputs" / "raw", "--quiet") == (0, "", "")
    rows = table_in(default_run[0] / "outputs", "D111111_a4")
    assert table_in(tmp_path / "out") == [row | {"label": ""} for row in rows]


def test_one_unreadable_picture_is_named_and_the_others_are_explained(go, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(EXAMPLES, data / "course.json")
    (data / "a.png").write_bytes(b"not a picture")
    code, out, err = go(data, "--quiet")
    assert (code, out) == (1, "")
    assert err.startswith(f"SID_a4.py: skipped: {data}/a.png can't be read (")
    assert err.count("\n") == 1
    first, *rest = table_in(tmp_path / "out")
    assert (first["image"], first["predicted"]) == ("a", "")
    assert first["note"].startswith("skipped: ")
    assert [row["predicted"] for row in rest] == list("01234567")
    assert "1 skipped" in go(data)[1]


def test_many_skipped_pictures_are_counted(go, tmp_path):
    content = json.loads(EXAMPLES.read_text())[:1] + [[1]] * 432
    (tmp_path / "many.json").write_text(json.dumps(content))
    code, _, err = go(tmp_path / "many.json")
    assert (code, err.count("\n")) == (1, 21)
    assert err.splitlines()[-1] == "SID_a4.py: and 412 more, see note in the table"
    assert len(table_in(tmp_path / "out")) == 433


def test_more_pictures_than_the_figure_holds(go, tmp_path):
    code, out, err = go(*[EXAMPLES] * 9)
    assert (code, err) == (0, "")
    assert "72 explained" in out
    assert "; the figure shows the first 16 of 72" in out
    assert "accuracy  72 of 72" in out
    rows = table_in(tmp_path / "out")
    assert len({row["image"] for row in rows}) == len(files_in(tmp_path / "out" / "raw")) == 72
    assert [row["predicted"] for row in rows] == list("01234567") * 9


def test_target_pad_and_invert_are_obeyed(go, tmp_path, net, digits):
    paper = Image.fromarray(255 - np.asarray(digits[4].image))
    paper.save(tmp_path / "four.png")
    code, out, _ = go(tmp_path / "four.png", "--invert", "--target", 7, "--pad", 1)
    assert code == 0
    assert "pad       1, as asked" in out
    (row,) = table_in(tmp_path / "out")
    assert (row["predicted"], row["target"]) == ("4", "7")
    heatmap = explain(net, normalised([digits[4].image]), 7, pad=1).heatmap[0]
    large = digits[4].image.resize((224, 224), Image.Resampling.NEAREST)
    shown = Image.open(tmp_path / "out" / "gradcam" / "four.png")
    np.testing.assert_array_equal(shown, overlay(large, heatmap))
    _, out, _ = go(tmp_path / "four.png")
    assert "note      bright border: of dark ink on white add --invert, else save it on " in out


def test_no_positive_evidence_is_said_in_table_and_account(go, tmp_path):
    state = torch.load(HERE / "mnist_model.pth", weights_only=True)
    state["fc2.weight"].zero_()  # nothing in the maps speaks for any class
    torch.save(state, tmp_path / "blank.pth")
    code, out, _ = go("--weights", tmp_path / "blank.pth", EXAMPLES)
    assert code == 0
    assert "note      no positive evidence (8)" in out
    assert {row["note"] for row in table_in(tmp_path / "out")} == {"no positive evidence"}


def test_weights_of_the_common_10_20_variant_run(go, tmp_path):
    torch.save({"state_dict": CourseCNN(10, 20).state_dict()}, tmp_path / "variant.pth")
    code, out, _ = go("--weights", tmp_path / "variant.pth", EXAMPLES)
    assert (code, out.splitlines()[0]) == (0, "network   CourseCNN (10 and 20 maps), variant.pth")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{}/nope.png"], "{}/nope.png can't be read ("),
        (["{}/empty"], "no pictures were given; give whole pictures"),
        (["{}/text.png"], "{}/text.png can't be read (cannot identify image file"),
        (["{}/numbers.json"], "{}/numbers.json can't be read (no picture of 28 x 28 numbers in"),
        (["--weights", "{}/nope.pth"], "weights {}/nope.pth: no such file; give"),
        (["--weights", "{}/text.png"], "weights {}/text.png: no state dict, or not whole; give"),
        (["--target", "10"], "argument --target: invalid choice: 10 (choose from 0, 1, 2"),
        (["--target", "dog"], "argument --target: invalid int value: 'dog'"),
        (["--pad", "-1"], "argument --pad: invalid choice: -1 (choose from 0, 1, 2"),
        (["--pad", "1.5"], "argument --pad: invalid int value: '1.5'"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["--pad"], "argument --pad: expected one argument"),
    ],
)
def test_every_mistake_gets_one_line_and_nothing_is_written(go, tmp_path, arguments, says):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "numbers.json").write_text(json.dumps([7] * 500_000))
    before, begun = sorted(tmp_path.rglob("*")), time.monotonic()
    code, out, err = go(*(word.format(tmp_path) for word in arguments))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("SID_a4.py: error: " + says.format(tmp_path))
    assert sorted(tmp_path.rglob("*")) == before
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("out", ["{}/text.png", "{}/text.png/deeper", "/proc/nowhere"])
def test_an_output_folder_that_cannot_be_written_is_one_line(tmp_path, capsys, out):
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(SystemExit) as end:
        main([str(EXAMPLES), "--out", out.format(tmp_path)])
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert out.format(tmp_path) in err


def test_a_full_disk_is_one_line_and_leaves_no_half_file(go, tmp_path, monkeypatch):
    def full(self, part, *arguments, **options):
        Path(part).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    code, _, err = go(EXAMPLES)
    assert (code, err) == (2, "SID_a4.py: error: [Errno 28] No space left on device\n")
    assert files_in(tmp_path) == []


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "folder" / "result.txt"
    with pytest.raises(KeyboardInterrupt), SID_a4.whole(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert files_in(tmp_path) == []
    with SID_a4.whole(path) as part:
        part.write_text("all")
        assert not path.exists()
    assert (path.read_text(), files_in(tmp_path)) == ("all", ["folder/result.txt"])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("moment", ["imports", "pictures"])
def test_ctrl_c_is_quiet_and_leaves_no_half_file(tmp_path, moment):
    (tmp_path / "many.json").write_text(json.dumps([[0] * 784] * 1000))
    how = ["-X", "importtime"] if moment == "imports" else []
    command = [sys.executable, *how, str(SCRIPT), str(tmp_path / "many.json")]
    process = subprocess.Popen([*command, "--out", str(tmp_path / "out")], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    if moment == "imports":  # wait until PyTorch is being imported
        while "torch." not in process.stderr.readline():
            pass
    else:
        while not (tmp_path / "out" / "gradcam" / "image_80.png").exists():
            assert process.poll() is None
            time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in err
    assert moment == "imports" or err == ""
    for name in files_in(tmp_path / "out"):
        if not name.endswith(".part"):
            Image.open(tmp_path / "out" / name).load()


def test_help_tells_every_option(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    words = " ".join(capsys.readouterr().out.split())
    for option in ("images", "--weights", "--target", "--pad", "--invert", "--out", "--quiet"):
        assert option in words


def test_importing_runs_nothing_and_loads_only_what_it_needs(tmp_path):
    code = (
        "import sys, SID_a4; print(SID_a4.main(sys.argv[1:]),"
        "{'torchvision', 'sympy', 'matplotlib.pyplot', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(EXAMPLES), "--quiet", "--out", str(tmp_path)],
        cwd=HERE, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("0 set()\n", "")


def test_within_inference_mode_it_explains_all_the_same(digits):
    net, x = load_network(), normalised([digits[5].image])
    expected = explain(net, x)
    with torch.inference_mode():
        found = explain(net, normalised([digits[5].image]))
    assert torch.equal(found.heatmap, expected.heatmap)
    assert torch.equal(found.R, expected.R)


@pytest.mark.parametrize("n", [1, 3, 8, 9, 16])
def test_the_figure_is_landscape_whatever_it_shows(column, n):
    pictures, explanation = column()
    many = explanation._replace(**{name: value.repeat_interleave(n, 0)
                                   for name, value in explanation._asdict().items()})
    width, height = draw_grid(pictures * n, many).get_size_inches()
    assert width >= 1.05 * height


def test_weights_for_other_classes_than_digits_are_refused(tmp_path):
    torch.save(CourseCNN(fc2=5).state_dict(), tmp_path / "five.pth")
    words = r"fc2.weight is \(5, 50\) in the file, \(10, 50\) in the network; give weights"
    with pytest.raises(SID_a4.InputError, match=words):
        load_network(tmp_path / "five.pth")


def test_the_end_of_a_long_name_stands_over_its_column(column):
    pictures, explanation = column()
    long = [pictures[0]._replace(name="Screenshot_2026-11-27-a")]
    assert "...-11-27-a" in texts(draw_grid(long, explanation))
    short = [pictures[0]._replace(name="image_1234")]
    assert "image_1234" in texts(draw_grid(short, explanation))
