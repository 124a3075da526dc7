"""Float constants that are no weights of layers, which else outweigh what 4 bits leave of these."""

import math
from collections.abc import Container
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.layers import HOLDERS, MANY, WEIGHTED
from onnxq.graph.model import Model
from onnxq.graph.tensors import reads
from onnxq.numerics import affine, tables
from onnxq.pipeline import Outcome, Pass, Statistics

# What multiplies with tables or adds them up by itself, and what else reads them.
MIXING = HOLDERS - {"Gather"}
READERS = {*HOLDERS, "Add", "Mul", "Sub"}
# What is no layer only because it stands in the body of a control flow node.
INNER = {*WEIGHTED, *MIXING}
# Behind these nothing is a place in an image any more; these take what they read for one.
LAYERS = {*WEIGHTED, *MIXING, "LogSoftmax", "Softmax"}
PLACING = {"Cast", "DeformConv", "GridSample", "If", "Loop", "NonMaxSuppression", "RoiAlign",
           "Scan", "TopK"}  # fmt: skip


class QuantizeTables(Pass):
    """Store embeddings, biases of attention, recurrent weights and those of bodies in 8 bits.

    They are brought back when the model is loaded, and all that reads them computes in floats. What
    may hold positions, as anchors do, stays as it is: a table whose sums come to an output, or to
    what looks places up, without a layer or a Softmax between. Of what the bodies of control flow
    nodes read, only what they multiply with is taken.
    """

    name: ClassVar[str] = "quantize-tables"
    exact: ClassVar[bool] = False

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Fill in ``model.tables``."""
        outcome, captured = Outcome(), model.captured()
        for constant in model.constants():
            if not _is_table(constant, READERS):
                continue
            kept = [
                model.kept_float[n.name] for n in constant.outputs if n.name in model.kept_float
            ]
            if kept:
                outcome.skip(constant.name, kept[0])
            elif constant.name in captured or not _ends_in_layers(model, constant, captured):
                outcome.skip(constant.name, "it may hold positions: no layer is behind it")
            else:
                _store(model, constant, outcome)
        kept_nodes = [node for node in model.graph.nodes if node.name in model.kept_float]
        aside = {id(t) for node in kept_nodes for t in reads(node)}
        bodies = model.graph.subgraphs(recursive=True)
        aside |= {id(t) for body in bodies for t in body.outputs}
        for constant in model.inner_constants():
            if _is_table(constant, INNER) and id(constant) not in aside:
                constant.name = model.fresh(constant.name)  # bodies side by side may share names
                _store(model, constant, outcome)
        return outcome


def _is_table(constant: gs.Constant, readers: Container[str]) -> bool:
    """Whether a constant has many values, more than a vector, and none but these readers."""
    shape = constant.shape
    if constant.dtype != np.float32 or math.prod(shape) < MANY or max(shape) == math.prod(shape):
        return False
    return all(node.op in readers and not node.domain for node in constant.outputs)


def _store(model: Model, constant: gs.Constant, outcome: Outcome) -> None:
    """Plan 8 bits for a constant, where they leave enough of its values."""
    if (table := tables.compress(constant.values)) is None:
        outcome.skip(constant.name, "8 bits would leave too little of its values")
        return
    constant.values = affine.values(table)
    model.tables[constant.name] = table
    outcome.edit(constant.name, "8 bits, brought back at load")


def _ends_in_layers(model: Model, constant: gs.Constant, captured: Container[str]) -> bool:
    """Whether all that becomes of a constant goes through a layer."""
    ahead, seen = [node for node in constant.outputs if node.op not in MIXING], set[int]()
    while ahead:
        node = ahead.pop()
        if id(node) in seen or (node.op in LAYERS - PLACING and not node.domain):
            continue
        seen.add(id(node))
        if node.op in PLACING or any(
            t.name in captured or model.is_output(t) for t in node.outputs
        ):
            return False
        ahead += [reader for tensor in node.outputs for reader in tensor.outputs]
    return not model.is_output(constant)
