"""Batch normalization as an affine map per channel, folded into a neighbouring layer.

    BN(y) = a y + d,   a = gamma / sqrt(var + eps),   d = beta - a mean

After the layer   y = W x + b:   a (W x + b) + d  = (a W) x + (a b + d)
Before the layer  W BN(x) + b:   W (a x + d) + b  = (W a) x + (b + sum over inputs of W d)

All sums run in float64; results are float32.
"""

import numpy as np

from onnxq.numerics.affine import broadcast
from onnxq.spec import Floats


def affine_of_batchnorm(
    gamma: Floats, beta: Floats, mean: Floats, var: Floats, eps: float
) -> tuple[Floats, Floats]:
    """A and d, float64 (channels,), of an inference-mode BatchNormalization."""
    a = gamma.astype(np.float64) / np.sqrt(var.astype(np.float64) + eps)
    return a, beta.astype(np.float64) - a * mean.astype(np.float64)


def fold_after(
    w: Floats, b: Floats, a: Floats, d: Floats, a_over_w: Floats
) -> tuple[Floats, Floats]:
    """Weight and bias of ``layer then affine``.

    Args:
        w: Weight of any layout.
        b: Bias (c_out,).
        a: Factor (c_out,).
        d: Offset (c_out,).
        a_over_w: ``a`` shaped so that it broadcasts over the output channels of ``w``.
    """
    return (w.astype(np.float64) * a_over_w).astype(np.float32), (a * b + d).astype(np.float32)


def fold_before(w: Floats, b: Floats, a: Floats, d: Floats, groups: int) -> tuple[Floats, Floats]:
    """Weight and bias of ``affine then layer``; exact only where the layer pads with nothing.

    Args:
        w: Weight (c_out, c_in / groups, *kernel).
        b: Bias (c_out,).
        a: Factor (c_in,).
        d: Offset (c_in,).
        groups: Channel groups; output block g reads input block g.
    """
    per_group = (groups, 1, w.shape[1]) + (1,) * (w.ndim - 2)
    grouped = w.astype(np.float64).reshape(groups, -1, *w.shape[1:])
    shift = (grouped * d.reshape(per_group)).sum(axis=tuple(range(2, grouped.ndim)))
    scaled = (grouped * a.reshape(per_group)).reshape(w.shape)
    return scaled.astype(np.float32), (b + shift.reshape(-1)).astype(np.float32)


def scale_inputs(w: Floats, a: Floats, in_axis: int) -> Floats:
    """Weight of ``affine then layer`` where the offset is zero: W a, at any border.

    Args:
        w: Weight with all its input channels at ``in_axis``.
        a: Factor (c_in,).
        in_axis: Input channel axis of ``w``.
    """
    return np.asarray((w.astype(np.float64) * broadcast(a, w.ndim, in_axis)).astype(np.float32))
