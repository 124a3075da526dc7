"""Branches that are added: networks trained with them, and not folded before they were exported.

The algebra stands in numerics/branches.py.
"""

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.layers import Layer, layer_of
from onnxq.graph.model import Model
from onnxq.numerics import branches
from onnxq.numerics.unfold import Window
from onnxq.passes.fold_batchnorm import become_conv, unusable
from onnxq.pipeline import Outcome, Pass, Statistics
from onnxq.spec import Floats


class MergeBranches(Pass):
    """Compute convolutions of the same data whose results are added or subtracted as one.

    A BatchNormalization beside such a convolution is a branch, too. Two become one only where that
    takes no more products than both: a depthwise layer and a pointwise one do not.
    """

    name: ClassVar[str] = "merge-branches"
    exact: ClassVar[bool] = True

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        sums = [n for n in model.graph.nodes if n.op in ("Add", "Sub") and not n.domain]
        for norm in _branching(model, sums):
            name = norm.name
            become_conv(model, norm)
            outcome.edit(name, "became a 1x1 depthwise Conv")
        for node in sums:
            if node.name not in model.kept_float and (pair := _pair(model, node)) is not None:
                name = node.name
                outcome.edit(name, f"became part of {_merge(model, node, pair)}")
        return outcome


class _Pair(NamedTuple):
    """Two convolutions that a sum adds, the second perhaps after further sums.

    Attributes:
        layers: Both.
        signs: Their factors.
        between: Results from that of the second to that which the sum reads.
        whole: What is to compute both.
    """

    layers: tuple[Layer, Layer]
    signs: tuple[int, int]
    between: list[gs.Tensor]
    whole: Window

    @property
    def weight(self) -> Floats:
        """The sum of their weights, float64."""
        terms = []
        for layer, sign in zip(self.layers, self.signs, strict=True):
            assert layer.window is not None
            terms.append(sign * branches.placed(layer.weight, layer.window, self.whole))
        return np.add(*terms, dtype=np.float64)

    @property
    def bias(self) -> Floats:
        """The sum of their biases, float64."""
        terms = []
        for layer, sign in zip(self.layers, self.signs, strict=True):
            assert layer.bias_or_zeros is not None
            terms.append(sign * layer.bias_or_zeros)
        return np.add(*terms)


def _branching(model: Model, sums: list[gs.Node]) -> list[gs.Node]:
    """Norms that a sum reads and whose data a 2-D convolution reads, too."""
    found = []
    for tensor in (t for node in sums for t in node.inputs if t.inputs):
        norm = tensor.inputs[0]
        if norm.op != "BatchNormalization" or norm.name in model.kept_float or unusable(norm):
            continue
        beside = [_convolution(model, t) for n in norm.inputs[0].outputs for t in n.outputs]
        flat = any(it is not None and len(it.weight_tensor.shape) == 4 for it in beside)
        if flat and model.single_consumer(tensor) is not None:
            found.append(norm)
    return found


def _pair(model: Model, node: gs.Node) -> _Pair | None:
    """Two convolutions of the same data that a sum brings together, if one can compute both."""
    for side in (0, 1):
        guest = _convolution(model, node.inputs[side])
        if guest is None or model.single_consumer(node.inputs[side]) is None:
            continue
        signs = (1, 1) if node.op == "Add" else (-1, 1) if side else (1, -1)
        for host, sign, between in _terms(model, node.inputs[1 - side], 1, []):
            whole = _whole(guest, host)
            # What else the sums add up would have to change its sign.
            if whole is not None and (signs[1] > 0 or len(between) == 1):
                return _Pair((guest, host), (sign * signs[0], signs[1]), between, whole)
    return None


def _terms(
    model: Model, tensor: gs.Tensor, sign: int, between: list[gs.Tensor]
) -> Iterator[tuple[Layer, int, list[gs.Tensor]]]:
    """Convolutions among what a tensor is the sum of, each with its sign and the way from there."""
    if model.single_consumer(tensor) is None or not tensor.inputs:
        return
    node, between = tensor.inputs[0], [tensor, *between]
    if (layer := _convolution(model, tensor)) is not None:
        yield layer, sign, between
    elif node.op in ("Add", "Sub") and not node.domain and node.name not in model.kept_float:
        yield from _terms(model, node.inputs[0], sign, between)
        yield from _terms(model, node.inputs[1], -sign if node.op == "Sub" else sign, between)


def _convolution(model: Model, tensor: gs.Tensor) -> Layer | None:
    """The convolution, W x + b with constants, that makes a tensor."""
    layer = layer_of(tensor.inputs[0]) if tensor.inputs else None
    if layer is None or layer.op != "Conv" or layer.name in model.kept_float:
        return None
    return None if layer.bias_or_zeros is None or layer.obstacle else layer


def _whole(a: Layer, b: Layer) -> Window | None:
    """What computes both of two convolutions, if with no more products."""
    one, other = a.window, b.window
    if a.data is not b.data or a.c_out != b.c_out or one is None or other is None:
        return None
    whole = branches.union(one, other)
    if whole is None:
        return None
    apart = branches.products(one, a.c_in) + branches.products(other, b.c_in)
    return whole if branches.products(whole, a.c_in) <= apart else None


def _merge(model: Model, node: gs.Node, pair: _Pair) -> str:
    """Let the larger convolution compute both, and take away the sum; the name of that one."""
    gone, kept = sorted(pair.layers, key=lambda layer: layer.weight.size)
    weight, bias = pair.weight, pair.bias
    kept.set_weight(model, weight)
    if kept.bias_tensor is not None or gone.bias_tensor is not None:
        kept.set_bias(model, bias)
    kept.node.attrs.pop("auto_pad", None)
    kept.node.attrs |= {
        "kernel_shape": [*pair.whole.kernel],
        "pads": [*pair.whole.pads],
        "dilations": [*pair.whole.dilations],
        "group": pair.whole.groups,
    }
    gone.node.inputs.clear()
    gone.node.outputs.clear()
    kept.node.outputs = [pair.between[0]]
    result, rest = node.outputs[0], pair.between[-1]
    node.inputs.clear()
    node.outputs.clear()
    rest.inputs[0].outputs[0] = result
    for tensor in pair.between[:-1]:  # it has other values now, and so another name
        tensor.name = model.fresh(f"{tensor.name}_merged")
    return kept.name
