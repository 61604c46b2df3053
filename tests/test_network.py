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
        return load_network(weights=str(path))

    return load


def shapes(net, x):
    found = []
    for name in ("conv1", "conv2", "fc1", "fc2"):
        net.get_submodule(name).register_forward_hook(lambda m, a, y: found.append(tuple(y.shape)))
    net(x)
    return found


def test_the_callers_random_numbers_go_on_as_they_would():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load_network(weights="none")
    assert torch.equal(torch.rand(3), expected)


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
            load_network(weights=str(file))
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
        load_network(weights=str(path))


# --------------------------------------------------------------------------- other networks

models = SID_a4.import_torchvision().models


def test_torchvision_networks_are_fed_as_their_weights_say(tmp_path):
    net = models.get_model("efficientnet_b0", weights=None)
    torch.save(net.state_dict(), path := tmp_path / "mine.pth")
    network = load_network("efficientnet_b0", str(path))
    assert (network.size, network.cover) == ((224, 224), (256, 256))
    assert network.resample == Image.Resampling.BICUBIC
    assert network.classes[:2] == ("tench", "goldfish")
    assert network.layer == "features"
    assert "mine.pth" in network.title
    for key, value in network.net.state_dict().items():
        assert torch.equal(value, net.state_dict()[key])


@pytest.mark.parametrize("name", ["squeezenet1_0", "inception_v3", "resnet18"])
@pytest.mark.parametrize("shape", [(224, 224), (400, 300), (301, 500), (200, 100)])
def test_pictures_are_prepared_exactly_as_torchvision_does_it(name, shape, tmp_path):
    network = load_network(name, "none")
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path := tmp_path / "picture.png")
    (picture,) = SID_a4.read_pictures([path], network)
    transform = models.get_model_weights(name).DEFAULT.transforms()
    expected = transform(Image.fromarray(pixels))[None]
    torch.testing.assert_close(network.tensor([picture.image]), expected, rtol=1e-5, atol=1e-6)


def test_weights_with_other_classes_and_side_heads(tmp_path):
    torch.save(models.resnet18(num_classes=6).state_dict(), path := tmp_path / "neu.pth")
    assert load_network("resnet18", str(path)).classes == tuple("012345")
    names = ("crazing", "inclusion", "patches", "pitted", "rolled", "scratches")
    assert load_network("resnet18", str(path), classes=names).classes == names
    with pytest.raises(Complaint, match="2 class names were given; the network has 6"):
        load_network("resnet18", str(path), classes=["a", "b"])
    net = models.googlenet(weights=None, init_weights=False)  # with its two side heads
    torch.save(net.state_dict(), path := tmp_path / "googlenet.pth")
    network = load_network("googlenet", str(path))
    assert network.net.transform_input  # as the pretrained one was trained
    assert torch.equal(network.net.fc.weight, net.fc.weight)
    with pytest.raises(
        Complaint, match=r"features.0.weight is missing in the file, \(64, 3, 11, 11\)"
    ):
        load_network("alexnet", str(path))


def test_pretrained_weights_that_cannot_be_had_name_the_file_and_its_place(monkeypatch):
    def offline(*arguments, **options):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/hub")
    with pytest.raises(
        Complaint,
        match=r"not be had \(Name or service not known\); fetch "
        r"https://\S+/alexnet-owt-7be5be79.pth to /hub/checkpoints/alexnet-owt-",
    ):
        load_network("alexnet")  # fmt: skip


def test_pretrained_weights_are_read_from_where_they_lie(monkeypatch, tmp_path):
    net = models.squeezenet1_1()
    best = models.SqueezeNet1_1_Weights.DEFAULT
    (tmp_path / "checkpoints").mkdir()
    torch.save(net.state_dict(), tmp_path / "checkpoints" / best.url.rpartition("/")[2])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    network = load_network("squeezenet1_1")
    assert torch.equal(network.net.features[0].weight, net.features[0].weight)
    assert "pretrained" in network.title


def test_timm_networks_are_fed_as_timm_says():
    pytest.importorskip("timm")
    network = load_network("timm:legacy_xception", "none")
    assert (network.size, network.cover, network.layer) == ((299, 299), (333, 333), "conv4")
    assert (network.mean, network.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert network.classes[340] == "zebra"
    with pytest.raises(Complaint, match=r"timm has no model resnet81; give resnet"):
        load_network("timm:resnet81")


def test_timms_weights_that_cannot_be_had_name_the_file(monkeypatch):
    timm = pytest.importorskip("timm")

    def offline(name, **options):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    words = (
        r"\(no network\); fetch https://\S+/xception-43020ad28.pth and name a file with --weights"
    )
    with pytest.raises(Complaint, match=words):
        load_network("timm:legacy_xception")


def test_without_timm_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(
        Complaint, match=r"timm:resnet18 needs timm .*; install it with: pip install timm"
    ):
        load_network("timm:resnet18")


OWN = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import nn
from helper import BIAS

@dataclass
class Config:
    width: int = 4

class Net(nn.Module):
    def __init__(self, num_classes: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(3, Config().width, 3)
        self.fc = nn.Linear(Config().width, num_classes)
        nn.init.constant_(self.fc.bias, BIAS)
    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))

def grey():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.LazyLinear(4))

def fixed():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 30 * 30, 4))

def number():
    return 7

def fails():
    raise RuntimeError("in your own code")

def leaves():
    raise SystemExit(7)

class Forgets(Net):
    def forward(self, x):
        raise TypeError("no such thing")

class Half(Net):
    def __init__(self):
        super().__init__()
        self.half()

class Pools(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 3), nn.MaxPool2d(2, return_indices=True)
        self.scale = nn.Parameter(torch.ones(8))
        self.fc = nn.Linear(4, 3)
    def forward(self, x):
        return self.fc(self.pool(self.conv(x))[0].mean((2, 3)))
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "helper.py").write_text("BIAS = 0.25")
    return f"{tmp_path / 'own.py'}:"


def test_a_network_of_ones_own(own, tmp_path):
    network = load_network(own + "Net", size=(32, 48))
    assert (network.size, network.cover, network.classes) == ((32, 48), (32, 48), tuple("012"))
    assert network.mean == (0.485, 0.456, 0.406)
    assert network.net.fc.bias.tolist() == [0.25] * 3
    state = {"fc.weight": torch.ones(5, 4), "fc.bias": torch.arange(5.0)}
    state |= {"conv.weight": torch.ones(4, 3, 3, 3), "conv.bias": torch.zeros(4)}
    torch.save({"state_dict": state, "best": 1}, path := tmp_path / "w.pth")
    assert load_network(own + "Net", str(path)).net.fc.bias.tolist() == [0, 1, 2, 3, 4]
    grey = load_network(own + "grey", size=(16, 16), mean=(0.5,), std=(0.25,))
    assert (grey.mean, grey.net(torch.zeros(1, 1, 16, 16)).shape) == ((0.5,), (1, 4))
    assert len(load_network(own + "grey", size=(16, 16)).mean) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Missing", r"own.py:Missing raised KeyError \('Missing'\); give a file and the class"),
        ("number", "own.py:number made a int; it must return the network"),
        ("leaves", r"own.py:leaves raised SystemExit \(7\)"),
        ("Forgets", r"Forgets of own.py, as it comes can't take pictures .*no such thing"),
        ("fails", r"own.py:fails raised RuntimeError \(in your own code\)"),
        (
            "fixed",
            r"fixed of own.py, as it comes can't take pictures of 3 x 224 x 224 \(.*give --s",
        ),
    ],
)
def test_a_network_of_ones_own_that_fails(own, name, words):
    with pytest.raises(Complaint, match=words):
        load_network(own + name)
    with pytest.raises(Complaint, match=r"nowhere.py:Net raised FileNotFoundError"):
        load_network("nowhere.py:Net")


def test_half_precision_and_layers_without_a_tensor(own):
    assert load_network(own + "Half").net.fc.weight.dtype == torch.float32
    table = SID_a4.layer_table(load_network(own + "Pools", size=(16, 16)))
    assert "(in no layer of its own)" in table
    assert "parameters: 135 total" in table


@pytest.mark.parametrize(
    ("feed", "words"),
    [
        ({"mean": (0.5,)}, r"--mean \(0.5,\) and --std \(0.229.* give as many numbers to both"),
        ({"std": (0.5, 0.5, 0.0)}, "a std above 0"),
    ],
)
def test_a_feed_that_cannot_be_is_refused(own, feed, words):
    with pytest.raises(Complaint, match=words):
        load_network(own + "Net", **feed)
    with pytest.raises(Complaint, match="the class name a stands twice"):
        load_network(own + "Net", classes=("a", "b", "a"))


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(Complaint, match="model resnet81 is not known; give course, resnet18"):
        load_network("resnet81")


def test_the_layer_table_has_the_labs_figures():
    lines = SID_a4.layer_table(load_network("alexnet", "none")).splitlines()
    assert lines[1].split() == ["features.0", "(Conv2d)", "(1,", "64,", "55,", "55)", "23,296",
                                "23,296", "4", "0.5"]  # fmt: skip
    assert lines[21].split()[-2:] == ["4,097,000", "61,100,840"]
    assert lines[-2] == "parameters: 61,100,840 total, 61,100,840 trainable, 0 non-trainable"
    assert lines[-1].startswith("MB: input 0.57, forward and backward 8.38, parameters 233.08, ")
    vgg = SID_a4.layer_table(load_network("vgg16", "none"))
    assert "parameters: 138,357,544 total" in vgg
    assert "MB: input 0.57, forward and backward 218.78, parameters 527.79" in vgg
    course = load_network()
    course.net.conv1.weight.requires_grad_(False)
    assert "250 non-trainable" in SID_a4.layer_table(course)
    assert "conv2 (Conv2d)  (1, 10, 8, 8)         2,510       2,770       2    3" in (
        SID_a4.layer_table(course)
    )
