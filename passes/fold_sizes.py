"""Sizes that are known before a model runs need not be computed from shapes when it does.

Where only the batch is open, onnxruntime still asks each tensor for its height and width, by a few
small operators for each, and computes paddings and the targets of reshapes from these in each run.
"""

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.model import Model
from onnxq.passes.normalize import fold_constants
from onnxq.pipeline import Outcome, Pass, Statistics
from onnxq.spec import Ints


class FoldSizes(Pass):
    """Make constants of sizes that the fixed ones of inputs imply, and of what depends on them."""

    name: ClassVar[str] = "fold-sizes"
    exact: ClassVar[bool] = True

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        fold_sizes(model, outcome)
        return outcome


def fold_sizes(model: Model, outcome: Outcome) -> None:
    """Make constants of all sizes that are known, and note what was done."""
    _expand_tiles(model, outcome)
    while _fold(model, outcome):  # a padding that is known makes more sizes known
        model.tidy()
        fold_constants(model, outcome)
        model.tidy()


def _expand_tiles(model: Model, outcome: Outcome) -> None:
    """Write a Tile that only repeats axes of one element as an Expand.

    ONNX's shape inference knows no size of a Tile of some images, and of an Expand all others.
    """
    tiles = [node for node in model.graph.nodes if node.op == "Tile" and not node.domain]
    shapes = model.shapes(propagated=True) if tiles else {}
    for node in tiles:
        data, repeats = node.inputs
        known = data.values.shape if isinstance(data, gs.Constant) else shapes.get(data.name)
        times = _times(repeats)
        if known is None or len(times) != len(known):
            continue
        if all(1 in axis for axis in zip(known, times, strict=True)):
            node.op = "Expand"
            outcome.edit(node.name, "an Expand now")


def _times(repeats: gs.Tensor) -> list[int | None]:
    """How often a Tile repeats each axis, None for what is computed; nothing if it all is."""
    if isinstance(repeats, gs.Constant):
        return [int(n) for n in repeats.values]
    joined = repeats.inputs[0] if repeats.inputs else None
    if joined is None or joined.op != "Concat" or joined.domain:
        return []
    found: list[int | None] = []
    for part in joined.inputs:
        found += _times(part) or [None]
    return found


def _fold(model: Model, outcome: Outcome) -> bool:
    """Make constants of the sizes that are known now; whether there were any."""
    readers = [
        (node, shape.inputs[0].name)
        for shape in model.graph.nodes
        if shape.op == "Shape" and not shape.domain and not shape.attrs
        for node in shape.outputs[0].outputs
        if node.op in ("Gather", "Slice") and node.inputs[0] is shape.outputs[0]
    ]
    sizes = model.shapes(propagated=True) if readers else {}
    before = len(outcome.edits)
    for node, name in readers:
        found = _selected(node, sizes.get(name))
        if found is not None and model.become_constant(node, found):
            outcome.edit(node.name, "a size that is known")
    return len(outcome.edits) > before


def _selected(node: gs.Node, sizes: tuple[int | None, ...] | None) -> Ints | None:
    """What a Gather or Slice takes of a shape, if all of it is known."""
    if sizes is None or not all(isinstance(t, gs.Constant) for t in node.inputs[1:]):
        return None
    places = np.arange(len(sizes))
    if node.op == "Gather":
        index = node.inputs[1].values
        if ((index < -len(sizes)) | (index >= len(sizes))).any():
            return None
        chosen = places[index]
    else:
        starts, ends, *rest = (t.values.reshape(-1) for t in node.inputs[1:])
        step = int(rest[1][0]) if len(rest) > 1 else 1
        chosen = places[int(starts[0]) : int(ends[0]) : step]
    found = [sizes[i] for i in chosen.reshape(-1)]
    if any(size is None for size in found):
        return None
    return np.array(found, np.int64).reshape(chosen.shape)
