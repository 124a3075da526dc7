"""The bias of an integer layer: int32 codes on the grid its accumulator already has.

s_b = s_x s_w,   b_int = round(b / s_b),   z = 0
"""

from dataclasses import replace

import numpy as np

from onnxq.numerics import affine, levels
from onnxq.numerics.affine import TINY
from onnxq.spec import Array, Floats, Ints, QTensor

# Half the int32 range, so that the products have the other half.
BIAS_MAX = 2.0**30
# Codes for the bias of a channel of zeros, where nothing else asks for a scale.
FREE_CODES = 2.0**16


def safe_weight_scale(scale: Floats, bias: Floats, input_scale: float) -> Floats:
    """The weight scales, raised where the bias would not fit or its scale would underflow.

    A nearly dead channel has a tiny s_w and with it a b_int beyond int32. Its weights matter little
    beside its bias: they are the ones to lose resolution.

    Args:
        scale: float32 () or (c_out,).
        bias: (c_out,).
        input_scale: s_x.

    Returns:
        float32 of the shape of ``scale``, never smaller than it.
    """
    largest = np.abs(bias) if scale.ndim else np.abs(bias).max(initial=0.0)
    needed = np.maximum(largest.astype(np.float64) / BIAS_MAX, 2.0 * TINY) / input_scale
    return np.maximum(scale, np.nextafter(needed.astype(np.float32), np.float32(np.inf)))


def free_weight_scale(scale: Floats, bias: Floats, input_scale: float, dead: Array) -> Floats:
    """The weight scales, chosen for the bias where all weights are zero.

    Any s_w stands for zeros, but with the neutral 1 a large s_x would round the bias away.

    Args:
        scale: float32 () or (c_out,).
        bias: (c_out,).
        input_scale: s_x.
        dead: Where all weights are zero, of the shape of ``scale``.
    """
    largest = np.abs(bias) if scale.ndim else np.abs(bias).max(initial=0.0)
    free = (largest.astype(np.float64) / FREE_CODES / input_scale).astype(np.float32)
    return np.where(dead & (free >= TINY), free, scale)


def fit_weight(weight: QTensor, bias: Floats, input_scale: float) -> tuple[QTensor, int]:
    """The weight on scales that hold the bias, and on how many channels they had to be raised.

    Args:
        weight: Its scale is () or (c_out,).
        bias: (c_out,).
        input_scale: s_x.
    """
    params, codes = weight.params, weight.levels
    dead = ~codes.any(axis=affine.reduce_axes(codes.ndim, params.axis))
    free = free_weight_scale(params.scale, bias, input_scale, np.asarray(dead))
    scale = safe_weight_scale(free, bias, input_scale)
    fitted, raised = replace(params, scale=scale), int(np.sum(scale != free))
    if weight.book is None:
        return QTensor(affine.quantize(affine.values(weight), fitted), fitted), raised
    u = affine.values(weight) / affine.broadcast(scale, codes.ndim, params.axis)
    changed = affine.broadcast(scale != params.scale, codes.ndim, params.axis)
    nearest = levels.nearest(u, weight.book.astype(np.float64))
    return QTensor(np.where(changed, nearest, weight.codes), fitted, weight.book), raised


def quantize_bias(bias: Floats, weight_scale: Floats, input_scale: float) -> tuple[Ints, Floats]:
    """Codes int32 (c_out,) and scale float32, () or (c_out,), of a bias."""
    scale = np.asarray(np.float32(input_scale) * weight_scale, np.float32)
    return np.rint(bias.astype(np.float64) / scale).astype(np.int32), scale


def exact_codes(bias: Floats) -> tuple[Ints, Floats]:
    """int32 codes and float32 scales (c_out,) whose products are the float32 bias exactly.

    A float32 has a 24-bit significand: b = m 2^e with an integer m. Values below 2^-100 round.
    """
    exponent = np.maximum(np.frexp(bias)[1] - 24, -124)
    scale = np.ldexp(np.float32(1.0), exponent)
    return np.rint(bias / scale).astype(np.int32), scale
