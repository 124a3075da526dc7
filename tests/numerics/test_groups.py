"""Channel groups that are computed together: the same convolution, with zeros between."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.numerics.groups import merge, together


@given(
    outer=st.integers(1, 3), count=st.integers(1, 4), rows=st.integers(1, 3),
    inputs=st.integers(1, 3), taps=st.integers(1, 3), seed=st.integers(0, 100),
)  # fmt: skip
def test_every_channel_reads_the_inputs_it_read(outer, count, rows, inputs, taps, seed):
    rng = np.random.default_rng(seed)
    groups = outer * count
    w = rng.standard_normal((groups * rows, inputs, taps))
    merged = merge(w, groups, count)
    assert merged.shape == (groups * rows, count * inputs, taps)
    assert np.count_nonzero(merged) == np.count_nonzero(w)
    x = rng.standard_normal((groups * inputs, taps))
    for channel in range(groups * rows):
        group, wide = channel // rows, channel // (rows * count)
        read = x[group * inputs : (group + 1) * inputs]
        read_wide = x[wide * count * inputs : (wide + 1) * count * inputs]
        assert np.sum(merged[channel] * read_wide) == pytest.approx(np.sum(w[channel] * read))


@pytest.mark.parametrize(
    ("groups", "inputs", "count"),
    [
        (1, 8, 1),
        (32, 4, 8),
        (16, 8, 4),
        (13, 8, 13),
        (26, 8, 2),
        (10, 16, 2),
        (7, 24, 1),
        (2, 64, 1),
    ],
)
def test_groups_become_about_as_wide_as_is_best(groups, inputs, count):
    assert together(groups, inputs) == count
