"""Outlier-aware ranges by what they do to a layer's output (see numerics/oaq.py)."""

from typing import ClassVar

import numpy as np

from onnxq.numerics import compensate, oaq
from onnxq.pipeline import LayerPass, Outcome
from onnxq.visit import Visit


class SearchSigma(LayerPass):
    """Choose sigma of outlier-aware ranges by the error of the layer's output.

    Every scale has its own: that of a channel, or of the layer where its channels share one.
    """

    name: ClassVar[str] = "search-sigma"

    def choose(self, visit: Visit, outcome: Outcome) -> None:
        """Round the weight to nearest with the best sigma."""
        name, scale = visit.layer.name, visit.weight.params.scale
        why = visit.obstacle
        if scale.ndim > 1:
            why = "groups of its inputs have scales of their own"
        if why is not None:
            outcome.skip(name, why)
            return
        rows, top, book = visit.rows, visit.top, visit.book
        shared = scale.ndim == 0
        sigma, finest = oaq.sigma_output(rows, visit.inputs.hessian, top, book, shared)
        scales = finest / sigma
        visit.settle(
            compensate.to_levels(rows / scales, (-top, top), book), scales / visit.scales[:, :, :1]
        )
        outcome.edit(name, f"sigma {np.min(sigma):.2f} to {np.max(sigma):.2f}")
