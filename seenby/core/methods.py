"""What a method is: the weights alpha that it gives to the maps of the layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def alpha_gradcam(_A: Tensor, dyc_dA: Tensor) -> Tensor:
    """alpha_k = mean over (i, j) of dy_c / dA_k, eq. 1: (B, K, u, v) -> (B, K)."""
    return dyc_dA.mean((2, 3))


def alpha_gradcam_pp(A: Tensor, dyc_dA: Tensor) -> Tensor:
    """Chattopadhay et al. 2018, eq. 19: sum of g^2 / (2 g^2 + sum(A) g^3) ReLU(g), g = dy_c / dA.

    g^2 cancels: where it is zero, so is ReLU(g). Their factor exp(y_c) scales a map as a whole.
    """
    bottom = 2 + A.sum((2, 3), keepdim=True) * dyc_dA
    return (F.relu(dyc_dA) / torch.where(bottom == 0, 1, bottom)).sum((2, 3))


def alpha_xgradcam(A: Tensor, dyc_dA: Tensor) -> Tensor:
    """Fu et al. 2020, eq. 8: sum of A / sum(A) dy_c / dA; a map that sums to zero has no say."""
    total = A.sum((2, 3))
    return (A * dyc_dA).sum((2, 3)) / torch.where(total == 0, torch.inf, total)


def alpha_counterfactual(A: Tensor, dyc_dA: Tensor) -> Tensor:
    """Section 3.3 of the Grad-CAM paper: what speaks against the class has negative gradients."""
    return -alpha_gradcam(A, dyc_dA)


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": alpha_gradcam,
    "gradcam++": alpha_gradcam_pp,
    "xgradcam": alpha_xgradcam,
    "counterfactual": alpha_counterfactual,
}
FOR_POSITIVE = {"gradcam++", "xgradcam"}  # made for maps after a ReLU
CAMS = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++", "xgradcam": "XGrad-CAM",
        "counterfactual": "Counter-\nfactual"}
