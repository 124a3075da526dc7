import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxq.graph.layers import layers
from onnxq.passes.normalize import LARGEST_RESULT, Normalize
from tests.graphs import after, build, feeds, norm, ops, quantize, run

rng = np.random.default_rng(0)


@pytest.mark.parametrize(
    "constant",
    [
        "value = float[4] {1, 2, 3, 4}",
        "value_float = 0.25",
        "value_floats = [1.0, 2.0, 3.0, 4.0]",
    ],
)
def test_a_constant_node_becomes_a_float32_initializer(constant):
    proto = build(f"(float[2,4] x) => (float[] y) {{ c = Constant<{constant}>() y = Mul(x, c) }}")
    model, _ = after(proto, Normalize())
    (mul,) = model.graph.nodes
    assert mul.inputs[1].values.dtype == np.float32


def test_constant_nodes_of_integers_become_int64():
    proto = build(
        "(float[2,4] x) => (float[] y) { c = Constant<value_int = 1>() "
        "n = Constant<value_ints = [2, 1]>() a = Tile(x, n) y = Gather(a, c) }"
    )
    model, _ = after(proto, Normalize())
    tile, gather = model.graph.nodes
    assert (tile.inputs[1].values.dtype, tile.inputs[1].values.tolist()) == (np.int64, [2, 1])
    assert (gather.inputs[1].values.dtype, gather.inputs[1].values.tolist()) == (np.int64, 1)


def test_a_sparse_constant_or_a_string_stays_a_node():
    values = onnx.numpy_helper.from_array(np.array([2.0], np.float32), "")
    indices = onnx.numpy_helper.from_array(np.array([1]), "")
    proto = build(
        "(float[2,4] x) => (float[] y, string[] t) { c = Constant() n = Neg(c) y = Mul(x, n) "
        's = Constant<value_string = "text">() t = Identity(s) }'
    )
    sparse = onnx.helper.make_sparse_tensor(values, indices, [4])
    proto.graph.node[0].attribute.append(onnx.helper.make_attribute("sparse_value", sparse))
    model, _ = after(proto, Normalize())
    assert sorted(ops(model)) == ["Constant", "Constant", "Identity", "Mul", "Neg"]
    assert run(model.to_proto(), feeds(proto))["t"] == "text"


def test_packed_constants_are_not_spoilt_where_they_are_unpacked(tmp_path):
    proto = build("(float[1,4,8,8] x) => (float[] y) { y = Conv(x, w) }", opset=21, w=(4, 4, 3, 3))
    codes = np.random.default_rng(0).integers(-8, 8, (4, 4, 3, 3))
    packed = onnx.helper.make_tensor("codes", onnx.TensorProto.INT4, codes.shape, codes.reshape(-1))
    proto.graph.initializer[0].CopyFrom(packed)
    proto.graph.node.insert(0, onnx.helper.make_node("Cast", ["codes"], ["w"], to=1))
    report, _ = quantize(proto, tmp_path)
    assert list(report.kernels.integer.values()) == ["QLinearConv"]


def test_texts_beside_numbers_are_no_results_to_compare(tmp_path):
    proto = build(
        "(float[1,4,8,8] x) => (float[] y, string[2] t) { y = Conv(x, w) c = Constant() "
        "t = Identity(c) }",
        w=(4, 4, 3, 3),
    )  # fmt: skip
    words = onnx.helper.make_tensor("v", onnx.TensorProto.STRING, [2], [b"a", b"b"])
    proto.graph.node[1].attribute.append(onnx.helper.make_attribute("value", words))
    report, file = quantize(proto, tmp_path, recipe="balanced")
    assert [*report.fidelity.outputs] == ["y"]
    assert run(onnx.load(file), feeds(proto))["t"].tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("nodes", "weight"),
    [
        ("h = Cast<to=1>(w)", rng.standard_normal((6, 4)).astype(np.float16)),
        ("h = Cast<to=1>(w)", rng.standard_normal((6, 4))),
        ("h = Cast<to=1>(w)", rng.standard_normal((6, 4)).astype(ml_dtypes.bfloat16)),
        ("h = Identity(w)", rng.standard_normal((6, 4)).astype(np.float32)),
        ("a = Transpose(w) h = Transpose(a)", rng.standard_normal((6, 4)).astype(np.float32)),
        ("a = Mul(w, w) h = Sqrt(a)", rng.standard_normal((6, 4)).astype(np.float32)),
    ],
)
def test_what_is_computed_from_constants_becomes_a_weight(nodes, weight):
    proto = build(f"(float[2,4] x) => (float[] y) {{ {nodes} y = Gemm<transB=1>(x, h) }}", w=weight)
    model, _ = after(proto, Normalize())
    (layer,) = layers(model)
    expected = np.abs(weight) if "Sqrt" in nodes else weight.astype(np.float32)
    np.testing.assert_allclose(layer.weight, expected, rtol=1e-6)


def test_random_constants_stay_random():
    proto = build(
        "(float[2,4] x) => (float[] y) { r = RandomNormal<shape=[2,4]>() n = Neg(r) y = Add(x, n) }"
    )
    model, outcome = after(proto, Normalize())
    assert ops(model) == ["RandomNormal", "Neg", "Add"]
    assert not outcome


def test_a_weight_that_is_standardized_at_load_is_made_before():
    proto = build(
        "(float[n,40,8,8] x) => (float[] y) { f = Reshape(w, flat) "
        "b, m2, v2 = BatchNormalization<training_mode=1>(f, g, s, m, v) k = Reshape(b, whole) "
        "y = Conv(x, k) }",
        w=(64, 40, 3, 3), flat=np.array([1, 64, 360]), whole=np.array([64, 40, 3, 3]), **norm(64),
    )  # fmt: skip
    (layer,) = layers(after(proto, Normalize())[0])
    assert layer.weight.nbytes > LARGEST_RESULT
    np.testing.assert_allclose(layer.weight.mean(axis=(1, 2, 3)), norm(64)["s"], atol=1e-5)


def test_operands_that_are_left_out_keep_no_result_from_being_constant():
    proto = build("(float[4] x) => (float[] y) { c = Clip(k, , one) y = Add(x, c) }",
                  k=(4,), one=np.float32(0.1))  # fmt: skip
    assert ops(after(proto, Normalize())[0]) == ["Add"]


def test_a_large_result_of_little_is_left_to_be_made_at_load():
    proto = build(
        "(float[300,300] x) => (float[] y) { o = ConstantOfShape(n) y = Add(x, o) }",
        n=np.array([300, 300]),
    )
    model, outcome = after(proto, Normalize())
    assert ops(model) == ["ConstantOfShape", "Add"]
    assert [skip.why for skip in outcome.skips] == ["its 360000 bytes are made at load"]


def test_a_constant_that_is_an_output_stays_one():
    proto = build(
        "(float[2] x) => (float[] y, float[] k) "
        "{ k = Constant<value_floats = [1.0, 2.0]>() y = Add(x, k) }"
    )
    model, _ = after(proto, Normalize())
    assert "k" in [output.name for output in model.graph.outputs]
    onnx.checker.check_model(model.to_proto(), full_check=True)


def test_half_precision_is_widened_between_two_casts():
    proto = build(
        "(float16[2,4] x, int64[1] n) => (float16[] y, int64[] m) "
        "{ a = Gemm(x, w, b) c = Cast<to=10>(a) y = Relu(c) m = Neg(n) }",
        w=rng.standard_normal((4, 3)).astype(np.float16),
        b=rng.standard_normal(3).astype(np.float16),
    )
    model, outcome = after(proto, Normalize())
    assert sorted(ops(model)) == ["Cast", "Cast", "Cast", "Gemm", "Neg", "Relu"]
    assert all(constant.dtype != np.float16 for constant in model.constants())
    assert [t.dtype for t in model.graph.inputs] == [np.float16, np.int64]
    assert outcome.edits[0].what == "2 constants widened to float32"
    assert len(list(layers(model))) == 1


def test_half_precision_with_control_flow_is_left_with_a_reason():
    proto = build(
        "(float16[2,4] x, bool c) => (float16[] y) { a = MatMul(x, w) "
        "y = If (c) <then_branch = one () => (float16[] u) { u = Relu(a) }, "
        "else_branch = two () => (float16[] t) { t = Neg(a) }> }",
        w=rng.standard_normal((4, 4)).astype(np.float16),
    )
    model, outcome = after(proto, Normalize())
    assert model.constants()[0].dtype == np.float16
    assert [skip.where for skip in outcome.skips] == ["float16"]


def test_factors_of_a_gemm_move_into_its_constants():
    proto = build(
        "(float[2,4] x) => (float[] y) { y = Gemm<alpha=0.5,beta=2.0>(x, w, b) }",
        w=(4, 3), b=(3,),
    )  # fmt: skip
    weight, bias = (onnx.numpy_helper.to_array(t) for t in proto.graph.initializer)
    model, _ = after(proto, Normalize())
    (layer,) = layers(model)
    np.testing.assert_array_equal(layer.weight, weight * np.float32(0.5))
    np.testing.assert_array_equal(layer.bias, bias * np.float32(2.0))
    assert not layer.node.attrs.keys() & {"alpha", "beta"}


def test_a_factor_on_a_computed_bias_stays_with_a_reason():
    proto = build(
        "(float[2,4] x, float[3] b) => (float[] y) { y = Gemm<alpha=0.5,beta=2.0>(x, w, b) }",
        w=(4, 3),
    )
    model, outcome = after(proto, Normalize())
    assert model.graph.nodes[0].attrs["beta"] == 2.0
    assert [skip.why for skip in outcome.skips] == ["beta multiplies a bias that is not constant"]


def test_an_empty_sequence_is_no_constant():
    proto = build(
        "(float[2,3] x) => (float[] y) "
        "{ s = SequenceEmpty() t = SequenceInsert(s, x) y = SequenceAt(t, first) }",
        first=np.array(0),
    )
    model, _ = after(proto, Normalize())
    assert ops(model) == ["SequenceEmpty", "SequenceInsert", "SequenceAt"]


@pytest.mark.parametrize(
    ("node", "shape"),
    [
        ("Mul(x, k)", ()),
        ("Div(k, x)", ()),
        ("Add(x, cube)", ()),
        ("Add(x, deep)", (1, 1, 1, 1)),
        ("Sub(s, k)", (1,)),
        ("Pow(x, k)", (1,)),
    ],
)
def test_a_number_loses_its_axes_where_the_data_have_as_many(node, shape):
    numbers = {"k": (1,), "cube": (1, 1, 1), "deep": (1, 1, 1, 1)}
    used = {name: np.full(size, 2, np.float32) for name, size in numbers.items() if name in node}
    proto = build(f"(float[2,3,4] x, float s) => (float[] y) {{ y = {node} }}", **used)
    model, _ = after(proto, Normalize())
    (number,) = (t for t in model.graph.nodes[0].inputs if t.name not in "xs")
    assert number.values.shape == shape


@pytest.mark.parametrize("terms", ["x", "x, z", "x, k, z", "k, x, x, z"])
def test_a_sum_is_as_many_adds_to_the_last_bit(terms):
    proto = build(
        f"(float[2,3,4] x, float[4] z) => (float[] y) {{ a = Sum({terms}) y = Relu(a) }}",
        k=(3, 1),
    )  # fmt: skip
    if "k" not in terms:
        del proto.graph.initializer[:]
    model, outcome = after(proto, Normalize())
    count = terms.count(",")
    assert ops(model) == (["Add"] * count or ["Sum"]) + ["Relu"]
    assert len(outcome.edits) == (count > 0)
    given = feeds(proto)
    np.testing.assert_array_equal(run(model.to_proto(), given)["y"], run(proto, given)["y"])


def test_behind_a_sum_numbers_lose_their_axes_as_elsewhere():
    proto = build(
        "(float[1,4,6,6] x) => (float[] y) { a = Sum(x, x, x) y = Mul(a, k) }", k=(1,)
    )  # fmt: skip
    model, _ = after(proto, Normalize())
    assert ops(model) == ["Add", "Add", "Mul"]
    assert model.graph.nodes[-1].inputs[1].values.shape == ()


def test_a_sum_of_many_terms_stays_since_it_rounds_once():
    proto = build("(float[1,4] x) => (float[] y) { y = Sum(x, x, x, x, x) }")
    model, outcome = after(proto, Normalize())
    assert ops(model) == ["Sum"]
    assert [skip.why for skip in outcome.skips] == ["a Sum of 5 would be rounded as often"]


def test_a_sum_that_is_constant_is_that_and_nothing_else():
    nodes = "a = Sum(k, k, k) b = Sum(a, k, k) y = Add(x, b)"
    proto = build(f"(float[1,3] x) => (float[] y) {{ {nodes} }}", k=(3,))
    model, outcome = after(proto, Normalize())
    assert ops(model) == ["Add"]
    assert [edit.what for edit in outcome.edits] == ["constant Sum folded"]


def test_a_residual_written_as_a_sum_runs_on_integers(tmp_path):
    """As Caffe2 writes those of a ResNet."""
    proto = build(
        "(float[1,4,6,6] x) => (float[] y) { a = Conv(x, w) b = Relu(a) c = Conv(b, v) "
        "d = Sum(b, c) e = Relu(d) y = Conv(e, w) }",
        w=(4, 4, 1, 1), v=(4, 4, 1, 1),
    )  # fmt: skip
    report, _ = quantize(proto, tmp_path)
    assert report.kernels.operators.get("QLinearAdd") == 1
    assert report.kernels.floating == []
