"""The network as it would be deployed, as a torch module: its plan, as parameters."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs
import torch
from torch import Tensor, nn

from onnxq.layers import Layer, layers
from onnxq.learned.quantizers import ActivationQuantizer, WeightQuantizer
from onnxq.lowering import Lowered
from onnxq.model import Model
from onnxq.placement import ACTIVATIONS, data_inputs, place, root_of

FAKE_QUANTIZE = "FakeQuantize"


class QuantizedNetwork(nn.Module):
    """A model and its plan.

    Fake quantizers stand where the emitter puts a QuantizeLinear and a DequantizeLinear. Tensors
    keep their names, and those that are emitted as codes have the values that these stand for.

    Args:
        model: Not edited; ``store`` writes the plan back.

    Attributes:
        grids: By name of the tensor, through ``grid_names``.
        weights: By layer, through ``layer_names``.
        biases: Likewise, shifts in units of ``bias_units``.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.grid_names = {name: i for i, name in enumerate(sorted(model.activations))}
        self.grids = nn.ModuleList(ActivationQuantizer(model.activations[n]) for n in self.grid_names)
        self._layers = [layer for layer in layers(model) if layer.name in model.weights]
        self.weights = nn.ModuleList(
            WeightQuantizer(model.weights[layer.name], layer.weight, layer.weight.shape)
            for layer in self._layers
        )
        self._biased = {
            i: (layer.bias_tensor.name, torch.from_numpy(layer.bias_tensor.values.copy()))
            for i, layer in enumerate(self._layers)
            if isinstance(layer.bias_tensor, gs.Constant) and layer.bias is not None
        }
        self.biases = nn.ParameterList(torch.zeros_like(b) for _, b in self._biased.values())
        self.bias_units = [1.0] * len(self.biases)
        self.lowered = Lowered(_simulated(model), own={FAKE_QUANTIZE: self._quantizer})

    def _quantizer(self, node: gs.Node) -> "ActivationQuantizer":
        grid = self.grids[self.grid_names[node.attrs["grid"]]]
        by = node.attrs["factor"]
        return lambda x: grid(x, by)

    def given(self) -> dict[str, Tensor]:
        """Weights and biases as they are now, by tensor name."""
        found = {
            layer.weight_tensor.name: weight()
            for layer, weight in zip(self._layers, self.weights, strict=True)
        }
        for (name, origin), shift, unit in zip(self._biased.values(), self.biases, self.bias_units, strict=True):
            found[name] = origin + unit * shift
        return found

    def run(self, feeds: Mapping[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
        """Named tensors on a batch."""
        return self.lowered.run({**feeds, **self.given()}, wanted)


def _simulated(model: Model) -> Model:
    """A copy with fake quantizers as nodes."""
    copy = model.clone()
    placement = place(copy)
    results = set(placement.results.values())
    grids: dict[str, tuple[str, float]] = {}
    for node in copy.graph.nodes:
        clips = node.name in placement.moves and node.op in ACTIVATIONS
        for tensor in node.outputs:
            if clips or tensor.name in results:
                grids[tensor.name] = root_of(tensor, placement)
    entered: dict[str, gs.Variable] = {}
    for node in list(copy.graph.nodes):
        for i, tensor in enumerate(node.inputs):
            enters = tensor.name in placement.entries and tensor.name not in placement.born
            if node.name in placement.integer and enters:
                if tensor.name not in entered:
                    entered[tensor.name] = copy.variable(f"{tensor.name}_dequantized")
                    ends = [tensor], entered[tensor.name]
                    copy.add(FAKE_QUANTIZE, *ends, grid=tensor.name, factor=1.0)
                node.inputs[i] = entered[tensor.name]
        for i, tensor in enumerate(node.outputs):
            if tensor.name in grids:
                root, by = grids[tensor.name]
                node.outputs[i] = copy.variable(f"{tensor.name}_float")
                copy.add(FAKE_QUANTIZE, [node.outputs[i]], tensor, grid=root, factor=by)
    copy.tidy()
    return copy
