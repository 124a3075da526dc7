"""Weights that no layer multiplies with: embeddings, biases of attention, recurrent weights."""

import numpy as np

from onnxq.numerics import affine, ranges
from onnxq.spec import Floats, QTensor, weight_spec

SPEC = weight_spec(8, headroom=False)
# So many values share a scale, at least.
FEWEST = 16
# Signal to noise of what lies within a scale, not at its end: a mask of -100 leaves nothing of
# biases around 1 that share its scale.
LEAST_SQNR = 30.0
# Values of one sign are a mask, of which so much is off at most, or rather places than weights.
EXACT = 1e-6


def compress(x: Floats) -> QTensor | None:
    """A table in 8 bits, with a scale along the axis that leaves the least error.

    Args:
        x: Float32, of any shape.

    Returns:
        The codes; None if LEAST_SQNR, in dB, is not reached, if values have one sign and are not
        EXACT, or if they are not finite or so large that those of the codes are not.
    """
    if not np.isfinite(x).all():
        return None
    axes = [n for n, size in enumerate(x.shape) if 1 < size <= x.size // FEWEST]
    tries: list[tuple[float, int, QTensor, Floats]] = []
    for axis in (None, *axes):
        params = affine.qparams(*ranges.weight_max(x, SPEC, axis), SPEC, axis)
        codes = affine.quantize(x, params)
        with np.errstate(over="ignore"):
            error = np.square(x.astype(np.float64) - affine.dequantize(codes, params))
        tries.append((float(error.sum()), len(tries), QTensor(codes, params), error))
    *_, best, error = min(tries)
    if not np.isfinite(error).all():
        return None
    one_sided = x.min() >= 0.0 or x.max() <= 0.0
    if one_sided and error.max() > np.square(EXACT * np.abs(x).max(), dtype=np.float64):
        return None
    inside = np.abs(best.codes) < SPEC.qmax
    signal = np.square(x.astype(np.float64), where=inside, out=np.zeros(x.shape)).sum()
    noise = error.sum(where=inside)
    return best if noise * 10.0 ** (LEAST_SQNR / 10.0) <= signal else None
