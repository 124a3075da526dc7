"""Statistics as folds: update with an array, merge with another; memory independent of the data.

The results depend on the values seen, never on how they were batched; what a sample keeps depends
on their order, too.
"""

import math
from collections.abc import Callable
from typing import Protocol, Self

import numpy as np

from onnxq.numerics.unfold import Window, count_places, patches
from onnxq.spec import Array, Floats, Ints

BINS = 8192
# Rows of a layer's input that a sample keeps, if they are no more than so many values.
ROWS, ROW_VALUES = 2048, 1 << 21


class Observer(Protocol):
    """What calibration feeds: every tensor a pass asks for is folded into one of these."""

    def update(self, x: Floats) -> None:
        """Fold one batch of a tensor in."""

    def merge(self, other: Self) -> None:
        """Fold another observer of the same kind in."""


class MinMax:
    """Exact minimum and maximum of the finite values, and how many values there were.

    Attributes:
        lo: Minimum; +inf before the first value.
        hi: Maximum; -inf before the first value.
        count: Finite values seen.
        nonfinite: NaN and infinite values seen; they are left out of all else.
        dtype: Of the last array.
    """

    def __init__(self) -> None:
        self.dtype = np.dtype(np.float32)
        self.lo = math.inf
        self.hi = -math.inf
        self.count = 0
        self.nonfinite = 0

    def update(self, x: Floats) -> None:
        """Fold an array of any shape in; an empty one changes nothing."""
        self._finite(x)

    def merge(self, other: "MinMax") -> None:
        """Fold another observer in."""
        self.lo, self.hi = min(self.lo, other.lo), max(self.hi, other.hi)
        self.count += other.count
        self.nonfinite += other.nonfinite

    def _finite(self, x: Floats) -> Floats:
        """Count ``x`` in and return its finite values, flat."""
        self.dtype = x.dtype
        x = x.reshape(-1)
        if x.size == 0:
            return x
        lo, hi = float(x.min()), float(x.max())
        if not (math.isfinite(lo) and math.isfinite(hi)):
            finite = x[np.isfinite(x)]
            self.nonfinite += x.size - finite.size
            return self._finite(finite)
        self.lo, self.hi = min(self.lo, lo), max(self.hi, hi)
        self.count += x.size
        return x


class Histogram(MinMax):
    """MinMax and a histogram that needs no range beforehand.

    The bins cover [-radius, radius) with the radius a power of two. When a value falls outside,
    the radius doubles and pairs of bins merge. Edges are dyadic and scaling by a power of two is
    exact, so a merged count is the count that direct binning would have given.

    Attributes:
        counts: int64 (BINS,).
        radius: Half the covered range; 0 as long as only zeros were seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts = np.zeros(BINS, np.int64)
        self.radius = 0.0

    @property
    def edges(self) -> Floats:
        """Bin edges, float64 (BINS + 1,)."""
        return (np.arange(BINS + 1) - BINS // 2) * (2 * self.radius / BINS)

    @property
    def centers(self) -> Floats:
        """Bin centers, float64 (BINS,)."""
        return (self.edges[:-1] + self.edges[1:]) / 2

    def update(self, x: Floats) -> None:
        """Fold a float32 array of any shape in."""
        x = self._finite(x)
        if x.size == 0:
            return
        self._grow(max(-self.lo, self.hi))
        if self.radius:
            factor = BINS / (2 * self.radius)
            # Scaling by a power of two is exact unless it underflows, or the factor overflows.
            kind = np.float32 if 1.0 <= factor < 2.0**128 else np.float64
            index = np.floor(x * kind(factor)).astype(np.int32)
            self.counts += np.bincount(index + BINS // 2, minlength=BINS)
        else:
            self.counts[BINS // 2] += x.size

    def merge(self, other: MinMax) -> None:
        """Fold another histogram in."""
        if not isinstance(other, Histogram):
            raise TypeError("a histogram merges with a histogram")
        super().merge(other)
        theirs = Histogram()
        theirs.counts, theirs.radius = other.counts.copy(), other.radius
        largest = max(-self.lo, self.hi)
        self._grow(largest)
        theirs._grow(largest)
        self.counts += theirs.counts

    def _grow(self, largest: float) -> None:
        """Double the radius until ``largest`` lies strictly inside it."""
        if largest <= 0.0 or largest < self.radius:
            return
        radius = math.ldexp(1.0, math.frexp(largest)[1])
        if self.radius == 0.0:
            self.radius = radius
        quarter = BINS // 4
        while self.radius < radius:
            merged = np.zeros(BINS, np.int64)
            merged[quarter : 3 * quarter] = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = merged
            self.radius *= 2


class RowSample:
    """Some of the rows that a layer multiplies its weights with, any as likely as any other.

    Every row has a random key that depends on its place in the stream alone. Those with the least
    keys stay (bottom-k sampling; Cohen and Kaplan 2007).

    Args:
        window: As for ``unfold.patches``.
        groups: Channel groups of the layer.
        size: Inputs of one output channel.
    """

    def __init__(self, window: Window | None, groups: int, size: int) -> None:
        self._window = window
        self._count = 0
        self._rows = np.empty((groups, 0, size), np.float32)
        most = min(ROWS, max(1, ROW_VALUES // (groups * size)))
        # A slot is free as long as it holds the row at no place.
        self._places = np.full(most, -1)
        self._keys = np.full(most, np.iinfo(np.uint64).max)

    @property
    def rows(self) -> Floats:
        """float32 (groups, n, size), in the order of the stream."""
        order = np.argsort(self._places, kind="stable")
        return self._rows[:, order[np.count_nonzero(self._places < 0) :]]

    def update(self, x: Floats) -> None:
        """Fold one batch of the layer's input in."""
        places = np.arange(self._count, self._count + count_places(x, self._window))
        self._count += len(places)
        self._keep_least(_mixed(places), places, lambda some: patches(x, self._window, some))

    def merge(self, other: "RowSample") -> None:
        """Fold another sample in; rows at the same place of their streams stay or go together."""
        held = np.flatnonzero(other._places >= 0)
        places = other._places[held] + self._count
        self._count += other._count
        self._keep_least(other._keys[held], places, lambda some: other._rows[:, held[some]])

    def _keep_least(self, keys: Array, places: Ints, rows_at: Callable[[Ints], Floats]) -> None:
        """Put rows with small keys into the slots of those with larger ones."""
        most = len(self._keys)
        near = np.flatnonzero(keys < self._keys.max())
        kept = np.argsort(np.concatenate([self._keys, keys[near]]), kind="stable")[:most]
        new = near[np.sort(kept[kept >= most]) - most]
        if not new.size:
            return
        if not self._rows.shape[1]:
            groups, _, size = self._rows.shape
            self._rows = np.empty((groups, most, size), np.float32)
        free = np.ones(most, bool)
        free[kept[kept < most]] = False
        slots = np.flatnonzero(free)
        self._rows[:, slots] = rows_at(new)
        self._keys[slots], self._places[slots] = keys[new], places[new]


class ChannelSample(RowSample):
    """A sample of pixels or rows, and below it the least and the largest value of each channel.

    Few of many values tell little about how far they reach.
    """

    def __init__(self, window: Window | None, size: int) -> None:
        super().__init__(window, 1, size)
        self._ends = np.array([[math.inf], [-math.inf]], np.float32).repeat(size, axis=1)

    @property
    def rows(self) -> Floats:
        """float32 (1, n, size)."""
        rows = super().rows
        return np.concatenate([rows, self._ends[None]], axis=1) if rows.size else rows

    def update(self, x: Floats) -> None:
        """Fold one batch in."""
        super().update(x)
        if x.size:
            channels = np.moveaxis(x, -1 if self._window is None else 1, 0)
            channels = channels.reshape(len(channels), -1)
            self._extend(np.stack([channels.min(axis=1), channels.max(axis=1)]))

    def merge(self, other: RowSample) -> None:
        """Fold another sample in."""
        if not isinstance(other, ChannelSample):
            raise TypeError("a sample of channels merges with one")
        super().merge(other)
        self._extend(other._ends)

    def _extend(self, ends: Floats) -> None:
        self._ends[0] = np.minimum(self._ends[0], ends[0])
        self._ends[1] = np.maximum(self._ends[1], ends[1])


def _mixed(places: Ints) -> Array:
    """Pseudorandom uint64 of integers: SplitMix64 (Steele, Lea and Flood 2014)."""
    z = (places.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


class LayerInput(Histogram):
    """The histogram of what layers read, and a sample of the rows that each takes from it.

    Attributes:
        samples: By the layer's window: those that share it share their rows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.samples: dict[Window | None, RowSample] = {}

    def update(self, x: Floats) -> None:
        """Fold one batch in."""
        super().update(x)
        for sample in self.samples.values():
            sample.update(x)

    def merge(self, other: MinMax) -> None:
        """Fold another observer of the same layers in."""
        if not isinstance(other, LayerInput):
            raise TypeError("the input of layers merges with the input of layers")
        super().merge(other)
        for window, sample in self.samples.items():
            sample.merge(other.samples[window])


class ChannelMoments:
    """Range, mean and standard deviation per channel of a tensor (n, ..., c at ``axis``, ...).

    Attributes:
        lo: float64 (channels,).
        hi: float64 (channels,).
    """

    def __init__(self, axis: int = 1) -> None:
        self.axis = axis
        self.lo = np.array(math.inf)
        self.hi = np.array(-math.inf)
        self._count = 0
        self._sum = np.array(0.0)
        self._squares = np.array(0.0)

    def update(self, x: Floats) -> None:
        """Fold one batch in."""
        if x.size == 0:
            return
        rows = np.moveaxis(x, self.axis, 0).reshape(x.shape[self.axis], -1).astype(np.float64)
        self.lo = np.minimum(self.lo, rows.min(axis=1))
        self.hi = np.maximum(self.hi, rows.max(axis=1))
        self._count += rows.shape[1]
        self._sum = self._sum + rows.sum(axis=1)
        self._squares = self._squares + (rows**2).sum(axis=1)

    def merge(self, other: "ChannelMoments") -> None:
        """Fold another observer in."""
        self.lo, self.hi = np.minimum(self.lo, other.lo), np.maximum(self.hi, other.hi)
        self._count += other._count
        self._sum = self._sum + other._sum
        self._squares = self._squares + other._squares

    @property
    def mean(self) -> Floats:
        """Mean per channel."""
        return self._sum / self._count

    @property
    def std(self) -> Floats:
        """Standard deviation per channel."""
        return np.asarray(np.sqrt(np.maximum(self._squares / self._count - self.mean**2, 0.0)))
