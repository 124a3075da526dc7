"""What functions behind a layer cannot tell apart is cut off, and nothing else."""

import re

import numpy as np
import onnx
import pytest

from onnxq import pipeline
from onnxq.graph.loading import from_proto
from onnxq.passes.clip_plateaus import ClipPlateaus
from onnxq.runtime import Input
from onnxq.samples.calibration import Calibration
from onnxq.samples.preprocess import Preprocess
from onnxq.samples.sources import open_samples
from onnxq.spec import SAFE
from tests.graphs import build, feeds, quantize, run

NUMBERS = {
    "three": 3.0, "zero": 0.0, "six": 6.0, "root": 2**0.5, "one": 1.0, "half": 0.5, "far": 46.5,
}  # fmt: skip
LOW = {
    "hard swish": ("h = HardSwish(a)", -3, -2.9),
    "hard swish written out": (
        "t = Add(a, three) s = Clip(t, zero, six) p = Mul(a, s) h = Div(p, six)", -3, -2.9),
    "swish": ("s = Sigmoid(a) h = Mul(a, s)", -8, -5),
    "gelu": ("h = Gelu(a)", -4, -2),
    "gelu written out": (
        "d = Div(a, root) e = Erf(d) t = Add(e, one) p = Mul(a, t) h = Mul(p, half)", -4, -2),
    "mish": ("h = Mish(a)", -9, -4),
    "elu": ("h = Elu(a)", -9, -3),
}  # fmt: skip
BOTH = {
    "sigmoid": ("h = Sigmoid(a)", 5, 9),
    "hard sigmoid": ("h = HardSigmoid<alpha=0.2>(a)", 2.4, 2.6),
    "tanh": ("h = Tanh(a)", 2, 4.5),
}
NOWHERE = {
    "residual": "s = HardSwish(a) h = Add(a, s)",
    "layer": "s = HardSwish(a) k = Conv<pads=[1,1,1,1]>(a, v) h = Add(s, k)",
    "leak": "h = LeakyRelu<alpha=0.3>(a)",
    "too little": "t = Add(a, far) s = Clip(t, zero, six) h = Mul(a, s)",
    "several": "m = GlobalAveragePool(a) h = Mul(a, m)",
    "nothing": "h = Mul(a, zero)",
    "softmax": "h = Softmax<axis=1>(a)",
}


def net(nodes, result="y", opset=22):
    """A layer whose results reach some ten to either side, a function, and another layer."""
    used = {k: np.float32(x) for k, x in NUMBERS.items() if re.search(rf"\b{k}\b", nodes)}
    weights = {"w": (4, 3, 3, 3), "v": (4, 4, 3, 3)}
    text = (
        f"(float[N,3,9,9] x) => (float[] {result}) "
        f"{{ a = Conv(x, w) {nodes} y = Conv<pads=[1,1,1,1]>(h, v) }}"
    )
    proto = build(text, opset=opset, **weights, **used)
    rng = np.random.default_rng(7)
    weight = (12 / 27**0.5 * rng.standard_normal((4, 3, 3, 3))).astype(np.float32)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w"))
    return proto


def clipped(proto):
    """What the pass did, and the ends of its Clips."""
    model = from_proto(proto)
    inputs = [Input("x", np.dtype(np.float32), (None, 3, 9, 9))]
    samples = open_samples([feeds(proto, seed) for seed in range(4)], inputs, Preprocess())
    outcomes = pipeline.run(model, (ClipPlateaus(),), Calibration(samples, Preprocess()))
    clips = [n for n in model.graph.nodes if n.op == "Clip" and n.outputs[0].name == "a_clipped"]
    return outcomes["clip-plateaus"], [
        None if t.is_empty() else float(t.values) for n in clips for t in n.inputs[1:]
    ]


@pytest.mark.parametrize(("nodes", "least", "most"), LOW.values(), ids=LOW)
def test_what_is_lost_below_is_cut_off(nodes, least, most):
    outcome, (low, high) = clipped(net(nodes))
    assert least <= low <= most
    assert high is None
    (edit,) = outcome.edits
    assert edit.where == "a"


@pytest.mark.parametrize(("nodes", "least", "most"), BOTH.values(), ids=BOTH)
def test_what_is_lost_on_both_sides_is_cut_off(nodes, least, most):
    _, (low, high) = clipped(net(nodes))
    assert least <= -low <= most
    assert least <= high <= most


def test_the_widest_of_several_functions_decides():
    _, (low, high) = clipped(
        net("s = Sigmoid(a) k = Conv<pads=[1,1,1,1]>(s, v) t = HardSwish(a) h = Add(k, t)")
    )
    assert -9 <= low <= -5
    assert high is None


def test_a_function_that_never_moves_has_no_say():
    _, (low, high) = clipped(
        net("s = Clip(a, far) k = Conv<pads=[1,1,1,1]>(s, v) t = HardSwish(a) h = Add(k, t)")
    )
    assert -3.1 < low <= -2.9
    assert high is None


@pytest.mark.parametrize("nodes", NOWHERE.values(), ids=NOWHERE)
def test_what_something_still_reads_stays(nodes):
    outcome, ends = clipped(net(nodes))
    assert not outcome.edits
    assert not ends


@pytest.mark.parametrize(
    "nodes",
    ["s = Sigmoid(a) h = Log(s)", "s = Softplus(a) h = Reciprocal(s)",
     "s = Sigmoid(a) t = Sub(one, s) r = Div(s, t) h = Log(r)"],
)  # fmt: skip
def test_what_is_nearly_flat_stays_where_floats_read_it(nodes):
    _, ends = clipped(net(nodes))
    # Even in float32, onnxruntime's Sigmoid is flat from 18 on.
    assert all(abs(end) > 17 for end in ends)


def test_what_is_flat_is_cut_off_whatever_reads_it():
    for nodes, result in (
        ("s = HardSwish(a) h = Softmax<axis=1>(s)", "y"),
        ("h = HardSwish(a)", "y, float[] h"),
    ):
        _, (low, high) = clipped(net(nodes, result))
        assert -3.1 < low <= -3
        assert high is None


def test_infinite_results_show_no_plateau():
    nodes = "s = Div(a, zero) k = Conv<pads=[1,1,1,1]>(s, v) t = Sigmoid(a) h = Add(k, t)"
    _, ends = clipped(net(nodes))
    assert not ends


def test_an_output_of_the_model_stays():
    outcome, _ = clipped(net("h = HardSwish(a)", "y, float[] a"))
    assert not outcome.edits


def test_what_a_body_reads_stays():
    nodes = (
        "m = ReduceMax<keepdims=0>(x) c = Greater(m, zero) s = HardSwish(a) k = If(c) "
        "<then_branch = t () => (float[] u) { u = Relu(a) }, "
        "else_branch = e () => (float[] z) { z = Abs(x) }> h = Add(s, s)"
    )
    outcome, _ = clipped(net(nodes))
    assert not outcome.edits


@pytest.mark.parametrize("nodes", [LOW[k][0] for k in ("hard swish", "swish", "gelu")])
def test_the_grid_of_the_layer_ends_there_and_the_error_falls(nodes, tmp_path, monkeypatch):
    proto = net(nodes)
    for tensor in proto.graph.initializer[:2]:  # of weights that lose nothing, so that grids show
        w = onnx.numpy_helper.to_array(tensor)
        step = np.abs(w).max(axis=(1, 2, 3), keepdims=True) / SAFE
        rounded = (np.rint(w / step) * step).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(rounded, tensor.name))
    given = feeds(proto, 9)
    right = run(proto, given)["y"]
    errors = []
    for gain in (0.02, 1.0):  # with the latter, nothing is cut off
        monkeypatch.setattr("onnxq.passes.clip_plateaus.LEAST_GAIN", gain)
        report, file = quantize(proto, tmp_path)
        # One may cut off the gate of a HardSwish.
        assert report.kernels.operators["Clip"] <= nodes.count("HardSwish")
        errors.append(float(np.square(run(onnx.load(file), given)["y"] - right).sum()))
    assert errors[0] < 0.8 * errors[1]
