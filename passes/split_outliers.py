"""One large weight coarsens the grid of its whole layer; two half as large do not.

The algebra stands in numerics/outliers.py.
"""

import math
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import Field

from onnxq.graph.layers import Layer, layers
from onnxq.graph.model import Model
from onnxq.graph.regions import Region, regions
from onnxq.numerics import outliers
from onnxq.pipeline import Outcome, Pass, Statistics
from onnxq.spec import Ints, weight_spec

# Between two layers, these do to a channel that is there twice what they do to each.
CHANNELWISE = {
    "AveragePool", "Clip", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Relu", "Squeeze",
}  # fmt: skip
# A channel more of so few costs more than its bits are worth.
FEWEST = 4


class SplitOutliers(Pass):
    """Feed the input channels with the largest weights twice, each to half of its weights.

    The layer before makes them twice if nothing else reads it; elsewhere a Gather repeats them.

    Attributes:
        ratio: Channels to add, as a part of those there are; at least one.
        aware: Halves that add up after rounding, too, on a grid of ``bits`` for the whole layer;
            on one of 8 bits, if its neighbours ask for no coarser one (numerics/pairs.py).
        bits: See ``aware``.
    """

    name: ClassVar[str] = "split-outliers"
    exact: ClassVar[bool] = True

    ratio: float = Field(0.02, gt=0, le=1)
    aware: bool = True
    bits: int = Field(8, ge=2, le=8)

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        before = {r.sinks[0][0].name: r for r in regions(model, True) if _repeatable(r)}
        for layer in layers(model):
            region = before.get(layer.name)
            if (why := _obstacle(model, layer, region)) is not None:
                outcome.skip(layer.name, why)
                continue
            count = math.ceil(self.ratio * layer.c_in)
            weight = layer.by_group[0]
            qmax = weight_spec(self.bits).qmax
            step = outliers.step(weight, count, qmax) if self.aware else 0.0
            found, origin = outliers.split(weight, count, step)
            layer.set_by_group(model, found[None])
            if region is None:
                _gather(model, layer, origin)
            else:
                _repeat(model, region, origin)
            how = "gathered" if region is None else f"made by {region.sources[0][0].name}"
            outcome.edit(layer.name, f"{count} of {weight.shape[1]} channels split, {how}")
        return outcome


def _obstacle(model: Model, layer: Layer, region: Region | None) -> str | None:
    """Why the channels of a layer are not split, if so."""
    if (why := model.kept_float.get(layer.name) or layer.obstacle) is not None:
        return why
    if layer.groups > 1:
        return "each of its input channels belongs to one group"
    if layer.data_axis == 0:
        return "its data operand is transposed"
    if layer.c_in < FEWEST:
        return f"it has only {layer.c_in} input channels"
    return "it reads a channel twice already" if _repeats(layer, region) else None


def _repeats(layer: Layer, region: Region | None) -> bool:
    """Whether two input channels of a layer are the same by construction."""
    if region is not None:
        (source, _), *_ = region.sources
        rows = source.by_group.reshape(source.c_out, -1)
        alive = rows[rows.any(axis=1)]
        return len(np.unique(alive, axis=0)) < len(alive)
    if not layer.data.inputs or layer.data.inputs[0].op != "Gather":
        return False
    chosen = layer.data.inputs[0].inputs[1]
    return isinstance(chosen, gs.Constant) and len(np.unique(chosen.values)) < chosen.values.size


def _repeatable(region: Region) -> bool:
    """Whether one layer makes a region for one other, and both may have more channels there."""
    if len(region.sources) != 1 or len(region.sinks) != 1 or region.obstacles:
        return False
    (source, _), (sink, _) = region.sources[0], region.sinks[0]
    between = {node.op for node in region.between}
    return source.groups == 1 and sink.c_in == source.c_out and between <= CHANNELWISE


def _repeat(model: Model, region: Region, origin: Ints) -> None:
    """Let the layer before make the channels as often as they are read."""
    (source, _), *_ = region.sources
    # In this order: the Add behind a MatMul is its bias as long as both have as many channels.
    tensors = [source.node.outputs[0], source.output, *(node.outputs[0] for node in region.between)]
    if source.bias_tensor is not None and (bias := source.bias_or_zeros) is not None:
        source.set_bias(model, bias[origin])
    source.set_by_group(model, source.by_group[:, origin])
    for tensor in tensors:
        tensor.shape = None
        if tensor.name in model.moments:
            mean, std = model.moments[tensor.name]
            model.moments[tensor.name] = mean[origin], std[origin]


def _gather(model: Model, layer: Layer, origin: Ints) -> None:
    """Repeat channels of the layer's data."""
    repeated = model.variable(f"{layer.data.name}_split")
    chosen = model.constant(f"{layer.name}_channels", origin)
    model.add("Gather", [layer.data, chosen], repeated, axis=layer.data_axis)
    layer.node.inputs[0] = repeated
