"""Mish takes onnxruntime ten times as long as what it can be computed by.

    Mish(x) = x tanh(ln(1 + e^x)) = x n / (n + 2),    n = e^x (e^x + 2)

Its Softplus goes from number to number; Exp and the others take eight or sixteen at once.
"""

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.model import Model
from onnxq.graph.placement import without_products
from onnxq.pipeline import Outcome, Pass, Statistics

# From here on the quotient is 1 in float32, and n far from its largest value.
OPEN = 20.0


class ExpandMish(Pass):
    """Write Mish, and Tanh(Softplus(x)), as Exp, Add, Mul and Div."""

    name: ClassVar[str] = "expand-mish"
    exact: ClassVar[bool] = True

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        nodes = [n for n in model.graph.nodes if not n.domain and n.name not in model.kept_float]
        found = {node.name: (node, x) for node in nodes if (x := _data(node)) is not None}
        results = without_products(model).born if found else set()
        for name, (node, x) in found.items():
            # Of what integer layers return, the type is known.
            if x.name not in results and x.dtype != np.float32:
                outcome.skip(name, "whether it computes in float32 is not known")
                continue
            if node.op == "Mish":
                gate = model.variable(f"{name}_gate")
                model.add("Div", _quotient(model, name, x), gate)
                node.op, node.inputs = "Mul", [x, gate]
            else:
                node.op, node.inputs = "Div", _quotient(model, name, x)
            outcome.edit(name, "written with Exp")
        return outcome


def _data(node: gs.Node) -> gs.Tensor | None:
    """What a Mish, or the Softplus before a Tanh, reads; None if a node is neither."""
    if node.op == "Mish":
        return node.inputs[0]
    made = node.inputs[0].inputs if node.op == "Tanh" else []
    return made[0].inputs[0] if made and made[0].op == "Softplus" and not made[0].domain else None


def _quotient(model: Model, name: str, x: gs.Tensor) -> list[gs.Tensor]:
    """The tensors n and n + 2."""

    def step(op: str, inputs: list[gs.Tensor], what: str) -> gs.Tensor:
        result = model.variable(f"{name}_{what}")
        model.add(op, inputs, result)
        return result

    top, two = (
        model.constant(f"{name}_{what}", np.array(value, np.float32))
        for what, value in (("open", OPEN), ("two", 2.0))
    )
    e = step("Exp", [step("Clip", [x, gs.Variable.empty(), top], "bounded")], "exp")
    n = step("Mul", [e, step("Add", [e, two], "more")], "n")
    return [n, step("Add", [n, two], "whole")]
