"""An affine map per channel, as a trained batch normalization is: its neighbour absorbs it.

The algebra stands in numerics/fold.py.
"""

from collections.abc import Callable
from functools import cache
from typing import ClassVar, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.layers import ARITHMETIC, Layer, layer_of, pads
from onnxq.graph.model import Model
from onnxq.numerics import fold
from onnxq.pipeline import Outcome, Pass, Statistics
from onnxq.spec import Array, Floats


class FoldBatchnorm(Pass):
    """Fold BatchNormalization into the layer before it, or where exact into the one after it.

    1. After a layer, or a Transpose of its result: always exact, if nothing else reads the layer.
    2. Before Gemm, before a Conv without padding, and before any convolution if the offset is
       zero: a padded border would otherwise see zero where the normalization would put its offset.
    3. Whatever remains on a (n, c, h, w) tensor becomes a 1x1 depthwise Conv, which has an integer
       kernel where BatchNormalization has none, and takes what is behind it.

    So are folded Add, Sub, Mul and Div: many exporters write biases and normalizations so, and each
    would round once more. Into the layer after them only those with a number, and no offset of an
    input of the model: its grid would have to cover what they are there to take away.

    What the statistics of a norm tell of the tensors that stay is written down in the model's
    moments: on the training data it read the mean and variance it holds, and returned the mean beta
    and the standard deviation |gamma| sqrt(var / (var + epsilon)).
    """

    name: ClassVar[str] = "fold-batchnorm"
    exact: ClassVar[bool] = True
    # No later pass sees to what no layer absorbs.
    last: ClassVar[bool] = True

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        # What overflows is not folded.
        with np.errstate(over="ignore", invalid="ignore"):
            return self._fold(model)

    def _fold(self, model: Model) -> Outcome:
        outcome = Outcome()
        left: list[gs.Node] = []
        ranks = cache(model.ranks)
        for node in model.graph.nodes:
            if node.op == "BatchNormalization":
                if (why := model.kept_float.get(node.name) or unusable(node)) is not None:
                    if self.last:
                        outcome.skip(node.name, why)
                    continue
                _remember(model, node)
            elif node.op not in ARITHMETIC or node.domain or node.name in model.kept_float:
                continue
            if not _absorbed(model, node, ranks, outcome):
                left.append(node)
        for node in reversed(left):
            layer = _layer_after(model, node)
            if layer is not None and _fold_before(model, node, layer):
                outcome.edit(node.name, f"folded into {layer.name}")
            elif node.op == "BatchNormalization" and self.last:
                if ranks().get(node.outputs[0].name) == 4:
                    become_conv(model, node)
                    outcome.edit(node.name, "became a 1x1 depthwise Conv")
                else:
                    outcome.skip(node.name, "no layer beside it can absorb it exactly")
        if self.last:
            for node in left:  # what is behind a norm that is a layer now
                if node.op in ARITHMETIC and node.outputs:
                    _absorbed(model, node, ranks, outcome)
        return outcome


def unusable(norm: gs.Node) -> str | None:
    """Why a BatchNormalization cannot be read as an affine map, if so."""
    if norm.attrs.get("training_mode", 0) or any(t.outputs for t in norm.outputs[1:]):
        return "it is in training mode"
    if not all(isinstance(t, gs.Constant) and t.dtype == np.float32 for t in norm.inputs[1:5]):
        return "its statistics are not float32 constants"
    return None


def _of_norm(norm: gs.Node) -> tuple[Floats, Floats]:
    gamma, beta, mean, var = (t.values for t in norm.inputs[1:5])
    return fold.affine_of_batchnorm(gamma, beta, mean, var, norm.attrs.get("epsilon", 1e-5))


def _remember(model: Model, norm: gs.Node) -> None:
    """Write down what a norm knows of what it reads and returns."""
    _, beta, mean, var = (t.values.astype(np.float64) for t in norm.inputs[1:5])
    spread = np.sqrt(np.maximum(var, 0.0))
    model.moments[norm.inputs[0].name] = mean, spread
    model.moments[norm.outputs[0].name] = beta, np.abs(_of_norm(norm)[0]) * spread


def _affine(node: gs.Node, channels: int, rank: int, axis: int = 1) -> tuple[Floats, Floats] | None:
    """Factor and offset, float64 (channels,), of a node on a tensor of so many axes.

    None if it is no such map of the channels, which lie along ``axis``.
    """
    if node.op == "BatchNormalization":
        return _of_norm(node) if axis == 1 else None
    constants = [t for t in node.inputs if isinstance(t, gs.Constant)]
    if len(constants) != 1 or constants[0].dtype != np.float32:
        return None
    c = _by_channel(constants[0].values, channels, rank, axis)
    first = constants[0] is node.inputs[0]
    if c is None or (node.op == "Div" and (first or not c.all())):
        return None
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op in ("Mul", "Div"):
        return (c if node.op == "Mul" else 1.0 / c), zero
    if node.op == "Sub":
        return (-one, c) if first else (one, -c)
    return one, c


def _by_channel(values: Array, channels: int, rank: int, axis: int) -> Floats | None:
    """A number, or one for each channel along ``axis``, as float64 (channels,); None if more."""
    if values.ndim > rank:
        return None
    shape = (1,) * (rank - values.ndim) + values.shape
    if shape[axis] not in (1, channels) or values.size != shape[axis]:
        return None
    return np.broadcast_to(values.reshape(-1).astype(np.float64), channels)


def _rank(layer: Layer) -> int:
    """Number of axes of what a Conv, ConvTranspose or Gemm reads and returns."""
    return len(layer.weight_tensor.shape)


def _foldable(layer: Layer) -> bool:
    """Whether a layer is W x + b and nothing else."""
    factors = {layer.node.attrs.get("alpha", 1.0), layer.node.attrs.get("beta", 1.0)}
    plain = layer.obstacle is None and factors == {1.0}
    return plain and layer.bias_or_zeros is not None


def _data(node: gs.Node) -> gs.Tensor:
    """What a node maps: of two operands the one that is not constant."""
    second = node.op in ARITHMETIC and isinstance(node.inputs[0], gs.Constant)
    return node.inputs[int(second)]


class _Source(NamedTuple):
    """Where a node's data come from, if from a layer that nothing else reads.

    Attributes:
        layer: The layer.
        last: The node that returns them: what ends the layer, or a Transpose of its result.
        rank: How many axes they have at least.
        axis: Where the layer's channels lie.
    """

    layer: Layer
    last: gs.Node
    rank: int
    axis: int


def _source(model: Model, node: gs.Node, ranks: Callable[[], dict[str, int]]) -> _Source | None:
    last = _only_producer(model, _data(node))
    if last is None:
        return None
    order = last.attrs.get("perm") if last.op == "Transpose" else None
    end = last if order is None else _only_producer(model, last.inputs[0])
    layer = None if end is None else _ended(end)
    if layer is None or not _foldable(layer):
        return None
    rank, axis = _rank(layer), 1
    if layer.op == "MatMul":
        rank = ranks().get(_data(node).name, 1) if order is None else len(order)
        axis = rank - 1
    return _Source(layer, last, rank, axis if order is None else order.index(axis))


def _absorbed(
    model: Model, node: gs.Node, ranks: Callable[[], dict[str, int]], outcome: Outcome
) -> bool:
    """Whether the layer before a node could take it, and so did."""
    source = _source(model, node, ranks)
    if source is None or not _fold_after(model, node, source):
        return False
    outcome.edit(node.name, f"folded into {source.layer.name}")
    return True


def _only_producer(model: Model, data: gs.Tensor) -> gs.Node | None:
    """The node that makes what only one node reads."""
    alone = data.inputs and model.single_consumer(data) is not None
    return data.inputs[0] if alone else None


def _ended(node: gs.Node) -> Layer | None:
    """The layer whose bias a node adds, or that it is."""
    for end in (node, *(t.inputs[0] for t in node.inputs if node.op == "Add" and t.inputs)):
        layer = layer_of(end)
        if layer is not None and layer.end is node:
            return layer
    return None


def _layer_after(model: Model, node: gs.Node) -> Layer | None:
    reader = model.single_consumer(node.outputs[0])
    layer = layer_of(reader) if reader is not None else None
    if layer is None or layer.op == "MatMul" or not _foldable(layer):
        return None
    turned = layer.node.attrs.get("transA", 0)
    return None if turned or layer.data is not node.outputs[0] else layer


def _fold_after(model: Model, node: gs.Node, source: _Source) -> bool:
    """Fold a node into the layer before it, if it is an affine map of channels."""
    layer = source.layer
    found = _affine(node, layer.c_out, source.rank, source.axis)
    bias = layer.bias_or_zeros
    if found is None or bias is None:
        return False
    a, d = found
    w, b = fold.fold_after(layer.weight, bias, a, d, layer.per_output(a))
    if not (np.isfinite(w).all() and np.isfinite(b).all()):
        return False
    result, known = node.outputs[0], model.moments.get(layer.output.name)
    if result.name not in model.moments and known is not None and source.axis == 1:
        model.moments[result.name] = a * known[0] + d, np.abs(a) * known[1]
    # First, while an Add that reads the result is not yet taken for the layer's bias.
    layer.set_weight(model, w)
    if layer.bias_tensor is not None or b.any():
        layer.set_bias(model, b)
    end = layer.end
    node.inputs.clear()
    node.outputs.clear()
    (source.last if source.last.op == "Transpose" else end).outputs[0] = result
    for tensor in {t.name: t for maker in (layer.node, end) for t in maker.outputs}.values():
        if tensor is not result:  # it has other values now, and so another name
            tensor.name = model.fresh(f"{tensor.name}_folded")
    return True


def _fold_before(model: Model, node: gs.Node, layer: Layer) -> bool:
    """Fold a node into the layer after it, if that is exact and does no harm to grids."""
    found, bias = _affine(node, layer.c_in, _rank(layer)), layer.bias_or_zeros
    if found is None or bias is None:
        return False
    (a, d), data = found, _data(node)
    if node.op in ARITHMETIC:
        # With axes it may give the data some, or more channels.
        number = node.inputs[int(data is node.inputs[0])]
        if number.shape or (d.any() and not data.inputs):
            return False
    if d.any() and layer.op != "Gemm" and (layer.op != "Conv" or pads(layer.node)):
        return False
    if layer.op == "ConvTranspose":
        w, b = fold.scale_inputs(layer.weight, a, layer.in_axis), bias
    else:
        canonical = np.moveaxis(layer.weight, layer.out_axis, 0)
        w, b = fold.fold_before(canonical, bias, a, d, layer.groups)
        w = np.moveaxis(w, 0, layer.out_axis)
    if not (np.isfinite(w).all() and np.isfinite(b).all()):
        return False
    layer.set_weight(model, w)
    layer.set_bias(model, b)
    layer.node.inputs[0] = data
    node.inputs.clear()
    node.outputs.clear()
    return True


def become_conv(model: Model, norm: gs.Node) -> None:
    """Replace a BatchNormalization of a (n, c, h, w) tensor by a 1x1 depthwise Conv."""
    a, d = _of_norm(norm)
    source, result = norm.inputs[0], norm.outputs[0]
    name = norm.name
    norm.inputs.clear()
    norm.outputs.clear()
    weight = model.constant(f"{name}_weight", a.astype(np.float32).reshape(-1, 1, 1, 1))
    bias = model.constant(f"{name}_bias", d.astype(np.float32))
    model.add("Conv", [source, weight, bias], result, name=f"{name}_conv", group=len(a))
