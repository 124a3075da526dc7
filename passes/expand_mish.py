"""Mish takes onnxruntime ten times as long as what it can be computed by.

    Mish(x) = x tanh(ln(1 + e^x)) = x n / (n + 2),    n = e^x (e^x + 2)

Its Softplus goes from number to number; Exp and the others take eight or sixteen at once.
"""

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.model import Model
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
        for node in list(model.graph.nodes):
            if node.domain or node.name in model.kept_float:
                continue
            if node.op == "Mish":
                x, gate = node.inputs[0], model.variable(f"{node.name}_gate")
                model.add("Div", _quotient(model, node.name, x), gate)
                node.op, node.inputs = "Mul", [x, gate]
            elif node.op == "Tanh" and (x := _of_softplus(node)) is not None:
                node.op, node.inputs = "Div", _quotient(model, node.name, x)
            else:
                continue
            outcome.edit(node.name, "written with Exp")
        return outcome


def _of_softplus(tanh: gs.Node) -> gs.Tensor | None:
    """What the Softplus before a Tanh reads; None if there is none."""
    made = tanh.inputs[0].inputs
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
