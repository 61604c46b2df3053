#!/usr/bin/env python3
"""Which layer is found in which network, is it read rightly, and are its maps right?

    python benchmarks/zoo.py                       all, into benchmarks/zoo.json (half an hour)
    python benchmarks/zoo.py --quick               thirty of all kinds, printed alone
    python benchmarks/zoo.py --networks resnet50 swin_t      some, kept
    python benchmarks/zoo.py --missing             those that zoo.json does not have yet, kept
    python benchmarks/zoo.py --passes              how long finding takes, in forward passes, kept
    python benchmarks/zoo.py --table               puts zoo.json into the table of docs/networks.md

Networks of torchvision, timm and transformers with random weights, at the smallest size that each
takes. The oracles know nothing of the tool: they cut the network at the layer by a hook of their
own, read the cells by the picture's shape, and guide ReLUs that they write out. A verdict is

    right     the layer carries all the evidence, it is read rightly, all maps are the oracles'
    said      the maps are, and the tool says in a line what is unusual about the layer
    wrong     anything else; `faults` says what

Locality is no fault: where two patches of a picture are changed in turn, do the cells that change
most lie there? Of random weights some networks answer everywhere.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import math
import re
import statistics
import sys
import textwrap
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from seenby import Explanation, explain  # noqa: E402
from seenby.core.recorder import MoreInputs  # noqa: E402
from seenby.core.search import find_layer  # noqa: E402
from seenby.machine import import_torchvision  # noqa: E402

torchvision = import_torchvision()
PAGE = ROOT / "docs" / "networks.md"
TABLE = re.compile(r"(?s)<!-- from benchmarks/zoo.json -->.*?<!-- end -->")
KEPT = ROOT / "benchmarks" / "zoo.json"
Size = tuple[int, int]  # of the picture, (H, W)

# Half a billion parameters and more: four gigabytes in float64, before any map is kept.
LEFT_OUT = {
    "torchvision vit_h_14": "632 million parameters",
    "torchvision regnet_y_128gf": "645 million parameters",
}
TIMM = {
    (96, 96): """
        caformer_s18 convformer_s18 convmixer_1024_20_ks9_p14 convmixer_768_32 convnext_atto
        convnextv2_atto cs3darknet_s csatv2 cspdarknet53 cspresnet50 darknet53 davit_tiny
        densenet121 densenetblur121d dla34 dm_nfnet_f0 dpn48b dpn68 ecaresnet26t
        edgenext_xx_small efficientnet_b0 efficientnet_lite0 efficientvit_b0 ese_vovnet19b_dw
        fasternet_t0 fastvit_t8 fbnetc_100 fbnetv3_b focalnet_tiny_srf gcresnet33ts gernet_s
        ghostnet_100 ghostnetv2_100 ghostnetv3_100 hardcorenas_a hgnet_tiny hgnetv2_b0
        hieradet_small hrnet_w18_small inception_next_atto inception_next_tiny
        inception_resnet_v2 inception_v3 inception_v4 lambda_resnet26t lcnet_050
        legacy_seresnet18 legacy_xception mambaout_femto mixnet_s mnasnet_100 mnasnet_small
        mobilenetv2_100 mobilenetv3_large_100 mobilenetv3_small_050 mobilenetv4_conv_small
        mobilenetv4_hybrid_medium mobileone_s0 mobilevit_xxs mobilevitv2_050 nasnetalarge
        nextvit_small nf_resnet26 nfnet_l0 pnasnet5large poolformer_s12 poolformerv2_s12
        pvt_v2_b0 rdnet_tiny regnetx_002 regnety_002 regnetz_b16 repghostnet_050 repvgg_a0
        repvit_m0_9 res2net50_26w_4s resnest26d resnet18 resnet50d resnetaa50 resnetv2_50
        resnext50_32x4d rexnet_100 selecsls42 senet154 seresnet18 shvit_s1 skresnet18
        spnasnet_100 starnet_s1 tf_efficientnetv2_b0 tf_mixnet_s tiny_vit_5m_224 tresnet_m
        tresnet_v2_l vgg11 vgg11_bn vovnet39a wide_resnet50_2 xception41
        """,
    (96, 160): "naflexvit_base_patch16_gap",
    (106, 106): "tinynet_e",
    (224, 224): """
        beit_base_patch16_224 cait_xxs24_224 coat_lite_tiny coat_tiny coatnet_0_rw_224
        coatnet_nano_rw_224 convit_tiny deit3_small_patch16_224 deit_tiny_distilled_patch16_224
        deit_tiny_patch16_224 efficientformer_l1 efficientformerv2_s0 efficientvit_m0
        eva02_tiny_patch14_224 gcvit_xxtiny gmixer_12_224 gmlp_ti16_224 hiera_tiny_224
        levit_128s levit_conv_128s mixer_s16_224 mixer_s32_224 mvitv2_tiny nest_tiny pit_ti_224
        pit_ti_distilled_224 resmlp_12_224 samvit_base_patch16_224 sequencer2d_s swiftformer_xs
        swin_s3_tiny_224 swin_tiny_patch4_window7_224 tnt_s_patch16_224 twins_pcpvt_small
        twins_svt_small visformer_tiny vit_base_patch32_224 vit_relpos_small_patch16_224
        vit_srelpos_small_patch16_224 vit_tiny_patch16_224 vitamin_small_224 volo_d1_224
        xcit_nano_12_p16_224
        """,
    (240, 240): "crossvit_tiny_240 flexivit_small",
    (256, 256): """
        bat_resnext26ts botnet26t_256 eca_botnext26ts_256 halonet26t lamhalobotnet50ts_256
        maxvit_pico_rw_256 maxvit_rmlp_pico_rw_256 swinv2_tiny_window8_256
        """,
    # At 96 these end in one cell, which shows no place: here they are judged as they are used.
    (299, 299): "inception_resnet_v2 inception_v3 inception_v4",
    (320, 320): "csatv2",
    (518, 518): "vit_small_patch14_reg4_dinov2",
}
OF_ONE_SIZE = {"maxvit_t": (224, 224)}  # of torchvision's
SMALL = {"image_size": 64, "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
         "intermediate_size": 96}  # fmt: skip
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "Beit": SMALL,
    "ConvNext": {"depths": [2, 2, 2, 2], "hidden_sizes": [16, 32, 48, 64]},
    "DeiT": SMALL,
    "Dinov2WithRegisters": SMALL | {"patch_size": 8},
    "Hiera": {"image_size": [64, 64], "embed_dim": 24, "depths": [1, 1, 2, 1]},
    "Pvt": {"image_size": 64, "depths": [1, 1, 2, 2], "hidden_sizes": [16, 32, 64, 96],
            "num_attention_heads": [1, 2, 4, 6]},
    "ResNet": {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]},
    "Segformer": {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 96],
                  "num_attention_heads": [1, 2, 4, 6]},
    "Swin": {"image_size": 64, "embed_dim": 24, "depths": [2, 2, 2], "num_heads": [2, 4, 8],
             "window_size": 4},
    "ViT": SMALL,
}  # fmt: skip
DETECTORS = ("fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_resnet50_fpn")
QUICK = {
    "torchvision": """
        alexnet convnext_tiny efficientnet_b0 googlenet inception_v3 maxvit_t mnasnet0_5
        mobilenet_v2 resnet18 shufflenet_v2_x0_5 squeezenet1_1 swin_t vgg11
        """,
    "timm": """
        cait_xxs24_224 coat_lite_tiny crossvit_tiny_240 deit_tiny_distilled_patch16_224
        eva02_tiny_patch14_224 hieradet_small lcnet_050 legacy_xception levit_128s mambaout_femto
        mixer_s32_224 naflexvit_base_patch16_gap pit_ti_224 poolformer_s12 regnety_002
        twins_pcpvt_small vit_tiny_patch16_224
        """,
}


def all_networks() -> list[tuple[str, str, Size]]:
    """(library, name, size) of each."""
    models = torchvision.models
    names = models.list_models(module=models)
    found = [("torchvision", name, OF_ONE_SIZE.get(name, (96, 96))) for name in names
             if f"torchvision {name}" not in LEFT_OUT]
    found += [("torchvision", "inception_v3", (299, 299))]
    found += [("torchvision", name, (96, 96)) for name in models.list_models(models.segmentation)]
    found += [("torchvision", name, (96, 96)) for name in DETECTORS]
    found += [("timm", name, size) for size, names in TIMM.items() for name in names.split()]
    if importlib.util.find_spec("transformers"):
        found += [("transformers", name, (64, 64)) for name in (*TRANSFORMERS, "CLIP")]
    return sorted(found)


def quick_networks() -> list[tuple[str, str, Size]]:
    return [each for each in all_networks() if each[1] in QUICK.get(each[0], "").split()]


class PictureAndTexts(nn.Module):
    """CLIP: how alike a picture is to each of some texts; a network of two inputs."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, x: Tensor, texts: Tensor) -> Tensor:
        logits: Tensor = self.clip(input_ids=texts, pixel_values=x).logits_per_image
        return logits


def build_clip(package: Any) -> nn.Module:
    few = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
           "intermediate_size": 96}  # fmt: skip
    config = package.CLIPConfig(
        text_config=few | {"vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 49},
        vision_config=few | {"image_size": 64, "patch_size": 8}, projection_dim=32,
    )  # fmt: skip
    return PictureAndTexts(package.CLIPModel(config))


def more_inputs(net: nn.Module) -> tuple[Tensor, ...]:
    """What a network takes besides the pictures: of CLIP three texts of eight numbers."""
    return (torch.arange(24).view(3, 8),) if isinstance(net, PictureAndTexts) else ()


def build_detector(name: str) -> nn.Module:
    """It keeps all boxes, however unsure, and whatever they cover: random weights are sure of
    none, and torchvision's own way to leave some out may be missing beside torch's CPU build.
    """
    torch.compiler.set_stance("force_eager")  # else torchvision compiles what stands in for them
    torchvision.ops.boxes.batched_nms = lambda _, scores, *_args: scores.argsort(descending=True)
    net: nn.Module = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=3, min_size=96, max_size=96,
        box_score_thresh=0.0, box_detections_per_img=20, rpn_post_nms_top_n_test=20,
    )  # fmt: skip
    return net


def sureness(found: list[dict[str, Tensor]]) -> Tensor:
    """The score that explains a detector: how sure it is of all boxes, (B,)."""
    return torch.stack([each["scores"].sum() for each in found])


def target_of(net: nn.Module) -> Callable[[Any], Tensor] | None:
    return sureness if "RCNN" in type(net).__name__ else None


def build(library: str, name: str, size: Size) -> nn.Module:
    """Random weights, the same each time."""
    torch.manual_seed(0)
    net: nn.Module
    if library == "timm":
        net = importlib.import_module("timm").create_model(name)
    elif library == "transformers":
        package = importlib.import_module("transformers")
        if name == "CLIP":
            return build_clip(package).eval()
        config = getattr(package, f"{name}Config")(**TRANSFORMERS[name])
        net = getattr(package, f"{name}ForImageClassification")(config)
    elif name in DETECTORS:
        net = build_detector(name)
    else:
        options: dict[str, Any] = {"image_size": size[0]} if name.startswith("vit_") else {}
        if name in ("googlenet", "inception_v3"):  # whose own way to draw them takes minutes
            options["init_weights"] = False
        if name in torchvision.models.list_models(torchvision.models.segmentation):
            options = {"weights_backbone": None, "num_classes": 5}
        net = torchvision.models.get_model(name, weights=None, **options)
    return net.eval()


# ---------------------------------------------------------------------------------- the oracles


def read_cells(output: Tensor, size: Size) -> tuple[Tensor, str, int]:
    """Maps (B, K, u, v) with their layout and prefix, by the picture's shape alone.

    Of four axes those two are the cells that relate as H to W, the last two if in doubt. Of tokens
    as many are cells, from the end, as fill the largest such rectangle.
    """
    H, W = size
    if output.ndim == 3:
        B, N, K = output.shape
        u = next(u for u in range(math.isqrt(N * H // W), 0, -1) if u * W % H == 0)
        v = u * W // H
        rows = [[output[:, N - u * v + i * v + j] for j in range(v)] for i in range(u)]
        maps = torch.stack([torch.stack(row, -1) for row in rows], -2)
        assert maps.shape == (B, K, u, v)
        return maps, "tokens", N - u * v
    _, a, b, c = output.shape
    if b * W == c * H:
        return output, "NCHW", 0
    assert a * W == b * H, f"{tuple(output.shape)} is no grid for {size}"
    return torch.stack([output[..., k] for k in range(c)], 1), "NHWC", 0


class GuidedReLU(torch.autograd.Function):
    """Written out: what is above zero (and below six) passes a gradient that is above zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, top: float) -> Tensor:
        ctx.save_for_backward((x > 0) & (x < top))
        return torch.where(x > 0, x, 0).clamp(max=top)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (passes,) = ctx.saved_tensors
        return torch.where(passes & (gradients[0] > 0), gradients[0], 0), None


class EveryReLUIsGuided(TorchFunctionMode):
    """Each is called as GuidedReLU, whatever its spelling and wherever its result would go."""

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")
        low, high = [*args[1:3], *[None] * (3 - len(args[:3]))][:2]
        if name == "clamp":
            low, high = kwargs.get("min", low), kwargs.get("max", high)
        if name == "hardtanh":
            low, high = kwargs.get("min_val", low), kwargs.get("max_val", high)
        if name in ("relu", "relu6") or (name in ("clamp", "hardtanh") and low == 0):
            top = 6.0 if name == "relu6" else math.inf if name == "relu" or high is None else high
            x = args[0] if args else kwargs["input"]
            apply: Callable[..., Tensor] = GuidedReLU.apply
            return apply(x, float(top))
        return func(*args, **kwargs)


def first_of(output: Any) -> Any:
    """What a layer gives, or the first of several things."""
    return output[0] if isinstance(output, (tuple, list)) else output


def cut_at(net: nn.Module, layer: str, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The logits, and what the layer gave at each call, as leaves from which the rest goes on."""
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, _args: Any, output: Any) -> Any:
        first = first_of(output)
        leaves.append(first.detach().clone().requires_grad_())
        go_on = leaves[-1].clone()
        return go_on if first is output else type(output)([go_on, *output[1:]])

    hook = net.get_submodule(layer).register_forward_hook(cut)
    try:
        return net(x, *more_inputs(net)), leaves
    finally:
        hook.remove()


def patches_go_around(net: nn.Module, norm: str, x: Tensor, prefix: int) -> bool:
    """Whether the block around a norm reads its patches elsewhere, too, than through that norm.

    It is given noise in their place, behind which the norm gives what it gave before.
    """
    given: list[Tensor] = []

    def replace_patches(_block: nn.Module, args: Any) -> Any:
        noise = torch.cat([args[0][:, :prefix], torch.randn_like(args[0][:, prefix:])], 1)
        return noise, *args[1:]

    parent = net.get_submodule(norm.rpartition(".")[0])
    with torch.no_grad():
        keep = net.get_submodule(norm).register_forward_hook(lambda *call: given.append(call[2]))
        with keep:
            before = logits_of(net(x, *more_inputs(net)))
        put_back = net.get_submodule(norm).register_forward_hook(lambda *_: given[0])
        with parent.register_forward_pre_hook(replace_patches), put_back:
            return not torch.equal(before, logits_of(net(x, *more_inputs(net))))


def logits_of(output: Any) -> Tensor:
    """Of what a network gives: its logits by name, a segmentation's maps, or itself."""
    y: Any = getattr(output, "logits", output)
    tensor: Tensor = y["out"] if isinstance(y, dict) else y
    return tensor


def score(output: Any, target: Tensor | None) -> Tensor:
    """The sum over a batch: of logits, or of a segmentation's, where the class wins; of a detector
    how sure it is."""
    if target is None:
        return sureness(output).sum()
    y = logits_of(output)
    rows: Tensor = y[range(len(y)), target]
    if y.ndim == 4:
        rows = rows * (y.argmax(1) == target[:, None, None])
    return rows.sum()


def plain_gradient(net: nn.Module, x: Tensor, target: Tensor | None) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(score(net(x.clone(), *more_inputs(net)), target), x)[0]


def largest(tensor: Tensor) -> float:
    return float(tensor.detach().abs().max())


def apart(theirs: Tensor, mine: Tensor, scale: float) -> float:
    """The largest difference, relative to a scale; infinite where the shapes differ."""
    if theirs.shape != mine.shape:
        return math.inf
    return largest(theirs - mine) / scale if scale else largest(theirs - mine)


def compare(net: nn.Module, x: Tensor, e: Explanation) -> tuple[dict[str, float], list[str]]:
    """How far the explanation is from the oracles', and what is at fault in its layer."""
    size = (x.shape[2], x.shape[3])
    pixels = x.clone().requires_grad_()
    logits, leaves = cut_at(net, e.layer, pixels)
    y_c = score(logits, e.target)
    dyc_dA, dyc_dx = torch.autograd.grad(y_c, [leaves[-1], pixels], allow_unused=True)
    A, layout, prefix = read_cells(leaves[-1].detach(), size)
    faults = []
    if (e.grid.layout, e.grid.prefix, e.grid.u, e.grid.v) != (layout, prefix, *A.shape[2:]):
        faults.append(f"the grid: {layout} with {prefix} others, {tuple(A.shape[2:])}")
    g = torch.zeros_like(A) if dyc_dA is None else read_cells(dyc_dA, size)[0]
    goes_around = dyc_dx is not None and bool(dyc_dx.any())
    if goes_around and prefix:
        goes_around = patches_go_around(net, e.layer, x, prefix)
    if not e.layer_note and goes_around:
        faults.append("not the trunk: other ways lead around the layer")
    if not e.layer_note and (g != 0).any(1).double().mean() <= 0.1:
        faults.append("not live: the logit does not depend on its cells")
    alpha = g.flatten(2).sum(-1) / (A.shape[2] * A.shape[3])
    summed = torch.einsum("bk,bkuv->buv", alpha, A)
    of_sum = largest((alpha.abs()[..., None, None] * A.abs()).sum(1))
    with EveryReLUIsGuided():
        R = plain_gradient(net, x, e.target)
    assert e.R is not None
    difference = {
        "alpha": apart(e.alpha, alpha, largest(alpha)),
        "L_c": apart(e.L_c, summed.clamp(min=0), of_sum),
        "R": apart(e.R, R, largest(R)),
    }
    close = 1e-9 if x.dtype == torch.float64 else 1e-3
    faults += [name for name, far in difference.items() if not far <= close]
    if not g.any():
        faults.append("no gradient reaches the layer")
    return difference, faults


def look_around(net: nn.Module, x: Tensor, e: Explanation) -> tuple[int, float]:
    """Of two patches how many are found where they were changed, or next to it; and how deep the
    layer lies: of the convolutions and linear layers that see the picture, the share that were done
    when it ended.
    """
    ends: list[str] = []
    kept: list[Tensor] = []
    learned = {name for name, module in net.named_modules()
               if any(weight.ndim > 1 for weight in module.parameters(recurse=False))}
    (H, W), (u, v) = x.shape[2:], (e.grid.u, e.grid.v)
    patches = [(u // 4, v - 1 - v // 4), (u - 1 - u // 4, v // 4)]  # no axis taken for the other
    changed = x[:1].repeat(3, 1, 1, 1)
    for n, (i, j) in enumerate(patches, 1):
        patch = changed[n, :, i * H // u : (i + 1) * H // u, j * W // v : (j + 1) * W // v]
        patch.copy_(3 * torch.randn(patch.shape))

    def note(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            first = first_of(output)
            sees_picture = isinstance(first, Tensor) and first.requires_grad
            if (name in learned and sees_picture) or name == e.layer:
                ends.append(name)
            if name == e.layer:
                kept[:] = [first.detach().clone()]

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in net.named_modules()]
    net.requires_grad_(False)
    net(changed.requires_grad_().clone(), *more_inputs(net))
    for hook in hooks:
        hook.remove()
    A = read_cells(kept[-1], (H, W))[0]
    found = 0
    for n, (i, j) in enumerate(patches, 1):
        most = int((A[n] - A[0]).abs().sum(0).argmax())
        found += abs(most // v - i) <= 1 and abs(most % v - j) <= 1
    last = len(ends) - 1 - ends[::-1].index(e.layer)
    before = sum(name in learned for name in ends[: last + 1])
    return found, before / sum(name in learned for name in ends)


# --------------------------------------------------------------------------------- the networks


def pictures(size: Size) -> Tensor:
    """Two, of noise over a ramp each: (2, 3, H, W)."""
    torch.manual_seed(1)
    x = torch.randn(2, 3, *size)
    ramp = torch.linspace(-1, 1, size[1])
    return x + torch.stack([ramp, -ramp])[:, None, None]


def as_exact_as_can_be(net: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """In float64 if the network runs in it."""
    with suppress(RuntimeError), torch.no_grad():
        net.double()(x[:1].double(), *more_inputs(net))
        return net, x.double()
    return net.float(), x


def draw_zero_weights(net: nn.Module) -> None:
    """As a trained head has them."""
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in net.parameters():
            if weight.ndim > 1 and not weight.any():
                weight.normal_(std=0.02)


def examine(library: str, name: str, size: Size) -> dict[str, Any]:
    """One network: its layer, how it is read, and the verdict."""
    net, x = as_exact_as_can_be(build(library, name, size), pictures(size))
    given: dict[str, Any] = {"target": target_of(net), "args": more_inputs(net)}
    e = drawn = explain(net, x, **given)
    if "weights are zero" in e.layer_note:  # so are all gradients, which are no test of values
        draw_zero_weights(net)
        drawn = explain(net, x, **given)
    difference, faults = compare(net, x, drawn)
    if (drawn.layer, drawn.grid) != (e.layer, e.grid):
        faults.append(f"of other weights the layer is {drawn.layer}")
    known = getattr(net, "num_prefix_tokens", None)  # within timm's blocks; CaiT's join later
    if known is not None and e.layer.startswith("blocks.") and e.grid.prefix != known:
        faults.append(f"the network has {known} tokens before its patches")
    local, depth = look_around(net, x, e)
    if depth < 0.5 and not e.layer_note:
        faults.append("not deep: most of the network lies behind the layer")
    return {
        "library": library, "network": name, "size": size, "layer": e.layer, "note": e.layer_note,
        "layout": e.grid.layout, "cells": (e.grid.u, e.grid.v), "prefix": e.grid.prefix,
        "stride": e.stride, "inferred": e.stride_inferred,
        "verdict": "wrong" if faults else "said" if e.layer_note else "right", "faults": faults,
        "local": local, "depth": round(depth, 3), "relus": e.relu_calls,
        "dtype": str(x.dtype).removeprefix("torch."),
        "difference": {what: float(f"{far:.1e}") for what, far in difference.items()},
    }  # fmt: skip


def passes(library: str, name: str, size: Size, rounds: int = 5) -> tuple[float, str]:
    """How long finding the layer takes, in forward passes of one picture: the median ratio; and
    the layer.

    On one thread, of the processor's time: so it is the same while others use the machine.
    """
    torch.set_num_threads(1)
    net, x = build(library, name, size), pictures(size)[:1]
    ratios = []
    for _ in range(rounds + 1):  # the first warms up
        start = time.process_time()
        with torch.no_grad():
            net(x, *more_inputs(net))
        middle = time.process_time()
        layer = find_layer(net, x, target_of(net), None, MoreInputs(more_inputs(net))).name
        ratios.append((time.process_time() - middle) / (middle - start))
    return round(statistics.median(ratios[1:]), 2), layer


# ------------------------------------------------------------------------------ what is written


def line(found: dict[str, Any]) -> str:
    """What is printed of a network."""
    H, W = found["size"]
    u, v = found["cells"]
    others = f" + {found['prefix']}" if found["prefix"] else ""
    said = "; ".join(found["faults"]) or found["note"]
    return (f"{found['verdict']:<6} {found['library']} {found['network']} {H}x{W}: "
            f"{found['layer']} {found['layout']} {u} x {v}{others}, local {found['local']}, depth "
            f"{found['depth']:.2f}, {found['dtype']} {found['difference']}  {said}")


def kind(found: dict[str, Any]) -> str:
    """How its layer's output lies."""
    if "streams" in found["note"]:
        return KINDS[-1]
    if found["layout"] == "tokens":
        return KINDS[3 + min(found["prefix"], 2)]
    if found["layout"] == "NHWC":
        return KINDS[2]
    return KINDS[found["stride"] is None]


KINDS = ("maps", "maps of unknown stride", "maps, channels last", "patches alone",
         "patches and a class token", "patches and more tokens",
         "several streams: one of them, which is said")  # fmt: skip
EXAMPLES = {
    "resnet50", "densenet121", "vgg16", "convnext_tiny", "maxvit_t", "swin_t", "hieradet_small",
    "beit_base_patch16_224", "mixer_s16_224", "vit_tiny_patch16_224", "crossvit_tiny_240",
    "samvit_base_patch16_224", "deit_tiny_distilled_patch16_224", "vit_small_patch14_reg4_dinov2",
    "twins_svt_small", "vit_b_16", "coat_tiny", "inception_v3",
}  # fmt: skip


def table(kept: list[dict[str, Any]]) -> str:
    """In Markdown: a row for each way in which layers give their cells."""
    rows = [["what the layer gives", "networks", "right", "said", "wrong", "for example"]]
    rows += [["---", *["---:"] * 4, "---"]]
    for each in KINDS:
        of_kind = [found for found in kept if kind(found) == each]
        verdicts = [found["verdict"] for found in of_kind]
        counts = [str(verdicts.count(which)) for which in ("right", "said", "wrong")]
        examples = {f"{found['network']} `{found['layer']}`": None for found in of_kind
                    if found["network"] in EXAMPLES and found["library"] != "transformers"}
        rows.append([each, str(len(of_kind)), *counts, ", ".join(list(examples)[:4])])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def in_words(kept: list[dict[str, Any]]) -> str:
    """What the table leaves out."""
    n = [[found["local"] for found in kept].count(patches) for patches in (2, 1, 0)]
    times = [found["passes"] for found in kept if "passes" in found] or [math.nan]
    return textwrap.fill(
        f"Of {len(kept)} networks, where two patches of a picture are changed in turn, the cells "
        f"that change most lie there or next to it for both patches in {n[0]}, for one in {n[1]}, "
        f"for none in {n[2]}; their weights are random. Finding the layer takes "
        f"{statistics.median(times):.1f} forward passes at the median, {max(times):.0f} at most.",
        100,
    )


def marked(kept: list[dict[str, Any]]) -> str:
    """As it stands in docs/networks.md."""
    return f"<!-- from benchmarks/zoo.json -->\n{table(kept)}\n\n{in_words(kept)}\n<!-- end -->"


def place(found: dict[str, Any]) -> tuple[str, str, Size]:
    H, W = found["size"]
    return found["library"], found["network"], (H, W)


def keep(kept: list[dict[str, Any]], found: dict[str, Any]) -> list[dict[str, Any]]:
    """In the file, a line each, in place of what it had of the same network."""
    kept = sorted([each for each in kept if place(each) != place(found)] + [found], key=place)
    versions = {name: importlib.import_module(name).__version__
                for name in ("torch", "torchvision", "timm", "transformers")
                if importlib.util.find_spec(name)}
    head = json.dumps({"versions": versions, "left out": LEFT_OUT})[1:-1]
    lines = ",\n".join(json.dumps(each) for each in kept)
    KEPT.write_text(f'{{{head}, "networks": [\n{lines}\n]}}\n')
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", metavar="NAME")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--missing", action="store_true")
    parser.add_argument("--passes", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    kept = json.loads(KEPT.read_text())["networks"] if KEPT.exists() else []
    if options.table:
        PAGE.write_text(TABLE.sub(lambda _: marked(kept), PAGE.read_text()))
        return 0
    warnings.simplefilter("ignore")  # timm's about names that changed
    if not importlib.util.find_spec("transformers"):
        print("left out: the networks of transformers, which is not installed")
    chosen = quick_networks() if options.quick else all_networks()
    if options.networks:
        chosen = [each for each in chosen if each[1] in options.networks]
    known = {place(each): each for each in kept}
    if options.missing:
        chosen = [each for each in chosen if each not in known]
    verdicts = []
    for each in chosen:
        if options.passes:
            times, layer = passes(*each)
            found = known[each] | {"passes": times}
            if layer != found["layer"]:  # of one picture, in float32
                found |= {"verdict": "wrong", "faults": [f"now the layer is {layer}"]}
            print(f"{times:5.2f} {each[0]} {each[1]} {layer}", flush=True)
        else:
            try:
                found = examine(*each)
            except Exception as error:  # of any network, and those after it shall be tried
                print(f"wrong  {each}: {error!r}", flush=True)
                verdicts.append("wrong")
                continue
            print(line(found), flush=True)
        verdicts.append(found["verdict"])
        if not options.quick:
            kept = keep(kept, found)
    print(", ".join(f"{verdicts.count(each)} {each}" for each in ("right", "said", "wrong")))
    if options.passes:
        print("median", statistics.median(each["passes"] for each in kept if "passes" in each))
    return int("wrong" in verdicts)


if __name__ == "__main__":
    sys.exit(main())
