"""What is in a model: its layers, how their weights are stored and what ranges they have."""

from dataclasses import dataclass
from pathlib import Path

import onnx_graphsurgeon as gs

from onnxq.kernels import Kernels, census, stored_names
from onnxq.layers import WEIGHTED
from onnxq.layerwise import grid_of
from onnxq.model import Model
from onnxq.runtime import evaluate
from onnxq.storage import stored_bits


@dataclass
class LayerInfo:
    """One weighted layer as the file has it.

    Attributes:
        name: Node name.
        op: Operator.
        shape: Of the weight.
        bits: That a weight takes in the file, scales apart; 32 if it is float.
        act_bits: Of the data it reads; 32 if they are float.
        scales: Number of weight scales; 0 if it is float.
        lo: Smallest weight.
        hi: Largest weight.
        kernel: What computes it in onnxruntime.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    bits: int
    act_bits: int
    scales: int
    lo: float
    hi: float
    kernel: str


def inspect(model: Model, file: Path | None = None) -> tuple[list[LayerInfo], Kernels]:
    """The layers of a float or quantized model, and the kernels onnxruntime runs them on."""
    kernels = census(model, file)
    sides = {
        node.name: next(i for i, t in enumerate(node.inputs[:2]) if stored_names(t))
        for node in model.graph.nodes
        if node.op in WEIGHTED and not node.domain and any(map(stored_names, node.inputs[:2]))
    }
    weighted = [node for node in model.graph.nodes if node.name in sides]
    unpacked = [node.inputs[sides[node.name]] for node in weighted]
    values = evaluate(model, [t for t in unpacked if not isinstance(t, gs.Constant)])
    found = []
    for node, weight in zip(weighted, unpacked, strict=True):
        stored = not isinstance(weight, gs.Constant)
        w = values[weight.name] if stored else weight.values
        grid = grid_of(node.inputs[1 - sides[node.name]])
        found.append(
            LayerInfo(
                node.name,
                node.op,
                w.shape,
                stored_bits(weight),
                32 if grid is None else grid.spec.bits,
                weight.inputs[0].inputs[1].values.size if stored else 0,
                float(w.min(initial=0.0)),
                float(w.max(initial=0.0)),
                kernels.integer.get(node.name, "float"),
            )
        )
    return found, kernels
