"""GELU becomes one operator, in whatever form it comes, and computes what it did."""

import math

import numpy as np
import pytest

from onnxq.errors import UnsupportedModel
from onnxq.graph.loading import from_proto
from onnxq.graph.model import Model
from onnxq.passes.fuse_gelu import FuseGelu
from tests.graphs import after, build, ops, run

HEAD = "(float[4001] x) => (float[] y)"
NUMBERS = {
    "r": math.sqrt(2.0),
    "i": 0.70710678,
    "short": 0.7071,
    "rough": 1.4140625,
    "h": 0.5,
    "one": 1.0,
    "two": 2.0,
}
# d = erf(x / sqrt 2) + 1 in front of each.
ENDS = {
    "gate, half": "g = Mul(x, d) y = Mul(g, h)",
    "half, gate": "g = Mul(d, h) y = Mul(x, g)",
    "x halved": "g = Mul(h, x) y = Mul(g, d)",
    "divided": "g = Mul(d, x) y = Div(g, two)",
}
STARTS = {
    "divided": "a = Div(x, r) b = Erf(a) d = Add(b, one)",
    "multiplied": "a = Mul(i, x) b = Erf(a) d = Add(one, b)",
    "short": "a = Mul(x, short) b = Erf(a) d = Add(b, one)",
    "of float16": "a = Div(x, rough) b = Erf(a) d = Add(b, one)",
}
FORM = f"{STARTS['divided']} {ENDS['gate, half']}"


def gelu(nodes: str, opset: int = 17):
    values = {name: np.array(v, np.float32) for name, v in NUMBERS.items() if f" {name})" in nodes
              or f"({name}," in nodes}  # fmt: skip
    return build(f"{HEAD} {{ {nodes} }}", opset=opset, **values)


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_every_form_becomes_one_operator(start, end):
    proto = gelu(f"{start} {end}")
    x = np.concatenate([np.linspace(-20, 20, 3999), [-1e38, 1e38]]).astype(np.float32)
    before = run(proto, {"x": x})["y"]
    model, outcome = after(proto, FuseGelu())
    assert ops(model) == ["Gelu"]
    assert [edit.what for edit in outcome.edits] == ["became Gelu"]
    assert model.notes == ["opset raised from 17 to 20"]
    found = run(model.to_proto(), {"x": x})["y"]
    np.testing.assert_allclose(found, before, rtol=1e-5, atol=5e-5 if "rough" in start else 1e-5)


@pytest.mark.parametrize(
    "nodes",
    [
        FORM.replace("Div(x, r)", "Div(x, two)"),  # another width
        FORM.replace("Div(x, r)", "Div(r, x)"),
        FORM.replace("Add(b, one)", "Add(b, two)"),
        FORM.replace("Add(b, one)", "Sub(b, one)"),
        FORM.replace("Mul(g, h)", "Mul(g, r)"),  # another factor
        FORM.replace("Mul(x, d)", "Mul(x, e)").replace("g =", "e = Add(d, one) g ="),
        "a = Div(x, r) b = Erf(a) g = Mul(x, b) y = Mul(g, h)",  # no one is added
        FORM.replace("Mul(g, h)", "Mul(k, h)").replace("y =", "k = Mul(g, x) y ="),
        FORM.replace("Mul(g, h)", "Div(h, g)"),
        FORM.replace("Mul(g, h)", "Mul(g, x)"),  # the square of x
        FORM.replace("g = Mul(x, d)", "g = Mul(d, d)"),
        FORM.replace("g = Mul(x, d)", "g = Div(x, d)"),
        FORM.replace("g = Mul(x, d)", "g = Mul(a, d)"),
        FORM.replace("g = Mul(x, d)", "g = Add(x, d)"),
        f"{FORM.replace('y =', 'z =')} y = Sub(z, g)",  # another reader of a part
        f"{FORM.replace('y =', 'z =')} y = Sub(z, d)",
        f"{FORM.replace('y =', 'z =')} y = Sub(z, b)",
    ],
)
def test_what_is_no_gelu_stays(nodes):
    proto = gelu(nodes)
    model, outcome = after(proto, FuseGelu())
    assert ops(model) == ops(from_proto(proto))
    assert model.opset == 17
    assert not outcome.edits


def test_a_part_that_leaves_the_graph_stays():
    values = {name: np.array(NUMBERS[name], np.float32) for name in ("r", "one", "h")}
    proto = build(f"(float[9] x) => (float[] y, float[] g) {{ {FORM} }}", **values)
    assert not after(proto, FuseGelu())[1].edits


@pytest.mark.parametrize("name", ["Erf_b", "Add_d", "Mul_y"])
def test_what_is_kept_float_stays(name):
    model = from_proto(gelu(FORM))
    model.kept_float = {name: "as asked"}
    assert not FuseGelu().run(model, {}).edits
    assert model.opset == 17


def test_what_the_converter_makes_of_attributes_is_constant():
    nodes = FORM.replace("y =", "z =") + " y = ReduceMean<axes=[0]>(z)"
    model, _ = after(gelu(nodes), FuseGelu())
    assert ops(model) == ["Gelu", "ReduceMean"]


def test_an_opset_that_cannot_be_raised_is_told(monkeypatch):
    def refuse(model: Model, version: int) -> None:
        raise UnsupportedModel(f"opset {model.opset} cannot be raised to {version}")

    monkeypatch.setattr(Model, "raise_opset", refuse)
    model, outcome = after(gelu(FORM), FuseGelu())
    assert "Erf" in ops(model)
    assert [skip.why for skip in outcome.skips] == ["opset 17 cannot be raised to 20"]


def test_a_product_may_be_what_it_is_of():
    nodes = FORM.replace("x", "p")
    proto = build(
        f"{HEAD} {{ p = Mul(x, two) {nodes} }}",
        **{name: np.array(NUMBERS[name], np.float32) for name in ("two", "r", "one", "h")},
    )
    assert ops(after(proto, FuseGelu())[0]) == ["Mul", "Gelu"]


def test_functions_are_not_inlined_for_it():
    model = from_proto(gelu(FORM))
    model.graph.functions = [model.graph]
    outcome = FuseGelu().run(model, {})
    assert [skip.why for skip in outcome.skips] == ["raising its opset would inline its functions"]
    assert model.opset == 17
