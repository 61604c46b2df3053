"""What did the network look at? Grad-CAM and its relatives for any vision network.

    from seenby import explain
    explanation = explain(net, x)  # .heatmap, .R, .guided_cam

Nothing is imported before it is used: `import seenby` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seenby.core.explanation import Explanation, explain, explain_many
    from seenby.core.methods import METHODS
    from seenby.errors import InputError
    from seenby.inputs.networks import Network, load_network
    from seenby.inputs.pictures import Picture, Preprocessing, read_pictures
    from seenby.outputs.colors import Style, overlay
    from seenby.outputs.figure import draw_grid
    from seenby.trials import trust
    from seenby.verdict import Trust

__version__ = "0.4.0"

_HOMES = {
    "seenby.core.explanation": ("Explanation", "explain", "explain_many"),
    "seenby.core.methods": ("METHODS",),
    "seenby.errors": ("InputError",),
    "seenby.inputs.networks": ("Network", "load_network"),
    "seenby.inputs.pictures": ("Picture", "Preprocessing", "read_pictures"),
    "seenby.outputs.figure": ("draw_grid",),
    "seenby.outputs.colors": ("Style", "overlay"),
    "seenby.trials": ("trust",),
    "seenby.verdict": ("Trust",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = [
    "METHODS", "Explanation", "InputError", "Network", "Picture", "Preprocessing", "Style",
    "Trust", "draw_grid", "explain", "explain_many", "load_network", "overlay", "read_pictures",
    "trust",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
