"""Outlier-aware quantization is equations (4) and (5)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.numerics import levels, oaq
from onnxq.numerics.affine import dequantize, fake_quantize, qparams, quantize
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


# -- the searched sigma ---------------------------------------------------------------------------

GRID = [round(1 + 0.05 * i, 2) for i in range(61)]


def bells(*shape: int) -> np.ndarray:
    """Weights of two scales, with the tails that trained ones have."""
    rng = np.random.default_rng(1)
    scales = np.linspace(0.02, 0.3, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return (scales * rng.standard_t(5, shape)).astype(np.float32)


def test_the_grid_is_1_to_4_in_steps_of_5_hundredths() -> None:
    np.testing.assert_allclose(oaq.SIGMAS, GRID, rtol=1e-15)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("axis", [None, 0])
def test_the_searched_sigma_is_the_best_of_the_grid(bits: int, axis: int | None) -> None:
    w = bells(6, 40, 3)
    spec = weight_spec(bits, axis is not None)
    others = None if axis is None else (1, 2)

    def error(sigma: float) -> np.ndarray:
        rounded = fake_quantize(w, qparams(*oaq.scaled_range(w, sigma, axis), spec, axis))
        return (np.abs(w - rounded).astype(np.float64) ** 2.4).sum(axis=others)

    errors = np.array([error(sigma) for sigma in GRID])
    found = oaq.sigma_mse(w, levels.uniform(bits), axis)
    np.testing.assert_allclose(found, np.array(GRID)[errors.argmin(axis=0)])
    assert (np.shape(found), found.dtype) == (() if axis is None else (6,), np.float64)


@pytest.mark.parametrize("name", ["pot", "apot", "post"])
def test_the_searched_sigma_is_that_of_the_levels(name: str) -> None:
    w = bells(4, 300).astype(np.float64)
    points = levels.SETS[name](4)
    m = np.abs(w).max()

    def error(sigma: float) -> float:
        normalized = np.clip(sigma * w / m, -1, 1)  # (4)
        distance = np.abs(normalized.ravel()[:, None] - points)
        rounded = points[distance.argmin(axis=1)].reshape(w.shape)
        return float((np.abs(w - m / sigma * rounded) ** 2.4).sum())  # (5)

    assert oaq.sigma_mse(w, points, None) == min(GRID, key=error)


def test_more_levels_saturate_less() -> None:
    w = np.random.default_rng(0).standard_normal(2000)
    found = [float(oaq.sigma_mse(w, levels.uniform(bits), None)) for bits in (2, 3, 4, 8)]
    assert found == sorted(set(found), reverse=True)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("axis", [None, 0])
def test_the_similar_sigma_is_the_last_before_the_histogram_changes(
    seed: int, axis: int | None
) -> None:
    w = np.random.default_rng(seed).standard_normal((8, 2000)).astype(np.float32)
    m = np.abs(w).max() if axis is None else np.abs(w).max(axis=1, keepdims=True)
    edges = np.linspace(-1, 1, 257)

    def similarity(sigma: float) -> float:
        h, g = (np.histogram(x, edges)[0] for x in (w / m, np.clip(sigma * w / m, -1, 1)))
        reach = max(h.max(), g.max()) - min(h.min(), g.min())
        c_1, c_2 = (0.01 * reach) ** 2, (0.03 * reach) ** 2
        means = (2 * h.mean() * g.mean() + c_1) / (h.mean() ** 2 + g.mean() ** 2 + c_1)
        return means * (2 * np.cov(h, g, ddof=0)[0, 1] + c_2) / (h.var() + g.var() + c_2)

    last = next(i for i, sigma in enumerate(GRID) if similarity(sigma) < 0.9613) - 1
    assert oaq.sigma_ssim(w, axis) == GRID[last] > 1


def test_a_layer_whose_histogram_never_changes_takes_the_largest_sigma() -> None:
    assert oaq.sigma_ssim(np.zeros((3, 4), np.float32), None) == 4.0


# -- the other readings ---------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [None, 0])
def test_outliers_are_drawn_in_and_all_else_stays(axis: int | None) -> None:
    w = bells(5, 400)
    compressed, scaled = oaq.compress(w, axis), oaq.scale(w, axis)
    moved = 0
    for row in range(5):
        t = 3 * np.std((w if axis is None else w[row]).astype(np.float64))
        for x, c, s in zip(w[row], compressed[row], scaled[row], strict=True):
            if abs(x) > t:
                moved += 1
                assert c == pytest.approx(np.sign(x) * (t + (abs(x) - t) / 2), rel=1e-6)
                assert s == x / 2
            else:
                assert c == s == x
    assert 0 < moved < w.size / 20
    assert (compressed.dtype, scaled.dtype) == (np.float32, np.float32)


@given(weights, axes)
def test_drawing_in_never_turns_or_lengthens(w: np.ndarray, axis: int | None) -> None:
    for transform in oaq.OUTLIERS.values():
        drawn_in = transform(w, axis)
        assert (np.abs(drawn_in) <= np.abs(w)).all()
        assert (drawn_in * w >= 0).all()
