"""Where tensors have their channels, and which operators leave channels apart.

Each channel of what such an operator returns depends on one channel of its data alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.layers import Layer
from onnxq.graph.moves import bounds, factor, moved, pads_zeros
from onnxq.graph.tensors import axes_of
from onnxq.spec import Floats

HOMOGENEOUS = {"Identity", "LeakyRelu", "PRelu", "Relu"}
POOLS = {"AveragePool", "MaxPool"}
GATES = {"HardSigmoid", "Sigmoid"}
NORMS = {"LayerNormalization", "RMSNormalization"}


@dataclass(frozen=True)
class Channels:
    """Where a tensor has its channels.

    Attributes:
        count: How many, before any became a block.
        form: ``image`` (n, c, *space); ``pooled``, an image of one pixel; ``rows`` (n, c);
            ``flat`` (n, c * block); ``tokens`` (..., c).
        rank: Of an image or a pooled one, else 0.
    """

    count: int
    form: Literal["image", "pooled", "rows", "flat", "tokens"]
    rank: int = 0

    @property
    def axes(self) -> tuple[int, ...]:
        """What the axis with a channel at each place may be called; a block has none."""
        if self.form == "flat":
            return ()
        return (-1,) if self.form == "tokens" else (1, -1) if self.form == "rows" else (1,)

    def shaped(self, values: Floats) -> Floats:
        """One value per channel, (count,), as it broadcasts over the tensor."""
        return values.reshape(1, -1, *[1] * (self.rank - 2)) if self.rank else values


def made(layer: Layer) -> Channels:
    """Where a layer's result has its channels."""
    if layer.op in ("Conv", "ConvTranspose"):
        return Channels(layer.c_out, "image", len(layer.weight_tensor.shape))
    return Channels(layer.c_out, "rows" if layer.op == "Gemm" else "tokens")


def normed(node: gs.Node) -> Channels | None:
    """Where a normalization has its channels; None if it gives them no constant scale each."""
    if node.op not in NORMS or node.domain or len(node.outputs) != 1:
        return None
    scale, *offset = (t for t in node.inputs[1:] if not t.is_empty())
    constant = all(isinstance(t, gs.Constant) and t.dtype == np.float32 for t in (scale, *offset))
    whole = constant and scale.values.ndim == 1 and node.attrs.get("axis", -1) == -1
    return Channels(scale.values.size, "tokens") if whole else None


def unreadable(layer: Layer, channels: Channels) -> str | None:
    """Why a layer's input channels are not those of its data, in order; None if they are.

    Those of ``flat`` data are blocks of equal size.
    """
    if layer.obstacle is not None:
        return layer.obstacle
    if layer.data_axis == 0 or (layer.op in ("Conv", "ConvTranspose")) != bool(channels.rank):
        return "its input channels lie along another axis"
    blocks = channels.form == "flat" and layer.c_in % channels.count == 0
    if layer.c_in == channels.count or blocks:
        return None
    return f"it has {layer.c_in} input channels, not {channels.count}"


def joined(node: gs.Node, found: Sequence[Channels | None]) -> Channels | None:
    """Where an Add or Concat of such operands has its channels; None if it mixes them."""
    known = [c for c in found if c is not None]
    if len(known) < len(found) or len({(c.form, c.rank) for c in known}) != 1:
        return None
    first, counts = known[0], [c.count for c in known]
    if node.op == "Add":
        return first if len(set(counts)) == 1 else None
    return replace(first, count=sum(counts)) if node.attrs["axis"] in first.axes else None


def carrier(node: gs.Node) -> gs.Tensor | None:
    """The operand whose channels a node hands on, if it hands any on; None if there are two."""
    if node.op == "Mul" and factor(node) is None:
        doors = [_openness(t.inputs[0]) if t.inputs else np.inf for t in node.inputs]
        return node.inputs[int(np.argmax(doors))] if doors[0] != doors[1] else None
    return None if node.op == "PRelu" and node.inputs[1] is node.inputs[0] else moved(node)


def _openness(node: gs.Node) -> float:
    """How far the gate that a node makes opens; no end if it makes none."""
    if node.op in GATES:
        return 1.0
    ends = bounds(node) if node.op == "Clip" else None
    return np.inf if ends is None or ends[0] != 0.0 else float(ends[1])


def passed(node: gs.Node, had: Channels) -> Channels | None:
    """Where the result of a node with one operand has its channels; None if it mixes them."""
    rows, pooled = Channels(had.count, "rows"), replace(had, form="pooled")
    if node.op in HOMOGENEOUS or factor(node) is not None:
        return had
    if node.op == "Transpose":
        order = node.attrs.get("perm", [])
        return had if had.form == "tokens" and order and order[-1] == len(order) - 1 else None
    if node.op == "Mul":  # with a gate, which may have more pixels, or more channels than one
        return None if had.form == "pooled" or had.count == 1 else had
    if node.op == "Resize":
        scales = node.inputs[2] if len(node.inputs) == 3 else None
        apart = isinstance(scales, gs.Constant) and np.all(scales.values[:2] == 1.0)
        fills = node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
        fits = had.rank and apart and not fills and "axes" not in node.attrs
        return replace(had, form="image") if fits else None
    if not had.rank:
        return None
    if node.op == "Slice":
        axes = axes_of(node, 3)
        pixels = axes is not None and all(axis % had.rank >= 2 for axis in axes)
        return replace(had, form="image") if pixels else None
    if node.op in POOLS:
        return replace(had, form="image")
    if node.op == "GlobalAveragePool":
        return pooled
    if node.op in ("ReduceMean", "Squeeze"):
        over = {axis % had.rank for axis in axes_of(node) or ()}
        if over != set(range(2, had.rank)) or (node.op == "Squeeze" and had.form != "pooled"):
            return None
        return pooled if node.op == "ReduceMean" and node.attrs.get("keepdims", 1) else rows
    whole = rows if had.form == "pooled" else Channels(had.count, "flat")
    if node.op == "Flatten":
        return whole if node.attrs.get("axis", 1) == 1 else None
    if node.op == "Reshape" and isinstance(node.inputs[1], gs.Constant):
        shape = node.inputs[1].values.tolist()
        if had.form == "pooled" and len(shape) == 2 and shape[1] in (-1, had.count):
            return rows
        return whole if shape == [0, -1] and not node.attrs.get("allowzero", 0) else None
    return None


def padded(node: gs.Node, had: Channels) -> tuple[Channels, int] | None:
    """Where the result of a Pad has its channels, and at which of them the data begin.

    None if it mixes them, or puts anything but zeros beside them.
    """
    _, sizes, _, some = [*node.inputs, *[None] * 3][:4]
    axes = range(had.rank) if some is None or some.is_empty() else axes_of(node, 3)
    if not had.rank or axes is None or not isinstance(sizes, gs.Constant):
        return None
    ends = np.zeros((2, had.rank), int)
    ends[:, [axis % had.rank for axis in axes]] = sizes.values.reshape(2, -1)
    before, behind = (int(end) for end in ends[:, 1])
    fills = node.attrs.get("mode", "constant") == "constant"
    if min(before, behind) < 0 or not (pads_zeros(node) if fills else before == behind == 0):
        return None
    return Channels(before + had.count + behind, "image", had.rank), before
