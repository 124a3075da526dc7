import numpy as np

from onnxq.graph.loading import from_proto
from onnxq.passes.split_shared import SplitShared
from tests.graphs import after, build


def test_every_layer_gets_a_weight_and_a_bias_of_its_own():
    proto = build(
        "(float[2,4,6,6] x) => (float[] y) "
        "{ a = Conv(x, w, b) c = Conv(a, w, b) y = Conv(c, w, b) }",
        w=(4, 4, 3, 3), b=(4,),
    )  # fmt: skip
    model, outcome = after(proto, SplitShared())
    assert len({node.inputs[1].name for node in model.graph.nodes}) == 3
    assert len({node.inputs[2].name for node in model.graph.nodes}) == 3
    assert len(outcome.edits) == 4
    for index in (1, 2):
        first, *others = (node.inputs[index].values for node in model.graph.nodes)
        assert all(np.array_equal(first, other) for other in others)


def test_a_strange_reader_keeps_the_constant():
    proto = build(
        "(float[4,4] x) => (float[] y) { a = MatMul(x, w) c = Add(a, w) y = MatMul(c, w2) }",
        w=(4, 4), w2=(4, 4),
    )  # fmt: skip
    model, outcome = after(proto, SplitShared())
    matmul, add, _ = model.graph.nodes
    assert add.inputs[1].name == "w"
    assert matmul.inputs[1].name not in ("w", "w2")
    assert [edit.where for edit in outcome.edits] == [matmul.name]


def test_names_that_are_taken_are_not_given_again():
    proto = build(
        "(float[4,4] x) => (float[] y) { w_1 = MatMul(x, w) c = MatMul(w_1, w) y = Add(c, w_2) }",
        w=(4, 4), w_2=(4, 4),
    )  # fmt: skip
    model, _ = after(proto, SplitShared())
    names = [t.name for node in model.graph.nodes for t in (*node.inputs, *node.outputs)]
    assert len(set(names)) == 7


def test_unshared_weights_are_left_alone():
    proto = build("(float[3,4] x) => (float[] y) { y = MatMul(x, w) }", w=(4, 4))
    assert not after(proto, SplitShared())[1]


def test_what_stays_float_shares_on():
    proto = build("(float[3,4] x) => (float[] y) { a = MatMul(x, w) y = MatMul(a, w) }", w=(4, 4))
    model = from_proto(proto)
    model.kept_float = dict.fromkeys(("MatMul_a", "MatMul_y"), "kept by --keep-float")
    assert not SplitShared().run(model, {})
    first, second = model.graph.nodes
    assert first.inputs[1] is second.inputs[1]
