"""Loops keep no constants in their state, and bodies compute nothing of constants alone."""

import numpy as np
import onnx
import pytest

from onnxq.graph.loading import from_proto, load
from onnxq.passes.hoist_constants import HoistConstants
from onnxq.passes.normalize import Normalize
from tests.graphs import after, build, feeds, ops, run

GIVEN = {"two": np.array(2), "yes": np.array(True)}
HEAD = "float[3,4] s, float[4,4] v"


def loop(nodes, states="float[4,4] v", after_it="y = Relu(r)", outputs="float[3,4] y", body=HEAD):
    """A Loop over x that is handed the constant w, and what its body and the graph make of them."""
    return build(
        f"(float[3,4] x) => ({outputs}) {{ r, last = Loop(two, yes, x, w) <body = b (int64 i, "
        f"bool c, {body}) => (bool d, float[3,4] t, {states}) {{ d = Identity(c) {nodes} }}> "
        f"{after_it} }}",
        w=(4, 4), **GIVEN,
    )  # fmt: skip


def body_of(model):
    (node,) = (n for n in model.graph.nodes if n.op == "Loop")
    return node, node.attrs["body"]


@pytest.mark.parametrize(
    ("nodes", "states"),
    [("t = MatMul(s, v)", "float[4,4] v"), ("t = MatMul(s, v) u = Identity(v)", "float[4,4] u")],
)
@pytest.mark.parametrize("after_it", ["y = Relu(r)", "y = MatMul(r, last)"])
def test_a_constant_that_is_handed_on_is_no_state(nodes, states, after_it):
    proto = loop(nodes, states, after_it)
    model, outcome = after(proto, HoistConstants())
    node, body = body_of(model)
    assert "w is no state" in [edit.what for edit in outcome.edits]
    assert (len(node.inputs), len(node.outputs)) == (3, 1)
    assert (len(body.inputs), len(body.outputs)) == (3, 2)
    onnx.checker.check_model(model.to_proto(), full_check=True)
    values = feeds(proto)
    np.testing.assert_array_equal(run(model.to_proto(), values)["y"], run(proto, values)["y"])


@pytest.mark.parametrize(
    "proto",
    [
        loop("t = MatMul(s, v) u = Neg(v)", "float[4,4] u"),  # another at every turn
        loop("t = MatMul(s, v)", after_it="y = Relu(r)", outputs="float[3,4] y, float[4,4] last"),
        build(  # what it keeps of every turn is the same tensor
            "(float[3,4] x) => (float[3,4] y, float[] a) { r, last, a = Loop(two, yes, x, w) "
            f"<body = b (int64 i, bool c, {HEAD}) => (bool d, float[3,4] t, float[4,4] v, "
            "float[4,4] v) { d = Identity(c) t = MatMul(s, v) }> y = Relu(r) }",
            w=(4, 4), **GIVEN,
        ),
        build(  # not a constant
            "(float[3,4] x, float[4,4] w) => (float[3,4] y) { r, last = Loop(two, yes, x, w) "
            f"<body = b (int64 i, bool c, {HEAD}) => (bool d, float[3,4] t, float[4,4] v) "
            "{ d = Identity(c) t = MatMul(s, v) }> y = Relu(r) }",
            **GIVEN,
        ),
        build(  # the body has another tensor of that name
            "(float[3,4] x) => (float[3,4] y) { r, last = Loop(two, yes, x, w) "
            f"<body = b (int64 i, bool c, {HEAD}) => (bool d, float[3,4] t, float[4,4] v) "
            "{ d = Identity(c) w = Relu(s) t = MatMul(w, v) }> y = Relu(r) }",
            w=(4, 4), **GIVEN,
        ),
    ],
    ids=["changed", "an output", "returned twice", "an input", "a name taken"],
)  # fmt: skip
def test_other_state_stays(proto):
    model, outcome = after(proto, HoistConstants())
    node, _ = body_of(model)
    assert len(node.inputs) == 4
    assert not any("is no state" in edit.what for edit in outcome.edits)


def test_what_is_computed_of_constants_is_a_constant():
    """Transposed at every turn before, and once and for all now."""
    proto = loop("q = Transpose(v) n = Neg(q) t = MatMul(s, n)")
    model, _ = after(proto, HoistConstants(), Normalize())
    _, body = body_of(model)
    assert [n.op for n in body.nodes] == ["Identity", "MatMul"]
    assert ops(model) == ["Loop", "Relu"]
    values = feeds(proto)
    np.testing.assert_array_equal(run(model.to_proto(), values)["y"], run(proto, values)["y"])


def test_what_is_random_or_leaves_a_body_stays_in_it():
    proto = build(
        "(float[3,4] x, bool c) => (float[3,4] y) { a = Relu(x) y = If (c) "
        "<then_branch = one () => (float[] u) { u = Neg(w) }, else_branch = two () => (float[] t) "
        "{ r = RandomNormalLike(w) t = Add(a, r) }> }",
        w=(3, 4),
    )  # fmt: skip
    model, outcome = after(proto, HoistConstants())
    assert not outcome.edits
    assert ops(model) == ["Relu", "If"]


def test_loops_that_name_alike_what_they_hold_are_both_freed():
    body = f"body = b (int64 i, bool c, {HEAD}) => (bool d, float[3,4] t, float[4,4] v)"
    inside = "{ d = Identity(c) t = MatMul(s, v) }"
    proto = build(
        f"(float[3,4] x) => (float[3,4] y) {{ r, k = Loop(two, yes, x, w) <{body} {inside}> "
        f"q, l = Loop(two, yes, r, w2) <{body} {inside}> y = Relu(q) }}",
        w=(4, 4), w2=(4, 4), **GIVEN,
    )  # fmt: skip
    model, outcome = after(proto, HoistConstants())
    assert sum("is no state" in edit.what for edit in outcome.edits) == 2
    values = feeds(proto)
    np.testing.assert_array_equal(run(model.to_proto(), values)["y"], run(proto, values)["y"])


def test_what_would_fail_stays_in_the_body_that_is_never_run():
    proto = build(
        "(float[3,4] x, bool c) => (float[] y) { a = Relu(x) y = If (c) "
        "<then_branch = one () => (float[] u) { g = Gather(w, place) u = MatMul(a, g) }, "
        "else_branch = two () => (float[] t) { t = Neg(a) }> }",
        w=(4, 4), place=np.array([0, 1, 2, 99]),
    )  # fmt: skip
    assert not after(proto, HoistConstants())[1].edits


def test_a_model_too_large_for_one_file_keeps_its_loops(monkeypatch):
    monkeypatch.setattr("onnxq.passes.hoist_constants.INLINE_LIMIT", 0)
    _, outcome = after(loop("t = MatMul(s, v)"), HoistConstants())
    assert not outcome.edits
    assert outcome.skips[0].why.startswith("too large")


@pytest.mark.parametrize("read", ["MatMul(a, w)", "Gather(w, place)"])
def test_a_constant_of_several_bodies_is_stored_once(read):
    proto = build(
        f"(float[3,40] x, bool c) => (float[] y) {{ a = Relu(x) "
        f"y = If (c) <then_branch = one () => (float[] u) {{ u = {read} }}, "
        f"else_branch = two () => (float[] t) {{ q = {read} t = Neg(q) }}> }}",
        w=(40, 40), place=np.array([0, 7]),
    )  # fmt: skip
    size = proto.ByteSize()
    model = from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    for copy in (model.to_proto(), model.clone().to_proto()):
        assert copy.ByteSize() < size + 200
        assert "w" in [t.name for t in copy.graph.initializer]
        for c in (False, True):
            values = {**feeds(proto), "c": np.array(c)}
            np.testing.assert_array_equal(run(copy, values)["y"], run(proto, values)["y"])


SIBLINGS = {
    "another constant": "{ m = Mul(a, k) t = MatMul(m, w) }",
    "a result": "{ k = Neg(a) t = MatMul(k, w) }",
}


@pytest.mark.parametrize("other", SIBLINGS)
def test_a_name_that_means_something_else_in_another_body_stays_there(other):
    """The first body shares its k with a body of its own; the second has another k."""
    held = "<float[1] k = {5.0}>" if "constant" in other else ""
    proto = build(
        "(float[3,4] x, bool c, bool e) => (float[3,4] y) { a = Relu(x) y = If (c) "
        "<then_branch = one () => (float[3,4] u) <float[1] k = {2.0}> { q = Mul(a, k) u = If (e) "
        "<then_branch = in () => (float[3,4] u2) { u2 = Mul(q, k) }, "
        "else_branch = out () => (float[3,4] u3) { u3 = Add(q, k) }> }, "
        f"else_branch = two () => (float[3,4] t) {held} {SIBLINGS[other]}> }}",
        w=(4, 4),
    )  # fmt: skip
    model = from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    hoisted, _ = after(proto, HoistConstants(), Normalize())
    for copy in (model.to_proto(), model.clone().to_proto(), hoisted.to_proto()):
        for c, e in ((False, False), (True, False), (True, True)):
            values = {**feeds(proto), "c": np.array(c), "e": np.array(e)}
            np.testing.assert_allclose(run(copy, values)["y"], run(proto, values)["y"], rtol=1e-6)


def test_what_lies_outside_the_file_is_read_where_bodies_alone_read_it(tmp_path):
    proto = build(
        "(float[3,40] x, bool c) => (float[] y) { a = Relu(x) "
        "y = If (c) <then_branch = one () => (float[] u) { u = MatMul(a, w) }, "
        "else_branch = two () => (float[] t) { t = Neg(a) }> }",
        w=(40, 40),
    )  # fmt: skip
    values = {**feeds(proto), "c": np.array(True)}
    wanted = run(proto, values)["y"]
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data")
    read = load(tmp_path / "m.onnx")
    np.testing.assert_array_equal(run(read.to_proto(), values)["y"], wanted)
