"""Operators in forms that ONNX's own cases lack, against onnxruntime, and their gradients."""

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxq.graph.loading import from_proto
from tests.graphs import build, run

torch = pytest.importorskip("torch")
from onnxq.lowering import Lowered, Refused  # noqa: E402

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def node(op, *inputs, opset, outputs=1, **attrs):
    """A model of one node: its first input is the graph's, the others are constants or missing."""
    names = [f"i{k}" if x is not None else "" for k, x in enumerate(inputs)]
    results = [f"o{k}" for k in range(outputs)]
    x = np.asarray(inputs[0])
    graph = helper.make_graph(
        [helper.make_node(op, names, results, **attrs)],
        "net",
        [
            helper.make_tensor_value_info(
                names[0], helper.np_dtype_to_tensor_dtype(x.dtype), x.shape
            )
        ],
        [onnx.ValueInfoProto(name=name) for name in results],
        [
            numpy_helper.from_array(np.asarray(value), name)
            for name, value in zip(names[1:], inputs[1:], strict=True)
            if name
        ],
    )
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def lowered(proto, feeds):
    """The outputs of a model as a torch module, as arrays."""
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    module = Lowered(from_proto(proto))
    found = module.run({n: torch.from_numpy(x) for n, x in feeds.items()}, module.outputs)
    return {name: x.numpy() for name, x in found.items()}


def agree(op, *inputs, opset=17, outputs=1, **attrs):
    """Hold that a node computes what it does in onnxruntime."""
    proto = node(op, *inputs, opset=opset, outputs=outputs, **attrs)
    feeds = {"i0": np.asarray(inputs[0])}
    expected = run(proto, feeds, optimize=False)
    for name, found in lowered(proto, feeds).items():
        assert (found.dtype, found.shape) == (expected[name].dtype, expected[name].shape)
        np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=1e-4)


X = normal(2, 3, 4, 5)


@pytest.mark.parametrize("opset", [11, 12, 13])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1])
def test_normalizing_the_rows_of_a_matrix_or_along_an_axis(op, axis, opset):
    agree(op, X, opset=opset, **({} if axis is None else {"axis": axis}))


REDUCTIONS = ["L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]


@pytest.mark.parametrize("kind", [*REDUCTIONS, "LogSum"])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [None, [1], [-1, 0], [0, 1, 2, 3]])
def test_reductions_name_their_axes_by_attribute_and_later_by_input(kind, axes, keepdims):
    x = np.abs(X) if kind == "LogSum" else X
    named = {} if axes is None else {"axes": axes}
    agree(f"Reduce{kind}", x, opset=11, keepdims=keepdims, **named)
    agree(f"Reduce{kind}", x, *([] if axes is None else [axes]), opset=18, keepdims=keepdims)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"])
def test_reductions_of_integers_stay_integers(op, dtype):
    agree(op, np.array([[-7, 2, 3], [4, -5, 6]], dtype), opset=11, axes=[1])


def test_integers_divide_toward_zero_and_powers_keep_the_type_of_the_base():
    a = np.array([-7, 7, -8, 8, 0], np.int32)
    agree("Div", a, np.array([2, -2, 3, -3, 5], np.int32))
    agree("Mod", a, np.array([2, -2, 3, -3, 5], np.int32))
    agree("Mod", a, np.array([2, -2, 3, -3, 5], np.int32), fmod=1)
    agree("Pow", np.abs(X), np.array([2], np.int64))
    agree("Pow", np.abs(X), np.float32(0.5))
    agree("Pow", a, np.float32(2))


def test_axes_and_sizes_that_were_attributes():
    agree("Squeeze", normal(2, 1, 3, 1), opset=11, axes=[1, -1])
    agree("Squeeze", normal(2, 1, 3, 1), opset=11)
    agree("Squeeze", normal(2, 1, 3, 1), [3])
    agree("Unsqueeze", X, opset=11, axes=[0, -1])
    agree("Unsqueeze", X, [1, 3])
    agree("Split", X, opset=11, outputs=3, axis=3, split=[1, 3, 1])
    agree("Split", X, opset=11, outputs=2, axis=2)
    agree("Split", X, [2, 3], outputs=2, axis=-1)
    agree("Split", X, opset=18, outputs=3, axis=3, num_outputs=3)
    agree("Dropout", X, opset=11, ratio=0.3)
    agree("ArgMax", X, opset=11, axis=2)
    agree("CumSum", X, np.int64(2), exclusive=1, reverse=1)


@pytest.mark.parametrize("opset", [11, 12, 13])
def test_clip_has_either_bound_or_none(opset):
    agree("Clip", X, np.float32(-0.5), np.float32(0.5), opset=opset)
    agree("Clip", X, None, np.float32(0.5), opset=opset)
    agree("Clip", X, np.float32(0.5), opset=opset)
    agree("Clip", X, opset=opset)


def test_a_trained_bound_of_clip_gets_a_gradient():
    proto = node("Clip", X, np.float32(-0.5), np.float32(0.5), opset=17)
    high = torch.tensor(0.5, requires_grad=True)
    given = {"i0": torch.from_numpy(X), "i2": high}
    Lowered(from_proto(proto)).run(given, ["o0"])["o0"].sum().backward()
    assert high.grad == np.count_nonzero(X > 0.5)


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 3, 1, 1), (1,), (), (5,), (4, 5)])
def test_a_slope_for_every_channel_or_of_another_shape(shape):
    agree("PRelu", X, normal(*shape), opset=16)


def test_activations_with_other_parameters_than_usual():
    agree("HardSigmoid", X, alpha=1 / 6, beta=0.5)
    agree("HardSigmoid", X, alpha=0.3, beta=0.4)
    agree("Selu", X, alpha=1.5, gamma=1.2)
    agree("Elu", X, alpha=0.7)
    agree("Celu", X, alpha=0.7)
    agree("ThresholdedRelu", X, alpha=0.4)
    agree("Shrink", X, lambd=0.4, bias=0.2)
    agree("Gelu", X, opset=20, approximate="tanh")


def test_normalizations_of_other_shapes():
    agree("LayerNormalization", X, normal(4, 5), normal(4, 5), axis=2, outputs=3)
    agree("LayerNormalization", X, normal(5))
    agree("InstanceNormalization", X, normal(3), normal(3))
    agree("InstanceNormalization", normal(1, 3, 1, 1), normal(3), normal(3))
    agree("GroupNormalization", normal(2, 4, 3), normal(4), normal(4), opset=21, num_groups=2)
    agree("LRN", normal(1, 7, 2, 2), size=3, alpha=0.5)
    agree("LpNormalization", X, axis=1, p=1)
    agree("BatchNormalization", X, normal(3), normal(3), normal(3), np.abs(normal(3)))


def test_products_with_and_without_a_bias_of_any_shape():
    a, b = normal(3, 4), normal(4, 5)
    for c in (None, normal(5), normal(3, 1), normal(1), normal(3, 5)):
        agree("Gemm", a, b, c)
        agree("Gemm", a, b.T.copy(), c, transB=1, alpha=0.5, beta=2.0)
        agree("Gemm", a.T.copy(), b, c, transA=1)


@settings(max_examples=10 * 60)
@given(st.data())
def test_slices(data):
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    steps = [data.draw(st.sampled_from([1, 1, 2, 3, -1, -2])) for _ in axes]
    far = [-(2**63) if step < 0 else 2**63 - 1 for step in steps]
    starts = [data.draw(st.integers(-7, 7)) for _ in axes]
    ends = [data.draw(st.one_of(st.integers(-7, 7), st.just(end))) for end in far]
    axes = [a - data.draw(st.sampled_from([0, len(shape)])) for a in axes]
    agree("Slice", normal(*shape), *(np.array(v, np.int64) for v in (starts, ends, axes, steps)))


@settings(max_examples=10 * 60)
@given(st.data())
def test_paddings(data):
    shape = data.draw(st.lists(st.integers(2, 5), min_size=1, max_size=4))
    mode = data.draw(st.sampled_from(["constant", "reflect", "edge", "wrap"]))
    ends = [data.draw(st.integers(-1 if mode == "constant" else 0, n - 1)) for n in shape * 2]
    assume(all(n + a + b > 0 for n, a, b in zip(shape, ends, ends[len(shape) :], strict=False)))
    fill = [np.float32(2.5)] if mode == "constant" else []
    agree("Pad", normal(*shape), np.array(ends, np.int64), *fill, opset=19, mode=mode)


@st.composite
def windows(draw):
    """A window over an image: its attributes, and the size of the image."""
    n = draw(st.integers(1, 3))

    def each(*choices):
        return [draw(st.sampled_from(choices)) for _ in range(n)]

    kernel, dilations, strides = each(1, 2, 3), each(1, 1, 2), each(1, 2, 3)
    size = [(k - 1) * d + draw(st.integers(1, 5)) for k, d in zip(kernel, dilations, strict=True)]
    attrs = {"dilations": dilations, "strides": strides, "kernel_shape": kernel}
    close = max(dilations) == 1 and all(k >= s for k, s in zip(kernel, strides, strict=True))
    same = ["SAME_UPPER", "SAME_LOWER"] if close else []
    auto_pad = draw(st.sampled_from(["NOTSET"] * 3 + ["VALID", *same]))
    if auto_pad != "NOTSET":
        return size, attrs | {"auto_pad": auto_pad}
    before, after = ([draw(st.integers(0, k - 1)) for k in kernel] for _ in range(2))
    return size, attrs | {"pads": before + (before if draw(st.booleans()) else after)}


@settings(max_examples=10 * 80)
@given(windows(), st.sampled_from([1, 2]), st.booleans())
def test_convolutions(window, group, bias):
    size, attrs = window
    weight = normal(4, 2, *attrs["kernel_shape"])
    agree("Conv", normal(2, 2 * group, *size), weight, *([normal(4)] * bias), group=group, **attrs)


@settings(max_examples=10 * 80)
@given(windows(), st.sampled_from([1, 2]), st.booleans(), st.data())
def test_transposed_convolutions(window, group, bias, data):
    size, attrs = window
    x, weight = normal(2, 2 * group, *size), normal(2 * group, 3, *attrs["kernel_shape"])
    if "pads" in attrs:
        extra = [data.draw(st.integers(0, s - 1)) for s in attrs["strides"]]
        attrs = attrs | {"output_padding": extra}
    agree("ConvTranspose", x, weight, *([normal(3 * group)] * bias), group=group, **attrs)


@settings(max_examples=10 * 100)
@given(windows(), st.booleans())
def test_pools_of_maxima(window, ceil):
    size, attrs = window
    agree("MaxPool", normal(2, 2, *size), ceil_mode=int(ceil and "pads" in attrs), **attrs)


@settings(max_examples=10 * 100)
@given(windows(), st.booleans(), st.booleans())
def test_pools_of_means(window, ceil, include):
    size, attrs = window
    ceil_mode = int(ceil and "pads" in attrs)
    x = normal(2, 2, *size)
    agree("AveragePool", x, opset=19, ceil_mode=ceil_mode, count_include_pad=int(include), **attrs)


@settings(max_examples=10 * 40)
@given(windows(), st.sampled_from([1, 2, 3]))
def test_pools_of_norms(window, p):
    size, attrs = window
    agree("LpPool", normal(2, 2, *size), opset=18, p=p, **attrs)


def missing(opset, count):
    """Inputs of a Resize that say nothing: before opset 13 they had to be there, but empty."""
    return [np.zeros(0, np.float32) if opset < 13 else None] * count


TRANSFORMATIONS = ["align_corners", "asymmetric", "half_pixel", "pytorch_half_pixel"]


@settings(max_examples=10 * 150)
@given(
    st.sampled_from(TRANSFORMATIONS),
    st.sampled_from(["nearest", "linear", "cubic"]),
    st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]),
    st.lists(st.integers(1, 6), min_size=2, max_size=2),
    st.lists(st.integers(1, 12), min_size=2, max_size=2),
    st.sampled_from([11, 13, 18, 19]),
)
def test_resizing_to_sizes(transformation, mode, nearest, before, after, opset):
    x = normal(1, 2, *before)
    agree(
        "Resize", x, *missing(opset, 2), np.array([1, 2, *after], np.int64), opset=opset,
        mode=mode, nearest_mode=nearest, coordinate_transformation_mode=transformation,
    )  # fmt: skip


@settings(max_examples=10 * 80)
@given(
    st.sampled_from(["asymmetric", "half_pixel", "pytorch_half_pixel"]),
    st.sampled_from(["nearest", "linear", "cubic"]),
    st.lists(st.integers(1, 6), min_size=2, max_size=2),
    st.lists(st.sampled_from([0.5, 0.7, 1.0, 1.5, 2.0, 4.0]), min_size=2, max_size=2),
    st.sampled_from([11, 18]),
)
def test_resizing_by_scales(transformation, mode, before, scales, opset):
    assume(all(n * s >= 1 for n, s in zip(before, scales, strict=True)))
    agree(
        "Resize", normal(1, 2, *before), *missing(opset, 1),
        np.array([1, 1, *scales], np.float32), opset=opset, mode=mode,
        coordinate_transformation_mode=transformation,
    )  # fmt: skip


def test_what_an_evaluation_leaves_behind_may_meet_a_gradient():
    proto = node(
        "Resize", normal(1, 1, 3, 3), None, np.float32([1, 1, 1.5, 1.5]), opset=18, mode="linear"
    )
    module = Lowered(from_proto(proto))
    x = torch.ones(1, 1, 3, 3)
    with torch.inference_mode():
        module(x)
    (y,) = module(x.requires_grad_())
    y.sum().backward()
    assert x.grad.sum() == pytest.approx(16)


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_resizing_without_distortion(policy):
    sizes = np.array([7, 9], np.int64)
    agree(
        "Resize", normal(1, 2, 4, 4), None, None, sizes, opset=18, axes=[2, 3], mode="linear",
        keep_aspect_ratio_policy=policy,
    )  # fmt: skip


def test_resizing_a_part_of_an_image():
    roi = np.array([0, 0, -0.2, 0.1, 1, 1, 0.8, 1.3], np.float32)
    agree(
        "Resize", normal(1, 2, 4, 4), roi, None, np.array([1, 2, 5, 6], np.int64), opset=13,
        mode="linear", coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=9.0,
    )  # fmt: skip


@pytest.mark.parametrize("align", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_sampling_by_a_grid(mode, padding, align):
    grid = RNG.uniform(-1.3, 1.3, (2, 6, 7, 2)).astype(np.float32)
    agree("GridSample", X, grid, opset=16, mode=mode, padding_mode=padding, align_corners=align)


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("mode", ["half_pixel", "output_half_pixel"])
def test_regions_of_an_image(mode, ratio):
    rois = np.array([[0.2, 0.5, 3.3, 2.7], [-2, -2, 9, 9], [1, 1, 1.2, 1.1]], np.float32)
    agree(
        "RoiAlign", X, rois, np.array([0, 1, 1], np.int64), opset=16, output_height=2,
        output_width=3, sampling_ratio=ratio, coordinate_transformation_mode=mode,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_grids_per_tensor_and_per_axis(dtype):
    zero = np.array([3, 5, 7], dtype)
    scale = np.array([0.01, 0.02, 0.05], np.float32)
    agree("QuantizeLinear", X, scale[0], zero[0], opset=13)
    agree("QuantizeLinear", X, scale, zero, opset=13, axis=1)
    codes = RNG.integers(0, 100, X.shape).astype(dtype)
    agree("DequantizeLinear", codes, scale[0], zero[0], opset=13)
    agree("DequantizeLinear", codes, scale, zero, opset=13, axis=-3)
    sums = codes.astype(np.int32) * 10**6 + 1
    agree("DequantizeLinear", sums, scale, opset=13, axis=1)


def test_attention_of_heads_that_lie_one_after_the_other():
    q, k, v = (normal(2, n, 12) for n in (4, 5, 5))
    mask = RNG.random((4, 5)) < 0.7
    mask[:, 0] = True
    heads = {"q_num_heads": 4, "kv_num_heads": 2}
    agree("Attention", q, k[..., :6], v[..., :6], opset=23, **heads)
    agree("Attention", q, k[..., :6], v[..., :6], mask, opset=23, **heads)
    agree("Attention", q, k[..., :6], v[..., :6], opset=23, is_causal=1, scale=0.4, **heads)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (node("Relu", X, opset=17, alpha=1.0), "the attribute alpha of Relu"),
        (node("NoSuch", X, opset=17), "NoSuch is not implemented"),
        (node("Relu", X, opset=6), "opset 6 is not implemented"),
        (node("Relu", X, opset=17, domain="com.acme"), "a custom operator of com.acme"),
        (node("Cast", X, opset=19, to=17), "element type 17"),
        (node("Resize", X, None, np.ones(4, np.float32), opset=18, antialias=1), "antialias"),
        (node("Resize", X, np.ones(4, np.float32), opset=10), "Resize of opset 10"),
        (node("Squeeze", X, [1], opset=13), "Squeeze of axes"),
        (node("Conv", normal(1, 1, 2, 2, 2, 2), normal(1, 1, 1, 1, 1, 1), opset=17), "4 axes"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(model, reason):
    with pytest.raises(Refused, match=reason):
        lowered(model, {"i0": X if reason != "4 axes" else normal(1, 1, 2, 2, 2, 2)})


NET = """(float[1, 2, 5, 6] x) => (float[] y) {
    a = Conv <pads = [1, 0, 0, 1], strides = [1, 2]> (x, w, b)
    m = MaxPool <kernel_shape = [2, 2], pads = [0, 0, 1, 1], ceil_mode = 1> (a)
    y = Resize <mode = "linear", coordinate_transformation_mode = "asymmetric"> (m, , s)
}"""


def test_gradients_are_those_of_the_function():
    scales = np.array([1, 1, 2, 1.5], np.float32)
    module = Lowered(from_proto(build(NET, w=(3, 2, 2, 2), b=(3,), s=scales))).double()
    rng = torch.Generator().manual_seed(0)

    def compute(x, w, b):
        return module.run({"x": x, "w": w, "b": b}, ["y"])["y"]

    shapes = [(1, 2, 5, 6), (3, 2, 2, 2), (3,)]
    tensors = [torch.randn(s, generator=rng, dtype=torch.float64) for s in shapes]
    assert torch.autograd.gradcheck(compute, [t.requires_grad_() for t in tensors])


def test_given_values_stand_in_for_constants_and_for_what_would_compute_them():
    module = Lowered(
        from_proto(build("(float[2] x) => (float[2] y) { h = Add(x, c)  y = Mul(h, h) }", c=(2,)))
    )
    two = torch.full((2,), 2.0)
    assert module.run({"h": two}, ["y"])["y"].tolist() == [4, 4]
    assert module.run({"x": two, "c": two}, ["h", "y"])["y"].tolist() == [16, 16]
    assert [step.op for step, *_ in module._plan(frozenset(["h"]), ("y",)).steps] == ["Mul"]
    assert module.run({}, ["c"])["c"].shape == (2,)
