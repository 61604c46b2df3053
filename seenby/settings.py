"""The settings of a run: which of them go together, and which a resumed run may change."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from seenby.core.methods import require_trial
from seenby.core.placement import Pad
from seenby.errors import InputError
from seenby.machine import Ranks, default_workers
from seenby.outputs.colors import Style

# A run may be resumed with another value of a field that is marked so.
KEEPS_RESULTS = {"keeps_results": True}


@dataclass(frozen=True)
class Settings:
    """Named as on the command line, where docs/options.md explains each."""

    # what is looked at
    images: tuple[str, ...] = ()
    pick: str = "all"  # correct, wrong
    limit: int | None = None
    invert: bool = False
    # the network
    model: str = ""
    weights: str | None = None
    class_names: tuple[str, ...] | None = None
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    device: str = field(default="cpu", metadata=KEEPS_RESULTS)
    task: str | None = None
    list_layers: bool = field(default=False, metadata=KEEPS_RESULTS)
    # the explanation
    target: tuple[str, ...] = ("predicted",)
    like: str | None = None
    method: tuple[str, ...] = ("gradcam",)
    layer: str | None = None
    pad: Pad = "auto"
    # what is drawn and written
    style: Style = field(default_factory=Style)
    blur: float = 0.0
    uncropped: bool = False
    columns: int = field(default=8, metadata=KEEPS_RESULTS)
    overlays: bool = True
    raw: bool = True
    save_maps: str | None = None  # float16, float32
    gallery: bool = False
    trust: int | None = field(default=None, metadata=KEEPS_RESULTS)
    out: Path = field(default=Path("outputs"), metadata=KEEPS_RESULTS)
    # the run
    batch_size: int = 16
    workers: int = field(default=default_workers(), metadata=KEEPS_RESULTS)
    resume: bool = field(default=False, metadata=KEEPS_RESULTS)
    quiet: bool = field(default=False, metadata=KEEPS_RESULTS)

    def changing_results(self) -> dict[str, Any]:
        """The settings that change results, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)
                if "keeps_results" not in f.metadata}

    def fingerprint(self) -> int:
        """A checksum of the settings that change results."""
        return zlib.crc32(repr(self.changing_results()).encode(errors="replace"))


def require_consistent(settings: Settings, ranks: Ranks) -> None:
    """Raise where settings do not go together, as before anything is loaded."""
    is_embedding = settings.task == "embedding"
    if settings.like and not is_embedding:
        raise InputError("--like was given, which is for embeddings; give --task embedding with it")
    if is_embedding and settings.target != ("predicted",):
        raise InputError("--target was given; an embedding is compared with a picture: give --like "
                         "PICTURE instead")
    if is_embedding and not settings.like and not settings.list_layers:
        raise InputError("the task is embedding; give --like PICTURE, which others are compared to")
    if settings.pick != "all" and settings.task in ("embedding", "regression"):
        raise InputError(f"--pick {settings.pick} was given; the task is {settings.task}, of which "
                         "no picture is right or wrong: drop it")
    if ranks.world_size > 1 and settings.pick != "all" and settings.limit:
        raise InputError("--pick with --limit was given to several processes, of which none knows "
                         "what the others picked; drop one of them, or use one process")
    if ranks.world_size > 1 and settings.trust:
        raise InputError("--trust was given to several processes; use one process")
    if settings.trust:
        require_trial(settings.method[0])
