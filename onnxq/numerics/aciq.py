"""Analytic clipping: where a grid should end, were the values of a known density.

Source: Banner, Nahshan & Soudry, "Post-training 4-bit quantization of convolution networks for
rapid-deployment" (NeurIPS 2019, arXiv 1810.05723): ACIQ. The clip a of a symmetric density p of
unit scale is that of the least expected squared error, of what lies beyond it and of rounding:

    authors  2 int_a^inf (x - a)^2 p(x) dx + a^2 / (3 4^M)     2^M steps of 2 a / 2^M
             for the Laplace density: 2 e^-a + a^2 / (3 4^M)
    exact    2 int_0^inf (x - q(x))^2 p(x) dx                  q: to the nearest k D, |k| <= n,
                                                               D = a / n, n = 2^(M-1) - 1

The second is that of our symmetric grids, whose most negative code is left unused; where levels
are few it lies well below the first. Behind a Relu half a density is left and has all levels to
itself, like the half of a grid of one bit more.
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np

from onnxq.spec import Floats

# Moments of the density above t: the integrals of p, x p and x^2 p.
Moments = tuple[float, float, float]
# No clip of up to 9 bits lies beyond, in units of the scale.
FARTHEST = 16.0
GOLDEN = (math.sqrt(5) - 1) / 2
# Where the likelihoods of both densities, at their most likely scales, are equal.
MEAN_OVER_STD = math.sqrt(math.pi / (2 * math.e))


def laplace(t: float) -> Moments:
    """The Laplace density e^-|x| / 2, whose scale is mean |x|."""
    tail = math.exp(-t) / 2
    return tail, (1 + t) * tail, (2 + 2 * t + t * t) * tail


def gauss(t: float) -> Moments:
    """The normal density, whose scale is the standard deviation."""
    tail = math.erfc(t / math.sqrt(2)) / 2
    density = math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    return tail, density, tail + t * density


def authors_loss(a: float, prior: Callable[[float], Moments], bits: int) -> float:
    """Expected squared error of 2^bits steps between -a and a, rounding noise uniform."""
    m0, m1, m2 = prior(a)
    return 2 * (m2 - 2 * a * m1 + a * a * m0) + a * a / (3 * 4.0**bits)


def exact_loss(a: float, prior: Callable[[float], Moments], bits: int) -> float:
    """Expected squared error of the 2^bits - 1 values k D: E x^2 - 2 E x q + E q^2.

    q grows by D at each threshold (k - 1/2) D, which makes both expectations sums of tails.
    """
    steps = 2 ** (bits - 1) - 1
    step = a / steps
    loss = 2 * prior(0.0)[2]
    for k in range(1, steps + 1):
        m0, m1, _ = prior((k - 0.5) * step)
        loss += 2 * step * ((2 * k - 1) * step * m0 - 2 * m1)
    return loss


@cache
def constant(prior: Callable[[float], Moments], bits: int, exact: bool) -> float:
    """The clip of the least loss, in units of the density's scale, by golden section."""
    loss = exact_loss if exact else authors_loss
    low, high = 0.0, FARTHEST
    while high - low > 1e-6:
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        if loss(left, prior, bits) < loss(right, prior, bits):
            high = right
        else:
            low = left
    return (low + high) / 2


def clip(mean: Floats, std: Floats, bits: int, exact: bool) -> Floats:
    """Where to clip values of the given deviations: the constant of the likelier density, scaled.

    Which one is likelier shows in the ratio of the two deviations (Geary 1935). The authors compare
    densities with a histogram; that of a channel of a few dozen weights is mostly noise.

    Args:
        mean: Mean absolute deviation, () or (channels,).
        std: Standard deviation, of the same shape.
        bits: Of the grid.
        exact: The grid is one of those symmetric ones, or the half of one.

    Returns:
        a, float64, of the shape of ``mean``.
    """
    peaked, flat = mean * constant(laplace, bits, exact), std * constant(gauss, bits, exact)
    return np.asarray(np.where(mean < MEAN_OVER_STD * std, peaked, flat))
