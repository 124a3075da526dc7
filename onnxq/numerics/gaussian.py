"""Moments of normal variables through clipping and layers (DFQ, Nagel et al. 2019).

For x ~ N(m, s^2), cut off at a and b, with a' = (a - m) / s and b' = (b - m) / s:

    E[clip(x)] = m (Phi(b') - Phi(a')) + s (phi(a') - phi(b')) + a Phi(a') + b (1 - Phi(b'))

as their appendix on the clipped normal distribution has it; a Relu is a = 0, b = inf.
"""

import math

import numpy as np

from onnxq.spec import Array, Floats

_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def clip(mean: Floats, std: Floats, lo: Floats, hi: Floats) -> tuple[Array, Array]:
    """Mean and standard deviation of a normal variable clipped to [lo, hi].

    Args:
        mean: float64 (channels,).
        std: Same shape, 0 or more; where it is NaN, so are the results.
        lo: () or (channels,), at most ``hi``; may be -inf.
        hi: Likewise; may be inf.
    """
    narrow = np.maximum(std, np.finfo(np.float64).tiny)
    with np.errstate(over="ignore"):  # of a constant, the ends are infinitely far away
        a, b = (lo - mean) / narrow, (hi - mean) / narrow
    below, above = _tail(-a), _tail(b)
    # From the side where both are small, or their difference would be lost.
    inside = np.where(a > 0, _tail(a) - above, _tail(-b) - below)
    slope = _density(a) - _density(b)
    middle = mean * inside + std * slope + _product(lo, below) + _product(hi, above)
    # E[(x - middle)^2], over what lies inside and at the two ends.
    d = mean - middle
    curve = inside + _product(a, _density(a)) - _product(b, _density(b))
    square = std**2 * curve + 2.0 * std * d * slope + d**2 * inside
    square += _product((lo - middle) ** 2, below) + _product((hi - middle) ** 2, above)
    return middle, np.sqrt(np.maximum(square, 0.0))


def weighted(w: Floats, x: Floats) -> Array:
    """Sums over inputs and taps of w x, float64 (c_out,), for an x that is the same at each tap.

    Args:
        w: (groups, c_out / groups, c_in / groups, taps).
        x: (c_in,).
    """
    values = x.reshape(w.shape[0], w.shape[2]).astype(np.float64)
    return np.asarray(np.einsum("goit,gi->go", w.astype(np.float64), values).reshape(-1))


def _tail(z: Array) -> Array:
    """P(x > z) of a standard normal variable, exact far out, too."""
    return np.asarray(0.5 * _erfc(z / math.sqrt(2.0)))


def _density(z: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(-0.5 * z**2) / math.sqrt(2.0 * math.pi))


def _product(x: Array, p: Array) -> Array:
    """X p, and 0 where p is 0: an end that is never reached may be infinite."""
    return np.multiply(x, p, out=np.zeros(np.broadcast(x, p).shape), where=p > 0)
