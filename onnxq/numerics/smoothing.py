"""Factors of channels between the noise of rounded activations and that of rounded weights.

Divided by s_i, channel i of a tensor is rounded, on the one grid of the tensor, as if it had a grid
of its own with a step of d s_i, where d is the step of the tensor; and the weights that read it
become s_i W_i, on a grid that weights of the same output channel share. In what the layers return
both are noise, of the power

    activations    sum_i P_i n_i(d s_i)                         n_i(t) = E[(x_i - Q_t(x_i))^2]
    weights        rho (sum_i P_i s_i^2) mean_i(E_i / s_i^2)

with P_i = |W_i|^2, E_i = E[x_i^2], and rho the error of rounded weights relative to their power.
The first line is one for each tensor with a grid, whether it is read by layers or by what layers
read: there P_i are those of the layers that it reaches. In a depthwise layer every channel is a
group of its own, in which s_i cancels from the second line. Of that line only what exceeds its
value at s = 1 is counted: weights spread more evenly over their channels are no gain once rounding
makes up for itself.

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
# A channel with values below this, or below that part of the largest, is dead for float32.
TINY, LEAST = 1e-36, 1e-8
# What either kind of noise of weights is weighed with, see _least.
WEIGHED = np.exp2(np.arange(-6, 7))
# What rounding that makes up for itself (GPTQ) leaves of the error of weights: W4A8 and W4A4 of
# resnet20_cifar10 have noise of 0.0022 and 0.0139, where the two lines are about equal without.
LEFT = 0.2
# Where 8 bits round, what lies beyond the values seen errs more than rounding. On one grid narrow
# channels have room for it; of that they keep some with factors s^SHARE. Of 0.5, 0.7, 0.85 and 1,
# on seven networks, none is best everywhere; 1 is worst where calibration data are few.
SHARE = 0.7
# Values in a row of blocks that fit a processor's cache.
BLOCK = 1 << 16


@dataclass(frozen=True, eq=False)
class Read:
    """A tensor on a grid of its own.

    Attributes:
        own: Its channels among all.
        rows: A sample of it, float32 (n, channels).
        bits: Of the grid.
        power: What noise in each channel is weighed with, float64 (channels,): P of all layers that
            it reaches.
        layers: Of each layer that reads it the channel groups and P, float64 (channels,).
        slopes: What is left of an error in ``rows`` before layers read it, float32 of that shape;
            None where all is.
    """

    own: slice
    rows: Floats
    bits: int
    power: Floats
    layers: Sequence[tuple[int, Floats]] = ()
    slopes: Floats | None = None

    def without(self, dead: Array) -> "Read":
        """The same with no data and no weights in channels that are dead, bool (all channels,)."""
        gone = dead[self.own]
        rows = np.where(gone, np.float32(0.0), self.rows)
        layers = [(groups, power * ~gone) for groups, power in self.layers]
        return replace(self, rows=rows, power=self.power * ~gone, layers=layers)

    @cached_property
    def energy(self) -> Floats:
        """E, float64 (channels,)."""
        return np.asarray(np.square(self.rows, dtype=np.float64).mean(axis=0))


@dataclass(frozen=True)
class Grid:
    """The grid of a tensor as long as it cuts nothing off.

    Attributes:
        step: Between two codes.
        low: The least code.
        high: The largest code.
    """

    step: float
    low: int
    high: int


def weight_noise(bits: int) -> float:
    """Rho of normal weights on the best levels of ``bits``, after error compensation.

    sqrt(3) pi / 2 x 4^-bits is the noise of many levels (Panter and Dite 1951).
    """
    return LEFT * math.sqrt(3.0) * math.pi / 2.0 * 4.0**-bits


def factors(reads: Sequence[Read], free: Array, rho: float) -> tuple[Floats, float]:
    """The factors s, float64 (channels,), and the noise with them relative to that without.

    Channels that must stay as they are, and those that are dead or not finite, have 1.

    Args:
        reads: Tensors, of which some channels may be the same.
        free: Which channels can take a factor, bool (channels,).
        rho: See above.
    """
    reads = [_finite(read) for read in reads]
    whole, grids = _grids(reads, free.size)
    alive = whole > LEAST
    reads = [read.without(~alive) for read in reads]
    taking, held = alive & free, alive & ~free
    if not taking.any():
        return np.ones(free.size), 1.0
    shared = _rounded(reads, np.tile(TRIED, (free.size, 1)), grids)
    carried = _carried(reads, np.ones(free.size))
    before = sum(noise.sum(axis=0).min() for noise in shared) + rho * carried
    steps = np.where(alive, whole, 1.0)[:, None] * TRIED
    if held.any():
        steps[held] = TRIED[np.sum(shared, axis=0)[held].sum(axis=0).argmin()]
    noise = np.sum(_rounded(reads, steps, grids), axis=0)
    s, after = _least(reads, steps, noise, taking, rho, carried)
    unit = s[held][0] if held.any() else np.exp(np.log(s[taking]).mean())
    s = np.where(taking, s / unit, 1.0)
    if all(grid.high - grid.low == 255 for grid in grids):
        s = s**SHARE
        tried = TRIED[::2] * (whole / s).max() * s[:, None]
        after = sum(noise.sum(axis=0).min() for noise in _rounded(reads, tried, grids))
        after += rho * max(_carried(reads, s), carried)
    return s, float(after / before)


def _finite(read: Read) -> Read:
    """A tensor with zeros for channels that are not finite."""
    return replace(read, rows=np.where(np.isfinite(read.rows).all(axis=0), read.rows, 0.0))


def _grids(reads: Sequence[Read], count: int) -> tuple[Floats, list[Grid]]:
    """The largest value of each channel, relative to that of its tensor, and the grids.

    It is 0 where there is nothing, or no layer sees it.
    """
    whole, grids = np.zeros(count), []
    for read in reads:
        below, above = (
            np.maximum(end.astype(np.float64), 0.0) * (read.power > 0.0)
            for end in (-read.rows.min(axis=0), read.rows.max(axis=0))
        )
        largest = np.maximum(below, above)
        seen = np.where(largest > TINY, largest, np.inf)
        below, above = float((below / seen).max()), float((above / seen).max())
        levels = 2**read.bits - 1
        low = -round(levels * below / (below + above)) if below > 0.0 else 0
        step = largest.max() * (below + above) / levels
        grids.append(Grid(step, low, low + levels))
        if step > 0.0:
            whole[read.own] = np.maximum(whole[read.own], largest / largest.max())
    return whole, grids


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


def _rounded(reads: Sequence[Read], steps: Floats, grids: Sequence[Grid]) -> list[Floats]:
    """P_i n_i of each tensor at every step of its grid, float64 (channels, steps)."""
    results: list[Floats] = []
    for read, grid in zip(reads, grids, strict=True):
        found = np.zeros(steps.shape)
        results.append(found)
        if not grid.step:
            continue
        tried = steps[read.own] * grid.step
        total = np.zeros(tried.shape)
        count = max(1, BLOCK // read.rows.shape[1])
        for start in range(0, len(read.rows), count):
            block = slice(start, start + count)
            for k, step in enumerate(tried.astype(np.float32).T):
                error = read.rows[block] / step
                error -= np.rint(error).clip(grid.low, grid.high)
                if read.slopes is not None:
                    error *= read.slopes[block]
                total[:, k] += np.einsum("ij,ij->j", error, error)
        found[read.own] = read.power[:, None] * total / len(read.rows) * tried**2
    return results


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
