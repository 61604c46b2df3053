"""What can't be explained, in one line: what is no network, no picture, or has no gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from seenby.errors import InputError, is_out_of_memory, message_of

ORIGINAL = "give the module it was made from"


def require_arguments(net: Any, x: Any) -> None:
    """Raise unless they are a network and pictures, and gradients can be had here."""
    if not isinstance(net, nn.Module):
        raise InputError(f"the network is no module but {type_of(net)}; give a torch.nn.Module")
    if not isinstance(x, Tensor):
        raise InputError(f"x is no tensor but {type_of(x)}; give pictures (B, C, H, W), prepared "
                         "as in the network's training")
    if torch._C._are_functorch_transforms_active():
        raise InputError("explain was called within torch.func, as by vmap or grad, where it can "
                         "take no gradients; call it outside, with all pictures (B, C, H, W)")
    if not x.is_floating_point():
        raise InputError(f"x is of {x.dtype}; give floating-point numbers, scaled and normalised "
                         "as in the network's training")
    if x.ndim != 4 or not x.numel():
        one = ", which x[None] makes of a single one" if x.ndim == 3 else ", at least one"
        raise InputError(f"x has the shape {tuple(x.shape)}; give pictures (B, C, H, W){one}")


def described(value: Any) -> str:
    """In a few words: (2, 3) of float32, dict of a, b, or its type."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    kind = type(value).__name__
    if isinstance(value, Mapping):
        return f"{kind} of {', '.join(map(str, value))}"
    if isinstance(value, (tuple, list)):
        return f"{kind} of {', '.join(map(described, value)) or 'nothing'}"
    return type_of(value)


def type_of(value: Any) -> str:
    """None, or its type with the package that it comes from."""
    kind = type(value)
    package = kind.__module__.partition(".")[0]
    is_plain = package in ("builtins", "__main__")
    return "None" if value is None else kind.__name__ if is_plain else f"{package}.{kind.__name__}"


def require_network(modules: Sequence[nn.Module]) -> None:
    """Raise if the network hides its forward pass, or knows no way back through it."""
    for module in {type(module): module for module in modules}.values():
        require_layer(module)


def require_layer(module: Any) -> None:
    """Raise if it is of a kind that has no layers or no gradients."""
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError(f"the network is scripted, which hides what it does; {ORIGINAL}")
    package = type(module).__module__
    if package.startswith("torch.ao.nn.") and ".quantized" in package:
        raise InputError("the network is quantised, and has no gradients; give the one in floating "
                         "point that it was made from")
    if isinstance(module, torch.fx.GraphModule) and is_exported(module):
        raise InputError(f"the network is exported, and calls none of its layers; {ORIGINAL}")
    if issubclass(type(module), LazyModuleMixin) and module.has_uninitialized_params():
        raise InputError("the network has lazy layers, which have no weights yet; call it once "
                         "with x, or load its weights, and explain it then")


def is_exported(module: Any) -> bool:
    """Whether it is a graph of PyTorch's inner operations, where a traced one calls its layers."""
    return any(isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes)


@contextmanager
def telling_misfit(net: nn.Module, x: Tensor) -> Iterator[None]:
    """What goes wrong where x and the network don't fit each other, or here, is told as that.

    Not before it goes wrong: a network may see to it itself, and so does autocast.
    """
    try:
        yield
    except RuntimeError as error:
        what, fix = misfit(net, x)
        if not what or is_out_of_memory(error):
            raise
        raise InputError(f"{what} ({message_of(error)}); {fix}") from error


def misfit(net: nn.Module, x: Tensor) -> tuple[str, str]:
    """In what x and the network differ, and how to fix it; no words where they don't."""
    if any(tensor.is_inference() for tensor in (*net.parameters(), *net.buffers())):
        return ("the network was made under torch.inference_mode, whose tensors take part in no "
                "gradient", "make it outside, or there call net.load_state_dict({k: v.clone() for "
                "k, v in net.state_dict().items()}, assign=True)")
    if {nn.Conv3d} == {nn.Conv2d, nn.Conv3d} & {type(module) for module in net.modules()}:
        return "the network sees volumes", "give one that sees pictures (B, C, H, W)"
    weight = next((weight for weight in net.parameters() if weight.is_floating_point()), x)
    if (weight.dtype, weight.device) == (x.dtype, x.device):
        return "", ""
    what = f"x is of {x.dtype} on {x.device}, the weights of {weight.dtype} on {weight.device}"
    return what, f"give both alike, as by x.to({str(weight.device)!r}, {weight.dtype})"
