"""A network as in use while it is explained, and afterwards as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from seenby.errors import Complaint


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Dropout and batch-norm as in use, no graph for the weights; afterwards each as it was."""
    on: list[tuple[Any, str]] = []
    for module in net.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise Complaint("the network is scripted, which hides what it does; give the module it "
                            "was made from")
        if module.training:
            on.append((module, "training"))
        # net.parameters() would walk through all modules once more: half of the time.
        on += [(weight, "requires_grad") for weight in module._parameters.values()
               if weight is not None and weight.requires_grad]
    try:
        for thing, name in on:
            setattr(thing, name, False)
        yield
    finally:
        for thing, name in on:
            setattr(thing, name, True)
