"""Sets of levels that are not evenly spaced, on [-1, 1], and weights rounded to them.

    w_hat = alpha L[nearest(w / alpha)]

| name    | levels of b bits                                                        |
|---------|-------------------------------------------------------------------------|
| pot     | 0, +-2^-k, k = 0 .. 2^(b-1) - 2                                         |
| ipot    | 0, +-1, +-(1 - 2^-k), k = 1 .. 2^(b-1) - 2: pot mirrored, dense near 1  |
| apot    | 0, +- sums of powers of two (Li et al. 2020), see ``apot``              |
| post    | 0, +-sqrt(2)^-k, k = 0 .. 2^(b-1) - 2 (arXiv 2504.17263, eq. 17)        |
| ternary | 0, +-1 (TWN); the exact optimum of alpha and of the threshold           |
| binary  | +-1 (XNOR); alpha = mean |w|                                            |
| kmeans  | whatever the weights themselves cluster to                              |

pot, ipot and post have 2^b - 1 levels: symmetric sets with a zero have an odd number.
"""

from collections.abc import Callable

import numpy as np

from onnxq.numerics.affine import TINY, broadcast, reduce_axes, rows
from onnxq.spec import SAFE, Array, Floats, Ints, QParams, QTensor, QuantSpec

# Clips tried, relative to the largest weight. Sets with few large levels pay to end beyond it.
CLIPS = 0.01 * np.arange(150, 19, -1)
# Where there is no level at zero, the weights of a dead channel are as good as that.
LEAST_CLIP = 2.0**-60
# int8 grids tried for a codebook: its largest level becomes one of these codes.
GRIDS = range(33, SAFE + 1)
LLOYD_STEPS = 50
BINS = 256
# So many values are clustered one by one; of more, what lies in so many bins is one value.
POINTS = 1 << 18


def _mirrored(magnitudes: list[float]) -> Floats:
    positive = np.unique(magnitudes) / max(magnitudes)
    return np.unique(np.concatenate([-positive, [0.0], positive]))


def uniform(bits: int) -> Floats:
    """Evenly spaced levels, (2^bits - 1,)."""
    largest = 2 ** (bits - 1) - 1
    return np.linspace(-1.0, 1.0, 2 * largest + 1)


def pot(bits: int) -> Floats:
    """Powers of two, (2^bits - 1,)."""
    return _mirrored([2.0**-k for k in range(2 ** (bits - 1) - 1)])


def ipot(bits: int) -> Floats:
    """One minus powers of two, (2^bits - 1,)."""
    return _mirrored([1.0, *(1 - 2.0**-k for k in range(1, 2 ** (bits - 1) - 1))])


def post(bits: int) -> Floats:
    """Powers of the square root of two, (2^bits - 1,)."""
    return _mirrored([2.0 ** (-k / 2) for k in range(2 ** (bits - 1) - 1)])


# The terms whose sums are the magnitudes of b - 1 bits.
APOT_TERMS: dict[int, list[list[float]]] = {
    2: [[0, 1]],
    3: [[0, 2**-1, 2**-2, 2**-3]],
    4: [[0, 2**-1, 2**-2, 2**-4], [0, 2**-3]],
    5: [[0, 2**-1, 2**-3, 2**-5], [0, 2**-2, 2**-4, 2**-6]],
}


def apot(bits: int) -> Floats:
    """Sums of powers of two, (2^bits - 1,), for 2 to 5 bits."""
    sums = np.zeros(1)
    for term in APOT_TERMS[bits]:
        sums = (sums[:, None] + np.asarray(term, np.float64)).reshape(-1)
    return _mirrored([float(s) for s in sums if s > 0])


SETS: dict[str, Callable[[int], Floats]] = {
    "pot": pot,
    "ipot": ipot,
    "apot": apot,
    "post": post,
    "ternary": lambda bits: np.array([-1.0, 0.0, 1.0]),
    "binary": lambda bits: np.array([-1.0, 1.0]),
}
# Widths that a set exists in: with more bits, powers of two add only levels that vanish beside the
# largest, and that an int8 grid does not tell apart.
WIDTHS = {
    "uniform": (2, 8),
    "pot": (2, 4), "ipot": (3, 4), "apot": (2, 5), "post": (2, 5), "kmeans": (2, 6),
    "ternary": (2, 2), "binary": (1, 1),
}  # fmt: skip


def nearest(u: Floats, levels: Floats) -> Ints:
    """Index of the nearest level, uint8, of the shape of ``u``; ``levels`` ascend."""
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, u).astype(np.uint8)


def integer_book(levels: Floats) -> tuple[Ints, Floats]:
    """The levels on an int8 grid: codes int8 (n,), and what one code is worth, float64 ().

    Of ``GRIDS`` the one with the least rounding; powers of two and their sums find one without any.
    """
    error = {m: float(np.sum((np.rint(m * levels) / m - levels) ** 2)) for m in GRIDS}
    best = min(GRIDS, key=error.__getitem__)
    return np.rint(best * levels).astype(np.int8), np.asarray(1.0 / best)


def book_rounding(name: str, bits: int) -> float:
    """Largest distance between a level and its place on the int8 grid, relative to the clip."""
    book, unit = integer_book(SETS[name](bits))
    return float(np.abs(book * unit - SETS[name](bits)).max())


def clip_mse(w: Floats, levels: Floats, axis: int | None) -> Floats:
    """The alpha with the least sum of (w - w_hat)^2, float64 () or (channels,).

    That of a dead channel is 1.

    Args:
        w: Weight of any shape.
        levels: Ascending, on [-1, 1].
        axis: Channel axis, or None for one clip.
    """
    axes = reduce_axes(w.ndim, axis)
    w = w.astype(np.float64)
    largest = np.abs(w).max(axis=axes, initial=0.0)
    largest = np.where(largest >= TINY, largest, 1.0)
    best, alpha = np.full(np.shape(largest), np.inf), largest
    for factor in CLIPS:
        clip = broadcast(np.asarray(factor * largest), w.ndim, axis)
        error = ((w - clip * levels[nearest(w / clip, levels)]) ** 2).sum(axis=axes)
        alpha = np.where(error < best, factor * largest, alpha)
        best = np.minimum(best, error)
    return alpha


def ternary_scale(w: Floats, axis: int | None) -> Floats:
    """The alpha of the best ternary weight, float64 () or (channels,).

    With the k largest magnitudes kept, alpha is their mean and the error falls by
    (sum of them)^2 / k, which is maximised over k: the exact optimum of what TWN (Li & Liu 2016)
    approximates by a threshold of 0.7 mean |w|.
    """
    magnitudes = -np.sort(-np.abs(rows(w, axis)), axis=1)
    sums = np.cumsum(magnitudes, axis=1)
    counts = np.arange(1, sums.shape[1] + 1)
    k = np.argmax(sums**2 / counts, axis=1)[:, None]
    alpha = np.take_along_axis(sums, k, axis=1) / (k + 1)
    return np.asarray(alpha.reshape(() if axis is None else -1))


def binary_scale(w: Floats, axis: int | None) -> Floats:
    """The alpha = mean |w|, float64 () or (channels,) (Rastegari et al. 2016, XNOR-Net)."""
    return np.asarray(np.abs(w.astype(np.float64)).mean(axis=reduce_axes(w.ndim, axis)))


def kmeans(u: Floats, bits: int, importance: Floats | None = None) -> Floats:
    """Cluster centers, ascending, at most 2^bits.

    Clusters on a line are intervals, so that a dynamic program over a histogram finds the best
    ones; Lloyd's steps then settle the centers on the values themselves, or on narrow bins of them.

    Args:
        u: Values of any shape, float64, at least one.
        bits: Of an index.
        importance: Weight of each value in the error, broadcast to the shape of ``u``; not all 0.
    """
    x, mass = _points(u, np.ones(()) if importance is None else importance)
    sums = np.stack([mass, mass * x, mass * x**2])
    ends = np.unique(np.searchsorted(x, np.linspace(x[0], x[-1], BINS + 1), side="right"))
    total, moment, _ = np.pad(np.cumsum(sums, axis=1), ((0, 0), (1, 0)))
    edges = _best_runs(np.add.reduceat(sums, np.append(0, ends[:-1]), axis=1), 2**bits)
    edges = np.append(0, ends)[edges]
    for _ in range(LLOYD_STEPS):
        weight = np.diff(total[edges])
        centers = (np.diff(moment[edges]) / np.where(weight > 0, weight, 1.0))[weight > 0]
        borders = np.searchsorted(x, (centers[1:] + centers[:-1]) / 2)
        moved = np.concatenate([[0], borders, [x.size]])
        if np.array_equal(moved, edges):
            break
        edges = moved
    return np.unique(centers)


def clusters(w: Floats, bits: int, axis: int | None, alpha: Floats) -> tuple[Floats, Floats]:
    """What w / alpha clusters to, outliers among it, and the clip at which these levels end.

    Args:
        w: Weight of any shape.
        bits: Of an index.
        axis: Channel axis, or None for one clip.
        alpha: What makes channels alike, () or (channels,).

    Returns:
        Levels on [-1, 1], ascending, at most 2^bits; and their clip, of the shape of ``alpha``.
    """
    alpha = np.maximum(alpha, LEAST_CLIP)
    clip = broadcast(alpha, w.ndim, axis)
    levels = kmeans(w / clip, bits, clip**2)
    outermost = np.abs(levels).max() or 1.0
    return levels / outermost, alpha * outermost


def _points(u: Floats, importance: Floats) -> tuple[Floats, Floats]:
    """Ascending values and their weights; those of many values are the means of narrow bins."""
    importance = np.broadcast_to(importance, u.shape)
    if u.size <= POINTS:
        order = np.argsort(u, axis=None)
        return u.reshape(-1)[order].astype(np.float64), importance.reshape(-1)[order]
    low = float(u.min())
    width = (float(u.max()) - low or 1.0) / (POINTS - 1)
    mass, moment = np.zeros((2, POINTS))
    rows = max(1, POINTS * len(u) // u.size)
    for start in range(0, len(u), rows):
        x, m = (a[start : start + rows].reshape(-1) for a in (u, importance))
        bins = ((x - low) / width).astype(np.int64)
        mass += np.bincount(bins, m, POINTS)
        moment += np.bincount(bins, m * x, POINTS)
    filled = mass > 0
    return moment[filled] / mass[filled], mass[filled]


def _best_runs(sums: Floats, count: int) -> Ints:
    """Borders of at most ``count`` runs of bins with the least squared error within them.

    Args:
        sums: Mass, first and second moment of each bin, (3, n).
        count: Number of runs.
    """
    mass, moment, second = np.pad(np.cumsum(sums, axis=1), ((0, 0), (1, 0)))
    weight = mass[None, :] - mass[:, None]
    spread = (moment[None, :] - moment[:, None]) ** 2 / np.where(weight > 0, weight, 1.0)
    cost = np.where(weight >= 0, second[None, :] - second[:, None] - spread, np.inf)
    cost[np.tril_indices(len(mass), -1)] = np.inf
    best, cuts = cost[0], []
    for _ in range(min(count, len(mass) - 1) - 1):
        through = best[:, None] + cost
        cuts.append(through.argmin(axis=0))
        best = through.min(axis=0)
    borders = [len(mass) - 1]
    for cut in reversed(cuts):
        borders.append(int(cut[borders[-1]]))
    return np.unique([*borders, 0])


def quantize(
    w: Floats, name: str, spec: QuantSpec, axis: int | None, alpha: Floats | None, integer: bool
) -> QTensor:
    """Round a weight to the nearest levels of a set.

    Args:
        w: Weight of any shape.
        name: Of the set.
        spec: Its bits are those of an index.
        axis: Channel axis, or None for one clip.
        alpha: The clip, () or (channels,); None for the one with the least squared error. That of
            ternary and binary weights is always the exact optimum. Clusters are not clipped: they
            are those of the weights relative to it, by default the largest weight.
        integer: Put the levels on an int8 grid, for integer kernels.
    """
    largest = np.abs(w).max(axis=reduce_axes(w.ndim, axis), initial=0.0).astype(np.float64)
    if name == "kmeans":
        levels, alpha = clusters(w, spec.bits, axis, largest if alpha is None else alpha)
    else:
        levels = SETS[name](spec.bits)
        if name == "ternary":
            alpha = ternary_scale(w, axis)
        elif name == "binary":
            alpha = np.maximum(binary_scale(w, axis), LEAST_CLIP)
        elif alpha is None:
            alpha = clip_mse(w, levels, axis)
    if integer:
        on_grid, unit = integer_book(levels)
    else:
        on_grid, unit = levels.astype(np.float32), np.ones(())
    book: Array = np.unique(on_grid)
    scale = np.asarray(alpha * unit, np.float32)
    scale = np.where(scale >= TINY, scale, np.float32(1.0))
    u = w.astype(np.float64) / broadcast(scale, w.ndim, axis)
    params = QParams(scale, np.zeros(scale.shape, np.int8), axis, spec)
    return QTensor(nearest(u, book.astype(np.float64)), params, book)
