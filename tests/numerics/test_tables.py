"""Tables in 8 bits: close where it matters, and left alone where they would not be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.numerics import affine
from onnxq.numerics.tables import LEAST_SQNR, compress

RNG = np.random.default_rng(0)


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 99),
    scale=st.floats(1e-3, 1e3),
)  # fmt: skip
def test_normal_values_are_off_by_half_a_step_at_most(shape, seed, scale):
    x = (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)
    table = compress(x)
    if table is None:  # few values may all be at the end of a scale, or near zero
        assert x.size < 64
        return
    assert table.codes.shape == x.shape
    step = affine.broadcast(table.params.scale, x.ndim, table.params.axis)
    assert (np.abs(affine.values(table) - x) <= 0.5001 * step).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_scales_lie_along_the_axis_where_values_differ(axis):
    sizes = np.logspace(-2, 2, 12).reshape([-1 if n == axis else 1 for n in range(3)])
    table = compress((sizes * RNG.standard_normal((12, 12, 12))).astype(np.float32))
    assert table.params.axis == axis
    assert table.params.scale.shape == (12,)


def test_a_mask_is_exact():
    mask = np.where(RNG.uniform(size=(64, 49, 49)) < 0.5, 0.0, -100.0).astype(np.float32)
    np.testing.assert_allclose(affine.values(compress(mask)), mask, rtol=1e-6)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x, mask: np.where(mask, x, -100.0),  # biases and a mask in one
        lambda x, mask: np.where(mask, x, np.inf),
        lambda x, mask: np.where(mask, x, np.nan),
        lambda x, mask: x**25,
        lambda x, mask: np.where(mask, 0.0, np.finfo(np.float32).min),  # -127 steps are not finite
        lambda x, mask: np.arange(x.size).reshape(x.shape),  # places
        lambda x, mask: -np.abs(x),
    ],
)
def test_values_of_very_different_size_stay_float(spoil):
    x = RNG.standard_normal((8, 49, 49))
    spoiled = spoil(x, RNG.uniform(size=x.shape) < 0.5).astype(np.float32)
    assert compress(spoiled) is None


def test_the_bound_is_of_what_lies_inside():
    x = RNG.standard_normal((40, 40)).astype(np.float32)
    table = compress(x)
    inside = np.abs(table.codes) < 127
    error = (affine.values(table) - x)[inside]
    assert 10 * np.log10(np.square(x[inside]).sum() / np.square(error).sum()) > LEAST_SQNR
