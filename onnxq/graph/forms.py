"""Integer layers that onnxruntime computes faster in another form."""

import math
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.layers import Layer, layer_of
from onnxq.graph.model import Model
from onnxq.graph.placement import Placement
from onnxq.graph.storage import Storage
from onnxq.numerics import groups
from onnxq.numerics.strips import LEAST_ROW, MOST_CHANNELS, PIXELS, Strip
from onnxq.spec import SAFE

# The code of what a pool averages with.
AVERAGED = SAFE


@dataclass(frozen=True)
class Forms:
    """Which nodes are written in which form, by their names.

    Attributes:
        pools: AveragePools that become a Conv, and their channels.
        groups: Convs in channel groups, and how many of these are computed as one.
        strips: Convs over strips of pixels.
    """

    pools: dict[str, int] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)
    strips: dict[str, Strip] = field(default_factory=dict)


def forms(model: Model, placement: Placement, *, plain: bool) -> Forms:
    """The forms that the shapes of a model allow; if ``plain``, those that change no layer."""
    found = Forms()
    nodes = [node for node in model.graph.nodes if node.name in placement.integer]
    pools = [node for node in nodes if node.op == "AveragePool"]
    layers = [] if plain else [layer for node in nodes if (layer := layer_of(node)) is not None]
    convs = [layer for layer in layers if layer.op == "Conv"]
    for layer in convs:
        if layer.groups > 1 and not layer.depthwise:
            found.groups[layer.name] = groups.together(layer.groups, layer.c_in // layer.groups)
    stems = [it for it in convs if it.groups == 1 and it.c_in <= MOST_CHANNELS]
    shapes = model.shapes() if pools or stems else {}
    for node in pools:
        if (channels := _channels(node, shapes.get(node.inputs[0].name, ()))) is not None:
            found.pools[node.name] = channels
    for layer in stems:
        if (strip := _strip(layer, shapes.get(layer.data.name, ()))) is not None:
            found.strips[layer.name] = strip
    return found


def _channels(pool: gs.Node, shape: tuple[int | None, ...]) -> int | None:
    """The channels of a pool that a Conv can compute.

    All windows must be as large as the kernel, zeros around the image included, and their sums of
    codes must fit int32.
    """
    attrs, automatic = pool.attrs, pool.attrs.get("auto_pad", "NOTSET")
    counted = attrs.get("count_include_pad", 0) and automatic == "NOTSET"
    padded = (any(attrs.get("pads", ())) and not counted) or automatic.startswith("SAME")
    large = 255 * AVERAGED * math.prod(attrs["kernel_shape"]) > np.iinfo(np.int32).max
    if len(shape) != 4 or padded or large or attrs.get("ceil_mode", 0):
        return None
    return shape[1]


def _strip(layer: Layer, shape: tuple[int | None, ...]) -> Strip | None:
    """What a Conv does along a row, if its rows of data and of results are whole strips."""
    attrs = layer.node.attrs
    if len(shape) != 4 or attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    stride, kernel = attrs.get("strides", [1, 1])[1], layer.weight.shape[3]
    _, left, _, right = attrs.get("pads", [0, 0, 0, 0])
    # As many results as strides of data.
    same = kernel - stride <= left + right < kernel
    plain = attrs.get("dilations", [1, 1])[1] == 1
    row = shape[3] or 0
    if row < LEAST_ROW or row % PIXELS or PIXELS % stride or not same or not plain:
        return None
    return Strip(kernel, stride, left, row)


def regroup(
    storage: Storage, tensor: gs.Tensor, width: int, channels: int, result: gs.Tensor
) -> None:
    """Make ``result`` the same values in rows of so many pixels of so many channels.

    Turned so that channels come last, as onnxruntime has them around an integer Conv: there the
    turns on either side of the Reshape vanish.
    """
    model, shape = storage.model, storage.shared("shape", np.array([0, 0, width, channels]))
    last, regrouped = (model.variable(f"{tensor.name}_regrouped") for _ in range(2))
    model.add("Transpose", [tensor], last, perm=[0, 2, 3, 1])
    model.add("Reshape", [last, shape], regrouped)
    model.add("Transpose", [regrouped], result, perm=[0, 3, 1, 2])


def regroupers(node: gs.Node) -> tuple[gs.Node, gs.Node] | None:
    """The first node before a Conv over strips that regroups, and the last behind it; else None."""
    first = last = node
    for op in ("Transpose", "Reshape", "Transpose"):
        above, below = first.inputs[0].inputs, last.outputs[0].outputs
        if not len(above) == len(below) == 1 or not above[0].op == below[0].op == op:
            return None
        first, last = above[0], below[0]
    source = first.inputs[0].inputs
    return (first, last) if source and source[0].op == "DequantizeLinear" else None
