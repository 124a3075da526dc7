"""Absorption: what every value exceeds moves to the next bias, and nowhere else."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from onnxq import pipeline
from onnxq.graph.layers import layers
from onnxq.graph.loading import from_proto
from onnxq.passes.absorb_bias import AbsorbBias
from onnxq.passes.equalize import Equalize
from onnxq.runtime import Session
from tests.graphs import build, feeds, run

HEAD = "(float[2,4,6,6] x) => (float[] y)"
FIRST = "a = Conv<pads=[1,1,1,1]>(x, w1, b1)"
HIGH = np.array([30, -30, 40, 0, 50, 20, 60, 30], np.float32)
WEIGHTS = {
    "w1": (8, 4, 3, 3), "b1": HIGH, "w2": (5, 8, 1, 1), "b2": (5,), "depth": (8, 1, 1, 1),
    "halves": (6, 4, 1, 1), "dense": (8, 5), "flat": (288, 5), "bd": (5,), "slope": (8, 1, 1),
    "small": (3, 4, 1, 1), "bs": np.full(3, 25, np.float32), "wide": (5, 11, 1, 1),
    "wpad": (5, 8, 3, 3), "up": (8, 5, 1, 1), "zero": np.float32(0), "six": np.float32(90),
    "c": np.linspace(20, 90, 8, dtype=np.float32).reshape(1, 8, 1, 1),
}  # fmt: skip


def calibration(samples):
    """Samples at hand as calibration data."""

    def collect(model, observers):
        session = Session(model, taps=list(observers))
        for values in samples:
            results = session.run(values)
            for name, observer in observers.items():
                observer.update(results[name])
        return observers

    return SimpleNamespace(collect=collect)


def absorbed(nodes, *before, samples=None, **options):
    proto = build(f"{HEAD} {{ {nodes} }}", **WEIGHTS)
    model = from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    samples = [feeds(proto, seed) for seed in range(4)] if samples is None else samples
    step = AbsorbBias(**options)
    outcomes = pipeline.run(model, (*before, step), calibration(samples))
    return proto, model, outcomes[step.name]


@pytest.mark.parametrize(
    "nodes",
    [
        "r = Relu(a) y = Conv(r, w2, b2)",
        "r = Relu(a) y = Conv(r, w2)",
        "r = Relu(a) f = Flatten(r) y = MatMul(f, flat)",
        "r = LeakyRelu(a) y = Conv(r, w2)",
        "r = PRelu(a, slope) y = Conv(r, w2)",
        "r = Relu(a) y = Conv<group=2>(r, halves)",
        "r = Relu(a) y = Conv<group=8>(r, depth)",
        "r = Relu(a) p = MaxPool<kernel_shape=[3,3],pads=[1,1,1,1]>(r) y = Conv(p, w2)",
        "r = Relu(a) p = AveragePool<kernel_shape=[2,2]>(r) y = Conv(p, w2)",
        "r = Relu(a) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, dense, bd)",
        "r = Relu(a) f = Flatten(r) y = Gemm(f, flat)",
        "r = Relu(a) f = Flatten(r) m = MatMul(f, flat) y = Add(m, bd)",
        "r = Relu(a) m = Min(r, c) y = Conv(m, w2)",
        "r = Relu(a) s = Conv(r, w2) p = MaxPool<kernel_shape=[1,1]>(r) t = Conv(p, w2, b2) "
        "y = Add(s, t)",
        "b = Conv(x, small, bs) k = Concat<axis=1>(b, a) r = Relu(k) y = Conv(r, wide)",
    ],
)
def test_the_function_stays_where_the_values_stay_and_activations_shrink(nodes):
    proto, model, outcome = absorbed(f"{FIRST} {nodes}")
    assert outcome
    onnx.checker.check_model(model.to_proto(), full_check=True)
    values = feeds(proto, 2)  # among those that were seen
    before, found = run(proto, values, taps=["a"]), run(model.to_proto(), values, taps=["a"])
    np.testing.assert_allclose(found["y"], before["y"], atol=1e-5 * np.abs(before["y"]).max())
    assert np.ptp(found["a"]) < 0.6 * np.ptp(before["a"])
    assert found["a"][:, [1, 3]].tobytes() == before["a"][:, [1, 3]].tobytes()


def test_just_the_least_value_seen_of_each_channel_leaves():
    proto, model, _ = absorbed(f"{FIRST} r = Relu(a) y = Conv(r, w2)")
    seen = np.stack([run(proto, feeds(proto, s), taps=["a"])["a"] for s in range(4)])
    least = seen.min(axis=(0, 1, 3, 4)).clip(min=0)
    first = next(layers(model))
    np.testing.assert_allclose(HIGH - first.bias, least, atol=1e-4)


def test_or_the_mean_less_three_deviations():
    nodes = f"{FIRST} r = Relu(a) y = Conv(r, w2)"
    proto, model, _ = absorbed(nodes, least="moments")
    seen = np.stack([run(proto, feeds(proto, s), taps=["a"])["a"] for s in range(4)])
    rows = np.moveaxis(seen, 2, 0).reshape(8, -1).astype(np.float64)
    low = (rows.mean(axis=1) - 3 * rows.std(axis=1)).clip(min=0)
    np.testing.assert_allclose(HIGH - next(layers(model)).bias, low, atol=1e-4)


def test_below_the_least_value_seen_the_function_is_another():
    nodes = f"{FIRST} r = Relu(a) y = Conv(r, w2)"
    proto, model, _ = absorbed(nodes, samples=[{"x": np.zeros((2, 4, 6, 6), np.float32)}])
    values = feeds(proto)
    before, found = run(proto, values)["y"], run(model.to_proto(), values)["y"]
    assert np.abs(found - before).max() > 0.1


def test_ceilings_of_an_equalized_clip_shift_along():
    nodes = f"{FIRST} r = Clip(a, zero, six) y = Conv(r, w2)"
    _, _, outcome = absorbed(nodes)
    assert ("a", "Clip Clip_r cuts all channels off at one value") in [
        (skip.where, skip.why) for skip in outcome.skips
    ]
    proto, model, outcome = absorbed(nodes, Equalize(ceilings=True))
    assert [edit.where for edit in outcome.edits] == ["a"]
    values = feeds(proto)
    before, found = run(proto, values)["y"], run(model.to_proto(), values)["y"]
    np.testing.assert_allclose(found, before, atol=1e-5 * np.abs(before).max())


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ("r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, wpad)",
         "Conv_y meets less of an offset at its border"),
        ('r = Relu(a) y = Conv<auto_pad="SAME_UPPER">(r, wpad)',
         "Conv_y meets less of an offset at its border"),
        ("r = Relu(a) y = ConvTranspose(r, up)",
         "ConvTranspose_y meets less of an offset at its border"),
        ("p = AveragePool<kernel_shape=[3,3],pads=[1,1,1,1]>(a) y = Conv(p, w2)",
         "AveragePool AveragePool_p does not keep an offset"),
        ("s = Add(a, a) y = Conv(s, w2)", "Add Add_s does not keep an offset"),
        ("r = Sigmoid(a) y = Conv(r, w2)", "Sigmoid Sigmoid_r does not hand factors on"),
    ],
)  # fmt: skip
def test_whatever_keeps_its_bias_says_why(nodes, why):
    proto, model, outcome = absorbed(f"{FIRST} {nodes}")
    assert not outcome
    assert {skip.where: skip.why for skip in outcome.skips}["a"] == why
    assert model.to_bytes() == from_proto(proto).to_bytes()


def test_a_channel_that_comes_near_zero_is_no_reason_to_do_anything():
    _, _, outcome = absorbed("a = Conv<pads=[1,1,1,1]>(x, w1) r = Relu(a) y = Conv(r, w2)")
    assert not outcome
    assert {skip.where: skip.why for skip in outcome.skips}["a"] == "no channel stays above zero"


def test_values_that_are_not_finite_leave_the_bias_alone():
    samples = [{"x": np.full((2, 4, 6, 6), np.inf, np.float32)}]
    _, _, outcome = absorbed(f"{FIRST} r = Relu(a) y = Conv(r, w2)", samples=samples)
    assert not outcome
