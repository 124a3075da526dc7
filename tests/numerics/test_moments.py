"""Streamed moments are those of all the data at once, however they were cut."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxq.numerics.moments import InputMoments, OutputMoments

rng = np.random.default_rng(0)
CUTS = st.lists(st.integers(0, 60), max_size=3)


@given(cuts=CUTS, offset=st.sampled_from([0.0, 3e3]))
def test_of_inputs(cuts, offset):
    x = (rng.standard_normal((2, 60, 5)) + offset).astype(np.float32)
    z = (x + 0.1 * rng.standard_normal(x.shape)).astype(np.float32)
    moments = InputMoments(2, 5)
    for a, b in zip(np.split(x, sorted(cuts), 1), np.split(z, sorted(cuts), 1), strict=True):
        moments.update(a, b)
    for group in range(2):
        both = np.cov(x[group].T, z[group].T, bias=True)
        np.testing.assert_allclose(moments.cross[group], both[:5, 5:], atol=1e-4)
        np.testing.assert_allclose(moments.hessian[group], both[5:, 5:], atol=1e-4)


def test_of_inputs_seen_by_two():
    x, z = rng.standard_normal((2, 2, 60, 5)).astype(np.float32)
    one, two, whole = (InputMoments(2, 5) for _ in range(3))
    one.update(x[:, :20], z[:, :20])
    two.update(x[:, 20:], z[:, 20:])
    whole.update(x, z)
    one.merge(two)
    assert one.count == whole.count == 60
    np.testing.assert_allclose(one.cross, whole.cross, atol=1e-6)
    np.testing.assert_allclose(one.hessian, whole.hessian, atol=1e-6)


@given(cuts=CUTS, offset=st.sampled_from([0.0, 1e3]))
def test_of_outputs(cuts, offset):
    y = (rng.standard_normal((60, 3)) + offset).astype(np.float32)
    y_q = (y + 0.1 + 0.1 * rng.standard_normal(y.shape)).astype(np.float32)
    seen = OutputMoments(3)
    for a, b in zip(np.split(y, sorted(cuts)), np.split(y_q, sorted(cuts)), strict=True):
        seen.update(a, b, -1)
    y, y_q = y.astype(np.float64), y_q.astype(np.float64)
    np.testing.assert_allclose(seen.shift, (y_q - y).mean(0), atol=1e-9)
    np.testing.assert_allclose(seen.var, y.var(0), rtol=1e-5)
    np.testing.assert_allclose(seen.var_q, y_q.var(0), rtol=1e-5)
    total = ((y_q - y) ** 2).sum()
    assert abs(seen.share - 60 * ((y_q - y).mean(0) ** 2).sum() / total) < 1e-5
    ratio = np.sqrt(((y_q - y).mean(0) ** 2).mean() / (y**2).mean())
    np.testing.assert_allclose(seen.ratio, ratio, rtol=1e-5)


def test_of_outputs_whose_squares_float32_does_not_hold():
    y, y_q = (rng.standard_normal((2, 60, 3)) + 1).astype(np.float32)
    seen, large = OutputMoments(3).update(y, y_q, 1), OutputMoments(3)
    large.update(np.float32(1e30) * y, np.float32(1e30) * y_q, 1)
    np.testing.assert_allclose(large.var, 1e60 * seen.var, rtol=1e-5)
    np.testing.assert_allclose([large.share, large.ratio], [seen.share, seen.ratio], rtol=1e-4)


def test_a_correction_is_as_good_as_corrected_outputs():
    y = rng.standard_normal((60, 3)).astype(np.float32)
    y_q = rng.standard_normal((60, 3)).astype(np.float32)
    gain, offset = np.array([2.0, 0.5, 1.0]), np.array([0.0, -1.0, 3.0])
    seen, wanted = OutputMoments(3), OutputMoments(3)
    seen.update(y, y_q, 1)
    seen.corrected(gain, offset)
    wanted.update(y, gain * y_q + offset, 1)
    np.testing.assert_allclose(seen.mean_q, wanted.mean_q, rtol=1e-6)
    np.testing.assert_allclose(seen.var_q, wanted.var_q, rtol=1e-6)
    assert abs(seen.share - wanted.share) < 1e-5


def test_of_no_error_and_of_no_signal():
    y, seen = np.ones((4, 2), np.float32), OutputMoments(2)
    seen.update(y, y, 1)
    assert (seen.share, seen.ratio) == (0.0, 0.0)
    seen = OutputMoments(2)
    seen.update(0 * y, y, 1)
    assert (seen.share, seen.ratio) == (1.0, 0.0)


def test_a_pair_of_different_shapes_is_left_out():
    y, seen = np.ones((4, 2), np.float32), OutputMoments(2)
    seen.update(y, 2 * y, 1)
    shift = seen.shift
    seen.update(y, 3 * y[:3], 1)
    assert seen.count == 4
    np.testing.assert_array_equal(seen.shift, shift)


def test_of_outputs_with_channels_in_the_middle_seen_by_two():
    y, y_q = rng.standard_normal((2, 6, 3, 4, 5)).astype(np.float32)
    one, two = OutputMoments(3), OutputMoments(3)
    one.update(y[:2], y_q[:2], 1)
    two.update(y[2:], y_q[2:], 1)
    one.merge(two)
    np.testing.assert_allclose(one.mean, y.mean((0, 2, 3), np.float64), rtol=1e-6)
    np.testing.assert_allclose(one.var_q, y_q.var((0, 2, 3), np.float64), rtol=1e-5)
