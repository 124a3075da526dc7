"""Strips of pixels: the same convolution, several outputs at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.numerics.strips import PIXELS, Strip, widen


def convolved(x, w, stride, before, after):
    """Along a row, all of the height at once: (c_out, width) of (c_in, height, width)."""
    x = np.pad(x, ((0, 0), (0, 0), (before, after)))
    starts = range(0, x.shape[2] - w.shape[3] + 1, stride)
    windows = [x[:, :, start : start + w.shape[3]] for start in starts]
    return np.stack([np.einsum("ochw,chw->o", w, window) for window in windows], axis=1)


@given(
    kernel=st.integers(1, 11), stride=st.sampled_from([1, 2, 4]), pad=st.integers(0, 7),
    strips=st.integers(1, 4), height=st.integers(1, 2), c_out=st.integers(1, 3),
    c_in=st.integers(1, 3), seed=st.integers(0, 100),
)  # fmt: skip
def test_it_is_the_same_convolution(kernel, stride, pad, strips, height, c_out, c_in, seed):
    rng = np.random.default_rng(seed)
    strip = Strip(kernel, stride, pad, strips * PIXELS)
    w = rng.standard_normal((c_out, c_in, height, kernel))
    x = rng.standard_normal((c_in, height, strips * PIXELS))
    after = max(kernel - stride - pad, 0) + PIXELS * (pad > kernel)
    wanted = convolved(x, w, stride, pad, after)[:, : strips * strip.outputs]
    wide = widen(w, strip)
    assert wide.shape == (strip.outputs * c_out, PIXELS * c_in, height, strip.width)
    assert np.count_nonzero(wide) == strip.outputs * np.count_nonzero(w)
    laid = np.moveaxis(x.reshape(c_in, height, strips, PIXELS), 3, 0).reshape(-1, height, strips)
    found = convolved(laid, wide, 1, strip.before, strip.after)
    pixels = np.moveaxis(found.reshape(strip.outputs, c_out, strips), 0, 2).reshape(c_out, -1)
    np.testing.assert_allclose(pixels[:, : wanted.shape[1]], wanted, atol=1e-9)


@pytest.mark.parametrize(
    ("strip", "before", "after"),
    [
        (Strip(3, 2, 1, 8), 1, 0),
        (Strip(7, 2, 3, 8), 1, 1),
        (Strip(3, 1, 1, 8), 1, 1),
        (Strip(3, 2, 0, 8), 0, 1),
        (Strip(4, 4, 0, 8), 0, 0),
        (Strip(7, 4, 3, 8), 1, 0),
        (Strip(9, 1, 4, 8), 1, 1),
    ],
)
def test_no_more_strips_are_read_than_needed(strip, before, after):
    assert (strip.before, strip.after) == (before, after)
