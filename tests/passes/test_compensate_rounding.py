"""Error compensation on layers of every kind: less error on its data, and a word where not."""

import numpy as np
import pytest

from onnxq import visit
from onnxq.numerics.levels import WIDTHS
from onnxq.passes.compensate_rounding import CompensateRounding
from onnxq.passes.correct_bias import CorrectBias
from tests.graphs import build
from tests.passes.layerwise import LAYERS, results, samples, walked
from tests.passes.test_correct_bias import NETWORK

STEPS = (CompensateRounding(), CorrectBias())


def errors(proto, *steps, **flags):
    """Squared error of each layer's result relative to its variance."""
    data = samples(proto)
    prepared, quantized, outcomes = walked(proto, *steps, data=data, **flags)
    found = results(prepared, quantized, data).items()
    return {
        n: float(((b - a) ** 2).sum() / a.var(0).sum() / len(a)) for n, (a, b) in found
    }, outcomes


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("prefix", [True, False])
def test_every_kind_of_layer_gains(kind, prefix):
    text, weights = LAYERS[kind]
    proto = build(text, **weights)
    steps = (CompensateRounding(prefix=prefix), CorrectBias())
    plain, _ = errors(proto, CorrectBias(), bits=3, weight_range="mse")
    found, outcomes = errors(proto, *steps, bits=3, weight_range="mse")
    assert len(outcomes["compensate-rounding"].edits) == 1
    (name,) = found
    assert found[name] < 0.95 * plain[name]


@pytest.mark.parametrize("name", [name for name in WIDTHS if name not in ("uniform", "binary")])
@pytest.mark.parametrize("act_bits", [8, "float"])
def test_every_level_set_gains(name, act_bits):
    bits = WIDTHS[name][1]
    plain, _ = errors(NETWORK, CorrectBias(), bits=bits, levels=name, act_bits=act_bits)
    found, _ = errors(NETWORK, *STEPS, bits=bits, levels=name, act_bits=act_bits)
    assert found["Gemm_y"] < 0.9 * plain["Gemm_y"]


@pytest.mark.parametrize("flags", [{"per_channel": False}, {"group_size": 4, "act_bits": "float"}])
def test_scales_that_are_shared_otherwise(flags):
    plain, _ = errors(NETWORK, CorrectBias(), bits=3, **flags)
    found, _ = errors(NETWORK, *STEPS, bits=3, **flags)
    assert found["Gemm_y"] < 0.9 * plain["Gemm_y"]


@pytest.mark.parametrize(("bits", "kept"), [(8, True), (4, False)])
def test_scales_of_8_bits_stay(bits, kept):
    _, outcomes = errors(NETWORK, *STEPS, bits=bits)
    said = {edit.what for edit in outcomes["compensate-rounding"].edits}
    assert (said == {"scales times 1 to 1"}) == kept


def test_making_up_for_the_layers_before_pays_in_a_deep_network():
    alone, _ = errors(NETWORK, CompensateRounding(prefix=False), CorrectBias(), bits=3)
    found, _ = errors(NETWORK, *STEPS, bits=3)
    assert found["Gemm_y"] < alone["Gemm_y"]


def test_the_written_weights_are_on_their_grid():
    prepared, _, _ = walked(NETWORK, *STEPS, bits=3)
    data = samples(NETWORK)
    one, two = (walked(NETWORK, *STEPS, bits=3, data=data)[1].to_bytes() for _ in range(2))
    assert one == two
    assert prepared.weights == {}


@pytest.mark.parametrize(
    ("text", "weights", "why"),
    [
        (
            "(float[N,4,5,5] x) => (float[] y) { y = ConvTranspose(x, w) }",
            {"w": (4, 3, 2, 2)},
            "the outputs of a ConvTranspose overlap: rounded to nearest",
        ),
        (
            "(float[N,4,6] x) => (float[] y) { y = MatMul(w, x) }",
            {"w": (5, 4)},
            "its weight is the left operand: rounded to nearest",
        ),
        (
            "(float[N,2,3,6] x) => (float[] y) { y = MatMul(x, w) }",
            {"w": (2, 6, 5)},
            "its weight is a batch of matrices: rounded to nearest",
        ),
    ],
)
def test_a_layer_it_cannot_take_is_left_as_it_was_rounded(text, weights, why):
    *_, outcomes = walked(build(text, **weights), *STEPS, bits=4, act_bits="float")
    (skip,) = outcomes["compensate-rounding"].skips
    assert skip.why == why


def test_a_very_wide_layer_is_left_as_it_was_rounded(monkeypatch):
    monkeypatch.setattr(visit, "MOST_INPUTS", 30)
    *_, outcomes = walked(NETWORK, *STEPS, bits=4)
    assert [skip.where for skip in outcomes["compensate-rounding"].skips] == []
    monkeypatch.setattr(visit, "MOST_INPUTS", 20)
    *_, outcomes = walked(NETWORK, *STEPS, bits=4)
    (skip,) = outcomes["compensate-rounding"].skips
    assert skip.why == "it has 27 inputs, more than 20: rounded to nearest"


def test_memory_that_runs_out_leaves_fewer_samples(monkeypatch):
    monkeypatch.setattr("onnxq.walk.BUDGET", 1 << 20)
    *_, outcomes = walked(NETWORK, *STEPS, data=samples(NETWORK, 256), bits=4)
    assert "which is what the memory allows" in outcomes["compensate-rounding"].remarks[0].what
    assert len(outcomes["correct-bias"].edits) == 4


def test_values_that_are_not_finite_leave_a_layer_alone():
    data = samples(NETWORK)
    data.arrays["x"][0, 0, 0, 0] = np.finfo(np.float32).max
    *_, outcomes = walked(NETWORK, *STEPS, data=data, bits=4)
    assert outcomes["compensate-rounding"].skips
