"""Moments of tensors without data: from where batch normalizations told them, through the graph.

Channels are taken for normal and independent variables, as DFQ does (Nagel et al. 2019):

| operator                                    | mean                      | standard deviation     |
|---------------------------------------------|---------------------------|------------------------|
| Relu, Clip, Min                             | of a clipped normal       | likewise               |
| Conv, Gemm, MatMul                          | W E[x] + b                | sqrt(W^2 Var[x])       |
| ConvTranspose                               | W E[x] / strides + b      | not known              |
| Add                                         | sum                       | root of sum of squares |
| Concat, Gather of channels                  | those of the operands     | likewise               |
| Flatten, Reshape to rows, Squeeze           | kept                      | kept                   |
| AveragePool, GlobalAveragePool, ReduceMean, | kept                      | not known: it depends  |
| Resize                                      |                           | on what pixels share   |

Zeros beyond a border are taken for more of the same. Nothing is known behind other operators.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.channels import Channels, joined, made, passed, unreadable
from onnxq.graph.layers import Layer, layers
from onnxq.graph.model import Model
from onnxq.graph.moves import bounds, moved
from onnxq.numerics import gaussian
from onnxq.spec import Floats

CUTS = {"Clip", "Min", "Relu"}
AVERAGES = {"AveragePool", "GlobalAveragePool", "ReduceMean", "Resize"}
RESHAPES = {"Flatten", "Reshape", "Squeeze"}


@dataclass(frozen=True, eq=False)
class Moments:
    """What is known of a tensor.

    Attributes:
        channels: Where it has its channels.
        mean: Float64 (channels,), finite.
        std: Same shape; NaN where it is not known.
    """

    channels: Channels
    mean: Floats
    std: Floats


Known = Mapping[str, Moments]


def propagate(model: Model) -> dict[str, Moments]:
    """The moments of every tensor of the float model that they can be told of, by its name.

    Args:
        model: Its nodes are sorted, its biases those of the float model.
    """
    ranks = model.ranks() if model.moments else {}
    known: dict[str, Moments] = {}
    for name, (mean, std) in model.moments.items():
        if ranks.get(name, 0) >= 2 and np.isfinite(mean).all():
            image = Channels(mean.size, "image", ranks[name])
            channels = image if image.rank > 2 else Channels(mean.size, "rows")
            known[name] = Moments(channels, mean, std)
    ends = {layer.end.name: layer for layer in layers(model)}
    for node in model.graph.nodes:
        if len(node.outputs) != 1 or node.outputs[0].name in known or node.domain:
            continue
        layer = ends.get(node.name)
        found = _handed(node, known) if layer is None else _returned(layer, known)
        if found is not None and np.isfinite(found.mean).all():
            known[node.outputs[0].name] = found
    return known


def unknown(layer: Layer, known: Known) -> str | None:
    """Why the means of a layer's input channels are not known, a clause; None if they are."""
    if layer.obstacle is not None:
        return layer.obstacle
    if (x := known.get(layer.data.name)) is not None:
        return unreadable(layer, x.channels)
    told = [f"{node.op} {node.name} returns" for node in layer.data.inputs]
    return f"no batch normalization tells the means of what {(told or ['the model is fed'])[0]}"


def read(layer: Layer, known: Known) -> tuple[Floats, Floats]:
    """Mean and standard deviation of a layer's input channels, each (c_in,), if not ``unknown``."""
    x = known[layer.data.name]
    block = layer.c_in // x.channels.count
    return np.repeat(x.mean, block), np.repeat(x.std, block)


def response(layer: Layer, w: Floats, x: Floats) -> Floats:
    """What weights make of inputs that are the same everywhere, on average, (c_out,).

    Args:
        layer: The layer.
        w: Of the shape of its weight.
        x: (c_in,).
    """
    strides = layer.node.attrs.get("strides", [1]) if layer.op == "ConvTranspose" else [1]
    # An input of a ConvTranspose meets every tap once, and there are more outputs than inputs.
    return np.asarray(gaussian.weighted(layer.grouped(w), x) / np.prod(strides))


def _returned(layer: Layer, known: Known) -> Moments | None:
    """Moments of what a layer returns."""
    bias = layer.bias_or_zeros
    if bias is None or unknown(layer, known) is not None:
        return None
    mean, std = read(layer, known)
    w = layer.weight.astype(np.float64)
    spread = np.sqrt(response(layer, w**2, std**2))
    if layer.op == "ConvTranspose":  # pixels differ by which taps they meet
        spread = np.full_like(spread, np.nan)
    return Moments(made(layer), response(layer, w, mean) + bias, spread)


def _handed(node: gs.Node, known: Known) -> Moments | None:
    """Moments of what any other node returns."""
    if node.op in ("Add", "Concat"):
        return _joined(node, [known.get(t.name) for t in node.inputs])
    x = known.get(moved(node).name) if node.inputs else None
    if x is None:
        return None
    if node.op in CUTS:
        return _cut(node, known)
    if node.op == "Gather":
        return _gathered(node, x)
    if node.op not in AVERAGES | RESHAPES or (channels := passed(node, x.channels)) is None:
        return None
    return Moments(channels, x.mean, x.std if node.op in RESHAPES else np.full_like(x.std, np.nan))


def _joined(node: gs.Node, found: Sequence[Moments | None]) -> Moments | None:
    operands = [x for x in found if x is not None]
    channels = joined(node, [x.channels for x in operands])
    if len(operands) < len(found) or channels is None:
        return None
    means, stds = [x.mean for x in operands], [x.std for x in operands]
    if node.op == "Concat":
        return Moments(channels, np.concatenate(means), np.concatenate(stds))
    return Moments(channels, np.sum(means, axis=0), np.sqrt(np.sum(np.square(stds), axis=0)))


def _cut(node: gs.Node, known: Known) -> Moments | None:
    """Moments behind a Relu, Clip or Min; several in a row cut off what the first one read."""
    cuts = [node]
    while (maker := moved(cuts[-1]).inputs) and maker[0].op in CUTS:
        if moved(maker[0]).name not in known:
            break
        cuts.append(maker[0])
    x = known[moved(cuts[-1]).name]
    reach = np.array([[-np.inf], [np.inf]])
    for cut in reversed(cuts):
        ends = bounds(cut)
        if ends is None or np.shape(ends[1]) not in ((), x.channels.shaped(x.mean).shape):
            return None
        lo, hi = (end.astype(np.float64).reshape(-1) for end in ends)
        reach = np.clip(reach, lo, hi)
    return Moments(x.channels, *gaussian.clip(x.mean, x.std, *reach))


def _gathered(node: gs.Node, x: Moments) -> Moments | None:
    chosen, axis = node.inputs[1], node.attrs.get("axis", 0)
    constant = isinstance(chosen, gs.Constant) and chosen.values.ndim == 1
    if not constant or axis not in x.channels.axes:
        return None
    channels = replace(x.channels, count=chosen.values.size)
    return Moments(channels, x.mean[chosen.values], x.std[chosen.values])
