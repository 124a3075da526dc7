"""Bits in bytes: every code comes back, and none takes more than its width."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.numerics.packing import ALIGNMENT, pack, plane_widths


@pytest.mark.parametrize(
    ("bits", "widths"),
    [(1, [1]), (2, [2]), (3, [2, 1]), (4, [4]), (5, [4, 1]), (6, [4, 2]), (7, [4, 2, 1])],
)
def test_planes_add_up_to_the_width(bits, widths):
    assert plane_widths(bits) == widths


def unpack(planes, bits, count):
    """Codes bit by bit: the planes' bits side by side, read from the lowest."""
    rows = []
    for width, plane in zip(plane_widths(bits), planes, strict=True):
        rows.append(np.unpackbits(plane, bitorder="little").reshape(-1, width)[:, ::-1])
    found = np.concatenate(rows, axis=1)[:count].astype(int)
    return found @ (1 << np.arange(bits)[::-1])


@given(st.integers(1, 7), st.integers(0, 200), st.integers(0, 2**16))
def test_codes_come_back_and_take_no_more_than_their_bits(bits, count, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, count).astype(np.uint8)
    planes = pack(codes, bits)
    filled = -(-count // ALIGNMENT) * ALIGNMENT
    assert 8 * sum(plane.size for plane in planes) == bits * filled
    assert all(plane.dtype == np.uint8 for plane in planes)
    np.testing.assert_array_equal(unpack(planes, bits, count), codes)


def test_the_first_code_lies_in_the_lowest_bits():
    high, low = pack(np.array([0b101, 0b010, 0, 0b111], np.uint8), 3)
    assert f"{high[0]:08b}" == "11000110"
    assert f"{low[0]:08b}" == "00001001"
