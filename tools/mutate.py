#!/usr/bin/env python3
"""Do the tests notice when the mathematics is broken? Breaks it on purpose, place by place.

python tools/mutate.py              every mutant (some minutes); 1 if one survives
python tools/mutate.py relu pad     those whose name has one of these words
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

ACTIVATIONS, CHECKS = "seenby/core/activations.py", "seenby/core/checks.py"
BACKWARD, EXPLANATION = "seenby/core/backward.py", "seenby/core/explanation.py"
METHODS, PLACEMENT = "seenby/core/methods.py", "seenby/core/placement.py"
RECORDER, SPEEDUPS = "seenby/core/recorder.py", "seenby/core/speedups.py"
STRIDES, ENDINGS = "seenby/core/strides.py", "seenby/core/endings.py"
STATE, PICTURES = "seenby/core/state.py", "seenby/inputs/pictures.py"
PIPELINE, STORE = "seenby/pipeline.py", "seenby/outputs/store.py"
COLORS, TABLE = "seenby/outputs/colors.py", "seenby/outputs/table.py"
GRIDS, SEARCH = "seenby/core/grids.py", "seenby/core/search.py"
TASKS, TARGETS = "seenby/core/tasks.py", "seenby/core/targets.py"
TRIALS, SCORES, VERDICT = "seenby/trials.py", "seenby/scores.py", "seenby/verdict.py"
SCRIPT = "SID_a4.py"

MUTANTS = {  # name -> the file, what stands in it, and what stands there instead
    "relu dropped from L_c": (
        METHODS,
        'return F.relu(torch.einsum("bk,bkuv->buv", alpha, A))',
        'return torch.einsum("bk,bkuv->buv", alpha, A)',
    ),
    "relu inside the sum": (
        METHODS,
        'F.relu(torch.einsum("bk,bkuv->buv", alpha, A))',
        'F.relu(torch.einsum("bk,bkuv->bkuv", alpha, A)).sum(1)',
    ),
    "axes of the map swapped": (METHODS, '"bk,bkuv->buv"', '"bk,bkuv->bvu"'),
    "gradient twice as large": (
        BACKWARD,
        "gradient(number, A,",
        "gradient(2 * number, A,",
    ),
    "class: the least likely one": (
        TARGETS,
        "return ending.order.argmax(1)",
        "return ending.order.argmin(1)",
    ),
    "top: one rank too far": (TARGETS, "range(int(top[1]))", "range(1, int(top[1]) + 1)"),
    "top: from the least probable": (TARGETS, "descending=True", "descending=False"),
    "regression: down is up": (TARGETS, '-y_c if direction == "down" else y_c', "y_c"),
    "embedding: not the cosine": (
        TARGETS,
        "F.cosine_similarity(y, like.embedding.detach().to(y), dim=1)",
        "(y * like.embedding.detach().to(y)).sum(1)",
    ),
    "a function's numbers without a gradient": (TARGETS, "if not y_c.requires_grad:", "if False:"),
    "binary: both classes alike": (TASKS, "torch.cat([-z, z], 1)", "torch.cat([z, z], 1)"),
    "binary: softmax of both ways": (
        TASKS,
        "scores=both_ways, probabilities=lambda _, S: S.sigmoid()",
        "scores=both_ways, probabilities=lambda _, S: S.softmax(1)",
    ),
    "multilabel: one label alone": (TASKS, "        is_several=True,\n", ""),
    "multilabel: labels from 0 up": (TASKS, "self.probabilities > 0.5", "self.probabilities > 0"),
    "segmentation: where it loses, too": (
        TASKS,
        "(y * winners(y.detach())).sum((2, 3), dtype=dtype)",
        "y.sum((2, 3), dtype=dtype)",
    ),
    "segmentation: background like any class": (TASKS, "order[:, 0] -= 1", "pass"),
    "probabilities: softmax of probabilities": (
        TASKS,
        "torch.where(is_done[:, None], S, S.softmax(1))",
        "S.softmax(1)",
    ),
    "a sigmoid's labels are classes": (
        TASKS,
        '"multilabel" if final_activation == "sigmoid" else "classes"',
        '"classes"',
    ),
    "ending: a tuple's first tensor": (
        TASKS,
        "return fitting[0] if len(fitting) == 1 else None",
        "return fitting[0] if fitting else None",
    ),
    "ending: attention's softmax": (
        ENDINGS,
        'argument(args, kwargs, 1, "dim") in (None, 1, 1 - given.ndim)',
        "given is not None",
    ),
    "ending: forgotten by a change of shape": (ENDINGS, "if note is None or note.version != given", "if True or note.version != given"),
    "product with nothing of the map": (
        EXPLANATION,
        "R * heatmap[:, None]",
        "R * heatmap[:, None].clamp(max=0)",
    ),
    "alpha: sum instead of mean": (
        METHODS,
        "return dyc_dA.mean((2, 3))",
        "return dyc_dA.sum((2, 3))",
    ),
    "alpha: mean over a wrong axis": (
        METHODS,
        "return dyc_dA.mean((2, 3))",
        "return dyc_dA.mean((1, 2))[:, :1].expand(dyc_dA.shape[:2])",
    ),
    "alpha: mean over the batch too": (
        METHODS,
        "return dyc_dA.mean((2, 3))",
        "return dyc_dA.mean((0, 2, 3)).expand(dyc_dA.shape[:2])",
    ),
    "counterfactual: sign": (
        METHODS,
        "return -alpha_gradcam(A, dyc_dA)",
        "return alpha_gradcam(A, dyc_dA)",
    ),
    "gradcam++: 2 is 1": (METHODS, "bottom = 2 + A.sum", "bottom = 1 + A.sum"),
    "gradcam++: sum over a wrong axis": (
        METHODS,
        "A.sum((2, 3), keepdim=True) * dyc_dA",
        "A.sum((1,), keepdim=True) * dyc_dA",
    ),
    "gradcam++: no relu of the gradient": (
        METHODS,
        "(F.relu(dyc_dA) / torch.where",
        "(dyc_dA / torch.where",
    ),
    "xgradcam: not divided by the sum": (
        METHODS,
        "(A * dyc_dA).sum((2, 3)) / torch.where(total == 0, torch.inf, total)",
        "(A * dyc_dA).sum((2, 3))",
    ),
    "xgradcam: divided by a sum of zero": (
        METHODS,
        "torch.where(total == 0, torch.inf, total)",
        "total",
    ),
    "guide: clamped from above": (BACKWARD, "grad_input.clamp_(min=0)", "grad_input.clamp_(max=0)"),
    "guide: absolute value": (BACKWARD, "grad_input.clamp_(min=0)", "grad_input.abs_()"),
    "guide: not at all": (
        BACKWARD,
        "        node.register_hook(keep_positive)\n",
        "        pass\n",
    ),
    "targets in the wrong order": (
        BACKWARD,
        "return list(dyc_dA)",
        "return list(dyc_dA.flip(0))",
    ),
    "ways past the layer lost": (
        BACKWARD,
        "if last and get_gradient_edge(A)[:2] in (edges_on_every_path(y_c, x) or ()):",
        "if last:",
    ),
    "other half of the layer taken for it": (
        BACKWARD,
        "[(each, False) for each in onward if each[0]]",
        "[((each[0], 0), False) for each in onward if each[0]]",
    ),
    "guide: the plain gradient, too": (
        ACTIVATIONS,
        "        return list(relus), tuple",
        "        for node in relus:\n"
        "            node.register_hook(lambda given, _: [g.clamp_(min=0) for g in given] and None)\n"
        "        return list(relus), tuple",
    ),
    "relu not seen": (ACTIVATIONS, 'return kind == "relu" or any', "return any"),
    "clamp taken for a relu at any bound": (
        ACTIVATIONS,
        "any(is_zero(b) for b in bounds",
        "any(True for b in bounds",
    ),
    "ways: from every leaf to the logits": (
        BACKWARD,
        "return visited if len(ends) == len(leaves) else {node for node, _ in edges_between(y, x)}",
        "return visited",
    ),
    "ways: activations beside them named": (
        ACTIVATIONS,
        "if node is None or (node in nodes and node not in relus)]",
        "if node not in relus]",
    ),
    "ways: no_grad taken for a function": (ACTIVATIONS, "and any(map(is_function, nodes)):", "and True:"),
    "ways: those of the score, too": (ACTIVATIONS, " and node._sequence_nr() < self.end:", ":"),
    "masks not seen": (ACTIVATIONS, "and is_relu_of(before, result, is_by_sign):", "and False:"),
    "masks: any is a relu": (ACTIVATIONS, "and is_relu_of(before, result, is_by_sign):", "and True:"),
    "masks: of what has no negative value": (ACTIVATIONS, "if not is_by_sign and not (x < 0)", "if not (x < 0)"),
    "a branch that is zero by chance": (ACTIVATIONS, " if not is_computed(b)", ""),
    "a sparse gradient is none": (SEARCH, "(y_c, 0, \"\"), ", ""),
    "masks: those in a view": (ACTIVATIONS, "(name in BOUNDED or x is given)", "name in BOUNDED"),
    "activations: a bound from above": (ACTIVATIONS, " or is_bounded_above(name, args, kwargs):", ":"),
    "activations: those of a script": (ACTIVATIONS, "hidden.add(HIDDEN[kind])", "pass"),
    "activations: in place in a view": (ACTIVATIONS, "(None if is_hidden else tensor.grad_fn, name)", "(tensor.grad_fn, name)"),
    "A overwritten by what follows": (
        RECORDER,
        "if self.is_aliased else A.clone()",
        "if self.is_aliased else A",
    ),
    "A overwritten where it was handed on": (
        RECORDER,
        "        if is_shared:",
        "        if False:",
    ),
    "ReLU in a view: clamped as the whole": (
        ACTIVATIONS,
        "if not ((name in BOUNDED or x is given) and is_view(given)):",
        "if True:",
    ),
    "grid: the prefix taken for patches": (
        GRIDS,
        "output[:, self.prefix :]",
        "output[:, : self.u * self.v]",
    ),
    "grid: channels last, rows for columns": (
        GRIDS,
        "output.permute(0, 3, 1, 2)",
        "output.permute(0, 3, 2, 1)",
    ),
    "search: an early layer is not said": (SEARCH, "if behind <= total / 2:", "if True:"),
    "grid: any two sides": (
        GRIDS,
        " if is_cut(grid.u, grid.v, *size)]",
        "]",
    ),
    "layer: what nobody reads": (SEARCH, "if share > least:", "if share >= 0:"),
    "layer: branches beside the trunk": (
        SEARCH,
        "if o.edge and (on_every_path is None or o.edge[:2] in on_every_path)",
        "if output.edge",
    ),
    "layer: norms are learned, too": (SEARCH, "weights > 2 * grid.channels(output)", "weights > 0"),
    "layer: an earlier call": (
        SEARCH,
        "        outputs.pop(name, None)  # what",
        "        if name in outputs:\n            return\n        pass  # what",
    ),
    "y_c after softmax": (
        ENDINGS,
        "return note.logits, note.activation",
        'return output, ""',
    ),
    "stride: pooling forgotten": (STRIDES, '"max_pool2d": 2, "max_pool2d_with_indices": 2, ', ""),
    "stride: axes swapped": (
        STRIDES,
        "return stride[0] * down, stride[1] * across",
        "return stride[0] * across, stride[1] * down",
    ),
    "stride: added, not multiplied": (
        STRIDES,
        "return stride[0] * down, stride[1] * across",
        "return stride[0] + down, stride[1] + across",
    ),
    "convolution: dilation not seen": (SPEEDUPS, "how[2:] == ((1, 1), 1)", "how[3:] == (1,)"),
    "convolution: a name for its pad not seen": (
        SPEEDUPS,
        "all(map(is_pair, how[:2]))",
        "all(map(is_pair, how[:1]))",
    ),
    "batch norm: not shifted": (
        SPEEDUPS,
        "return torch.addcmul(shift, x, scale)",
        "return x * scale",
    ),
    "batch norm: no epsilon": (
        SPEEDUPS,
        "torch.rsqrt(running_var.to(dtype) + eps)",
        "torch.rsqrt(running_var.to(dtype))",
    ),
    "batch norm: in 8 bits": (
        SPEEDUPS,
        "dtype = torch.promote_types(x.dtype, torch.float32)",
        "dtype = x.dtype",
    ),
    "layout: channels last in double precision": (SPEEDUPS, " or x.dtype == torch.float64", ""),
    "layout: channels last in matrix products": (SPEEDUPS, "preserve_format if by_product else", "preserve_format if False else"),
    "pad: not halved": (PLACEMENT, "((S / s - n) / 2 for S, n, s", "((S / s - n) for S, n, s"),
    "pad: one too few": (
        PLACEMENT,
        "((S / s - n) / 2 for S, n, s",
        "((S / s - n) / 2 - 1 for S, n, s",
    ),
    "place: half a pixel off": (PLACEMENT, "t = (p - (S - 1) / 2) * (n", "t = (p - S / 2) * (n"),
    "place: cells counted from one": (PLACEMENT, "/ S + (n - 1) / 2  #", "/ S + n / 2  #"),
    "place: no zeros around": (
        PLACEMENT,
        "t = t.clamp(-zeros, n - 1 + zeros)",
        "t = t.clamp(0, n - 1)",
    ),
    "place: not clamped": (
        PLACEMENT,
        "t = t.clamp(-zeros, n - 1 + zeros)",
        "t = t.clamp(-n, 2 * n)",
    ),
    "place: rows for columns": (
        PLACEMENT,
        "return pads, rows @ (L_c @ columns)",
        "return pads, rows @ (L_c.mT @ columns)",
    ),
    "place: nearest neighbour": (
        PLACEMENT,
        "F.relu(1 - (t[:, None] - j).abs())",
        "((t[:, None] - j).abs() <= 0.5)",
    ),
    "blur: too narrow": (PLACEMENT, "/ max(sigma, 0.01)) ** 2) / 2)", "/ max(sigma, 0.01)) ** 2))"),
    "dropout left on": (STATE, "for each in modules if each.training]", "for each in modules if False]"),
    "weights left frozen": (STATE, "                setattr(owner, name, True)", "                pass"),
    "state: modes by the module's own eval()": (
        STATE,
        "                setattr(owner, name, False)",
        "                owner.eval() if name == 'training' else setattr(owner, name, False)",
    ),
    "state: attributes stay": (STATE, "            restore(before)\n", ""),
    "state: PyTorch's layers are not looked at": (STATE, "[*map(vars, modules)]", "[vars(each) for each in modules if not is_pytorchs(each)]"),
    "state: an empty cache stays full": (STATE, "if not (container or content) or", "if not content or"),
    "state: layers with hooks are PyTorch's own": (STATE, " and not has_hooks", ""),
    "state: what is in dicts stays": (STATE, "(dict, list, set, deque)", "(list, set, deque)"),
    "state: what is in lists stays": (STATE, "(dict, list, set, deque)", "(dict, set, deque)"),
    "state: what is in sets stays": (STATE, "(dict, list, set, deque)", "(dict, list, deque)"),
    "state: buffers stay": (STATE, "            buffer.data.copy_(copy)\n        if", "            pass\n        if"),
    "state: another version": (
        STATE,
        "torch._C._autograd._unsafe_set_version_counter((buffer,), (version,))",
        "pass",
    ),
    "state: threads take no turns": (STATE, "all(modules.isdisjoint(theirs)", "all(True"),
    "state: a common part is not seen": (STATE, "with exclusive({*modules}):", "with exclusive({net}):"),
    "checks: whole numbers": (CHECKS, "if not x.is_floating_point():", "if False:"),
    "checks: no picture at all": (CHECKS, "if x.ndim != 4 or not x.numel():", "if x.ndim != 4:"),
    "checks: within torch.func": (CHECKS, "if torch._C._are_functorch_transforms_active():", "if False:"),
    "checks: another type": (
        CHECKS,
        "if (weight.dtype, weight.device) == (x.dtype, x.device):",
        "if weight.device == x.device:",
    ),
    "checks: no memory is told as another type": (CHECKS, "if not what or is_out_of_memory(error):", "if not what:"),
    "checks: statistics of inference mode": (
        CHECKS,
        "(*net.parameters(), *net.buffers())",
        "net.parameters()",
    ),
    "checks: a traced network taken for an exported one": (
        CHECKS,
        "any(isinstance(node.target, torch._ops.OpOverload) for",
        "any(True for",
    ),
    "checks: lazy layers": (CHECKS, "and module.has_uninitialized_params()", "and False"),
    "input not normalised": (
        PICTURES,
        "x = (x - torch.tensor(self.mean)) / torch.tensor(self.std)",
        "x = x - torch.tensor(self.mean)",
    ),
    "picture by 256": (PICTURES, "for image in images]) / 255", "for image in images]) / 256"),
    "map drawn from its minimum": (
        COLORS,
        "values = values / (top or size.max() or 1)",
        "values = (values - values.min()) / (top or size.max() or 1)",
    ),
    "signed map from its minimum": (
        COLORS,
        "values = (values + 1) / 2 if signed else values",
        "values = values if signed else values",
    ),
    "colours swapped": (COLORS, '"RdBu_r" if signed', '"RdBu" if signed'),
    "overlay: map over the wrong half": (
        COLORS,
        "Image.blend(under, heat, style.opacity)",
        "Image.blend(under, heat.transpose(Image.Transpose.FLIP_TOP_BOTTOM), style.opacity)",
    ),
    "probability of another class": (
        TABLE,
        "numbers = explanation.probabilities[0].tolist()\n",
        "numbers = explanation.probabilities[0].flip(0).tolist()\n",
    ),
    "target's probability: the predicted one's": (
        TABLE,
        "c = 0 if explanation.target is None else int(explanation.target)",
        "c = int(explanation.probabilities[0].argmax())",
    ),
    "speedups: never off": (SPEEDUPS, "return REPLACEMENTS if _on.get() else {}", "return REPLACEMENTS"),
    "picks: those of later batches taken away": (PIPELINE, "picked.items() if batch < number)", "picked.items())"),
    "picks: more for the figure than for the table": (
        PIPELINE,
        "picks_left = count_picks_left(run.settings, picked, number)",
        "picks_left = sys.maxsize",
    ),
    "resume: other weights not noticed": ("seenby/batch.py", "mark = zlib.crc32(array, mark)", "pass"),
    "parts of other programs deleted": (STORE, 'folder.glob(f".{STEM}.*.parts")', 'folder.glob(".*.parts")'),
    "script: alpha: sum instead of mean": (
        SCRIPT,
        "alpha = dyc_dA.mean((2, 3))",
        "alpha = dyc_dA.sum((2, 3))",
    ),
    "script: relu inside the sum": (
        SCRIPT,
        "F.relu((alpha[:, :, None, None] * A).sum(1))",
        "F.relu(alpha[:, :, None, None] * A).sum(1)",
    ),
    "script: relu dropped from L_c": (
        SCRIPT,
        "F.relu((alpha[:, :, None, None] * A).sum(1))",
        "(alpha[:, :, None, None] * A).sum(1)",
    ),
    "script: pad: one too few": (SCRIPT, "PAD = 3", "PAD = 2"),
    "script: guide: not at all": (SCRIPT, "F.relu(grad_input[0])", "grad_input[0]"),
    "script: guide: clamped from above": (SCRIPT, "F.relu(grad_input[0])", "-F.relu(-grad_input[0])"),
    "script: product with nothing of the map": (
        SCRIPT,
        "R * heatmap[:, None]",
        "R * heatmap[:, None].clamp(max=0)",
    ),
    "script: class: the least likely one": (SCRIPT, "y.argmax(1)", "y.argmin(1)"),
    "a view may be overwritten": (
        RECORDER, "self.is_aliased or A._is_view() or any(", "self.is_aliased or any(",
    ),
    "what is given by name may be overwritten": (
        RECORDER, "tensors = tensors_in((*args, *kwargs.values()))", "tensors = tensors_in(args)",
    ),
    "a stride that is kept by chance": (
        STRIDES, "x.stride()[-2:] != out.stride()[-2:]", "False",
    ),
    "of equal axes the channels come first": (
        GRIDS, "both.reverse()", "pass",
    ),
    "state: new attributes stay": (STATE, "container.clear()", "pass"),
    "a function sees one picture while the layer is searched": (
        SEARCH, "if len(x) > 1 and not callable(target):", "if len(x) > 1:",
    ),
    "what is no row is cut into pictures": (
        EXPLANATION, 'whole=() if self.task else ("logits",)', "whole=()",
    ),
    "maps under autocast": (EXPLANATION, "type, enabled=False)", "type, enabled=True)"),
    "views that are not seen": (
        SPEEDUPS, "if not (_on.get() and is_of_speedups(error)):", "if True:",
    ),
    "any error is tried again": (SPEEDUPS, "_on.get() and is_of_speedups(error)", "_on.get()"),
    "a part of a softmax is a softmax": (ENDINGS, 'name in PARTS and note.activation == "softmax"', "False"),
    "the sign of what is against": (TABLE, "if METHODS[explanation.method].against", "if False"),
    "trust: an edge that is not known is known": (VERDICT, "is_below(edges, DELTA) else", "True else"),
    "trust: a covered picture has its own first class": (
        TRIALS, "if own.target is not None and not own.target_name:", "if own.target is not None and False:",
    ),
    "trust: the mode of the caller": (
        TRIALS, "with torch.inference_mode(False), torch.enable_grad():", "if True:",
    ),
    "trust: a risen logit counts as a fall": (
        TRIALS, "own.y_c - covered_scores(plan, x, target, fill, sets)",
        "(own.y_c - covered_scores(plan, x, target, fill, sets)).abs()",
    ),
    "trust: what is covered is what is not": (
        TRIALS, "torch.where(mask, fill, x)", "torch.where(mask, x, fill)",
    ),
    "trust: one fill for both": (
        TRIALS, "return x.mean((2, 3), keepdim=True), blurred", "return blurred, blurred",
    ),
    "trust: mirror images are the map": (TRIALS, "maps.flip(axes)", "maps.flip(())"),
    "trust: the redrawn network is the trained one": (
        TRIALS, "new.copy_(old.mean() + old.std() * noise)", "new.copy_(old)",
    ),
    "trust: the mean of several ways": (
        SCORES, "ways[:, :, ways.mean((0, 1)).argmax()]", "ways.mean(2)",
    ),
    "trust: its own map among the others'": (
        SCORES, "with_all.sum(2) - with_all.diagonal(dim1=0, dim2=2).T", "with_all.sum(2)",
    ),
    "trust: coverings are foretold by themselves": (
        SCORES, "correlations(second, map_of_falls(first))",
        "correlations(second, map_of_falls(second))",
    ),
    "trust: a map of what lets the score rise": (SCORES, "w.clamp(min=0)", "(-w).clamp(min=0)"),
    "trust: intervals of few as those of many": (SCORES, "* (1 + 2 / N)", ""),
    "trust: one fill is enough": (
        VERDICT, "all(low > bound for _, low, _ in gain.values())",
        "any(low > bound for _, low, _ in gain.values())",
    ),
    "trust: the mean is enough": (
        VERDICT, "all(low > bound for _, low, _ in gain.values())",
        "all(mean > bound for mean, _, _ in gain.values())",
    ),
    "trust: one control is enough": (
        VERDICT, "all(is_above(gain, EPS) for gain", "any(is_above(gain, EPS) for gain",
    ),
    "trust: maps like edges are right": (VERDICT, "if not is_above(edges, EPS):", "if False:"),
    "trust: reliability is never asked": (VERDICT, "if is_reliable else None", ""),
    "stride: a map is forgotten with it": (STRIDES, "return UNKNOWN if is_map", "return None if is_map"),
    "stride: a pad to one side": (STRIDES, "abs(before - after) <= 1", "True"),
    "stride: kept by what works in place": (STRIDES, "if is_changed_in_place or", "if"),
    "batch norm of one picture": (SPEEDUPS, "    if training:\n", "    if training or len(x) == 1:\n"),
    "masks: NaN of another picture": (ACTIVATIONS, " | odd).all()", ").all()"),
    "state: what was thawed": (STATE, "                weight.requires_grad = False\n", "                pass\n"),
    "state: a buffer of another size": (STATE, "if buffer.shape != copy.shape:", "if False:"),
    "what a copy was made of is written to": (RECORDER, ", (args[0], args[0]._version)]", "]"),
    "hooks of the network's own": (RECORDER, "if layer._forward_hooks:", "if False:"),
    "stride: kept where pixels move": (STRIDES, "if name in MOVING and moves_pixels(", "if False and moves_pixels("),
    "stride: lost where channels move": (STRIDES, "return bool(axes) and all(", "return bool(axes) and not any("),
    "stride: noted on weights": (STRIDES, "(stride and not (args and out is args[0]))", "stride"),
    "stride: corners are borders": (STRIDES, "bool(kwargs.get(\"align_corners\"))", "False"),
    "stride: a view is an index": (STRIDES, "if name == \"getitem\" and not out._is_view():", "if name == \"getitem\":"),
    "tokens: as many others as can be": (GRIDS, "return min(grids, key=lambda grid: grid.prefix", "return max(grids, key=lambda grid: grid.prefix"),
    "tokens: queries are patches": (GRIDS, "with_halves(maps), most=2)", "with_halves(maps), most=8)"),
    "tokens: cells that come last": (GRIDS, "if math.prod(maps[-1]) == K and", "if False and"),
    "tokens: windows are maps": (RECORDER, " and len(tensor) == self.B:", ":"),
    "copies that are written to": (RECORDER, "if any(tensor._version != version", "if any(False"),
    "a layer that works in place": (RECORDER, "A is each and A._version == version for", "A is each for"),
    "paths: counted where they part": (BACKWARD, "if open_paths == incoming[edge]:", "if incoming[edge] == 1:"),
    "a call of other pictures": (RECORDER, "            if self.sees_pictures:", "            if False:"),
    "a call of other pictures, in the search": (SEARCH, "if before and before.edge and not", "if False and not"),
    "maps that a network holds": (RECORDER, "return is_held and any(", "return False and any("),
    "maps of half precision": (EXPLANATION, "if A.element_size() < 4:", "if False:"),
    "a function with a node's name": (ACTIVATIONS, "if not is_function(node) and is_relu", "if is_relu"),
    "checkpoints of a batch": (SPEEDUPS, "|Recomputed values", ""),
    "compiled networks": (STATE, "if is_imported and not", "if False and not"),
    "compiled again too late": (STATE, "                _uncompiled.close()\n            _released", "                pass\n            _released"),
    "searched with one picture alone": (SEARCH, "return find_layer(net, x, target, task, more)", "return find_layer(net, x[:1], target, task, more)"),
    "labels: one of them is enough": (TABLE, "return row[\"label\"] == row[\"predicted\"] if known", "return row[\"label\"] in row[\"predicted\"] if known"),
    "pictures of one shade": (PICTURES, "< MIN_CONTRAST:", "< 1:"),
    "script: portrait": (SCRIPT, "max(1.4, 1.05 * bands) * band", "1.4 * band"),
}  # fmt: skip


USERS = {  # a file -> the tests that use it, where they are other than mostly
    SCRIPT: ("test_twin.py",),
    EXPLANATION: ("test_targets.py", "test_methods.py", "test_pipeline.py"),
    TABLE: ("test_figure.py", "test_pipeline.py"),
    **dict.fromkeys((PIPELINE, STORE), ("test_pipeline.py", "test_long_runs.py")),
    SPEEDUPS: ("test_backward.py", "test_explanation.py"),
    STRIDES: ("test_placement.py", "test_grids.py"),
    ENDINGS: ("test_tasks.py", "test_recorder.py"),
    RECORDER: ("test_speedups.py", "test_search.py", "test_tasks.py"),
    **dict.fromkeys((TASKS, TARGETS),
                    ("test_tasks.py", "test_targets.py", "test_endings.py")),
}  # fmt: skip


def tests_of(file: str, folder: Path) -> list[str]:
    """The tests of a file in a copy of the project: those of its own, then those that use it."""
    own = "test_sid_a4*.py" if file == SCRIPT else f"test_{Path(file).stem}.py"
    patterns = own, *USERS.get(file, ("test_explanation.py", "test_pipeline.py"))
    found = [sorted((folder / "tests").glob(pattern)) for pattern in patterns]
    return [*dict.fromkeys(str(path.relative_to(folder)) for paths in found for path in paths)]


def first_to_fail(tests: Sequence[str], folder: Path) -> str:
    """The first file of tests that fails in a copy of the project, which they import; "" if none.

    One file after the other: most mutants die in the first.
    """
    environment = os.environ | {"PYTHONPATH": str(folder)}  # before any installed copy
    for test in tests:
        words = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", test]
        code = subprocess.run(words, cwd=folder, env=environment, capture_output=True).returncode
        if code not in (0, 1, 2):  # 2: not even imported; others are no judgement of the code
            sys.exit(f"pytest {test} ended with {code}")
        if code:
            return test
    return ""


def survives(name: str, folder: Path) -> bool:
    """Whether every test passes all the same."""
    file, old, new = MUTANTS[name]
    path = folder / file
    source = path.read_text()
    path.write_text(source.replace(old, new))
    try:
        return not first_to_fail(tests_of(file, folder), folder)
    finally:
        path.write_text(source)


def copy_to(folder: Path) -> None:
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info")
    shutil.copytree(ROOT, folder, ignore=ignored)


def main() -> int:
    chosen = [n for n in MUTANTS if not sys.argv[1:] or any(w in n for w in sys.argv[1:])]
    alive = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "copy")
        copy_to(folder)
        tests = dict.fromkeys(t for n in chosen for t in tests_of(MUTANTS[n][0], folder))
        if failing := first_to_fail([*tests], folder):  # then each mutant would seem to be caught
            sys.exit(f"{failing} fails before anything is broken: fix that first")
        for mutant in chosen:
            survived = survives(mutant, folder)
            alive += survived
            print(f"{'SURVIVES' if survived else 'caught'}  {mutant}", flush=True)
    print(f"{len(chosen) - alive} of {len(chosen)} are caught")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
