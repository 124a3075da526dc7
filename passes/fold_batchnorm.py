"""Batch normalization of a trained network is an affine map per channel; its neighbour absorbs it.

The algebra stands in numerics/fold.py.
"""

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.layers import Layer, layer_of, pads
from onnxq.model import Model
from onnxq.numerics import fold
from onnxq.pipeline import Outcome, Pass, Statistics
from onnxq.spec import Floats


class FoldBatchnorm(Pass):
    """Fold BatchNormalization into the layer before it, or where exact into the one after it.

    1. After Conv, ConvTranspose or Gemm: always exact, if nothing else reads the layer.
    2. Before Gemm, before a Conv without padding, and before any convolution if the offset is
       zero: a padded border would otherwise see zero where the normalization would put its offset.
    3. Whatever remains on a (n, c, h, w) tensor becomes a 1x1 depthwise Conv, which has an integer
       kernel where BatchNormalization has none.

    What its statistics tell of the tensors that stay is written down in the model's moments: on
    the training data it read the mean and variance it holds, and returned the mean beta and the
    standard deviation |gamma| sqrt(var / (var + epsilon)).
    """

    name: ClassVar[str] = "fold-batchnorm"
    exact: ClassVar[bool] = True
    # No later pass sees to what no layer absorbs.
    last: ClassVar[bool] = True

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        ranks: dict[str, int] | None = None
        for norm in [n for n in model.graph.nodes if n.op == "BatchNormalization"]:
            if (why := model.kept_float.get(norm.name) or _unusable(norm)) is not None:
                if self.last:
                    outcome.skip(norm.name, why)
                continue
            gamma, beta, mean, var = (t.values for t in norm.inputs[1:5])
            eps = norm.attrs.get("epsilon", 1e-5)
            a, d = fold.affine_of_batchnorm(gamma, beta, mean, var, eps)
            spread = np.sqrt(np.maximum(var.astype(np.float64), 0.0))
            model.moments[norm.inputs[0].name] = mean.astype(np.float64), spread
            model.moments[norm.outputs[0].name] = beta.astype(np.float64), np.abs(a) * spread
            if (layer := _layer_before(model, norm)) is not None:
                _fold_after(model, norm, layer, a, d)
                outcome.edit(norm.name, f"folded into {layer.name}")
            elif (layer := _layer_after(model, norm, d)) is not None:
                _fold_before(model, norm, layer, a, d)
                outcome.edit(norm.name, f"folded into {layer.name}")
            elif self.last:
                ranks = model.ranks() if ranks is None else ranks
                if ranks.get(norm.outputs[0].name) == 4:
                    _become_conv(model, norm, a, d)
                    outcome.edit(norm.name, "became a 1x1 depthwise Conv")
                else:
                    outcome.skip(norm.name, "no layer beside it can absorb it exactly")
        return outcome


def _unusable(norm: gs.Node) -> str | None:
    """Why a BatchNormalization cannot be read as an affine map, if so."""
    if norm.attrs.get("training_mode", 0) or any(t.outputs for t in norm.outputs[1:]):
        return "it is in training mode"
    if not all(isinstance(t, gs.Constant) and t.dtype == np.float32 for t in norm.inputs[1:5]):
        return "its statistics are not float32 constants"
    return None


def _foldable(layer: Layer) -> bool:
    """Whether a layer is W x + b and nothing else, with a place for b."""
    factors = {layer.node.attrs.get("alpha", 1.0), layer.node.attrs.get("beta", 1.0)}
    plain = layer.op != "MatMul" and layer.weight_index == 1 and factors == {1.0}
    return plain and layer.bias_or_zeros is not None


def _layer_before(model: Model, norm: gs.Node) -> Layer | None:
    producer = norm.inputs[0].inputs[0] if norm.inputs[0].inputs else None
    layer = layer_of(producer) if producer is not None else None
    if layer is None or not _foldable(layer):
        return None
    return layer if model.single_consumer(layer.output) is norm else None


def _layer_after(model: Model, norm: gs.Node, d: Floats) -> Layer | None:
    reader = model.single_consumer(norm.outputs[0])
    layer = layer_of(reader) if reader is not None else None
    if layer is None or not _foldable(layer) or layer.data is not norm.outputs[0]:
        return None
    if layer.op == "Gemm":
        return None if layer.node.attrs.get("transA", 0) else layer
    exact = not d.any() or (layer.op == "Conv" and not pads(layer.node))
    return layer if exact else None


def _fold_after(model: Model, norm: gs.Node, layer: Layer, a: Floats, d: Floats) -> None:
    bias = layer.bias_or_zeros
    assert bias is not None
    w, b = fold.fold_after(layer.weight, bias, a, d, layer.per_output(a))
    result = norm.outputs[0]
    norm.inputs.clear()
    norm.outputs.clear()
    layer.node.outputs[0] = result
    layer.set_weight(model, w)
    layer.set_bias(model, b)


def _fold_before(model: Model, norm: gs.Node, layer: Layer, a: Floats, d: Floats) -> None:
    bias = layer.bias_or_zeros
    assert bias is not None
    if layer.op == "ConvTranspose":
        w, b = fold.scale_inputs(layer.weight, a, layer.in_axis), bias
    else:
        canonical = np.moveaxis(layer.weight, layer.out_axis, 0)
        w, b = fold.fold_before(canonical, bias, a, d, layer.groups)
        w = np.moveaxis(w, 0, layer.out_axis)
    layer.set_weight(model, w)
    layer.set_bias(model, b)
    layer.node.inputs[0] = norm.inputs[0]


def _become_conv(model: Model, norm: gs.Node, a: Floats, d: Floats) -> None:
    source, result = norm.inputs[0], norm.outputs[0]
    name = norm.name
    norm.inputs.clear()
    norm.outputs.clear()
    weight = model.constant(f"{name}_weight", a.astype(np.float32).reshape(-1, 1, 1, 1))
    bias = model.constant(f"{name}_bias", d.astype(np.float32))
    model.add("Conv", [source, weight, bias], result, name=f"{name}_conv", group=len(a))
