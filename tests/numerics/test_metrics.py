"""Measures of closeness are what their formulas say, however the data arrive."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.numerics.metrics import (
    Fidelity,
    histogram_ssim,
    kl_divergence,
    log_probabilities,
    noise_to_signal,
    ssim,
    wilson_interval,
)


def fidelity(*pairs: tuple[np.ndarray, np.ndarray]) -> Fidelity:
    found = Fidelity()
    for reference, x in pairs:
        found.update(reference, x)
    return found


def noisy(shape: tuple[int, ...], noise: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    reference = rng.standard_normal(shape).astype(np.float32)
    return reference, reference + np.float32(noise) * rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("noise", [1e-3, 0.1, 10.0])
def test_fidelity_is_its_formula_in_one_go_or_streamed(noise: float) -> None:
    reference, x = noisy((64, 7, 11), noise)
    r, q = reference.astype(np.float64).ravel(), x.astype(np.float64).ravel()
    sqnr = 10 * np.log10((r @ r) / ((r - q) @ (r - q)))
    cosine = (r @ q) / np.sqrt((r @ r) * (q @ q))
    once = fidelity((reference, x))
    streamed = fidelity(*((reference[i : i + 5], x[i : i + 5]) for i in range(0, 64, 5)))
    assert streamed.sqnr == pytest.approx(once.sqnr, rel=1e-6)
    assert streamed.cosine == pytest.approx(once.cosine, rel=1e-6)
    assert once.sqnr == pytest.approx(sqnr, abs=1e-3)
    assert once.cosine == pytest.approx(cosine, rel=1e-6)


def test_equal_arrays_have_no_noise() -> None:
    x, _ = noisy((10,), 0)
    assert fidelity((x, x)).sqnr == math.inf
    assert fidelity((x, x)).cosine == pytest.approx(1, rel=1e-12)


def test_silence() -> None:
    zeros, ones = np.zeros(3, np.float32), np.ones(3, np.float32)
    assert fidelity((zeros, zeros)).sqnr == math.inf
    assert fidelity((zeros, zeros)).cosine == 1
    assert fidelity((zeros, ones)).sqnr == -math.inf
    assert fidelity((zeros, ones)).cosine == fidelity((ones, zeros)).cosine == 0


@pytest.mark.parametrize(("factor", "decibels"), [(0.9, 20.0), (2.0, 0.0), (0.0, 0.0)])
def test_sqnr_of_a_wrong_factor(factor: float, decibels: float) -> None:
    x = np.arange(1, 9, dtype=np.float64)
    assert fidelity((x, factor * x)).sqnr == pytest.approx(decibels, abs=1e-9)


@pytest.mark.parametrize("unit", [1e-30, 1e-25, 1e30, 1e37])
def test_figures_do_not_depend_on_the_unit(unit: float) -> None:
    reference, x = noisy((64, 7), 0.1)
    found, scaled = (
        fidelity((reference, x)),
        fidelity((reference * np.float32(unit), x * np.float32(unit))),
    )
    assert scaled.sqnr == pytest.approx(found.sqnr, abs=1e-3)
    assert scaled.cosine == pytest.approx(found.cosine, rel=1e-6)


def test_what_is_infinite_is_infinitely_far_off_and_has_no_figure_as_a_reference() -> None:
    ones, infinite = np.ones(3, np.float32), np.array([1, np.inf, -np.inf], np.float32)
    assert fidelity((ones, infinite)).sqnr == -math.inf
    assert math.isnan(fidelity((infinite, ones)).sqnr)
    assert math.isnan(fidelity((infinite, infinite)).cosine)


logits = hnp.arrays(np.float32, (5, 4), elements=st.floats(-8, 8, width=32))


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z.astype(np.float64))
    return e / e.sum(axis=-1, keepdims=True)


@given(logits)
def test_log_probabilities_take_logits_and_probabilities(z: np.ndarray) -> None:
    p = softmax(z)
    np.testing.assert_allclose(log_probabilities(p), np.log(p), rtol=1e-12)
    # Rows that happen to be distributions are read as such.
    if not ((z >= 0).all() and np.allclose(z.sum(axis=-1), 1, atol=1e-3)):
        np.testing.assert_allclose(log_probabilities(z), np.log(p), rtol=1e-9, atol=1e-12)


@given(logits, logits)
def test_kl_divergence_is_its_formula(z: np.ndarray, other: np.ndarray) -> None:
    p, q = softmax(z), softmax(other)
    expected = (p * np.log(p / q)).sum(axis=-1)
    np.testing.assert_allclose(kl_divergence(p, q), expected, atol=1e-9)
    np.testing.assert_allclose(kl_divergence(p, p), 0, atol=1e-12)
    assert (kl_divergence(p, q) >= -1e-12).all()


def test_kl_divergence_survives_certainty() -> None:
    sure = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert np.isfinite(kl_divergence(sure, sure[::-1])).all()
    huge = np.array([[1e4, -1e4]], np.float32)
    np.testing.assert_allclose(kl_divergence(huge, huge), 0)


def test_a_class_that_is_ruled_out_counts_for_nothing() -> None:
    z, other = np.array([[1.0, 2.0, -np.inf]]), np.array([[2.0, 1.5, -np.inf]])
    np.testing.assert_allclose(kl_divergence(z, other), kl_divergence(z[:, :2], other[:, :2]))
    sure = np.array([[np.inf, 2.0, -np.inf]])
    np.testing.assert_allclose(kl_divergence(sure, sure), 0)


signals = hnp.arrays(np.int64, 16, elements=st.integers(0, 1000))


@given(signals)
def test_a_signal_is_wholly_similar_to_itself(a: np.ndarray) -> None:
    assert ssim(a, a) == pytest.approx(1, rel=1e-12)


@given(signals, signals)
def test_ssim_is_its_formula_symmetric_and_at_most_one(a: np.ndarray, b: np.ndarray) -> None:
    n, reach = len(a), max(*a, *b) - min(*a, *b)
    assert ssim(a, b) == ssim(b, a) <= 1 + 1e-12
    if reach:
        m_a, m_b = sum(a) / n, sum(b) / n
        v_a, v_b = sum((x - m_a) ** 2 for x in a) / n, sum((x - m_b) ** 2 for x in b) / n
        c_ab = sum((x - m_a) * (y - m_b) for x, y in zip(a, b, strict=True)) / n
        c_1, c_2 = (reach / 100) ** 2, (3 * reach / 100) ** 2
        expected = (2 * m_a * m_b + c_1) / (m_a**2 + m_b**2 + c_1)
        expected *= (2 * c_ab + c_2) / (v_a + v_b + c_2)
        assert ssim(a, b) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_sums_of_half_precision_do_not_overflow() -> None:
    x = np.full(4096, 100.0, np.float16)
    found = Fidelity()
    found.update(x, x + np.float16(1.0))
    assert found.sqnr == pytest.approx(40.0, abs=0.01)
    assert found.cosine == pytest.approx(1.0)


def test_signals_that_run_against_each_other_are_dissimilar() -> None:
    ramp = np.arange(100.0)
    assert ssim(ramp, ramp[::-1]) < -0.9
    assert ssim(ramp, 2 * ramp) < 0.9


@pytest.mark.parametrize("scale", [1.0, 0.25, 2.0**-100])
def test_histograms_of_weights_are_compared_over_the_range_of_the_reference(scale: float) -> None:
    w = scale * np.random.default_rng(0).laplace(size=(64, 64))
    assert histogram_ssim(w, w) == histogram_ssim(w, w[::-1]) == 1
    edges = np.abs(w).max() * np.arange(-128, 129) / 128
    counts = [np.histogram(x, edges)[0] for x in (w, w / 2)]
    assert histogram_ssim(w, w / 2) == ssim(*counts) < 0.9
    # What leaves the range leaves the histogram.
    assert histogram_ssim(w, 3 * w) < histogram_ssim(w, 1.1 * w) < 1


def test_weights_that_are_all_zero_are_similar() -> None:
    assert histogram_ssim(np.zeros(5), np.zeros(5)) == 1


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (9, 10, 0.5958, 0.9821),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (50, 100, 0.4038, 0.5962),
        (1, 1, 0.2065, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval(hits: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(hits, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10_000), st.data())
def test_wilson_interval_holds_the_rate(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    low, high = wilson_interval(hits, n)
    assert 0 <= low <= hits / n + 1e-12
    assert hits / n - 1e-12 <= high <= 1
    assert low < high


@pytest.mark.parametrize("runs", [8, 50])
def test_the_error_of_a_noise_is_how_far_it_varies_from_draw_to_draw(runs: int) -> None:
    """Noise grows with the signal, and both vary by half or so."""
    rng = np.random.default_rng(0)
    signal = rng.gamma(4.0, size=(runs, 4000))
    ratio, error = noise_to_signal(0.01 * signal * rng.gamma(4.0, size=signal.shape), signal)
    assert ratio.mean() == pytest.approx(0.04, rel=0.02)
    assert np.sqrt(np.mean(error**2)) == pytest.approx(ratio.std(), rel=0.1)


def test_a_noise_in_proportion_to_the_signal_is_certain() -> None:
    signal = np.array([[1.0], [2.0], [5.0]])
    ratio, error = noise_to_signal(0.25 * signal, signal)
    assert (ratio[0], error[0]) == (0.25, 0.0)


def test_a_single_run_tells_no_error_and_no_signal_no_ratio() -> None:
    ratio, error = noise_to_signal(np.array([[1.0, 1.0, 0.0]]), np.array([[4.0, 0.0, 0.0]]))
    assert (ratio[0], error[0]) == (0.25, 0.0)
    assert np.isinf(ratio[1]) and np.isnan(ratio[2])
