"""The variance of every channel, which a batch normalization would have restored."""

from dataclasses import replace
from typing import ClassVar

import numpy as np

from onnxq.numerics.moments import OutputMoments
from onnxq.pipeline import LayerPass, Outcome
from onnxq.visit import Correction, Visit

# Channels whose deviation changed by more are not mended by a factor.
LEAST, MOST = 0.5, 2.0


class CorrectVariance(LayerPass):
    """Give every output channel the variance it has in the float model.

        W <- g W,  b <- g b    with g = sd[y] / sd[y_q]

    What BN re-estimation does once normalizations are folded (CalibTIP, Hubara et al. 2021). The
    factor goes into the scales of the weights; the means are left to ``correct-bias``.
    """

    name: ClassVar[str] = "correct-variance"

    def correct(self, visit: Visit, seen: OutputMoments, outcome: Outcome) -> Correction | None:
        """Multiply the layer."""
        layer, weights = visit.layer, visit.model.weights
        weight = weights[layer.name]
        if weight.params.scale.shape != (layer.c_out,):
            outcome.skip(layer.name, "its weight has no scale for each output channel")
            return None
        bias = layer.bias_or_zeros
        if bias is None:
            outcome.skip(layer.name, "its bias is not one constant per output channel")
            return None
        usable = np.isfinite(seen.var_q) & np.isfinite(seen.var) & (seen.var_q > 0) & (seen.var > 0)
        ratio = np.sqrt(np.where(usable, seen.var, 1.0) / np.where(usable, seen.var_q, 1.0))
        gain = ratio.clip(LEAST, MOST).astype(np.float32)
        scale = (weight.params.scale * gain).astype(np.float32)
        weights[layer.name] = replace(weight, params=replace(weight.params, scale=scale))
        if layer.bias is not None:
            layer.set_bias(visit.model, bias * gain)
        outcome.edit(layer.name, f"deviations times {gain.min():.3g} to {gain.max():.3g}")
        return Correction(gain, np.zeros(layer.c_out))
