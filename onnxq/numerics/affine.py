"""The uniform affine quantizer, with the arithmetic of ONNX QuantizeLinear (opset 21).

    x_int = saturate(round_half_even(x / s) + z)        x_hat = s (x_int - z)

The division is a float32 division: multiplying by the reciprocal of the scale gives other codes.
"""

from dataclasses import replace

import numpy as np

from onnxq.spec import Array, Floats, Ints, QParams, QTensor, QuantSpec

# Scales below the smallest normal float32 are flushed to zero by some kernels.
TINY = np.finfo(np.float32).tiny
# A share of a scale by which ``aligned`` moves it; seldom enough below 8 bits.
MOST_CHANGE = 0.01


def broadcast(values: Array, ndim: int, axis: int | None) -> Array:
    """Shape per-channel ``values`` (c,) to broadcast over an ``ndim`` array at ``axis``."""
    if axis is None:
        return values
    shape = [1] * ndim
    shape[axis] = -1
    return values.reshape(shape)


def reduce_axes(ndim: int, axis: int | None) -> tuple[int, ...]:
    """All axes of an ``ndim`` array but the channel axis."""
    return tuple(i for i in range(ndim) if axis is None or i != axis % ndim)


def rows(x: Floats, axis: int | None) -> Floats:
    """``x`` as a matrix, float64 (channels, n): a row for each channel, or (1, n) without axis."""
    x = x.astype(np.float64)
    return x.reshape(1, -1) if axis is None else np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)


def qparams(lo: Floats, hi: Floats, spec: QuantSpec, axis: int | None = None) -> QParams:
    """Choose scale and zero point for the range [lo, hi], widened to hold zero exactly.

    Symmetric: s = max(|lo|, |hi|) / qmax, z = 0. Asymmetric: s = (hi - lo) / (qmax - qmin),
    z = round(qmin - lo / s). A range too small for a normal float32 scale (a dead channel) gets
    scale 1: all its values quantize to zero, and the guard sits on the computed scale.

    Args:
        lo: Range ends, () or (channels,).
        hi: Same shape as ``lo``.
        spec: The grid.
        axis: Channel axis when the ends are per channel.
    """
    lo64 = np.minimum(np.asarray(lo, np.float64), 0.0)
    hi64 = np.maximum(np.asarray(hi, np.float64), 0.0)
    span = np.maximum(-lo64, hi64) if spec.symmetric else hi64 - lo64
    steps = spec.qmax if spec.symmetric else spec.qmax - spec.qmin
    scale = (span / steps).astype(np.float32)
    scale = np.where(scale >= TINY, scale, np.float32(1.0))
    zero = np.zeros_like(lo64) if spec.symmetric else np.rint(spec.qmin - lo64 / scale)
    zero_point = np.clip(zero, spec.qmin, spec.qmax).astype(spec.dtype)
    return QParams(np.asarray(scale, np.float32), np.asarray(zero_point), axis, spec)


def aligned(params: QParams, by: float, number: float) -> tuple[QParams, QParams] | None:
    """Grids of x and of ``by`` x + ``number`` on which both have the same codes.

        by s (q - z) + number = by s (q - (z - number / (by s)))

    is exact where the quotient is whole: the scale is moved until it is.

    Args:
        params: Of x, one scale and zero point.
        by: Positive.
        number: Not zero.

    Returns:
        Both grids; None if the scale had to change by more than MOST_CHANGE, or if the second grid
        had its zero point outside its codes.
    """
    steps = np.rint(abs(number) / (by * float(params.scale)))
    if not 1 <= steps <= params.spec.qmax - params.spec.qmin:
        return None
    zero = int(params.zero_point) - int(np.sign(number) * steps)
    scale = np.asarray(abs(number) / (by * steps), np.float32)
    moves = abs(scale / params.scale - 1.0) > MOST_CHANGE
    if moves or not params.spec.qmin <= zero <= params.spec.qmax:
        return None
    shifted = np.asarray(zero, params.zero_point.dtype)
    grid = replace(params, scale=scale)
    return grid, replace(grid, scale=np.asarray(by * scale, np.float32), zero_point=shifted)


def quantize(x: Floats, params: QParams) -> Ints:
    """Codes of ``x``, bit-equal to onnxruntime's QuantizeLinear followed by the grid's clip."""
    spec = params.spec
    scale = broadcast(params.scale, x.ndim, params.axis)
    zero = broadcast(params.zero_point.astype(np.float32), x.ndim, params.axis)
    # A quotient may overflow to infinity; the clip is what ONNX calls saturation.
    with np.errstate(over="ignore"):
        codes = np.rint(x.astype(np.float32, copy=False) / scale) + zero
    return np.asarray(np.clip(codes, spec.qmin, spec.qmax).astype(spec.dtype))


def clip(x: Floats, params: QParams) -> Floats:
    """``x`` cut off at the ends of the grid."""
    lo, hi = (broadcast(end, x.ndim, params.axis) for end in (params.lo, params.hi))
    return np.asarray(np.clip(x, lo, hi))


def dequantize(codes: Ints, params: QParams) -> Floats:
    """Real values of ``codes``, float32, with ONNX DequantizeLinear's arithmetic."""
    scale = broadcast(params.scale, codes.ndim, params.axis)
    zero = broadcast(params.zero_point.astype(np.int32), codes.ndim, params.axis)
    return np.asarray((codes.astype(np.int32) - zero).astype(np.float32) * scale)


def fake_quantize(x: Floats, params: QParams) -> Floats:
    """``x`` rounded to the grid, float32."""
    return dequantize(quantize(x, params), params)


def scales(weight: QTensor) -> Floats:
    """The scale of every value of a quantized weight, float32, of the shape of its codes."""
    shape = weight.codes.shape
    return np.broadcast_to(broadcast(weight.params.scale, len(shape), weight.params.axis), shape)


def values(weight: QTensor) -> Floats:
    """Real values of a quantized weight, float32."""
    return np.asarray(weight.levels.astype(np.float32) * scales(weight))
