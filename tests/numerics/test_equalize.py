"""Equal ranges, an unchanged function, and no better factors to be found."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.numerics import equalize

positive = st.floats(1e-3, 1e3)
# In seven layers they multiply to 1e7 at most.
moderate = st.floats(1e-2, 1e2)


def ranges(layers, elements=positive):
    shape = st.tuples(layers, st.integers(1, 6))
    return shape.flatmap(lambda size: hnp.arrays(np.float64, size, elements=elements))


def scaled(r, s):
    """The ranges of layers once the tensors between them are divided by s."""
    one = np.ones((1, r.shape[1]))
    return r * np.concatenate([one, s]) / np.concatenate([s, one])


@given(ranges(st.just(2)))
def test_both_ranges_of_a_pair_become_their_geometric_mean(r):
    found = scaled(r, equalize.factors(r))
    np.testing.assert_allclose(found, np.sqrt([r[0] * r[1]] * 2), rtol=1e-12)


@given(ranges(st.just(3)))
def test_all_three_ranges_around_a_depthwise_layer_become_their_cube_root(r):
    s = equalize.factors(r)
    c = np.cbrt(r[0] * r[1] * r[2])
    np.testing.assert_allclose(s, [r[0] / c, c / r[2]], rtol=1e-12)
    np.testing.assert_allclose(scaled(r, s), [c] * 3, rtol=1e-12)


@given(ranges(st.integers(2, 7), moderate))
def test_all_ranges_of_a_row_become_equal_and_their_product_stays(r):
    found = scaled(r, equalize.factors(r))
    np.testing.assert_allclose(found, [found[0]] * len(r), rtol=1e-11)
    np.testing.assert_allclose(found.prod(axis=0), r.prod(axis=0), rtol=1e-10)


@given(ranges(st.just(2)), st.data())
def test_no_other_factors_use_more_of_both_grids(r, data):
    def used(s):
        first, second = r[0] / s, r[1] * s
        return np.sum(first / first.max() * second / second.max())

    others = data.draw(hnp.arrays(np.float64, r.shape[1], elements=positive))
    assert used(others) <= used(equalize.factors(r)[0]) * (1 + 1e-9)


def test_the_function_of_two_layers_is_unchanged_and_their_ranges_are_equal():
    rng = np.random.default_rng(0)
    first = rng.standard_normal((5, 4)) * np.logspace(-3, 3, 5)[:, None]
    second, x = rng.standard_normal((3, 5)), rng.standard_normal((4, 100))
    (s,) = equalize.factors(np.stack([np.abs(first).max(axis=1), np.abs(second).max(axis=0)]))
    before = second @ np.maximum(first @ x, 0)
    first, second = first / s[:, None], second * s
    np.testing.assert_allclose(second @ np.maximum(first @ x, 0), before, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.abs(first).max(axis=1), np.abs(second).max(axis=0), rtol=1e-12)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_channel_that_is_dead_or_not_finite_anywhere_is_left_alone(bad, layer):
    r = np.array([[1.0, 4.0], [2.0, 4.0], [4.0, 4.0]])
    alone = equalize.factors(r)
    r[layer, 1] = bad
    found = equalize.factors(r)
    np.testing.assert_array_equal(found[:, 1], 1.0)
    np.testing.assert_array_equal(found[:, 0], alone[:, 0])


def test_factors_end_where_float32_would():
    found = equalize.factors(np.array([[1e-30, 1e30], [1e30, 1e-30]]))
    np.testing.assert_array_equal(found, [[equalize.LEAST, equalize.LARGEST]])


def test_only_what_lies_above_zero_can_leave_a_bias():
    lo = np.array([-1.0, 0.0, 0.5])
    np.testing.assert_array_equal(equalize.high_bias(lo), [0.0, 0.0, 0.5])
