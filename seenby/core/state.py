"""The network's state: as in use while it is explained, and afterwards exactly as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from seenby.errors import InputError


@contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """Dropout and batch-norm as in use, and no graph for the weights; restored at the end."""
    flags: list[tuple[Any, str]] = []  # those that are on: (owner, name)
    for module in net.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError("the network is scripted, which hides what it does; give the module "
                             "it was made from")
        if module.training:
            flags.append((module, "training"))
        # net.parameters() would walk through all modules once more: half of the time.
        flags += [(weight, "requires_grad") for weight in module._parameters.values()
                  if weight is not None and weight.requires_grad]
    try:
        for owner, name in flags:
            setattr(owner, name, False)
        yield
    finally:
        for owner, name in flags:
            setattr(owner, name, True)
