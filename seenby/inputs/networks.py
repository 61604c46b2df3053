"""A network by name or your own, and how it is fed."""

from __future__ import annotations

import importlib
import math
import runpy
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from seenby.core.explanation import explain
from seenby.errors import Complaint, complaining, nearest, reason
from seenby.inputs.checkpoints import check_fit, read_checkpoint, weights_title
from seenby.machine import import_torchvision

HERE = Path(__file__).resolve().parent.parent.parent


class CourseCNN(nn.Module):
    """(B, 1, 28, 28) -> (B, 10) logits; conv2 is the layer that Grad-CAM explains."""

    MEAN, STD = 0.1307, 0.3081  # of the MNIST training pixels: the input is (pixel - MEAN) / STD

    def __init__(self, conv1: int = 10, conv2: int = 10, fc1: int = 50, fc2: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, conv1, kernel_size=5)
        self.conv2 = nn.Conv2d(conv1, conv2, kernel_size=5)
        self.fc1 = nn.Linear(conv2 * 4 * 4, fc1)
        self.fc2 = nn.Linear(fc1, fc2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  # (B, 1, 28, 28) -> (B, 10, 12, 12)
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # (B, 10, 8, 8) maps -> (B, 10, 4, 4)
        x = F.relu(self.fc1(x.flatten(1)))  # (B, 160) -> (B, 50)
        y: Tensor = self.fc2(x)  # (B, 10) logits: y_c is taken before any softmax
        return y


NO_DOWNLOAD = "the pretrained weights could not be had"
NAME_A_FILE = "name a file with --weights"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Network:
    """A module in eval mode, and how to feed it."""

    net: nn.Module
    title: str
    layer: str = ""  # whose maps are explained
    classes: tuple[str, ...] = ()
    size: tuple[int, int] = (224, 224)  # (H, W) of its input, cut from the middle of a picture
    cover: tuple[int, int] | None = (256, 256)  # resized to cover this; None: no cut, all of it
    mean: tuple[float, ...] = IMAGENET_MEAN  # one number a channel
    std: tuple[float, ...] = IMAGENET_STD
    resample: Image.Resampling = Image.Resampling.BILINEAR

    def tensor(self, images: Sequence[Image.Image]) -> Tensor:
        """Pictures of its size -> (B, C, H, W) beside it, normalised as in its training."""
        pixels = np.stack([np.asarray(image, np.float32) for image in images]) / 255
        x = torch.from_numpy(pixels).reshape(len(images), *self.size, -1)  # (B, H, W, C)
        x = (x - torch.tensor(self.mean)) / torch.tensor(self.std)
        return x.permute(0, 3, 1, 2).contiguous().to(next(self.net.parameters()).device)


@torch.random.fork_rng(devices=[])  # the caller's, of the CPU, go on as they would
def load_network(model: str = "course", weights: str | None = None, layer: str | None = None,
                 classes: Sequence[str] | None = None, **feed: Any) -> Network:
    """model: course, a torchvision name, timm:NAME or FILE.py:NAME; feed: size, mean or std."""
    torch.manual_seed(0)  # where weights are random, they are the same in every process
    if model == "course":
        network = course_network(weights or str(HERE / "mnist_model.pth"))
    elif model.startswith("timm:"):
        network = timm_network(model.removeprefix("timm:"), weights or "pretrained")
    elif ".py:" in model:
        network = own_network(model, weights)
    else:
        network = torchvision_network(model, weights or "pretrained")
    network.net.float().eval()
    if "size" in feed and network.cover:
        feed["cover"] = feed["size"]  # no margin is cut from a size of the user's own
    return surveyed(replace(network, layer=layer or "", **feed), classes)


def surveyed(network: Network, given: Sequence[str] | None) -> Network:
    """With its layer and a name for every class, found by looking at one black picture."""
    channels, (H, W) = len(network.mean), network.size
    names = network.classes if given is None else tuple(given)
    if len(network.std) != channels or min(network.std) <= 0:
        raise Complaint(f"--mean {network.mean} and --std {network.std} were given; give as many "
                        "numbers to both, and a std above 0")
    with complaining(f"{network.title} can't take pictures of {channels} x {H} x {W}",
                     "give --size, --mean and --std as in its training"):
        black = network.tensor([Image.new("L" if channels == 1 else "RGB", (W, H))])
        seen = explain(network.net, black, layer=network.layer or None, guided=False)
    C = seen.logits.shape[1]
    if given is not None and len(names) != C:
        raise Complaint(f"{len(names)} class names were given; the network has {C}: name each one")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if given is not None and twice:
        raise Complaint(f"the class name {twice[0]} stands twice; give each class one of its own")
    names = names if len(names) == C else tuple(map(str, range(C)))
    return replace(network, layer=seen.layer, classes=names)


def course_network(weights: str) -> Network:
    """As large as the checkpoint says."""
    state = {} if weights == "none" else read_checkpoint(Path(weights))
    sizes = {layer: len(weight) for layer in ("conv1", "conv2", "fc1", "fc2")
             if (weight := state.get(f"{layer}.weight")) is not None and any(weight.shape[:1])}
    if state:
        with torch.device("meta"):  # sizes that don't fit together cost no memory
            check_fit(CourseCNN(**sizes), state, weights)
    net = CourseCNN(**sizes)
    net.load_state_dict(state, strict=False)
    maps = f"{net.conv1.out_channels} and {net.conv2.out_channels} maps"
    return Network(net, f"CourseCNN ({maps}), {weights_title(weights)}", size=(28, 28), cover=None,
                   mean=(net.MEAN,), std=(net.STD,))


def torchvision_network(name: str, weights: str) -> Network:
    models = import_torchvision().models
    names = models.list_models(module=models)
    if name not in names:
        raise Complaint(f"model {name} is not known; give course, {nearest(name, names)} or any "
                        "classifier of torchvision, timm:NAME or FILE.py:NAME")
    best = models.get_model_weights(name).DEFAULT
    if weights == "pretrained":
        where = Path(torch.hub.get_dir(), "checkpoints", Path(best.url).name)
        with complaining(NO_DOWNLOAD, f"fetch {best.url} to {where}, or {NAME_A_FILE}"):
            net = models.get_model(name, weights=best)
    else:
        # These two were trained to normalise once more inside; their side heads only train.
        inner = {"transform_input": True, "init_weights": False, "aux_logits": False}
        inner = inner if name in ("googlenet", "inception_v3") else {}
        net = with_weights(partial(models.get_model, name, weights=None, **inner), weights)
    eye = best.transforms()
    return Network(net, f"{name} of torchvision, {weights_title(weights)}",
                   classes=tuple(best.meta["categories"]), size=tuple(eye.crop_size * 2),
                   cover=tuple(eye.resize_size * 2), mean=tuple(eye.mean), std=tuple(eye.std),
                   resample=Image.Resampling[eye.interpolation.name])


def timm_network(name: str, weights: str) -> Network:
    imagenet = tuple(import_torchvision().models.ResNet18_Weights.DEFAULT.meta["categories"])
    with complaining(f"timm:{name} needs timm", "install it with: pip install timm"):
        timm = importlib.import_module("timm")
    if not timm.is_model(name):
        raise Complaint(f"timm has no model {name}; give {nearest(name, timm.list_models())}")
    build = partial(timm.create_model, name)
    if weights == "pretrained":
        source = timm.get_pretrained_cfg(name)
        hub = f"https://huggingface.co/{source.hf_hub_id}/resolve/main/pytorch_model.bin"
        with complaining(NO_DOWNLOAD, f"fetch {source.url or hub} and {NAME_A_FILE}"):
            net = build(pretrained=True)
    else:
        net = with_weights(build, weights)
    eye = timm.data.resolve_model_data_config(net)
    H, W = eye["input_size"][1:]
    mode = eye["crop_mode"]
    crop = "" if mode == "center" else f", center crop in place of timm's {mode}"
    return Network(net, f"{name} of timm, {weights_title(weights)}{crop}", classes=imagenet,
                   size=(H, W), mean=eye["mean"], std=eye["std"],
                   cover=(math.floor(H / eye["crop_pct"]), math.floor(W / eye["crop_pct"])),
                   resample=Image.Resampling[eye["interpolation"].upper()])


def own_network(model: str, weights: str | None) -> Network:
    """NAME of FILE.py: a class, or a function, that is called and gives a network."""
    path, name = Path(model.rpartition(":")[0]), model.rpartition(":")[2]
    sys.path.insert(0, str(path.absolute().parent))  # for what it imports itself
    with complaining(lambda error: f"model {model} raised {type(error).__name__} ({reason(error)})",
                     "give a file and the class or function in it that makes the network"):
        build = runpy.run_path(str(path))[name]
        net = build() if weights is None else with_weights(build, weights)
    if not isinstance(net, nn.Module):
        raise Complaint(f"model {model} made a {type(net).__name__}; it must return the network")
    convolution = next((m for m in net.modules() if isinstance(m, nn.Conv2d)), None)
    grey = convolution is not None and convolution.in_channels == 1
    mean, std = ((sum(m) / 3,) if grey else m for m in (IMAGENET_MEAN, IMAGENET_STD))
    return Network(net, f"{name} of {path.name}, {weights_title(weights)}", mean=mean, std=std)


def with_weights(build: Callable[..., nn.Module], weights: str) -> nn.Module:
    """The network with the weights of a file, and as many classes as these have."""
    net = build()
    if weights == "none":
        return net
    state, ours = read_checkpoint(Path(weights)), net.state_dict()
    last = next(reversed(ours))  # belongs to the layer of the classes
    if last in state and state[last].ndim and len(state[last]) != len(ours[last]):
        net = build(num_classes=len(state[last]))
    side = {key for key in state if key not in ours and key.lower().startswith("aux")}
    state = {key: value for key, value in state.items() if key not in side}
    check_fit(net, state, weights)
    net.load_state_dict(state, strict=False)
    return net
