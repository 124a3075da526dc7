"""Roundings one at a time: what each does to the outputs, and what relief costs."""

import numpy as np
import pytest

from onnxq.graph.loading import from_proto
from onnxq.numerics import affine
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.quantize_activations import QuantizeActivations
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.pipeline import run as run_passes
from onnxq.recipe import Relief
from onnxq.runtime import Session
from onnxq.samples.calibration import Calibration
from onnxq.samples.data import batches
from onnxq.samples.preprocess import PRESETS
from onnxq.sensitivity import LOUD, Judge, alone, prices, roundings, unemitted
from tests.graphs import build
from tests.passes.layerwise import samples

# A layer and a node on floats read r, which no layer makes; two layers read c.
NET = build(
    "(float[N,3,8,8] x) => (float[] y, float[] z) { r = Exp(x) c = Conv(r, w1) z = Softplus(r) "
    "y = Conv(c, w2) }",
    w1=(4, 3, 3, 3), w2=(5, 4, 3, 3),
)  # fmt: skip
X = samples(NET, 4).arrays["x"]


def planned(proto, bits=8, act_bits=8):
    """The float model, and its plan by rounding to nearest."""
    reference = from_proto(proto)
    quantized = reference.clone()
    steps = (
        QuantizeWeights(bits=bits),
        QuantizeActivations(bits=act_bits, first_last_bits=2),
        InsertQdq(),
    )
    run_passes(quantized, steps, Calibration(samples(proto), PRESETS["raw"]))
    return reference, unemitted(reference, quantized)


def outputs(model, x=X):
    return Session(model).run({"x": x})


def one(plan, name):
    (found,) = (r for r in roundings(plan) if r.name == name)
    return found


@pytest.mark.parametrize("bits", [8, 3])
def test_a_tensor_alone_is_rounded_for_its_layer_and_not_for_floats(bits):
    reference, plan = planned(NET, act_bits=bits)
    inside = Session(reference, taps=["r"]).run({"x": X})
    second = from_proto(build(
        "(float[N,3,8,8] r) => (float[] y) { c = Conv(r, w1) y = Conv(c, w2) }",
        w1=(4, 3, 3, 3), w2=(5, 4, 3, 3),
    ))  # fmt: skip
    rounded = affine.fake_quantize(inside["r"], plan.activations["r"])
    found = outputs(alone(plan, one(plan, "r")))
    np.testing.assert_array_equal(found["z"], inside["z"])
    np.testing.assert_allclose(found["y"], Session(second).run({"r": rounded})["y"], rtol=1e-5)
    assert not np.allclose(found["y"], inside["y"], rtol=1e-4)


def test_a_tensor_that_leaves_the_graph_as_codes_is_rounded_there_too():
    reference, plan = planned(NET, act_bits=3)
    found, truth = outputs(alone(plan, one(plan, "y"))), outputs(reference)
    rounded = affine.fake_quantize(truth["y"], plan.activations["y"])
    np.testing.assert_allclose(found["y"], rounded, atol=1e-5)
    assert not np.allclose(found["y"], truth["y"], rtol=1e-4)


def test_weights_alone_are_rounded():
    _, plan = planned(NET, bits=4)
    model = alone(plan, one(plan, "Conv_c"))
    rounded = affine.values(plan.weights["Conv_c"])
    assert {n.name: np.array_equal(n.inputs[1].values, rounded) for n in model.graph.nodes
            if n.op == "Conv"} == {"Conv_c": True, "Conv_y": False}  # fmt: skip


def test_of_few_bits_a_part_of_the_error_is_tried():
    """Outputs answer in proportion to small errors alone: of 2 bits, a quarter, as of 4."""
    _, plan = planned(NET, bits=2)
    rounding = one(plan, "Conv_c")
    before, after = (
        next(n for n in model.graph.nodes if n.name == "Conv_c").inputs[1].values
        for model in (plan, alone(plan, rounding))
    )
    whole = affine.values(plan.weights["Conv_c"]) - before
    assert rounding.part == 0.25
    np.testing.assert_allclose(after - before, 0.25 * whole, atol=1e-6)


def test_only_what_could_be_rounded_less_is_a_rounding():
    _, plan = planned(NET, bits=8, act_bits=8)
    assert {r.name: r.reliefs for r in roundings(plan)} == {
        "r": (Relief("floats", "Conv_c", 32),),
        "c": (Relief("floats", "Conv_c", 32), Relief("floats", "Conv_y", 32)),
        "y": (Relief("floats", "Conv_y", 32),),
    }
    _, plan = planned(NET, bits=4, act_bits=4)
    assert {(r.kind, r.name): r.reliefs for r in roundings(plan)} == {
        ("weights", "Conv_c"): (Relief("weights", "Conv_c", 8),),
        ("weights", "Conv_y"): (Relief("weights", "Conv_y", 8),),
        ("activations", "r"): (Relief("activations", "r", 8),),
        ("activations", "c"): (Relief("activations", "c", 8),),
        ("activations", "y"): (Relief("floats", "Conv_y", 32),),
    }


def test_prices_are_shares_of_bytes_and_of_multiply_accumulates():
    _, plan = planned(NET, bits=4, act_bits=4)
    found = prices(plan, roundings(plan), {"Conv_c": 300, "Conv_y": 100})
    assert found[Relief("weights", "Conv_c", 8)] == pytest.approx(0.5 * 108 / 288)
    assert found[Relief("floats", "Conv_c", 32)] == pytest.approx(0.75)
    assert found[Relief("activations", "r", 8)] == pytest.approx(8 * 4 / 1024 * 0.75)


def judge(reference, x=X):
    session = Session(reference)
    return Judge(session, list(batches(samples(NET, len(x)), session.inputs, 2)))


def test_the_noise_of_a_model_is_relative_to_each_output():
    reference, plan = planned(NET, act_bits=3)
    seen = judge(reference)
    found, truth = outputs(alone(plan, one(plan, "r"))), outputs(reference)
    wanted = [np.sum((found[k] - truth[k]) ** 2) / np.sum(truth[k] ** 2) for k in ("y", "z")]
    assert (seen.outputs, seen.count) == (["y", "z"], 4)
    noise, error = seen.noise(alone(plan, one(plan, "r")))
    np.testing.assert_allclose(noise, wanted, atol=1e-6)
    assert wanted[0] > 1e-4
    # Two runs of two samples: the error is half the distance of what they say, weighed.
    halves = [np.sum((found["y"][i : i + 2] - truth["y"][i : i + 2]) ** 2) for i in (0, 2)]
    shares = [np.sum(truth["y"][i : i + 2] ** 2) for i in (0, 2)]
    off = [h - wanted[0] * s for h, s in zip(halves, shares, strict=True)]
    assert error[0] == pytest.approx(np.sqrt(2 * np.sum(np.square(off))) / np.sum(shares), rel=1e-3)
    assert error[1] == 0.0


def test_noise_that_is_no_number_is_loud():
    reference, _ = planned(NET)
    broken = reference.clone()
    broken.graph.nodes[-1].inputs[1].values = np.full((5, 4, 3, 3), np.nan, np.float32)
    noise, error = judge(reference).noise(broken)
    assert (noise.max(), error.max()) == (LOUD, 0.0)


def test_outputs_without_finite_floats_or_signal_are_not_judged():
    proto = build(
        "(float[N,3,8,8] x) => (float[] y, float[] n, float[] i, int64[] k) { y = Conv(x, w) "
        "n = Sub(y, y) i = Reciprocal(n) k = ArgMax<axis=1>(y) }",
        w=(4, 3, 3, 3),
    )  # fmt: skip
    reference = from_proto(proto)
    session = Session(reference)
    assert Judge(session, list(batches(samples(proto, 2), session.inputs, 2))).outputs == ["y"]
