import numpy as np
import onnx

from onnxq import pipeline
from onnxq.graph.loading import from_proto
from onnxq.passes.clean_graph import CleanGraph
from onnxq.passes.normalize import Normalize
from onnxq.recipes import PREPARATION
from tests.graphs import after, build, feeds, ops, quantize, run


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


def test_what_is_larger_than_what_it_is_made_of_is_made_at_load():
    """A grid of positions, as windows of attention have: twice as many numbers as the weight."""
    proto = build(
        "(float[2,4] x, float[4,4] w) => (float[] y) { i = Range(zero, many, one) "
        "r = Unsqueeze(i, first) c = Unsqueeze(i, last) g = Sub(r, c) f = Cast<to=1>(g) "
        "m = MatMul(x, w) s = ReduceMean<keepdims=0>(f) y = Add(m, s) }",
        opset=18, zero=np.array(0), many=np.array(200), one=np.array(1), first=np.array([0]),
        last=np.array([1]),
    )  # fmt: skip
    model, _ = after(proto, CleanGraph())
    assert max((t.values.size for t in model.constants()), default=0) <= 1 << 13
    given = feeds(proto)
    np.testing.assert_allclose(run(model.to_proto(), given)["y"], run(proto, given)["y"], rtol=1e-6)


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

    def give_up(proto, **limits):
        raise ValueError("no")

    monkeypatch.setattr(optimizer, "optimize", give_up)
    proto = build("(float[2,4] x, float[4,4] w) => (float[] y) { y = MatMul(x, w) }")
    model, outcome = after(proto, CleanGraph())
    assert ops(model) == ["MatMul"]
    assert [skip.why for skip in outcome.skips] == ["the optimizer gave up (ValueError: no)"]


def test_nodes_keep_their_names():
    proto = build(
        "(float[2,4,6,6] x) => (float[] y) { c = Constant<value = bool {1}>() "
        "a = Conv(x, w) f = Flatten(a) "
        "y = If (c) <then_branch = one () => (float[] u) { u = Gemm<transB=1>(f, v) }, "
        "else_branch = two () => (float[] t) { t = Neg(f) }> }",
        w=(3, 4, 3, 3), v=(5, 48),
    )  # fmt: skip
    for node, name in zip(proto.graph.node, ("c", "stem", "flat", "head"), strict=True):
        node.name = name
    model, outcome = after(proto, Normalize(), CleanGraph())
    assert outcome
    assert [node.name for node in model.graph.nodes] == ["stem", "flat", "head"]


def test_a_result_that_is_not_valid_is_not_taken(monkeypatch):
    from onnxscript import optimizer

    def spoil(proto, **limits):
        worse = onnx.ModelProto.FromString(proto.SerializeToString())
        worse.graph.node[0].attribute.append(onnx.helper.make_attribute("num_outputs", 2))
        worse.graph.node.append(onnx.helper.make_node("Neg", ["y"], ["z"]))
        return worse

    monkeypatch.setattr(optimizer, "optimize", spoil)
    proto = build("(float[2,4] x, float[4,4] w) => (float[] y) { y = MatMul(x, w) }")
    model, outcome = after(proto, CleanGraph())
    assert ops(model) == ["MatMul"]
    (skip,) = outcome.skips
    assert skip.why.startswith(
        "what the optimizer makes of it is not valid: Unrecognized attribute"
    )


def test_batch_normalizations_in_functions_fold():
    text = (
        '<ir_version: 10, opset_import: ["" : 17, "local" : 1]>'
        "net (float[2,2,5,5] x) => (float[] y) <float[2] s = {1.5, -2.0}, float[2] o = {0.5, 1.0},"
        " float[2] m = {0.1, -0.3}, float[2] v = {2.0, 0.7}>"
        "{ y = local.block(x, w, s, o, m, v) } "
        '<domain: "local", opset_import: ["" : 17]> block (x, w, s, o, m, v) => (y) '
        "{ k = Constant<value_float = 0.0>() l = CastLike(k, x) t = Constant<value_ints = [2]>() "
        "b = Expand(l, t) a = Conv(x, w, b) y = BatchNormalization(a, s, o, m, v) }"
    )
    proto = onnx.parser.parse_model(text)
    w = np.random.default_rng(0).standard_normal((2, 2, 3, 3)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    model, _ = after(proto, *PREPARATION)
    assert ops(model) == ["Conv"]
    x = feeds(proto)
    found = run(model.to_proto(), x)["y"]
    np.testing.assert_allclose(found, run(proto, x)["y"], rtol=1e-5, atol=1e-5)


def test_an_input_that_is_an_output_keeps_its_name():
    proto = build(
        "(float[2,4] x) => (float[] y, float[2,4] x) { c = Constant<value = bool {1}>() "
        "y = If (c) <then_branch = one () => (float[] u) { u = Relu(x) }, "
        "else_branch = two () => (float[] t) { t = Neg(x) }> }"
    )
    model, _ = after(proto, Normalize(), CleanGraph())
    assert [t.name for t in (*model.graph.inputs, *model.graph.outputs)] == ["x", "y", "x"]


def test_what_a_layer_kept_float_becomes_a_part_of_is_kept_float(tmp_path):
    proto = build(
        "(float[2,3,6,6] x) => (float[] y) { k = Identity(w) a = Conv(x, k) "
        "b = BatchNormalization(a, one, one, one, one) y = Conv(b, v) }",
        w=(4, 3, 3, 3), v=(2, 4, 3, 3), one=np.ones(4, np.float32),
    )  # fmt: skip
    model = from_proto(proto)
    model.kept_float = {"Conv_a": "as asked"}
    outcomes = pipeline.run(model, (CleanGraph(),), None)
    assert outcomes["clean-graph"].edits
    layer, _ = (node.name for node in model.graph.nodes if node.op == "Conv")
    assert model.kept_float[layer] == "as asked"
    report, _ = quantize(proto, tmp_path, keep_float=("Conv_a",))
    assert list(report.why_float.values()) == ["kept by --keep-float Conv_a"]
