"""explain(net, x): what the network looked at, from one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from seenby.core import speedups
from seenby.core.backward import GRAPH_HINT, guided_backprop, head_gradients
from seenby.core.checks import require_arguments, telling_misfit
from seenby.core.forward import Forward, record_forward
from seenby.core.grids import Grid
from seenby.core.layers import layer_name
from seenby.core.methods import METHODS, grad_cam, require_method
from seenby.core.placement import Pad, Stride, place
from seenby.core.recorder import MoreInputs
from seenby.core.search import FoundLayer, look_for_layer
from seenby.core.state import borrowed
from seenby.core.strides import stride_of
from seenby.core.targets import Score, Target, expand_targets, score_of, stack_scores
from seenby.core.tasks import Ending, detached, one_by_one, read_ending
from seenby.errors import InputError, as_input_error

Layer = str | nn.Module | None


@dataclass(frozen=True, eq=False)
class Explanation:
    """What the network looked at in a batch of B pictures; iterate for one picture at a time."""

    logits: Any  # (B, C) before any softmax or sigmoid; without a task what came out for all
    target: Tensor | None  # (B,) the class c that is explained; None: a score of no class
    y_c: Tensor  # (B,) its score, of which the maps are made
    target_name: str  # up or down, like ..., or a function's; of a class nothing
    task: str  # one of TASKS; none where only a function knows what comes out
    final_activation: str  # the softmax or sigmoid at the network's end
    likeness: Tensor | None  # (B, 1) to what an embedding is compared with
    layer: str
    method: str
    grid: Grid  # how the layer's output is read as u x v cells
    stride: Stride | None  # of the layer; None where it is not known
    stride_inferred: bool  # from the number of cells, as it could not be followed
    pad: tuple[float, float] | None  # cells added at each border; None: stretched, for want of it
    alpha: Tensor  # (B, K) eq. 1, the weights of the layer's maps
    L_c: Tensor  # (B, u, v) eq. 2, Grad-CAM as the layer has it
    heatmap: Tensor  # (B, H, W) L_c where it lies in the picture
    R: Tensor | None  # (B, C, H, W) guided backpropagation: where larger numbers would speak for it
    guided_cam: Tensor | None  # (B, C, H, W) R * heatmap
    negative_activations: Tensor | None  # (B,) has A any? None where the method doesn't care
    relu_calls: int  # that were guided, on the ways from the logits to the pixels
    other_activations: tuple[str, ...]  # there, which pass the plain gradient
    layer_note: str = ""  # what must be said of the layer's choice

    def __iter__(self) -> Iterator[Explanation]:
        # Computed for the whole batch, and then cut: that takes a tenth of the time.
        _ = self.probabilities, self.predicted, self.may_be_probability, self.is_finite
        endings = repeat(None) if self.ending is None else one_by_one(self.ending)
        parts = one_by_one(self, whole=() if self.task else ("logits",))
        for part, ending in zip(parts, endings, strict=False):
            vars(part)["ending"] = ending  # cached, with what was computed of it
            yield part

    @cached_property
    def ending(self) -> Ending | None:
        """The logits, understood; None where only a function knows what came out."""
        return Ending(self.logits, self.task, self.final_activation) if self.task else None

    @property
    def probabilities(self) -> Tensor | None:
        """(B, C) of the classes, as the task has them; of an embedding the likeness."""
        if self.likeness is not None or self.ending is None:
            return self.likeness
        return self.ending.probabilities

    @property
    def predicted(self) -> Tensor | None:
        """(B, C) whether the network says each class; None where it says none."""
        return None if self.ending is None else self.ending.predicted

    @property
    def may_be_probability(self) -> Tensor:
        """(B,) whether the logits lie within 0 and 1: if they are probabilities, maps are flat."""
        if self.ending is None:
            return torch.zeros(len(self.L_c), dtype=torch.bool)
        return self.ending.may_be_probability

    @cached_property
    def is_finite(self) -> Tensor:
        """(B,) whether what the network gave for a picture, and its maps, are numbers."""
        tensors = (self.logits if self.task else None, self.y_c, self.heatmap, self.R,
                   self.guided_cam)
        return torch.stack([t.isfinite().reshape(len(t), -1).all(1) for t in tensors
                            if isinstance(t, Tensor)]).all(0)

    def apply(self, change: Callable[[Tensor], Tensor]) -> Explanation:
        """The same with every tensor changed."""
        changed: dict[str, Any] = {name: change(value) for name, value in self.tensors().items()}
        return replace(self, **changed)

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are tensors."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if isinstance(value, Tensor)}


def explain(net: nn.Module, x: Tensor, target: Target = None, layer: Layer = None,
            method: str = "gradcam", pad: Pad = "auto", guided: bool = True, *,
            task: str | None = None, args: Sequence[Any] = (),
            kwargs: Mapping[str, Any] | None = None) -> Explanation:
    """Grad-CAM, guided backpropagation and their product for x (B, C, H, W), by one forward pass.

    target: one class for all, one a picture, None for the predicted ones; a function of the
    network's output that returns (B,) numbers; or what the task knows, as docs/python.md lists it.
    layer: a module of the network or its name, or None for find_layer's. task: what the output
    means, one of TASKS, where it can't be found. args, kwargs: what the network takes besides x.
    The network comes back exactly as it was.
    """
    all_found = explain_many(net, x, [target], layer, [method], pad, guided, task=task, args=args,
                             kwargs=kwargs)
    if len(all_found) > 1:
        raise InputError(f"target {target} was given, which is {len(all_found)} targets; give it "
                         "to explain_many")
    return all_found[0]


def explain_many(net: nn.Module, x: Tensor, targets: Sequence[Target], layer: Layer = None,
                 methods: Sequence[str] = ("gradcam",), pad: Pad = "auto", guided: bool = True, *,
                 task: str | None = None, args: Sequence[Any] = (),
                 kwargs: Mapping[str, Any] | None = None) -> list[Explanation]:
    """Every target by every method, from one forward pass: target by target, methods within."""
    require_arguments(net, x)
    if isinstance(methods, str) or not isinstance(methods, Iterable):
        raise InputError(f"methods {methods!r} was given; give a list of methods")
    for method in methods:
        require_method(method)
    targets, more = expand_targets(targets), MoreInputs(args, {} if kwargs is None else kwargs)
    if not targets:
        return []
    with (torch.inference_mode(False), torch.enable_grad(), borrowed(net),
          telling_misfit(net, x)):
        work = partial(explain_once, net, x, targets, layer, methods, pad, guided, task, more)
        return speedups.with_fallback(work)


def explain_once(net: nn.Module, x: Tensor, targets: Sequence[Target], layer: Layer,
                 methods: Sequence[str], pad: Pad, guided: bool, task: str | None,
                 more: MoreInputs) -> list[Explanation]:
    """Find the layer, go forward, read the scores y_c, go backward, and weigh the maps."""
    if layer is None:
        found = look_for_layer(net, x, targets[0], task, more)
    else:
        found = FoundLayer(layer_name(net, layer))
    forward = record_forward(net, x, found, guided, more)
    ending = read_ending(forward.output, len(x), task)
    scores = [score_of(target, forward.output, ending, len(x)) for target in targets]
    gradients = gradients_of(forward, stack_scores(scores, ending), guided)
    # The maps are as exact as A and the gradients are, and not as coarse as autocast's products.
    is_coarse = torch.is_autocast_enabled(x.device.type)
    with torch.autocast(x.device.type, enabled=False) if is_coarse else nullcontext():
        return [explanation_of(forward, ending, score, method, pad, gradients, t)
                for t, score in enumerate(scores) for method in methods]


@dataclass(frozen=True)
class Gradients:
    """What the backward passes gave, for each of T targets."""

    y_c: Tensor  # (B, T) the scores, without their graph
    of_layer: Sequence[Tensor]  # dy_c / dA, in the layer's own layout
    R: Sequence[Tensor | None]  # (B, C, H, W)
    relu_calls: int
    other_activations: tuple[str, ...]


def gradients_of(forward: Forward, y_c: Tensor, guided: bool) -> Gradients:
    """The backward passes of the scores y_c (B, T)."""
    fix = f"name another one, {GRAPH_HINT}"
    with as_input_error(f"layer {forward.layer.name} does not lead to the logits", fix):
        dyc_dA = head_gradients(y_c, forward.A)
    if not guided:
        return Gradients(y_c.detach(), dyc_dA, [None] * len(dyc_dA), 0, ())
    relu_nodes, others = forward.recorder.activations.between(y_c, forward.x)
    # Last, as from now on the ReLUs are guided.
    R = guided_backprop(relu_nodes, forward.A, y_c, forward.x)
    return Gradients(y_c.detach(), dyc_dA, R, len(relu_nodes), others)


def explanation_of(forward: Forward, ending: Ending | None, score: Score, method: str, pad: Pad,
                   gradients: Gradients, t: int) -> Explanation:
    """The explanation of target number t by one method."""
    grid, size, R = forward.grid, forward.x.shape[2:], gradients.R[t]
    A, dyc_dA = grid.maps(forward.A.detach()), grid.maps(gradients.of_layer[t])  # (B, K, u, v)
    if A.element_size() < 4:
        A, dyc_dA = A.float(), dyc_dA.float()  # 16 bits lose small products
    alpha = METHODS[method].alpha(A, dyc_dA)  # (B, K)
    L_c = grad_cam(A, alpha)  # (B, u, v)
    stride = stride_of(forward.A)
    pads, heatmap = place(L_c, size, stride, pad)  # (B, H, W)
    inferred = stride is None and grid.layout != "NCHW"
    if inferred:  # such cells cover the picture
        stride, pads = (size[0] / grid.u, size[1] / grid.v), pads or (0, 0)
    return Explanation(
        logits=detached(forward.output) if ending is None else ending.y.detach(),
        target=score.target, y_c=gradients.y_c[:, t], target_name=score.name,
        task="" if ending is None else ending.task,
        final_activation="" if ending is None else ending.final_activation,
        likeness=score.likeness, layer=forward.layer.name, method=method,
        grid=grid, stride=stride, stride_inferred=inferred, pad=pads, alpha=alpha, L_c=L_c,
        heatmap=heatmap, R=R, guided_cam=None if R is None else R * heatmap[:, None],
        negative_activations=A.amin((1, 2, 3)) < 0 if METHODS[method].assumes_relu else None,
        relu_calls=gradients.relu_calls, other_activations=gradients.other_activations,
        layer_note=forward.layer.note,
    )  # fmt: skip
