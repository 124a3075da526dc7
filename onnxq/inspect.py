"""What is in a model: its layers, how their weights are stored and what ranges they have."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.kernels import Kernels, census, stored_names
from onnxq.layers import WEIGHTED, layer_of
from onnxq.layerwise import grid_of
from onnxq.model import Model


@dataclass
class LayerInfo:
    """One weighted layer as the file has it.

    Attributes:
        name: Node name.
        op: Operator.
        shape: Of the weight.
        bits: Of the weight's codes; 32 if it is float.
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
    found = []
    for node in model.graph.nodes:
        if node.op not in WEIGHTED or node.domain:
            continue
        side = 1
        if layer := layer_of(node):
            side, codes, scale = layer.weight_index, layer.weight_tensor, None
        else:
            sides = [i for i, t in enumerate(node.inputs[:2]) if len(stored_names(t)) > 1]
            if not sides:
                continue
            side = sides[0]
            codes, scale = _stored(node.inputs[side])
        values = codes.values.astype(np.float32)
        bits = 32
        if scale is not None:
            bits = max(2, int(np.abs(values).max(initial=0.0)).bit_length() + 1)
            axis = _axis(node.inputs[side], scale)
            values = values * (scale.reshape(axis) if scale.ndim == 1 else scale)
        grid = grid_of(node.inputs[1 - side])
        found.append(
            LayerInfo(
                node.name,
                node.op,
                tuple(codes.shape),
                bits,
                32 if grid is None else grid.spec.bits,
                0 if scale is None else scale.size,
                float(values.min(initial=0.0)),
                float(values.max(initial=0.0)),
                kernels.integer.get(node.name, "float"),
            )
        )
    return found, kernels


def _stored(tensor: gs.Tensor) -> tuple[gs.Constant, np.ndarray]:
    """Codes and scale of a weight behind DequantizeLinear, or behind Cast and Mul."""
    scale = tensor.inputs[0].inputs[1].values
    while not isinstance(tensor, gs.Constant):
        tensor = tensor.inputs[0].inputs[0]
    return tensor, scale


def _axis(tensor: gs.Tensor, scale: np.ndarray) -> tuple[int, ...]:
    """Shape that lays a per-channel scale along the channel axis of its DequantizeLinear."""
    axis = tensor.inputs[0].attrs.get("axis", 1)
    codes, _ = _stored(tensor)
    return tuple(-1 if i == axis else 1 for i in range(len(codes.shape)))
