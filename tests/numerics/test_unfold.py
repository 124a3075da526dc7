"""Patches times weights are what onnxruntime's Conv computes, whatever its attributes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.graph.layers import layers
from onnxq.graph.loading import from_proto
from onnxq.numerics.unfold import count_places, patches
from tests.graphs import build, run


def convolved(proto, x):
    """The output from patches at every place, and onnxruntime's, both (places, c_out)."""
    (layer,) = layers(from_proto(proto))
    window = layer.window
    rows = patches(x, window, np.arange(count_places(x, window)))
    y = rows @ layer.rows(layer.weight).transpose(0, 2, 1)
    wanted = run(proto, {"x": x}, optimize=False)["y"]
    return np.concatenate(list(y), axis=1), np.moveaxis(wanted, 1, -1).reshape(-1, layer.c_out)


@given(data=st.data())
def test_of_a_convolution_in_two_dimensions(data):
    def pair(low, high):
        return [data.draw(st.integers(low, high)) for _ in range(2)]

    groups = data.draw(st.sampled_from([1, 2, 4]))
    kernel, strides, dilations = pair(1, 3), pair(1, 3), pair(1, 2)
    pads = pair(0, 2) + pair(0, 2)
    text = f"group={groups},strides={strides},dilations={dilations},pads={pads}"
    proto = build(
        f"(float[2,4,9,8] x) => (float[] y) {{ y = Conv<{text}>(x, w) }}",
        w=(8, 4 // groups, *kernel),
    )
    x = np.random.default_rng(0).standard_normal((2, 4, 9, 8)).astype(np.float32)
    found, wanted = convolved(proto, x)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_of_a_convolution_that_pads_by_itself(auto_pad, stride, kernel):
    proto = build(
        "(float[2,3,8,7] x) => (float[] y) "
        f'{{ y = Conv<auto_pad="{auto_pad}",strides=[{stride},1]>(x, w) }}',
        w=(5, 3, kernel, 3),
    )
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 7)).astype(np.float32)
    found, wanted = convolved(proto, x)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(9,), (5, 6, 4)])
def test_of_one_and_three_dimensions(size):
    axes = ",".join(map(str, size))
    proto = build(f"(float[2,3,{axes}] x) => (float[] y) {{ y = Conv(x, w) }}",
                  w=(4, 3, *[2] * len(size)))  # fmt: skip
    x = np.random.default_rng(0).standard_normal((2, 3, *size)).astype(np.float32)
    found, wanted = convolved(proto, x)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
