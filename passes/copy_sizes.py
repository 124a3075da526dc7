"""A Reshape that asks its own data for their sizes hides which axes it keeps; a 0 says it."""

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.model import Model
from onnxq.graph.tensors import axes_of
from onnxq.pipeline import Outcome, Pass, Statistics


class CopySizes(Pass):
    """Rewrite Reshape(x, [size of axis 0 of x, -1]) and the like with a 0 for every such size."""

    name: ClassVar[str] = "copy-sizes"
    exact: ClassVar[bool] = True

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        found = [(node, parts) for node in model.graph.nodes if (parts := _parts(node))]
        ranks = model.ranks() if found else {}
        for node, parts in found:
            data, target = node.inputs
            if (shape := _shape(data, parts, ranks.get(data.name, 1))) is not None:
                node.inputs[1] = model.constant(target.name, np.array(shape, np.int64))
                outcome.edit(node.name, f"to {shape}")
        return outcome


def _parts(node: gs.Node) -> list[gs.Tensor]:
    """What the target of a Reshape is put together from; nothing if it is not, or 0 is a size."""
    if node.op != "Reshape" or node.domain or node.attrs.get("allowzero", 0):
        return []
    joined = _maker(node.inputs[1])
    return list(joined.inputs) if joined is not None and joined.op == "Concat" else []


def _shape(data: gs.Tensor, parts: list[gs.Tensor], rank: int) -> list[int] | None:
    """The target of a Reshape as constants, with 0 for what it copies; None if it is more."""
    shape: list[int] = []
    for part in parts:
        if isinstance(part, gs.Constant):
            shape += part.values.reshape(-1).tolist()
        elif len(shape) < rank and _is_size(part, data, len(shape)):
            shape.append(0)
        else:
            return None
    return shape


def _is_size(part: gs.Tensor, data: gs.Tensor, axis: int) -> bool:
    """Whether a tensor is the size of one axis of the data, as a vector: Shape, or of it a part."""
    node = _maker(part)
    scalar = node is not None and node.op == "Unsqueeze" and axes_of(node) == [0]
    if node is not None and scalar:
        node = _maker(node.inputs[0])
    ends: tuple[int, int | None] = (axis, axis + 1)
    if node is not None and node.op == "Gather" and isinstance(node.inputs[1], gs.Constant):
        if node.inputs[1].values.tolist() != (axis if scalar else [axis]):
            return False
        node, scalar, ends = _maker(node.inputs[0]), False, (0, None)
    if node is None or node.op != "Shape" or scalar:
        return False
    return node.inputs[0] is data and (node.attrs.get("start", 0), node.attrs.get("end")) == ends


def _maker(tensor: gs.Tensor) -> gs.Node | None:
    """The node that makes a tensor, if it is one of ONNX."""
    return tensor.inputs[0] if tensor.inputs and not tensor.inputs[0].domain else None
