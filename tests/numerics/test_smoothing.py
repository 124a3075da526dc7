"""Factors between two kinds of noise: the least sum there is, and what has no say has none."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.numerics import smoothing
from onnxq.numerics.smoothing import TRIED, Read

STEP = TRIED[0] / TRIED[1]
spreads = st.floats(0.1, 10)


def sample(spread, seed=0, rectified=True):
    """Rows of channels with these standard deviations, some of them half zeros."""
    x = np.random.default_rng(seed).standard_normal((400, len(spread))) * spread
    return (np.maximum(x, 0) if rectified else x).astype(np.float32)


def read(x, power, groups=1, bits=4):
    power = np.asarray(power, np.float64)
    return Read(slice(0, x.shape[1]), x, bits, power, [(groups, power)])


def everywhere(x):
    return np.ones(x.shape[1], bool)


def carried(x, power, s):
    return (power @ s**2) * np.mean(np.mean(x.astype(np.float64) ** 2, axis=0) / s**2)


def total(x, power, s, bits, rho, common=None):
    """The sum of the module's docstring, line by line; of the steps ``common`` the best one."""
    levels = 2**bits - 1
    largest = np.abs(x).max(axis=0)
    below, above = max((-x / largest).max(), 0), max((x / largest).max(), 0)
    low = -round(levels * below / (below + above))

    def rounded(steps):
        codes = np.clip(np.rint(x / steps), low, low + levels)
        return power @ np.mean((x - codes * steps) ** 2, axis=0)

    weights = rho * max(carried(x, power, s), carried(x, power, np.ones(len(s))))
    whole = largest * (below + above) / levels
    return weights + min(
        rounded(t * s) for t in (common if common is not None else TRIED * (whole / s).max())
    )


@settings(deadline=None, max_examples=25)
@given(hnp.arrays(np.float64, 2, elements=spreads), st.sampled_from([2, 3, 4]),
       st.sampled_from([0.0, 1e-3, 1e-2, 0.3]), st.booleans())  # fmt: skip
def test_of_all_factors_of_two_channels_none_leaves_much_less_noise(spread, bits, rho, rectified):
    x, power = sample(spread, rectified=rectified), np.array([1.0, 3.0])
    s, _ = smoothing.factors([read(x, power, bits=bits)], everywhere(x), rho)
    others = (np.array([1.0, r]) for r in np.geomspace(0.01, 100, 81))
    least = min(total(x, power, other, bits, rho) for other in others)
    assert total(x, power, s, bits, rho) <= 1.08 * least


def test_narrow_channels_stay_coarse_where_weights_would_suffer():
    x = sample([0.78, 1.1, 0.13, 0.31, 7.35, 1.3])
    power = np.array([0.42, 0.41, 0.56, 0.48, 2.63, 0.37])
    s, _ = smoothing.factors([read(x, power, bits=3)], everywhere(x), 0.01)
    least = total(x, power, s, 3, 0.01)
    for i, factor in itertools.product(range(6), np.exp2(np.arange(-9, 10) / 3)):
        assert total(x, power, np.where(np.arange(6) == i, factor * s, s), 3, 0.01) > 0.98 * least
    assert s[4] / s[2] < 0.5 * 7.35 / 0.13


@pytest.mark.parametrize("rectified", [True, False])
def test_the_ratio_is_that_of_the_sums_with_and_without(rectified):
    x, power = sample([0.3, 1, 4, 2], rectified=rectified), np.array([1.0, 2.0, 0.5, 1.0])
    s, ratio = smoothing.factors([read(x, power)], everywhere(x), 1e-4)
    expected = total(x, power, s, 4, 1e-4) / total(x, power, np.ones(4), 4, 1e-4)
    assert ratio == pytest.approx(expected, rel=0.02)
    assert ratio < 0.8


@given(hnp.arrays(np.float64, 3, elements=spreads))
@settings(deadline=None, max_examples=25)
def test_channels_that_were_scaled_before_are_scaled_back(c):
    x, power = sample([1, 2, 3]), np.array([1.0, 2.0, 0.5])
    s, _ = smoothing.factors([read(x, power)], everywhere(x), 1e-3)
    scaled = (x * c).astype(np.float32)
    found, _ = smoothing.factors([read(scaled, power / c**2)], everywhere(x), 1e-3)
    relative = found / (s * c)
    np.testing.assert_allclose(relative, relative[0], rtol=STEP - 1)


def test_activations_alone_bring_channels_of_one_shape_to_one_spread():
    spread = np.array([0.01, 1, 5, 40])
    x = (sample([1.0]) * spread).astype(np.float32)
    s, _ = smoothing.factors([read(x, [1, 5, 2, 1])], everywhere(x), 0.0)
    np.testing.assert_allclose(s / s[0], spread / spread[0], rtol=1e-6)
    assert np.prod(s) == pytest.approx(1.0)


def test_weights_that_count_for_everything_are_not_made_worse():
    x, power = sample([1.0, 1.5, 2.0, 9.0]), np.array([2.0, 1.0, 0.3, 0.1])
    s, ratio = smoothing.factors([read(x, power, bits=8)], everywhere(x), 1e9)
    assert carried(x, power, s) <= carried(x, power, np.ones(4)) * (1 + 1e-6)
    assert np.ptp(s) > 1
    assert ratio == pytest.approx(1.0)


def test_weights_of_a_depthwise_layer_have_no_say():
    x, power = sample([0.1, 1.0, 7.0]), np.array([9.0, 1.0, 0.1])
    alone, _ = smoothing.factors([read(x, power, groups=3)], everywhere(x), 0.0)
    found, ratio = smoothing.factors([read(x, power, groups=3)], everywhere(x), 1e3)
    np.testing.assert_array_equal(found, alone)
    assert ratio > 0.9  # most of the noise is theirs


def test_equal_channels_stay_as_they_are():
    x = np.repeat(sample([1.0]), 4, axis=1)
    s, ratio = smoothing.factors([read(x, np.ones(4))], everywhere(x), 1e-3)
    np.testing.assert_array_equal(s, np.ones(4))
    assert ratio == pytest.approx(1.0)


def test_channels_that_must_stay_set_the_step_of_the_others():
    x, free = sample([1.0, 1.0, 10.0, 0.1]), np.array([False, False, True, True])
    s, ratio = smoothing.factors([read(x, np.ones(4))], free, 0.0)
    np.testing.assert_array_equal(s[:2], [1.0, 1.0])
    assert s[2] == pytest.approx(10.0, rel=0.4)
    assert s[3] == pytest.approx(0.1, rel=0.4)
    assert ratio < 0.7


@pytest.mark.parametrize("nothing", [0.0, np.nan, np.inf])
def test_what_is_dead_or_not_finite_stays(nothing):
    x = sample([1.0, 5.0, 1.0])
    x[:, 2] = nothing
    s, ratio = smoothing.factors([read(x, np.ones(3))], everywhere(x), 0.0)
    others, expected = smoothing.factors([read(x[:, :2], [1, 1])], everywhere(x[:, :2]), 0.0)
    assert s[2] == 1.0
    np.testing.assert_allclose(s[:2], others)
    assert ratio == pytest.approx(expected)
    unread, _ = smoothing.factors([read(sample([1, 5, 1]), [1, 1, 0])], everywhere(x), 1e-3)
    assert unread[2] == 1.0


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_dead_have_no_say_over_weights_at_any_scale(scale):
    x = np.pad(scale * sample([1.0, 5.0, 0.5, 2.0]), [(0, 0), (0, 4)])
    power = np.array([1.0, 0.5, 2.0, 1.0, 9.0, 9.0, 9.0, 9.0])
    s, ratio = smoothing.factors([read(x, power)], everywhere(x), 1e-2)
    alone = np.where(np.arange(8) < 4, power, 0.0)
    expected, noise = smoothing.factors([read(x, alone)], everywhere(x), 1e-2)
    np.testing.assert_array_equal(s, expected)
    assert ratio == noise < 1
    unread = np.where(np.arange(8) < 4, x, np.float32(scale) * sample([7.0] * 8))
    s, ratio = smoothing.factors([read(unread, alone)], everywhere(unread), 1e-2)
    np.testing.assert_array_equal(s, expected)
    assert ratio == noise


@pytest.mark.parametrize("tiny", [1e-20, 1e-40, 1e-44])
def test_factors_are_none_that_weights_could_not_bear(tiny):
    x = (sample([1.0, 5.0, 1.0]) * np.array([1, 1, tiny])).astype(np.float32)
    s, ratio = smoothing.factors([read(x, np.ones(3))], everywhere(x), 1e-3)
    assert s[2] == 1.0
    assert s[1] / s[0] > 1.5
    assert ratio < 1


def test_nothing_free_is_nothing_done():
    x = sample([1.0, 5.0])
    s, ratio = smoothing.factors([read(x, [1, 1])], np.zeros(2, bool), 1e-3)
    assert (s.tolist(), ratio) == ([1.0, 1.0], 1.0)


def test_tensors_and_layers_beside_each_other_add_up():
    x, y = sample([1.0, 4.0]), sample([2.0, 2.0, 9.0], seed=1)
    one, other = np.array([1.0, 2.0]), np.array([3.0, 1.0, 0.5])
    reads = [
        Read(slice(1, 3), x, 4, one + other[:2], [(1, one), (1, other[:2])]),
        Read(slice(0, 3), y, 4, other, [(1, other)]),
    ]
    s, ratio = smoothing.factors(reads, np.ones(3, bool), 1e-3)
    parts = [(x, one + other[:2], slice(1, 3)), (y, other, slice(0, 3))]

    layers = [(x, one, slice(1, 3)), (x, other[:2], slice(1, 3)), (y, other, slice(0, 3))]

    def weights(s):
        return 1e-3 * sum(carried(z, p, s[own]) for z, p, own in layers)

    def both(s, steps):
        rounded = sum(min(total(z, p, s[own], 4, 0.0, [t]) for t in steps) for z, p, own in parts)
        return rounded + max(weights(s), weights(np.ones(3)))

    steps = np.geomspace(0.01, 3, 400)
    assert ratio == pytest.approx(both(s, steps) / both(np.ones(3), steps), rel=0.03)
    grid = [np.array(c) for c in itertools.product([0.25, 0.5, 1, 2, 4], repeat=3)]
    assert both(s, steps) <= 1.02 * min(both(other, steps[::8]) for other in grid)


def test_the_noise_of_weights_falls_fourfold_with_every_bit():
    assert smoothing.weight_noise(3) == pytest.approx(4 * smoothing.weight_noise(4))
    w = np.sort(np.random.default_rng(0).standard_normal(100_000))
    levels = np.linspace(-3, 3, 2**5)
    for _ in range(300):  # Lloyd's algorithm
        at = np.searchsorted((levels[1:] + levels[:-1]) / 2, w)
        levels = np.bincount(at, w, 2**5) / np.bincount(at, minlength=2**5)
    error = np.mean((w - levels[at]) ** 2)
    assert smoothing.weight_noise(5) / smoothing.LEFT == pytest.approx(error, rel=0.1)


def test_at_8_bits_narrow_channels_keep_a_part_of_their_room():
    spread = np.array([0.01, 1, 5, 40])
    x = (sample([1.0]) * spread).astype(np.float32)
    whole, _ = smoothing.factors([read(x, np.ones(4), bits=7)], everywhere(x), 0.0)
    part, ratio = smoothing.factors([read(x, np.ones(4), bits=8)], everywhere(x), 0.0)
    np.testing.assert_allclose(whole / whole[0], spread / spread[0], rtol=STEP - 1)
    np.testing.assert_allclose(part, whole**smoothing.SHARE, rtol=STEP - 1)
    assert ratio == pytest.approx(
        total(x, np.ones(4), part, 8, 0.0) / total(x, np.ones(4), np.ones(4), 8, 0.0), rel=0.05
    )


def test_errors_count_as_far_as_something_is_left_of_them():
    x, power = sample([1.0, 1.0], rectified=False), np.ones(2)
    slopes = np.stack([x[:, 0] > 0, x[:, 1] < 9], axis=1).astype(np.float32)
    all_ = Read(slice(0, 2), x, 4, power)
    half = Read(slice(0, 2), x, 4, power, slopes=slopes)
    grids = smoothing._grids([all_], 2)[1]
    steps = np.full((2, 1), 0.5)
    ((whole,), (part,)) = (smoothing._rounded([r], steps, grids) for r in (all_, half))
    assert part[1] == whole[1]
    assert part[0, 0] < 0.7 * whole[0, 0]


def test_a_tensor_with_more_bits_has_less_to_win():
    x, power = sample([0.1, 1.0, 7.0]), np.ones(3)
    coarse, fine = (Read(slice(0, 3), x, bits, power, [(1, power)]) for bits in (4, 8))
    (a,), (b,) = (smoothing._grids([r], 3)[1] for r in (coarse, fine))
    assert a.step == pytest.approx(17 * b.step)
    assert (a.high - a.low, b.high - b.low) == (15, 255)
