"""Loops keep no constants in their state, and bodies compute nothing of constants alone."""

import numpy as np
import onnx
import pytest

from onnxq.graph.loading import from_proto
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


def test_a_constant_of_several_bodies_is_stored_once():
    proto = build(
        "(float[3,40] x, bool c) => (float[3,4] y) { a = Relu(x) "
        "y = If (c) <then_branch = one () => (float[] u) { u = MatMul(a, w) }, "
        "else_branch = two () => (float[] t) { q = MatMul(a, w) t = Neg(q) }> }",
        w=(40, 40),
    )  # fmt: skip
    size = proto.ByteSize()
    copy = from_proto(onnx.ModelProto.FromString(proto.SerializeToString())).to_proto()
    assert copy.ByteSize() < size + 200
    assert [t.name for t in copy.graph.initializer] == ["w"]
    for c in (False, True):
        values = {**feeds(proto), "c": np.array(c)}
        np.testing.assert_array_equal(run(copy, values)["y"], run(proto, values)["y"])
