"""What cuts values off goes before what moves them: there, the quantizer of a layer does it."""

from collections.abc import Container
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxq.graph.layers import layer_of
from onnxq.graph.model import Model
from onnxq.graph.moves import bounds
from onnxq.graph.placement import COMPANIONS
from onnxq.pipeline import Outcome, Pass, Statistics

# They take each value from one place, or the largest of some, and make no more of them.
MOVES = {"DepthToSpace", "Flatten", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose",
         "Unsqueeze"}  # fmt: skip


class AdvanceActivations(Pass):
    """Let Relu and Clip trade places with pools and moves between a layer and them.

    f(max x) = max f(x) for an f that never falls. A grid then covers what f leaves, not what the
    layer returned, of which half may be cut off.
    """

    name: ClassVar[str] = "advance-activations"
    exact: ClassVar[bool] = True

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        captured = model.captured()
        for node in list(model.graph.nodes):
            cuts = node.op in ("Relu", "Clip") and not node.domain and bounds(node) is not None
            free = cuts and node.name not in model.kept_float
            if free and (between := _between(model, node, captured)):
                last, first = between[0], between[-1]
                result, data = node.outputs[0], first.inputs[0]
                cut = model.variable(f"{data.name}_cut")
                last.outputs[0] = result
                node.inputs[0], node.outputs = data, [cut]
                first.inputs[0] = cut
                outcome.edit(node.name, f"before {', '.join(n.name for n in reversed(between))}")
        return outcome


def _between(model: Model, node: gs.Node, captured: Container[str]) -> list[gs.Node]:
    """The nodes between an activation and what makes its values, the nearest first.

    There are none if something else reads the values on the way, or no layer makes them.
    """
    found: list[gs.Node] = []
    reader, tensor = node, node.inputs[0]
    while model.single_consumer(tensor) is reader and tensor.name not in captured:
        if not tensor.inputs:
            break
        reader = tensor.inputs[0]
        if not _moves(model, reader):
            return found if _makes(reader) else []
        found.append(reader)
        tensor = reader.inputs[0]
    return []


def _moves(model: Model, node: gs.Node) -> bool:
    plain = node.op in MOVES and not node.domain and len(node.outputs) == 1
    # The last window of a pool that rounds up may hold nothing.
    return plain and not node.attrs.get("ceil_mode", 0) and node.name not in model.kept_float


def _makes(node: gs.Node) -> bool:
    """Whether a node is a layer, the bias of one, or another with an integer kernel."""
    return not node.domain and (layer_of(node) is not None or node.op in COMPANIONS)
