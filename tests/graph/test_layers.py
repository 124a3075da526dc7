"""Which axis of a weight is which, shown by what scaling it does to the output.

Factors are powers of two, so that results are equal to the last bit.
"""

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from onnxq.graph.layers import Layer, layer_of, layers, twins
from onnxq.graph.loading import from_proto
from onnxq.graph.model import Model
from onnxq.runtime import Session

Shape = tuple[int, ...]

# Call, shape of the weight w, shape of the data x, channel axis of the data, and of the output.
CASES: list[tuple[str, Shape, Shape, int, int]] = [
    ("Conv(x, w)", (4, 3, 3), (2, 3, 8), 1, 1),
    ("Conv(x, w)", (4, 3, 3, 2), (2, 3, 6, 5), 1, 1),
    ("Conv(x, w)", (4, 3, 2, 2, 2), (2, 3, 4, 4, 4), 1, 1),
    ("Conv<group=2>(x, w)", (6, 2, 3, 3), (2, 4, 6, 6), 1, 1),
    ("Conv<group=4>(x, w)", (4, 1, 3, 3), (2, 4, 6, 6), 1, 1),
    ("Conv<group=4>(x, w)", (8, 1, 3), (2, 4, 6), 1, 1),
    ("ConvTranspose(x, w)", (3, 4, 2), (2, 3, 5), 1, 1),
    ("ConvTranspose<strides=[2, 2]>(x, w)", (3, 4, 2, 2), (2, 3, 5, 5), 1, 1),
    ("ConvTranspose<group=2>(x, w)", (4, 3, 2, 2), (2, 4, 5, 5), 1, 1),
    ("ConvTranspose<group=2>(x, w)", (6, 1, 2, 2), (2, 6, 5, 5), 1, 1),
    ("ConvTranspose<group=4>(x, w)", (4, 1, 2, 2), (2, 4, 5, 5), 1, 1),
    ("Gemm(x, w)", (5, 4), (3, 5), 1, 1),
    ("Gemm<transA=1>(x, w)", (5, 4), (5, 3), 0, 1),
    ("Gemm<transB=1>(x, w)", (4, 5), (3, 5), 1, 1),
    ("Gemm<transA=1, transB=1>(x, w)", (4, 5), (5, 3), 0, 1),
    ("Gemm(w, x)", (4, 5), (5, 3), 0, 0),
    ("Gemm<transA=1>(w, x)", (5, 4), (5, 3), 0, 0),
    ("Gemm<transB=1>(w, x)", (4, 5), (3, 5), 1, 0),
    ("Gemm<transA=1, transB=1>(w, x)", (5, 4), (3, 5), 1, 0),
    ("MatMul(x, w)", (5, 4), (3, 5), 1, 1),
    ("MatMul(x, w)", (5, 4), (2, 3, 5), 2, 2),
    ("MatMul(x, w)", (2, 5, 4), (2, 3, 5), 2, 2),
    ("MatMul(x, w)", (5, 4), (5,), 0, 0),
    ("MatMul(w, x)", (4, 5), (5, 3), 0, 0),
    ("MatMul(w, x)", (4, 5), (2, 5, 3), 1, 1),
    ("MatMul(w, x)", (2, 4, 5), (2, 5, 3), 1, 1),
    ("MatMul(w, x)", (4, 5), (5,), 0, 0),
]
table = pytest.mark.parametrize(
    ("call", "w_shape", "x_shape", "data_axis", "result_axis"),
    CASES,
    ids=[f"{call} {'x'.join(map(str, shape))}" for call, shape, *_ in CASES],
)


def build(body: str, inputs: dict[str, np.ndarray], constants: dict[str, np.ndarray]) -> Model:
    signature = ", ".join(f"float{list(x.shape)} {name}" for name, x in inputs.items())
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> main ({signature}) => (float y) {{ {body} }}'
    )
    tensors = (numpy_helper.from_array(value, name) for name, value in constants.items())
    proto.graph.initializer.extend(tensors)
    return from_proto(proto)


def random(*shapes: Shape) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def only_layer(model: Model) -> Layer:
    (layer,) = layers(model)
    return layer


def result(model: Model, x: np.ndarray) -> np.ndarray:
    return Session(model).run({"x": x})["y"]


def powers(count: int) -> np.ndarray:
    return np.exp2(np.arange(count)).astype(np.float32)


def along(values: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    return np.expand_dims(values, [i for i in range(ndim) if i != axis])


@table
def test_per_output_scales_exactly_its_output_channel(
    call: str, w_shape: Shape, x_shape: Shape, data_axis: int, result_axis: int
) -> None:
    w, x = random(w_shape, x_shape)
    model = build(f"y = {call}", {"x": x}, {"w": w})
    layer = only_layer(model)
    before = result(model, x)
    assert layer.c_out == before.shape[result_axis]
    factors = powers(layer.c_out)
    layer.set_weight(model, layer.weight * layer.per_output(factors))
    np.testing.assert_array_equal(
        result(model, x), before * along(factors, result_axis, before.ndim)
    )


@table
def test_the_in_axis_meets_the_channels_of_the_data(
    call: str, w_shape: Shape, x_shape: Shape, data_axis: int, result_axis: int
) -> None:
    w, x = random(w_shape, x_shape)
    model = build(f"y = {call}", {"x": x}, {"w": w})
    layer = only_layer(model)
    factors = powers(w.shape[layer.in_axis])
    repeated = np.tile(factors, x.shape[data_axis] // len(factors))
    expected = result(model, x * along(repeated, data_axis, x.ndim))
    layer.set_weight(model, w * along(factors, layer.in_axis, w.ndim))
    np.testing.assert_array_equal(result(model, x), expected)


@table
def test_the_axes_are_two_and_without_sign(
    call: str, w_shape: Shape, x_shape: Shape, data_axis: int, result_axis: int
) -> None:
    w, x = random(w_shape, x_shape)
    layer = only_layer(build(f"y = {call}", {"x": x}, {"w": w}))
    assert 0 <= layer.out_axis < w.ndim
    assert 0 <= layer.in_axis < w.ndim
    assert layer.out_axis != layer.in_axis
    assert (layer.weight_tensor.name, layer.data.name, layer.output.name) == ("w", "x", "y")


regular = pytest.mark.parametrize(
    ("call", "w_shape", "x_shape", "data_axis", "result_axis"),
    [case for case in CASES if "(x, w)" in case[0] and (len(case[1]) < 3 or "Mat" not in case[0])],
)


@regular
def test_by_group_has_its_channels_where_it_says(
    call: str, w_shape: Shape, x_shape: Shape, data_axis: int, result_axis: int
) -> None:
    w, x = random(w_shape, x_shape)
    model = build(f"y = {call}", {"x": x}, {"w": w})
    layer = only_layer(model)
    before = result(model, x)
    made, read = powers(layer.c_out), powers(layer.c_in)
    assert layer.obstacle is None
    assert (layer.c_out, layer.c_in) == (before.shape[result_axis], x.shape[data_axis])
    assert layer.data_axis % x.ndim == data_axis
    assert layer.result_axis % before.ndim == result_axis
    outputs, inputs = (v.reshape(layer.groups, -1) for v in (made, read))
    layer.set_by_group(model, layer.by_group * outputs[:, :, None, None])
    np.testing.assert_array_equal(result(model, x), before * along(made, result_axis, before.ndim))
    layer.set_weight(model, w)
    expected = result(model, x * along(read, data_axis, x.ndim))
    layer.set_by_group(model, layer.by_group * inputs[:, None, :, None])
    np.testing.assert_array_equal(result(model, x), expected)


@regular
def test_by_group_survives_a_round_trip(
    call: str, w_shape: Shape, x_shape: Shape, data_axis: int, result_axis: int
) -> None:
    w, x = random(w_shape, x_shape)
    model = build(f"y = {call}", {"x": x}, {"w": w})
    layer = only_layer(model)
    layer.set_by_group(model, layer.by_group)
    np.testing.assert_array_equal(layer.weight, w)


@pytest.mark.parametrize(
    ("call", "w_shape", "x_shape", "why"),
    [
        ("MatMul(w, x)", (4, 5), (5, 3), "its weight is the left operand"),
        ("Gemm(w, x)", (4, 5), (5, 3), "its weight is the left operand"),
        ("MatMul(x, w)", (2, 5, 4), (2, 3, 5), "its weight is a batch of matrices"),
        ("Gemm(x, w)", (5, 0), (3, 5), "its weight is empty"),
    ],
)
def test_weights_whose_channels_are_elsewhere_say_so(
    call: str, w_shape: Shape, x_shape: Shape, why: str
) -> None:
    w, x = random(w_shape, x_shape)
    assert only_layer(build(f"y = {call}", {"x": x}, {"w": w})).obstacle == why


def test_a_new_bias_has_the_shape_of_the_old_one() -> None:
    x, w, b = random((5,), (5, 4), (1, 4))
    model = build("a = MatMul(x, w) y = Add(a, b)", {"x": x}, {"w": w, "b": b})
    only_layer(model).set_bias(model, np.arange(4.0))
    assert result(model, x).shape == (1, 4)


@pytest.mark.parametrize("left", [False, True])
def test_a_matmul_without_an_addition_gets_one_for_its_bias(left: bool) -> None:
    x, w, b = random((2, 5, 5), (5, 5), (5,))
    call = "y = MatMul(w, x)" if left else "y = MatMul(x, w)"
    model = build(call, {"x": x}, {"w": w})
    before = only_layer(model).output.name
    only_layer(model).set_bias(model, b)
    assert model.graph.outputs[0].name == before
    model.tidy()
    expected = w @ x + b[:, None] if left else x @ w + b
    np.testing.assert_allclose(Session(model).run({"x": x})["y"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("given", [True, False], ids=["with a bias", "without"])
@pytest.mark.parametrize(
    ("call", "w_shape", "x_shape"),
    [
        ("Conv", (4, 3, 3), (2, 3, 8)),
        ("Conv<group=2>", (4, 2, 3, 3), (2, 4, 5, 5)),
        ("ConvTranspose<group=2>", (4, 2, 2, 2), (2, 4, 5, 5)),
        ("Gemm", (5, 4), (3, 5)),
        ("Gemm<transB=1>", (4, 5), (3, 5)),
    ],
)
def test_set_bias_is_what_the_output_channels_start_from(
    call: str, w_shape: Shape, x_shape: Shape, given: bool
) -> None:
    w, x, old, new = random(w_shape, x_shape, (4,), (4,))
    model = build(f"y = {call}(x, w{', b' if given else ''})", {"x": x}, {"w": w, "b": old})
    layer = only_layer(model)
    np.testing.assert_array_equal(layer.bias, old if given else None)
    layer.set_bias(model, new)
    np.testing.assert_array_equal(layer.bias, new)
    nothing = result(model, np.zeros_like(x))
    np.testing.assert_array_equal(nothing, np.broadcast_to(along(new, 1, x.ndim), nothing.shape))


def test_set_bias_takes_the_place_of_an_empty_input() -> None:
    w, x, b = random((4, 3, 3), (2, 3, 8), (4,))
    proto = build("y = Conv(x, w)", {"x": x}, {"w": w}).to_proto()
    proto.graph.node[0].input.append("")
    model = from_proto(proto)
    only_layer(model).set_bias(model, b)
    assert [len(node.inputs) for node in model.graph.nodes] == [3]
    assert result(model, 0 * x)[0, :, 0].tolist() == b.tolist()


@pytest.mark.parametrize("add", ["Add(m, b)", "Add(b, m)"])
@pytest.mark.parametrize("b_shape", [(4,), (1, 4)])
def test_the_bias_of_a_matmul_is_the_add_behind_it(add: str, b_shape: Shape) -> None:
    w, x, old, new = random((5, 4), (2, 3, 5), b_shape, (4,))
    model = build(f"m = MatMul(x, w) y = {add}", {"x": x}, {"w": w, "b": old})
    layer = only_layer(model)
    np.testing.assert_array_equal(layer.bias, old.ravel())
    assert (layer.end.op, layer.output.name) == ("Add", "y")
    layer.set_bias(model, new)
    np.testing.assert_array_equal(result(model, np.zeros_like(x)), np.broadcast_to(new, (2, 3, 4)))


@pytest.mark.parametrize(
    ("body", "b_shape"),
    [
        ("y = MatMul(x, w)", (4,)),
        ("m = MatMul(x, w) y = Add(m, b)", (3, 4)),
        ("m = MatMul(x, w) y = Add(m, b)", (1,)),
        ("m = MatMul(x, w) y = Mul(m, b)", (4,)),
        ("m = MatMul(x, w) n = Add(m, b) y = Add(n, m)", (4,)),
    ],
)
def test_a_matmul_has_no_other_bias(body: str, b_shape: Shape) -> None:
    w, x, b = random((5, 4), (4, 5), b_shape)
    assert only_layer(build(body, {"x": x}, {"w": w, "b": b})).bias_tensor is None


def test_rows_of_a_left_matmul_have_no_bias() -> None:
    w, x, b = random((4, 5), (5, 4), (4,))
    layer = only_layer(build("m = MatMul(w, x) y = Add(m, b)", {"x": x}, {"w": w, "b": b}))
    assert layer.bias_tensor is None


@pytest.mark.parametrize("given", [True, False], ids=["with a bias", "without"])
def test_the_bias_of_a_left_gemm_is_a_column(given: bool) -> None:
    w, x, old, new = random((4, 5), (5, 4), (4, 1), (4,))
    model = build(f"y = Gemm(w, x{', b' if given else ''})", {"x": x}, {"w": w, "b": old})
    layer = only_layer(model)
    np.testing.assert_array_equal(layer.bias, old.ravel() if given else None)
    layer.set_bias(model, new)
    np.testing.assert_array_equal(layer.bias, new)
    np.testing.assert_array_equal(result(model, 0 * x), np.broadcast_to(new[:, None], (4, 4)))


@pytest.mark.parametrize(
    ("call", "b_shape", "expected"),
    [
        ("Gemm(x, w, b)", (1, 4), (4,)),
        ("Gemm(x, w, b)", (1,), (1,)),
        ("Gemm(x, w, b)", (), (1,)),
        ("Gemm(x, w, b)", (4, 4), None),
        ("Gemm(x, w, b)", (4, 1), None),
        ("Gemm(w, x, b)", (4,), None),
        ("Gemm(w, x, b)", (1, 4), None),
        ("Gemm(w, x, b)", (1, 1), (1,)),
    ],
)
def test_a_bias_is_one_number_or_one_per_output_channel(
    call: str, b_shape: Shape, expected: Shape | None
) -> None:
    w, x, b = random((4, 4), (4, 4), b_shape)
    bias = only_layer(build(f"y = {call}", {"x": x}, {"w": w, "b": b})).bias
    assert (None if bias is None else bias.shape) == expected


def test_a_computed_bias_has_no_values() -> None:
    w, x, b = random((4, 3, 3), (2, 3, 8), (4,))
    layer = only_layer(build("c = Relu(b) y = Conv(x, w, c)", {"x": x, "b": b}, {"w": w}))
    assert layer.bias is None
    assert layer.bias_tensor.name == "c"


def test_a_weight_of_ones_own_leaves_the_other_reader_alone() -> None:
    w, x = random((5, 5), (3, 5))
    model = build("a = MatMul(x, w) y = MatMul(a, w)", {"x": x}, {"w": w})
    first, second = layers(model)
    first.set_weight(model, 2 * w)
    assert second.weight is not first.weight
    np.testing.assert_allclose(result(model, x), 2 * x @ w @ w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        "y = MatMul(x, x)",
        "y = Gemm(x, x)",
        "y = MatMul(w, w)",
        "y = MatMul(x, v)",
        "d = Relu(k) y = Conv(x4, d)",
        "y = Add(x, w)",
        "h = Cast<to=10>(x) y = MatMul(h, w16)",
        "y = com.microsoft.FusedMatMul(x, w)",
    ],
)
def test_a_node_without_a_constant_float_matrix_is_no_layer(body: str) -> None:
    w, v, k, x, x4 = random((5, 5), (5,), (4, 3, 3, 3), (5, 5), (2, 3, 6, 6))
    constants = {"w": w, "v": v, "k": k, "w16": w.astype(np.float16)}
    assert list(layers(build(body, {"x": x, "x4": x4}, constants))) == []


def test_layers_come_in_the_order_of_the_graph() -> None:
    k, w, x = random((4, 3, 3, 3), (4, 2), (2, 3, 6, 6))
    body = "c = Conv(x, k) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, w)"
    model = build(body, {"x": x}, {"k": k, "w": w})
    assert [layer.op for layer in layers(model)] == ["Conv", "Gemm"]
    assert [layer_of(node) is not None for node in model.graph.nodes] == [1, 0, 0, 0, 1]


def test_twins_have_equal_weights_that_are_many_and_not_all_one_number() -> None:
    w, v, x = random((40, 40, 1, 1), (40, 40, 1, 1), (1, 40, 4, 4))
    other = w.copy()
    other[-1, -1] += 1
    ones, few = np.ones((40, 40, 1, 1), np.float32), v[:, :1]
    made = "a = Conv(x, w) b = Conv(a, other) c = Conv(b, copy) d = Conv(c, v) e = Conv(d, ones) "
    made += "f = Conv(e, ones) g = Conv<group=40>(f, few) h = Conv<group=40>(g, few) y = Conv(h, w)"
    constants = {"w": w, "other": other, "copy": w.copy(), "v": v, "ones": ones, "few": few}
    model = build(made, {"x": x}, constants)
    assert twins(layers(model)) == dict.fromkeys(("Conv_a", "Conv_c", "Conv_y"), "Conv_a")
