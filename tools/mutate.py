#!/usr/bin/env python3
"""Do the tests notice when the mathematics is broken? Breaks it on purpose, place by place.

python tools/mutate.py              every mutant (some minutes); 1 if one survives
python tools/mutate.py relu pad     those whose name has one of these words
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ["explanation", "pictures", "figure", "run"]

MUTANTS = {  # name -> what stands in SID_a4.py, and what stands there instead
    "relu dropped from L_c": (
        "return F.relu(alpha[:, None] @ A.flatten(2)).view",
        "return (alpha[:, None] @ A.flatten(2)).view",
    ),
    "relu inside the sum": (
        "F.relu(alpha[:, None] @ A.flatten(2)).view",
        "F.relu(alpha[:, :, None] * A.flatten(2)).sum(1).view",
    ),
    "axes of the map swapped": ("@ A.flatten(2)", "@ A.mT.flatten(2)"),
    "alpha: sum instead of mean": ("return dyc_dA.mean((2, 3))", "return dyc_dA.sum((2, 3))"),
    "alpha: mean over a wrong axis": (
        "return dyc_dA.mean((2, 3))",
        "return dyc_dA.mean((1, 2))[:, :1].expand(dyc_dA.shape[:2])",
    ),
    "alpha: mean over the batch too": (
        "return dyc_dA.mean((2, 3))",
        "return dyc_dA.mean((0, 2, 3)).expand(dyc_dA.shape[:2])",
    ),
    "counterfactual: sign": ("return -alpha_gradcam(A, dyc_dA)", "return alpha_gradcam(A, dyc_dA)"),
    "gradcam++: 2 is 1": ("bottom = 2 + A.sum", "bottom = 1 + A.sum"),
    "gradcam++: sum over a wrong axis": (
        "A.sum((2, 3), keepdim=True) * dyc_dA",
        "A.sum((1,), keepdim=True) * dyc_dA",
    ),
    "gradcam++: no relu of the gradient": (
        "(F.relu(dyc_dA) / torch.where",
        "(dyc_dA / torch.where",
    ),
    "xgradcam: not divided by the sum": (
        "(A * dyc_dA).sum((2, 3)) / torch.where(total == 0, torch.inf, total)",
        "(A * dyc_dA).sum((2, 3))",
    ),
    "xgradcam: divided by a sum of zero": ("torch.where(total == 0, torch.inf, total)", "total"),
    "guide: clamped from above": ("gradient.clamp_(min=0)", "gradient.clamp_(max=0)"),
    "guide: absolute value": ("gradient.clamp_(min=0)", "gradient.abs_()"),
    "guide: the plain gradient, too": (
        "self.ways_back.append(out.grad_fn)",
        "out.grad_fn.register_hook(clamp)",
    ),
    "guide: not at all": ("            way.register_hook(clamp)\n", "            pass\n"),
    "functional relu not seen": ("return name in RELU\n", "return name in {'relu6'}\n"),
    "clamp taken for a relu at any bound": (
        "return is_zero(argument(args, kwargs, 1, LOWER_BOUND[name]))",
        "return True",
    ),
    "A overwritten by what follows": ("return output.clone()  # which", "return output  # which"),
    "A overwritten where it was handed on": (
        "if any(output is given for given in args)",
        "if False",
    ),
    "ReLU in a view: clamped as the whole": (
        "args[0] if args and args[0]._is_view()",
        "None if True",
    ),
    "gradient twice as large": (
        "scatter_(2, c[..., None], 1)",
        "scatter_(2, c[..., None], 2)",
    ),
    "class: the least likely one": (
        "return logits.detach().argmax(1)",
        "return logits.detach().argmin(1)",
    ),
    "y_c after softmax": ('get(getattr(output, "_version", None), output)', "get(None, output)"),
    "targets in the wrong order": ("return list(walk[0])", "return list(walk[0].flip(0))"),
    "convolution: dilation not seen": ("how[2:] == ((1, 1), 1)", "how[3:] == (1,)"),
    "convolution: a name for its pad not seen": (" == np.shape(how[1]) == (2,)", " == (2,)"),
    "ways past the layer lost": ("if last and all_through(self.A, logits, x)", "if last"),
    "other half of the layer taken for it": (
        "{(A.grad_fn, A.output_nr)}",
        "{(A.grad_fn, n) for n in range(9)}",
    ),
    "batch norm: not shifted": ("return torch.addcmul(shift, x, scale)", "return x * scale"),
    "batch norm: no epsilon": ("torch.rsqrt(running_var + eps)", "torch.rsqrt(running_var)"),
    "product with nothing of the map": ("R * L_c[:, None]", "R * L_c[:, None].clamp(max=0)"),
    "pad: not halved": ("((S / s - n) / 2 for S, n, s", "((S / s - n) for S, n, s"),
    "pad: one too few": ("((S / s - n) / 2 for S, n, s", "((S / s - n) / 2 - 1 for S, n, s"),
    "place: half a pixel off": ("t = (p - (S - 1) / 2) * (n", "t = (p - S / 2) * (n"),
    "place: cells counted from one": ("/ S + (n - 1) / 2  #", "/ S + n / 2  #"),
    "place: no zeros around": ("t = t.clamp(-zeros, n - 1 + zeros)", "t = t.clamp(0, n - 1)"),
    "place: not clamped": ("t = t.clamp(-zeros, n - 1 + zeros)", "t = t.clamp(-n, 2 * n)"),
    "place: rows for columns": (
        "return pads, rows @ (cells @ columns.T)",
        "return pads, rows @ (cells.mT @ columns.T)",
    ),
    "place: nearest neighbour": (
        "F.relu(1 - (t[:, None] - j).abs())",
        "((t[:, None] - j).abs() <= 0.5)",
    ),
    "stride: pooling forgotten": ('"max_pool2d": 2, "max_pool2d_with_indices": 2,', ""),
    "stride: axes swapped": (
        "return before[0] * down, before[1] * across",
        "return before[0] * across, before[1] * down",
    ),
    "stride: added, not multiplied": (
        "return before[0] * down, before[1] * across",
        "return before[0] + down, before[1] + across",
    ),
    "dropout left on": ("if module.training:", "if False:"),
    "weights left frozen": ("            setattr(thing, name, True)", "            pass"),
    "input not normalised": (
        "x = (x - torch.tensor(self.mean)) / torch.tensor(self.std)",
        "x = x - torch.tensor(self.mean)",
    ),
    "picture by 256": ("for image in images]) / 255", "for image in images]) / 256"),
    "map drawn from its minimum": (
        "values = values / (top or size.max() or 1)",
        "values = (values - values.min()) / (top or size.max() or 1)",
    ),
    "signed map from its minimum": (
        "values = (values + 1) / 2 if signed else values",
        "values = values if signed else values",
    ),
    "colours swapped": ('"RdBu_r" if signed', '"RdBu" if signed'),
    "overlay: map over the wrong half": (
        "Image.blend(under, Image.fromarray(heat), style.opacity)",
        "Image.blend(under, Image.fromarray(heat[::-1]), style.opacity)",
    ),
    "probability of another class": (
        "explanation.logits[0].softmax(0).max(0)",
        "explanation.logits[0].sigmoid().max(0)",
    ),
    "blur: too narrow": ("/ max(sigma, 0.01)) ** 2) / 2)", "/ max(sigma, 0.01)) ** 2))"),
}


def survives(name: str, folder: Path) -> bool:
    """Whether every test passes all the same."""
    old, new = MUTANTS[name]
    source = (ROOT / "SID_a4.py").read_text()
    (folder / "SID_a4.py").write_text(source.replace(old, new))
    for room in TESTS:  # one after the other: most mutants die in the first
        words = [sys.executable, "-m", "pytest", "-x", "-q", f"tests/test_{room}.py"]
        if subprocess.run(words, cwd=folder, capture_output=True).returncode:
            return False
    return True


def main() -> int:
    chosen = [n for n in MUTANTS if not sys.argv[1:] or any(w in n for w in sys.argv[1:])]
    alive = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "copy")
        ignored = shutil.ignore_patterns(".*", "outputs/?*/", "__pycache__")
        shutil.copytree(ROOT, folder, ignore=ignored)
        for mutant in chosen:
            survived = survives(mutant, folder)
            alive += survived
            print(f"{'SURVIVES' if survived else 'caught'}  {mutant}", flush=True)
    print(f"{len(chosen) - alive} of {len(chosen)} are caught")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
