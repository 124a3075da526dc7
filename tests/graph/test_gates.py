"""Tensors that open gates for themselves: which are found, and what is known of the product."""

import numpy as np
import pytest

from onnxq.graph.gates import gates
from onnxq.graph.loading import from_proto
from tests.graphs import build

HEAD = "(float[N,3,9,9] x) => (float[] y)"
WEIGHTS = {
    "w": (4, 3, 3, 3), "v": (4, 4, 1, 1), "one": np.float32(1), "zero": np.float32(0),
    "three": np.float32(3), "six": np.float32(6), "sixth": np.float32(1 / 6),
    "half": np.float32(0.5), "many": np.float32([1, 2, 3]).reshape(3, 1, 1, 1)[:1, 0],
}  # fmt: skip
SWISH = "s = Sigmoid(a) h = Mul(a, s)"
FOUND = {
    "swish": (SWISH, lambda x: x / (1 + np.exp(-x))),
    "turned": ("s = Sigmoid(a) h = Mul(s, a)", lambda x: x / (1 + np.exp(-x))),
    "quick gelu": ("b = Mul(a, three) s = Sigmoid(b) h = Mul(a, s)",
                   lambda x: x / (1 + np.exp(-3 * x))),
    "hard swish": ("b = Mul(a, sixth) c = Add(half, b) s = Clip(c, zero, one) h = Mul(a, s)",
                   lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "times six": ("b = Add(a, three) s = Clip(b, zero, six) h = Mul(a, s)",
                  lambda x: x * np.clip(x + 3, 0, 6)),
    "a sum first": ("b = Add(a, one) c = Mul(b, three) s = Sigmoid(c) h = Mul(a, s)",
                    lambda x: x / (1 + np.exp(-3 * (x + 1)))),
}  # fmt: skip
NONE = {
    "of another tensor": "b = Conv(a, v) s = Sigmoid(b) h = Mul(a, s)",
    "read elsewhere": f"{SWISH} k = ReduceMax(a) z = Add(k, y)",
    "gate read elsewhere": f"{SWISH} k = ReduceMax(s) z = Add(k, y)",
    "a square": "h = Mul(a, a)",
    "open below": "b = Add(a, three) s = Clip(b, three, six) h = Mul(a, s)",
    "open above": "b = Add(a, three) s = Relu(b) h = Mul(a, s)",
    "another function": "b = Tanh(a) h = Mul(a, b)",
    "another between": "b = Tanh(a) s = Sigmoid(b) h = Mul(a, s)",
}


def found_in(nodes):
    proto = build(f"{HEAD} {{ a = Conv(x, w) {nodes} y = Conv(h, v) }}", **WEIGHTS)
    return list(gates(from_proto(proto)))


@pytest.mark.parametrize("name", FOUND)
def test_a_gate_is_what_the_graph_computes(name):
    nodes, function = FOUND[name]
    (gate,) = found_in(nodes)
    assert gate.data.name == "a"
    x = np.linspace(-9, 9, 1001)
    np.testing.assert_allclose(x * gate.opened(x), function(x), atol=1e-6)
    slopes = (function(x + 1e-6) - function(x - 1e-6)) / 2e-6
    ends = np.abs(np.diff(slopes, prepend=slopes[0], append=slopes[-1]))
    smooth = np.maximum(ends[1:], ends[:-1]) < 0.3  # a Clip has corners
    assert smooth.mean() > 0.99
    np.testing.assert_allclose(gate.derivative(x)[smooth], slopes[smooth], atol=1e-4)


@pytest.mark.parametrize("name", NONE)
def test_nothing_else_is_a_gate(name):
    assert found_in(NONE[name]) == []


def test_below_its_floor_a_product_stays():
    (gate,) = found_in(FOUND["hard swish"][0])
    lo, hi = np.array([-9.0, -1.0, -9.0]), np.array([5.0, 5.0, -4.0])
    np.testing.assert_allclose(gate.floors(lo, hi), [-3, -1, -9], atol=0.05)
    (gate,) = found_in(SWISH)
    (floor,) = gate.floors(np.array([-30.0]), np.array([4.0]))
    y = np.linspace(-30, floor) / (1 + np.exp(-np.linspace(-30, floor)))
    assert np.ptp(y) <= 4.3 / (4 * 255)
    assert -9 < floor < -7
