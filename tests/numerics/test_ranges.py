"""Every estimator finds the range that its definition names."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.numerics import ranges
from onnxq.numerics.affine import fake_quantize, qparams
from onnxq.numerics.metrics import Fidelity
from onnxq.numerics.observe import BINS, Histogram
from onnxq.spec import QuantSpec, activation_spec, weight_spec

SHRINK = [1 - 0.01 * i for i in range(80)]


def seen(x: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.update(x.astype(np.float32))
    return histogram


def squared_error(x: np.ndarray, lo: float, hi: float, spec: QuantSpec) -> float:
    params = qparams(np.asarray(lo), np.asarray(hi), spec)
    return float(((x - fake_quantize(x, params)).astype(np.float64) ** 2).sum())


def lopsided(n: int = 2000) -> np.ndarray:
    """A tail worth clipping below zero, a box worth keeping above."""
    rng = np.random.default_rng(0)
    low, high = -rng.exponential(0.5, n), rng.uniform(0, 3, n)
    return np.where(rng.random(n) < 0.5, low, high).astype(np.float32)


def skewed(n: int = 5000, seed: int = 0) -> np.ndarray:
    """A short exponential tail below zero and a long gamma tail above."""
    rng = np.random.default_rng(seed)
    low, high = -rng.exponential(0.2, n), rng.gamma(2.0, 1.0, n)
    return np.where(rng.random(n) < 0.5, low, high).astype(np.float32)


# -- weights --------------------------------------------------------------------------------------


@given(hnp.arrays(np.float32, (3, 4, 2), elements=st.floats(-10, 10, width=32)))
def test_weight_max_is_exact_and_holds_zero(w: np.ndarray) -> None:
    lo, hi = ranges.weight_max(w, weight_spec(8), 1)
    np.testing.assert_array_equal(lo, np.minimum(w.min(axis=(0, 2)), 0))
    np.testing.assert_array_equal(hi, np.maximum(w.max(axis=(0, 2)), 0))
    lo, hi = ranges.weight_max(w, weight_spec(8, per_channel=False), None)
    assert (lo, hi) == (min(w.min(), 0), max(w.max(), 0))


@pytest.mark.parametrize("bits", range(2, 9))
def test_weight_percentile_leaves_its_share_outside(bits: int) -> None:
    w = np.random.default_rng(bits).standard_normal((4, 20_000)).astype(np.float32)
    lo, hi = ranges.weight_percentile(w, weight_spec(bits), 0)
    np.testing.assert_array_equal(lo, -hi)
    inside = (np.abs(w) <= hi[:, None]).mean(axis=1)
    np.testing.assert_allclose(inside, ranges.INSIDE[bits], atol=1 / 20_000)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weight_mse_is_the_best_of_the_shrunken_ranges(bits: int) -> None:
    w = np.random.default_rng(bits).laplace(size=(5, 200)).astype(np.float32)
    lo, hi = ranges.weight_mse(w, weight_spec(bits), 0)
    qmax = weight_spec(bits).qmax
    for row, (a, b) in enumerate(zip(lo, hi, strict=True)):
        x = w[row].astype(np.float64)
        largest = np.abs(x).max()

        def error(factor: float, x: np.ndarray = x, largest: float = largest) -> float:
            step = factor * largest / qmax
            grid = np.clip(np.rint(x / step), -qmax, qmax) * step
            return float((np.abs(x - grid) ** 2.4).sum())

        best = min(SHRINK, key=error)
        np.testing.assert_allclose([a, b], [best * x.min(), best * x.max()], rtol=1e-6)


# 200 000 evenly spaced quantiles: sources of unit scale without sampling noise.
PROBABILITIES = (np.arange(200_000) + 0.5) / 200_000
SOURCES = {
    "Gauss": np.array([NormalDist().inv_cdf(p) for p in PROBABILITIES]),
    "Laplace": -np.sign(PROBABILITIES - 0.5) * np.log1p(-2 * np.abs(PROBABILITIES - 0.5)),
}


@pytest.mark.parametrize(
    ("source", "bits", "decibels"),
    [("Gauss", 3, 13.29), ("Gauss", 4, 18.89), ("Laplace", 3, 10.83), ("Laplace", 4, 15.68)],
)
@pytest.mark.parametrize(("norm", "tolerance"), [(2.0, 0.06), (ranges.NORM, 0.35)])
def test_weight_mse_reaches_the_best_sqnr_of_a_uniform_grid(
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    bits: int,
    decibels: float,
    norm: float,
    tolerance: float,
) -> None:
    """SQNR measures the norm 2; the norm 2.4 pays for minding the tails."""
    monkeypatch.setattr(ranges, "NORM", norm)
    w = SOURCES[source].astype(np.float32)
    spec = weight_spec(bits, per_channel=False)
    fidelity = Fidelity()
    fidelity.update(w, fake_quantize(w, qparams(*ranges.weight_mse(w, spec, None), spec)))
    assert fidelity.sqnr == pytest.approx(decibels, abs=tolerance)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_weight_aciq_of_a_source_it_assumes_is_the_best_clip(source: str, bits: int) -> None:
    w = SOURCES[source].astype(np.float32)
    spec = weight_spec(bits, per_channel=False)
    lo, hi = ranges.weight_aciq(w, spec, None)
    assert lo == -hi
    best = min(squared_error(w, -a, a, spec) for a in np.arange(0.5, 9, 0.05))
    assert squared_error(w, float(lo), float(hi), spec) <= best * 1.001


def test_weight_aciq_takes_each_channel_for_itself() -> None:
    w = np.stack(list(SOURCES.values())).astype(np.float32)
    _, both = ranges.weight_aciq(w, weight_spec(4), 0)
    for row, end in zip(w, both, strict=True):
        assert end == ranges.weight_aciq(row, weight_spec(4), None)[1]
    # The best clips of a normal source in standard deviations, and of a Laplace one in mean |x|.
    np.testing.assert_allclose(both, [2.474, 4.820], rtol=2e-3)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weight_aciq_never_ends_beyond_the_weights(bits: int) -> None:
    w = np.array([[1, -1, 1, -1], [0.5, 0.1, 0.2, -0.1]], np.float32)
    _, hi = ranges.weight_aciq(w, weight_spec(bits), 0)
    assert (hi <= [1, 0.5]).all()


@pytest.mark.parametrize("bits", [3, 4])
def test_weight_entropy_is_the_least_divergence_of_the_shrunken_ranges(bits: int) -> None:
    """Against loops over the bins of a histogram."""
    w = np.random.default_rng(5).laplace(size=4000).astype(np.float32)
    histogram, spec = seen(w), weight_spec(bits, per_channel=False)
    counts = {
        float(np.float32(min(max(x, histogram.lo), histogram.hi))): int(n)
        for x, n in zip(histogram.centers, histogram.counts, strict=True)
        if n
    }
    width = 2 * histogram.radius / BINS
    counts = {x: 0 if 0 <= x < width else n for x, n in counts.items()}
    qmax = 2 ** (bits - 1) - 1

    def loss(factor: float) -> float:
        end = factor * float(np.abs(w).max())
        scale = np.float32(end / qmax)
        kept = [x for x in counts if -qmax * scale <= x <= qmax * scale]
        p = {x: float(counts[x]) for x in kept}
        p[kept[0]] += sum(n for x, n in counts.items() if x < kept[0])
        p[kept[-1]] += sum(n for x, n in counts.items() if x > kept[-1])
        levels: dict[int, list[float]] = {}
        for x in kept:
            levels.setdefault(round(float(np.float32(x) / scale)), []).append(x)
        q = {
            x: sum(counts[y] for y in group) / len(group)
            for group in levels.values()
            for x in group
        }
        sum_p, sum_q = sum(p.values()), sum(q.values())
        return sum(
            p[x] / sum_p * np.log(p[x] / sum_p / max(q[x] / sum_q, ranges.SMOOTHING))
            for x in kept
            if p[x]
        )

    factor = min(SHRINK, key=loss)
    lo, hi = ranges.weight_entropy(w, spec, None)
    np.testing.assert_allclose([lo, hi], [factor * w.min(), factor * w.max()], rtol=1e-6)
    assert factor < 1


def test_weight_entropy_takes_each_channel_for_itself() -> None:
    w = np.random.default_rng(5).laplace(size=(3, 4000)).astype(np.float32)
    ends = np.stack(ranges.weight_entropy(w, weight_spec(4), 0), axis=1)
    for row, end in zip(w, ends, strict=True):
        np.testing.assert_array_equal(end, ranges.weight_entropy(row, weight_spec(4), None))


# -- activations ----------------------------------------------------------------------------------


def test_activation_minmax_is_exact() -> None:
    x = skewed()
    lo, hi = ranges.activation_minmax(seen(x), activation_spec(8))
    assert (lo, hi) == (x.min(), x.max())


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shift", [0.0, 5.0], ids=["two tails", "one tail"])
def test_activation_percentile_is_the_quantile_to_a_bin(bits: int, shift: float) -> None:
    x = skewed(50_000) + np.float32(shift)
    histogram = seen(x)
    tails = 1 if shift else 2
    outside = (1 - ranges.INSIDE[bits]) / tails
    lo, hi = ranges.activation_percentile(histogram, activation_spec(bits))
    width = 2 * histogram.radius / BINS
    # The samples themselves, not values between them, lie in bins.
    assert abs(hi - np.quantile(x, 1 - outside, method="inverted_cdf")) <= width
    assert abs(lo - np.quantile(x, outside, method="inverted_cdf")) <= width


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_activation_mse_behind_a_relu_is_the_best_of_the_shrunken_ranges(bits: int) -> None:
    x, spec = np.maximum(skewed(), 0), activation_spec(bits)
    lo, hi = ranges.activation_mse(seen(x), spec)
    best = min(squared_error(x, 0, x.max() * f, spec) for f in SHRINK)
    # The histogram stands for the values to within half a bin.
    assert squared_error(x, lo, hi, spec) <= best * 1.002


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("sign", [1, -1])
def test_activation_mse_with_two_tails_is_near_the_best_pair_of_ends(bits: int, sign: int) -> None:
    x, spec = sign * lopsided(), activation_spec(bits)
    lo, hi = ranges.activation_mse(seen(x), spec)
    ends = ((x.min() * f, x.max() * g) for f in SHRINK[::3] for g in SHRINK[::3])
    best = min(squared_error(x, *pair, spec) for pair in ends)
    assert squared_error(x, lo, hi, spec) <= best * 1.01


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("zeros", [0, 200_000])
def test_activation_aciq_behind_a_relu_is_the_best_clip(source: str, bits: int, zeros: int) -> None:
    x = np.append(np.maximum(SOURCES[source], 0), np.zeros(zeros)).astype(np.float32)
    spec = activation_spec(bits)
    lo, hi = ranges.activation_aciq(seen(x), spec)
    assert lo == 0
    best = min(squared_error(x, 0, a, spec) for a in np.arange(0.5, 12, 0.1))
    assert squared_error(x, 0, float(hi), spec) <= best * 1.01


@pytest.mark.parametrize("source", SOURCES)
def test_activation_aciq_of_two_tails_is_the_authors_clip_about_the_mean(source: str) -> None:
    x = 3 * SOURCES[source] + 1
    clip = {"Gauss": 2.559, "Laplace": 5.029}[source]
    ends = ranges.activation_aciq(seen(x), activation_spec(4))
    np.testing.assert_allclose(ends, [1 - 3 * clip, 1 + 3 * clip], rtol=2e-3)


@example(np.full(20, 1.7e-37, np.float32), 2)  # float32 has no square of that
@given(hnp.arrays(np.float32, 20, elements=st.floats(-10, 10, width=32)), st.integers(2, 8))
def test_activation_aciq_stays_within_the_stream(x: np.ndarray, bits: int) -> None:
    lo, hi = ranges.activation_aciq(seen(x), activation_spec(bits))
    assert min(x.min(), 0) <= lo <= hi <= x.max()


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_activation_entropy_keeps_all_of_a_uniform_source(bits: int) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, 20_000)
    histogram = seen(x)
    assert ranges.activation_entropy(histogram, activation_spec(bits)) == (
        histogram.lo,
        histogram.hi,
    )


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_activation_entropy_clips_a_far_outlier(bits: int) -> None:
    x = np.append(np.abs(np.random.default_rng(0).standard_normal(20_000)), 12.0)
    _, hi = ranges.activation_entropy(seen(x), activation_spec(bits))
    assert 3.0 < hi < 5.0


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_activation_entropy_has_no_eye_for_zeros(bits: int) -> None:
    x = np.abs(np.random.default_rng(0).standard_normal(20_000)) + 0.01
    behind_a_relu = np.append(x, np.zeros(20_000))
    spec = activation_spec(bits)
    _, expected = ranges.activation_entropy(seen(x), spec)
    assert ranges.activation_entropy(seen(behind_a_relu), spec)[1] == expected < x.max()


@pytest.mark.parametrize("method", ranges.ACTIVATION)
def test_every_method_makes_do_with_zeros(method: str) -> None:
    lo, hi = ranges.ACTIVATION[method](seen(np.zeros(10)), activation_spec(8))
    assert (lo, hi) == (0, 0)


@pytest.mark.parametrize("method", ranges.WEIGHT)
def test_every_method_makes_do_with_a_dead_channel(method: str) -> None:
    w = np.array([[0, 0, 0], [1, -2, 1]], np.float32)
    lo, hi = ranges.WEIGHT[method](w, weight_spec(8), 0)
    assert (lo[0], hi[0]) == (0, 0)
    assert max(-lo[1], hi[1]) == pytest.approx(2, rel=0.01)
