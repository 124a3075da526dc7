import onnx

from onnxq.passes.clean_graph import CleanGraph
from onnxq.passes.normalize import Normalize
from tests.graphs import after, build, ops


def test_a_branch_decided_beforehand_is_taken_and_its_layer_is_brought_out():
    proto = build(
        "(float[2,4,6,6] x) => (float[] y) { c = Constant<value = bool {1}>() "
        "y = If (c) <then_branch = one () => (float[] u) { u = Conv(x, w) }, "
        "else_branch = two () => (float[] t) { t = Neg(x) }> }",
        w=(4, 4, 3, 3),
    )  # fmt: skip
    model, outcome = after(proto, Normalize(), CleanGraph())
    assert ops(model) == ["Conv"]
    assert outcome


def test_a_function_is_inlined_and_its_layer_is_brought_out():
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 17, "local" : 1]>'
        "net (float[2,2] x) => (float[2,2] y) <float[2,2] w = {1, 2, 3, 4}> "
        "{ y = local.dense(x, w) } "
        '<domain: "local", opset_import: ["" : 17]> dense (x, w) => (y) '
        "{ k = Constant<value_float = 2.0>() h = Mul(w, k) y = MatMul(x, h) }"
    )
    model, _ = after(proto, CleanGraph())
    assert ops(model) == ["MatMul"]
    assert model.graph.nodes[0].inputs[1].values.tolist() == [[2, 4], [6, 8]]


def test_metadata_and_names_of_the_ends_survive_the_optimizer():
    proto = build(
        "(float[2,4] x) => (float[] y) { c = Constant<value = bool {1}>() "
        "y = If (c) <then_branch = one () => (float[] u) { u = Relu(x) }, "
        "else_branch = two () => (float[] t) { t = Neg(x) }> }"
    )
    proto.metadata_props.add(key="stride", value="32")
    proto.doc_string = "a net"
    model, _ = after(proto, Normalize(), CleanGraph())
    written = model.to_proto()
    assert (written.doc_string, written.metadata_props[0].value) == ("a net", "32")
    assert [t.name for t in (*written.graph.input, *written.graph.output)] == ["x", "y"]


def test_what_the_optimizer_cannot_take_is_skipped_with_its_words(monkeypatch):
    from onnxscript import optimizer

    def give_up(proto):
        raise ValueError("no")

    monkeypatch.setattr(optimizer, "optimize", give_up)
    proto = build("(float[2,4] x, float[4,4] w) => (float[] y) { y = MatMul(x, w) }")
    model, outcome = after(proto, CleanGraph())
    assert ops(model) == ["MatMul"]
    assert [skip.why for skip in outcome.skips] == ["the optimizer gave up (ValueError: no)"]
