"""Constants that are no weights of layers take 8 bits, and are to within these what they were."""

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.errors import UnsupportedModel
from onnxq.evidence.inspect import unquantized
from onnxq.graph.layers import MANY
from onnxq.graph.loading import from_proto, load
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.quantize_tables import QuantizeTables
from tests.graphs import after, build, feeds, ops, quantize, run

IMAGE = "(float[1,8,9,16] x) => (float[] y)"
TABLES = {
    "bias of attention": (IMAGE, "a = Add(x, t) y = Softmax(a)", {"t": (1, 8, 9, 16)}),
    "another order": (IMAGE, "a = Sub(t, x) y = MatMul(a, k)", {"t": (8, 9, 16)}),
    "embedding": ("(int64[5] x) => (float[] y)", "e = Gather(t, x) y = MatMul(e, m)",
                  {"t": (100, 12)}),
    "recurrent weights": ("(float[5,1,20] x) => (float[] y)",
                          "y, h, c = LSTM<hidden_size=16>(x, w, r)",
                          {"w": (1, 64, 20), "r": (1, 64, 16)}),
    "several readers": (IMAGE, "a = Add(x, t) b = Mul(a, t) c = Relu(b) y = MatMul(c, k)",
                        {"t": (1, 8, 9, 16)}),
}  # fmt: skip
MATRICES = {"k": (16, 4), "m": (12, 4)}


def inputs(proto):
    """Normal floats, or places in a table."""
    return {name: np.clip(x, 0, None) if x.dtype == np.int64 else x
            for name, x in feeds(proto).items()}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
def test_tables_take_8_bits(case):
    head, nodes, shapes = TABLES[case]
    used = {name: shape for name, shape in MATRICES.items() if f", {name})" in nodes}
    proto = build(f"{head} {{ {nodes} }}", **shapes, **used)
    model, outcome = after(proto, QuantizeTables())
    assert [edit.where for edit in outcome.edits] == [*shapes] == [*model.tables]
    assert ops(model) == ops(from_proto(proto))
    planned = run(model.to_proto(), floats := inputs(proto))["y"]
    InsertQdq().run(model, {})
    model.tidy()
    assert sorted(ops(model)) == sorted([*ops(from_proto(proto)), *["Cast", "Mul"] * len(shapes)])
    assert sum(c.values.nbytes for c in model.constants() if c.values.size >= MANY) == sum(
        np.prod(shape) for shape in shapes.values()
    )
    wanted, found = run(proto, floats)["y"], run(model.to_proto(), floats)["y"]
    np.testing.assert_array_equal(found, planned)
    noise = np.square(found - wanted).sum() / np.square(wanted).sum()
    assert 0.0 < noise < 1e-3
    assert not unquantized(model)


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        ("y = Add(x, t)", (1, 1, 1, 1200)),  # a bias
        ("y = Add(x, t)", (2, 1, 1, 500)),  # few
        ("y = Div(x, t)", (1, 1, 2, 1200)),
        ("s = Add(x, t) m = Max(s, t) y = Neg(m)", (1, 1, 2, 1200)),  # read by something else
        ("y = MatMul(x, t)", (1200, 4)),
    ],
)
def test_others_stay(nodes, shape):
    columns = 1200 if shape[-1] != 500 else 500
    head = f"(float[2,3,2,{columns}] x) => (float[] y)"
    if shape[0] == 2:
        assert np.prod(shape) < MANY
    proto = build(f"{head} {{ {nodes} }}", t=shape)
    model, outcome = after(proto, QuantizeTables())
    assert ops(model) == ops(from_proto(proto))
    assert not outcome.edits and not outcome.skips


def test_what_is_kept_float_or_needs_more_is_told():
    nodes = "a = Add(x, t) b = Mul(a, u) y = Softmax(b)"
    wild = np.random.default_rng(0).standard_normal((1, 8, 9, 16)) ** 9
    proto = build(
        f"(float[1,8,9,16] x) => (float[] y) {{ {nodes} }}",
        t=(1, 8, 9, 16), u=wild.astype(np.float32),
    )  # fmt: skip
    model = from_proto(proto)
    model.kept_float = {"Add_a": "as asked"}
    outcome = QuantizeTables().run(model, {})
    assert not outcome.edits
    assert {skip.where: skip.why for skip in outcome.skips} == {
        "t": "as asked", "u": "8 bits would leave too little of its values",
    }  # fmt: skip


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Add(x, t)",  # anchors of a detector
        "a = Add(x, t) b = Reshape(a, n) c = Mul(b, r) s = Softmax(a) d = Concat<axis=1>(c, c) "
        "y = Neg(d) z = MatMul(s, k)",
        "a = Add(x, t) p = Slice(a, zero, two, last) g = GridSample(x, p) y = Softmax(g)",
    ],
)
def test_what_may_hold_positions_stays(nodes):
    used = {"k": (16, 4), "r": (1, 1152), "n": np.array([1, -1]), "zero": np.array([0]),
            "two": np.array([2]), "last": np.array([-1])}  # fmt: skip
    outputs = "float[] y, float[] z" if "z =" in nodes else "float[] y"
    proto = build(
        f"(float[1,8,9,16] x) => ({outputs}) {{ {nodes} }}", t=(1, 8, 9, 16),
        **{name: value for name, value in used.items() if f", {name}" in nodes},
    )  # fmt: skip
    outcome = after(proto, QuantizeTables())[1]
    assert not outcome.edits
    assert outcome.skips[0].why == "it may hold positions: no layer is behind it"


def test_what_a_body_reads_stays():
    proto = build(
        "(float[1,8,9,16] x) => (float[] y) { c = Not(no) y = If(c) "
        "<then_branch = e () => (float[] u) { u = Add(x, t) }, "
        "else_branch = f () => (float[] v) { v = Sub(x, t) }> }",
        t=(1, 8, 9, 16), no=np.array(False),
    )  # fmt: skip
    assert not after(proto, QuantizeTables())[1].edits


BRANCHES = (
    "(float[3,40] x, bool c) => (float[] y) { a = Relu(x) y = If (c) "
    "<then_branch = one () => (float[] u) <float[1] k = {0.5}> { p = MatMul(a, w) u = Mul(p, k) }, "
    "else_branch = two () => (float[] t) { q = MatMul(a, w) r = MatMul(q, v) t = Add(r, b) }> }"
)
HELD = {"w": (40, 40), "v": (40, 40), "b": (3, 40)}


@pytest.mark.parametrize("act_bits", [8, "float"])
def test_weights_in_bodies_take_8_bits_and_are_stored_once(tmp_path, act_bits):
    """There is no layer beside them; what is added in a body may be anything."""
    proto = build(BRANCHES, **HELD)
    samples = [{**feeds(proto, seed), "c": np.array(seed % 2 > 0)} for seed in range(4)]
    report, file = quantize(proto, tmp_path, samples, act_bits=act_bits)
    kinds = [(tuple(t.dims), t.data_type) for t in onnx.load(file).graph.initializer]
    assert kinds.count(((40, 40), onnx.TensorProto.INT8)) == 2
    assert not any(kind == ((40, 40), onnx.TensorProto.FLOAT) for kind in kinds)
    assert report.bytes < 0.45 * report.float_bytes
    assert report.cost is None
    assert not unquantized(load(file))
    for values in samples:
        wanted, found = run(proto, values)["y"], run(onnx.load(file), values)["y"]
        assert 0 < np.square(found - wanted).sum() < 1e-3 * np.square(wanted).sum()
    with pytest.raises(UnsupportedModel, match="quantized already, by onnxq"):
        onnxq.convert(file)


def test_what_a_body_reads_besides_weights_stays():
    proto = build(BRANCHES, **HELD | {"b": (40, 40)})
    model, outcome = after(proto, QuantizeTables())
    assert len(model.tables) == len(outcome.edits) == 2
    assert "b" not in "".join(model.tables)


def test_what_a_body_returns_stays():
    proto = build(
        "(float[3,40] x, bool c) => (float[] y, float[] z) { a = Relu(x) y, z = If (c) "
        "<then_branch = one () => (float[] u, float[] k) { u = MatMul(a, k) }, "
        "else_branch = two () => (float[] t, float[] l) { t = Neg(a) l = Neg(t) }> }"
    )
    weight = np.random.default_rng(0).standard_normal((40, 40)).astype(np.float32)
    body = proto.graph.node[1].attribute[0].g
    body.initializer.append(onnx.numpy_helper.from_array(weight, "k"))
    assert not after(proto, QuantizeTables())[1].edits


def test_a_body_that_is_kept_float_is_left_alone():
    model = from_proto(build(BRANCHES, **HELD))
    model.kept_float = {"If_y": "as asked"}
    assert not QuantizeTables().run(model, {}).edits
    assert not model.tables


@pytest.mark.parametrize("act_bits", [8, "float"])
def test_a_file_holds_them_in_8_bits_and_onnxruntime_brings_them_back_at_load(tmp_path, act_bits):
    table = np.random.default_rng(3).standard_normal((1, 4, 8, 64)).astype(np.float32)
    proto = build(
        "(float[1,4,8,64] x) => (float[] y) { a = Conv<pads=[1,1,1,1]>(x, w) s = Softmax(a) "
        "b = Add(s, t) y = Conv(b, w) }",
        w=(4, 4, 3, 3), t=table,
    )  # fmt: skip
    report, file = quantize(proto, tmp_path, act_bits=act_bits)
    written = onnx.load(file)
    kinds = {tuple(t.dims): t.data_type for t in written.graph.initializer}
    assert kinds[table.shape] == onnx.TensorProto.INT8
    assert report.outcomes["quantize-tables"].edits
    assert "Cast" not in report.kernels.operators
    assert not unquantized(load(file))
