"""onnxruntime turns images around integer convolutions; Resize and Pad must survive that."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.layers import layer_of
from onnxq.graph.model import Model
from onnxq.graph.tensors import axes_of
from onnxq.pipeline import Outcome, Pass, Statistics
from onnxq.spec import Array

# Shape of images whose channels are images of their own; 0 copies a size.
MERGED = np.array([-1, 1, 0, 0])
HEIGHT_AND_WIDTH = np.array([2, 3])
LAST, FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


class LayoutProof(Pass):
    """Write Resize and Pad so that layers around them can compute channels last.

    onnxruntime moves the Transpose behind such a layer past a Resize or Pad and permutes what these
    are told of each axis. It overlooks that ``axes`` leaves some out, and that a cubic Resize works
    on the last two alone: such models do not load or run. So every axis is told, and a cubic Resize
    stands between two Reshapes, which no Transpose passes.

    A Transpose that no other one awaits stays before a Pad, and the MaxPool of codes behind that is
    ten times as slow as with channels last. So a Pad of images before a MaxPool has them last.
    """

    name: ClassVar[str] = "layout-proof"
    exact: ClassVar[bool] = True

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        found = [n for n in model.graph.nodes if _axes(n) is not None or _needs_images(n)]
        ranks = model.ranks() if found else {}
        for node in found:
            rank, axes = ranks.get(node.inputs[0].name), _axes(node)
            if rank is None or axes == []:
                outcome.skip(node.name, "which of its axes change is not known")
                continue
            if _keeps_ratio(node) and not {axis % rank for axis in axes or (2, 3)} <= {2, 3}:
                outcome.skip(node.name, "it keeps the ratio of other sizes than height and width")
                continue
            if axes is not None and not _keeps_ratio(node):
                _tell_all(model, node, rank, [axis % rank for axis in axes])
                outcome.edit(node.name, "told of every axis")
            if _needs_images(node) and rank == 4:
                _shield(model, node)
                outcome.edit(node.name, "put between two Reshapes")
        for node in [n for n in model.graph.nodes if _leads_to_pool(model, n)]:
            _turn(model, node)
            outcome.edit(node.name, "channels last, as for the MaxPool behind it")
        return outcome


def _axes(node: gs.Node) -> list[int] | None:
    """Axes a Pad or Resize names, empty if they are not constant; None if it names none."""
    if node.op == "Pad" and not node.domain and _given(node, 3) is not None:
        return axes_of(node, 3) or []
    return node.attrs.get("axes") if node.op == "Resize" and not node.domain else None


def _needs_images(node: gs.Node) -> bool:
    """Whether a node computes something else, or nothing, where channels come last."""
    cubic = node.op == "Resize" and node.attrs.get("mode") == "cubic"
    return not node.domain and (cubic or _keeps_ratio(node))


def _keeps_ratio(node: gs.Node) -> bool:
    """Whether a Resize makes the axes it names equally larger."""
    return bool(node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch")


def _leads_to_pool(model: Model, node: gs.Node) -> bool:
    """Whether a node pads the images that a layer makes for a MaxPool alone."""
    if node.op != "Pad" or node.domain or _given(node, 3) is not None or not node.inputs[0].inputs:
        return False
    layer, reader = layer_of(node.inputs[0].inputs[0]), model.single_consumer(node.outputs[0])
    told = isinstance(node.inputs[1], gs.Constant) and node.inputs[1].values.size == 8
    return told and layer is not None and reader is not None and reader.op == "MaxPool"


def _turn(model: Model, node: gs.Node) -> None:
    """Put a Pad of images between two Transposes, the first of which no other one gets past."""
    data, result = node.inputs[0], node.outputs[0]
    turned, held, padded = (
        model.variable(f"{node.name}_{what}") for what in ("turned", "held", "padded")
    )
    pads = node.inputs[1].values.reshape(2, 4)[:, LAST].reshape(-1)
    model.add("Transpose", [data], turned, perm=LAST)
    model.add("Reshape", [turned, model.constant(held.name, np.array([0, 0, 0, -1]))], held)
    node.inputs = [held, model.constant(node.inputs[1].name, pads), *node.inputs[2:]]
    node.outputs = [padded]
    model.add("Transpose", [padded], result, perm=FIRST)


def _given(node: gs.Node, place: int) -> gs.Tensor | None:
    """An optional input; old opsets leave out the scales of a Resize by giving none of them."""
    tensor = node.inputs[place] if place < len(node.inputs) else gs.Variable.empty()
    nothing = isinstance(tensor, gs.Constant) and tensor.values.size == 0
    return None if nothing or tensor.is_empty() else tensor


def _tell_all(model: Model, node: gs.Node, rank: int, axes: Sequence[int]) -> None:
    """Give a Pad or Resize of some axes an entry for each of the ``rank`` axes."""
    ends = np.array([*axes, *(axis + rank for axis in axes)])
    if node.op == "Pad":
        node.inputs[1] = _among(model, node.inputs[1], np.zeros(2 * rank, np.int64), ends)
        del node.inputs[3]
        return
    del node.attrs["axes"]
    if (roi := _given(node, 1)) is not None:
        whole = np.repeat(np.array([0, 1], roi.dtype), rank)
        node.inputs[1] = _among(model, roi, whole, ends)
    if (scales := _given(node, 2)) is not None:
        node.inputs[2] = _among(model, scales, np.ones(rank, np.float32), np.array(axes))
    if (sizes := _given(node, 3)) is not None:
        node.inputs[3] = _among(model, sizes, node.inputs[0], np.array(axes))


def _shield(model: Model, node: gs.Node) -> None:
    """Put a Resize of height and width between Reshapes that merge images and channels."""
    data, result = node.inputs[0], node.outputs[0]
    merged, resized, shape, outer, target = (
        model.variable(f"{node.name}_{what}")
        for what in ("merged", "resized", "shape", "outer", "target")
    )
    model.add("Reshape", [data, model.constant(merged.name, MERGED)], merged)
    node.inputs[0], node.outputs = merged, [resized]
    if (sizes := _given(node, 3)) is not None and "axes" not in node.attrs:
        inner = model.variable(f"{node.name}_inner")
        model.add("Gather", [sizes, model.constant("height_and_width", HEIGHT_AND_WIDTH)], inner)
        node.inputs[3] = _among(model, inner, merged, HEIGHT_AND_WIDTH)
    model.add("Shape", [data], shape)
    model.add("Gather", [shape, model.constant(outer.name, np.array([0, 1]))], outer)
    model.add("Concat", [outer, model.constant(target.name, np.array([0, 0]))], target, axis=0)
    model.add("Reshape", [resized, target], result)


def _among(model: Model, some: gs.Tensor, others: gs.Tensor | Array, at: Array) -> gs.Tensor:
    """Entries put ``at`` their places among ``others``, which may be the sizes of a tensor."""
    name = f"{some.name}_of_every_axis"
    if isinstance(some, gs.Constant) and isinstance(others, np.ndarray):
        values = others.astype(some.values.dtype)
        values[at] = some.values
        return model.constant(name, values)
    result = model.variable(name)
    if isinstance(others, np.ndarray):
        base = model.constant(f"{name}_base", others)
    else:
        base = model.variable(f"{name}_base")
        model.add("Shape", [others], base)
    model.add("ScatterElements", [base, model.constant(f"{name}_at", at), some], result, axis=0)
    return result
