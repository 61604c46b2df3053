"""The course network: any size its checkpoint says, no code, no surprises."""

import os
import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image

import SID_a4
from SID_a4 import Complaint, CourseCNN, load_network


@pytest.fixture
def saved(tmp_path):
    """Saves something and loads it as weights."""

    def load(content, **how):
        torch.save(content, path := tmp_path / "weights.pth", **how)
        return load_network(path)

    return load


def shapes(net, x):
    found = []
    for name in ("conv1", "conv2", "fc1", "fc2"):
        net.get_submodule(name).register_forward_hook(lambda m, a, y: found.append(tuple(y.shape)))
    net(x)
    return found


def test_shapes_of_the_course_network():
    expected = [(2, 10, 24, 24), (2, 10, 8, 8), (2, 50), (2, 10)]
    assert shapes(CourseCNN(), torch.rand(2, 1, 28, 28)) == expected


def test_the_forward_pass_is_the_courses(network):
    x = torch.randn(3, 1, 28, 28)
    w = network.net.state_dict()
    pool, conv = torch.nn.functional.max_pool2d, torch.nn.functional.conv2d
    y = pool(conv(x, w["conv1.weight"], w["conv1.bias"]), 2).clamp(min=0)
    y = pool(conv(y, w["conv2.weight"], w["conv2.bias"]), 2).clamp(min=0).flatten(1)
    y = (y @ w["fc1.weight"].T + w["fc1.bias"]).clamp(min=0) @ w["fc2.weight"].T + w["fc2.bias"]
    torch.testing.assert_close(network.net(x), y)


@pytest.mark.parametrize("sizes", [(10, 10, 50, 10), (10, 20, 50, 10), (3, 5, 7, 26)])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_sized_from_the_checkpoint_however_it_is_wrapped(saved, sizes, wrapper, prefix):
    net = CourseCNN(*sizes).eval()
    state = {prefix + key: value for key, value in net.state_dict().items()}
    loaded = saved({wrapper: state, "epoch": 3} if wrapper else state)
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(loaded.net(x), net(x))
    assert loaded.classes == tuple(map(str, range(sizes[3])))
    assert not loaded.net.training


def test_old_format_and_half_precision_load(saved):
    net = CourseCNN()
    loaded = saved(net.half().state_dict(), _use_new_zipfile_serialization=False)
    assert loaded.net.fc1.weight.dtype == torch.float32
    assert torch.equal(loaded.net.fc1.weight.half(), net.fc1.weight)


def test_input_is_normalised_as_in_training(network):
    pixels = np.arange(784, dtype=np.uint8).reshape(28, 28)
    x = network.tensor([Image.fromarray(pixels)] * 2)
    expected = (torch.from_numpy(pixels) / 255 - 0.1307) / 0.3081
    assert x.shape == (2, 1, 28, 28)
    torch.testing.assert_close(x[1, 0], expected)


def test_shipped_weights_are_small_and_know_their_digits(network, digits):
    assert (SID_a4.HERE / "mnist_model.pth").stat().st_size < 100_000
    logits = network.net(network.tensor([digit.image for digit in digits]))
    assert [str(c) for c in logits.argmax(1).tolist()] == [digit.label for digit in digits]


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_code_in_a_checkpoint_is_refused_by_name_and_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = re.escape(f"{os.mkdir.__module__}.mkdir")
    for save in (
        lambda file: torch.save({"fc1.weight": Hostile()}, file),
        lambda file: torch.save(Hostile(), file, _use_new_zipfile_serialization=False),
        *(lambda file, p=p: file.write_bytes(pickle.dumps([Hostile()], p)) for p in range(6)),
    ):
        save(file := tmp_path / "hostile.pth")
        with pytest.raises(Complaint, match=rf"hostile.pth: the file would run code \({name}\)"):
            load_network(file)
        assert not (tmp_path / "executed").exists()


def test_a_whole_pickled_network_is_refused_with_the_cure(saved):
    with pytest.raises(Complaint, match=r"CourseCNN\): refused; give .*torch.save\(net.state_dict"):
        saved(CourseCNN())


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
        (lambda s: s | {"fc2.bias": torch.full((10,), torch.nan)}, "fc2.bias holds NaN"),
        (lambda s: s | {"fc2.bias": torch.full((10,), torch.inf)}, "fc2.bias holds NaN or inf"),
        (lambda s: {"epoch": 3}, "holds no state dict"),
        (lambda s: {}, "holds no state dict"),
        (lambda s: torch.zeros(3), "holds no state dict"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_named(saved, change, words):
    with pytest.raises(Complaint) as complaint:
        saved(change(CourseCNN().state_dict()))
    assert words in str(complaint.value)
    assert "; give " in str(complaint.value) or "; train" in str(complaint.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "truncated or no checkpoint"), (b"hello", "truncated or no checkpoint"),
     (None, "No such file"), ("half", "truncated or no checkpoint"), ("folder", "Is a directory")],
)  # fmt: skip
def test_files_that_are_no_weights(tmp_path, content, words):
    path = tmp_path / "weights.pth"
    if content == "half":
        whole = (SID_a4.HERE / "mnist_model.pth").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(Complaint, match=words):
        load_network(path)
