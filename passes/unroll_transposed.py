"""ConvTranspose has no integer kernel; a Conv that computes the phases of its output has.

The algebra stands in numerics/subpixel.py.
"""

from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.layers import Layer, layers
from onnxq.graph.model import Model
from onnxq.numerics import subpixel
from onnxq.pipeline import Outcome, Pass, Statistics

# Taps that phases of unequal length are filled up with may at most double the weight.
LARGEST_GROWTH = 2.0
TO_THE_END = np.iinfo(np.int64).max


class UnrollTransposed(Pass):
    """Write a strided ConvTranspose as Conv and DepthToSpace, cropped by a Slice where it pads."""

    name: ClassVar[str] = "unroll-transposed"
    exact: ClassVar[bool] = True

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        for layer in [x for x in layers(model) if x.op == "ConvTranspose"]:
            why = model.kept_float.get(layer.name) or _obstacle(layer)
            if why is not None:
                outcome.skip(layer.name, why)
                continue
            _unroll(model, layer)
            outcome.edit(layer.name, "became Conv and DepthToSpace")
        return outcome


def _obstacle(layer: Layer) -> str | None:
    """Why a layer cannot become a convolution of phases, if so."""
    attrs, kernel = layer.node.attrs, layer.weight.shape[2:]
    strides = attrs.get("strides", [1] * len(kernel))
    if len(kernel) != 2 or set(attrs.get("dilations", [1])) != {1} or len(set(strides)) != 1:
        return "it is not two-dimensional, dilated or has two strides"
    if attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or "output_shape" in attrs:
        return "its padding depends on the size of its input"
    if layer.bias_tensor is not None and layer.bias is None:
        return "its bias is not constant"
    if layer.weight.size == 0:
        return "its weight is empty"
    _, ends = _crop(layer)
    if max(ends) > 0:
        return "it pads its output beyond what it computes"
    if np.prod([-(-k // strides[0]) * strides[0] / k for k in kernel]) > LARGEST_GROWTH:
        return "its kernel is much smaller than its stride"
    return None


def _crop(layer: Layer) -> tuple[list[int], list[int]]:
    """What of all phases is the output: begins, and ends counted from the end, 0 or less."""
    attrs, kernel = layer.node.attrs, layer.weight.shape[2:]
    stride = attrs.get("strides", [1])[0]
    pads = attrs.get("pads", [0] * 4)
    beyond = attrs.get("output_padding", [0, 0])
    ends = [
        k - stride * -(-k // stride) - pad + more
        for k, pad, more in zip(kernel, pads[2:], beyond, strict=True)
    ]
    return list(pads[:2]), ends


def _unroll(model: Model, layer: Layer) -> None:
    node, bias, stride = layer.node, layer.bias, layer.node.attrs.get("strides", [1])[0]
    begins, ends = _crop(layer)
    weight = subpixel.phases(layer.weight, stride, layer.groups)
    result, name, old = node.outputs[0], node.name, layer.weight_tensor.name
    if bias is not None:
        node.inputs[2] = model.constant(f"{old}_bias", np.repeat(bias, stride**2))
    node.inputs[1] = model.constant(f"{old}_phases", weight)
    node.op = "Conv"
    node.attrs.clear()
    full = [taps - 1 for taps in weight.shape[2:]]
    node.attrs.update(group=layer.groups, pads=full * 2, kernel_shape=list(weight.shape[2:]))
    tail: list[tuple[str, list[gs.Constant], dict[str, Any]]] = []
    if stride > 1:
        tail.append(("DepthToSpace", [], {"blocksize": stride, "mode": "CRD"}))
    if any(begins) or any(ends):
        stops = [end or TO_THE_END for end in ends]
        bounds = [np.array(v, np.int64) for v in (begins, stops, [2, 3])]
        tail.append(("Slice", [model.constant(f"{name}_crop", v) for v in bounds], {}))
    tensor = result
    for op, constants, attrs in reversed(tail):
        source = model.variable(f"{result.name}_{op}_in")
        model.add(op, [source, *constants], tensor, **attrs)
        tensor = source
    node.outputs = [tensor]
