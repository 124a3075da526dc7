"""HardSigmoid and HardSwish have no integer kernels; what they are made of has.

    HardSigmoid(x) = clip(alpha x + beta, 0, 1)        HardSwish(x) = x HardSigmoid(x)

On codes the product with alpha is another scale, the sum an integer addition whose quantizer
saturates where the clip does, and the gate an integer product.
"""

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.model import Model
from onnxq.graph.placement import without_products
from onnxq.pipeline import Outcome, Pass, Statistics

# The alpha and beta of HardSwish; those of HardSigmoid are attributes.
SWISH = (1 / 6, 0.5)


class ExpandHardActivations(Pass):
    """Write HardSigmoid and HardSwish as Mul, Add and Clip where these then run on integers.

    Elsewhere they stay: one float operator is faster than several.
    """

    name: ClassVar[str] = "expand-hard-activations"
    exact: ClassVar[bool] = True

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        hard = [n.name for n in model.graph.nodes if n.op in ("HardSigmoid", "HardSwish")]
        found = [name for name in hard if name not in model.kept_float]
        if not found:
            return outcome
        trial = model.clone()
        sums = {name: _expand(trial, name) for name in found}
        trial.tidy()
        integer = without_products(trial).integer
        for name in found:
            if sums[name] in integer:
                _expand(model, name)
                outcome.edit(name, "expanded into operators with integer kernels")
            else:
                outcome.skip(name, "its neighbours are float operators")
        return outcome


def _expand(model: Model, name: str) -> str:
    """Turn the node into the last of its operators, behind the others; the name of the sum."""
    node = next(n for n in model.graph.nodes if n.name == name)
    x, gated = node.inputs[0], node.op == "HardSwish"
    alpha, beta = SWISH if gated else (node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5))
    node.attrs.clear()

    def constant(what: str, value: float) -> gs.Constant:
        return model.constant(f"{name}_{what}", np.array(value, np.float32))

    scaled, shifted = model.variable(f"{name}_scaled"), model.variable(f"{name}_shifted")
    model.add("Mul", [x, constant("alpha", alpha)], scaled)
    total = model.add("Add", [scaled, constant("beta", beta)], shifted)
    bounded = [shifted, constant("zero", 0.0), constant("one", 1.0)]
    if gated:
        gate = model.variable(f"{name}_gate")
        model.add("Clip", bounded, gate)
        node.op, node.inputs = "Mul", [x, gate]
    else:
        node.op, node.inputs = "Clip", bounded
    return str(total.name)
