"""Moments that normalizations tell, against those of normal inputs run through the network."""

import numpy as np
import onnx
import pytest

from onnxq import pipeline
from onnxq.graph.layers import layers
from onnxq.graph.loading import from_proto
from onnxq.graph.propagation import propagate, unknown
from onnxq.passes.absorb_bias import AbsorbBias
from onnxq.passes.equalize import Equalize
from onnxq.passes.split_outliers import SplitOutliers
from onnxq.recipes import PREPARATION
from onnxq.runtime import Session
from onnxq.samples.calibration import Calibration
from onnxq.samples.data import Arrays
from onnxq.samples.preprocess import PRESETS
from tests.graphs import build, norm

NORM = "BatchNormalization"
IMAGE = "(float[N,4,8,8] x) => (float[] y)"
ROWS = "(float[N,4] x) => (float[] y)"
START = f"a = {NORM}(x, g, s, m, v)"
# Images, or rows; and how many pixels share an input at most.
IMAGES, PLACES, SHARING = 1024, 64, 9
WEIGHTS = {
    "w": (6, 4, 3, 3), "b": (6,), "half": (6, 2, 3, 3), "depth": (8, 1, 3, 3), "one": (3, 6, 1, 1),
    "up": (4, 5, 2, 2), "uphalf": (4, 3, 2, 2), "dense": (4, 5), "rows": (5, 4), "bd": (5,),
    "flat": (256, 5), "zero": np.float32(0), "six": np.float32(1.5),
    "low": np.float32(-0.5), "chosen": np.array([3, 0, 0, 2, 1]), "hw": np.array([2, 3]),
    "ceiling": np.array([0.5, 1, -1, 2], np.float32).reshape(1, 4, 1, 1),
    "ceiling6": np.linspace(1, 51, 6, dtype=np.float32).reshape(1, 6, 1, 1),
    "shape": np.array([0, -1]), "scales": np.array([1, 1, 2, 2], np.float32),
}  # fmt: skip
SECOND = norm(6, "2", seed=1) | {"s2": np.array([0.5, -1, 0, 40, 1, 50], np.float32)}


def known(text):
    """A prepared model, normal inputs as its first normalization expects them, and its moments."""
    stats = norm(4)
    proto = build(text, **stats, **SECOND, **WEIGHTS)
    model = from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    pipeline.run(model, PREPARATION, None)
    shape = (IMAGES, 4, 8, 8) if "8,8" in text else (IMAGES * PLACES, 4)
    x = np.random.default_rng(0).standard_normal(shape)
    of_channel = (4, *[1] * len(shape[2:]))
    x = x * np.sqrt(stats["v"]).reshape(of_channel) + stats["m"].reshape(of_channel)
    return model, {"x": x.astype(np.float32)}, propagate(model)


def measured(model, feeds, moments):
    """Values of every tensor whose moments are known, channels last."""
    taps = [name for name in moments if name not in feeds]
    results = Session(model, taps=taps, optimize=False).run(feeds) | feeds
    for name, x in moments.items():
        axis = 1 if x.channels.rank or x.channels.form == "rows" else -1
        if x.channels.form == "flat":
            values = results[name].reshape(IMAGES, x.channels.count, -1).swapaxes(1, 2)
        else:
            values = np.moveaxis(results[name], axis, -1)
        yield name, values.reshape(-1, x.channels.count).astype(np.float64)


def assert_true(model, feeds, moments):
    """Known moments are those of the tensors, as far as so many samples can tell."""
    for name, values in measured(model, feeds, moments):
        x, std = moments[name], values.std(axis=0)
        independent = len(values) / SHARING
        off = np.abs(values.mean(axis=0) - x.mean)
        assert (off <= 5.0 * std / np.sqrt(independent) + 1e-6).all(), name
        sure = np.isfinite(x.std)
        np.testing.assert_allclose(
            x.std[sure], std[sure], rtol=5.0 / np.sqrt(2.0 * independent), atol=1e-6, err_msg=name
        )


@pytest.mark.parametrize(
    ("nodes", "head"),
    [
        ("r = Relu(a) y = Conv(r, w, b)", IMAGE),
        ("r = Clip(a, low, six) y = Conv(r, w)", IMAGE),
        ("r = Relu(a) q = Min(ceiling, r) y = Conv(q, w)", IMAGE),
        ("r = Min(a, ceiling) y = Conv<group=2,strides=[2,1]>(r, half, b)", IMAGE),
        ("r = Relu(a) y = Conv<group=4,dilations=[2,2]>(r, depth)", IMAGE),
        ("c = Conv(a, w) y = Relu(c)", IMAGE),
        ("r = Relu(a) y = ConvTranspose<strides=[2,2]>(r, up)", IMAGE),
        ("r = Relu(a) y = ConvTranspose<strides=[2,2],group=2>(r, uphalf, b)", IMAGE),
        ("r = Relu(a) p = AveragePool<kernel_shape=[2,2]>(r) y = Conv(p, w)", IMAGE),
        ("r = Relu(a) p = GlobalAveragePool(r) f = Flatten(p) y = MatMul(f, dense)", IMAGE),
        ("r = Relu(a) f = ReduceMean<axes=[2,3],keepdims=0>(r) y = Gemm(f, dense, bd)", IMAGE),
        ("r = Relu(a) p = GlobalAveragePool(r) f = Squeeze(p, hw) y = Gemm(f, dense)", IMAGE),
        ("r = Relu(a) f = Flatten(r) y = Gemm(f, flat, bd)", IMAGE),
        ("r = Relu(a) f = Reshape(r, shape) y = MatMul(f, flat)", IMAGE),
        ("q = Gather<axis=1>(a, chosen) c = Relu(q) y = Flatten(c)", IMAGE),
        ('r = Relu(a) q = Resize<mode="nearest">(r, , scales) y = Flatten(q)', IMAGE),
        ("r = Relu(a) y = Gemm<transB=1>(r, rows, bd)", ROWS),
        ("c = MatMul(a, dense) d = Add(c, bd) y = Relu(d)", ROWS),
    ],
)
def test_moments_are_those_of_normal_inputs(nodes, head):
    model, feeds, moments = known(f"{head} {{ {START} {nodes} }}")
    assert {t.name for t in model.graph.outputs} <= moments.keys()
    assert_true(model, feeds, moments)


@pytest.mark.parametrize(
    ("step", "last"),
    [
        (Equalize(ceilings=True), "t = Min(r, ceiling6)"),
        (SplitOutliers(ratio=0.5), "t = Min(r, ceiling6)"),
        (SplitOutliers(ratio=0.5), "t = Clip(r, zero, six)"),
        (AbsorbBias(), "t = Min(r, ceiling6)"),
    ],
    ids=["equalized", "gathered", "made twice", "absorbed"],
)
def test_passes_that_change_channels_keep_the_moments_up(step, last):
    nodes = f"q = Conv(a, w, b) c = {NORM}(q, g2, s2, m2, v2) r = Relu(c) {last}"
    model, feeds, _ = known(f"{IMAGE} {{ {START} {nodes} y = Conv(t, one) }}")
    c = Session(model, taps=["c"], optimize=False).run(feeds)["c"].astype(np.float64)
    model.moments["c"] = c.mean(axis=(0, 2, 3)), c.std(axis=(0, 2, 3))
    data = Calibration(Arrays(feeds, range(IMAGES)), PRESETS["raw"])
    assert pipeline.run(model, (step,), data)[step.name].edits
    assert "c" in model.moments
    moments = propagate(model)
    del moments["y"]  # of channels that are not independent
    assert "t" in moments
    assert_true(model, feeds, moments)


def test_moments_told_amid_a_region_are_forgotten_when_it_is_scaled():
    nodes = f"q = Conv(x, w) r = Relu(q) c = {NORM}(r, g2, s2, m2, v2) y = Sigmoid(c)"
    model, *_ = known(f"{IMAGE} {{ {nodes} }}")
    assert "r" in model.moments
    assert pipeline.run(model, (Equalize(),), None)["equalize"].edits
    assert model.moments.keys() == {"c"}


def test_sums_and_joins_take_the_moments_of_their_operands():
    text = f"{IMAGE} {{ {START} c = Conv(a, w) d = {NORM}(c, g2, s2, m2, v2) r = Relu(d) "
    text += "z = Add(d, r) k = Concat<axis=1>(z, d) y = Relu(k) }"
    *_, moments = known(text)
    d, r, z, k = (moments[name] for name in "drzk")
    np.testing.assert_allclose(z.mean, d.mean + r.mean)
    np.testing.assert_allclose(z.std, np.hypot(d.std, r.std))
    np.testing.assert_array_equal(k.mean, [*z.mean, *d.mean])
    assert moments["y"].channels.count == 12


def test_a_normalization_tells_what_it_reads_and_returns():
    """However it is folded, of every tensor that stays."""
    spread = SECOND["g2"] * np.sqrt(SECOND["v2"] / (SECOND["v2"] + 1e-5))
    second = f"{NORM}(c, g2, s2, m2, v2)"
    after, _, before_it = known(f"{IMAGE} {{ c = Conv(x, w) r = {second} y = Relu(r) }}")
    assert [node.op for node in after.graph.nodes] == ["Conv", "Relu"]
    assert after.moments.keys() == {"r"}
    np.testing.assert_allclose(after.moments["r"], [SECOND["s2"], spread], rtol=1e-6)
    assert before_it["r"].channels.rank == 4

    text = f"{IMAGE} {{ q = Conv(x, w) c = Sigmoid(q) r = {second} y = Conv(r, one) }}"
    before, *_ = known(text)
    assert [node.op for node in before.graph.nodes] == ["Conv", "Sigmoid", "Conv"]
    assert before.moments.keys() == {"c"}
    np.testing.assert_allclose(
        before.moments["c"], [SECOND["m2"], np.sqrt(SECOND["v2"])], rtol=1e-6
    )

    alone, *_ = known(f"{IMAGE} {{ q = Conv(x, w) c = Sigmoid(q) r = {second} y = Relu(r) }}")
    assert [node.op for node in alone.graph.nodes] == ["Conv", "Sigmoid", "Conv", "Relu"]
    assert alone.moments.keys() == {"c", "r"}
    np.testing.assert_allclose(alone.moments["r"], [SECOND["s2"], spread], rtol=1e-6)


def test_a_copy_has_moments_of_its_own():
    model, *_ = known(f"{IMAGE} {{ {START} r = Relu(a) y = Conv(r, w) }}")
    copy = model.clone()
    assert copy.moments.keys() == model.moments.keys() != set()
    copy.moments.clear()
    assert model.moments


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ("y = Conv(x, w)", "of what the model is fed"),
        (f"{START} r = Sigmoid(a) y = Conv(r, w)", "of what Sigmoid Sigmoid_r returns"),
        (f"{START} r = LeakyRelu(a) y = Conv(r, w)", "returns"),
        (f"{START} r = MaxPool<kernel_shape=[2,2]>(a) y = Conv(r, w)", "returns"),
        (f"{START} t = Tanh(a) r = Add(a, t) y = Conv(r, w)", "returns"),
        (f"{START} q = AveragePool<kernel_shape=[2,2]>(a) r = Relu(q) y = Conv(r, w)", "returns"),
        (f"{START} r = Transpose<perm=[0,2,3,1]>(a) y = MatMul(r, dense)", "returns"),
        (f"{START} r = Relu(a) y = MatMul(r, wide)", "its input channels lie along another axis"),
        (f"{START} r = Relu(a) y = MatMul(left, r)", "its weight is the left operand"),
    ],
)
def test_what_is_not_known_has_a_reason(nodes, why):
    proto = build(
        f"{IMAGE} {{ {nodes} }}", **norm(4), w=(6, 4, 3, 3), wide=(8, 5), left=(3, 8), dense=(4, 5)
    )
    model = from_proto(proto)
    pipeline.run(model, PREPARATION, None)
    *_, layer = layers(model)
    told = unknown(layer, propagate(model))
    assert told is not None
    assert told.endswith(why)


def test_a_statistic_that_is_damaged_tells_nothing():
    stats = norm(4) | {"m": np.array([0, np.nan, 0, 0], np.float32)}
    proto = build(f"{IMAGE} {{ q = Sigmoid(x) a = {NORM}(q, g, s, m, v) y = Relu(a) }}", **stats)
    model = from_proto(proto)
    pipeline.run(model, PREPARATION, None)
    assert "q" not in propagate(model)
