"""run.json: what was run, with what, and what was assumed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from seenby import __version__
from seenby.core.explanation import Explanation
from seenby.core.placement import Pad
from seenby.inputs.networks import Network
from seenby.outputs.summary import Tally, pad_sentence, preparation_sentence


def run_record(settings: dict[str, Any], network: Network, explanation: Explanation, pad: Pad,
               tally: Tally) -> dict[str, Any]:
    """settings: those that change results; explanation: any of the run's.

    Nothing in it depends on the moment or the machine: the same run writes the same bytes.
    """
    preprocessing = network.preprocessing
    return {
        "seenby": __version__,
        "torch": torch.__version__,
        "network": network.title,
        "layer": explanation.layer,
        "task": network.task,
        "final_activation": network.final_activation,
        "prepared": preparation_sentence(network),
        "grid": str(explanation.grid),
        "maps": list(explanation.alpha.shape[1:] + explanation.L_c.shape[1:]),
        "pad": pad_sentence(explanation, pad),
        "preprocessing": asdict(preprocessing) | {
            "interpolation": preprocessing.interpolation.name.lower(),
            "from": network.prepared_by,
        },
        "notes": network.notes,
        "classes": len(network.classes),
        "pictures": {"explained": tally.explained, "skipped": len(tally.skipped),
                     "not picked": tally.not_picked},
        "accuracy": {"labelled": tally.seen.total(), "correct": tally.correct.total()},
        "settings": settings | {"style": asdict(settings["style"])},
    }  # fmt: skip
