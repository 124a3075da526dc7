"""Codes of b bits in bytes, without a bit to spare: planes of 4, 2 and 1 bits.

A code is the sum of its planes: 3 bits are a plane of 2 and one of 1, 7 bits are 4 + 2 + 1. A byte
holds 8 / p values of a plane of p bits, the first in its lowest bits, so that one look-up in a
table of 256 rows unpacks a byte.
"""

import numpy as np

from onnxq.spec import Array, Ints

WIDTHS = (4, 2, 1)
# Streams are filled up to whole bytes of every plane.
ALIGNMENT = 8


def plane_widths(bits: int) -> list[int]:
    """Widths of the planes that make up a code of 1 to 7 bits, the highest bits first."""
    return [width for width in WIDTHS if bits & width]


def pack(codes: Ints, bits: int) -> list[Array]:
    """The planes of unsigned codes, uint8, those of the highest bits first.

    Args:
        codes: (n,), each below 2^bits.
        bits: 1 to 7.
    """
    filled = np.zeros(-(-codes.size // ALIGNMENT) * ALIGNMENT, np.uint8)
    filled[: codes.size] = codes
    planes, above = [], bits
    for width in plane_widths(bits):
        above -= width
        values = (filled >> above & (1 << width) - 1).reshape(-1, 8 // width)
        shifts = width * np.arange(8 // width, dtype=np.uint8)
        planes.append(np.bitwise_or.reduce(values << shifts, axis=1).astype(np.uint8))
    return planes
