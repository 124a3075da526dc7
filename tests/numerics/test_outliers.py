"""Splitting channels: the same product, no better choice of channels, halves that round as one."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onnxq.numerics import outliers

QMAX = 127


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("step", [0.0, 0.1])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_layer_computes_the_same_from_the_repeated_channels(count, step):
    w, x = normal(3, 4, 9), normal(4, 9, 20, seed=1)
    found, origin = outliers.split(w, count, step)
    assert found.shape == (3, 4 + count, 9)
    assert origin.tolist()[:4] == [0, 1, 2, 3]
    np.testing.assert_allclose(
        np.einsum("oik,ikn->on", found, x[origin]), np.einsum("oik,ikn->on", w, x), atol=1e-12
    )


@pytest.mark.parametrize("seed", range(5))
def test_no_other_choice_of_channels_leaves_a_smaller_largest_weight(seed):
    w, count = normal(2, 3, 1, seed=seed) ** 3, 3

    def largest(choices):
        parts = [w[:, i] for i in range(3)]
        for j in choices:
            parts[j] = parts[j] / 2
            parts.append(parts[j])
        return max(np.abs(part).max() for part in parts)

    every = itertools.product(*(range(3 + i) for i in range(count)))
    found, _ = outliers.split(w, count)
    assert np.abs(found).max() == min(map(largest, every))


@given(st.floats(-1e4, 1e4))
def test_aware_halves_round_to_what_the_weight_rounds_to(w):
    assume(abs(w - np.floor(w) - 0.5) > 1e-9)
    lower, upper = outliers.halves(np.array(w), 1.0)
    assert np.rint(lower) + np.rint(upper) == np.rint(w)


def test_plain_halves_may_both_round_up():
    lower, upper = outliers.halves(np.array(3.0), 0.0)
    assert (lower, upper) == (1.5, 1.5)
    assert np.rint(lower) + np.rint(upper) == 4.0


@given(st.integers(0, 1000), st.integers(1, 6))
def test_parts_of_parts_add_up_after_rounding_on_the_grid_they_span(seed, count):
    w = normal(4, 5, 3, seed=seed)
    step = outliers.step(w, count, QMAX)
    found, origin = outliers.split(w, count, step)
    np.testing.assert_allclose(np.abs(found).max() / QMAX, step, rtol=1e-9)
    codes = np.rint(found / step)
    assert np.abs(codes).max() == QMAX
    total = np.stack([codes[:, origin == i].sum(axis=1) for i in range(5)], axis=1)
    near = np.abs(w / step - np.floor(w / step) - 0.5) < 1e-6
    assert np.array_equal(total[~near], np.rint(w / step)[~near])


def test_a_grid_gets_finer_by_splitting():
    w = normal(8, 16, 9)
    w[3, 5, 4] = 10.0
    assert outliers.step(w, 2, QMAX) < 0.6 * np.abs(w).max() / QMAX
