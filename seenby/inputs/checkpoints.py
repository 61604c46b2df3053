"""A checkpoint, read without running any code that it holds."""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seenby.errors import InputError, as_input_error, message_of

MAX_TENSORS = 20_000  # in a checkpoint; the largest networks have a tenth of it
FIX = "give a file written by torch.save(net.state_dict(), FILE) with --weights"


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, bare or wrapped, its keys without a "module." before them."""

    def describe(error: BaseException) -> str:
        if isinstance(error, (FileNotFoundError, IsADirectoryError, PermissionError)):
            return f"weights {path}: {message_of(error)}"
        call = pickled_call(path, str(error))  # a broken file makes the unpickler raise anything
        what = f"would run code ({call}): refused" if call else "is truncated or no checkpoint"
        return f"weights {path}: the file {what}"

    # What torch.load warns of, it then refuses.
    with as_input_error(describe, FIX), warnings.catch_warnings(action="ignore"):
        if is_zip_bomb(path):
            raise ValueError("packed as torch.save never does")
        # weights_only: nothing in the file is ever run.
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in ("state_dict", "model_state_dict", "model", "net", "network", "weights"):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(wrapper), dict):
            checkpoint = checkpoint[wrapper]
    require_tensors(path, checkpoint)
    return {str(key).removeprefix("module."): value for key, value in checkpoint.items()}


def require_tensors(path: Path, checkpoint: Any) -> None:
    """Raise unless it is a dict of plain, finite tensors that the file is large enough for."""
    is_dict = isinstance(checkpoint, dict) and bool(checkpoint)
    if not (is_dict and all(map(torch.is_tensor, checkpoint.values()))):
        keys = ", ".join(map(str, [*checkpoint][:5])) if isinstance(checkpoint, dict) else ""
        raise InputError(f"weights {path}: the file holds no state dict"
                         f"{f', but {keys}' if keys else ''}; {FIX}")
    claimed = sum(value.numel() * value.element_size() for value in checkpoint.values())
    if len(checkpoint) > MAX_TENSORS or claimed > 8 * path.stat().st_size:  # some share weights
        raise InputError(f"weights {path}: {len(checkpoint)} tensors of {claimed} bytes are more "
                         f"than such a file can hold; {FIX}")
    for key, value in checkpoint.items():
        if value.layout != torch.strided or value.is_complex():
            raise InputError(f"weights {path}: {key} is no plain tensor of real numbers; {FIX}")
        if not torch.isfinite(value).all():
            raise InputError(f"weights {path}: {key} holds NaN or infinity; train again, or {FIX}")


def is_zip_bomb(path: Path) -> bool:
    """A zip of more than a network needs, or packed tighter than torch.save does it: not at all."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        entries = file.infolist()
    return len(entries) > MAX_TENSORS or any(e.file_size > e.compress_size for e in entries)


def pickled_call(path: Path, refusal: str) -> str | None:
    """What a pickle would have called: from PyTorch's refusal, or read off its own opcodes."""
    named = re.search(r"GLOBAL ([\w.]+)", refusal)
    if named:
        return named[1]
    words: list[str] = []
    with suppress(Exception), path.open("rb") as file:
        for opcode, word, _ in pickletools.genops(file):  # reads, runs nothing
            words += word.split() if isinstance(word, str) else []
            if opcode.name.endswith("GLOBAL"):
                return ".".join(words[-2:])
    return None


def build_with_checkpoint(build: Callable[..., nn.Module], weights: str) -> nn.Module:
    """The network with a checkpoint's weights, and as many classes as these have.

    build makes the network; where the number of classes differs, it is given num_classes.
    """
    net = build()
    if weights == "none":
        return net
    expected = net.state_dict()
    state = without_prefix(read_checkpoint(Path(weights)), expected)
    last_key = next(reversed(expected))  # belongs to the layer of the classes
    last = state.get(last_key)
    if last is not None and last.ndim and len(last) != len(expected[last_key]):
        with suppress(TypeError):  # a network of one's own need not take it: what misfits is named
            net = build(num_classes=len(last))
    aux_keys = {key for key in state if key not in expected and key.lower().startswith("aux")}
    state = {key: value for key, value in state.items() if key not in aux_keys}
    require_same_shapes(net, state, weights)
    net.load_state_dict(state, strict=False)
    return net


def without_prefix(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torch.compile puts _orig_mod. before every key, and Lightning a name such as model."""
    prefix = next(iter(state)).partition(".")[0] + "."
    if state.keys() & expected.keys() or not all(key.startswith(prefix) for key in state):
        return state
    return {key.removeprefix(prefix): value for key, value in state.items()}


def require_same_shapes(net: nn.Module, state: dict[str, Tensor], weights: str) -> None:
    """Raise at the first tensor that the file and the network don't have in common."""
    expected = net.state_dict()
    for key in [*expected, *state]:
        has, needs = (tuple(d[key].shape) if key in d else "missing" for d in (state, expected))
        if has != needs and not key.endswith("num_batches_tracked"):  # which old files lack
            raise InputError(f"weights {weights} are of another network: {key} is {has} in the "
                             f"file, {needs} in the network; give this network's, or the network "
                             "that they belong to with --model, FILE.py:NAME if it is your own")
