"""A mean over height and width is a global average pool, which has an integer kernel."""

from typing import ClassVar

import numpy as np

from onnxq.graph.model import Model
from onnxq.graph.tensors import axes_of
from onnxq.pipeline import Outcome, Pass, Statistics


class PoolMeans(Pass):
    """Rewrite ReduceMean over the last two axes of (n, c, h, w) as GlobalAveragePool."""

    name: ClassVar[str] = "pool-means"
    exact: ClassVar[bool] = True

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        means = [n for n in model.graph.nodes if n.op == "ReduceMean"]
        ranks = model.ranks() if means else {}
        for node in means:
            if (why := model.kept_float.get(node.name)) is not None:
                outcome.skip(node.name, why)
                continue
            source, result = node.inputs[0], node.outputs[0]
            axes = axes_of(node)
            if source.dtype is not None and source.dtype != np.float32:
                outcome.skip(node.name, "it is not a mean of float32")
                continue
            if axes is None or ranks.get(source.name) != 4 or {a % 4 for a in axes} != {2, 3}:
                outcome.skip(node.name, "not known to be a mean over height and width alone")
                continue
            keep = node.attrs.get("keepdims", 1)
            name = node.name
            node.inputs.clear()
            node.outputs.clear()
            pooled = result if keep else model.variable(f"{result.name}_pooled")
            model.add("GlobalAveragePool", [source], pooled, name=f"{name}_pool")
            if not keep:
                squeezed = model.constant(f"{name}_axes", np.array([2, 3], np.int64))
                model.add("Squeeze", [pooled, squeezed], result, name=f"{name}_squeeze")
            outcome.edit(name, "became GlobalAveragePool")
        return outcome
