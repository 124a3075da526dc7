"""Moves: nodes that rearrange, select, scale or cut off values, and so can run on their codes."""

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.layers import layer_of
from onnxq.graph.tensors import is_constant
from onnxq.spec import Floats

# What onnxruntime takes for a part of the layer before it, and what else a quantizer replaces.
FUSED = {"Clip", "Relu"}
ACTIVATIONS = FUSED | {"Min"}
MOVES = {
    "Clip", "DepthToSpace", "Expand", "Flatten", "Gather", "MaxPool", "Min", "Pad", "Relu",
    "Reshape", "Resize", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip
# Factors that a scale can take without leaving the normal floats.
LEAST_FACTOR, LARGEST_FACTOR = 2.0**-20, 2.0**20


def moves(node: gs.Node) -> bool:
    """Whether a node could run on codes: see ``placement`` on moves."""
    if factor(node) is not None:
        return True
    if node.op not in MOVES or node.domain:
        return False
    if node.op in ("Clip", "Min"):
        return bounds(node) is not None and not _widens(node)
    if node.op == "MaxPool":
        return len(node.outputs) == 1
    if node.op == "Pad":
        return node.attrs.get("mode", "constant") != "constant" or pads_zeros(node)
    if node.op == "Resize":
        extrapolates = node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
        return node.attrs.get("mode", "nearest") == "nearest" and not extrapolates
    return not is_constant(node.inputs[0])


def moved(node: gs.Node) -> gs.Tensor:
    """The input whose values a move selects, rearranges, multiplies or cuts off."""
    return node.inputs[int(node.op in ("Min", "Mul") and is_constant(node.inputs[0]))]


def bounds(node: gs.Node) -> tuple[Floats, Floats] | None:
    """Ends that a Relu, Clip or Min keeps its values between; None if they are not constant.

    The upper one of a Min has the shape of its constant, the others have no axes.
    """
    ends = [np.float32(0.0 if node.op == "Relu" else -np.inf), np.float32(np.inf)]
    if node.op == "Min":
        constants = [t for t in node.inputs if is_constant(t) and t.dtype == np.float32]
        if len(node.inputs) != 2 or len(constants) != 1:
            return None
        return np.asarray(ends[0]), constants[0].values
    for i, tensor in enumerate(node.inputs[1:3]):
        if not tensor.is_empty():
            if not is_constant(tensor):
                return None
            ends[i] = np.float32(tensor.values)
    return None if node.op == "Clip" and node.attrs else (np.asarray(ends[0]), np.asarray(ends[1]))


def factor(node: gs.Node) -> np.float32 | None:
    """The constant a node multiplies its data with, if that is all it does and a scale can do it.

    The constant has no axes of its own, which would give a scalar some.
    """
    if node.op not in ("Mul", "Div") or node.domain:
        return None
    constants = [t for t in node.inputs if is_constant(t)]
    if len(constants) != 1 or (node.op == "Div" and constants[0] is node.inputs[0]):
        return None
    (value,) = (t.values for t in constants)
    if value.ndim or value.dtype != np.float32 or not LEAST_FACTOR <= value <= LARGEST_FACTOR:
        return None
    return np.float32(1.0) / value if node.op == "Div" else np.float32(value)


def term(node: gs.Node) -> np.float32 | None:
    """The constant, without axes and not zero, that an Add adds to its data."""
    constants = [t for t in node.inputs if is_constant(t)]
    if node.op != "Add" or node.domain or len(constants) != 1:
        return None
    (value,) = (t.values for t in constants)
    usable = not value.ndim and value.dtype == np.float32 and np.isfinite(value) and value != 0.0
    return np.float32(value) if usable else None


def pads_zeros(node: gs.Node) -> bool:
    """Whether the constant that a Pad writes, in its mode of that name, is known to be zero."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None or value.is_empty():
        return True
    return is_constant(value) and not value.values.any()


def _widens(node: gs.Node) -> bool:
    """Whether the constant of a Min is known to give more axes or channels than the data have."""
    if node.op != "Min":
        return False
    tensor = moved(node)
    while tensor.inputs and tensor.inputs[0].op in ACTIVATIONS:
        tensor = moved(tensor.inputs[0])
    layer = layer_of(tensor.inputs[0]) if tensor.inputs else None
    if layer is None or layer.op == "MatMul":
        return False
    (constant,) = (t.values for t in node.inputs if is_constant(t))
    return bool(constant.ndim > len(layer.weight_tensor.shape) or constant.size > layer.c_out)
