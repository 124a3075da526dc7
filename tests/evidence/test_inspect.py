"""What the layers of a model cost."""

import math

import numpy as np
import onnx
import pytest
import zoo

from onnxq.evidence.inspect import cost, inspect, unquantized
from onnxq.graph.loading import from_proto, load
from onnxq.numerics.metrics import histogram_ssim
from tests.graphs import build, quantize

# The nodes, the weight, and the multiply-accumulates, written out.
LAYERS = {
    "conv": ("y = Conv<pads=[1,1,1,1]>(x, w)", (6, 4, 3, 3), 6 * 4 * 9 * 8 * 8),
    "strided conv": ("y = Conv<strides=[2,2]>(x, w)", (6, 4, 3, 3), 6 * 4 * 9 * 3 * 3),
    "grouped conv": ("y = Conv<group=2>(x, w)", (6, 2, 1, 1), 6 * 2 * 8 * 8),
    "depthwise conv": ("y = Conv<group=4>(x, w)", (4, 1, 3, 3), 4 * 9 * 6 * 6),
    "transposed conv": ("y = ConvTranspose<strides=[2,2]>(x, w)", (4, 6, 2, 2), 4 * 6 * 4 * 64),
    "grouped transposed conv": ("y = ConvTranspose<group=2>(x, w)", (4, 3, 2, 2), 4 * 3 * 4 * 64),
    "matmul": ("y = MatMul(x, w)", (8, 5), 8 * 5 * 4 * 8),
    "matmul from the left": ("y = MatMul(w, x)", (5, 8), 8 * 5 * 4 * 8),
    "matmul of a vector": ("f = Reshape(x, all) y = MatMul(f, w)", (256, 5), 256 * 5),
    "vector of a matmul": ("f = Reshape(x, all) y = MatMul(w, f)", (2, 5, 256), 2 * 5 * 256),
    "matmul of two vectors": ("f = Reshape(x, all) y = MatMul(f, w)", (256,), 256),
    "conv without channels": ("y = Conv(x, w)", (0, 4, 3, 3), 0),
    "gemm without channels": ("f = Flatten(x) y = Gemm(f, w)", (256, 0), 0),
    "gemm": ("f = Flatten(x) y = Gemm(f, w)", (256, 5), 256 * 5),
    "transposed gemm": ("f = Flatten(x) y = Gemm<transB=1>(f, w)", (5, 256), 256 * 5),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("size", ["1", "N"])
def test_multiply_accumulates_are_those_of_the_definition(name, size):
    nodes, shape, expected = LAYERS[name]
    graph = f"(float[{size},4,8,8] x) => (float[] y) {{ {nodes} }}"
    proto = build(graph, w=shape, all=np.array([-1]))
    (layer,), _ = inspect(from_proto(proto))
    assert (layer.macs, layer.overhead, layer.shape) == (expected, 0, shape)


@pytest.mark.parametrize("levels", ["uniform", "kmeans"])
def test_bits_scales_and_codebooks_add_up(tmp_path, levels):
    proto = build(
        "(float[1,4,8,8] x) => (float[] y) { a = Conv(x, w) y = Conv(a, v) }",
        w=(16, 4, 3, 3), v=(8, 16, 1, 1),
    )  # fmt: skip
    report, file = quantize(proto, tmp_path, bits=3, levels=levels, act_bits=4)
    found, _ = inspect(load(file), file)
    total = cost(found)
    books = 0 if levels == "uniform" else 2 * 8 * 8
    weights, scales = 16 * 4 * 9 + 8 * 16, 16 + 8
    assert total.average_bits == 3
    assert total.compression == pytest.approx(32 * weights / (3 * weights + 32 * scales + books))
    macs = [16 * 4 * 9 * 36, 8 * 16 * 36]
    # Both layers are first or last, and read 8 bits.
    assert (total.macs, total.bops) == (sum(macs), sum(macs) * 3 * 8)
    assert report.cost == total


def test_float_weights_show_what_outlier_aware_quantization_does_to_their_histogram(tmp_path):
    w = np.random.default_rng(0).standard_normal((16, 4, 3, 3)).astype(np.float32)
    proto = build("(float[1,4,8,8] x) => (float[] y) { y = Conv(x, w) }", w=w)
    (layer,), _ = inspect(from_proto(proto))
    m = np.abs(w).max()
    assert layer.oaq_ssim == histogram_ssim(w / m, np.clip(1.85 * w / m, -1, 1)) < 1
    _, file = quantize(proto, tmp_path)
    (layer,), _ = inspect(load(file), file)
    assert layer.oaq_ssim is None


def test_a_damaged_weight_has_no_histogram():
    w = np.full((16, 4, 3, 3), np.nan, np.float32)
    proto = build("(float[1,4,8,8] x) => (float[] y) { y = Conv(x, w) }", w=w)
    (layer,), _ = inspect(from_proto(proto))
    assert layer.oaq_ssim is None


def test_open_sizes_are_counted_with_a_sample_only(tmp_path):
    proto = build("(float[N,4,H,W] x) => (float[] y) { y = Conv(x, w) }", w=(6, 4, 3, 3))
    padded = build(
        "(float[N,4,H,W] x) => (float[] y) { y = Conv<pads=[1,1,1,1]>(x, w) }", w=(6, 4, 3, 3)
    )
    for open_sized in (proto, padded):
        total = cost(inspect(from_proto(open_sized))[0])
        assert (total.macs, total.bops, total.average_bits) == (None, None, 32)
    rng = np.random.default_rng(0)
    samples = [{"x": rng.standard_normal((1, 4, 12, 10)).astype(np.float32)} for _ in range(2)]
    report, _ = quantize(proto, tmp_path, samples)
    assert report.cost.macs == 6 * 4 * 9 * 10 * 8


def test_a_clip_of_codes_does_not_make_them_fewer_bits(tmp_path):
    proto = build(
        "(float[1,4,8,8] x) => (float[] y) { a = Conv(x, w) m = Mul(a, k) c = Clip(m, low, high) "
        "y = Conv(c, w) }",
        w=(4, 4, 1, 1), k=np.float32(0.37), low=np.float32(0), high=np.float32(0.1),
    )  # fmt: skip
    _, file = quantize(proto, tmp_path)
    found, _ = inspect(load(file), file)
    assert [layer.act_bits for layer in found] == [8, 8]


def test_weights_that_are_constant_nodes_are_weights():
    proto = build("(float[1,4,8,8] x) => (float[] y) { w = Constant() y = Conv(x, w) }")
    weight = onnx.numpy_helper.from_array(np.ones((6, 4, 3, 3), np.float32))
    proto.graph.node[0].attribute.append(onnx.helper.make_attribute("value", weight))
    (layer,), _ = inspect(from_proto(proto))
    assert (layer.op, layer.shape, layer.bits, layer.macs) == ("Conv", (6, 4, 3, 3), 32, 7776)


def test_weights_that_are_in_no_layer_are_named():
    proto = build(
        "(float[1,4,8,8] x) => (float[] y, float[] z, float[] u) { a = Conv(x, w) "
        "c = Not(no) y = If (c) <then_branch = t () => (float[] b) { b = Conv(a, inner) }, "
        "else_branch = e () => (float[] d) { d = Relu(a) }> "
        "f = Cast<to = 7>(x) z = Gather(table, f) h = Gather(small, f) v = Einsum<equation = "
        '"bchw,wk->bchk">(x, dense) u = Add(v, h) }',
        w=(4, 4, 3, 3), inner=(64, 4, 3, 3), no=np.array(False), table=(50, 40), small=(8,),
        dense=(8, 8),
    )  # fmt: skip
    assert unquantized(from_proto(proto)) == {
        "If_y": "what If runs is not quantized: 2,304 weights stay float",
        "Gather_z": "Gather is not quantized: 2,000 weights stay float",
    }


def test_constant_nodes_in_bodies_count_as_theirs():
    proto = build(
        "(float[64] x) => (float[] y) { c = Not(no) y = If (c) <then_branch = t () => (float[] b) "
        "{ k = Constant() b = MatMul(x, k) }, else_branch = e () => (float[] d) { d = Relu(x) }> }",
        no=np.array(False),
    )  # fmt: skip
    constant = proto.graph.node[1].attribute[0].g.node[0]
    weight = onnx.numpy_helper.from_array(np.ones((64, 64), np.float32))
    constant.attribute.append(onnx.helper.make_attribute("value", weight))
    told = {"If_y": "what If runs is not quantized: 4,096 weights stay float"}
    assert unquantized(from_proto(proto)) == told


def test_weights_that_a_loop_is_handed_are_named():
    proto = build(
        "(float[1,64] x) => (float[] y) { y, last = Loop(two, yes, x, w) "
        "<body = b (int64 i, bool c, float[1,64] s, float[64,64] v) "
        "=> (bool d, float[1,64] t, float[64,64] u) "
        "{ d = Identity(c) m = MatMul(s, v) t = Add(m, x) u = Identity(v) }> }",
        w=(64, 64), two=np.array(2), yes=np.array(True),
    )  # fmt: skip
    assert unquantized(from_proto(proto)) == {
        "Loop_y": "what Loop runs is not quantized: 4,096 weights stay float"
    }


@pytest.mark.parametrize("entry", zoo.entries(), ids=lambda entry: entry["name"])
def test_the_zoo_is_counted_as_torch_counts_it(entry):
    file = zoo.ROOT / entry["file"]
    found, kernels = inspect(load(file), file)
    # Products of two activations have no weight: they are not counted here.
    attention = 2 * 5 * 64 * 64 * 128 if entry["name"] == "vit" else 0
    assert cost(found).macs == entry["macs"] - attention
    assert kernels.total == len(found)
    assert sum(math.prod(layer.shape) for layer in found) <= entry["parameters"]
