"""Codes of 8 bits whose products processors without dot products can still add.

x86 processors that lack VNNI multiply uint8 activations and int8 weights with an instruction that
adds two neighbouring products in 16 bits, which saturate:

    x_i q_i + x_j q_j,  0 <= x <= 255,  fits if the q of one sign add up to 128 at most,

since 255 times 128 is less than 2^15. Weights of two signs never add up, and small ones leave a
large neighbour all its 127 codes. Kernels differ in where their pairs begin: any two neighbours may
be a pair. The last axis of all arrays here is the one along which kernels add, in their order.
"""

from dataclasses import replace

import numpy as np

from onnxq.spec import SAFE, Array, Floats, QParams

# What neighbours of one sign may add up to.
MOST = 2 * SAFE
# By how much a scale is larger than it had to be: quotients are rounded before they are to codes.
MARGIN = 1e-6


def sums(w: Array) -> Array:
    """The largest that two neighbours of one sign add up to, ``w`` without its last axis."""
    ends = [np.maximum(sign * w, 0) for sign in (1, -1)]
    above, below = ((end[..., 1:] + end[..., :-1]).max(-1, initial=0) for end in ends)
    return np.asarray(np.maximum(above, below))


def spaced(params: QParams, largest: Floats) -> QParams:
    """The grid, made coarser where two neighbours would not fit.

    Rounding to nearest keeps to it: real numbers that add up to less than 128 round to codes that
    add up to 128 at most.

    Args:
        params: Symmetric.
        largest: What neighbours add up to, of the shape of the scale.
    """
    least = np.asarray(largest * ((1 + MARGIN) / MOST), np.float32)
    return replace(params, scale=np.maximum(params.scale, least))


def room(codes: Array, top: int) -> tuple[Array, Array]:
    """The least and the largest code of each weight, int16, whatever others become within theirs.

    What a pair leaves of its sum is halved between the two.

    Args:
        codes: They fit.
        top: Largest code of all.
    """
    low, high = (_room(np.maximum(sign * codes.astype(np.int16), 0), top) for sign in (-1, 1))
    return -low, high


def _room(q: Array, top: int) -> Array:
    left = MOST - q[..., 1:] - q[..., :-1]
    more = np.full(q.shape, top, np.int16)
    more[..., :-1] = left // 2
    more[..., 1:] = np.minimum(more[..., 1:], left - left // 2)
    return np.minimum(q + more, top)
