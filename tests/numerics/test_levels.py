"""Level sets against the tables of their papers and against brute force."""

import itertools
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.numerics import affine, levels
from onnxq.numerics.metrics import Fidelity
from onnxq.spec import weight_spec

# Quantiles of sources of unit variance, which stand for them better than random samples.
QUANTILES = (np.arange(100_000) + 0.5) / 100_000
SOURCES = {
    "gauss": np.array([NormalDist().inv_cdf(q) for q in QUANTILES]),
    "laplace": np.sign(QUANTILES - 0.5) * -np.log(1 - 2 * np.abs(QUANTILES - 0.5)) / np.sqrt(2),
}

# SQNR in dB at the best clip for a source of unit variance, and that clip in standard deviations.
PUBLISHED = [
    ("pot", 3, "gauss", 13.23, 2.05),
    ("post", 3, "gauss", 11.65, 1.75),
    ("apot", 3, "gauss", 13.23, 2.05),
    ("pot", 3, "laplace", 11.53, 2.75),
    ("post", 3, "laplace", 9.16, 2.10),
    ("apot", 3, "laplace", 11.53, 2.75),
    ("pot", 4, "gauss", 14.23, 4.20),
    ("post", 4, "gauss", 18.87, 2.70),
    ("apot", 4, "gauss", 19.17, 2.65),
    ("ipot", 4, "gauss", 11.7, None),
    ("pot", 4, "laplace", 14.18, 5.65),
    ("post", 4, "laplace", 16.56, 3.75),
    ("apot", 4, "laplace", 16.97, 3.85),
    ("post", 5, "gauss", 20.05, None),
    ("apot", 5, "gauss", 22.21, 3.35),
]


def sqnr(w, weight):
    fidelity = Fidelity()
    fidelity.update(w, affine.values(weight).astype(np.float64))
    return fidelity.sqnr


@pytest.mark.parametrize(("name", "bits", "source", "expected", "clip"), PUBLISHED)
def test_the_tuned_clip_reaches_the_published_sqnr(name, bits, source, expected, clip):
    w = SOURCES[source]
    weight = levels.quantize(w, name, weight_spec(bits, False), None, None, integer=False)
    assert sqnr(w, weight) == pytest.approx(expected, abs=0.06)
    # Where levels crowd at zero the optimum is flat, and anything near it as good.
    if clip is not None and (name, bits) != ("pot", 4):
        assert float(weight.params.scale) == pytest.approx(clip, abs=0.1)


UNEVEN = [
    (name, bits)
    for name in ("pot", "ipot", "apot", "post")
    for bits in range(levels.WIDTHS[name][0], levels.WIDTHS[name][1] + 1)
]


@pytest.mark.parametrize(("name", "bits"), UNEVEN)
def test_a_set_is_symmetric_ascending_and_fits_its_bits(name, bits):
    found = levels.SETS[name](bits)
    np.testing.assert_array_equal(found, -found[::-1])
    assert (np.diff(found) > 0).all()
    assert (found[0], found[-1], 0.0 in found) == (-1, 1, True)
    assert found.size == 2**bits - 1
    merged = 6 if (name, bits) == ("post", 5) else 0
    assert np.unique(levels.integer_book(found)[0]).size == found.size - merged


def test_levels_are_those_of_the_formulas():
    np.testing.assert_allclose(levels.pot(3)[4:], [0.25, 0.5, 1])
    np.testing.assert_allclose(levels.post(3)[4:], [0.5, 0.5**0.5, 1])
    np.testing.assert_allclose(levels.ipot(3)[4:], [0.5, 0.75, 1])
    np.testing.assert_allclose(levels.apot(4)[8:] * 10, [1, 2, 3, 4, 6, 8, 10])


@pytest.mark.parametrize(
    ("name", "bits", "worst"),
    [
        *[("pot", 4, 0), ("apot", 5, 0), ("ipot", 4, 0), ("post", 3, 3e-4)],
        *[("post", 4, 8e-3), ("post", 5, 8e-3), ("pot", 3, 0)],
    ],
)
def test_an_int8_grid_holds_the_levels(name, bits, worst):
    exact = levels.SETS[name](bits)
    book, unit = levels.integer_book(exact)
    assert book.dtype == np.int8
    assert np.abs(book * unit - exact).max() == levels.book_rounding(name, bits) <= worst
    errors = [np.sum((np.rint(m * exact) / m - exact) ** 2) for m in range(33, 65)]
    assert np.abs(book.astype(int)).max() <= 64
    assert np.sum((book * unit - exact) ** 2) == pytest.approx(min(errors), abs=1e-15)


@given(st.integers(0, 2**16), st.integers(1, 9))
def test_ternary_weights_are_the_optimum(seed, size):
    w = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    weight = levels.quantize(w, "ternary", weight_spec(2, False), None, None, integer=True)
    found = ((w - affine.values(weight)) ** 2).sum()
    best = (w**2).sum()
    for signs in itertools.product((-1, 0, 1), repeat=size):
        if any(signs):
            t = np.array(signs)
            best = min(best, ((w - max(t @ w / (t @ t), 0) * t) ** 2).sum())
    assert found == pytest.approx(best, rel=1e-4, abs=1e-6)


def test_binary_weights_are_signs_times_the_mean_magnitude():
    w = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    weight = levels.quantize(w, "binary", weight_spec(1), 0, None, integer=True)
    expected = np.sign(w) * np.abs(w).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(affine.values(weight), expected, rtol=1e-6)


@pytest.mark.parametrize("bits", range(2, 7))
@pytest.mark.parametrize("axis", [None, 0])
def test_products_of_clusters_fit_the_sums_of_old_processors(bits, axis):
    w = np.random.default_rng(bits).standard_t(4, (8, 200)).astype(np.float32)
    weight = levels.quantize(w, "kmeans", weight_spec(bits), axis, None, integer=True)
    # Of 64 levels, the nearest to zero fall together on so coarse a grid.
    assert np.abs(weight.book.astype(int)).max() > 32 and len(weight.book) >= min(2**bits, 40)
    assert 2 * 255 * np.abs(weight.book.astype(int)).max() < 2**15


def test_kmeans_finds_clusters_and_heeds_importance():
    x = np.concatenate([c + 0.01 * np.linspace(-1, 1, 50) for c in (-0.9, -0.2, 0.1, 0.8)])
    np.testing.assert_allclose(levels.kmeans(x, 2), [-0.9, -0.2, 0.1, 0.8], atol=1e-9)
    pair = np.array([0.0, 1.0])
    center = levels.kmeans(np.append(pair, -9.0), 1, np.array([1.0, 3.0, 1.0]))[-1]
    assert center == pytest.approx(0.75)


@pytest.mark.parametrize("bits", [2, 3])
def test_kmeans_is_near_the_best_clustering(bits):
    x = np.sort(np.random.default_rng(bits).standard_normal(24))
    centers = levels.kmeans(x / 4, bits) * 4
    found = ((x - centers[np.abs(x[:, None] - centers).argmin(axis=1)]) ** 2).sum()
    # Optimal one-dimensional clusters are runs: dynamic programming over their ends.
    cost = [[((x[i:j] - x[i:j].mean()) ** 2).sum() if j > i else 0.0 for j in range(25)]
            for i in range(25)]  # fmt: skip
    best = cost[0]
    for _ in range(2**bits - 1):
        best = [min(best[i] + cost[i][j] for i in range(j + 1)) for j in range(25)]
    assert best[24] - 1e-9 <= found <= 1.6 * best[24]


@pytest.mark.parametrize("shape", [(700, 11), (1, 7700), (7700, 1), (7, 11, 100)])
def test_kmeans_of_many_values_is_that_of_their_histogram(monkeypatch, shape):
    x = np.random.default_rng(0).standard_normal(shape)
    importance = np.exp(x)
    one_by_one = levels.kmeans(x, 3, importance)
    monkeypatch.setattr(levels, "POINTS", 2000)
    np.testing.assert_allclose(levels.kmeans(x, 3, importance), one_by_one, atol=0.02)
    np.testing.assert_array_equal(levels.kmeans(0 * x + 0.25, 3), [0.25])


@pytest.mark.parametrize("name", [*levels.SETS, "kmeans"])
def test_a_dead_channel_stays_dead(name):
    bits = max(levels.WIDTHS[name][0], min(4, levels.WIDTHS[name][1]))
    w = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)
    w[1] = 0
    weight = levels.quantize(w, name, weight_spec(bits), 0, None, integer=True)
    assert np.isfinite(weight.params.scale).all()
    assert np.abs(affine.values(weight)[1]).max() < 1e-15
