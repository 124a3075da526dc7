"""Integer biases fit int32 and lie on the accumulator's grid."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.numerics.affine import TINY
from onnxq.numerics.bias import exact_codes, quantize_bias, safe_weight_scale

INT32_MAX = 2**31 - 1

biases = hnp.arrays(np.float32, 4, elements=st.floats(-1e6, 1e6, width=32))
scales = st.floats(float(TINY), 2.0**20, width=32)
weight_scales = hnp.arrays(np.float32, st.sampled_from([(), (4,)]), elements=scales)
input_scales = st.floats(2.0**-40, 2.0**40, width=32)


@given(biases, weight_scales, input_scales)
def test_a_safe_scale_makes_the_bias_fit(
    bias: np.ndarray, scale: np.ndarray, input_scale: float
) -> None:
    safe = safe_weight_scale(scale, bias, input_scale)
    assert (safe.shape, safe.dtype) == (scale.shape, np.float32)
    assert (safe >= scale).all()
    product = np.float32(input_scale) * safe
    assert (product >= TINY).all()
    assert (np.abs(np.rint(bias.astype(np.float64) / product)) <= INT32_MAX).all()


@given(biases, weight_scales, input_scales)
def test_a_quantized_bias_is_right_to_half_a_step(
    bias: np.ndarray, scale: np.ndarray, input_scale: float
) -> None:
    codes, step = quantize_bias(bias, safe_weight_scale(scale, bias, input_scale), input_scale)
    assert (codes.dtype, step.dtype) == (np.int32, np.float32)
    exact = codes.astype(np.float64) * step
    assert (np.abs(exact - bias) <= step * 0.5 * (1 + 1e-6)).all()


def test_a_channel_that_fits_keeps_its_scale() -> None:
    scale = np.array([0.01, 1e-12, 0.02], np.float32)
    bias = np.array([1.0, 3.0, 0.0], np.float32)
    safe = safe_weight_scale(scale, bias, 0.1)
    np.testing.assert_array_equal(safe[[0, 2]], scale[[0, 2]])
    assert safe[1] == pytest.approx(3.0 / 2**30 / 0.1, rel=1e-6)


@given(
    hnp.arrays(np.float32, 8, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
)
def test_exact_codes_are_exact(bias: np.ndarray) -> None:
    codes, scale = exact_codes(bias)
    assert (codes.dtype, scale.dtype) == (np.int32, np.float32)
    assert (scale >= TINY).all()
    restored = codes.astype(np.float32) * scale
    large = (np.abs(bias) >= 2.0**-100) | (bias == 0)
    np.testing.assert_array_equal(restored[large], bias[large])
    np.testing.assert_allclose(restored, bias, rtol=0, atol=2.0**-125)
