"""Clipped normal variables against integrals and textbook values; sums against a convolution."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.numerics import gaussian

Z = np.linspace(-12.0, 12.0, 200_001)
STEP = Z[1] - Z[0]
WEIGHT = np.exp(-0.5 * Z**2) / math.sqrt(2.0 * math.pi) * STEP

numbers = st.floats(-5, 5)
ends = st.one_of(numbers, st.sampled_from([-math.inf, math.inf]))


def integrated(mean, std, lo, hi):
    """Moments of the clipped variable by the trapezoidal rule."""
    y = np.clip(mean + std * Z, lo, hi)
    middle = float(y @ WEIGHT)
    return middle, math.sqrt(float((y - middle) ** 2 @ WEIGHT))


@given(numbers, st.floats(0.01, 5), ends, ends)
def test_clipping_has_the_moments_that_integration_finds(mean, std, one, other):
    lo, hi = sorted((one, other))
    if lo == math.inf or hi == -math.inf:
        return
    found = gaussian.clip(*np.array([[mean], [std]]), np.array(lo), np.array(hi))
    expected = integrated(mean, std, lo, hi)
    np.testing.assert_allclose(np.ravel(found), expected, atol=1e-7)


def test_a_relu_of_standard_normal_channels():
    mean, std = gaussian.clip(np.zeros(1), np.ones(1), np.array(0.0), np.array(math.inf))
    np.testing.assert_allclose(mean, 1 / math.sqrt(2 * math.pi), rtol=1e-15)
    np.testing.assert_allclose(std**2, 0.5 - 0.5 / math.pi, rtol=1e-14)


def test_without_ends_nothing_changes():
    mean, std = np.array([-3.0, 0.0, 2e5]), np.array([0.5, 1.0, 1e-3])
    found = gaussian.clip(mean, std, np.array(-math.inf), np.array(math.inf))
    np.testing.assert_allclose(found, (mean, std), rtol=1e-14)


def test_every_channel_may_have_ends_of_its_own():
    mean, std = np.array([0.0, 1.0, 2.0]), np.array([1.0, 2.0, 0.5])
    lo, hi = np.array([0.0, -1.0, 1.0]), np.array([6.0, 1.5, 2.5])
    found = np.stack(gaussian.clip(mean, std, lo, hi))
    expected = [integrated(*args) for args in zip(mean, std, lo, hi, strict=True)]
    np.testing.assert_allclose(found.T, expected, atol=1e-9)


@pytest.mark.parametrize(("mean", "expected"), [(-2.0, 0.0), (0.0, 0.0), (3.0, 3.0), (9.0, 6.0)])
def test_a_constant_is_clipped_as_such(mean, expected):
    found = gaussian.clip(np.array([mean]), np.zeros(1), np.array(0.0), np.array(6.0))
    np.testing.assert_allclose(np.ravel(found), [expected, 0.0], atol=1e-150)


@pytest.mark.parametrize("z", [10.0, 20.0, 30.0])
def test_what_rarely_passes_a_relu_keeps_its_digits(z):
    # The asymptotic series of E[relu(x - z)] = phi(z) - z (1 - Phi(z)).
    density = math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    series = density / z**2 * (1 - 3 / z**2 + 15 / z**4 - 105 / z**6 + 945 / z**8)
    mean, _ = gaussian.clip(np.array([-z]), np.ones(1), np.array(0.0), np.array(math.inf))
    np.testing.assert_allclose(mean, series, rtol=20_000 / z**10 + 1e-9)


def test_a_deviation_that_is_not_known_stays_unknown():
    found = gaussian.clip(np.ones(1), np.full(1, np.nan), np.array(0.0), np.array(math.inf))
    assert np.isnan(found).all()


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_weighted_sums_are_those_of_each_output_channel(groups, outputs, inputs, seed):
    rng = np.random.default_rng(seed)
    w, x = rng.standard_normal((groups, outputs, inputs, 4)), rng.standard_normal(groups * inputs)
    found = gaussian.weighted(w, x)
    for channel in range(groups * outputs):
        group, row = divmod(channel, outputs)
        expected = sum(
            w[group, row, i, tap] * x[group * inputs + i] for i in range(inputs) for tap in range(4)
        )
        assert found[channel] == pytest.approx(expected, abs=1e-12)
