"""The network as it would be deployed, as a torch module: its plan, as parameters."""

from collections.abc import Collection, Container, Mapping, Sequence

import onnx_graphsurgeon as gs
import torch
from torch import Tensor, nn

from onnxq.layers import layers
from onnxq.learned.quantizers import ActivationQuantizer, WeightQuantizer
from onnxq.lowering import Lowered
from onnxq.lowering.registry import Function, tensor_of
from onnxq.model import Model
from onnxq.placement import ACTIVATIONS, Placement, place, root_of

FAKE_QUANTIZE = "FakeQuantize"


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
        self.weights = nn.ModuleList(
            WeightQuantizer(model.weights[layer.name], layer.weight) for layer in self.layers
        )
        origins = {
            i: layer.bias_tensor.values
            for i, layer in enumerate(self.layers)
            if isinstance(layer.bias_tensor, gs.Constant) and layer.bias is not None
        }
        for i, values in origins.items():
            self.register_buffer(f"bias{i}", tensor_of(values))
        self.biases = nn.ParameterDict({str(i): torch.zeros(b.shape) for i, b in origins.items()})
        self.units = dict.fromkeys(origins, 1.0)
        simulated, own = _simulated(model), {FAKE_QUANTIZE: self._fake_quantize}
        used = [
            n for n in simulated.graph.nodes
            if nodes is None or (n.attrs["of"] if n.op == FAKE_QUANTIZE else n.name) in nodes
        ]  # fmt: skip
        self.graded = sorted({n.attrs["grid"] for n in used if n.op == FAKE_QUANTIZE})
        self.grids = nn.ModuleList(ActivationQuantizer(model.activations[n]) for n in self.graded)
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
            if i in self.units:
                shift = self.units[i] * self.biases[str(i)]
                found[layer.bias_tensor.name] = getattr(self, f"bias{i}") + shift
        return found

    def run(self, feeds: Mapping[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
        """Named tensors on a batch."""
        return self.lowered.run({**self.given(), **feeds}, wanted)

    def store(self, model: Model) -> None:
        """Write weights, biases and grids into the plan that this was made of."""
        with torch.no_grad():
            found = self.given()
        for i, (layer, weight) in enumerate(zip(self.layers, self.weights, strict=True)):
            model.weights[layer.name] = weight.plan()
            if i in self.units:
                values = found[layer.bias_tensor.name].cpu().numpy()
                layer.attach_bias(model.constant(layer.bias_tensor.name, values))
        for name, grid in zip(self.graded, self.grids, strict=True):
            model.activations[name] = grid.plan()


def _simulated(model: Model) -> Model:
    """A copy with fake quantizers as nodes; their attribute ``of`` names a node they belong to."""
    copy = model.clone()
    placement = place(copy) if copy.activations else Placement()
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
                    attrs = {"grid": tensor.name, "factor": 1.0, "of": node.name}
                    copy.add(FAKE_QUANTIZE, [tensor], entered[tensor.name], **attrs)
                node.inputs[i] = entered[tensor.name]
        for i, tensor in enumerate(node.outputs):
            if tensor.name in grids:
                root, by = grids[tensor.name]
                node.outputs[i] = copy.variable(f"{tensor.name}_float")
                attrs = {"grid": root, "factor": by, "of": node.name}
                copy.add(FAKE_QUANTIZE, [node.outputs[i]], tensor, **attrs)
    copy.tidy()
    return copy
