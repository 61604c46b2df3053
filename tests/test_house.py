"""The house: which file may know which, and how long a file and a function may be."""

import ast
import importlib
import statistics
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import seenby

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "seenby"
# From the roof to the ground: what stands here may import what stands beside it or below.
ROOMS = ["__main__", "command_line", "gallery", "written_run", "options", "option_types",
         "pipeline", "trial_run", "batch", "trials", "verdict", "scores", "settings", "outputs",
         "inputs", "core", "machine", "errors", ""]  # "": the package itself
WINGS = ("outputs", "inputs", "core")


def module_name(path):
    """seenby/core/layers.py is seenby.core.layers, seenby/__init__.py is seenby."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def is_for_type_checkers(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def nodes_that_run(tree):
    """Every node, within functions too, but not what only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if is_for_type_checkers(node):
            for other in node.orelse:
                yield other
                yield from nodes_that_run(other)
        else:
            yield node
            yield from nodes_that_run(node)


def imported(nodes):
    """The full names of what some nodes import: modules, and what is taken from the package."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: give the module's full name"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner in FILES or node.module == "seenby" else node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {word.value for word in node.args[:1] if isinstance(word, ast.Constant)}
    return names


IMPORTS = {name: imported(nodes_that_run(tree)) for name, tree in TREES.items()}
WITHIN = {name: {other for other in names if other in FILES} for name, names in IMPORTS.items()}


def room(name):
    """seenby.core.layers is in core."""
    return name.partition(".")[2].partition(".")[0]


def upward(graph):
    """The imports that point up the list of rooms."""
    return sorted((name, other) for name, others in graph.items() for other in others
                  if ROOMS.index(room(other)) < ROOMS.index(room(name)))


def foreign(imports, *allowed):
    """Top-level names that are neither the standard library's nor allowed."""
    tops = {name.split(".")[0] for name in imports}
    return sorted(tops - set(sys.stdlib_module_names) - set(allowed))


def test_imports_are_read_wherever_they_stand():
    """Of the reader itself: what it must see, and what it must leave out."""
    source = """
from __future__ import annotations
import os.path, seenby.errors
from typing import TYPE_CHECKING
from seenby import core, explain
from seenby.core import speedups
from seenby.core.search import find_layer
if TYPE_CHECKING:
    from matplotlib.axes import Axes
else:
    import json
class Class:
    def method(self):
        try:
            import torch.nn as nn
        finally:
            importlib.import_module("timm")
        return importlib.import_module(self.name)
"""
    assert imported(nodes_that_run(ast.parse(source))) == {
        "__future__", "os.path", "seenby.errors", "typing", "seenby.core", "seenby.explain",
        "seenby.core.speedups", "seenby.core.search", "json", "torch.nn", "timm",
    }  # fmt: skip
    with pytest.raises(AssertionError, match="line 1: give the module's full name"):
        imported(ast.walk(ast.parse("from . import errors")))


def test_every_file_stands_in_a_room():
    assert {room(name) for name in FILES} == set(ROOMS)
    assert [name for name in FILES if name.count(".") > 1 and room(name) not in WINGS] == []
    assert sum(map(len, WITHIN.values())) > 50  # the imports were read


def test_imports_form_no_circle():
    TopologicalSorter(WITHIN).prepare()
    back = WITHIN | {"seenby.core.placement": {"seenby.core.explanation"}}
    with pytest.raises(CycleError):
        TopologicalSorter(back).prepare()


def test_imports_only_point_down():
    assert upward(WITHIN) == []
    lifted = WITHIN | {"seenby.inputs.pictures": {"seenby.outputs.table", "seenby.errors"}}
    assert upward(lifted) == [("seenby.inputs.pictures", "seenby.outputs.table")]


def test_the_core_knows_torch_and_errors_only():
    for name, others in WITHIN.items():
        if room(name) == "core":
            assert {other for other in others if room(other) != "core"} <= {"seenby.errors"}, name
            assert foreign(IMPORTS[name], "seenby", "torch") == [], name
    assert foreign({"numpy.linalg", "torch.nn", "os.path", "PIL"}, "torch") == ["PIL", "numpy"]
    assert WITHIN["seenby.errors"] == set()
    assert foreign(IMPORTS["seenby.errors"]) == []


def test_inputs_know_neither_outputs_nor_the_rooms_above():
    above = ROOMS[: ROOMS.index("inputs")]
    assert above[-2:] == ["settings", "outputs"]
    for name, others in WITHIN.items():
        if room(name) == "inputs":
            assert [other for other in others if room(other) in above] == [], name


def test_from_the_package_itself_only_the_version_is_imported():
    """Its public names lead to their homes; within the house everybody knows these."""
    public = {(name, other) for name, others in IMPORTS.items() for other in others
              if other == "seenby" or (other.startswith("seenby.") and other not in FILES)}
    assert public == {("seenby.outputs.record", "seenby.__version__")}
    for wing in WINGS:
        assert IMPORTS[f"seenby.{wing}"] == set()
    assert foreign(IMPORTS["seenby"]) == []


def test_neither_door_knows_the_other():
    script = imported(nodes_that_run(ast.parse((ROOT / "SID_a4.py").read_text(encoding="utf-8"))))
    assert "torch" in script
    assert [name for name in script if name.split(".")[0] == "seenby"] == []
    for name, others in IMPORTS.items():
        assert [other for other in others if other.split(".")[0] == "SID_a4"] == [], name


def lines_of(node):
    return node.end_lineno - node.lineno + 1


def test_files_and_functions_are_short():
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines())
               for name, path in FILES.items()}
    assert {name: length for name, length in lengths.items() if length > 250} == {}
    functions = {f"{name}:{node.name}, line {node.lineno}": lines_of(node)
                 for name, tree in TREES.items() for node in ast.walk(tree)
                 if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    assert {name: length for name, length in functions.items() if length > 40} == {}
    assert statistics.median(functions.values()) <= 10
    assert len(functions) > 200


def test_every_file_says_in_a_line_what_it_is():
    for name, tree in TREES.items():
        first, *more = (ast.get_docstring(tree) or "").splitlines()
        assert first.endswith((".", "?")) or not more, name
        assert len(first) > 20, name


# ----------------------------------------------------------------------------- its public names


def test_no_public_name_is_a_files_name():
    files = {path.stem for path in PACKAGE.rglob("*") if path.suffix in (".py", ".html")}
    folders = {path.name for path in PACKAGE.rglob("*") if path.is_dir()}
    assert {"layers", "gallery"} < files
    assert {"core"} < folders
    assert set(seenby.__all__) & (files | folders) == set()


def test_type_checkers_see_what_is_had_when_asked_for():
    block = next(node for node in TREES["seenby"].body if is_for_type_checkers(node))
    seen = {node.module: tuple(alias.asname or alias.name for alias in node.names)
            for node in block.body}
    assert seen == seenby._HOMES
    assert sorted(name for names in seen.values() for name in names) == sorted(seenby.__all__)
    assert len(set(seenby.__all__)) == len(seenby.__all__)
    for home, names in seen.items():
        for name in names:
            assert getattr(seenby, name) is getattr(importlib.import_module(home), name)
    assert set(dir(seenby)) == {*seenby.__all__, "__version__"}
    with pytest.raises(AttributeError, match="module 'seenby' has no attribute 'explan'"):
        seenby.explan  # noqa: B018


def imported_by(code):
    """What a fresh process imports while it runs some code, but for the standard library."""
    code = f"import sys\nbefore = {{*sys.modules}}\n{code}\nprint(*{{*sys.modules}} - before)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return foreign(run.stdout.split())


def test_to_import_the_package_imports_nothing_else():
    assert imported_by("import seenby; seenby.__version__, seenby.InputError") == ["seenby"]


@pytest.mark.slow
def test_a_public_name_is_imported_when_it_is_asked_for():
    code = "from seenby import explain\nassert explain.__module__ == 'seenby.core.explanation'"
    packages = imported_by(code)
    assert {"seenby", "torch"} <= {*packages}
    assert {"matplotlib", "PIL", "torchvision", "timm"} & {*packages} == set()


def test_every_folder_of_the_package_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {module_name(path) for path in PACKAGE.rglob("__init__.py")}
    assert set(settings["tool"]["setuptools"]["packages"]) == folders
    assert folders == {module_name(path.parent / "__init__.py") for path in FILES.values()}
    data = settings["tool"]["setuptools"]["package-data"]["seenby"]
    others = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".py"}
    kept = {str(path.relative_to(PACKAGE)) for path in others if "__pycache__" not in path.parts}
    assert kept == {*data}
