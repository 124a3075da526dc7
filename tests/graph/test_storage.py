"""Weights of any width and level set: as small as their bits, and the same when unpacked."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxq.errors import UnsupportedModel, UsageError
from onnxq.evidence.inspect import inspect
from onnxq.graph.layers import layers
from onnxq.graph.loading import from_proto, load
from onnxq.graph.storage import UNPACKERS
from onnxq.numerics import affine, levels, pairs, ranges
from onnxq.spec import SAFE, weight_spec
from tests.graphs import build, feeds, quantize, run

pytestmark = pytest.mark.usefixtures("long_names")

GONE = UNPACKERS | {"Pad", "Slice"}
WEIGHTS = {"w1": (8, 3, 3, 3), "w2": (12, 8, 3, 3), "w3": (12, 5)}
NET = (
    "(float[1,3,10,10] x) => (float[] y) { a = Conv(x, w1) b = Relu(a) c = Conv(b, w2) "
    "d = GlobalAveragePool(c) e = Flatten(d) y = Gemm(e, w3) }"
)
SETS = [
    *(("uniform", bits) for bits in range(2, 9)),
    *((name, low) for name, (low, _) in levels.WIDTHS.items() if name != "uniform"),
    *((name, high) for name, (_, high) in levels.WIDTHS.items() if name != "uniform"),
]


def net():
    return build(NET, **WEIGHTS)


def reference(layer, name, bits, integer):
    """What the numerics make of the weight of a layer."""
    w, axis, spec = layer.weight, layer.out_axis, weight_spec(bits, headroom=integer)
    if name == "uniform":
        params = affine.qparams(*ranges.weight_max(w, spec, axis), spec, axis)
        if integer:
            sums = pairs.sums(layer.in_order(affine.clip(w, params)))
            params = pairs.spaced(params, sums)
        return affine.fake_quantize(w, params)
    return affine.values(levels.quantize(w, name, spec, axis, None, integer))


@pytest.mark.parametrize(("name", "bits"), SETS)
@pytest.mark.parametrize("act_bits", [8, "float"])
def test_weights_unpack_to_what_the_numerics_say(tmp_path, name, bits, act_bits):
    proto = net()
    _, file = quantize(proto, tmp_path, levels=name, bits=bits, act_bits=act_bits)
    taps = [f"{weight}_dequantized" for weight in WEIGHTS]
    # Fused into an integer kernel, a weight is no tensor that could be looked at.
    for optimize in (True, False) if act_bits == "float" else (False,):
        found = run(onnx.load(file), feeds(proto), optimize=optimize, taps=taps)
        for layer in layers(from_proto(proto)):
            expected = reference(layer, name, bits, act_bits != "float")
            np.testing.assert_array_equal(
                found[f"{layer.weight_tensor.name}_dequantized"], expected
            )


@pytest.mark.parametrize(("name", "bits"), SETS)
@pytest.mark.parametrize("target", ["1.20", "1.23", "1.24"])
def test_all_that_unpacks_is_gone_once_the_model_is_loaded(tmp_path, name, bits, target):
    report, file = quantize(net(), tmp_path, levels=name, bits=bits, target_ort=target)
    assert not set(report.kernels.operators) & GONE
    assert set(report.kernels.integer.values()) == {"QLinearConv", "QGemm"}
    assert len(report.kernels.integer) == 3
    found, _ = inspect(load(file), file)
    assert {layer.bits for layer in found} == {bits}
    opset = load(file).opset
    narrow = {"1.20": {}, "1.23": {4: 21}, "1.24": {4: 21, 2: 25}}[target]
    assert opset == narrow.get(bits, 17)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        (n, b)
        for n in ("uniform", "apot", "kmeans")
        for b in (2, 3, 4, 5, 6)
        if (n, b) != ("apot", 6)
    ],
)
def test_a_weight_takes_its_bits_and_little_more(tmp_path, name, bits):
    """What 100,000 weights add to a file is their bits; what unpacks them is small."""

    def size(width):
        proto = build(
            "(float[1,8,6,6] x) => (float[] y) { a = Conv(x, w) y = Conv(a, v) }",
            w=(width, 8, 1, 1), v=(8, width, 1, 1),
        )  # fmt: skip
        _, file = quantize(proto, tmp_path, bits=bits, levels=name, target_ort="1.20")
        scales = 2 * 4 * width  # a float32 scale for each channel, of the weight and of its bias
        return file.stat().st_size - scales - 16 * width * bits / 8

    assert size(6400) - size(8) <= 100
    _, file = quantize(
        build("(float[1,8,6,6] x) => (float[] y) { a = Conv(x, w) y = Conv(a, v) }",
              w=(8, 8, 1, 1), v=(8, 8, 1, 1)), tmp_path,
    )  # fmt: skip
    assert size(8) - (file.stat().st_size - 128 - 128) <= {2: 600, 4: 600}.get(bits, 1200)


def test_layers_share_what_unpacks_them(tmp_path):
    def nodes(count):
        chain = " ".join(f"t{i + 1} = Conv(t{i}, w{i})" for i in range(count))
        weights = {f"w{i}": (4, 4, 1, 1) for i in range(count)}
        proto = build(f"(float[1,4,3,3] t0) => (float[] t{count}) {{ {chain} }}", **weights)
        _, file = quantize(proto, tmp_path, bits=3)
        return [n.op_type for n in onnx.load(file).graph.node if n.op_type in UNPACKERS]

    assert len(nodes(9)) == len(nodes(2)) + 7
    assert nodes(9).count("Split") == 1


@pytest.mark.parametrize("text", ["1", "2.0", "1.x", "newest"])
def test_a_target_that_is_no_version_is_refused(tmp_path, text):
    with pytest.raises(UsageError, match="target_ort"):
        quantize(net(), tmp_path, target_ort=text)


GROUPED = {
    "conv": ("y = Conv(x, w)", (6, 8, 3, 3), (6, 2, 4, 3, 3), (0, 1)),
    "conv transpose": ("y = ConvTranspose(x, w)", (8, 6, 3, 3), (2, 4, 6, 3, 3), (2, 0)),
    "gemm": ("f = GlobalMaxPool(x) g = Flatten(f) y = Gemm(g, w)", (8, 5), (2, 4, 5), (2, 0)),
    "transposed gemm": (
        "f = GlobalMaxPool(x) g = Flatten(f) y = Gemm<transB=1>(g, w)", (5, 8), (5, 2, 4), (0, 1)
    ),
    "matmul": ("y = MatMul(x, w)", (8, 5), (2, 4, 5), (2, 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("levels", ["uniform", "kmeans"])
def test_every_group_of_input_channels_has_a_scale(tmp_path, name, bits, levels):
    if levels == "kmeans" and bits == 8:
        pytest.skip("there are no 8-bit codebooks")
    nodes, shape, split, (out, group) = GROUPED[name]
    proto = build(f"(float[1,8,8,8] x) => (float[] y) {{ {nodes} }}", w=shape)
    report, file = quantize(
        proto, tmp_path, bits=bits, levels=levels, act_bits="float", group_size=4
    )
    w = numpy_helper.to_array(proto.graph.initializer[0]).reshape(split)
    tensor = "w_whole"
    for optimize in (True, False):
        found = run(onnx.load(file), feeds(proto), optimize=optimize, taps=[tensor])[tensor]
        assert found.shape == shape
        error = np.abs(found.reshape(split) - w)
        if levels == "uniform":
            axes = tuple(i for i in range(len(split)) if i not in (out, group))
            step = np.abs(w).max(axis=axes, keepdims=True) / (2 ** (bits - 1) - 1)
            assert (error <= step / 2 * 1.0001).all()
    assert not set(report.kernels.operators) & (GONE - {"Reshape"})
    (layer,), _ = inspect(load(file), file)
    assert (layer.bits, layer.scales) == (bits, split[out] * split[group])


def test_groups_need_float_activations_and_whole_groups(tmp_path):
    with pytest.raises(UsageError, match="group_size needs float activations"):
        quantize(net(), tmp_path, group_size=4)
    report, _ = quantize(net(), tmp_path, group_size=4, act_bits="float")
    remarks = {r.where: r.what for r in report.outcomes["quantize-weights"].remarks}
    assert list(remarks) == ["Conv_a"]
    assert "3 input channels are not whole groups of 4" in remarks["Conv_a"]


# Weights that are computed from constants, and how many bits a value of them is said to take.
COMPUTED = {
    "cast int8": ("w = Cast<to=1>(k) y = MatMul(x, w)", np.int8, (512, 512)),
    "cast half": ("w = Cast<to=1>(k) y = MatMul(x, w)", np.float16, (512, 512)),
    "reshaped": ("w = Reshape(k, s) y = MatMul(x, w)", np.float32, (4, 128, 512)),
    "doubled": ("w = Mul(k, two) y = MatMul(x, w)", np.float32, (512, 512)),
    "split": ("w, v = Split<axis=1>(k) y = MatMul(x, w)", np.float32, (512, 1024)),
    "looked up": ("w = Gather(k, i) y = MatMul(x, w)", np.float32, (600, 512)),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPUTED)
def test_a_weight_computed_from_floats_is_a_float_weight(tmp_path, name):
    nodes, dtype, shape = COMPUTED[name]
    rng = np.random.default_rng(0)
    k = (10 * rng.standard_normal(shape)).astype(dtype)
    proto = build(
        f"(float[2,512] x) => (float[] y, float[] z) {{ {nodes} z = MatMul(x, u) }}",
        k=k, u=(512, 4), s=np.array([512, 512]), two=np.float32(2), i=np.arange(512),
    )  # fmt: skip
    onnx.save(proto, tmp_path / "float.onnx")
    found, _ = inspect(load(tmp_path / "float.onnx"))
    assert {layer.name: (layer.bits, layer.scales) for layer in found} == {
        "MatMul_y": (32, 0), "MatMul_z": (32, 0),
    }  # fmt: skip
    report, _ = quantize(proto, tmp_path, attention=True)
    assert report.cost is not None
    assert "MatMul_z" in report.kernels.integer


@pytest.mark.parametrize("kind", [11, 6])
def test_products_that_are_not_float32_stay_what_they_are(tmp_path, kind):
    proto = build(
        "(float[4,4] x) => (float[] y) { a = MatMul(x, w) d = Cast<to=KIND>(a) t = Transpose(d) "
        "z = MatMul(d, t) e = Cast<to=1>(z) y = MatMul(e, w) }".replace("KIND", str(kind)),
        w=(4, 4),
    )
    report, _ = quantize(proto, tmp_path, attention=True)
    assert set(report.kernels.integer) == {"MatMul_a", "MatMul_y"}


def test_a_bias_that_is_fed_is_left_out_of_the_layer_figures(tmp_path):
    proto = build("(float[1,3,8,8] x, float[8] b) => (float[] y) { y = Conv(x, w, b) }",
                  w=(8, 3, 3, 3))  # fmt: skip
    report, _ = quantize(proto, tmp_path)
    assert (report.layers, report.kernels.floating) == ([], ["Conv_y"])


def test_an_opset_that_the_target_does_not_read_is_refused(tmp_path):
    proto = build("(float[1,3,8,8] x) => (float[] y) { y = Conv(x, w) }", w=(8, 3, 3, 3), opset=22)
    with pytest.raises(
        UnsupportedModel, match=r"is of opset 22, and onnxruntime 1\.20 reads up to 21"
    ):
        quantize(proto, tmp_path, target_ort="1.20")
    quantize(proto, tmp_path, target_ort="1.23.2")


@pytest.mark.parametrize("levels_", ["post", "kmeans", "binary"])
def test_a_bias_that_raises_the_scale_moves_codes_to_the_nearest_level(tmp_path, levels_):
    proto = build(
        "(float[1,3,8,8] x) => (float[] y) { a = Conv(x, w, b) r = Relu(a) y = Conv(r, v) }",
        w=(4, 3, 3, 3), b=np.array([0.1, 3e6, -0.2, 0], np.float32), v=(2, 4, 1, 1),
    )  # fmt: skip
    w = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    w[1] *= 1e-3
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(w, "w"))
    report, file = quantize(proto, tmp_path, levels=levels_, target_ort="1.20")
    remarks = [r.what for r in report.outcomes["insert-qdq"].remarks]
    assert "weight scale raised on 1 channels to fit the bias" in remarks
    written = onnx.load(file)
    taps = ["w_codes", "w_dequantized"]
    found = run(written, feeds(proto), optimize=False, taps=taps)
    (scale,) = (numpy_helper.to_array(t) for t in written.graph.initializer if t.name == "w_scale")
    book = np.unique(found["w_codes"]).astype(np.float64)
    distance = np.abs(w[1].reshape(-1, 1) / scale[1] - book)
    chosen = found["w_codes"][1].reshape(-1)
    np.testing.assert_array_equal(np.abs(book[distance.argmin(axis=1)]), np.abs(chosen))


@pytest.mark.parametrize(("levels", "bits"), [("uniform", 8), ("uniform", 3), ("kmeans", 4)])
@pytest.mark.parametrize(
    ("groups", "inputs", "rows", "kernel", "left"),
    [
        (16, 4, 4, (3, 3), 2),
        (16, 4, 6, (1, 1), 2),
        (13, 8, 8, (3, 3), 1),  # no way to stop in between
        (8, 1, 2, (3, 3), 1),
        (3, 24, 4, (1, 1), 3),  # wide enough
        (16, 1, 1, (3, 3), 16),  # depthwise layers have a kernel of their own
    ],
)
def test_narrow_channel_groups_are_computed_together(
    tmp_path, levels, bits, groups, inputs, rows, kernel, left
):
    shape = (groups * rows, inputs, *kernel)
    proto = build(
        f"(float[1,{groups * inputs},5,5] x) => (float[] y) "
        f"{{ a = Conv<group={groups}>(x, w1, b1) y = Conv(a, w2) }}",
        w1=shape, b1=(shape[0],), w2=(2, shape[0], 1, 1),
    )  # fmt: skip
    report, file = quantize(proto, tmp_path, levels=levels, bits=bits)
    written = load(file)
    node = next(node for node in written.graph.nodes if node.name == "Conv_a")
    assert node.attrs.get("group", 1) == left
    found = run(onnx.load(file), feeds(proto), optimize=False, taps=[node.inputs[1].name])
    w = numpy_helper.to_array(proto.graph.initializer[0])
    merged = groups // left
    apart = found[node.inputs[1].name].reshape(left, merged, rows, merged, inputs, *kernel)
    for b, c in np.ndindex(merged, merged):
        block = apart[:, b, :, c].reshape(-1, inputs, *kernel)
        if b != c:
            assert not block.any()
        else:
            wanted = w.reshape(left, merged, rows, inputs, *kernel)[:, b].reshape(block.shape)
            step = np.abs(w).max() / min(weight_spec(bits).qmax, SAFE)
            assert np.abs(block - wanted).max() <= 0.6 * step
    layer = inspect(written, file)[0][0]
    assert (layer.shape, layer.bits) == (shape, bits)
    assert layer.macs == np.prod(shape) * np.prod([6 - k for k in kernel])
    assert report.kernels.integer["Conv_a"] == "QLinearConv"
    assert not set(report.kernels.operators) & GONE


@pytest.mark.parametrize("act_bits", [8, "float"])
def test_activations_that_are_moved_as_weights_are_unpacked_are_no_weights(tmp_path, act_bits):
    proto = build(
        "(float[1,2,4,4] x) => (float[] y) { a = Conv(x, w1) b = Sigmoid(a) p = Pad(b, pads) "
        "q = Pad(b, pads) c = Concat<axis=1>(p, q) r = Reshape(c, apart) "
        "t = Transpose<perm=[0,2,1,3]>(r) u = Reshape(t, whole) y = Conv(u, w2) }",
        w1=(4, 2, 1, 1), w2=(3, 8, 3, 3), pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        apart=np.array([1, 2, 4, 36]), whole=np.array([1, 8, 6, 6]),
    )  # fmt: skip
    report, file = quantize(proto, tmp_path, act_bits=act_bits)
    found = {layer.name: layer.shape for layer in inspect(load(file), file)[0]}
    assert found == {"Conv_a": (4, 2, 1, 1), "Conv_y": (3, 8, 3, 3)}
    assert report.kernels.total == 2
