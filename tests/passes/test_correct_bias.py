"""Means, and variances, are those of the float model, in what is deployed."""

import numpy as np
import pytest

from onnxq.errors import UsageError
from onnxq.passes.correct_bias import CorrectBias
from onnxq.passes.correct_variance import CorrectVariance
from onnxq.recipe import Recipe
from tests.graphs import build
from tests.passes.layerwise import LAYERS, results, samples, walked

NETWORK = build(
    "(float[N,3,9,9] x) => (float[] y) { a = Conv<pads=[1,1,1,1]>(x, w1, b1) b = Relu(a) "
    "c = Conv<pads=[1,1,1,1],group=8>(b, w2, b2) d = Relu(c) e = Conv(d, w3) f = Add(b, e) "
    "g = Relu(f) h = GlobalAveragePool(g) i = Flatten(h) y = Gemm<transB=1>(i, w4, b4) }",
    w1=(8, 3, 3, 3), b1=(8,), w2=(8, 1, 3, 3), b2=(8,), w3=(8, 8, 1, 1), w4=(4, 8), b4=(4,),
)  # fmt: skip


def shifts(proto, *steps, bits, **flags):
    """Largest mean shift of each layer in deviations of its channel, beyond half a bias step."""
    data = samples(proto)
    prepared, quantized, _ = walked(proto, *steps, data=data, bits=bits, **flags)
    nodes = {node.name: node for node in quantized.graph.nodes}
    found = {}
    for name, (y, y_q) in results(prepared, quantized, data).items():
        node = nodes[name]
        biases = node.inputs[2:]
        if node.op == "MatMul":
            biases = [t for r in node.outputs[0].outputs if r.op == "Add" for t in r.inputs]
        read = [t.inputs[0] for t in node.inputs[:2] if t.inputs]
        steps = [maker.inputs[1].values for maker in read if maker.op == "DequantizeLinear"]
        half = 0.5 * steps[0] * steps[1] if biases and len(steps) == 2 else 0.0
        excess = np.maximum(np.abs((y_q - y).mean(0)) - half, 0.0)
        found[name] = float((excess / y.std(0)).max())
    return found


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bits", [8, 3])
def test_the_mean_of_every_channel_is_restored(kind, bits):
    text, weights = LAYERS[kind]
    before = shifts(build(text, **weights), bits=bits)
    after = shifts(build(text, **weights), CorrectBias(), bits=bits)
    (name,) = before
    assert after[name] < 1e-4 < 1e-3 < before[name]


@pytest.mark.parametrize("bits", [8, 4])
def test_behind_layers_that_are_corrected_already(bits):
    before, after = shifts(NETWORK, bits=bits), shifts(NETWORK, CorrectBias(), bits=bits)
    assert len(after) == 4
    assert max(after.values()) < 1e-4
    assert min(before.values()) > 1e-4


def test_a_float_model_with_integer_weights_is_corrected_too():
    after = shifts(NETWORK, CorrectBias(), bits=3, act_bits="float")
    assert max(after.values()) < 1e-4


def test_the_report_says_what_share_of_the_error_it_was():
    *_, outcomes = walked(NETWORK, CorrectBias(), bits=3)
    texts = [edit.what for edit in outcomes["correct-bias"].edits]
    assert len(texts) == 4
    assert all("of the error was a shift of means" in text for text in texts)


def test_a_bias_that_is_no_constant_is_left_alone():
    proto = build(
        "(float[N,12] x) => (float[] y) { b = ReduceMean<axes=[0]>(x) y = Gemm(x, w, b) }",
        w=(12, 12),
    )
    for step in (CorrectBias(), CorrectVariance()):
        *_, outcomes = walked(proto, step, bits=4, act_bits="float")
        (skip,) = outcomes[step.name].skips
        assert skip.why == "its bias is not one constant per output channel"


def test_variances_are_restored():
    data = samples(NETWORK)
    steps = (CorrectVariance(), CorrectBias())
    prepared, plain, _ = walked(NETWORK, bits=3, data=data)
    _, quantized, outcomes = walked(NETWORK, *steps, bits=3, data=data)

    def off(model):
        found = results(prepared, model, data).values()
        return [float(np.abs(y_q.std(0) / y.std(0) - 1).max()) for y, y_q in found]

    assert len(outcomes["correct-variance"].edits) == 4
    assert max(off(quantized)) < 5e-3 < 0.1 < max(off(plain))


def test_one_scale_for_a_layer_holds_no_variances():
    *_, outcomes = walked(NETWORK, CorrectVariance(), bits=4, per_channel=False)
    assert len(outcomes["correct-variance"].skips) == 4


def test_compensation_without_a_correction_behind_it_is_refused():
    names = ("quantize-weights", "correct-bias", "compensate-rounding", "insert-qdq")
    with pytest.raises(UsageError, match="leaves the means to correct-bias, which has to follow"):
        Recipe.from_dict({"pass": [{"name": name} for name in names]})


def test_a_deviation_is_doubled_at_most():
    *_, outcomes = walked(NETWORK, CorrectVariance(), bits=2)
    factors = [float(edit.what.split()[-1]) for edit in outcomes["correct-variance"].edits]
    assert max(factors) == 2.0
