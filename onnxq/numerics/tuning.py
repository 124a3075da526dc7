"""Grids of activations by what rounding to them leaves in the results of whatever reads them.

A layer turns the error e = x - Q(x) of a row of its input into W e. The mean of that over all rows
is left to the correction of the bias; the rest is noise beside the layer's own signal:

    sum_c Var[w_c e] / sum_c Var[w_c x]            c: output channels

An Add, and whatever else hands the tensor on as it is, is a layer whose weights are the identity,
but has no bias to take a mean: E[e^2] / Var[x]. How large a reader's result is says nothing about
how much it matters, as any later layer can undo it; as ratios of noise to signal the readers of a
tensor can be added up. EasyQuant (Wu et al. 2020) searches scales by the results of layers in the
same way, for one layer at a time and by their cosine.
"""

from dataclasses import replace

import numpy as np

from onnxq.numerics import ranges
from onnxq.numerics.affine import fake_quantize, qparams
from onnxq.numerics.observe import Histogram
from onnxq.spec import Array, Floats, QParams, QuantSpec

# The range itself first: of equals the first is chosen.
FACTORS = (1.0, 0.9, 1.1, 0.8, 1.25, 0.7)
METHODS = ("mse", "percentile")


def candidates(seen: Histogram, spec: QuantSpec, method: str) -> list[QParams]:
    """The grid of a range method, then others around it, no two alike.

    They span the method's own range, that of the least error and that of a percentile, each times
    FACTORS as far as there are values.

    Args:
        seen: The tensor.
        spec: Of the grids.
        method: A key of ``ranges.ACTIVATION``.
    """
    ends = [ranges.ACTIVATION[name](seen, spec) for name in (method, *METHODS)]
    grids = [
        qparams(np.maximum(lo * f, seen.lo), np.minimum(hi * f, seen.hi), spec)
        for f in FACTORS
        for lo, hi in ends
    ]
    return list({(float(g.scale), int(g.zero_point)): g for g in grids}.values())


def moved(grid: QParams, factor: float) -> QParams:
    """The grid of a tensor's codes where it was multiplied with a positive factor."""
    return replace(grid, scale=np.asarray(grid.scale * np.float32(factor), np.float32))


def layer_noise(rows: Floats, weight: Floats, grids: list[QParams]) -> Array:
    """Noise to signal in the result of a layer, float64 (grids,).

    Args:
        rows: What the layer multiplies its weights with, (groups, n, inputs).
        weight: (groups, c_out / groups, inputs).
        grids: To round the rows to.
    """
    right = weight.astype(np.float64).transpose(0, 2, 1)

    def power(x: Floats) -> float:
        # The differences to one of the rows have the same variance, exactly 0 where all are equal.
        return float(((x - x[:, :1]).astype(np.float64) @ right).var(axis=1).sum())

    return _ratios([power(rows - fake_quantize(rows, g)) for g in grids], power(rows))


def noise(seen: Histogram, grids: list[QParams]) -> Array:
    """Noise to signal in the tensor itself, float64 (grids,)."""
    x = np.clip(seen.centers, seen.lo, seen.hi).astype(np.float32)

    def mean(values: Floats) -> float:
        return float(np.average(values, weights=seen.counts))

    away = x.astype(np.float64) - seen.lo  # exactly 0 where all values are equal
    errors = [mean((x - fake_quantize(x, g)).astype(np.float64) ** 2) for g in grids]
    return _ratios(errors, mean(away**2) - mean(away) ** 2)


def _ratios(errors: list[float], signal: float) -> Array:
    """Errors relative to the signal; zeros without one, whose errors are constants, too."""
    return np.array(errors) / signal if signal > 0 else np.zeros(len(errors))
