"""Outputs that join what has nothing to do with one another, as boxes and scores of a detector."""

from collections.abc import Mapping

import onnx_graphsurgeon as gs

from onnxq.graph.model import Model
from onnxq.spec import Array

# What hands values on as they are.
MOVERS = {"Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
# An axis, and where along it the parts end.
Parts = tuple[int, list[int]]


def parts(model: Model) -> dict[str, Parts]:
    """Outputs that are joined from results of different operators, by name.

    The noise of the one, boxes in pixels, hides that of the other, scores from 0 to 1. Results of
    one operator side by side, as of several scales, are one part.
    """
    shapes = model.shapes()
    found = {}
    for output in model.graph.outputs:
        shape = shapes.get(output.name)
        node = output.inputs[0] if output.inputs else None
        if node is None or node.op != "Concat" or node.domain or not shape:
            continue
        axis = node.attrs["axis"] % len(shape)
        ends, ops, at = list[int](), list[str](), 0
        for tensor in _joined(output, axis, len(shape)):
            size = shapes.get(tensor.name, (None,) * len(shape))[axis]
            if size is None:
                break
            at, op = at + size, _maker(tensor)
            if ops and ops[-1] == op:
                ends[-1] = at
            else:
                ends.append(at)
                ops.append(op)
        else:
            if len(ends) > 1:
                found[output.name] = axis, ends
    return found


def apart(outputs: Mapping[str, Array], found: Mapping[str, Parts]) -> dict[str, Array]:
    """Outputs, and behind each its parts, named as numpy would cut them out: ``y[:, 0:4]``."""
    values = {}
    for name, x in outputs.items():
        values[name] = x
        axis, ends = found.get(name, (0, []))
        for start, end in zip([0, *ends], ends, strict=False):
            place = ", ".join([":"] * axis + [f"{start}:{end}"])
            values[f"{name}[{place}]"] = x[(slice(None),) * axis + (slice(start, end),)]
    return values


def _joined(tensor: gs.Tensor, axis: int, rank: int) -> list[gs.Tensor]:
    """What a tensor is joined from along an axis, in order: itself if it is not."""
    node = tensor.inputs[0] if tensor.inputs else None
    if node is None or node.op != "Concat" or node.domain or node.attrs["axis"] % rank != axis:
        return [tensor]
    return [part for t in node.inputs for part in _joined(t, axis, rank)]


def _maker(tensor: gs.Tensor) -> str:
    """The operator that made the values of a tensor, wherever they lay; "" for an input."""
    node = tensor.inputs[0] if tensor.inputs else None
    if node is None:
        return ""
    return _maker(node.inputs[0]) if node.op in MOVERS and not node.domain else str(node.op)
