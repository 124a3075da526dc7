"""Statistics depend on the values seen, never on how they were batched."""

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.numerics import observe
from onnxq.numerics.observe import (
    BINS,
    ChannelMoments,
    ChannelSample,
    Histogram,
    LayerInput,
    MinMax,
    RowSample,
)
from onnxq.numerics.unfold import Window

# Ordinary values and edges of bins beside the extremes of float32, subnormals included.
edges = st.sampled_from([sign * 2.0**e for sign in (-1, 1) for e in range(-3, 4)])
anything = st.floats(width=32, allow_nan=False, allow_infinity=False)
values = st.floats(-100, 100, width=32) | edges | anything
streams = st.lists(hnp.arrays(np.float32, st.integers(0, 12), elements=values), max_size=6)


def seen(*stream: np.ndarray) -> Histogram:
    histogram = Histogram()
    for x in stream:
        histogram.update(x)
    return histogram


def same(a: Histogram, b: Histogram) -> bool:
    return (a.lo, a.hi, a.count, a.nonfinite, a.radius) == (
        b.lo,
        b.hi,
        b.count,
        b.nonfinite,
        b.radius,
    ) and np.array_equal(a.counts, b.counts)


@given(streams, st.randoms())
@settings(deadline=None)
def test_batching_and_order_leave_no_trace(stream: list[np.ndarray], random: Random) -> None:
    together = seen(np.concatenate([*stream, np.empty(0, np.float32)]))
    assert same(seen(*stream), together)
    random.shuffle(stream)
    assert same(seen(*stream), together)


@given(streams, streams)
@settings(deadline=None)
def test_merging_is_updating(a: list[np.ndarray], b: list[np.ndarray]) -> None:
    left, right = seen(*a), seen(*b)
    before = right.counts.copy()
    left.merge(right)
    assert same(left, seen(*a, *b))
    np.testing.assert_array_equal(right.counts, before)


@given(hnp.arrays(np.float32, 50, elements=values))
def test_counts_are_those_of_direct_binning(x: np.ndarray) -> None:
    histogram = seen(x)
    if histogram.radius == 0.0:
        assert histogram.counts[BINS // 2] == x.size
        return
    counts, _ = np.histogram(x.astype(np.float64), bins=histogram.edges)
    np.testing.assert_array_equal(histogram.counts, counts)
    assert histogram.counts.sum() == histogram.count == x.size


@given(hnp.arrays(np.float32, st.integers(1, 20), elements=values))
def test_the_radius_is_the_next_power_of_two(x: np.ndarray) -> None:
    histogram = seen(x)
    largest = float(np.abs(x).max())
    assert histogram.radius == 0.0 if largest == 0 else largest < histogram.radius <= 2 * largest


@pytest.mark.parametrize("edge", [-4.0, 4.0])
def test_a_value_on_the_edge_doubles_the_radius(edge: float) -> None:
    inside, on_it = np.array([3], np.float32), np.array([edge], np.float32)
    assert seen(inside).radius == 4.0
    assert seen(inside, on_it).radius == 8.0
    assert same(seen(inside, on_it), seen(on_it, inside))


@given(
    hnp.arrays(
        np.float32,
        st.integers(1, 20),
        elements=st.sampled_from([np.nan, np.inf, -np.inf]) | values,
    )
)
def test_nan_and_infinity_are_counted_and_left_out(x: np.ndarray) -> None:
    finite = x[np.isfinite(x)]
    histogram = seen(x)
    assert histogram.nonfinite == x.size - finite.size
    assert histogram.count == histogram.counts.sum() == finite.size
    if finite.size:
        assert (histogram.lo, histogram.hi) == (finite.min(), finite.max())
    else:
        assert (histogram.lo, histogram.hi) == (np.inf, -np.inf)


@pytest.mark.parametrize("kind", [MinMax, Histogram, ChannelMoments])
def test_an_empty_array_changes_nothing(kind: type) -> None:
    touched, expected = kind(), kind()
    touched.update(np.empty((0, 3), np.float32))
    assert vars(touched).keys() == vars(expected).keys()
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(touched, name), value)


def test_minmax_merges() -> None:
    a, b = MinMax(), MinMax()
    a.update(np.array([-1.0, np.nan], np.float32))
    b.update(np.array([[3.0], [2.0]], np.float32))
    a.merge(b)
    assert (a.lo, a.hi, a.count, a.nonfinite) == (-1.0, 3.0, 3, 1)


def test_a_histogram_merges_with_nothing_less() -> None:
    with pytest.raises(TypeError):
        Histogram().merge(MinMax())


def test_a_histogram_does_not_grow_with_its_data() -> None:
    rng = np.random.default_rng(0)
    histogram = Histogram()
    for exponent in range(20):
        histogram.update(rng.standard_normal(1000).astype(np.float32) * np.float32(2**exponent))
        assert histogram.counts.shape == (BINS,)
        assert histogram.counts.dtype == np.int64


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_a_histogram_takes_other_floats(dtype: type) -> None:
    x = np.random.default_rng(0).standard_normal(500).astype(np.float16)
    assert same(seen(x.astype(dtype)), seen(x.astype(np.float32)))


@pytest.mark.parametrize("axis", [1, 3])
def test_channel_moments_are_numpys(axis: int) -> None:
    x = np.random.default_rng(0).normal(3, 2, (6, 3, 5, 3)).astype(np.float32)
    first, second = ChannelMoments(axis), ChannelMoments(axis)
    first.update(x[:1])
    first.update(x[1:3])
    second.update(x[3:])
    first.merge(second)
    others = tuple({0, 1, 2, 3} - {axis})
    x = x.astype(np.float64)
    np.testing.assert_array_equal(first.lo, x.min(axis=others))
    np.testing.assert_array_equal(first.hi, x.max(axis=others))
    np.testing.assert_allclose(first.mean, x.mean(axis=others), rtol=1e-12)
    np.testing.assert_allclose(first.std, x.std(axis=others), rtol=1e-12)


def test_a_constant_channel_has_no_deviation() -> None:
    moments = ChannelMoments()
    moments.update(np.full((2, 1, 3), 0.1, np.float32))
    assert moments.std == pytest.approx(0, abs=1e-8)


# -- rows -----------------------------------------------------------------------------------------

WINDOW = Window((3, 2), (2, 1), (1, 1), "SAME_UPPER", groups=2)


def sampled(*stream: np.ndarray, window: Window | None = WINDOW) -> RowSample:
    sample = RowSample(window, 2, 12) if window else RowSample(None, 1, 1)
    for x in stream:
        sample.update(x)
    return sample


@given(st.lists(st.integers(0, 20), max_size=3), st.sampled_from([1, 7, 60, 2048]))
def test_a_sample_of_rows_does_not_depend_on_batches(cuts: list[int], most: int) -> None:
    x = np.random.default_rng(0).standard_normal((20, 4, 5, 3)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observe, "ROWS", most)
        whole, parts = sampled(x), sampled(*np.split(x, sorted(cuts)))
    assert whole.rows.shape == (2, min(most, 20 * 3 * 3), 12)
    np.testing.assert_array_equal(whole.rows, parts.rows)


def test_rows_are_drawn_from_the_whole_stream_alike() -> None:
    x = np.arange(100_000, dtype=np.float32).reshape(50, 2000, 1)
    (rows,) = sampled(*x, window=None).rows[:, :, 0]
    assert len(rows) == len(set(rows)) == observe.ROWS
    # Tenths of the stream: chi-squared with 9 degrees of freedom exceeds 27.9 once in a thousand.
    counts = np.histogram(rows, 10, (0, 100_000))[0]
    expected = observe.ROWS / 10
    assert ((counts - expected) ** 2 / expected).sum() < 27.9
    # So do neighbours: as many even places as odd ones, within three standard deviations.
    assert abs((rows % 2).sum() - observe.ROWS / 2) < 3 * np.sqrt(observe.ROWS) / 2


def test_wide_rows_are_fewer() -> None:
    sample = RowSample(None, 1, observe.ROW_VALUES // 10)
    sample.update(np.zeros((12, observe.ROW_VALUES // 10), np.float32))
    assert sample.rows.shape[1] == 10


def test_samples_merge_to_one_of_both_streams() -> None:
    a, b = (
        np.arange(3000, dtype=np.float32)[:, None],
        np.arange(-3000, 0, dtype=np.float32)[:, None],
    )
    sample = sampled(a, window=None)
    sample.merge(sampled(b, window=None))
    (rows,) = sample.rows[:, :, 0]
    assert len(rows) == len(set(rows)) == observe.ROWS
    assert set(rows[rows >= 0]) == set(rows[rows < 0] + 3000)


def test_what_layers_read_is_its_histogram_and_their_rows() -> None:
    x = np.random.default_rng(0).standard_normal((4, 4, 5, 3)).astype(np.float32)
    one, two, both = LayerInput(), LayerInput(), LayerInput()
    for fold in (one, two, both):
        fold.samples[WINDOW] = RowSample(WINDOW, 2, 12)
    both.update(x)
    one.update(x[:2])
    two.update(x[2:])
    one.merge(two)
    assert same(one, both) and same(both, seen(x))
    assert one.samples[WINDOW].rows.shape == both.samples[WINDOW].rows.shape == (2, 36, 12)
    with pytest.raises(TypeError, match="the input of layers merges with the input of layers"):
        one.merge(seen(x))


@pytest.mark.parametrize("window", [Window((1, 1), (1, 1), (1, 1), (0,) * 4), None])
def test_a_sample_of_channels_ends_with_their_ends(window):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 3, 16, 16)).astype(np.float32)
    rows = np.moveaxis(x, 1, -1)
    batches = np.split(x if window else rows, 4)
    samples = [ChannelSample(window, 3) for _ in range(3)]
    for batch in batches:
        samples[0].update(batch)
    for sample, part in zip(samples[1:], (batches[:2], batches[2:]), strict=True):
        for batch in part:
            sample.update(batch)
    samples[1].merge(samples[2])
    for sample in samples[:2]:
        assert sample.rows.shape == (1, observe.ROWS + 2, 3)
        np.testing.assert_array_equal(
            sample.rows[0, -2:], [rows.min((0, 1, 2)), rows.max((0, 1, 2))]
        )
    assert ChannelSample(window, 3).rows.size == 0
    with pytest.raises(TypeError):
        samples[0].merge(RowSample(window, 1, 3))
