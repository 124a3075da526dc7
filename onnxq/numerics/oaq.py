"""Outlier-aware quantization: scaled weight normalization with saturation.

Source: Yoo & Ban, Sensors 2025, 25(9) 2918. The equations of the paper were not available to us;
(4) and (5) are reconstructed from its algorithm listing and its table of histogram similarities,
and the factors below were measured on a trained CIFAR-10 ResNet-20, not quoted.

    M    = max |W|          of the layer, or of each output channel
    (4)  W_n = clip(sigma W / M, -1, 1)                    outliers: |W| > M / sigma
    (5)  W_q = (M / sigma) Q_b(W_n)                        Q_b: to the nearest level on [-1, 1]

sigma >= 1 spends the levels on the bulk of the weights and saturates the outliers; sigma = 1 is
plain max-abs quantization. In weight units the range is M / sigma, so it costs nothing at run time.

``compress`` and ``scale`` are two other readings of "rescaling the outliers". They change the
weights themselves, before any range is chosen, and leave the change in the deployed model.
"""

from collections.abc import Callable

import numpy as np

from onnxq.numerics import compensate
from onnxq.numerics.affine import broadcast, reduce_axes
from onnxq.numerics.levels import nearest
from onnxq.numerics.metrics import NORM, histogram_ssim
from onnxq.spec import Array, Floats, QuantSpec

# Best common sigma by mean weight SQNR over the layers of a trained ResNet-20, evenly spaced
# levels. 5 and 7 bits are interpolated between their measured neighbours.
SIGMA_PER_TENSOR = {2: 4.0, 3: 2.6, 4: 1.85, 5: 1.5, 6: 1.2, 7: 1.1, 8: 1.0}
SIGMA_PER_CHANNEL = {2: 2.7, 3: 1.55, 4: 1.15, 5: 1.05, 6: 1.0, 7: 1.0, 8: 1.0}
# The factors a search tries: 1.00, 1.05, ..., 4.00.
SIGMAS = np.arange(20, 81) / 20
# The similarity of histograms that the paper's table gives for its method.
LEAST_SSIM = 0.9613
# Of the two other readings: outliers lie beyond so many standard deviations, and are halved.
THRESHOLD = 3.0
FACTOR = 0.5


def sigma(spec: QuantSpec) -> float:
    """The tabulated scaling factor for the bit width and granularity of ``spec``."""
    return (SIGMA_PER_CHANNEL if spec.per_channel else SIGMA_PER_TENSOR)[spec.bits]


def scaled_range(w: Floats, factor: float | Floats, axis: int | None) -> tuple[Floats, Floats]:
    """The range [-M / sigma, M / sigma] that equations (4) and (5) leave to the quantizer.

    Args:
        w: Weight of any shape.
        factor: sigma, at least 1; one, or (channels,).
        axis: Output channel axis, or None for one range.

    Raises:
        ValueError: ``factor`` is below 1.
    """
    if np.any(np.asarray(factor) < 1):
        raise ValueError(f"sigma must be at least 1, not {np.min(factor)}")
    largest = np.abs(w).max(axis=reduce_axes(w.ndim, axis), initial=0.0) / factor
    return -largest, largest


def sigma_mse(w: Floats, levels: Floats, axis: int | None) -> Floats:
    """Of SIGMAS the one with the least sum of |W - W_q|^2.4, the least of equals.

    Args:
        w: Weight of any shape.
        levels: Those that Q_b of (5) rounds to: ascending, on [-1, 1].
        axis: Output channel axis, which gives each channel its own factor, or None for one.

    Returns:
        sigma, float64 () or (channels,).
    """
    axes = reduce_axes(w.ndim, axis)
    normalized = _normalized(w, axis)

    def error(factor: float) -> Floats:
        # (5) in units of M; levels end at 1, so that they saturate as (4) does.
        rounded = levels[nearest(factor * normalized, levels)] / factor
        return np.asarray((np.abs(normalized - rounded) ** NORM).sum(axis=axes))

    return np.asarray(SIGMAS[np.argmin([error(factor) for factor in SIGMAS], axis=0)])


def sigma_output(
    w: Floats, hessian: Array, top: int, book: Array | None, shared: bool
) -> tuple[Array, Array]:
    """Of SIGMAS the one with the least error of a layer's output, its mean left to the bias.

    Args:
        w: Weight, float64 (groups, rows, inputs).
        hessian: Of the inputs, float64 (groups, inputs, inputs); see numerics/moments.py.
        top: Largest level of the uniform grid.
        book: Levels, where they are not uniform.
        shared: One sigma and one M for all rows.

    Returns:
        sigma, and the scale M / top of plain max-abs quantization, each (groups, rows, 1).
    """
    largest = np.abs(w).max(axis=2, keepdims=True, initial=0.0)
    if shared:
        largest = np.full_like(largest, largest.max(initial=0.0))
    plain = np.where(largest > 0, largest, 1.0) / (top if book is None else book.max())

    def lost(factor: float) -> Array:
        scale = plain / factor
        levels = compensate.to_levels(w / scale, (-top, top), book)
        return compensate.error(scale * levels, w, hessian)

    errors = np.array([lost(factor) for factor in SIGMAS])
    if shared:
        errors[:] = errors.sum(axis=(1, 2), keepdims=True)
    return SIGMAS[errors.argmin(axis=0)][:, :, None], plain


def similarity(w: Floats, factor: float, axis: int | None) -> float:
    """SSIM of the histograms of W / M and of W_n of equation (4), at most 1."""
    normalized = _normalized(w, axis)
    return histogram_ssim(normalized, np.clip(factor * normalized, -1, 1))


def sigma_ssim(w: Floats, axis: int | None) -> float:
    """The largest of SIGMAS up to which SSIM(W / M, W_n) never falls below LEAST_SSIM.

    The similarity to the trained histogram is 1 at sigma = 1 and falls from there: to maximise it
    would always be to do nothing. What makes the search well-posed is a floor, the paper's own
    figure. It knows nothing of the bit width, hence it is no substitute for an error; and one
    channel is too few weights for a histogram, so that there is one sigma for the layer even
    where each channel has its own M.

    Args:
        w: Weight of any shape.
        axis: Channel axis of M, or None for one M.
    """
    fallen = [similarity(w, factor, axis) < LEAST_SSIM for factor in SIGMAS]
    return float(SIGMAS[np.argmax([*fallen, True]) - 1])


def threshold(w: Floats, axis: int | None) -> Floats:
    """T = 3 std(w) of each channel or of all, float64, to broadcast over ``w``."""
    std = w.astype(np.float64).std(axis=reduce_axes(w.ndim, axis))
    return broadcast(THRESHOLD * std, w.ndim, axis)


def compress(w: Floats, axis: int | None) -> Floats:
    """Weights w' = sign(w) (T + (|w| - T) / 2) where |w| > T, else w; float32."""
    t = threshold(w, axis)
    drawn_in = np.sign(w) * (t + FACTOR * (np.abs(w) - t))
    return np.where(np.abs(w) > t, drawn_in, w).astype(np.float32)


def scale(w: Floats, axis: int | None) -> Floats:
    """Weights w' = w / 2 where |w| > T, else w; float32."""
    return np.where(np.abs(w) > threshold(w, axis), FACTOR * w, w).astype(np.float32)


OUTLIERS: dict[str, Callable[[Floats, int | None], Floats]] = {"compress": compress, "scale": scale}


def _normalized(w: Floats, axis: int | None) -> Floats:
    """W / M, float64; zeros where M is 0."""
    largest = np.abs(w).max(axis=reduce_axes(w.ndim, axis), initial=0.0).astype(np.float64)
    largest = np.where(largest > 0, largest, 1.0)
    return np.asarray(w / broadcast(largest, w.ndim, axis))
