"""An affine map per channel, as a trained batch normalization is: its neighbour absorbs it.

The algebra stands in numerics/fold.py.
"""

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.layers import ARITHMETIC, Layer, layer_of, pads
from onnxq.model import Model
from onnxq.numerics import fold
from onnxq.pipeline import Outcome, Pass, Statistics
from onnxq.spec import Array, Floats


class FoldBatchnorm(Pass):
    """Fold BatchNormalization into the layer before it, or where exact into the one after it.

    1. After Conv, ConvTranspose or Gemm: always exact, if nothing else reads the layer.
    2. Before Gemm, before a Conv without padding, and before any convolution if the offset is
       zero: a padded border would otherwise see zero where the normalization would put its offset.
    3. Whatever remains on a (n, c, h, w) tensor becomes a 1x1 depthwise Conv, which has an integer
       kernel where BatchNormalization has none.

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
        for node in model.graph.nodes:
            if node.op == "BatchNormalization":
                if (why := model.kept_float.get(node.name) or _unusable(node)) is not None:
                    if self.last:
                        outcome.skip(node.name, why)
                    continue
                _remember(model, node)
            elif node.op not in ARITHMETIC or node.domain or node.name in model.kept_float:
                continue
            layer = _layer_before(model, node)
            if layer is not None and _fold_after(model, node, layer):
                outcome.edit(node.name, f"folded into {layer.name}")
            else:
                left.append(node)
        ranks: dict[str, int] | None = None
        for node in reversed(left):
            layer = _layer_after(model, node)
            if layer is not None and _fold_before(model, node, layer):
                outcome.edit(node.name, f"folded into {layer.name}")
            elif node.op == "BatchNormalization" and self.last:
                ranks = model.ranks() if ranks is None else ranks
                if ranks.get(node.outputs[0].name) == 4:
                    _become_conv(model, node)
                    outcome.edit(node.name, "became a 1x1 depthwise Conv")
                else:
                    outcome.skip(node.name, "no layer beside it can absorb it exactly")
        return outcome


def _unusable(norm: gs.Node) -> str | None:
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


def _affine(node: gs.Node, channels: int, rank: int) -> tuple[Floats, Floats] | None:
    """Factor and offset, float64 (channels,), of a node on a tensor; None if it is no such map."""
    if node.op == "BatchNormalization":
        return _of_norm(node)
    constants = [t for t in node.inputs if isinstance(t, gs.Constant)]
    if len(constants) != 1 or constants[0].dtype != np.float32:
        return None
    c = _by_channel(constants[0].values, channels, rank)
    first = constants[0] is node.inputs[0]
    if c is None or (node.op == "Div" and (first or not c.all())):
        return None
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op in ("Mul", "Div"):
        return (c if node.op == "Mul" else 1.0 / c), zero
    if node.op == "Sub":
        return (-one, c) if first else (one, -c)
    return one, c


def _by_channel(values: Array, channels: int, rank: int) -> Floats | None:
    """A number, or one for each channel along axis 1, as float64 (channels,); None if more."""
    if values.ndim > rank:
        return None
    shape = (1,) * (rank - values.ndim) + values.shape
    if shape[1] not in (1, channels) or values.size != shape[1]:
        return None
    return np.broadcast_to(values.reshape(-1).astype(np.float64), channels)


def _rank(layer: Layer) -> int:
    """Number of axes of what a Conv, ConvTranspose or Gemm reads and returns."""
    return len(layer.weight_tensor.shape)


def _foldable(layer: Layer) -> bool:
    """Whether a layer is W x + b and nothing else, with a place for b."""
    factors = {layer.node.attrs.get("alpha", 1.0), layer.node.attrs.get("beta", 1.0)}
    plain = layer.op != "MatMul" and layer.weight_index == 1 and factors == {1.0}
    return plain and layer.bias_or_zeros is not None


def _data(node: gs.Node) -> gs.Tensor:
    """What a node maps: of two operands the one that is not constant."""
    second = node.op in ARITHMETIC and isinstance(node.inputs[0], gs.Constant)
    return node.inputs[int(second)]


def _layer_before(model: Model, node: gs.Node) -> Layer | None:
    producer = _data(node).inputs[0] if _data(node).inputs else None
    layer = layer_of(producer) if producer is not None else None
    if layer is None or not _foldable(layer):
        return None
    return layer if model.single_consumer(layer.output) is node else None


def _layer_after(model: Model, node: gs.Node) -> Layer | None:
    reader = model.single_consumer(node.outputs[0])
    layer = layer_of(reader) if reader is not None else None
    if layer is None or not _foldable(layer) or layer.data is not node.outputs[0]:
        return None
    return None if layer.node.attrs.get("transA", 0) else layer


def _fold_after(model: Model, node: gs.Node, layer: Layer) -> bool:
    """Fold a node into the layer before it, if it is an affine map of channels."""
    found, bias = _affine(node, layer.c_out, _rank(layer)), layer.bias_or_zeros
    if found is None or bias is None:
        return False
    a, d = found
    w, b = fold.fold_after(layer.weight, bias, a, d, layer.per_output(a))
    if not (np.isfinite(w).all() and np.isfinite(b).all()):
        return False
    result = node.outputs[0]
    if result.name not in model.moments and (known := model.moments.get(layer.output.name)):
        model.moments[result.name] = a * known[0] + d, np.abs(a) * known[1]
    node.inputs.clear()
    node.outputs.clear()
    layer.node.outputs[0] = result
    layer.set_weight(model, w)
    layer.set_bias(model, b)
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


def _become_conv(model: Model, norm: gs.Node) -> None:
    a, d = _of_norm(norm)
    source, result = norm.inputs[0], norm.outputs[0]
    name = norm.name
    norm.inputs.clear()
    norm.outputs.clear()
    weight = model.constant(f"{name}_weight", a.astype(np.float32).reshape(-1, 1, 1, 1))
    bias = model.constant(f"{name}_bias", d.astype(np.float32))
    model.add("Conv", [source, weight, bias], result, name=f"{name}_conv", group=len(a))
