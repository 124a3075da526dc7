"""Codes whose products fit: what may stand beside what, and how coarse the grid has to be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.numerics import affine, pairs, ranges
from onnxq.spec import weight_spec

SPEC = weight_spec(8)
WEIGHTS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.one_of(
        st.floats(-4, 4, width=32),
        st.integers(-254, 254).map(lambda n: n / 64),
        st.sampled_from([0.0, 1e-3, -1e-3, 1e30]),
    ),
)


def products(codes):
    """The largest and the least sum of two products with activations of 255 or of 0."""
    q = 255 * codes.astype(int)
    above, below = np.maximum(q, 0), np.minimum(q, 0)
    return (above[:, 1:] + above[:, :-1]).max(initial=0), (below[:, 1:] + below[:, :-1]).min(
        initial=0
    )


def rounded(w, axis):
    params = affine.qparams(*ranges.weight_max(w, SPEC, axis), SPEC, axis)
    sums = pairs.sums(w.astype(np.float64))
    spaced = pairs.spaced(params, sums.max() if axis is None else sums)
    return params, spaced, affine.quantize(w, spaced)


@given(w=WEIGHTS, axis=st.sampled_from([0, None]))
def test_products_of_two_neighbours_fit_16_bits_on_the_finest_grid_that_allows_it(w, axis):
    params, spaced, codes = rounded(w, axis)
    most, least = products(codes)
    assert least >= -(2**15)
    assert most < 2**15
    # Never coarser than if all codes ended at 64, nor finer than of all 127.
    assert (spaced.scale >= params.scale).all()
    assert (spaced.scale <= params.scale * np.float32(127 / 64 * (1 + 1e-5))).all()


@given(w=WEIGHTS)
def test_a_coarser_grid_has_a_pair_that_asks_for_it(w):
    params, spaced, codes = rounded(w, 0)
    for row, coarser in zip(codes, spaced.scale > params.scale, strict=True):
        assert not coarser or max(np.abs(products(row[None]))) >= 255 * 127


def test_what_may_stand_beside_what():
    assert pairs.sums(np.array([[100, 28], [100, -100], [-60, -70]])).tolist() == [128, 100, 130]
    assert pairs.sums(np.array([[7.0]])).tolist() == [0]


@given(w=WEIGHTS, seed=st.integers(0, 1000))
def test_whatever_codes_become_within_their_room_they_fit(w, seed):
    *_, codes = rounded(w, 0)
    low, high = pairs.room(codes, 127)
    assert (low <= codes).all()
    assert (codes <= high).all()
    assert low.min(initial=0) >= -127
    assert high.max(initial=0) <= 127
    rng = np.random.default_rng(seed)
    for found in (low, high, rng.integers(low, high + 1)):
        most, least = products(found)
        assert least >= -(2**15)
        assert most < 2**15


@pytest.mark.parametrize(
    ("codes", "low", "high"),
    [
        ([127, 1, 0], [-64, -64, -64], [127, 1, 64]),
        ([10, 20, -30], [-64, -49, -79], [59, 69, 54]),
    ],
)
def test_a_pair_halves_what_is_left(codes, low, high):
    found = pairs.room(np.array([codes], np.int8), 127)
    assert [end[0].tolist() for end in found] == [low, high]
