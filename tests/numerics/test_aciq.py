"""The clips are those of the authors' tables and of numeric integration."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.numerics import aciq

PRIORS = {
    "laplace": (aciq.laplace, lambda x: np.exp(-np.abs(x)) / 2),
    "gauss": (aciq.gauss, lambda x: np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)),
}
# The clips of 2 to 8 bits in the authors' code.
AUTHORS = {
    "laplace": [2.831, 3.897, 5.029, 6.205, 7.413, 8.646, 9.897],
    "gauss": [1.711, 2.152, 2.559, 2.936, 3.287, 3.615, 3.924],
}
# SQNR in dB of the best symmetric grid of 2 to 5 bits, for a source of each density.
DECIBELS = {"laplace": [5.8, 10.8, 15.6, 20.4], "gauss": [7.2, 13.3, 18.9, 24.3]}
# Densities vanish at its end; the integrands are continuous, so that trapezoids converge.
X = np.linspace(0, 45, 200_001)

each_prior = pytest.mark.parametrize("name", PRIORS)


def integral(y: np.ndarray) -> float:
    return float(np.sum((y[1:] + y[:-1]) / 2) * (X[1] - X[0]))


def authors_error(density: Callable, a: float, bits: int) -> float:
    """Of clipping to [-a, a] by integration, and of uniform noise in steps of 2 a / 2^bits."""
    beyond = np.maximum(X - a, 0) ** 2
    return 2 * integral(density(X) * beyond) + (2 * a / 2**bits) ** 2 / 12


def grid_error(density: Callable, a: float, bits: int) -> float:
    """Of rounding to a symmetric narrow grid that ends at a, by integration."""
    largest = 2 ** (bits - 1) - 1
    step = a / largest
    rounded = step * np.minimum(np.rint(X / step), largest)
    return 2 * integral(density(X) * (X - rounded) ** 2)


@each_prior
def test_the_authors_constants(name: str) -> None:
    found = [aciq.constant(PRIORS[name][0], bits, False) for bits in range(2, 9)]
    np.testing.assert_allclose(found, AUTHORS[name], atol=1e-3)


@pytest.mark.parametrize("bits", range(2, 10))
def test_the_laplace_constant_solves_its_equation(bits: int) -> None:
    a = aciq.constant(aciq.laplace, bits, False)
    assert a * math.exp(a) == pytest.approx(3 * 4**bits, rel=1e-4)


@each_prior
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize(
    ("exact", "loss", "error"),
    [(False, aciq.authors_loss, authors_error), (True, aciq.exact_loss, grid_error)],
    ids=["authors", "exact"],
)
def test_losses_are_integrals_and_the_constants_their_minima(
    name: str, bits: int, exact: bool, loss: Callable, error: Callable
) -> None:
    prior, density = PRIORS[name]
    a = aciq.constant(prior, bits, exact)
    for clip in (0.5, a, 8.0):
        assert loss(clip, prior, bits) == pytest.approx(error(density, clip, bits), rel=1e-4)
    # Coarse over all clips, since the minimum might be another; fine around it.
    tried = [*np.arange(0.25, 16, 0.25), *(a + 0.01 * np.arange(-5, 6))]
    best = min(tried, key=lambda clip: error(density, clip, bits))
    assert best == pytest.approx(a, abs=0.0101)


@each_prior
def test_the_exact_grid_reaches_the_known_sqnr(name: str) -> None:
    prior = PRIORS[name][0]
    for bits, decibels in enumerate(DECIBELS[name], start=2):
        loss = aciq.exact_loss(aciq.constant(prior, bits, True), prior, bits)
        sqnr = 10 * math.log10(2 * prior(0.0)[2] / loss)
        assert sqnr == pytest.approx(decibels, abs=0.06)


@given(
    hnp.arrays(np.float64, 30, elements=st.floats(-3, 3).filter(lambda x: abs(x) > 0.01)),
    st.integers(2, 8),
    st.booleans(),
)
def test_the_likelier_density_is_chosen(x: np.ndarray, bits: int, exact: bool) -> None:
    b, sd = np.abs(x).mean(), np.sqrt((x**2).mean())
    laplace = np.log(np.exp(-np.abs(x) / b) / (2 * b)).sum()
    gauss = np.log(np.exp(-((x / sd) ** 2) / 2) / (sd * math.sqrt(2 * math.pi))).sum()
    if abs(laplace - gauss) > 1e-9:
        prior, scale = (aciq.laplace, b) if laplace > gauss else (aciq.gauss, sd)
        expected = aciq.constant(prior, bits, exact) * scale
        assert aciq.clip(b, sd, bits, exact) == pytest.approx(expected, rel=1e-12)


def test_each_channel_has_its_own_density() -> None:
    clips = aciq.clip(np.array([0.707, 0.798, 0.0]), np.array([1.0, 1.0, 0.0]), 4, True)
    expected = [
        0.707 * aciq.constant(aciq.laplace, 4, True), aciq.constant(aciq.gauss, 4, True), 0,
    ]  # fmt: skip
    np.testing.assert_allclose(clips, expected)
