"""One weight, one layer: a pass that rewrites a weight must not rewrite a stranger's."""

from typing import ClassVar

from onnxq.graph.layers import layers
from onnxq.graph.model import Model
from onnxq.pipeline import Outcome, Pass, Statistics


class SplitShared(Pass):
    """Give every layer that shares a weight or a bias a copy of its own, but those kept float."""

    name: ClassVar[str] = "split-shared"
    exact: ClassVar[bool] = True

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        for layer in layers(model):
            if layer.name in model.kept_float:
                continue
            if len(layer.weight_tensor.outputs) > 1:
                outcome.edit(layer.name, f"own copy of {layer.weight_tensor.name}")
                layer.set_weight(model, layer.weight)
            bias = layer.bias_tensor
            if bias is not None and layer.bias is not None and len(bias.outputs) > 1:
                outcome.edit(layer.name, f"own copy of {bias.name}")
                layer.set_bias(model, layer.bias)
        return outcome
