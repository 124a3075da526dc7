"""A transposed convolution, phase by phase, against its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.numerics.subpixel import phases


def transposed(x, w, stride, groups):
    """y[s i + k] += x[i] w[k], written as it is read; x (c_in, h, w), no batch, no padding."""
    c_in, height, width = x.shape
    _, c_group, kh, kw = w.shape
    y = np.zeros((groups * c_group, stride * (height - 1) + kh, stride * (width - 1) + kw))
    for c in range(c_in):
        first = c * groups // c_in * c_group
        for i in range(height):
            for j in range(width):
                spot = np.s_[first : first + c_group, stride * i : stride * i + kh,
                             stride * j : stride * j + kw]  # fmt: skip
                y[spot] += x[c, i, j] * w[c]
    return y


def correlated(x, v, groups):
    """A convolution with full padding, as it is defined; x (c_in, h, w)."""
    c_out, c_group, th, tw = v.shape
    x = np.pad(x, ((0, 0), (th - 1, th - 1), (tw - 1, tw - 1)))
    height, width = (n - t + 1 for n, t in zip(x.shape[1:], (th, tw), strict=True))
    y = np.zeros((c_out, height, width))
    for o in range(c_out):
        first = o * groups // c_out * c_group
        for i in range(height):
            for j in range(width):
                y[o, i, j] = np.sum(x[first : first + c_group, i : i + th, j : j + tw] * v[o])
    return y


@settings(deadline=None, max_examples=50)
@given(
    stride=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    groups=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**16),
)
def test_interleaved_phases_are_the_transposed_convolution(stride, kernel, groups, seed):
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((4, 3, 4)), rng.standard_normal((4, 3, *kernel))
    z = correlated(x, phases(w, stride, groups), groups)
    c, height, width = z.shape[0] // stride**2, *z.shape[1:]
    blocks = z.reshape(c, stride, stride, height, width).transpose(0, 3, 1, 4, 2)
    y = blocks.reshape(c, height * stride, width * stride)
    expected = transposed(x, w, stride, groups)
    inside = np.s_[:, : expected.shape[1], : expected.shape[2]]
    np.testing.assert_allclose(y[inside], expected, atol=1e-12)
    y[inside] = 0
    assert not y.any()


@pytest.mark.parametrize("groups", [1, 2])
def test_a_kernel_as_large_as_its_stride_needs_no_filling(groups):
    w = np.arange(4 * 3 * 4.0).reshape(4, 3, 2, 2) + 1
    v = phases(w, 2, groups)
    assert v.shape == (groups * 3 * 4, 4 // groups, 1, 1)
    assert sorted(v.ravel()) == sorted(w.ravel())
