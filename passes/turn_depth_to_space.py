"""DepthToSpace moves single values; with channels last, whole rows of them lie side by side.

With blocks of b x b and channels last, DepthToSpace in its DCR order is

    (n, h, w, b, b c)  ->  (n, h, b, w, b c)

one Transpose between two Reshapes. onnxruntime computes integer layers with channels last, so that
the turns on either side of these vanish. Another order of channels is one of the output channels of
the layer before.
"""

from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.layers import Layer, layers
from onnxq.graph.model import Model
from onnxq.graph.moves import bounds
from onnxq.graph.placement import without_products
from onnxq.pipeline import Outcome, Pass, Statistics

LAST, FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


class TurnDepthToSpace(Pass):
    """Write DepthToSpace on codes as a Transpose of rows, with channels last."""

    name: ClassVar[str] = "turn-depth-to-space"
    exact: ClassVar[bool] = True

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        found = [n for n in model.graph.nodes if n.op == "DepthToSpace" and not n.domain]
        found = [node for node in found if node.name not in model.kept_float]
        if not found:
            return outcome
        shapes, on_codes = model.shapes(), without_products(model).moves
        ends = {layer.end.name: layer for layer in layers(model)}
        for node in found:
            shape, block = shapes.get(node.inputs[0].name, ()), int(node.attrs["blocksize"])
            if node.name not in on_codes:
                outcome.skip(node.name, "it runs on floats")
                continue
            if len(shape) != 4 or not shape[1]:
                outcome.skip(node.name, "how many channels it has is not known")
                continue
            name, reordered = node.name, node.attrs.get("mode", "DCR") == "CRD"
            if reordered and not _reorder(model, node, block, ends):
                outcome.skip(name, "no layer alone makes its channels, whose order matters")
                continue
            if reordered:  # a node with a name of the source tells that what it reads is the same
                node.name = model.fresh(f"{name}_reordered")
            _turn(model, node, block, shape[1])
            outcome.edit(name, "became a Transpose with channels last")
        return outcome


def _reorder(model: Model, node: gs.Node, block: int, ends: dict[str, Layer]) -> bool:
    """Let the layer before a node in CRD order return its channels in DCR order, if it can.

    What has another order now has another name.
    """
    between: list[gs.Node] = []
    reader, tensor = node, node.inputs[0]
    while model.single_consumer(tensor) is reader and tensor.inputs:
        reader = tensor.inputs[0]
        between.append(reader)
        if (layer := ends.get(reader.name)) is not None:
            break
        if reader.op not in ("Relu", "Clip") or bounds(reader) is None:
            return False
        tensor = reader.inputs[0]
    else:
        return False
    order = np.arange(layer.c_out).reshape(-1, block**2).T.reshape(-1)
    free = layer.op == "Conv" and layer.groups == 1 and layer.name not in model.kept_float
    if not free or (layer.bias_tensor is not None and layer.bias is None):
        return False
    layer.set_weight(model, layer.weight[order])
    if layer.bias is not None:
        layer.set_bias(model, np.broadcast_to(layer.bias, layer.c_out)[order])
    for maker in between:
        for tensor in maker.outputs:
            model.moments.pop(tensor.name, None)
            tensor.name = model.fresh(f"{tensor.name}_reordered")
    return True


def _turn(model: Model, node: gs.Node, block: int, channels: int) -> None:
    """Turn the node into the last of those that do what it did."""
    (tensor, *_), (result,) = node.inputs, node.outputs

    def step(op: str, inputs: list[gs.Tensor], **attrs: Any) -> gs.Tensor:
        made = model.variable(f"{result.name}_turned")
        model.add(op, inputs, made, **attrs)
        return made

    def numbers(*values: int) -> gs.Constant:
        return model.constant(f"{result.name}_numbers", np.array(values, np.int64))

    last = step("Transpose", [tensor], perm=LAST)
    split = numbers(0, 0, 0, block, channels // block)
    rows = step("Reshape", [last, split])
    turned = step("Transpose", [rows], perm=[0, 1, 3, 2, 4])
    inner = numbers(channels // block**2)
    # Where sizes are fixed, onnxruntime computes this at load.
    sizes = step("Slice", [step("Shape", [last]), numbers(0), numbers(3)])
    larger = step("Concat", [step("Mul", [sizes, numbers(1, block, block)]), inner], axis=0)
    node.op, node.attrs = "Transpose", {"perm": FIRST}
    node.inputs = [step("Reshape", [turned, larger])]
