"""The network's layers: by what name they are found, and what each of them gives."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from oracles import DigitCNN, Listed, assert_same
from torch import nn

from seenby import InputError, explain
from seenby.core.layers import LayerRow, layer_name, list_layers


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
