"""The settings of a run: all that it is asked for, before it begins and unchanged to its end."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from seenby.core.placement import Pad
from seenby.machine import default_workers
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

    def results(self) -> dict[str, Any]:
        """The settings that change results, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)
                if "keeps_results" not in f.metadata}

    def fingerprint(self) -> int:
        """Of the settings that change results."""
        return zlib.crc32(repr(self.results()).encode(errors="replace"))
