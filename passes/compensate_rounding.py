"""Error compensation: GPTQ, aimed at what also makes up for the errors of the layers before."""

from dataclasses import replace
from typing import ClassVar

import numpy as np

from onnxq.layers import Layer
from onnxq.numerics import affine, compensate
from onnxq.pipeline import LayerPass, Outcome, Visit
from onnxq.spec import QTensor

# With more inputs of an output channel, inverting the Hessian takes too long.
MOST_INPUTS = 8192


class CompensateRounding(LayerPass):
    """Round weights so that later ones make up for the errors of earlier ones (GPTQ).

    What the errors do to the mean of a channel is left to ``correct-bias``, which has to follow.

    Attributes:
        prefix: The weights also make up for what earlier layers did to the layer's input.
    """

    name: ClassVar[str] = "compensate-rounding"

    prefix: bool = True

    def choose(self, visit: Visit, outcome: Outcome) -> None:
        """Round the weight anew, on its grid or on one a little finer or coarser."""
        layer, weight = visit.layer, visit.model.weights[visit.layer.name]
        if (why := _obstacle(layer)) is not None:
            outcome.skip(layer.name, why)
            return
        hessian = visit.inputs.hessian
        if not np.isfinite(hessian).all():
            outcome.skip(layer.name, "it read NaN or infinite values on calibration data")
            return
        goal = layer.rows(layer.weight).astype(np.float64)
        if self.prefix:
            goal = compensate.target(goal, hessian, visit.inputs.cross)
        params, book = weight.params, weight.book
        levels, factor = compensate.compensated(
            goal,
            hessian,
            layer.rows(affine.scales(weight).astype(np.float64)),
            params.spec.qmax,
            None if book is None else book.astype(np.float64),
            # Groups of inputs have scales of their own, which were fitted to them.
            factors=np.ones(1) if params.scale.ndim > 1 else compensate.FACTORS,
            shared=params.axis is None,
        )
        if params.scale.ndim <= 1:
            factor = factor.reshape(-1)[: params.scale.size].reshape(params.scale.shape)
            params = replace(params, scale=(params.scale * factor).astype(np.float32))
        codes = levels if book is None else np.searchsorted(book, levels)
        codes = layer.from_rows(codes).reshape(weight.codes.shape).astype(weight.codes.dtype)
        visit.model.weights[layer.name] = QTensor(codes, params, book)
        outcome.edit(layer.name, f"scales times {factor.min():.2g} to {factor.max():.2g}")


def _obstacle(layer: Layer) -> str | None:
    """Why a layer's weight stays as it was rounded."""
    size = layer.rows(layer.weight).shape[2]
    if layer.op == "ConvTranspose":
        return "the outputs of a ConvTranspose overlap: rounded to nearest"
    if layer.weight_index == 0 or (layer.op == "MatMul" and layer.weight.ndim != 2):
        return "its weight is no matrix on the right: rounded to nearest"
    if layer.node.attrs.get("transA", 0):
        return "its data are transposed: rounded to nearest"
    if size > MOST_INPUTS:
        return f"it has {size} inputs, more than {MOST_INPUTS}: rounded to nearest"
    return None
