"""The network as it would be deployed, as a torch module: its plan, as parameters."""

from collections.abc import Collection, Container, Mapping, MutableSequence, Sequence
from typing import cast

import numpy as np
import onnx_graphsurgeon as gs
import torch
from torch import Tensor, nn

from onnxq.graph.layers import layers
from onnxq.graph.model import Model
from onnxq.graph.moves import ACTIVATIONS
from onnxq.graph.placement import Placement, place, root_of
from onnxq.learned.quantizers import ActivationQuantizer, WeightQuantizer
from onnxq.learned.rounding import SoftRounding
from onnxq.lowering import Lowered
from onnxq.lowering.registry import Function, tensor_of

FAKE_QUANTIZE = "FakeQuantize"
# Its attribute with the names of the nodes that it belongs to.
OWNERS = "owners"


class QuantizedNetwork(nn.Module):
    """A model and its plan.

    Fake quantizers stand where the emitter puts a QuantizeLinear and a DequantizeLinear. Tensors
    keep their names, and one that is emitted as codes has the values that these stand for.

    Args:
        model: Not edited; ``store`` writes the plan back.
        nodes: Names of the nodes to lower; all by default.

    Attributes:
        layers: The layers with an integer weight and a bias of their own, if they have any.
        weights: Their weights, in the same order.
        biases: What is added to their biases, in the units of ``units``.
        biased: Names of the tensors of their biases, by the number of the layer.
        read: The grid, and its factor, of the data of integer layers with a bias, by the number of
            the layer.
        graded: The tensors on a grid of their own.
        grids: Their grids, in the same order.

    Raises:
        Refused: A node cannot be lowered.
    """

    def __init__(self, model: Model, nodes: Collection[str] | None = None) -> None:
        super().__init__()
        self.layers = [
            layer
            for layer in layers(model)
            if layer.name in model.weights and (nodes is None or layer.name in nodes)
        ]
        self.weights = cast(
            MutableSequence[WeightQuantizer | SoftRounding],
            nn.ModuleList(
                WeightQuantizer(weight, layer.weight, layer.room(weight))
                for layer in self.layers
                for weight in [model.weights[layer.name]]
            ),
        )
        self.biased: dict[int, str] = {}
        self.biases = nn.ParameterDict()
        for i, layer in enumerate(self.layers):
            if (tensor := layer.bias_tensor) is not None and layer.bias is not None:
                self.biased[i] = tensor.name
                self.register_buffer(f"bias{i}", tensor_of(tensor.values))
                self.biases[str(i)] = nn.Parameter(torch.zeros(tensor.values.shape))
        self.units = dict.fromkeys(self.biased, 1.0)
        placement = place(model) if model.activations else Placement()
        simulated = _simulated(model, placement)
        own = {FAKE_QUANTIZE: self._fake_quantize}
        used = [
            n for n in simulated.graph.nodes
            if nodes is None or any(name in nodes for name in n.attrs.get(OWNERS, [n.name]))
        ]  # fmt: skip
        self.graded = sorted({n.attrs["grid"] for n in used if n.op == FAKE_QUANTIZE})
        self.grids = cast(
            Sequence[ActivationQuantizer],
            nn.ModuleList(ActivationQuantizer(model.activations[n]) for n in self.graded),
        )
        known = dict(zip(self.graded, self.grids, strict=True))
        self.read: dict[int, tuple[ActivationQuantizer, float]] = {}
        for i in self.biased:
            if self.layers[i].name in placement.integer:
                name, factor = root_of(self.layers[i].data, placement)
                # One of nodes elsewhere stays as it is.
                grid = known.get(name) or ActivationQuantizer(model.activations[name])
                self.read[i] = grid, factor
        self.lowered = Lowered(simulated, [node.name for node in used], own)

    def _fake_quantize(self, node: gs.Node) -> Function:
        grid, factor = self.grids[self.graded.index(node.attrs["grid"])], node.attrs["factor"]
        return lambda x: grid(x, factor)

    def given(self, names: Container[str] | None = None) -> dict[str, Tensor]:
        """Weights and biases as they are now, by tensor name; of some layers, or of all."""
        found = {}
        for i, (layer, weight) in enumerate(zip(self.layers, self.weights, strict=True)):
            if names is not None and layer.name not in names:
                continue
            found[layer.weight_tensor.name] = weight()
            if i in self.biased:
                found[self.biased[i]] = self._bias(i, found[layer.weight_tensor.name])
        return found

    def _bias(self, i: int, weight: Tensor) -> Tensor:
        """The bias of a layer, rounded as that of an integer one is (numerics/bias.py)."""
        bias = self._plain_bias(i)
        if i not in self.read:
            return bias
        grid, factor = self.read[i]
        with torch.no_grad():
            scale = self.weights[i].scale
            step = (grid.scale * factor * scale).reshape(-1).double()
            rounding = torch.round(bias / step) * step - bias
            # A channel of zeros has a scale that is chosen for its bias.
            alive = weight.ne(0).float().sum_to_size(scale.shape).reshape(-1) > 0
        return bias + torch.where(alive, rounding, 0.0).to(bias.dtype)

    def _plain_bias(self, i: int) -> Tensor:
        bias: Tensor = getattr(self, f"bias{i}") + self.units[i] * self.biases[str(i)]
        return bias

    def run(self, feeds: Mapping[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
        """Named tensors on a batch."""
        return self.lowered.run({**self.given(), **feeds}, wanted)

    def store(self, model: Model) -> dict[str, float]:
        """Write weights, biases and grids into the plan that this was made of.

        Returns the share of codes that moved, by the name of the layer.
        """
        moved: dict[str, float] = {}
        for layer, weight in zip(self.layers, self.weights, strict=True):
            plan = weight.plan()
            moved[layer.name] = float(np.mean(model.weights[layer.name].codes != plan.codes))
            model.weights[layer.name] = plan
        for i, name in self.biased.items():
            values = self._plain_bias(i).detach().cpu().numpy()
            self.layers[i].attach_bias(model.constant(name, values))
        for name, grid in zip(self.graded, self.grids, strict=True):
            model.activations[name] = grid.plan()
        return moved


def _simulated(model: Model, placement: Placement) -> Model:
    """A copy with fake quantizers as nodes."""
    copy = model.clone()
    results = set(placement.results.values())
    grids: dict[str, tuple[str, float]] = {}
    for node in copy.graph.nodes:
        clips = node.name in placement.moves and node.op in ACTIVATIONS
        for tensor in node.outputs:
            if clips or tensor.name in results:
                grids[tensor.name] = root_of(tensor, placement)
    entered: dict[str, gs.Node] = {}
    for node in list(copy.graph.nodes):
        for i, tensor in enumerate(node.inputs):
            enters = tensor.name in placement.entries and tensor.name not in placement.born
            if node.name in placement.integer and enters:
                if tensor.name not in entered:
                    result = copy.variable(f"{tensor.name}_dequantized")
                    attrs = {"grid": tensor.name, "factor": 1.0, OWNERS: []}
                    entered[tensor.name] = copy.add(FAKE_QUANTIZE, [tensor], result, **attrs)
                entered[tensor.name].attrs[OWNERS].append(node.name)
                node.inputs[i] = entered[tensor.name].outputs[0]
        for i, tensor in enumerate(node.outputs):
            if tensor.name in grids:
                root, by = grids[tensor.name]
                node.outputs[i] = copy.variable(f"{tensor.name}_float")
                attrs = {"grid": root, "factor": by, OWNERS: [node.name]}
                copy.add(FAKE_QUANTIZE, [node.outputs[i]], tensor, **attrs)
    copy.tidy()
    return copy
