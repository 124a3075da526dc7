"""Factors of channels between the noise of rounded activations and that of rounded weights.

Divided by s_i, channel i of a tensor is rounded, on the one grid of the tensor, as if it had a grid
of its own with a step of s_i; and the weights that read it become s_i W_i, on a grid that weights
of the same output channel share. In what the layers return both are noise, of the power

    activations    sum_i P_i n_i(s_i)                           n_i(s) = E[(x_i - Q_s(x_i))^2]
    weights        rho (sum_i P_i s_i^2) mean_i(E_i / s_i^2)

with P_i = |W_i|^2, E_i = E[x_i^2], and rho the error of rounded weights relative to their power.
In a depthwise layer every channel is a group of its own, in which s_i cancels from the second line.
Of that line only what exceeds its value at s = 1 is counted: weights spread more evenly over their
channels are no gain once rounding makes up for itself.

SmoothQuant (Xiao et al. 2023, arXiv 2211.10438) sets s_i = max |x_i|^a / max |W_i|^(1 - a), with an
exponent to be found by trial; here the sum of both lines is minimized, over n_i as it was measured.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from onnxq.spec import Array, Floats

# Steps that are tried for a channel, relative to the one that cuts nothing off.
TRIED = np.exp2(np.arange(24, -31, -1) / 6)
# A channel with steps below this, or below that part of the largest, is dead for float32.
TINY, LEAST = 1e-36, 1e-8
# What either kind of noise of weights is weighed with, see _least.
WEIGHED = np.exp2(np.arange(-6, 7))
# What rounding that makes up for itself (GPTQ) leaves of the error of weights: W4A8 and W4A4 of
# resnet20_cifar10 have noise of 0.0022 and 0.0139, where the two lines are about equal without.
LEFT = 0.2


@dataclass(frozen=True, eq=False)
class Read:
    """A tensor that layers read.

    Attributes:
        own: Its channels among all.
        rows: A sample of it, float32 (n, channels).
        layers: Of each layer the channel groups and P, float64 (channels,).
    """

    own: slice
    rows: Floats
    layers: Sequence[tuple[int, Floats]]

    def without(self, dead: Array) -> "Read":
        """The same with no data and no weights in channels that are dead, bool (all channels,)."""
        rows = np.where(dead[self.own], np.float32(0.0), self.rows)
        layers = [(groups, power * ~dead[self.own]) for groups, power in self.layers]
        return replace(self, rows=rows, layers=layers)

    @cached_property
    def energy(self) -> Floats:
        """E, float64 (channels,)."""
        return np.asarray(np.square(self.rows, dtype=np.float64).mean(axis=0))

    @cached_property
    def power(self) -> Floats:
        """P of all layers together, float64 (channels,)."""
        return np.asarray(np.sum([power for _, power in self.layers], axis=0))


def weight_noise(bits: int) -> float:
    """Rho of normal weights on the best levels of ``bits``, after error compensation.

    sqrt(3) pi / 2 x 4^-bits is the noise of many levels (Panter and Dite 1951).
    """
    return LEFT * math.sqrt(3.0) * math.pi / 2.0 * 4.0**-bits


def factors(reads: Sequence[Read], free: Array, bits: int, rho: float) -> tuple[Floats, float]:
    """The factors s, float64 (channels,), and the noise with them relative to that without.

    Channels that must stay as they are, and those that are dead or not finite, have 1.

    Args:
        reads: Tensors, of which some channels may be the same.
        free: Which channels can take a factor, bool (channels,).
        bits: Of the activations.
        rho: See above.
    """
    reads = [_finite(read) for read in reads]
    whole, ends = _grids(reads, free.size, bits)
    alive = whole > max(TINY, LEAST * whole.max(initial=0.0))
    reads = [read.without(~alive) for read in reads]
    taking, held = alive & free, alive & ~free
    if not taking.any():
        return np.ones(free.size), 1.0
    common = whole.max() * TRIED
    shared = _rounded(reads, np.tile(common, (free.size, 1)), ends)
    carried = _carried(reads, np.ones(free.size))
    before = shared.sum(axis=0).min() + rho * carried
    steps = np.where(alive, whole, 1.0)[:, None] * TRIED
    if held.any():
        steps[held] = common[shared[held].sum(axis=0).argmin()]
    s, after = _least(reads, steps, _rounded(reads, steps, ends), taking, rho, carried)
    unit = s[held][0] if held.any() else np.exp(np.log(s[taking]).mean())
    return np.where(taking, s / unit, 1.0), float(after / before)


def _finite(read: Read) -> Read:
    """A tensor with zeros for channels that are not finite."""
    return replace(read, rows=np.where(np.isfinite(read.rows).all(axis=0), read.rows, 0.0))


def _grids(reads: Sequence[Read], count: int, bits: int) -> tuple[Floats, tuple[int, int]]:
    """Steps at which no channel is cut off, 0 where nothing is, and the codes that grids end at."""
    power, lo, hi = np.zeros((3, count))
    for read in reads:
        power[read.own] += read.power
        lo[read.own] = np.minimum(lo[read.own], read.rows.min(axis=0))
        hi[read.own] = np.maximum(hi[read.own], read.rows.max(axis=0))
    largest = np.where(power > 0.0, np.maximum(-lo, hi), 0.0)
    below, above = (
        float((end / np.where(largest > 0.0, largest, np.inf)).max()) for end in (-lo, hi)
    )
    levels = 2**bits - 1
    low = -round(levels * below / (below + above)) if below > 0.0 else 0
    return largest * (below + above) / levels, (low, low + levels)


def _least(
    reads: Sequence[Read], steps: Floats, noise: Floats, taking: Array, rho: float, carried: float
) -> tuple[Floats, float]:
    """The steps with the least noise, one of each row of ``steps``, and that noise.

    Where the sum is least, each channel is where n_i(s) P_i + a P_i s^2 + b E_i / s^2 is least, for
    some a and b that all channels share: what the second line weighs either of its factors with.
    These are tried, relative to what they are at the best steps for activations alone.
    """
    rows = np.arange(len(steps))
    weights, data = _factors_alone(reads, steps, steps[rows, noise.argmin(axis=1)])
    best: tuple[Floats, float] = np.ones(len(steps)), math.inf
    for a, b in itertools.product(WEIGHED, WEIGHED):
        costs = noise + rho * (a * weights + b * data)
        chosen = np.where(taking, costs.argmin(axis=1), 0)
        s = steps[rows, chosen]
        total = float(noise[rows, chosen].sum() + rho * max(_carried(reads, s), carried))
        best = min(best, (s, total), key=lambda pair: pair[1])
    return best


def _rounded(reads: Sequence[Read], steps: Floats, ends: tuple[int, int]) -> Floats:
    """P_i n_i at every step, float64 (channels, steps); grids have the codes between ``ends``."""
    found = np.zeros(steps.shape)
    for read in reads:
        for k, step in enumerate(steps[read.own].astype(np.float32).T):
            error = read.rows / step
            error -= np.rint(error).clip(*ends)
            mean = np.einsum("ij,ij->j", error, error) / len(error)
            found[read.own, k] += read.power * mean * step.astype(np.float64) ** 2
    return found


def _carried(reads: Sequence[Read], s: Floats) -> float:
    """What rho is multiplied with in the second line."""
    total = 0.0
    for read in reads:
        own = s[read.own]
        for groups, power in read.layers:
            weights, data = power * own**2, read.energy / own**2
            total += _by_group(weights, groups).sum(axis=1) @ _by_group(data, groups).mean(axis=1)
    return float(total)


def _factors_alone(reads: Sequence[Read], steps: Floats, s: Floats) -> tuple[Floats, Floats]:
    """Either factor of the second line at every step of a channel, times the other one at s.

    Both float64 (channels, steps).
    """
    weights, data = np.zeros((2, *steps.shape))
    for read in reads:
        own, tried = s[read.own], steps[read.own] ** 2
        for groups, power in read.layers:
            size = own.size // groups
            mean = _by_group(read.energy / own**2, groups).mean(axis=1).repeat(size)
            total = _by_group(power * own**2, groups).sum(axis=1).repeat(size)
            weights[read.own] += (mean * power)[:, None] * tried
            data[read.own] += (total * read.energy)[:, None] / (size * tried)
    return weights, data


def _by_group(values: Floats, groups: int) -> Floats:
    return values.reshape(groups, -1)
