"""Conversions that train, from the command line."""

import json
import sys

import pytest

from onnxq.recipe import Recipe
from onnxq.recipes import build

torch = pytest.importorskip("torch")
from onnxq.passes.distill import Distill  # noqa: E402

CONVERT = ("convert", "model.onnx", "--calib", "calib.npz", "--recipe", "short.toml")


@pytest.fixture
def short(here):
    """A recipe of few steps in short.toml."""
    chosen = build(bits=3, after=(Distill(steps=8, batch=8),))
    (here / "short.toml").write_text(chosen.to_toml(), encoding="utf-8")
    assert Recipe.from_toml(here / "short.toml") == chosen
    return here


def test_a_conversion_goes_on_from_its_checkpoint_to_the_same_file(short, onnxq):
    assert onnxq(*CONVERT, "-o", "alone.onnx").exit_code == 0
    files = []
    for name in ("a.onnx", "b.onnx"):
        result = onnxq(*CONVERT, "-o", name, "--checkpoint", "state.pt", "--json", "said.json")
        assert (result.exit_code, result.stderr) == (0, "")
        assert "distill: loss on held-out samples" in result.stdout
        assert "8 steps" in result.stdout
        files.append((short / name).read_bytes())
        said = json.loads((short / "said.json").read_text(encoding="utf-8"))
        assert "loss on held-out samples" in str(said)
    assert files[0] == files[1] == (short / "alone.onnx").read_bytes()
    assert not list(short.glob("*.tmp")) + list(short.glob(".*.tmp"))


def test_a_state_of_something_else_is_one_line_and_stays_as_it_is(short, onnxq):
    torch.save({"weights": torch.ones(3)}, short / "state.pt")
    before = (short / "state.pt").read_bytes()
    result = onnxq(*CONVERT, "-o", "q.onnx", "--checkpoint", "state.pt")
    (line,) = result.stderr.splitlines()
    assert line == "onnxq: state.pt: is no checkpoint: name another file, or move it away"
    assert (result.exit_code, result.stdout) == (2, "")
    assert (short / "state.pt").read_bytes() == before
    assert not (short / "q.onnx").exists()


def test_a_checkpoint_that_the_disk_refuses_is_one_line_and_leaves_nothing(
    short, onnxq, monkeypatch
):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", refuse)
    before = sorted(short.rglob("*"))
    result = onnxq(*CONVERT, "-o", "q.onnx", "--checkpoint", "state.pt")
    assert result.stderr == "onnxq: state.pt: No space left on device\n"
    assert (result.exit_code, result.stdout) == (3, "")
    assert sorted(short.rglob("*")) == before


@pytest.mark.parametrize("error", ["OSError('libgomp.so.1 is missing')", "RuntimeError('twice')"])
def test_a_torch_that_cannot_be_imported_is_one_line(short, onnxq, monkeypatch, error):
    (short / "broken").mkdir()
    (short / "broken/torch.py").write_text(f"raise {error}", encoding="utf-8")
    monkeypatch.syspath_prepend(short / "broken")
    monkeypatch.delitem(sys.modules, "torch")
    result = onnxq(*CONVERT, "-o", "q.onnx")
    (line,) = result.stderr.splitlines()
    why = error.split("'")[1]
    assert line == f"onnxq: distill trains, which needs torch, and that cannot be imported: {why}"
    assert (result.exit_code, result.stdout) == (2, "")
    assert not (short / "q.onnx").exists()
