"""Outlier-aware quantization is equations (4) and (5)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.numerics import oaq
from onnxq.numerics.affine import dequantize, qparams, quantize
from onnxq.spec import weight_spec

# No channel is so small that its scale would not be normal; see test_affine.py for those.
elements = st.floats(-100, 100, width=32).filter(lambda x: x == 0 or abs(x) > 1e-30)
weights = hnp.arrays(np.float32, (3, 2, 4), elements=elements)
axes = st.sampled_from([None, 0, 1, 2])
bit_widths = st.integers(2, 8)


@given(weights, axes, bit_widths)
def test_sigma_one_is_max_abs_quantization(w: np.ndarray, axis: int | None, bits: int) -> None:
    spec = weight_spec(bits, axis is not None)
    others = None if axis is None else tuple({0, 1, 2} - {axis})
    largest = np.abs(w).max(axis=others)
    expected = qparams(-largest, largest, spec, axis)
    params = qparams(*oaq.scaled_range(w, 1.0, axis), spec, axis)
    np.testing.assert_array_equal(params.scale, expected.scale)
    np.testing.assert_array_equal(quantize(w, params), quantize(w, expected))


@given(weights, axes, bit_widths, st.floats(1, 4))
def test_codes_and_values_are_those_of_the_equations(
    w: np.ndarray, axis: int | None, bits: int, sigma: float
) -> None:
    spec = weight_spec(bits, axis is not None)
    params = qparams(*oaq.scaled_range(w, sigma, axis), spec, axis)
    codes = quantize(w, params)

    others = None if axis is None else tuple({0, 1, 2} - {axis})
    m = np.abs(w.astype(np.float64)).max(axis=others, keepdims=True)
    m[m == 0] = 1
    levels = 2 ** (bits - 1) - 1
    normalized = np.clip(sigma * w / m, -1, 1)  # (4)
    # A code is a rounding of W_n L; on a tie, up to float32, either neighbour is.
    assert (np.abs(codes - normalized * levels) <= 0.5 + 1e-4).all()
    values = m / sigma * (codes / levels)  # (5)
    np.testing.assert_allclose(dequantize(codes, params), values, rtol=1e-6)


@given(weights, axes, st.floats(1, 10))
def test_the_range_never_exceeds_the_largest_weight(
    w: np.ndarray, axis: int | None, sigma: float
) -> None:
    lo, hi = oaq.scaled_range(w, sigma, axis)
    np.testing.assert_array_equal(lo, -hi)
    assert (hi >= 0).all()
    assert (hi <= oaq.scaled_range(w, 1.0, axis)[1]).all()


def test_sigma_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sigma must be at least 1, not 0\.99"):
        oaq.scaled_range(np.ones(3, np.float32), 0.99, None)


@pytest.mark.parametrize("per_channel", [True, False])
def test_fewer_bits_saturate_more(per_channel: bool) -> None:
    factors = [oaq.sigma(weight_spec(bits, per_channel)) for bits in range(2, 9)]
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] == 1.0


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_saturating_outliers_beats_max_abs_on_bell_shaped_weights(bits: int) -> None:
    w = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    spec = weight_spec(bits, per_channel=False)

    def error(sigma: float) -> float:
        params = qparams(*oaq.scaled_range(w, sigma, None), spec)
        return float(((w - dequantize(quantize(w, params), params)) ** 2).mean())

    assert error(oaq.sigma(spec)) < 0.6 * error(1.0)
