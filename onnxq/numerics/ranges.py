"""Range estimators: from values, or from a histogram of them, to the range worth representing.

Weights are seen whole, per tensor or per channel; activations as the histogram of a stream.
"""

from collections.abc import Callable

import numpy as np

from onnxq.numerics import aciq, oaq
from onnxq.numerics.affine import fake_quantize, qparams, reduce_axes, rows
from onnxq.numerics.levels import uniform
from onnxq.numerics.metrics import NORM
from onnxq.numerics.observe import BINS, Histogram, MinMax
from onnxq.spec import Floats, QuantSpec

Range = tuple[Floats, Floats]

# Shrink factors 1, 0.99, ..., 0.21 of BRECQ, QDrop and OBC (their code).
SHRINK = 1.0 - 0.01 * np.arange(80)
# Values of a weight that are searched at a time: they stay in a core's cache.
BLOCK = 1 << 15
# Least probability of a bin in a KL divergence.
SMOOTHING = 1e-7

# Share of values inside the percentile range, by bit width: fewer levels afford fewer outliers.
INSIDE = {8: 0.9999, 7: 0.9999, 6: 0.9999, 5: 0.9995, 4: 0.999, 3: 0.995, 2: 0.99}


def weight_max(w: Floats, spec: QuantSpec, axis: int | None) -> Range:
    """Exact minimum and maximum of a weight, per channel if ``axis`` is given."""
    axes = reduce_axes(w.ndim, axis)
    return w.min(axis=axes, initial=0.0), w.max(axis=axes, initial=0.0)


def weight_percentile(w: Floats, spec: QuantSpec, axis: int | None) -> Range:
    """Symmetric range that holds the share INSIDE[bits] of the values."""
    largest = np.quantile(np.abs(w), INSIDE[spec.bits], axis=reduce_axes(w.ndim, axis))
    return -largest, largest


def weight_mse(w: Floats, spec: QuantSpec, axis: int | None) -> Range:
    """Of the shrunken max ranges, the one with the least sum of |w - w_hat|^2.4, per channel."""
    lo, hi = weight_max(w, spec, axis)
    if w.size == 0:
        return lo, hi
    channels = np.moveaxis(np.atleast_1d(w), axis or 0, 0).reshape(hi.size, -1)
    count = max(BLOCK // channels.shape[1], 1)
    blocks = (channels[i : i + count] for i in range(0, hi.size, count))
    shrink = np.concatenate([_least_error(block, spec) for block in blocks]).reshape(hi.shape)
    return lo * shrink, hi * shrink


def _least_error(channels: Floats, spec: QuantSpec) -> Floats:
    """Factors of the ranges of rows that leave the least error of the norm, (channels,)."""
    lo, hi = weight_max(channels, spec, 0)
    best = np.full(len(channels), np.inf)
    shrink = np.ones(len(channels))
    for factor in SHRINK:
        params = qparams(lo * factor, hi * factor, spec, 0)
        # What the largest value loses alone, which only grows as a range shrinks further.
        lost = np.maximum(np.maximum(hi - params.hi, params.lo - lo), 0.0) ** NORM
        if (lost >= best).all():
            break
        rest = np.abs(channels - fake_quantize(channels, params)).astype(np.float64)
        error = (rest**NORM).sum(axis=1)
        shrink = np.where(error < best, factor, shrink)
        best = np.minimum(best, error)
    return shrink


def weight_aciq(w: Floats, spec: QuantSpec, axis: int | None) -> Range:
    """Symmetric range of the least error that a Laplace or a normal density expects (ACIQ).

    The density has its center at zero, as the grid has.
    """
    axes, w = reduce_axes(w.ndim, axis), w.astype(np.float64)
    if w.size == 0:
        return weight_max(w, spec, axis)
    mean, std = np.abs(w).mean(axis=axes), np.sqrt((w**2).mean(axis=axes))
    end = np.minimum(aciq.clip(mean, std, spec.bits, exact=True), np.abs(w).max(axis=axes))
    return -end, end


def weight_entropy(w: Floats, spec: QuantSpec, axis: int | None) -> Range:
    """Range of the least divergence, as ``activation_entropy`` finds it, of each channel.

    The histogram of few weights is one of single values, which a grid that clips nothing describes
    without loss: there it is the range of ``max``. The divergence is meant for whole tensors.
    """
    ends = []
    for row in rows(w, axis):
        seen = Histogram()
        seen.update(row.astype(np.float32))
        ends.append(activation_entropy(seen, spec))
    lo, hi = np.array(ends).reshape(-1, 2).T
    return (lo[0], hi[0]) if axis is None else (lo, hi)


def weight_oaq(w: Floats, spec: QuantSpec, axis: int | None) -> Range:
    """Outlier-aware range with the tabulated sigma (see numerics/oaq.py)."""
    return oaq.scaled_range(w, oaq.sigma(spec), axis)


def weight_oaq_mse(w: Floats, spec: QuantSpec, axis: int | None) -> Range:
    """Outlier-aware range with the sigma of the least error, for evenly spaced levels."""
    return oaq.scaled_range(w, oaq.sigma_mse(w, uniform(spec.bits), axis), axis)


def weight_oaq_ssim(w: Floats, spec: QuantSpec, axis: int | None) -> Range:
    """Outlier-aware range with the largest sigma that keeps the histogram similar; any bits."""
    return oaq.scaled_range(w, oaq.sigma_ssim(w, axis), axis)


def activation_minmax(seen: MinMax, spec: QuantSpec) -> Range:
    """Exact minimum and maximum of the stream."""
    return np.asarray(seen.lo), np.asarray(seen.hi)


def activation_percentile(seen: Histogram, spec: QuantSpec) -> Range:
    """Range that leaves half of the share 1 - INSIDE[bits] out at either end that is not zero."""
    share = np.cumsum(seen.counts) / seen.counts.sum()
    outside = (1.0 - INSIDE[spec.bits]) / (2 if seen.lo < 0 < seen.hi else 1)
    lo = seen.edges[np.searchsorted(share, outside, side="right")]
    hi = seen.edges[np.searchsorted(share, 1.0 - outside) + 1]
    return np.asarray(max(lo, seen.lo)), np.asarray(min(hi, seen.hi))


def activation_mse(seen: Histogram, spec: QuantSpec) -> Range:
    """Range with the least squared error on the histogram.

    Both ends shrink together first, then each alone: the two tails of a stream rarely agree.
    """
    x, counts = _occupied(seen)

    def error(lo: float, hi: float) -> float:
        params = qparams(np.asarray(lo), np.asarray(hi), spec)
        return float(np.dot(counts, (x - fake_quantize(x, params)).astype(np.float64) ** 2))

    lo, hi = seen.lo, seen.hi
    ends = [(lo * f, hi * f) for f in SHRINK]
    lo, hi = min(ends, key=lambda end: error(*end))
    if seen.lo < 0 < seen.hi:
        lo = min((seen.lo * f for f in SHRINK), key=lambda end: error(end, hi))
        hi = min((seen.hi * f for f in SHRINK), key=lambda end: error(lo, end))
    return np.asarray(lo), np.asarray(hi)


def activation_aciq(seen: Histogram, spec: QuantSpec) -> Range:
    """Range of the least error that a Laplace or a normal density expects (ACIQ).

    One side of zero: half a density, its scale that of the values above zero. Zeros are exact, and
    a Relu makes as many of them as it likes. Both sides: the density's center is the mean.
    """
    x, counts = _occupied(seen)
    x = x.astype(np.float64)  # whose squares do not underflow
    one_sided = seen.lo >= 0
    if one_sided:
        x, counts = (side[x >= 2 * seen.radius / BINS] for side in (x, counts))
    if counts.sum() == 0:
        return np.asarray(seen.lo), np.asarray(seen.hi)
    center = 0.0 if one_sided else np.average(x, weights=counts)
    mean = np.average(np.abs(x - center), weights=counts)
    std = np.sqrt(np.average((x - center) ** 2, weights=counts))
    reach = aciq.clip(mean, std, spec.bits + one_sided, exact=one_sided)
    lo, hi = np.maximum(center - reach, seen.lo), np.minimum(center + reach, seen.hi)
    return lo, hi


def activation_entropy(seen: Histogram, spec: QuantSpec) -> Range:
    """Range whose quantized distribution diverges least from the clipped one (KL).

    P is the histogram inside the range with the outliers' mass on its end bins, Q spreads the mass
    of every quantization level evenly over the level's occupied bins; argmin of KL(P || Q) over
    the shrunken ranges. The TensorRT recipe, with the histogram's own bins.
    """
    x, counts = _occupied(seen)
    # Zero lies on every grid. Behind a Relu its bin holds half the mass, and spreading that over a
    # level would outweigh all else.
    counts = np.where((x >= 0) & (x < 2 * seen.radius / BINS), 0.0, counts)

    def divergence(factor: float) -> float:
        params = qparams(np.asarray(seen.lo * factor), np.asarray(seen.hi * factor), spec)
        inside = (x >= float(params.lo)) & (x <= float(params.hi))
        if counts[inside].sum() == 0:
            return np.inf
        p = np.where(inside, counts, 0.0)
        first, last = np.flatnonzero(inside)[[0, -1]]
        p[first] += counts[:first].sum()
        p[last] += counts[last + 1 :].sum()
        kept, raw = p[inside], counts[inside]
        levels = np.rint(x[inside] / params.scale).astype(np.int64)
        levels -= levels.min()
        mass = np.bincount(levels, raw)[levels] / np.bincount(levels)[levels]
        p_norm, q_norm = kept / kept.sum(), mass / mass.sum()
        some = p_norm > 0
        ratio = p_norm[some] / np.maximum(q_norm[some], SMOOTHING)
        return float(np.sum(p_norm[some] * np.log(ratio)))

    factor = min(SHRINK, key=divergence)
    return np.asarray(seen.lo * factor), np.asarray(seen.hi * factor)


def _occupied(seen: Histogram) -> tuple[Floats, Floats]:
    """Centers (clipped to the exact range) and counts of the bins that hold anything."""
    occupied = seen.counts > 0
    x = np.clip(seen.centers[occupied], seen.lo, seen.hi).astype(np.float32)
    return x, seen.counts[occupied].astype(np.float64)


WEIGHT: dict[str, Callable[[Floats, QuantSpec, int | None], Range]] = {
    "max": weight_max,
    "percentile": weight_percentile,
    "mse": weight_mse,
    "aciq": weight_aciq,
    "entropy": weight_entropy,
    "oaq": weight_oaq,
    "oaq-mse": weight_oaq_mse,
    "oaq-ssim": weight_oaq_ssim,
}

ACTIVATION: dict[str, Callable[[Histogram, QuantSpec], Range]] = {
    "minmax": activation_minmax,
    "percentile": activation_percentile,
    "mse": activation_mse,
    "aciq": activation_aciq,
    "entropy": activation_entropy,
}
