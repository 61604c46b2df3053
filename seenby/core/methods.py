"""The methods: how each weighs the maps A of the explained layer. To add one, add a record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from seenby.errors import InputError


@dataclass(frozen=True)
class Method:
    """One method: its formula, and what the command line, the figure and the table say of it."""

    alpha: Callable[[Tensor, Tensor], Tensor]  # A and dyc_dA, both (B, K, u, v) -> (B, K)
    title: str
    assumes_relu: bool = False  # made for maps after a ReLU, which are nowhere negative
    against: bool = False  # its map shows what speaks against the class


def alpha_gradcam(_A: Tensor, dyc_dA: Tensor) -> Tensor:
    """alpha_k = mean over (i, j) of dy_c / dA_k, eq. 1 of the Grad-CAM paper."""
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


def grad_cam(A: Tensor, alpha: Tensor) -> Tensor:
    """L_c = ReLU(sum over k of alpha_k A_k), eq. 2 of the paper: ReLU after the sum."""
    return F.relu(torch.einsum("bk,bkuv->buv", alpha, A))


METHODS = {
    "gradcam": Method(alpha_gradcam, "Grad-CAM"),
    "gradcam++": Method(alpha_gradcam_pp, "Grad-CAM++", assumes_relu=True),
    "xgradcam": Method(alpha_xgradcam, "XGrad-CAM", assumes_relu=True),
    "counterfactual": Method(alpha_counterfactual, "Counterfactual", against=True),
}


def require_method(name: str) -> None:
    if name not in list(METHODS):  # which need not be hashable
        raise InputError(f"method {name!r} was given; give one of {', '.join(METHODS)}")


def require_trial(method: str) -> None:
    """Raise of a method that `trust` can't try."""
    require_method(method)
    if METHODS[method].against:
        raise InputError(f"method {method} was given, whose maps show what speaks against a class: "
                         "covering that lets the logit rise, so try another method")
