import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from importlib import metadata, resources
from pathlib import Path

import pytest

import onnxq
from onnxq import cli, passes

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
# Folders at the root that install under another name.
MAPPED = {"passes": "onnxq.passes", "cli": "onnxq.cli"}


def test_every_package_on_disk_is_listed_and_no_other():
    inits = [*ROOT.glob("onnxq/**/__init__.py"), *(ROOT / top / "__init__.py" for top in MAPPED)]
    found = set()
    for file in inits:
        top, *rest = file.parent.relative_to(ROOT).parts
        found.add(".".join([MAPPED.get(top, top), *rest]))
    assert found == set(SETUPTOOLS["packages"])
    assert SETUPTOOLS["package-dir"] == {"onnxq": "onnxq"} | {v: k for k, v in MAPPED.items()}


def test_every_module_on_disk_lies_in_a_package():
    folders = {file.parent for top in ("onnxq", *MAPPED) for file in (ROOT / top).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize("top", MAPPED)
def test_the_mapped_folders_are_flat(top):
    nested = [f for f in (ROOT / top).rglob("*.py") if f.parent != ROOT / top]
    assert nested == []


def test_types_and_demo_data_install_with_the_package():
    for package, names in SETUPTOOLS["package-data"].items():
        for name in names:
            assert resources.files(package).joinpath(name).is_file(), f"{package}/{name}"
    assert "py.typed" in SETUPTOOLS["package-data"]["onnxq"]
    listed = set(SETUPTOOLS["package-data"]["onnxq.demo"])
    assert listed == {
        f.name for f in (ROOT / "onnxq/demo").iterdir() if f.suffix in (".onnx", ".npz")
    }


def test_the_version_is_written_once():
    assert "version" in PYPROJECT["project"]["dynamic"]
    assert SETUPTOOLS["dynamic"]["version"] == {"attr": "onnxq._version.__version__"}
    written = [
        file
        for top in ("onnxq", *MAPPED)
        for file in (ROOT / top).rglob("*.py")
        if re.search(r"^__version__ = ", file.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert written == [ROOT / "onnxq/_version.py"]
    assert metadata.version("onnxq") == onnxq.__version__


def test_the_changelog_tells_of_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert onnxq.__version__ in versions


def test_what_is_exported_exists():
    assert len(set(onnxq.__all__)) == len(onnxq.__all__)
    assert [name for name in onnxq.__all__ if not hasattr(onnxq, name)] == []


def test_the_program_starts_before_the_library_is_imported():
    module, _, _ = PYPROJECT["project"]["scripts"]["onnxq"].partition(":")
    program = f"import sys, {module}; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert module in found.stdout.split()
    assert {"numpy", "onnx", "click"}.isdisjoint(found.stdout.split())


def modules():
    """Every public module, by the name users import it by."""
    found = ["onnxq", "onnxq.passes", "onnxq.cli"]
    for package in (onnxq, passes, cli):
        found += [m.name for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return sorted({name for name in found if not name.rpartition(".")[2].startswith("_")})


def test_all_modules_on_disk_are_seen():
    pytest.importorskip("torch")  # without it the lowering cannot be walked
    files = [f for top in ("onnxq", *MAPPED) for f in (ROOT / top).rglob("*.py")]
    public = [f for f in files if not f.name.startswith("_")]
    packages = [f for f in files if f.name == "__init__.py"]
    assert len(modules()) == len(public) + len(packages)


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings_hold(name):
    if name.startswith("onnxq.lowering"):
        pytest.importorskip("torch")
    assert doctest.testmod(importlib.import_module(name)).failed == 0
