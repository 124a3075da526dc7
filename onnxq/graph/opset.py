"""What ONNX's version converter gets wrong when it raises an opset: to be refused, or set right."""

from collections.abc import Iterable

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.spec import Floats


def obstacle(nodes: Iterable[gs.Node], before: int, version: int) -> str | None:
    """Why a node would mean something else in a newer opset, whatever is done, if one would.

    Args:
        nodes: All of the model, those of bodies and functions included.
        before: Its opset.
        version: The newer one.
    """
    for node in (node for node in nodes if not node.domain):
        if node.op == "GroupNormalization" and before < 21 <= version:
            # Its scale stays as it is, which was one for each group.
            return "GroupNormalization has another meaning from 21 on"
        if node.op == "Hardmax" and before < 13 <= version and node.attrs.get("axis", 1) != -1:
            return "Hardmax has another meaning from 13 on"
        if node.op == "Resize" and before < 11 <= version and _rounding(node, 1) is None:
            return f"Resize {node.name} rounds up where it shrinks, and down where it enlarges"
    return None


def restore(nodes: Iterable[gs.Node], before: int, version: int) -> list[str]:
    """Let nodes that the converter raised to a newer opset mean what they did; see ``obstacle``.

    What Upsample and the first Resize did is not what one of today does by itself.

    Returns:
        What had to be taken for granted, a sentence each.
    """
    notes = []
    for node in (node for node in nodes if node.op == "Resize" and not node.domain):
        if before < 11 <= version:
            node.attrs["coordinate_transformation_mode"] = "asymmetric"
            if node.attrs.get("mode", "nearest") == "nearest":
                node.attrs["nearest_mode"] = _rounding(node, 2)
                if _values(node.inputs[2]) is None:
                    notes.append(f"Resize {node.name} computes its scales: taken to enlarge")
    return notes


def _rounding(node: gs.Node, place: int) -> str | None:
    """How a Resize that is older than its attribute for that finds the nearest pixel.

    It rounds down where it enlarges and up where it shrinks; None if no one way is both.

    Args:
        node: The node.
        place: Which of its inputs the scales are.
    """
    scales = _values(node.inputs[place])
    if node.attrs.get("mode", "nearest") != "nearest" or scales is None or scales.min() >= 1.0:
        return "floor"
    if scales.max() <= 1.0:
        return "ceil"
    # By a half, a third and so on, there is nothing to round.
    whole = np.isclose(np.rint(1.0 / scales) * scales, 1.0, rtol=1e-6)
    return "floor" if (whole | (scales >= 1.0)).all() else None


def _values(tensor: gs.Tensor) -> Floats | None:
    """The numbers of a tensor that is constant, or joined from constants; None of another."""
    if isinstance(tensor, gs.Constant):
        return np.asarray(tensor.values).reshape(-1)
    producer = tensor.inputs[0] if tensor.inputs else None
    if producer is None or producer.op != "Concat":
        return None
    parts = [_values(t) for t in producer.inputs]
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if len(known) == len(parts) else None
