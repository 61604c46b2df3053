"""A checkpoint, read without running its code."""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from seenby.errors import Complaint, complaining, reason

MAX_TENSORS = 20_000  # of a checkpoint; the largest networks have a tenth of it


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, bare or wrapped. weights_only: nothing in the file is ever run."""

    def flaw(error: BaseException) -> str:
        if isinstance(error, (FileNotFoundError, IsADirectoryError, PermissionError)):
            return f"weights {path}: {reason(error)}"
        code = code_in(path, str(error))  # a broken file makes the unpickler raise almost anything
        what = f"would run code ({code}): refused" if code else "is truncated or no checkpoint"
        return f"weights {path}: the file {what}"

    how = "give a file written by torch.save(net.state_dict(), FILE) with --weights"
    # What torch.load warns of, it then refuses.
    with complaining(flaw, how), warnings.catch_warnings(action="ignore"):
        if bomb(path):
            raise ValueError("packed as torch.save never does")
        found = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not (isinstance(found, dict) and found and all(map(torch.is_tensor, found.values()))):
        raise Complaint(f"weights {path}: the file holds no state dict; {how}")
    claimed = sum(value.numel() * value.element_size() for value in found.values())
    if len(found) > MAX_TENSORS or claimed > 8 * path.stat().st_size:  # some share their weights
        raise Complaint(f"weights {path}: {len(found)} tensors of {claimed} bytes are more than "
                        f"such a file can hold; {how}")
    for key, value in found.items():
        if value.layout != torch.strided or value.is_complex():
            raise Complaint(f"weights {path}: {key} is no plain tensor of real numbers; {how}")
        if not torch.isfinite(value).all():
            raise Complaint(f"weights {path}: {key} holds NaN or infinity; train again, or {how}")
    return {str(key).removeprefix("module."): value for key, value in found.items()}


def bomb(path: Path) -> bool:
    """A zip of more than a network needs, or packed tighter than torch.save does it: not at all."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        entries = file.infolist()
    return len(entries) > MAX_TENSORS or any(e.file_size > e.compress_size for e in entries)


def code_in(path: Path, refusal: str) -> str | None:
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


def check_fit(net: nn.Module, state: dict[str, Tensor], weights: str) -> None:
    ours = net.state_dict()
    for key in [*ours, *state]:
        has, needs = (tuple(d[key].shape) if key in d else "missing" for d in (state, ours))
        if has != needs and not key.endswith("num_batches_tracked"):  # which old files lack
            raise Complaint(f"weights {weights} are of another network: {key} is {has} in the "
                            f"file, {needs} in the network; give its own with --weights")


def weights_title(weights: str | None) -> str:
    titles = {None: "as it comes", "none": "RANDOM weights"}
    return titles.get(weights) or Path(str(weights)).name
