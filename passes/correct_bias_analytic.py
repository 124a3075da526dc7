"""Analytic bias correction: the means that batch normalizations tell, instead of data.

Which means those are stands in propagation.py.
"""

from typing import ClassVar

import numpy as np

from onnxq.graph.layers import layers
from onnxq.graph.model import Model
from onnxq.graph.propagation import propagate, read, response, unknown
from onnxq.numerics import affine
from onnxq.pipeline import Outcome, Pass, Statistics


class CorrectBiasAnalytic(Pass):
    """Restore the means of channels from batch normalizations, without data (DFQ, section 4.2).

        b <- b - sum over inputs and taps of (W_q - W) E[x]

    with E[x] that of the float model (Nagel et al. 2019). Near a border with padding, where fewer
    taps meet data, the sum is too large; as in the source, that is ignored. Activations count as
    floats. A layer without a bias gets one.
    """

    name: ClassVar[str] = "correct-bias-analytic"
    exact: ClassVar[bool] = False

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Move the biases of the layers in ``model.weights``."""
        outcome = Outcome()
        known = propagate(model)
        if not model.moments:
            what = "it holds no batch normalization: export it again with those it was trained with"
            outcome.remark("model", what)
        for layer in layers(model):
            bias = layer.bias_or_zeros
            if layer.name not in model.weights:
                why = model.kept_float.get(layer.name, "its weight is not quantized")
                outcome.skip(layer.name, why)
            elif (reason := unknown(layer, known)) is not None:
                outcome.skip(layer.name, reason)
            elif bias is None:
                outcome.skip(layer.name, "its bias is not one constant per output channel")
            else:
                rounded = affine.values(model.weights[layer.name]).reshape(layer.weight.shape)
                error = rounded.astype(np.float64) - layer.weight
                mean, _ = read(layer, known)
                shift = response(layer, error, mean)
                layer.set_bias(model, bias - shift)
                outcome.edit(layer.name, f"means moved by up to {np.abs(shift).max():.3g}")
        return outcome
