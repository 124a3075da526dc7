"""Weights to integers: a range, a grid, codes."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from onnxq.errors import UnsupportedModel
from onnxq.layers import Layer, layers
from onnxq.model import Model
from onnxq.numerics import affine, ranges
from onnxq.pipeline import Outcome, Pass, Statistics
from onnxq.spec import QTensor, weight_spec


class QuantizeWeights(Pass):
    """Round every layer's weight to the nearest code of a symmetric grid.

    Attributes:
        bits: 2 to 8.
        per_channel: One scale for each output channel rather than one for the layer.
        range: How the range is chosen; ``oaq`` is the outlier-aware one.
    """

    name: ClassVar[str] = "quantize-weights"
    exact: ClassVar[bool] = False

    bits: int = Field(8, ge=2, le=8)
    per_channel: bool = True
    range: Literal["max", "percentile", "mse", "oaq"] = "max"

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Fill in ``model.weights``."""
        outcome = Outcome()
        spec = weight_spec(self.bits, self.per_channel)
        for layer in layers(model):
            if (why := model.kept_float.get(layer.name)) is not None:
                outcome.skip(layer.name, why)
                continue
            if layer.weight.size == 0:
                outcome.skip(layer.name, "its weight is empty")
                continue
            _require_finite(layer)
            axis = layer.out_axis if self.per_channel else None
            lo, hi = ranges.WEIGHT[self.range](layer.weight, spec, axis)
            params = affine.qparams(lo, hi, spec, axis)
            codes = affine.quantize(layer.weight, params)
            model.weights[layer.name] = QTensor(codes, params)
            dead = int(np.sum(~codes.any(axis=affine.reduce_axes(codes.ndim, layer.out_axis))))
            outcome.edit(layer.name, f"{self.bits} bits")
            if dead:
                outcome.remark(
                    layer.name,
                    f"{dead} of {codes.shape[layer.out_axis]} channels are dead: all zero",
                )
        return outcome


def _require_finite(layer: Layer) -> None:
    for what, values in (("weight", layer.weight), ("bias", layer.bias)):
        if values is not None and not (finite := np.isfinite(values)).all():
            raise UnsupportedModel(
                f"the {what} of {layer.name} has {np.sum(~finite)} NaN or infinite values of "
                f"{finite.size}: the model is damaged; export it again"
            )
