"""Which layer is explained, by what name, and what each layer gives."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from oracles import DigitCNN, assert_same, untrained
from torch import nn

from seenby import InputError, explain
from seenby.core.layers import LayerRow, find_layer, layer_name, list_layers


class Block(nn.Module):
    def __init__(self, K, out, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(K, out, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)

    def forward(self, x):
        return F.relu(self.conv2(F.relu(self.conv1(x))))


class Squeeze(nn.Module):
    def __init__(self, K):
        super().__init__()
        self.fc = nn.Conv2d(K, K, 1)

    def forward(self, x):
        return x * self.fc(x.mean((2, 3), keepdim=True)).sigmoid()


class Listed(nn.Module):
    """Blocks in a ModuleList, which is never called itself."""

    def __init__(self):
        super().__init__()
        self.body = nn.Module()
        self.blocks = nn.ModuleList([Block(1, 2, 2), Block(2, 2)])
        self.fc = nn.Linear(2, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((2, 3)))


def head():
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]


@pytest.mark.parametrize(
    ("layer", "net"),
    [
        ("conv2", DigitCNN()),
        ("1", nn.Sequential(Block(1, 2, 2), nn.Sequential(Block(2, 4, 2), Block(4, 4)), *head())),
        ("0.2", nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 4, 3),
                                            nn.ReLU(), nn.MaxPool2d(2)), *head())),
        ("0", nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), *head())),
        ("0.0", nn.Sequential(nn.Sequential(Block(1, 4), nn.MaxPool2d(2), Squeeze(4)), *head())),
        ("0", nn.Sequential(nn.Sequential(Block(1, 4), Squeeze(4)), *head())),
        ("blocks.1", Listed()),
    ],
)  # fmt: skip
def test_the_default_layer_is_the_last_block_at_its_resolution(layer, net):
    assert find_layer(net, torch.rand(1, 1, 28, 28)) == layer


KNOWN = [
    ("alexnet", 224, "features.10", 16, 0.5),
    ("vgg16", 224, "features.28", 16, 0),
    ("resnet18", 224, "layer4", 32, 0),
    ("resnet50", 224, "layer4", 32, 0),
    ("mobilenet_v2", 224, "features", 32, 0),
    ("googlenet", 224, "inception5b", 32, 0),
    ("densenet121", 224, "features", 32, 0),
    ("squeezenet1_0", 224, "classifier.1", 16, 0.5),
    ("inception_v3", 299, "Mixed_7c", 32, 0.671875),
    ("shufflenet_v2_x1_0", 224, "conv5", 32, 0),
    ("convnext_tiny", 224, "features", None, None),
]


@pytest.mark.parametrize(("name", "S", "layer", "stride", "pad"), KNOWN)
def test_layer_stride_and_pad_of_torchvisions_networks(name, S, layer, stride, pad):
    explanation = explain(untrained(name), torch.rand(1, 3, S, S), guided=False)
    assert explanation.layer == layer
    assert explanation.stride == (stride and (stride, stride))
    assert explanation.pad == (None if pad is None else (pad, pad))


def test_layer_stride_and_pad_of_timms_xception():
    timm = pytest.importorskip("timm")
    net, x = timm.create_model("legacy_xception"), torch.rand(1, 3, 299, 299)
    explanation = explain(net, x, guided=False)
    assert (explanation.layer, explanation.stride) == ("conv4", (32, 32))
    assert explanation.pad == (-0.328125, -0.328125)


def test_without_a_convolution_there_is_no_layer():
    with pytest.raises(InputError, match="no two-dimensional convolution; Grad-CAM needs one"):
        find_layer(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), torch.rand(1, 1, 4, 4))


class Viewing(nn.Module):
    """As many tutorials write it; of maps that lie channels-last PyTorch makes no such view."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.fc = nn.Linear(4 * 25, 3)

    def forward(self, x):
        return self.fc(F.relu(self.conv2(F.relu(self.conv1(x)))).view(len(x), -1))


@pytest.mark.parametrize("B", [1, 2])
def test_the_layer_is_found_for_pictures_that_lie_channels_last(B):
    net, x = Viewing(), torch.rand(B, 3, 9, 9)
    turned = x.contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        net(turned)
    explanation = explain(net, turned)
    assert explanation.layer == "conv2"
    assert_same(explanation, explain(net, x))


# ----------------------------------------------------------------------------- its name


@pytest.mark.parametrize("name", ["0.conv1", "0.conv2"])
def test_a_layer_may_be_given_as_the_module_itself(name):
    net, x = nn.Sequential(DigitCNN()), torch.rand(2, 1, 28, 28)
    explanation = explain(net, x, layer=net.get_submodule(name))
    assert explanation.layer == name
    assert_same(explanation, explain(net, x, layer=name))
    assert explanation.L_c.any()


def test_a_module_that_is_not_the_networks_own_is_refused():
    net, x = DigitCNN(), torch.rand(1, 1, 28, 28)
    words = r"the layer Conv2d\(...\) was given, which is no module of the network; give one of its"
    for alien in (nn.Conv2d(1, 10, 5), copy.deepcopy(net.conv2)):
        with pytest.raises(InputError, match=words):
            explain(net, x, layer=alien)


def test_a_module_of_two_names_has_both():
    net, x = DigitCNN(), torch.rand(1, 1, 28, 28)
    net.again = net.conv2
    explanation = explain(net, x, layer="again")
    assert (explanation.layer, layer_name(net, net.again)) == ("again", "conv2")
    assert_same(replace(explanation, layer="conv2"), explain(net, x, layer="conv2"))


def test_a_wrong_layer_names_the_nearest():
    with pytest.raises(InputError, match="no layer conv9; the nearest names are conv2, conv1, fc2"):
        explain(DigitCNN(), torch.rand(1, 1, 28, 28), layer="conv9")


# ------------------------------------------------------------------------------- all of them


class Twice(nn.Module):
    """Its one convolution runs twice; what it hands on last is no tensor."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(2, 2, 3), nn.MaxPool2d(2, return_indices=True)
        self.fc = nn.Linear(2, 3)

    def forward(self, x):
        x, _ = self.pool(self.conv(self.conv(x)))
        return self.fc(x.mean((2, 3)))


def test_layers_are_listed_as_they_run():
    rows = list_layers(Twice(), torch.rand(1, 2, 12, 14))
    assert rows == [
        LayerRow("conv", "Conv2d", (1, 2, 10, 12), 38, (1, 1)),
        LayerRow("conv", "Conv2d", (1, 2, 8, 10), 0, (1, 1)),  # its parameters were counted above
        LayerRow("fc", "Linear", (1, 3), 9, None),
    ]
    strides = {row.name: row.stride for row in list_layers(Listed(), torch.rand(1, 1, 28, 28))}
    assert strides == {"blocks.0.conv1": (2, 2), "blocks.0.conv2": (2, 2),
                       "blocks.1.conv1": (2, 2), "blocks.1.conv2": (2, 2), "fc": None}
