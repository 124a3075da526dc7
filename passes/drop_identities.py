"""Nodes that hand their input on are noise between the nodes that matter."""

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.layers import layer_of
from onnxq.graph.model import Model
from onnxq.graph.tensors import FLOAT
from onnxq.pipeline import Outcome, Pass, Statistics

# Exporters write the end of an axis so; no tensor has as many values.
ENDLESS = (1 << 31) - 1
KEEP = {"BatchNormalization", "Clip", "HardSwish", "LeakyRelu", "Relu", "Sigmoid"}


class DropIdentities(Pass):
    """Remove Identity, inference Dropout, empty Pad, one-input Concat, no-op Cast and Slice."""

    name: ClassVar[str] = "drop-identities"
    exact: ClassVar[bool] = True

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        for node in model.graph.nodes:
            if not _hands_on(node) or any(
                t.outputs or model.is_output(t) for t in node.outputs[1:]
            ):
                continue
            if model.bypass(node):
                outcome.edit(node.name, f"{node.op} removed")
            else:
                outcome.skip(node.name, f"this {node.op} ties a graph output to its source")
        return outcome


def _hands_on(node: gs.Node) -> bool:
    """Whether the first output always equals the first input."""
    if node.domain or not node.inputs:
        return False
    if node.op == "Dropout":
        training = node.inputs[2] if len(node.inputs) > 2 else None
        return training is None or (isinstance(training, gs.Constant) and not training.values.any())
    if node.op == "Pad":
        pads = node.inputs[1] if len(node.inputs) > 1 else None
        return isinstance(pads, gs.Constant) and not np.any(pads.values)
    if node.op == "Cast":
        return node.attrs["to"] == FLOAT and _is_float32(node.inputs[0])
    if node.op == "Slice":
        return _takes_all(node)
    return node.op == "Identity" or (node.op == "Concat" and len(node.inputs) == 1)


def _is_float32(tensor: gs.Tensor) -> bool:
    """Whether a tensor is known to be float32, by its declared type or by what makes it."""
    if tensor.dtype is not None or not tensor.inputs:
        return bool(tensor.dtype == np.float32)
    producer = tensor.inputs[0]
    return layer_of(producer) is not None or (
        producer.op == "Cast" and producer.attrs["to"] == FLOAT
    )


def _takes_all(node: gs.Node) -> bool:
    """Whether a Slice leaves nothing out, whatever its data, or of channels that layers make."""
    data, *limits = node.inputs
    if len(limits) < 3 or not all(isinstance(t, gs.Constant) for t in limits):
        return False
    starts, ends, axes, *steps = (t.values for t in limits)
    if starts.any() or any((step != 1).any() for step in steps):
        return False
    channels = _channels(data)
    return all(
        end >= ENDLESS or (axis == 1 and channels is not None and end >= channels)
        for end, axis in zip(ends, axes, strict=True)
    )


def _channels(tensor: gs.Tensor) -> int | None:
    """How many channels a tensor has along axis 1, if convolutions make them."""
    node = tensor.inputs[0] if tensor.inputs else None
    if node is None or node.domain:
        return None
    layer = layer_of(node)
    if layer is not None:
        return layer.c_out if layer.op in ("Conv", "ConvTranspose") else None
    if node.op == "Concat" and node.attrs["axis"] == 1:
        counts = [_channels(t) for t in node.inputs]
        return sum(n for n in counts if n) if all(counts) else None
    return _channels(node.inputs[0]) if node.op in KEEP else None
