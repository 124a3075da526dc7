"""Iterative bias correction: the mean of every channel, restored layer by layer."""

from typing import ClassVar

import numpy as np

from onnxq.numerics.moments import OutputMoments
from onnxq.pipeline import LayerPass, Outcome
from onnxq.visit import Correction, Visit


class CorrectBias(LayerPass):
    """Give every output channel the mean it has in the float model (IBC, Finkelstein et al. 2019).

        b <- b + E[y] - E[y_q]

    with y_q computed behind layers that are quantized and corrected already. This is the bias that
    minimises E|y - y_q|^2. A layer without a bias gets one.
    """

    name: ClassVar[str] = "correct-bias"

    def correct(self, visit: Visit, seen: OutputMoments, outcome: Outcome) -> Correction | None:
        """Move the bias."""
        layer = visit.layer
        if not np.isfinite(seen.shift).all():
            outcome.skip(layer.name, "it returned NaN or infinite values on calibration data")
            return None
        bias = layer.bias_or_zeros
        if bias is None:
            outcome.skip(layer.name, "its bias is not one constant per output channel")
            return None
        outcome.edit(
            layer.name,
            f"{seen.share:.0%} of the error was a shift of means, {seen.ratio:.2%} of the signal",
        )
        layer.set_bias(visit.model, bias - seen.shift)
        return Correction(np.ones(layer.c_out), -seen.shift)
