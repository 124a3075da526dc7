"""The written graph: its forms, and that onnxruntime means the same by it with all optimisations.

Where onnxruntime is known to misread a graph that is valid ONNX, a shape that could provoke it goes
through the whole conversion.
"""

import re
from collections import Counter

import numpy as np
import onnx
import pytest

from onnxq.errors import UnsupportedModel
from onnxq.evidence.inspect import inspect
from onnxq.graph.loading import load
from onnxq.graph.moves import MOVES
from onnxq.numerics import affine, groups, pairs, ranges
from onnxq.spec import weight_spec
from tests.graphs import build, feeds, quantize, run

pytestmark = pytest.mark.usefixtures("long_names")

IMAGE = "(float[1,3,9,9] x) => (float[] y)"
ROWS = "(float[4,16] x) => (float[] y)"
FIRST = "a = Conv<pads=[1,1,1,1]>(x, w1, b1)"
LAST = "y = Conv<pads=[1,1,1,1]>(h, w3, b3)"
CONVS = {"w1": (8, 3, 3, 3), "b1": (8,), "w3": (8, 8, 3, 3), "b3": (8,)}
FLOATS = {"Conv", "Gemm", "FusedConv", "FusedGemm", "MatMul", "FusedMatMul", "Add", "Mul", "Concat",
          "AveragePool", "GlobalAveragePool", "Relu", "Sigmoid", "LeakyRelu", "NhwcFusedConv",
          "ConvTranspose"}  # fmt: skip


def outlier(*shape, axis=0):
    """A weight whose first channel is 50 times the others: one scale for all of it would show."""
    values = 0.2 * np.random.default_rng(1).standard_normal(shape)
    np.moveaxis(values, axis, 0)[0] *= 50.0
    return values.astype(np.float32)


def initializers(proto):
    return {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}


def producers(proto):
    return {name: node for node in proto.graph.node for name in node.output}


def converted(folder, proto, **options):
    """Report and written model, once optimised and plain run were found to agree to one step."""
    report, file = quantize(proto, folder, **options)
    written = onnx.load(file)
    onnx.checker.check_model(written, full_check=True)
    values = feeds(proto, seed=9)
    fast, plain = run(written, values), run(written, values, optimize=False)
    bits = options.get("act_bits", 8)
    for name, x in plain.items():
        step = (max(x.max(), 0.0) - min(x.min(), 0.0)) / (2 ** (8 if bits == "float" else bits) - 1)
        # These values may not reach the ends of the grid, whose steps are a little longer then.
        assert np.abs(fast[name] - x).max() <= 1.5 * step, name
    return report, written


# -- forms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "act_bits", "expected"),
    [
        (8, 8, "Q DQ DQ Conv Q DQ"),
        (5, 8, "Q DQ DQ Conv Q DQ"),
        (3, 4, "Q Clip DQ DQ Conv Q DQ"),
        (4, 8, "Q DQ Cast DQ Conv Q DQ"),
        (8, 4, "Q Clip DQ DQ Conv Q DQ"),
        (4, 2, "Q Clip DQ Cast DQ Conv Q DQ"),
        (8, "float", "Cast Mul Conv Relu"),
        (3, "float", "Cast Mul Conv Relu"),
    ],
)
def test_a_layer_is_written_in_the_form_that_fuses(tmp_path, bits, act_bits, expected):
    proto = build(f"{IMAGE} {{ {FIRST} y = Relu(a) }}", w1=(8, 3, 3, 3), b1=(8,))
    narrow = {} if act_bits == "float" else {"first_last_bits": act_bits}
    _, written = converted(tmp_path, proto, bits=bits, act_bits=act_bits, **narrow)
    short = {"QuantizeLinear": "Q", "DequantizeLinear": "DQ"}
    nodes = [node for node in written.graph.node if not node.name.startswith(UNPACKING)]
    assert " ".join(short.get(node.op_type, node.op_type) for node in nodes) == expected


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("act_bits", [8, "float"])
def test_weights_in_the_file_are_those_of_the_numerics(tmp_path, bits, per_tensor, act_bits):
    proto = build(
        "(float[1,4,6,6] x) => (float[] y) { a = Conv<group=2>(x, w1) "
        'b = ConvTranspose<auto_pad="SAME_UPPER">(a, w2) '
        "c = Flatten(b) d = Gemm<transB=1>(c, w3) y = MatMul(d, w4) }",
        w1=(6, 2, 3, 3), w2=(6, 2, 3, 3), w3=(8, 32), w4=(8, 5),
    )  # fmt: skip
    _, written = converted(tmp_path, proto, bits=bits, act_bits=act_bits, per_tensor=per_tensor)
    taps = [f"w{i}_{kind}" for i in (1, 2, 3, 4) for kind in ("codes", "dequantized")]
    made = {name for node in written.graph.node for name in node.output}
    taps = [tap for tap in taps if tap in made]
    found = initializers(written) | run(written, feeds(proto), optimize=False, taps=taps)
    for (name, w), axis in zip(initializers(proto).items(), (0, 1, 0, 1), strict=True):
        spec = weight_spec(bits, not per_tensor, headroom=act_bits != "float")
        axis = None if per_tensor else axis
        params = affine.qparams(*ranges.weight_max(w, spec, axis), spec, axis)
        if spec.headroom and name != "w2":  # there is no integer kernel for a ConvTranspose
            inputs = {"w1": (0, 2, 3, 1), "w3": (0, 1), "w4": (1, 0)}[name]
            sums = pairs.sums(
                w.astype(np.float64).transpose(inputs).reshape(w.shape[axis or 0], -1)
            )
            params = pairs.spaced(params, sums.max() if per_tensor else sums)
        codes = affine.quantize(w, params)
        np.testing.assert_array_equal(found[f"{name}_codes"].astype(np.int8), codes)
        expected = affine.dequantize(codes, params)
        if name == "w1" and act_bits == 8:  # an integer kernel computes its groups together
            expected = groups.merge(expected, 2, 2)
        np.testing.assert_array_equal(found[f"{name}_dequantized"], expected)
        assert codes.min() >= -(2 ** (bits - 1)) + 1
        assert codes.max() <= 2 ** (bits - 1) - 1


@pytest.mark.parametrize("act_bits", range(2, 8))
def test_narrow_activations_never_leave_their_levels(tmp_path, act_bits):
    proto = build(f"{IMAGE} {{ {FIRST} h = LeakyRelu<alpha=0.5>(a) {LAST} }}", **CONVS)
    _, written = converted(tmp_path, proto, act_bits=act_bits, first_last_bits=act_bits)
    clipped = [n.output[0] for n in written.graph.node if n.op_type == "Clip"]
    assert len(clipped) == 2  # what the two layers read
    beyond = {"x": 100 * feeds(proto)["x"]}
    for name, codes in run(written, beyond, optimize=False, taps=clipped).items():
        if name in clipped:
            assert codes.dtype == np.uint8
            assert codes.max() <= 2**act_bits - 1


def test_a_bias_lies_on_the_product_of_both_scales_exactly(tmp_path):
    proto = build(
        "(float[1,3,9,9] x) => (float[] y) { a = Conv(x, w1, b1) f = Flatten(a) "
        "g = Gemm(f, w2, b2) c = MatMul(g, w3) y = Add(c, b3) }",
        w1=(8, 3, 3, 3), b1=(8,), w2=(392, 8), b2=(1, 8), w3=(8, 5), b3=(5,),
    )  # fmt: skip
    _, written = converted(tmp_path, proto, target_ort="1.20")
    stored, made_by = initializers(written), producers(written)
    layers = [n for n in written.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    assert len(layers) == 3
    for node, b in zip(layers, ("b1", "b2", "b3"), strict=True):
        x, w = (stored[made_by[name].input[1]] for name in node.input[:2])
        np.testing.assert_array_equal(stored[f"{b}_scale"], x * w)
        assert stored[f"{b}_codes"].dtype == np.int32
        reader = next(n for n in written.graph.node if f"{b}_codes" in n.input)
        assert (reader.op_type, len(reader.input)) == ("DequantizeLinear", 2)


def test_the_bias_of_a_conv_is_stored_as_the_float_of_its_codes(tmp_path):
    """onnxruntime rounds it, from 1.23 on: nothing else may come of it than of codes."""
    proto = build(f"{IMAGE} {{ {FIRST} h = Relu(a) {LAST} }}", **CONVS)
    _, whole = converted(tmp_path, proto, target_ort="1.20")
    report, half = converted(tmp_path, proto)
    codes, floats = initializers(whole), initializers(half)
    for b, name in (("b1", "Conv_a_bias"), ("b3", "Conv_y_bias")):
        assert floats[name].dtype == np.float32
        restored = codes[f"{b}_codes"].astype(np.float64) * codes[f"{b}_scale"]
        np.testing.assert_array_equal(floats[name], restored.astype(np.float32))
        assert f"{b}_codes" not in floats
    x = feeds(proto, seed=9)
    np.testing.assert_array_equal(run(whole, x)["y"], run(half, x)["y"])
    assert set(report.kernels.integer.values()) == {"QLinearConv"}


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_names_that_only_the_file_has_are_short(tmp_path, monkeypatch, bits):
    proto = build(f"{IMAGE} {{ {FIRST} {LAST.replace('h', 'a')} }}", **CONVS)
    _, long = converted(tmp_path, proto, bits=bits)
    monkeypatch.undo()
    report, short = converted(tmp_path, proto, bits=bits)
    known = {"x", "a", "y", "Conv_a", "Conv_y"}
    names = {name for n in short.graph.node for name in (n.name, *n.input, *n.output)}
    assert known <= names
    assert all(len(name) <= 4 for name in names - known)
    assert len(short.SerializeToString()) < len(long.SerializeToString())
    assert [n.op_type for n in short.graph.node] == [n.op_type for n in long.graph.node]
    assert {layer.name for layer in report.layers} == {"Conv_a", "Conv_y"}
    x = feeds(proto, seed=9)
    np.testing.assert_array_equal(run(short, x)["y"], run(long, x)["y"])


@pytest.mark.parametrize(
    ("opset", "bits", "expected"), [(13, 8, 13), (17, 5, 17), (17, 4, 21), (21, 3, 21), (22, 8, 22)]
)
def test_versions_are_those_of_the_source_or_what_4_bits_need(tmp_path, opset, bits, expected):
    proto = build(f"{IMAGE} {{ {FIRST} h = Relu(a) {LAST} }}", opset=opset, ir=8, **CONVS)
    _, written = converted(tmp_path, proto, bits=bits)
    assert [(o.domain, o.version) for o in written.opset_import] == [("", expected)]
    assert written.ir_version == (10 if expected >= 21 else 8)


# Names of the nodes that unpack weights.
UNPACKING = ("u_", "w_", "packed", "w1_codes_Reshape")


# -- what onnxruntime misreads ---------------------------------------------------------------------

KEPT = {
    "conv": ("h = Conv<pads=[1,1,1,1]>(a, w2)", {"w2": outlier(8, 8, 3, 3)}),
    "conv with bias and relu": (
        "k = Conv<pads=[1,1,1,1]>(a, w2, b2) h = Relu(k)",
        {"w2": outlier(8, 8, 3, 3), "b2": (8,)},
    ),
    "conv behind a move": (
        "k = Transpose<perm=[0,1,3,2]>(a) h = Conv(k, w2, b2)",
        {"w2": outlier(8, 8, 3, 3), "b2": (8,)},
    ),
    "conv before a move": (
        "k = Conv(a, w2, b2) h = Transpose<perm=[0,1,3,2]>(k)",
        {"w2": outlier(8, 8, 3, 3), "b2": (8,)},
    ),
    "conv with a scalar for a channel": (
        "k = Conv(a, w2, b2) h = Concat<axis=1>(k, k, k, k, k, k, k, k)",
        {"w2": outlier(1, 8, 3, 3), "b2": (1,)},
    ),
    "conv transpose": ("h = ConvTranspose(a, w2)", {"w2": outlier(8, 8, 3, 3, axis=1)}),
    "conv transpose with bias": (
        "h = ConvTranspose<group=2,strides=[2,2]>(a, w2, b2)",
        {"w2": outlier(8, 4, 3, 3, axis=1), "b2": (8,)},
    ),
}


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("moves", ["", "Transpose_*"])
def test_float_weights_between_integers_are_not_requantized(tmp_path, name, bits, moves):
    nodes, weights = KEPT[name]
    proto = build(f"{IMAGE} {{ {FIRST} {nodes} {LAST} }}", **CONVS, **weights)
    kept = [n.name or f"{n.op_type}_{n.output[0]}" for n in proto.graph.node if "w2" in n.input]
    if moves and "move" in name:
        kept.append(moves)
    report, written = converted(tmp_path, proto, bits=bits, keep_float=tuple(kept))
    assert report.kernels.floating == kept[:1]
    assert report.why_float[kept[0]].startswith("kept by --keep-float")
    assert sorted(report.kernels.integer.values()) == ["QLinearConv"] * 2
    exact = run(proto, feeds(proto), taps=["w2"])["w2"]
    assert any(np.array_equal(exact, x) for x in initializers(written).values())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    "nodes",
    [
        "h = ConvTranspose<{}>(a, w2)",
        "h = ConvTranspose<{}>(a, w2, b2)",
        "k = ConvTranspose<{}>(a, w2, b2) h = Relu(k)",
        "k = ConvTranspose<{}>(a, w2) l = Transpose<perm=[0,1,3,2]>(k) "
        "h = ConvTranspose<{}>(l, w2)",
    ],
)
def test_a_quantized_conv_transpose_between_integers_keeps_its_own_scales(tmp_path, bits, nodes):
    weights = {"w2": outlier(8, 8, 3, 3, axis=1), "b2": (8,)}
    # Padded so that it cannot become a Conv.
    nodes = nodes.replace("{}", 'auto_pad="SAME_UPPER"')
    proto = build(f"{IMAGE} {{ {FIRST} {nodes} {LAST} }}", **CONVS, **weights)
    report, written = converted(tmp_path, proto, bits=bits)
    assert report.kernels.operators["ConvTranspose"] == nodes.count("ConvTranspose")
    (codes,) = (x for name, x in initializers(written).items() if re.match("w2.*_codes", name))
    assert codes.dtype == (np.int8 if bits == 8 else onnx.helper.tensor_dtype_to_np_dtype(22))


@pytest.mark.parametrize(
    "layer",
    [
        "h = Gemm(a, w2)",
        "h = Gemm(a, w2, b)",
        "h = Gemm(a, w2, row)",
        "h = Gemm(a, w2, one)",
        "h = Gemm(a, w2, column)",
        "h = MatMul(a, w2)",
        "k = MatMul(a, w2) h = Add(k, b)",
        "k = MatMul(a, w2) h = Add(row, k)",
        "k = MatMul(a, w2) h = Add(k, column)",
    ],
)
def test_float_weights_of_a_dense_layer_between_integers_are_not_requantized(tmp_path, layer):
    proto = build(
        "(float[4,16] x) => (float[] y, float[] z) "
        f"{{ a = Gemm(x, w1, b) z = Gemm(a, w3, b) {layer} y = Gemm(h, w3, b) }}",
        w1=(16, 8), w2=outlier(8, 8, axis=1), w3=(8, 8), b=(8,), row=(1, 8), one=(1,),
        column=(4, 1),
    )  # fmt: skip
    kept = layer.split()[2].split("(")[0] + "_" + layer[0]
    report, _ = converted(tmp_path, proto, keep_float=(kept,))
    assert report.kernels.floating == [kept]
    assert len(report.kernels.integer) == 3


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("act_bits", [8, 4])
def test_scales_dtypes_and_chains_are_those_that_onnxruntime_reads(tmp_path, bits, act_bits):
    proto = build(
        "(float[1,3,8,8] x) => (float[] y) { a = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(a) "
        "l, u = Split<axis=1>(r) c = Concat<axis=1>(u, l) s = Slice(c, from, to) "
        "m = MaxPool<kernel_shape=[2,2]>(s) k = Conv(m, w2) f = Flatten(k) y = Gemm(f, w3) }",
        w1=outlier(8, 3, 3, 3), b1=(8,), w2=(4, 8, 1, 1), w3=(196, 5),
        **{"from": np.array([0, 0, 0, 0])}, to=np.array([1, 8, 8, 8]),
    )  # fmt: skip
    kept = ("Slice_*", "Split_*")
    _, written = converted(tmp_path, proto, bits=bits, act_bits=act_bits, keep_float=kept)
    stored, made_by = initializers(written), producers(written)
    for node in written.graph.node:
        if node.op_type == "QuantizeLinear":
            assert stored[node.input[1]].shape == ()
            assert stored[node.input[2]].dtype == np.uint8
            assert node.input[0] not in made_by or (
                made_by[node.input[0]].op_type != "DequantizeLinear"
            )
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            assert stored[node.input[0]].dtype in (np.int8, np.int32)
    kinds = {t.data_type for t in written.graph.initializer}
    assert not kinds & {onnx.TensorProto.UINT4, onnx.TensorProto.UINT2, onnx.TensorProto.INT2}


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", ["", ", b", ", row"])
@pytest.mark.parametrize(
    "rest",
    [
        "y = Identity(a)",
        "y = Relu(a)",
        "r = Relu(a) y = Softmax(r)",
        "r = Clip(a, zero) y = Tanh(r)",
        "y = Softmax(a)",
        "y = Transpose(a)",
        "y = Sum(a, b)",
        "r = Relu(a) y = Gemm(r, w2)",
        "t = Transpose(a) y = MatMul(t, w3)",
        "s = Sigmoid(a) p = Mul(a, s) y = Gemm(p, w2)",
    ],
)
def test_a_gemm_runs_on_integers_whatever_follows(tmp_path, transposed, bias, rest):
    proto = build(
        f"{ROWS} {{ a = Gemm<transB={transposed}>(x, w1{bias}) {rest} }}",
        w1=(8, 16) if transposed else (16, 8), b=(8,), row=(1, 8), w2=(8, 5), w3=(4, 5),
        zero=np.float32(0),
    )  # fmt: skip
    report, _ = converted(tmp_path, proto)
    assert report.kernels.floating == []
    assert report.kernels.integer["Gemm_a"] == "QGemm"


@pytest.mark.parametrize("shape", ["4,16", "2,4,16"])
@pytest.mark.parametrize("bias", ["b", "row", "cube", "column", "one", "dynamic"])
@pytest.mark.parametrize(
    "rest",
    [
        "y = Identity(a)",
        "r = Relu(a) y = Softmax(r)",
        "y = Softmax(a)",
        "r = Relu(a) y = MatMul(r, w2)",
        "y = MatMul(a, w2) z = Relu(a)",
    ],
)
def test_a_matmul_and_its_bias_run_on_integers_whatever_follows(tmp_path, shape, bias, rest):
    outputs = "(float[] y, float[] z)" if "z =" in rest else "(float[] y)"
    proto = build(
        f"(float[{shape}] x) => {outputs} "
        f"{{ n = Neg(x) dynamic = MatMul(n, w3) p = MatMul(x, w1) a = Add({bias}, p) {rest} }}",
        w1=(16, 8), w2=(8, 5), w3=(16, 8), b=(8,), row=(1, 8), cube=(1, 1, 8), column=(4, 1),
        one=(1,),
    )  # fmt: skip
    report, _ = converted(tmp_path, proto)
    assert report.kernels.floating == []


# -- what stands between layers --------------------------------------------------------------------

TURN = "Transpose<perm=[0,1,3,2]>"
POOL = "MaxPool<kernel_shape=[3,3],pads=[1,1,1,1]>"
BETWEEN = {
    "residual add": ("k = Conv<pads=[1,1,1,1]>(a, w2) h = Add(k, a)", "QLinearAdd"),
    "add of itself": ("h = Add(a, a)", "QLinearAdd"),
    "add of a number to a layer": ("h = Add(a, half)", ""),
    "add of a number": (f"k = {POOL}(a) l = Add(k, half) h = {TURN}(l)", "QLinearAdd"),
    "product with a negative number of rank 4": (
        f"k = {POOL}(a) l = Mul(minus, k) h = {TURN}(l)", "QLinearMul"),
    "product with zero": (f"k = {POOL}(a) l = Mul(k, zero) h = {TURN}(l)", "QLinearMul"),
    "concat of different ranges": ("k = Mul(a, half) h = Concat<axis=0>(k, a)", "QLinearConcat"),
    "product with a positive number": (f"k = {POOL}(a) l = Mul(half, k) h = {TURN}(l)", ""),
    "quotient by a positive number": (f"k = {POOL}(a) l = Div(k, half) h = {TURN}(l)", ""),
    "product with a number that has axes": (f"k = {POOL}(a) l = Mul(k, row) h = {TURN}(l)", ""),
    "hard swish": ("h = HardSwish(a)", "QLinearMul"),
    "hard sigmoid": ("h = HardSigmoid<alpha=0.4>(a)", ""),
    "hard swish of an older opset": (
        "t = Add(a, three) s = Clip(t, zero, six) p = Mul(a, s) h = Div(p, six)",
        "QLinearMul"),
    "transposed convolution": ("k = ConvTranspose<strides=[2,2],pads=[1,0,0,1]>(a, w2, b1) "
                               "h = Relu(k)", ""),
    "concat on the last axis": ("h = Concat<axis=-1>(a, a)", "QLinearConcat"),
    "swish": ("s = Sigmoid(a) h = Mul(a, s)", "QLinearSigmoid QLinearMul"),
    "squeeze and excite": (
        "g = GlobalAveragePool(a) e = Conv(g, w4) r = Relu(e) f = Conv(r, w4) s = Sigmoid(f) "
        "h = Mul(a, s)", "QLinearGlobalAveragePool QLinearSigmoid QLinearMul"),
    "leaky relu": ("h = LeakyRelu<alpha=0.3>(a)", "QLinearLeakyRelu"),
    "prelu": ("h = PRelu(a, slopes)", "QLinearConv QLinearAdd"),
    "prelu with one slope": ("h = PRelu(a, half)", "QLinearLeakyRelu"),
    "average pool": ("h = AveragePool<kernel_shape=[3,3],pads=[1,1,1,1]>(a)", "QLinearAveragePool"),
    "average pool that counts its padding": (
        "h = AveragePool<kernel_shape=[3,3],pads=[1,1,1,1],count_include_pad=1>(a)",
        "QLinearConv"),
    "average pool without padding": (
        'k = AveragePool<kernel_shape=[1,3],strides=[1,2],auto_pad="VALID">(a) '
        "h = Concat<axis=3>(k, a)",
        "QLinearConv QLinearConcat"),
    "average pool that rounds up": (
        "h = AveragePool<kernel_shape=[2,2],strides=[2,2],ceil_mode=1>(a)", "QLinearAveragePool"),
    "max pool": ("h = MaxPool<kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,1]>(a)", ""),
    "max pool that rounds up": ("h = MaxPool<kernel_shape=[2,2],strides=[2,2],ceil_mode=1>(a)", ""),
    "nearest resize": ('h = Resize<mode="nearest">(a, , twice)', ""),
    "pad": ("h = Pad(a, pads)", ""),
    "pad by reflection": ('h = Pad<mode="reflect">(a, pads)', ""),
    "slice": ("h = Slice(a, one, eight, two)", ""),
    "split": ("k, l = Split<axis=2>(a, parts) h = Transpose<perm=[0,1,3,2]>(k)", ""),
    "transpose": ("h = Transpose<perm=[0,1,3,2]>(a)", ""),
    "reshape": ("h = Reshape(a, shape)", ""),
    "relu that others pass by": ("r = Relu(a) h = Add(a, r)", "QLinearAdd"),
    "clip that others pass by": ("r = Clip(a, low, high) h = Add(a, r)", "QLinearAdd"),
    "flatten and back": ("k = Flatten(a) h = Reshape(k, shape)", ""),
    "shuffle": (
        "k = Reshape(a, five) l = Transpose<perm=[0,2,1,3,4]>(k) h = Reshape(l, shape)", ""),
    "a shape read on the way": ("n = Shape(a) h = Reshape(a, n)", ""),
}  # fmt: skip


@pytest.mark.parametrize("act_bits", [8, 5])
@pytest.mark.parametrize("name", BETWEEN)
def test_between_layers_nothing_computes_in_floats(tmp_path, name, act_bits):
    nodes, expected = BETWEEN[name]
    proto = build(
        f"{IMAGE} {{ {FIRST} {nodes} {LAST} }}", **CONVS, w2=(8, 8, 3, 3), w4=(8, 8, 1, 1),
        half=np.float32(0.5), minus=np.full((1, 1, 1, 1), -3.0, np.float32), zero=np.float32(0),
        twice=np.array([1, 1, 2, 2], np.float32), pads=np.array([0, 0, 1, 2, 0, 0, 0, 1]),
        one=np.array([1]), eight=np.array([8]), two=np.array([2]), parts=np.array([4, 5]),
        shape=np.array([1, 8, 9, 9]), five=np.array([1, 2, 4, 9, 9]),
        low=np.float32(-0.5), high=np.float32(0.25), three=np.float32(3), six=np.float32(6),
        row=np.array([2], np.float32),
        slopes=np.linspace(-0.25, 0.75, 8, dtype=np.float32).reshape(8, 1, 1),
    )  # fmt: skip
    report, _ = converted(tmp_path, proto, act_bits=act_bits)
    kernels = report.kernels.operators
    assert Counter({k: n for k, n in kernels.items() if k.startswith("QLinear")}) == Counter(
        ["QLinearConv"] * (2 + nodes.count("Conv")) + expected.split()
    )
    assert not kernels.keys() & FLOATS
    assert kernels["QuantizeLinear"] == 1
    assert report.layers[-1].accumulated > (30 if act_bits == 8 else 10)


def test_a_conv_averages_as_the_pool_whose_place_it_takes(tmp_path):
    nodes = (
        "h = AveragePool<kernel_shape=[2,3],strides=[2,1],pads=[1,0,0,1],count_include_pad=1>(a)"
    )
    proto = build(f"{IMAGE} {{ {FIRST} {nodes} {LAST} }}", **CONVS)
    report, written = converted(tmp_path, proto, bits=3)
    assert report.kernels.total == 2  # it holds no weights of its own
    pools = [node for node in written.graph.node if node.name == "AveragePool_h"]
    assert [node.op_type for node in pools] == ["Conv"]
    data, weight = pools[0].input
    found = run(
        written, feeds(proto, seed=9), optimize=False, taps=[data, weight, *pools[0].output]
    )
    np.testing.assert_allclose(found[weight], np.full((8, 1, 2, 3), 1 / 6), rtol=1e-6)
    padded = np.pad(found[data], [(0, 0), (0, 0), (1, 0), (0, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2, 3), axis=(2, 3))[:, :, ::2]
    averages = windows.mean(axis=(4, 5))
    np.testing.assert_allclose(found[pools[0].output[0]], averages, atol=1e-6 * averages.max())


def test_an_average_of_very_many_values_does_not_overflow(tmp_path):
    proto = build(
        "(float[1,1,420,420] x) => (float[] y) { a = Conv(x, w1, b1) r = Relu(a) "
        "h = AveragePool<kernel_shape=[418,418]>(r) y = Conv(h, w3) }",
        w1=(2, 1, 1, 1), b1=np.full(2, 100.0, np.float32), w3=(3, 2, 1, 1),
    )  # fmt: skip
    report, _ = converted(tmp_path, proto)
    assert report.kernels.operators["QLinearAveragePool"] == 1


def test_a_wrong_number_of_channels_that_a_model_declares_makes_no_other_pool(tmp_path):
    nodes = f"r = Relu(a) h = AveragePool<kernel_shape=[2,2]>(r) {LAST}"
    proto = build(f"{IMAGE} {{ {FIRST} {nodes} }}", **CONVS)
    wrong = onnx.helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, [1, 16, 9, 9])
    proto.graph.value_info.append(wrong)
    report, _ = converted(tmp_path, proto)
    assert report.kernels.operators["QLinearConv"] == 3


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e4])
def test_biases_of_any_size_that_convs_share_are_those_of_their_codes(tmp_path, per_tensor, size):
    b = (size * np.random.default_rng(0).standard_normal(8)).astype(np.float32)
    w = outlier(8, 4, 3, 3)
    w[2] = 0.0
    proto = build(
        f"{IMAGE} {{ {FIRST} k = Conv<group=2>(a, w, b) l = Conv<group=2>(k, w, b) {LAST[:-11]}(l, "
        "w3, b3) }",
        **CONVS, w=w, b=b,
    )  # fmt: skip
    report, half = converted(tmp_path, proto, per_tensor=per_tensor)
    _, whole = converted(tmp_path, proto, per_tensor=per_tensor, target_ort="1.20")
    assert set(report.kernels.integer.values()) == {"QLinearConv"}
    x = feeds(proto, seed=9)
    np.testing.assert_array_equal(run(whole, x)["y"], run(half, x)["y"])


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_layers_and_pools_of_any_number_of_axes_run_on_integers(tmp_path, axes):
    size, kernel, twos = ([n] * axes for n in (6, 3, 2))
    proto = build(
        f"(float[2,3,{','.join(map(str, size))}] x) => (float[] y) "
        f"{{ a = Conv<pads={[1] * 2 * axes}>(x, w1) b = MaxPool<kernel_shape={twos}>(a) "
        f"c = AveragePool<kernel_shape={twos}>(b) d = Conv<auto_pad=\"SAME_UPPER\">(c, w2) "
        "e = GlobalAveragePool(d) f = Flatten(e) y = Gemm(f, w3) }",
        w1=(4, 3, *kernel), w2=(4, 4, *kernel), w3=(4, 5),
    )  # fmt: skip
    report, _ = converted(tmp_path, proto)
    assert sorted(report.kernels.integer.values()) == ["QGemm", "QLinearConv", "QLinearConv"]
    assert not report.kernels.operators.keys() & FLOATS


# -- activations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("act_bits", [8, 4])
@pytest.mark.parametrize(
    ("nodes", "low", "high"),
    [
        ("h = Relu(a)", 0.0, np.inf),
        ("h = Clip(a, zero, six)", 0.0, 6.0),
        ("h = Clip(a, half, six)", 0.5, 6.0),
        ("h = Clip(a, minus, half)", -1.0, 0.5),
        ("h = Clip(a, , minus)", -np.inf, -1.0),
        ("r = Relu(a) h = Clip(r, minus, half)", 0.0, 0.5),
        ("r = Clip(a, minus, six) h = Relu(r)", 0.0, 6.0),
    ],
)
def test_an_activation_is_absorbed_and_its_bounds_hold_beyond_the_calibration(
    tmp_path, nodes, low, high, act_bits
):
    proto = build(
        f"{IMAGE} {{ {FIRST} {nodes} {LAST} }}",
        **CONVS, zero=np.float32(0), six=np.float32(6), half=np.float32(0.5),
        minus=np.float32(-1),
    )  # fmt: skip
    report, written = converted(tmp_path, proto, act_bits=act_bits)
    assert not report.kernels.operators.keys() & {"Relu", "FusedConv", "NhwcFusedConv"}
    clips = [n for n in written.graph.node if n.op_type in ("Clip", "Relu")]
    assert all(n.input[0].endswith("_codes") for n in clips)
    grid = next(n for n in written.graph.node if n.output[0] == "h")
    scale = initializers(written)[grid.input[1]]
    beyond = {"x": 100 * feeds(proto)["x"]}
    h = run(written, beyond, optimize=False, taps=["h"])["h"]
    assert low - scale / 2 <= h.min()
    assert h.max() <= high + scale / 2


CEILINGS = np.linspace(0.25, 2.0, 8, dtype=np.float32).reshape(1, 8, 1, 1)


@pytest.mark.parametrize("act_bits", [8, 4])
@pytest.mark.parametrize(
    ("nodes", "low"),
    [
        ("r = Relu(a) h = Min(r, c)", 0.0),
        ("r = Relu(a) h = Min(c, r)", 0.0),
        ("h = Min(a, c)", None),
        ("r = Min(a, c) h = Relu(r)", 0.0),
        ("r = Relu(a) p = MaxPool<kernel_shape=[1,1]>(r) h = Min(p, c)", 0.0),
        ("r = Clip(a, half) h = Min(r, c)", None),
    ],
)
def test_ceilings_of_channels_cut_the_codes_off(tmp_path, nodes, low, act_bits):
    proto = build(
        f"{IMAGE} {{ {FIRST} {nodes} {LAST} }}", **CONVS, c=CEILINGS, half=np.float32(0.5)
    )
    report, written = converted(tmp_path, proto, act_bits=act_bits)
    assert report.kernels.floating == []
    assert not report.kernels.operators.keys() & {"Relu", "FusedConv", "NhwcFusedConv"}
    assert report.kernels.operators["Min"] == 1
    (least,) = (n for n in written.graph.node if n.op_type == "Min")
    stored = initializers(written)[least.input[1]]
    grid = next(n for n in written.graph.node if n.output[0] == "h")
    scale, zero = (initializers(written)[name] for name in grid.input[1:3])
    assert (stored.dtype, stored.shape) == (np.uint8, (1, 8, 1, 1))
    beyond = {"x": 100 * feeds(proto)["x"]}
    h = run(written, beyond, optimize=False, taps=["h"])["h"]
    expected = run(proto, beyond, taps=["h"])["h"]
    lowest = -scale * zero.astype(np.float32)
    assert np.all(h <= CEILINGS + scale / 2)
    # The last layer's rounding aside, what lies within the grid is as the float model has it.
    np.testing.assert_allclose(
        h.max(axis=(0, 2, 3)), expected.clip(lowest).max(axis=(0, 2, 3)), atol=scale / 2 + 1e-6
    )
    if low is not None:
        assert h.min() == low


def test_an_activation_that_is_dead_on_the_calibration_still_clips(tmp_path):
    proto = build(
        f"{IMAGE} {{ {FIRST} h = Clip(a, zero, one) {LAST} }}",
        **CONVS | {"b1": np.full(8, -100, np.float32)}, zero=np.float32(0), one=np.float32(1),
    )  # fmt: skip
    _, written = converted(tmp_path, proto)
    h = run(written, {"x": 1000 * feeds(proto)["x"]}, optimize=False, taps=["h"])["h"]
    assert h.max() <= 1.0


# -- a move on codes is the same move --------------------------------------------------------------

MOVE_CASES = {
    "DepthToSpace": ["DepthToSpace<blocksize=2>(x)", 'DepthToSpace<blocksize=2,mode="CRD">(x)'],
    "Expand": ["Expand(x, five)"],
    "Flatten": ["Flatten(x)", "Flatten<axis=2>(x)"],
    "Gather": ["Gather<axis=1>(x, picks)", "Gather<axis=-1>(x, one)"],
    "MaxPool": [
        "MaxPool<kernel_shape=[2,2]>(x)",
        "MaxPool<kernel_shape=[3,3],pads=[1,1,1,1],strides=[2,2],ceil_mode=1>(x)",
        'MaxPool<kernel_shape=[2,2],dilations=[2,2],auto_pad="VALID">(x)',
    ],
    "Pad": ["Pad(x, pads, code)", 'Pad<mode="edge">(x, pads)', 'Pad<mode="reflect">(x, pads)',
            'Pad<mode="wrap">(x, pads)'],
    "Reshape": ["Reshape(x, shape)"],
    "Resize": [
        'Resize<mode="nearest">(x, , scales)',
        'Resize<coordinate_transformation_mode="asymmetric",nearest_mode="floor">(x, , scales)',
        'Resize<coordinate_transformation_mode="align_corners">(x, , , sizes)',
    ],
    "Slice": ["Slice(x, one, four, two)", "Slice(x, back, one, two, back)"],
    "Split": ["Split<axis=1>(x, halves)"],
    "Squeeze": ["Squeeze(x, zeroth)", "Squeeze(x)"],
    "Tile": ["Tile(x, wide)"],
    "Transpose": ["Transpose(x)", "Transpose<perm=[0,2,3,1]>(x)"],
    "Unsqueeze": ["Unsqueeze(x, two)"],
}  # fmt: skip


def test_every_move_is_held_to_it():
    # These three become a Clip or a Min of the codes.
    assert MOVE_CASES.keys() | {"Clip", "Min", "Relu"} == MOVES


@pytest.mark.parametrize("opset", [13, 18, 21])
@pytest.mark.parametrize("case", [case for cases in MOVE_CASES.values() for case in cases])
def test_a_move_on_codes_equals_the_float_one(case, opset):
    opset = max(opset, 19) if "wrap" in case else opset
    results = "y, z" if case.startswith("Split") else "y"
    constants = {
        "wide": np.array([2, 1, 1, 3]), "five": np.array([2, 3, 1, 1, 1]),
        "picks": np.array([[3, 0]]), "one": np.array([1]),
        "two": np.array([2]), "four": np.array([4]), "back": np.array([-1]),
        "zeroth": np.array([0]), "halves": np.array([1, 3]), "shape": np.array([0, -1]),
        "pads": np.array([0, 0, 1, 2, 0, 0, 0, 1]), "sizes": np.array([1, 4, 7, 3]),
        "scales": np.array([1, 1, 2, 1.5], np.float32), "code": np.array(7, np.uint8),
        "scale": np.float32(0.1), "zero": np.uint8(7), "nought": np.float32(0),
    }  # fmt: skip
    codes = build(
        f"(uint8[1,4,6,6] q) => (float[] y) {{ {results.replace('y', 'c')} = {case} "
        "y = DequantizeLinear(c, scale, zero) }".replace("(x", "(q"),
        opset=opset, **constants,
    )  # fmt: skip
    floats = build(
        "(uint8[1,4,6,6] q) => (float[] y) { x = DequantizeLinear(q, scale, zero) "
        f"{results} = {case.replace('code', 'nought')} }}",
        opset=opset, **constants,
    )  # fmt: skip
    values = {"q": np.random.default_rng(0).integers(0, 256, (1, 4, 6, 6), np.uint8)}
    np.testing.assert_array_equal(run(codes, values)["y"], run(floats, values)["y"])


# -- numbers that do not fit -----------------------------------------------------------------------


def test_the_bias_of_a_nearly_dead_channel_does_not_overflow(tmp_path):
    w = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    w[1], w[2] = 1e-12 * w[1], 0.0
    b = np.array([0.5, -3.0, 2.0, 0.0], np.float32)
    proto = build(f"{IMAGE} {{ y = Conv(x, w, b) }}", w=w, b=b)
    report, written = converted(tmp_path, proto, target_ort="1.20")
    stored = initializers(written)
    restored = stored["b_codes"] * stored["b_scale"].astype(np.float64)
    np.testing.assert_allclose(restored, b, rtol=1e-3)
    assert np.abs(stored["b_codes"].astype(np.int64)).max() <= 2**30
    y = run(written, feeds(proto))["y"]
    np.testing.assert_allclose(y[0, 1:3].mean(axis=(1, 2)), b[1:3], atol=0.1)
    assert any(layer.accumulated > 30 for layer in report.layers)


@pytest.mark.parametrize("bits", [8, 2])
def test_channels_and_layers_of_zeros_stay_zero(tmp_path, bits):
    w1 = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
    w1[3] = 0.0
    proto = build(
        f"{IMAGE} {{ a = Conv(x, w1) r = Relu(a) k = Conv(r, w2) y = Conv(k, w3) }}",
        w1=w1, w2=np.zeros((4, 8, 1, 1), np.float32), w3=(4, 4, 1, 1),
    )  # fmt: skip
    _, written = converted(tmp_path, proto, bits=bits)
    assert not run(written, feeds(proto))["y"].any()
    scales = [x for name, x in initializers(written).items() if name.endswith("_scale")]
    assert all((np.isfinite(s) & (s >= np.finfo(np.float32).tiny)).all() for s in scales)


@pytest.mark.parametrize("name", ["w1", "b1"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_damaged_weight_is_refused_by_name(tmp_path, name, value):
    damaged = {"w1": np.ones((8, 3, 3, 3), np.float32), "b1": np.ones(8, np.float32)}
    damaged[name].flat[0] = value
    proto = build(f"{IMAGE} {{ {FIRST} h = Relu(a) {LAST} }}", **CONVS | damaged)
    with pytest.raises(UnsupportedModel, match=r"of Conv_a has 1 NaN or infinite values"):
        quantize(proto, tmp_path)


def test_tensors_without_elements_are_carried_along(tmp_path):
    proto = build(
        f"{IMAGE} {{ {FIRST} e = Slice(a, one, one) k = Concat<axis=0>(a, e) h = Relu(k) {LAST} }}",
        **CONVS, one=np.array([1]),
    )  # fmt: skip
    report, _ = converted(tmp_path, proto)
    assert sorted(report.kernels.integer) == ["Conv_a", "Conv_y"]


def test_a_layer_that_saw_no_data_stays_float_with_a_reason(tmp_path):
    proto = build(
        "(float[N,3,9,9] x) => (float[] y) { a = Conv(x, w1) e = Slice(a, two, nine) "
        "k = Conv(e, w2) r = Relu(k) p = Conv(r, w2) y = Concat<axis=0>(a, p) }",
        w1=(8, 3, 3, 3), w2=(8, 8, 1, 1), two=np.array([2]), nine=np.array([9]),
    )  # fmt: skip
    report, _ = converted(tmp_path, proto)
    assert report.why_float == {
        "Conv_k": "r was empty on the calibration data",
        "Conv_p": "r was empty on the calibration data",
    }


def test_a_tensor_with_infinite_values_stays_float_with_a_reason(tmp_path):
    proto = build(
        f"{IMAGE} {{ {FIRST} r = Div(a, zero) k = Conv(r, w2) s = Softmax<axis=1>(a) "
        "h = Add(s, a) n = Conv(h, w2) y = Concat<axis=1>(k, n) }",
        **CONVS, w2=(8, 8, 1, 1), zero=np.float32(0),
    )  # fmt: skip
    with np.errstate(invalid="ignore"):
        report, _ = quantize(proto, tmp_path)
    assert report.why_float["Conv_k"] == "r had NaN or infinite values on calibration data"
    assert set(report.kernels.integer) == {"Conv_a", "Conv_n"}


# -- graphs that once broke it ---------------------------------------------------------------------


@pytest.mark.parametrize("act_bits", [8, "float"])
def test_a_product_with_a_constant_is_not_taken_for_a_stored_weight(tmp_path, act_bits):
    proto = build(
        f"{ROWS} {{ p = Mul(k, x) a = MatMul(p, w1) n = Mul(k2, a) y = MatMul(n, w2) }}",
        k=(1, 16), k2=(1, 8), w1=(16, 8), w2=(8, 5),
    )  # fmt: skip
    report, _ = converted(tmp_path, proto, act_bits=act_bits)
    assert report.kernels.total == len(report.layers) == 2


def test_a_gemm_between_transposes_can_be_observed(tmp_path):
    proto = build(
        f"{ROWS} {{ t = Transpose(x) g = Gemm(w1, t) h = Transpose(g) y = MatMul(h, w2) }}",
        w1=(8, 16), w2=(8, 5),
    )  # fmt: skip
    report, _ = converted(tmp_path, proto)
    assert {layer.name for layer in report.layers} == {"Gemm_g", "MatMul_y"}


def test_one_of_two_convs_that_are_added_can_be_observed(tmp_path):
    proto = build(
        f"{IMAGE} {{ a = Conv(x, w1) k = Conv(x, w2) y = Add(a, k) }}",
        w1=(8, 3, 3, 3), w2=(8, 3, 3, 3),
    )  # fmt: skip
    report, _ = converted(tmp_path, proto, keep_float=("Conv_k",))
    assert report.kernels.integer == {"Conv_a": "QLinearConv"}


def test_a_one_number_operand_of_higher_rank_keeps_the_rank_of_the_result(tmp_path):
    proto = build(
        f"{ROWS} {{ a = Gemm(x, w1) h = Add(a, k) y = MatMul(h, w2) }}",
        w1=(16, 8), k=np.full((1, 1, 1), -0.5, np.float32), w2=(8, 5),
    )  # fmt: skip
    report, written = converted(tmp_path, proto)
    assert report.kernels.operators["QLinearAdd"] == 1
    assert run(written, feeds(proto))["y"].shape == (1, 4, 5)


def test_a_bias_for_each_row_is_not_taken_for_one_of_each_channel(tmp_path):
    proto = build(
        "(float[4,16] x) => (float[] y) { a = Gemm(x, w1, column) y = Gemm(a, w2) }",
        w1=(16, 4), column=(4, 1), w2=(4, 5),
    )  # fmt: skip
    report, _ = converted(tmp_path, proto)
    assert report.why_float == {"Gemm_a": "its bias is not one constant per output channel"}
    assert all(layer.accumulated > 30 for layer in report.layers)


def test_a_resize_that_extrapolates_does_not_run_on_codes(tmp_path):
    proto = build(
        f'{IMAGE} {{ {FIRST} h = Resize<mode="nearest",'
        'coordinate_transformation_mode="tf_crop_and_resize">(a, roi, , sizes) '
        f"{LAST} }}",
        **CONVS, roi=np.array([0, 0, -0.5, -0.5, 1, 1, 1.5, 1.5], np.float32),
        sizes=np.array([1, 8, 9, 9]),
    )  # fmt: skip
    report, written = converted(tmp_path, proto)
    assert report.layers[-1].accumulated > 30
    assert next(n for n in written.graph.node if n.op_type == "Resize").input[0] == "a"


# -- sums with a number --------------------------------------------------------------------------

LEAK = "l = LeakyRelu<alpha=0.5>(a)"


@pytest.mark.parametrize(
    ("nodes", "left"),
    [
        ("h = HardSwish(a)", 0),
        ("h = HardSigmoid<alpha=0.125,beta=0.375>(a)", 0),
        (f"{LEAK} b = Add(l, two) h = Relu(b)", 0),
        (f"{LEAK} h = Add(two, l)", 0),
        (f"{LEAK} h = Add(l, less)", 0),
        (f"{LEAK} b = Add(l, far) h = Relu(b)", 1),  # further down than the grid reaches
        (f"{LEAK} b = Add(l, two) c = Add(b, far) h = Relu(c)", 1),
        (f"{LEAK} b = Add(l, two) c = Add(l, less) d = Mul(b, c) h = Relu(d)", 1),  # one grid
    ],
)
@pytest.mark.parametrize("act_bits", [8, 6])
def test_a_sum_with_a_number_is_another_zero_point(tmp_path, nodes, left, act_bits):
    scalars = {"two": np.float32(2.0), "far": np.float32(300.0), "less": np.float32(-2.0)}
    scalars = {name: value for name, value in scalars.items() if name in nodes}
    proto = build(
        f"{IMAGE} {{ {FIRST} {nodes} {LAST} }}",
        **CONVS, **scalars,
    )  # fmt: skip
    report, written = converted(tmp_path, proto, act_bits=act_bits)
    assert sum(node.op_type in ("Add", "Sub") for node in written.graph.node) == left
    if not left:
        assert report.kernels.operators["QLinearAdd"] == 0
        assert report.kernels.integer.keys() == {"Conv_a", "Conv_y"}


@pytest.mark.parametrize("number", np.arange(1.0, 3.0, 0.125, np.float32))
def test_what_a_layer_reads_keeps_the_bits_that_were_asked_for(tmp_path, number):
    nodes = (
        f"k = {POOL}(a) b = Add(k, two) s = Sigmoid(k) h = Conv<pads=[1,1,1,1]>(b, w2) "
        "t = Conv<pads=[1,1,1,1]>(s, w2) u = Add(h, t)"
    )
    proto = build(
        f"{IMAGE} {{ {FIRST} {nodes} {LAST.replace('h,', 'u,')} }}",
        **CONVS, w2=(8, 8, 3, 3), two=number,
    )  # fmt: skip
    _, file = quantize(proto, tmp_path, act_bits=4)
    found = {layer.name: layer.act_bits for layer in inspect(load(file), file)[0]}
    assert found["Conv_h"] == found["Conv_t"] == 4


@pytest.mark.parametrize("nodes", ["h = HardSwish(a)", "h = HardSigmoid(a)"])
def test_a_gate_is_cut_off_at_either_end(tmp_path, nodes):
    w = 4.0 * np.random.default_rng(0).standard_normal((8, 3, 3, 3))
    proto = build(f"{IMAGE} {{ {FIRST} {nodes} {LAST} }}", **CONVS | {"w1": w.astype(np.float32)})
    report, _ = converted(tmp_path, proto)
    assert report.kernels.operators["QLinearAdd"] == 0
    assert report.kernels.operators["Clip"] == 1
    assert report.layers[-1].accumulated > 25
