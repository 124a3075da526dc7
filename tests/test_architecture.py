"""Which module may import what, read from the sources without importing them."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOPS = {"onnxq": "onnxq", "passes": "onnxq.passes", "cli": "onnxq.cli"}
FILES = sorted(file for top in TOPS for file in (ROOT / top).rglob("*.py"))
STDLIB = set(sys.stdlib_module_names)


def module_name(file):
    """The name a file is imported by."""
    top, *rest = file.relative_to(ROOT).with_suffix("").parts
    return ".".join([TOPS[top], *rest]).removesuffix(".__init__")


TREES = {module_name(file): ast.parse(file.read_text(encoding="utf-8")) for file in FILES}


def imports(module, inside=True):
    """Every module that a module imports, wherever in its text, or but for its functions."""
    found = set()
    for node in ast.walk(TREES[module]) if inside else TREES[module].body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def users(package):
    """Modules that import ``package`` or something in it."""
    return {
        module
        for module in TREES
        if any(name == package or name.startswith(f"{package}.") for name in imports(module))
    }


def within(*packages):
    return {m for m in TREES if any(m == p or m.startswith(f"{p}.") for p in packages)}


def test_numerics_import_numpy_and_themselves_alone():
    allowed = STDLIB | {"numpy"}
    ours = ("onnxq.numerics", "onnxq.spec")
    for module in {*within("onnxq.numerics"), "onnxq.spec"}:
        strangers = {
            name
            for name in imports(module)
            if name.partition(".")[0] not in allowed
            and name != "onnxq"
            and not name.startswith(ours)
        }
        assert strangers == set(), module


def test_graphs_are_read_without_running_them():
    below = ("onnxq.errors", "onnxq.files", "onnxq.graph", "onnxq.numerics", "onnxq.spec")
    for module in within("onnxq.graph"):
        ours = {name for name in imports(module) if name.startswith("onnxq.")}
        assert {name for name in ours if not name.startswith(below)} == set(), module


def test_only_the_command_line_knows_click():
    assert users("click") <= within("onnxq.cli")


def test_nothing_below_the_command_line_knows_it():
    assert users("onnxq.cli") <= within("onnxq.cli") | {"onnxq.__main__"}


def test_only_recipes_know_the_passes():
    assert users("onnxq.passes") <= within("onnxq.passes") | {"onnxq.recipe", "onnxq.recipes"}


def test_passes_know_nothing_of_running_and_reporting():
    for package in (
        *("onnxq.conversion", "onnxq.samples.data", "onnxq.precision", "onnxq.quantization"),
        *("onnxq.recipes", "onnxq.evidence.report", "onnxq.sensitivity", "onnxq.samples.sources"),
    ):
        assert users(package) & within("onnxq.passes") == set(), package


def test_only_runtime_makes_sessions():
    assert users("onnxruntime") == {"onnxq.runtime"}


def test_few_touch_protobufs():
    files = {"exchange", "loading", "model", "protos", "tensors"}
    assert users("onnx") == {*(f"onnxq.graph.{file}" for file in files), "onnxq.runtime"}


def test_nothing_but_training_needs_torch():
    torch = within("onnxq.lowering", "onnxq.learned")
    assert users("torch") <= torch
    assert users("onnxq.lowering") <= torch
    assert users("onnxq.learned") <= torch | within("onnxq.passes")
    for module in within("onnxq.passes"):
        at_once = imports(module, inside=False)
        assert not any(name.startswith("onnxq.learned") for name in at_once), module
    assert users("torchvision") | users("sklearn") == set()


@pytest.mark.parametrize("folder", ["passes", "cli"])
def test_nothing_is_imported_by_its_folder(folder):
    assert users(folder) == set()


def documented(tree):
    """Public classes, functions and methods of a module, each with whether it has a docstring."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, ast.get_docstring(node) is not None
            if isinstance(node, ast.ClassDef):
                yield from documented(node)


@pytest.mark.parametrize("module", TREES)
def test_everything_public_says_what_it_is(module):
    tree = TREES[module]
    assert ast.get_docstring(tree) is not None or not tree.body
    assert [name for name, told in documented(tree) if not told] == []
