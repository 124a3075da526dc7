"""What ONNX's version converter gets wrong when it raises an opset: to be refused, or set right."""

from collections.abc import Iterable

import onnx_graphsurgeon as gs


def obstacle(nodes: Iterable[gs.Node], before: int, version: int) -> str | None:
    """Why nodes would mean something else in a newer opset than the converter makes of them.

    Args:
        nodes: All of the model, those of bodies included.
        before: Its opset.
        version: The newer one.
    """
    for node in nodes:
        if node.op == "GroupNormalization" and before < 21 <= version:
            # Its scale stays as it is, which was one for each group.
            return "GroupNormalization has another meaning from 21 on"
        if node.op == "Hardmax" and before < 13 <= version and node.attrs.get("axis", 1) != -1:
            return "Hardmax has another meaning from 13 on"
    return None


def restore(nodes: Iterable[gs.Node], before: int, version: int) -> None:
    """Let nodes that the converter raised to a newer opset mean what they did; see ``obstacle``."""
    for node in nodes:
        if node.op == "Resize" and before < 11 <= version:
            # What Upsample and the first Resize did is not what one of today does by itself.
            shrinks = isinstance(node.inputs[2], gs.Constant) and node.inputs[2].values.max() <= 1.0
            node.attrs["coordinate_transformation_mode"] = "asymmetric"
            node.attrs["nearest_mode"] = "ceil" if shrinks else "floor"
