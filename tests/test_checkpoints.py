"""A checkpoint is read without running its code, and its weights must be the network's."""

import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from course import WEIGHTS, course_network
from torch import nn

from seenby import InputError, load_network
from seenby.inputs.checkpoints import read_checkpoint

OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 5)
        self.fc = nn.Linear(4, num_classes)
    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))
"""


class Net(nn.Module):
    """The same, to make checkpoints of."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 5), nn.Linear(4, num_classes)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


@pytest.fixture
def own(tmp_path):
    """Saves something and loads it as the weights of a network of one's own."""

    def load(content, **how):
        torch.save(content, path := tmp_path / "weights.pth", **how)
        (tmp_path / "own.py").write_text(OWN)
        return load_network(f"{tmp_path / 'own.py'}:Net", str(path), size=(28, 28))

    return load


@pytest.fixture
def saved(tmp_path):
    """Saves something and loads it as the course network's weights."""

    def load(content):
        torch.save(content, path := tmp_path / "weights.pth")
        return course_network(str(path))

    return load


@pytest.mark.parametrize("classes", [10, 3, 26])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_as_many_classes_as_the_checkpoint_has_however_it_is_wrapped(own, classes, wrapper, prefix):
    net = Net(classes).eval()
    state = {prefix + key: value for key, value in net.state_dict().items()}
    loaded = own({wrapper: state, "epoch": 3} if wrapper else state)
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(loaded.module(x), net(x))
    assert loaded.classes == tuple(map(str, range(classes)))
    assert not loaded.module.training


def test_old_format_and_half_precision_load(own):
    net = Net()
    loaded = own(net.half().state_dict(), _use_new_zipfile_serialization=False)
    assert loaded.module.fc.weight.dtype == torch.float32
    assert torch.equal(loaded.module.fc.weight.half(), net.fc.weight)


def test_what_old_files_lack_and_side_heads_are_no_differences(tmp_path):
    """num_batches_tracked came with PyTorch 0.4; side heads only train."""
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))\n"
    )
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))  # fmt: skip
    state = net.state_dict()
    del state["1.num_batches_tracked"]
    state["AuxLogits.fc.weight"] = torch.zeros(7)
    torch.save(state, path := tmp_path / "old.pth")
    loaded = load_network(f"{tmp_path / 'own.py'}:net", str(path), size=(28, 28))
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(loaded.module(x), net.eval()(x))


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
        with pytest.raises(InputError, match=rf"hostile.pth: the file would run code \({name}\)"):
            course_network(str(file))
        assert not (tmp_path / "executed").exists()
    pickle.loads(file.read_bytes())  # the same file, read by somebody trusting
    assert (tmp_path / "executed").exists()


def test_a_whole_pickled_network_is_refused_with_the_cure(own):
    words = r"Net\): refused; give .*torch.save\(net.state_dict"
    with pytest.raises(InputError, match=words):
        own(Net())


def renamed(state):
    return {key.replace("conv1", "features.0"): value for key, value in state.items()}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_a_word_before_every_key_is_left_away(saved, prefix):
    state = torch.load(WEIGHTS, weights_only=True)
    found = saved({prefix + key: value for key, value in state.items()}).module.state_dict()
    assert all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (renamed, "conv1.weight is missing in the file, (10, 1, 5, 5) in the network"),
        (lambda s: s | {"conv1.weight": torch.zeros(64, 3, 7, 7)},
         "conv1.weight is (64, 3, 7, 7) in the file, (10, 1, 5, 5) in the network"),
        (lambda s: s | {"fc1.weight": torch.zeros(50, 9216)},
         "fc1.weight is (50, 9216) in the file, (50, 160) in the network"),
        (lambda s: s | {"fc3.bias": torch.zeros(2)},
         "fc3.bias is (2,) in the file, missing in the network"),
        (lambda s: s | {"fc2.bias": torch.tensor(0.0)}, "fc2.bias is () in the file, (10,)"),
        (lambda s: s | {"fc2.bias": torch.zeros(7)},  # a network that takes no num_classes
         "fc2.bias is (7,) in the file, (10,) in the network"),
        (lambda s: s | {"fc2.bias": torch.full((10,), torch.nan)}, "fc2.bias holds NaN"),
        (lambda s: s | {"fc2.bias": torch.full((10,), torch.inf)}, "fc2.bias holds NaN or inf"),
        (lambda s: s | {"fc2.bias": torch.zeros(10, dtype=torch.complex64)},
         "fc2.bias is no plain tensor of real numbers"),
        (lambda s: s | {"fc2.bias": torch.zeros(10).to_sparse()},
         "fc2.bias is no plain tensor of real numbers"),
        (lambda s: {"epoch": 3, "nets": s}, "holds no state dict, but epoch, nets; give "),
        (lambda s: {}, "holds no state dict"),
        (lambda s: torch.zeros(3), "holds no state dict"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_named(saved, change, words):
    with pytest.raises(InputError) as error:
        saved(change(torch.load(WEIGHTS, weights_only=True)))
    assert words in str(error.value)
    assert "; give " in str(error.value) or "; train" in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "truncated or no checkpoint"), (b"hello", "truncated or no checkpoint"),
     (None, "No such file"), ("half", "truncated or no checkpoint"), ("folder", "Is a directory")],
)  # fmt: skip
def test_files_that_are_no_weights(tmp_path, content, words):
    path = tmp_path / "weights.pth"
    if content == "half":
        whole = Path(WEIGHTS).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        course_network(str(path))


def test_a_checkpoint_comes_as_it_was_saved():
    state = read_checkpoint(Path(WEIGHTS))
    expected = torch.load(WEIGHTS, weights_only=True)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in state)
