"""Residual connections apart from the layers beside them, so that each has a grid of its own."""

from typing import ClassVar

from onnxq.graph.layers import layer_of
from onnxq.graph.model import Model
from onnxq.pipeline import Outcome, Pass, Statistics

# What hands a tensor on as it is, and with it all errors of its grid.
CARRIERS = {"Add", "Concat"}


class ForkResiduals(Pass):
    """Let layers read a copy of what residual connections and concatenations carry on.

    With activations of few bits the copy is coarse, and what is carried on keeps 8 bits: errors of
    a coarse grid would add up from block to block. The copy costs a quantization of its own.
    """

    name: ClassVar[str] = "fork-residuals"
    exact: ClassVar[bool] = True

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Put an Identity before the layers that read what something carries on."""
        outcome = Outcome()
        for node in list(model.graph.nodes):
            for tensor in node.outputs:
                reading = [r for r in tensor.outputs if (la := layer_of(r)) and la.data is tensor]
                carried = any(r.op in CARRIERS and not r.domain for r in tensor.outputs)
                if reading and carried:
                    copy = model.variable(f"{tensor.name}_copy")
                    others = [r for r in tensor.outputs if all(r is not layer for layer in reading)]
                    model.redirect(tensor, copy, but=others)
                    model.add("Identity", [tensor], copy)
                    outcome.edit(tensor.name, f"{len(reading)} layers read a copy")
        return outcome
