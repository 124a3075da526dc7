"""Float constants that are no weights of layers, which else outweigh what 4 bits leave of these."""

import math
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.model import FLOAT, Model
from onnxq.numerics import affine, tables
from onnxq.pipeline import Outcome, Pass, Statistics
from onnxq.spec import QTensor

# What reads such tables, and how many values are worth it.
READERS = {"Add", "DeformConv", "Einsum", "GRU", "Gather", "LSTM", "Mul", "RNN", "Sub"}
MANY = 1024


class QuantizeTables(Pass):
    """Store embeddings, biases of attention and recurrent weights in 8 bits.

    They are brought back when the model is loaded, and all that reads them computes in floats.
    """

    name: ClassVar[str] = "quantize-tables"
    exact: ClassVar[bool] = False

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        captured = model.captured()
        for constant in model.constants():
            if not _is_table(constant) or constant.name in captured or model.is_output(constant):
                continue
            kept = [
                model.kept_float[n.name] for n in constant.outputs if n.name in model.kept_float
            ]
            table = None if kept else tables.compress(constant.values)
            if table is None:
                why = kept[0] if kept else "8 bits leave too little of its smaller values"
                outcome.skip(constant.name, why)
                continue
            _store(model, constant, table)
            outcome.edit(constant.name, "8 bits, brought back at load")
        return outcome


def _is_table(constant: gs.Constant) -> bool:
    """Whether a constant is large along more than one axis, and read by nothing but READERS."""
    shape = constant.shape
    if constant.dtype != np.float32 or math.prod(shape) < MANY or max(shape) == math.prod(shape):
        return False
    return all(node.op in READERS and not node.domain for node in constant.outputs)


def _store(model: Model, constant: gs.Constant, table: QTensor) -> None:
    """Let all that reads a constant read what becomes of its codes."""
    name, params = constant.name, table.params
    scale = affine.broadcast(params.scale, table.codes.ndim, params.axis)
    floats, result = model.variable(f"{name}_floats"), model.variable(f"{name}_dequantized")
    model.redirect(constant, result)
    model.add("Cast", [model.constant(f"{name}_codes", table.codes)], floats, to=FLOAT)
    model.add("Mul", [floats, model.constant(f"{name}_scale", scale)], result)
