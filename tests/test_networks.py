"""A network by its name, or one's own from a file, and how it is fed."""

import re

import numpy as np
import pytest
import torch
from course import MODEL, course_network
from PIL import Image

from seenby import InputError, Preprocessing, load_network, read_pictures
from seenby.machine import import_torchvision
from seenby.pipeline import table_of_layers

models = import_torchvision().models


def test_the_callers_random_numbers_go_on_as_they_would():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = course_network("none")
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(8)  # random weights are the same in every process nevertheless
    again = course_network("none")
    assert torch.equal(again.module.conv1.weight, first.module.conv1.weight)


def test_the_course_network_is_a_network_of_ones_own(network, digits):
    assert network.title == "CourseCNN of SID_a4.py, mnist_model.pth"
    assert network.preprocessing == Preprocessing((28, 28), (28, 28), (0.1307,), (0.3081,))
    assert (network.layer, network.classes) == ("conv2", tuple("0123456789"))
    assert not network.module.training
    logits = network.module(network.tensor([digit.image for digit in digits]))
    assert [str(c) for c in logits.argmax(1).tolist()] == [digit.label for digit in digits]


def test_input_is_normalised_as_in_training(network):
    pixels = np.arange(784, dtype=np.uint8).reshape(28, 28)
    x = network.tensor([Image.fromarray(pixels)] * 2)
    expected = (torch.from_numpy(pixels) / 255 - 0.1307) / 0.3081
    assert x.shape == (2, 1, 28, 28)
    torch.testing.assert_close(x[1, 0], expected)


# --------------------------------------------------------------------------------- torchvision's


def test_torchvision_networks_are_fed_as_their_weights_say(tmp_path):
    net = models.get_model("efficientnet_b0", weights=None)
    torch.save(net.state_dict(), path := tmp_path / "mine.pth")
    network = load_network("efficientnet_b0", str(path))
    preprocessing = network.preprocessing
    assert (preprocessing.crop_size, preprocessing.resize_size) == ((224, 224), (256, 256))
    assert preprocessing.interpolation == Image.Resampling.BICUBIC
    assert network.classes[:2] == ("tench", "goldfish")
    assert network.layer == "features"
    assert "mine.pth" in network.title
    for key, value in network.module.state_dict().items():
        assert torch.equal(value, net.state_dict()[key])


@pytest.fixture(scope="module")
def random_networks():
    return {name: load_network(name, "none")
            for name in ("squeezenet1_0", "inception_v3", "resnet18")}  # fmt: skip


@pytest.mark.parametrize("name", ["squeezenet1_0", "inception_v3", "resnet18"])
@pytest.mark.parametrize("shape", [(224, 224), (400, 300), (301, 500), (200, 100)])
def test_pictures_are_prepared_exactly_as_torchvision_does_it(
    random_networks, name, shape, tmp_path
):
    network = random_networks[name]
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path := tmp_path / "picture.png")
    (picture,) = read_pictures([path], network.preprocessing, network.classes)
    transform = models.get_model_weights(name).DEFAULT.transforms()
    expected = transform(Image.fromarray(pixels))[None]
    torch.testing.assert_close(network.tensor([picture.image]), expected, rtol=1e-5, atol=1e-6)


def test_weights_with_other_classes_and_side_heads(tmp_path):
    torch.save(models.resnet18(num_classes=6).state_dict(), path := tmp_path / "neu.pth")
    assert load_network("resnet18", str(path)).classes == tuple("012345")
    names = ("crazing", "inclusion", "patches", "pitted", "rolled", "scratches")
    assert load_network("resnet18", str(path), class_names=names).classes == names
    with pytest.raises(InputError, match="2 class names were given; the network has 6"):
        load_network("resnet18", str(path), class_names=["a", "b"])
    net = models.googlenet(weights=None, init_weights=False)  # with its two side heads
    torch.save(net.state_dict(), path := tmp_path / "googlenet.pth")
    network = load_network("googlenet", str(path))
    assert network.module.transform_input  # as the pretrained one was trained
    assert torch.equal(network.module.fc.weight, net.fc.weight)
    words = r"features.0.weight is missing in the file, \(64, 3, 11, 11\)"
    with pytest.raises(InputError, match=words):
        load_network("alexnet", str(path))


def test_pretrained_weights_that_cannot_be_had_name_the_file_and_its_place(monkeypatch):
    def offline(*arguments, **options):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/hub")
    words = (r"could not be downloaded \(Name or service not known\); fetch "
             r"https://\S+/alexnet-owt-7be5be79.pth to /hub/checkpoints/alexnet-owt-")
    with pytest.raises(InputError, match=words):
        load_network("alexnet")


def test_pretrained_weights_are_read_from_where_they_lie(monkeypatch, tmp_path):
    net = models.squeezenet1_1()
    best = models.SqueezeNet1_1_Weights.DEFAULT
    (tmp_path / "checkpoints").mkdir()
    torch.save(net.state_dict(), tmp_path / "checkpoints" / best.url.rpartition("/")[2])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    network = load_network("squeezenet1_1")
    assert torch.equal(network.module.features[0].weight, net.features[0].weight)
    assert "pretrained" in network.title


def test_an_unknown_model_names_the_nearest():
    words = "model resnet81 is not known; give resnet18, .* or any classifier of torchvision, timm"
    with pytest.raises(InputError, match=words):
        load_network("resnet81")


# --------------------------------------------------------------------------------------- timm's


def test_timm_networks_are_fed_as_timm_says():
    pytest.importorskip("timm")
    network = load_network("timm:legacy_xception", "none")
    preprocessing = network.preprocessing
    assert (preprocessing.crop_size, preprocessing.resize_size) == ((299, 299), (333, 333))
    assert (preprocessing.mean, preprocessing.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert network.layer == "conv4"
    assert network.classes[340] == "zebra"
    with pytest.raises(InputError, match=r"timm has no model resnet81; give resnet"):
        load_network("timm:resnet81")


def test_timms_weights_that_cannot_be_had_name_the_file(monkeypatch):
    timm = pytest.importorskip("timm")

    def offline(name, **options):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    words = (r"could not be downloaded \(no network\); fetch https://\S+/xception-43020ad28.pth "
             "and name a file with --weights")
    with pytest.raises(InputError, match=words):
        load_network("timm:legacy_xception")


def test_without_timm_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    words = r"timm:resnet18 needs timm .*; install it with: pip install timm"
    with pytest.raises(InputError, match=words):
        load_network("timm:resnet18")


# --------------------------------------------------------------------------------- of one's own

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
    preprocessing = network.preprocessing
    assert (preprocessing.crop_size, preprocessing.resize_size) == ((32, 48), (32, 48))
    assert preprocessing.mean == (0.485, 0.456, 0.406)
    assert network.classes == tuple("012")
    assert network.module.fc.bias.tolist() == [0.25] * 3
    state = {"fc.weight": torch.ones(5, 4), "fc.bias": torch.arange(5.0)}
    state |= {"conv.weight": torch.ones(4, 3, 3, 3), "conv.bias": torch.zeros(4)}
    torch.save({"state_dict": state, "best": 1}, path := tmp_path / "w.pth")
    assert load_network(own + "Net", str(path)).module.fc.bias.tolist() == [0, 1, 2, 3, 4]
    grey = load_network(own + "grey", size=(16, 16), mean=(0.5,), std=(0.25,))
    assert grey.preprocessing.mean == (0.5,)
    assert grey.module(torch.zeros(1, 1, 16, 16)).shape == (1, 4)
    feed = load_network(own + "grey", size=(16, 16)).preprocessing  # ImageNet's, in grey
    assert feed.mean == pytest.approx((sum((0.485, 0.456, 0.406)) / 3,))
    assert feed.std == pytest.approx((sum((0.229, 0.224, 0.225)) / 3,))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Mising", r"own.py has no Mising; give "),
        ("number", "own.py:number made no network but int; return the network"),
        ("leaves", r"own.py:leaves raised SystemExit \(7\)"),
        ("Forgets", r"Forgets of own.py raised TypeError \(no such thing\) in own.py, line \d+"),
        ("fails", r"own.py:fails raised RuntimeError \(in your own code\)"),
        ("fixed",
         r"fixed of own.py can't take pictures of 3 x 224 x 224 \(.*give --s"),
    ],
)  # fmt: skip
def test_a_network_of_ones_own_that_fails(own, name, words):
    with pytest.raises(InputError, match=words):
        load_network(own + name)
    with pytest.raises(InputError, match=r"nowhere.py:Net raised FileNotFoundError"):
        load_network("nowhere.py:Net")
    with pytest.raises(InputError, match=r"pretrained was given, but .* brings none"):
        load_network(own + "Net", "pretrained")


def test_where_ones_own_network_fails_is_told(own, tmp_path):
    (folder := tmp_path / "seenby").mkdir()  # as a checkout may be called
    (folder / "bug.py").write_text(
        "import torch\n"
        "class Bug(torch.nn.Conv2d):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x) + missing\n"
        "def bug():\n"
        "    return Bug(3, 4, 3)\n"
        "def typo():\n"
        "    return torch.nn.Conv3(3, 4, 3)\n"
    )
    with pytest.raises(InputError) as error:
        load_network(f"{folder / 'bug.py'}:bug")
    assert str(error.value).startswith("bug of bug.py raised NameError (name 'missing' is not "
                                       "defined) in bug.py, line 4; mend that, or give --size")
    with pytest.raises(InputError, match=r"typo raised AttributeError \(.*\) in bug.py, line 8; "):
        load_network(f"{folder / 'bug.py'}:typo")


def test_a_network_that_is_made_already(own, tmp_path):
    (tmp_path / "own.py").write_text(f"{OWN}\nready = Net()\n")
    assert load_network(own + "ready").title.startswith("ready of own.py, ")
    state = load_network(own + "Net").module.state_dict()
    torch.save({key: value * 2 for key, value in state.items()}, path := tmp_path / "w.pth")
    assert load_network(own + "ready", str(path)).module.fc.bias.tolist() == [0.5] * 3


def test_numbers_that_do_not_fit_the_pixels_are_told(own):
    with pytest.raises(InputError, match="numbers from 0 to 1: divide it, and --std, by 255"):
        load_network(own + "Net", mean=(123.0, 116.0, 103.0), std=(58.0, 57.0, 57.0))
    with pytest.raises(InputError, match=r"a number for each channel \(one alone is for grey"):
        load_network(own + "Net", mean=(0.5,), std=(0.25,))


def test_what_is_no_name_is_refused():
    with pytest.raises(InputError, match=r"a Linear was given; give a name, or FILE\.py:NAME: a "):
        load_network(torch.nn.Linear(2, 3))


def test_half_precision_and_layers_without_a_tensor(own):
    assert load_network(own + "Half").module.fc.weight.dtype == torch.float32
    table = table_of_layers(load_network(own + "Pools", size=(16, 16)))
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
    with pytest.raises(InputError, match=words):
        load_network(own + "Net", **feed)
    with pytest.raises(InputError, match="the class name a appears twice"):
        load_network(own + "Net", class_names=("a", "b", "a"))


def test_a_layer_of_ones_choice(own):
    assert load_network(MODEL, layer="conv1", size=(28, 28)).layer == "conv1"
    words = re.escape("the network has no layer conv3; the nearest names are conv")
    with pytest.raises(InputError, match=words):
        load_network(MODEL, layer="conv3", size=(28, 28))


def test_a_network_of_timm_without_weights_is_told():
    timm = pytest.importorskip("timm")
    sources = ((name, timm.get_pretrained_cfg(name)) for name in timm.list_models())
    name = next(name for name, source in sources if not (source.url or source.hf_hub_id))
    with pytest.raises(InputError, match=f"timm has no weights for {name}; give --weights FILE"):
        load_network(f"timm:{name}")


def test_a_file_that_defines_nothing(tmp_path):
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(InputError, match=r"has no Net; give a file that defines one$"):
        load_network(f"{tmp_path / 'empty.py'}:Net")
