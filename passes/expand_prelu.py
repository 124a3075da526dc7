"""PRelu has no integer kernel, and onnxruntime's float one is slow; what it is made of has.

    PRelu(x) = max(x, 0) + a min(x, 0)

On codes the maximum and the minimum cut off at the code of zero, on the grid of x; the product with
a slope for each channel is a 1x1 depthwise convolution, and the sum an integer addition. With one
slope for all channels it is a LeakyRelu.
"""

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.model import Model
from onnxq.graph.placement import without_products
from onnxq.pipeline import Outcome, Pass, Statistics


class ExpandPrelu(Pass):
    """Write PRelu as Relu, Clip, Conv and Add where these then run on integers.

    One with a single slope becomes a LeakyRelu everywhere.
    """

    name: ClassVar[str] = "expand-prelu"
    exact: ClassVar[bool] = True

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        found = [node.name for node in model.graph.nodes if _has_slopes(model, node)]
        if not found:
            return outcome
        ranks, fit = model.ranks(), list[str]()
        for name in found:
            node = _node(model, name)
            slopes = node.inputs[1].values
            if slopes.size == 1:
                node.op, node.inputs, node.attrs = "LeakyRelu", [node.inputs[0]], {}
                node.attrs["alpha"] = float(slopes.reshape(()))
                outcome.edit(name, "a LeakyRelu, as it has one slope")
            elif ranks.get(node.inputs[0].name) == 4 and slopes.shape[-3:] == (slopes.size, 1, 1):
                fit.append(name)
            else:
                outcome.skip(name, "its slopes are not one for each channel of an image")
        while fit:
            trial = model.clone()
            for name in fit:
                _expand(trial, name)
            integer = without_products(trial).integer
            left = [name for name in fit if name in integer]
            for name in fit:
                if name not in left:
                    outcome.skip(name, "its neighbours are float operators")
            if left == fit:
                break
            fit = left  # without the others, what these return may be wanted no more
        for name in fit:
            _expand(model, name)
            outcome.edit(name, "expanded into operators with integer kernels")
        return outcome


def _has_slopes(model: Model, node: gs.Node) -> bool:
    if node.op != "PRelu" or node.domain or node.name in model.kept_float:
        return False
    return isinstance(node.inputs[1], gs.Constant) and node.inputs[1].dtype == np.float32


def _node(model: Model, name: str) -> gs.Node:
    return next(node for node in model.graph.nodes if node.name == name)


def _expand(model: Model, name: str) -> None:
    """Turn the node into the sum, behind the other operators."""
    node = _node(model, name)
    x, slopes = node.inputs
    positive, negative, scaled = (
        model.variable(f"{name}_{part}") for part in ("positive", "negative", "scaled")
    )
    model.add("Relu", [x], positive)
    zero = model.constant(f"{name}_zero", np.array(0.0, np.float32))
    model.add("Clip", [x, gs.Variable.empty(), zero], negative)
    weight = model.constant(f"{name}_weight", slopes.values.reshape(-1, 1, 1, 1))
    model.add("Conv", [negative, weight], scaled, name=f"{name}_slopes", group=slopes.values.size)
    node.op, node.inputs = "Add", [positive, scaled]
