"""Mish is written with Exp, in whatever form it comes, and computes what it did."""

import numpy as np
import pytest

from onnxq.graph.loading import from_proto
from onnxq.passes.expand_mish import ExpandMish
from tests.graphs import after, build, ops, run

HEAD = "(float[4001] x) => (float[] y)"
FORMS = {"mish": "y = Mish(x)", "parts": "s = Softplus(x) t = Tanh(s) y = Mul(x, t)"}


@pytest.mark.parametrize("nodes", FORMS.values(), ids=FORMS)
def test_the_function_is_the_same_for_all_floats(nodes):
    model, outcome = after(build(f"{HEAD} {{ {nodes} }}", opset=18), ExpandMish())
    assert sorted(ops(model)) == ["Add", "Add", "Clip", "Div", "Exp", "Mul", "Mul"]
    assert [edit.what for edit in outcome.edits] == ["written with Exp"]
    x = np.concatenate([np.linspace(-100, 100, 3999), [-3e38, 3e38]]).astype(np.float32)
    right = x * np.tanh(np.logaddexp(0.0, x.astype(np.float64)))
    found = run(model.to_proto(), {"x": x})["y"]
    np.testing.assert_allclose(found, right, rtol=2e-6, atol=1e-36)


@pytest.mark.parametrize("nodes", ["y = Tanh(x)", "y = Softplus(x)", "s = Softplus(x) y = Exp(s)"])
def test_what_is_no_mish_stays(nodes):
    proto = build(f"{HEAD} {{ {nodes} }}")
    model, outcome = after(proto, ExpandMish())
    assert ops(model) == ops(from_proto(proto))
    assert not outcome.edits


def test_another_reader_keeps_the_softplus():
    proto = build(f"{HEAD} {{ s = Softplus(x) t = Tanh(s) m = Mul(x, t) y = Sub(m, s) }}")
    assert {"Softplus", "Exp", "Sub"} < {*ops(after(proto, ExpandMish())[0])}


@pytest.mark.parametrize(("nodes", "name"), [(FORMS["mish"], "Mish_y"), (FORMS["parts"], "Tanh_t")])
def test_what_is_kept_float_stays(nodes, name):
    model = from_proto(build(f"{HEAD} {{ {nodes} }}", opset=18))
    model.kept_float = {name: "as asked"}
    before = ops(model)
    assert not ExpandMish().run(model, {}).edits
    assert ops(model) == before


@pytest.mark.parametrize("kind", [10, 11])
def test_what_may_not_be_float32_stays(kind):
    proto = build(
        f"{HEAD} {{ a = Cast<to={kind}>(x) m = Mish(a) s = Softplus(a) t = Tanh(s) p = Mul(a, t) "
        "q = Add(m, p) y = Cast<to=1>(q) }",
        opset=18,
    )
    model, outcome = after(proto, ExpandMish())
    assert not outcome.edits
    assert len(outcome.skips) == 2
    run(model.to_proto(), {"x": np.zeros(4001, np.float32)})


def test_what_an_integer_layer_returns_is_float32():
    proto = build(
        "(float[1,4,6,6] x) => (float[] y) { a = Conv(x, w) m = Mish(a) y = Conv(m, w) }",
        opset=18, w=(4, 4, 3, 3),
    )  # fmt: skip
    assert len(after(proto, ExpandMish())[1].edits) == 1
