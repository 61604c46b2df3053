"""A network by its name, or your own from a file, with how to prepare its pictures."""

from __future__ import annotations

import importlib
import math
import runpy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from seenby.core.explanation import Explanation, explain
from seenby.core.layers import layer_name
from seenby.core.targets import Like, embedding_of
from seenby.core.tasks import TASKS
from seenby.errors import InputError, as_input_error, closest_names, message_of, raised
from seenby.inputs.checkpoints import build_with_checkpoint
from seenby.inputs.classes import names_for
from seenby.inputs.pictures import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, require_mean_and_std
from seenby.machine import import_torchvision

NO_DOWNLOAD = "the pretrained weights could not be downloaded"
GUESSED = "guessed"
EXAMPLES = "--model resnet50, or --model my_net.py:MyNet --weights mine.pth for one of your own"


@dataclass(frozen=True)
class Network:
    """A module in eval mode, and all that is needed to show it pictures and to read its answers."""

    module: nn.Module
    title: str
    preprocessing: Preprocessing
    classes: tuple[str, ...] = ()
    layer: str = ""  # whose maps are explained
    task: str | None = None  # what its output means, one of TASKS
    final_activation: str = ""  # the softmax or sigmoid at its end, before which it is explained
    prepared_by: str = ""  # where the preprocessing's numbers are from
    notes: tuple[str, ...] = ()  # what must be said of the choices that were made
    file: Path | None = None  # FILE.py that makes it, if it is one's own

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes that a picture may belong to."""
        ranks_classes = self.task is None or TASKS[self.task].order is not None
        return self.classes if ranks_classes else ()

    def tensor(self, images: Sequence[Image.Image]) -> Tensor:
        """Prepared pictures -> (B, C, H, W), where the network is."""
        device = next((p.device for p in self.module.parameters()), torch.device("cpu"))
        return self.preprocessing.tensor(images).to(device)


@torch.random.fork_rng(devices=[])  # the caller's go on as they would
def load_network(model: str, weights: str | None = None, layer: str | None = None,
                 class_names: Sequence[str] | None = None, size: tuple[int, int] | None = None,
                 mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None,
                 task: str | None = None) -> Network:
    """model: a name of torchvision's, timm:NAME, or FILE.py:NAME for a network of your own.

    weights: a checkpoint, "pretrained", or "none" for random ones; by default pretrained, or as
    FILE.py makes them. What is given takes the place of what comes with the network.
    """
    if not isinstance(model, str):
        raise InputError(f"a {type(model).__name__} was given; give a name, or FILE.py:NAME: a "
                         "module that is there needs no load_network")
    torch.default_generator.manual_seed(0)  # random weights are the same in every process
    if model.startswith("timm:"):
        network = timm_network(model.removeprefix("timm:"), weights or "pretrained")
    elif ".py:" in model:
        network = file_network(model, weights)
    else:
        network = torchvision_network(model, weights or "pretrained")
    network.module.float().eval()
    network = with_preprocessing(network, {"size": size, "mean": mean, "std": std})
    network = with_layer_and_classes(network, layer, class_names, task)
    is_own = weights not in (None, "none", "pretrained") and not network.file
    has_names = network.classes != names_for(len(network.classes))  # and not numbers
    if is_own and class_names is None and has_names:
        note = (f"the names of the {len(network.classes)} classes are ImageNet's, assumed of "
                f"{network.title}; give --class-names")
        network = replace(network, notes=(*network.notes, note))
    return network


def with_preprocessing(network: Network, given: Mapping[str, Any]) -> Network:
    """What is given of size, mean and std takes the place of what the network came with."""
    new: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    rest = [name for name in given if name not in new]
    origin = network.prepared_by
    if GUESSED in origin:
        origin += f"; give {', '.join(f'--{name}' for name in rest)}"
    if not rest:
        origin = "given"
    elif new:
        origin = f"{', '.join(new)} given, {', '.join(rest)} {origin}"
    if size := new.pop("size", None):
        new |= {"crop_size": size, "resize_size": size}
    return replace(network, preprocessing=replace(network.preprocessing, **new), prepared_by=origin)


def with_layer_and_classes(network: Network, layer: str | None, class_names: Sequence[str] | None,
                           task: str | None) -> Network:
    """The layer, the task and a name for every class, found by explaining a picture of noise."""
    require_mean_and_std(network.preprocessing.mean, network.preprocessing.std)
    layer = None if layer is None else layer_name(network.module, layer)
    explanation = explain_noise(network, layer, task)
    # A segmentation's shares tell of its classes; its logits would, but for a single one.
    of_classes = explanation.logits if task == "regression" else explanation.probabilities
    C = 0 if task == "embedding" or of_classes is None else of_classes.shape[1]
    return replace(
        network, layer=explanation.layer, task=explanation.task,
        final_activation=explanation.final_activation,
        notes=tuple(filter(None, [*network.notes, explanation.layer_note])),
        classes=names_for(C, class_names, network.classes),
    )  # fmt: skip


def explain_noise(network: Network, layer: str | None, task: str | None) -> Explanation:
    """Noise, as a black picture may leave nothing behind the ReLUs."""
    preprocessing = network.preprocessing
    C, (H, W) = len(preprocessing.mean), preprocessing.crop_size
    name = network.title.partition(",")[0]

    def describe(error: BaseException) -> str:
        if isinstance(error, (RuntimeError, ValueError)):
            return f"{name} can't take pictures of {C} x {H} x {W} ({message_of(error)})"
        return f"{name} {raised(error)}"

    with as_input_error(describe, "mend that, or give --size, --mean and --std as in its training, "
                        "a number for each channel (one alone is for grey pictures)"):
        x = network.tensor([Image.effect_noise((W, H), 64).convert(preprocessing.mode)])
        if any(isinstance(module, LazyModuleMixin) for module in network.module.modules()):
            network.module(x)  # of which lazy layers learn their sizes
        target = Like(embedding_of(network.module, x)) if task == "embedding" else None
        return explain(network.module, x, target, layer, guided=False, task=task)


def torchvision_network(name: str, weights: str) -> Network:
    models = import_torchvision().models
    names = models.list_models(module=models)
    if name not in names:
        raise InputError(f"model {name} is not known; give {closest_names(name, names)} or any "
                         "classifier of torchvision, timm:NAME or FILE.py:NAME")
    default_weights = models.get_model_weights(name).DEFAULT
    if weights == "pretrained":
        url = default_weights.url
        where = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
        fix = f"fetch {url} to {where}, or name a file with --weights"
        with as_input_error(NO_DOWNLOAD, fix):
            net = models.get_model(name, weights=default_weights)
    else:
        # These two were trained to normalise once more inside; their side heads only train.
        inner = {"transform_input": True, "init_weights": False, "aux_logits": False}
        options = inner if name in ("googlenet", "inception_v3") else {}
        build = partial(models.get_model, name, weights=None, **options)
        net = build_with_checkpoint(build, weights)
    preset = default_weights.transforms()
    (crop,), (resize,) = preset.crop_size, preset.resize_size
    interpolation = Image.Resampling[preset.interpolation.name]
    preprocessing = Preprocessing((crop, crop), (resize, resize), tuple(preset.mean),
                                  tuple(preset.std), interpolation)
    title = f"{name} of torchvision, {weights_title(weights)}"
    return Network(net, title, preprocessing, tuple(default_weights.meta["categories"]),
                   prepared_by=origin_of(weights, "torchvision"))


def timm_network(name: str, weights: str) -> Network:
    imagenet = tuple(import_torchvision().models.ResNet18_Weights.DEFAULT.meta["categories"])
    with as_input_error(f"timm:{name} needs timm", "install it with: pip install timm"):
        timm = importlib.import_module("timm")
    if not timm.is_model(name):
        closest = closest_names(name, timm.list_models())
        raise InputError(f"timm has no model {name}; give {closest}")
    build = partial(timm.create_model, name)
    if weights == "pretrained":
        source = timm.get_pretrained_cfg(name)
        if not (source.url or source.hf_hub_id):
            raise InputError(f"timm has no weights for {name}; give --weights FILE, or none")
        hub = f"https://huggingface.co/{source.hf_hub_id}/resolve/main/pytorch_model.bin"
        fix = f"fetch {source.url or hub} and name a file with --weights"
        with as_input_error(NO_DOWNLOAD, fix):
            net = build(pretrained=True)
    else:
        net = build_with_checkpoint(build, weights)
    config = timm.data.resolve_model_data_config(net)
    H, W = config["input_size"][1:]
    cover = math.floor(H / config["crop_pct"]), math.floor(W / config["crop_pct"])
    interpolation = Image.Resampling[config["interpolation"].upper()]
    preprocessing = Preprocessing((H, W), cover, config["mean"], config["std"], interpolation)
    mode = config["crop_mode"]
    crop = "" if mode == "center" else f", center crop in place of timm's {mode}"
    return Network(net, f"{name} of timm, {weights_title(weights)}{crop}", preprocessing, imagenet,
                   prepared_by=origin_of(weights, "timm"))


def file_network(model: str, weights: str | None) -> Network:
    """NAME of FILE.py: a network, or a class or a function that is called and gives one."""
    if weights == "pretrained":
        raise InputError(f"--weights pretrained was given, but {model} brings none; give a "
                         "checkpoint, or drop --weights where the file loads one")
    path, name = Path(model.rpartition(":")[0]), model.rpartition(":")[2]
    if (folder := str(path.absolute().parent)) not in sys.path:
        sys.path.insert(0, folder)  # for what it imports itself

    fix = "give a file and the class or function in it that makes the network"
    with as_input_error(lambda error: f"model {model} {raised(error)}", fix):
        content = runpy.run_path(str(path))
        if name not in content:
            defined = [word for word, value in content.items() if callable(value)]
            give = closest_names(name, defined) if defined else "a file that defines one"
            raise InputError(f"{path} has no {name}; give {give}")
        found = content[name]
        build = (lambda: found) if isinstance(found, nn.Module) else found
        net = build() if weights is None else build_with_checkpoint(build, weights)
    if not isinstance(net, nn.Module):
        raise InputError(f"model {model} made no network but {type(net).__name__}; return the "
                         "network")
    convolution = next((m for m in net.modules() if isinstance(m, nn.Conv2d)), None)
    preprocessing = Preprocessing()
    if convolution is not None and convolution.in_channels == 1:
        grey_mean, grey_std = sum(IMAGENET_MEAN) / 3, sum(IMAGENET_STD) / 3
        preprocessing = Preprocessing(mean=(grey_mean,), std=(grey_std,))
    return Network(net, f"{name} of {path.name}, {weights_title(weights)}", preprocessing,
                   prepared_by=f"ImageNet's, {GUESSED}", file=path)


def origin_of(weights: str, library: str) -> str:
    """Of the preprocessing's numbers."""
    is_own = weights not in ("pretrained", "none")
    return f"{library}'s for it, assumed of these weights" if is_own else "the weights' own"


def weights_title(weights: str | None) -> str:
    if weights is None:
        return "as it comes, RANDOM unless it loads weights"
    if weights == "none":
        return "RANDOM weights"
    return weights if weights == "pretrained" else Path(weights).name
