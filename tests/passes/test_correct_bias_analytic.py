"""Means restored from batch normalizations alone are those of the float model."""

import numpy as np
import onnx
import pytest

from onnxq import pipeline, recipes
from onnxq.graph.loading import from_proto
from onnxq.passes.correct_bias_analytic import CorrectBiasAnalytic
from onnxq.passes.equalize import Equalize
from onnxq.passes.split_outliers import SplitOutliers
from onnxq.runtime import Session
from onnxq.samples.data import Arrays
from tests.graphs import build, norm
from tests.passes.layerwise import results

NORM = "BatchNormalization"
NAME = CorrectBiasAnalytic.name
START = f"i = {NORM}(x, g0, s0, m0, v0) r0 = Relu(i)"
PLAIN = {"m0": np.zeros(4, np.float32), "v0": np.ones(4, np.float32)}
RESIDUAL = (
    f"a = Conv(r0, w1) n1 = {NORM}(a, g1, s1, m1, v1) r1 = Relu(n1) "
    f"b = Conv<group=8>(r1, w2) n2 = {NORM}(b, g2, s2, m2, v2) r2 = Clip(n2, zero, six) "
    f"c = Conv(r2, w3) n3 = {NORM}(c, g3, s3, m3, v3) "
    f"d = Conv(n3, w4) n4 = {NORM}(d, g4, s4, m4, v4) e = Add(n3, n4) r5 = Relu(e) "
    "p = GlobalAveragePool(r5) f = Flatten(p) y = Gemm<transB=1>(f, w5, b5)"
)
WEIGHTS = {
    "w1": (8, 4, 3, 3), "w2": (8, 1, 3, 3), "w3": (8, 8, 1, 1), "w4": (8, 8, 1, 1),
    "w5": (5, 8), "b5": (5,), "zero": np.float32(0), "six": np.float32(1.5),
}  # fmt: skip


def normal(count, *shape, seed=0):
    """Normal inputs, as the first normalization expects them."""
    x = np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)
    return Arrays({"x": x}, range(count))


def network(seed):
    """A residual network whose normalizations hold what training would have left in them."""
    text = f"(float[N,4,12,12] x) => (float[] y) {{ {START} {RESIDUAL} }}"
    held = {k: v for i in "1234" for k, v in norm(8, i, seed=seed + int(i)).items()}
    held |= norm(4, "0", seed=seed) | PLAIN
    feed = normal(64, 4, 12, 12, seed=seed).arrays
    for i, tensor in zip("1234", "abcd", strict=True):  # one behind the other
        model = from_proto(build(text, seed=seed, **WEIGHTS, **held))
        seen = Session(model, taps=[tensor], optimize=False).run(feed)[tensor]
        held |= {f"m{i}": seen.mean(axis=(0, 2, 3)), f"v{i}": seen.var(axis=(0, 2, 3))}
    return build(text, seed=seed, **WEIGHTS, **held)


def quantized(proto, *after, before=(), bits=3, **flags):
    """The prepared model, the quantized one, and what the passes did to it."""
    recipe = recipes.build(bits=bits, act_bits="float", before=before, after=after, **flags)
    model = from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    model.raise_opset(recipe.opset)
    pipeline.run(model, recipe.exact, None)
    prepared = model.clone()
    return prepared, model, pipeline.run(model, recipe.lossy, None)


def shifts(proto, data, *after, **flags):
    """Root mean square over all channels of each layer's shift of means, in deviations."""
    prepared, model, _ = quantized(proto, *after, **flags)
    return {
        name: float(np.sqrt(np.mean(((y_q - y).mean(axis=0) / y.std(axis=0)) ** 2)))
        for name, (y, y_q) in results(prepared, model, data).items()
    }


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(
    "before",
    [(), (Equalize(ceilings=True),), (SplitOutliers(ratio=0.2),)],
    ids=["alone", "equalized", "split"],
)
@pytest.mark.parametrize("seed", [0, 100, 200])
def test_most_of_what_means_shift_by_goes(seed, before, per_channel):
    proto, data = network(seed), normal(256, 4, 12, 12, seed=1)
    flags = {"before": before, "per_channel": per_channel}
    plain = shifts(proto, data, **flags)
    found = shifts(proto, data, CorrectBiasAnalytic(), **flags)
    assert found.pop("Gemm_y") < plain.pop("Gemm_y")
    assert sum(found.values()) < 0.4 * sum(plain.values())


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ("y = Conv<strides=[2,1]>(i, w, b)", {"w": (6, 4, 3, 3), "b": (6,)}),
        ("y = Conv<dilations=[2,2]>(i, w)", {"w": (6, 4, 3, 3)}),
        ("y = Conv<group=2>(i, w)", {"w": (6, 2, 3, 3)}),
        ("y = Conv<group=4>(i, w, b)", {"w": (8, 1, 3, 3), "b": (8,)}),
        ("y = ConvTranspose<strides=[2,2]>(i, w, b)", {"w": (4, 5, 2, 2), "b": (5,)}),
        ("y = ConvTranspose<strides=[2,2],group=2>(i, w)", {"w": (4, 3, 2, 2)}),
        ("f = Flatten(i) y = Gemm<transB=1>(f, w, b)", {"w": (5, 144), "b": (5,)}),
        ("f = Flatten(i) y = Gemm(f, w)", {"w": (144, 5)}),
        ("f = Flatten(i) y = MatMul(f, w)", {"w": (144, 5)}),
        ("f = Flatten(i) p = MatMul(f, w) y = Add(p, b)", {"w": (144, 5), "b": (5,)}),
        ("c = Conv(i, w) y = ConvTranspose(c, w)", {"w": (4, 4, 1, 1)}),
    ],
)
@pytest.mark.parametrize("flags", [{}, {"levels": "kmeans", "bits": 3}, {"group_size": 2}])
def test_inputs_that_are_their_means_give_the_results_they_gave(nodes, weights, flags):
    """A layer is linear: the mean of its result is its result for the means, without a border."""
    held = norm(4, "0")
    text = f"(float[2,4,6,6] x) => (float[] y) {{ i = {NORM}(x, g0, s0, m0, v0) {nodes} }}"
    x = np.broadcast_to(held["m0"].reshape(1, 4, 1, 1), (2, 4, 6, 6)).copy()

    def means(model):
        y = Session(model, optimize=False).run({"x": x})["y"]
        return y.mean(axis=tuple(range(2, y.ndim)))

    prepared, plain, _ = quantized(build(text, **weights, **held), **flags)
    _, model, outcomes = quantized(build(text, **weights, **held), CorrectBiasAnalytic(), **flags)
    assert not outcomes[NAME].skips
    np.testing.assert_allclose(means(model), means(prepared), atol=2e-5)
    assert np.abs(means(plain) - means(prepared)).max() > 1e-3


def test_the_same_model_gives_the_same_bytes():
    one, two = (quantized(network(0), CorrectBiasAnalytic())[1] for _ in range(2))
    assert one.to_bytes() == two.to_bytes()


def test_what_is_left_alone_has_a_reason():
    text = f"(float[2,4,6,6] x) => (float[] y) {{ a = Conv(x, w0) r = {NORM}(a, g, s, m, v) "
    text += "b = Conv(r, w1) p = MaxPool<kernel_shape=[2,2]>(b) c = Conv(p, w2) "
    text += "t = ReduceMean<axes=[0,2,3],keepdims=0>(c) y = Conv(r, w1, t) }"
    proto = build(text, w0=(4, 4, 1, 1), w1=(4, 4, 1, 1), w2=(4, 4, 1, 1), **norm(4))
    model = from_proto(proto)
    pipeline.run(model, recipes.PREPARATION, None)
    model.kept_float["Conv_b"] = "kept by the user"
    steps = (recipes.QuantizeWeights(bits=4), CorrectBiasAnalytic())
    outcome = pipeline.run(model, steps, None)[NAME]
    assert not outcome.edits
    untold = "no batch normalization tells the means of what"
    assert {skip.where: skip.why for skip in outcome.skips} == {
        "Conv_a": f"{untold} the model is fed",
        "Conv_b": "kept by the user",
        "Conv_c": f"{untold} MaxPool MaxPool_p returns",
        "Conv_y": "its bias is not one constant per output channel",
    }


def test_without_quantized_weights_there_is_nothing_to_correct():
    proto = network(0)
    model = from_proto(proto)
    pipeline.run(model, recipes.PREPARATION, None)
    before = model.to_bytes()
    outcome = pipeline.run(model, (CorrectBiasAnalytic(),), None)[NAME]
    assert {skip.why for skip in outcome.skips} == {"its weight is not quantized"}
    assert model.to_bytes() == before
