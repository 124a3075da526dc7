"""Constants that are no weights of layers take 8 bits, and are to within these what they were."""

import numpy as np
import onnx
import pytest

from onnxq.inspect import unquantized
from onnxq.model import from_proto, load
from onnxq.passes.quantize_tables import MANY, QuantizeTables
from tests.graphs import after, build, feeds, ops, quantize, run

LSTM = "y, h, c = LSTM<hidden_size=16>(x, w, r)"
TABLES = {
    "bias of attention": ("(float[1,8,9,16] x) => (float[] y)", "y = Add(x, t)",
                          {"t": (1, 8, 9, 16)}),
    "another order": ("(float[1,8,9,16] x) => (float[] y)", "y = Sub(t, x)", {"t": (8, 9, 16)}),
    "embedding": ("(int64[5] x) => (float[] y)", "y = Gather(t, x)", {"t": (100, 12)}),
    "recurrent weights": ("(float[5,1,20] x) => (float[] y)", LSTM,
                          {"w": (1, 64, 20), "r": (1, 64, 16)}),
    "several readers": ("(float[1,8,9,16] x) => (float[] y)", "a = Add(x, t) y = Mul(a, t)",
                        {"t": (1, 8, 9, 16)}),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
def test_tables_take_8_bits(case):
    head, nodes, shapes = TABLES[case]
    proto = build(f"{head} {{ {nodes} }}", **shapes)
    model, outcome = after(proto, QuantizeTables())
    assert [edit.where for edit in outcome.edits] == [*shapes]
    assert sorted(ops(model)) == sorted([*ops(from_proto(proto)), *["Cast", "Mul"] * len(shapes)])
    assert model.nbytes < 0.32 * from_proto(proto).nbytes
    values = {name: np.clip(x, 0, None) if x.dtype == np.int64 else x
              for name, x in feeds(proto).items()}  # fmt: skip
    wanted, found = run(proto, values)["y"], run(model.to_proto(), values)["y"]
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
    nodes = "a = Add(x, t) y = Mul(a, u)"
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
        "t": "as asked", "u": "8 bits leave too little of its smaller values",
    }  # fmt: skip


def test_what_a_body_reads_stays():
    proto = build(
        "(float[1,8,9,16] x) => (float[] y) { c = Not(no) y = If(c) "
        "<then_branch = e () => (float[] u) { u = Add(x, t) }, "
        "else_branch = f () => (float[] v) { v = Sub(x, t) }> }",
        t=(1, 8, 9, 16), no=np.array(False),
    )  # fmt: skip
    assert not after(proto, QuantizeTables())[1].edits


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
