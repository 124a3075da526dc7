"""onnxruntime's integer kernel for depthwise layers is made for a multiple of 16 channels.

One channel too many may cost as much as all others together. Channels of zeros up to the next
multiple are cheaper: all that makes and reads them has zeros for weights.
"""

import math
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.layers import Layer, layer_of
from onnxq.graph.model import Model
from onnxq.graph.tensors import axes_of
from onnxq.pipeline import Outcome, Pass, Statistics
from onnxq.spec import Floats

Shapes = dict[str, tuple[int | None, ...]]

VECTOR = 16
# Products of the layers around that take as long as what channels too many cost at each weight of
# one of them: 800 to 1600 on a processor with instructions for dot products, and fewer without.
WORTH = 600
# What leaves channels apart and makes a finite number of zero, with numbers for its constants.
APART = {
    "Add", "AveragePool", "Clip", "Elu", "Gelu", "GlobalAveragePool", "HardSigmoid", "HardSwish",
    "LeakyRelu", "MaxPool", "Mish", "Mul", "ReduceMean", "Relu", "Sigmoid", "Softplus", "Sub",
    "Tanh",
}  # fmt: skip


class PadChannels(Pass):
    """Add channels of zeros around depthwise layers until there are a multiple of 16.

    The layers that make the channels get zeros for weights and biases there, those that read them
    zeros for weights.
    """

    name: ClassVar[str] = "pad-channels"
    exact: ClassVar[bool] = True

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        seen: set[str] = set()
        shapes: Shapes | None = None
        for node in list(model.graph.nodes):
            layer = layer_of(node)
            if layer is None or not layer.depthwise or layer.by_channel or node.name in seen:
                continue
            more = -layer.c_out % VECTOR
            if not more:
                continue
            found = _Channels(model, layer)
            seen |= found.depthwise.keys()
            if found.obstacle is not None:
                outcome.skip(node.name, found.obstacle)
                continue
            shapes = model.shapes(propagated=True) if shapes is None else shapes
            if (times := found.worth(more, shapes)) < 1.0:
                why = f"{more} channels more would cost {1 / times:.1f} times what they save"
                outcome.skip(node.name, why)
                continue
            found.grow(more)
            outcome.edit(node.name, f"{layer.c_out} channels instead of {layer.c_out - more}")
        return outcome


class _Channels:
    """All tensors that have the channels of a depthwise layer, and what makes and reads them.

    Attributes:
        obstacle: Why there cannot be more of them, a clause, if so.
    """

    def __init__(self, model: Model, start: Layer) -> None:
        self.model, self.count = model, start.c_out
        self.rank = len(start.weight_tensor.shape)
        self.captured = model.captured()
        self.tensors: dict[str, gs.Tensor] = {}
        self.sources: dict[str, Layer] = {}
        self.sinks: dict[str, Layer] = {}
        self.depthwise: dict[str, Layer] = {}
        self.obstacle: str | None = None
        todo = [start.data]
        while todo and self.obstacle is None:
            tensor = todo.pop()
            if tensor.name in self.tensors:
                continue
            self.tensors[tensor.name] = tensor
            if not tensor.inputs or model.is_output(tensor) or tensor.name in self.captured:
                self.obstacle = "its channels are those of an input or output of the model"
                return
            for node in (*tensor.inputs, *tensor.outputs):
                todo += self._shared(node, tensor)

    def _shared(self, node: gs.Node, tensor: gs.Tensor) -> list[gs.Tensor]:
        """Other tensors with the same channels at a node; notes what the node is."""
        layer = layer_of(node)
        if layer is not None and self._usable(layer):
            if layer.depthwise and layer.c_out == self.count and layer.data is not layer.output:
                self.depthwise[layer.name] = layer
                return [layer.data, layer.output]
            makes = layer.output is tensor
            if layer.groups == 1 and self.count == (layer.c_out if makes else layer.c_in):
                (self.sources if makes else self.sinks)[layer.name] = layer
                return []
        elif node.op in APART and not node.domain and len(node.outputs) == 1:
            constants = [t for t in node.inputs if isinstance(t, gs.Constant)]
            if node.op == "ReduceMean":
                pixels = self.rank == 4 and axes_of(node) in ([2, 3], [-2, -1])
                apart = pixels and node.attrs.get("keepdims", 1)
            else:
                apart = all(t.values.size == 1 and t.values.ndim <= self.rank for t in constants)
            if apart:
                data = [t for t in node.inputs if not isinstance(t, gs.Constant)]
                return [t for t in (*data, *node.outputs) if not t.is_empty()]
        self.obstacle = f"{node.op} {node.name} does not leave its channels apart"
        return []

    def _usable(self, layer: Layer) -> bool:
        """Whether a layer is a Conv of images of the same rank, whose biases are known."""
        fits = layer.op == "Conv" and len(layer.weight_tensor.shape) == self.rank
        return fits and layer.bias_or_zeros is not None

    def worth(self, more: int, shapes: Shapes) -> float:
        """What so many more channels save as a multiple of what they cost."""
        saved = sum(WORTH * _products(layer, shapes) for layer in self.depthwise.values())
        around = [(layer, layer.c_in) for layer in self.sources.values()]
        around += [(layer, layer.c_out) for layer in self.sinks.values()]
        return saved / sum(more * other * _products(layer, shapes) for layer, other in around)

    def grow(self, more: int) -> None:
        """Add so many channels of zeros."""
        for layer in self.sinks.values():
            layer.set_weight(self.model, _padded(layer.weight, more, axis=1))
        for layer in (*self.sources.values(), *self.depthwise.values()):
            self.model.filled[layer.name] = more
            bias = layer.bias_or_zeros
            layer.set_weight(self.model, _padded(layer.weight, more))
            if layer.bias_tensor is not None and bias is not None:
                layer.set_bias(self.model, _padded(bias, more))
        for layer in self.depthwise.values():
            layer.node.attrs["group"] = self.count + more
        for name, tensor in self.tensors.items():
            tensor.shape = None
            if name in self.model.moments:
                mean, std = self.model.moments[name]
                self.model.moments[name] = _padded(mean, more), _padded(std, more)


def _products(layer: Layer, shapes: Shapes) -> int:
    """Of one weight for each pair of channels, as far as the size of the result is known."""
    pixels = [size or 1 for size in shapes.get(layer.output.name, ())[2:]]
    return math.prod((*layer.weight_tensor.shape[2:], *pixels))


def _padded(values: Floats, more: int, axis: int = 0) -> Floats:
    """More zeros behind ``values`` along an axis."""
    return np.pad(values, [(0, more if i == axis else 0) for i in range(values.ndim)])
