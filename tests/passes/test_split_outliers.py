"""Outlier channel splitting: the same function from a finer grid, and how channels come twice."""

import numpy as np
import onnx
import pytest

from onnxq import pipeline, recipes
from onnxq.graph.layers import layers
from onnxq.graph.loading import from_proto
from onnxq.numerics import outliers
from onnxq.passes.split_outliers import SplitOutliers
from onnxq.spec import weight_spec
from tests.graphs import after, build, feeds, ops, quantize, run

HEAD = "(float[2,4,6,6] x) => (float[] y)"
FIRST = "a = Conv<pads=[1,1,1,1]>(x, w1, b1)"
OUTLIER = np.random.default_rng(0).standard_normal((5, 8, 1, 1)).astype(np.float32)
OUTLIER[3, 6] = 20
WEIGHTS = {
    "w1": (8, 4, 3, 3), "b1": (8,), "w2": OUTLIER, "w3": (8, 8, 1, 1), "depth": (8, 1, 3, 3),
    "halves": (6, 4, 1, 1), "dense": (8, 5), "flat": (288, 5), "up": (8, 3, 2, 2),
    "three": (3, 8, 1, 1), "few": (5, 3, 1, 1), "wf": (6, 8), "bf": (8,), "wl": (5, 6),
    "zero": np.float32(0), "six": np.float32(6), "hw": np.array([2, 3]),
    "pixels": np.array([-1, 8]), "slope": (8, 1, 1),
}  # fmt: skip


def split(nodes, **options):
    proto = build(f"{HEAD} {{ {nodes} }}", **WEIGHTS)
    model, outcome = after(proto, SplitOutliers(**options))
    return proto, model, {edit.where: edit.what for edit in outcome.edits}, {
        skip.where: skip.why for skip in outcome.skips
    }  # fmt: skip


def assert_same(proto, model):
    onnx.checker.check_model(model.to_proto(), full_check=True)
    values = feeds(proto)
    before, found = run(proto, values)["y"], run(model.to_proto(), values)["y"]
    np.testing.assert_allclose(found, before, atol=1e-5 * np.abs(before).max())


@pytest.mark.parametrize(
    ("nodes", "last"),
    [
        ("y = Conv(a, w2)", "Conv"),
        ("r = Relu(a) y = Conv(r, w2)", "Conv"),
        ("r = Clip(a, zero, six) y = Conv(r, w2)", "Conv"),
        ("r = LeakyRelu(a) p = MaxPool<kernel_shape=[2,2]>(r) y = Conv(p, w2)", "Conv"),
        ("p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, dense)", None),
        ("p = GlobalAveragePool(a) f = Squeeze(p, hw) y = Gemm(f, dense)", "Gemm"),
        ("r = Relu(a) y = ConvTranspose(r, up)", "ConvTranspose"),
    ],
)
def test_the_layer_before_makes_a_channel_twice_where_nothing_else_reads_it(nodes, last):
    proto, model, edits, _ = split(f"{FIRST} {nodes}")
    assert_same(proto, model)
    assert ("Gather" in ops(model)[2:]) == (last is None)
    first, reader = layers(model)
    if last is not None:
        assert edits[reader.name] == "1 of 8 channels split, made by Conv_a"
        assert (first.c_out, reader.c_in) == (9, 9)
        assert any(np.array_equal(first.weight[8], first.weight[i]) for i in range(8))


@pytest.mark.parametrize(
    ("nodes", "axis"),
    [
        ("r = HardSigmoid(a) y = Conv(r, w2)", 1),
        ("r = PRelu(a, slope) y = Conv(r, w2)", 1),
        ("r = Relu(a) s = Sigmoid(a) t = Add(r, s) y = Conv(t, w2)", 1),
        ("d = Conv<group=8,pads=[1,1,1,1]>(a, depth) y = Conv(d, w2)", 1),
        ("p = GlobalAveragePool(a) f = Reshape(p, pixels) y = Gemm(f, dense)", 1),
        ("f = Flatten(a) y = Gemm(f, flat)", 1),
        ("m = MatMul(x, wf) n = Sigmoid(m) y = MatMul(n, dense)", -1),
    ],
)
def test_elsewhere_a_gather_repeats_it(nodes, axis):
    proto, model, edits, _ = split(f"{FIRST} {nodes}" if "MatMul(x" not in nodes else nodes)
    assert_same(proto, model)
    reader = list(layers(model))[-1]
    gather = reader.data.inputs[0]
    chosen = gather.inputs[1].values.tolist()
    assert (gather.op, gather.attrs["axis"]) == ("Gather", axis)
    assert (len(chosen), len(set(chosen))) == (reader.c_in, max(chosen) + 1)
    assert reader.c_in > max(chosen) + 1
    assert edits[reader.name].endswith("channels split, gathered")


@pytest.mark.parametrize("bias", [(8,), (1, 8)])
def test_a_product_makes_channels_twice_together_with_the_bias_behind_it(bias):
    weights = {"p": (6, 8), "b": bias, "q": (8, 5)}
    proto = build(
        "(float[6] x) => (float[] y) { m = MatMul(x, p) a = Add(m, b) r = Relu(a) "
        "y = MatMul(r, q) }",
        **weights,
    )
    model, outcome = after(proto, SplitOutliers())
    assert outcome.edits[1].what == "1 of 8 channels split, made by MatMul_m"
    assert_same(proto, model)


def test_the_outlier_is_what_is_split_and_the_grid_gets_finer():
    _, model, _, _ = split(f"{FIRST} r = Relu(a) y = Conv(r, w2)", aware=False)
    *_, reader = layers(model)
    assert np.abs(reader.weight).max() == 10.0
    np.testing.assert_array_equal(reader.weight[:, [6, 8]], OUTLIER[:, [6, 6]] / 2)


@pytest.mark.parametrize("bits", [4, 8])
def test_aware_halves_add_up_on_the_grid_of_the_layer(bits):
    _, model, _, _ = split(f"{FIRST} r = Relu(a) y = Conv(r, w2)", bits=bits)
    *_, reader = layers(model)
    qmax = weight_spec(bits).qmax
    step = np.abs(reader.weight).max() / qmax
    assert step == pytest.approx(outliers.step(OUTLIER[..., 0], 1, qmax), rel=1e-6)
    codes = np.rint(reader.weight / step)
    np.testing.assert_array_equal(
        codes[:, 6] + codes[:, 8], np.rint(OUTLIER[:, 6].astype(np.float64) / step)
    )


@pytest.mark.parametrize(("ratio", "count"), [(0.02, 1), (0.25, 2), (1.0, 8)])
def test_at_least_one_channel_is_split(ratio, count):
    proto, model, _, _ = split(f"{FIRST} r = Relu(a) y = Conv(r, w2)", ratio=ratio)
    assert list(layers(model))[-1].c_in == 8 + count
    assert_same(proto, model)


def test_a_chain_of_layers_is_split_all_along():
    nodes = f"{FIRST} r = Relu(a) b = Conv(r, w3) s = Relu(b) c = Conv(s, w3) y = Conv(c, w2)"
    proto, model, edits, _ = split(nodes, ratio=0.25)
    assert set(edits) == {"Conv_a", "Conv_b", "Conv_c", "Conv_y"}
    assert [layer.c_in for layer in layers(model)] == [5, 10, 10, 10]
    assert_same(proto, model)
    assert not pipeline.run(model, (SplitOutliers(ratio=0.25),), None)["split-outliers"]


@pytest.mark.parametrize(
    ("nodes", "where", "why"),
    [
        ("b = Conv(a, three) s = Sigmoid(b) y = Conv(s, few)", "Conv_y",
         "it has only 3 input channels"),
        ("y = Conv<group=8>(a, depth)", "Conv_y",
         "each of its input channels belongs to one group"),
        ("y = MatMul(wl, a)", "MatMul_y", "its weight is the left operand"),
        ("f = Flatten(a) t = Transpose(f) y = Gemm<transA=1>(t, flat)", "Gemm_y",
         "its data operand is transposed"),
    ],
)  # fmt: skip
def test_a_layer_that_is_not_split_says_why(nodes, where, why):
    proto, model, _, skips = split(f"{FIRST} {nodes}")
    assert skips[where] == why
    assert_same(proto, model)


def test_a_layer_that_is_kept_float_is_not_split():
    proto = build(f"{HEAD} {{ {FIRST} y = Conv(a, w2) }}", **WEIGHTS)
    model = from_proto(proto)
    model.kept_float = {"Conv_y": "kept by --keep-float"}
    outcome = SplitOutliers().run(model, {})
    assert {skip.where: skip.why for skip in outcome.skips} == {"Conv_y": "kept by --keep-float"}


def test_gathered_channels_stay_on_integers(tmp_path):
    nodes = f"{FIRST} d = Conv<group=8,pads=[1,1,1,1]>(a, depth) r = Relu(d) y = Conv(r, w2)"
    proto, model, _, _ = split(nodes)
    report, file = quantize(model.to_proto(), tmp_path, per_tensor=True)
    assert (len(report.kernels.integer), report.kernels.floating) == (3, [])
    assert report.kernels.operators["DequantizeLinear"] == 1
    values = feeds(proto)
    before, found = run(proto, values)["y"], run(onnx.load(file), values)["y"]
    np.testing.assert_allclose(found, before, atol=0.03 * np.abs(before).max())


def test_why_a_layer_runs_on_floats_is_not_why_it_is_not_split(tmp_path):
    proto = build(
        "(float[1,4,6,6] x) => (float[] y) { a = Conv(x, w1) "
        "y = ConvTranspose<strides=[2,1],group=2>(a, w2) }",
        w1=(8, 4, 3, 3), w2=(8, 8, 2, 2),
    )  # fmt: skip
    recipe = recipes.build(exact=(SplitOutliers(),))
    report, _ = quantize(proto, tmp_path, recipe=recipe, act_bits=None)
    assert [skip.where for skip in report.outcomes["split-outliers"].skips] == ["ConvTranspose_y"]
    (why,) = report.why_float.values()
    assert why.startswith("ConvTranspose has no integer kernel")
