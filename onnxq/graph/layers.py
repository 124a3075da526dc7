"""Weighted layers: which axis of a weight is which, for every operator that has one.

This file alone knows it. A layer is a view of a node; it holds no state of its own.

| op            | weight                       | out axis | in axis |
|---------------|------------------------------|----------|---------|
| Conv          | (c_out, c_in / groups, *k)   | 0        | 1       |
| ConvTranspose | (c_in, c_out / groups, *k)   | 1        | 0       |
| Gemm, B       | (k, n), or (n, k) if transB  | 1, or 0  | 0, or 1 |
| Gemm, A       | (m, k), or (k, m) if transA  | 0, or 1  | 1, or 0 |
| MatMul, B     | (..., k, n)                  | -1       | -2      |
| MatMul, A     | (..., m, k)                  | -2       | -1      |
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.model import Model
from onnxq.numerics import pairs
from onnxq.numerics.unfold import Window
from onnxq.spec import Array, Floats, QTensor

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# What else multiplies by weights or looks them up; and how many are worth a word.
HOLDERS = {"DeformConv", "Einsum", "GRU", "Gather", "LSTM", "RNN"}
MANY = 1024
ARITHMETIC = ("Add", "Div", "Mul", "Sub")
# What is something else at every run.
RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
          "RandomUniformLike"}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Layer:
    """A node with a constant weight.

    Attributes:
        node: The node.
        weight_index: Input that holds the weight: 1, or 0 where the constant is on the left.
        out_axis: Output channel axis of the weight, non-negative.
        in_axis: Input channel axis of the weight, non-negative.
        groups: Channel groups of a convolution, else 1.
    """

    node: gs.Node
    weight_index: int
    out_axis: int
    in_axis: int
    groups: int = 1

    @property
    def name(self) -> str:
        """The node's name."""
        return str(self.node.name)

    @property
    def op(self) -> str:
        """The operator."""
        return str(self.node.op)

    @property
    def weight_tensor(self) -> gs.Constant:
        """The weight's constant."""
        return self.node.inputs[self.weight_index]

    @property
    def weight(self) -> Floats:
        """The weight's values."""
        values: Floats = self.weight_tensor.values
        return values

    @property
    def data(self) -> gs.Tensor:
        """The activation that the weight meets."""
        return self.node.inputs[1 - self.weight_index]

    @property
    def end(self) -> gs.Node:
        """The node that adds the bias."""
        return self.node if self.bias_slot is None else self.bias_slot[0]

    @property
    def output(self) -> gs.Tensor:
        """The layer's result, bias included, before any activation function."""
        return self.end.outputs[0]

    @property
    def bias_slot(self) -> tuple[gs.Node, int] | None:
        """Node and input index that hold the bias; None if there is none.

        The third input of the node; for a MatMul, the constant (c_out,) or (1, c_out) of the Add
        that follows.
        """
        if self.op != "MatMul":
            inputs = self.node.inputs
            return (self.node, 2) if len(inputs) > 2 and not inputs[2].is_empty() else None
        readers = self.node.outputs[0].outputs
        if len(readers) != 1 or readers[0].op != "Add" or self.weight_index != 1:
            return None
        for index, tensor in enumerate(readers[0].inputs):
            if _is_weight(tensor) and tuple(tensor.shape) in ((self.c_out,), (1, self.c_out)):
                return readers[0], index
        return None

    @property
    def bias_tensor(self) -> gs.Tensor | None:
        """The tensor in ``bias_slot``, or None."""
        slot = self.bias_slot
        return None if slot is None else slot[0].inputs[slot[1]]

    @property
    def bias(self) -> Floats | None:
        """Bias as float32 (c_out,) or (1,); None if it is no constant or not per output channel."""
        tensor = self.bias_tensor
        if not isinstance(tensor, gs.Constant):
            return None
        values: Floats = tensor.values
        across = (1, 1, *values.shape)[-2:][1 - self.weight_index]
        return values.reshape(-1) if across == 1 else None

    @property
    def c_out(self) -> int:
        """Number of output channels."""
        size = int(self.weight_tensor.shape[self.out_axis])
        return size * self.groups if self.op == "ConvTranspose" else size

    @property
    def c_in(self) -> int:
        """Number of input channels."""
        size = int(self.weight_tensor.shape[self.in_axis])
        return size * self.groups if self.op == "Conv" else size

    @property
    def obstacle(self) -> str | None:
        """Why its weight is not one array that meets its data from the right; None if it is."""
        if self.weight_index == 0:
            return "its weight is the left operand"
        if self.op == "MatMul" and len(self.weight_tensor.shape) != 2:
            return "its weight is a batch of matrices"
        return None if math.prod(self.weight_tensor.shape) else "its weight is empty"

    @property
    def data_axis(self) -> int:
        """Channel axis of its data; -1 where their rank is open."""
        if self.op == "Gemm":
            return 1 - int(self.node.attrs.get("transA", 0))
        return -1 if self.op == "MatMul" else 1

    @property
    def result_axis(self) -> int:
        """Channel axis of its result, counted from the end where the rank is open."""
        return 1 if self.op in ("Conv", "ConvTranspose") else self.weight_index - 2

    def per_output(self, values: Floats) -> Floats:
        """Shape one value per output channel (c_out,) to broadcast over the weight."""
        w = self.weight_tensor
        if self.op == "ConvTranspose":
            blocks = np.repeat(values.reshape(self.groups, -1), w.shape[0] // self.groups, axis=0)
            return blocks.reshape(w.shape[0], -1, *(1,) * (len(w.shape) - 2))
        shape = [1] * len(w.shape)
        shape[self.out_axis] = -1
        return values.reshape(shape)

    def rows(self, values: Array) -> Array:
        """A weight as (groups, c_out / groups, inputs): a row for each output channel.

        Not for a ConvTranspose, nor for a batch of matrices.
        """
        first = np.moveaxis(values.reshape(self.weight_tensor.shape), self.out_axis, 0)
        return first.reshape(self.groups, first.shape[0] // self.groups, -1)

    def from_rows(self, rows: Array) -> Array:
        """The inverse of ``rows``."""
        out, *rest = np.moveaxis(self.weight, self.out_axis, 0).shape
        return np.moveaxis(rows.reshape(out, *rest), 0, self.out_axis)

    @property
    def adds_pairs(self) -> bool:
        """Whether it has an integer kernel that adds two products in 16 bits on some processors.

        That of depthwise layers adds in 32 bits everywhere.
        """
        missing = self.op == "ConvTranspose" or self.obstacle is not None or self.data_axis == 0
        return not missing and not self.depthwise

    def in_order(self, values: Array) -> Array:
        """A weight as (c_out, inputs), the inputs in the order in which kernels add in pairs.

        Those of onnxruntime see images with channels last.
        """
        last = np.moveaxis(values, self.in_axis, -1)
        return last.reshape(len(last), -1)

    def from_order(self, ordered: Array) -> Array:
        """The inverse of ``in_order``."""
        shape = np.moveaxis(self.weight, self.in_axis, -1).shape
        return np.moveaxis(ordered.reshape(shape), -1, self.in_axis)

    def room(self, weight: QTensor) -> tuple[Array, Array] | None:
        """Least and largest code of each weight beside those that kernels add to it in 16 bits.

        Each of the shape of the codes; None where the ends of the grid are the only ones.
        """
        spec = weight.params.spec
        if weight.book is not None or not spec.headroom or 2 * spec.qmax <= pairs.MOST:
            return None
        low, high = pairs.room(self.in_order(weight.codes), spec.qmax)
        return self.from_order(low), self.from_order(high)

    @property
    def window(self) -> Window | None:
        """Geometry of a Conv; None for other operators."""
        if self.op != "Conv":
            return None
        attrs, kernel = self.node.attrs, tuple(self.weight_tensor.shape[2:])
        n = len(kernel)
        strides = tuple(attrs.get("strides", [1] * n))
        dilations = tuple(attrs.get("dilations", [1] * n))
        pads = tuple(attrs.get("pads", [0] * 2 * n))
        auto = attrs.get("auto_pad", "NOTSET")
        same = auto.startswith("SAME")
        return Window(kernel, strides, dilations, auto if same else pads, self.groups)

    @property
    def depthwise(self) -> bool:
        """Whether each output channel has an input channel of its own."""
        return 1 < self.groups == self.c_in == self.c_out

    @property
    def by_channel(self) -> bool:
        """Whether it only multiplies each channel by a number, and adds one: a norm is such."""
        one = self.groups == self.c_in == self.c_out == math.prod(self.weight_tensor.shape)
        return self.op == "Conv" and one and not pads(self.node)

    @property
    def by_group(self) -> Floats:
        """The weight as (groups, c_out / groups, c_in / groups, taps), whatever the operator.

        The first two axes together count the output channels, the first and third the inputs'.
        """
        return self.grouped(self.weight)

    def grouped(self, w: Floats) -> Floats:
        """An array of the weight's shape in the form of ``by_group``."""
        taps = math.prod(w.shape[2:])
        if self.op == "ConvTranspose":
            return w.reshape(self.groups, -1, w.shape[1], taps).swapaxes(1, 2)
        rows = self.rows(w)
        return rows.reshape(*rows.shape[:2], w.shape[self.in_axis], taps)

    def set_by_group(self, model: Model, values: Floats) -> None:
        """Set the weight from the form of ``by_group``, which may have more or fewer channels."""
        kernel = self.weight.shape[2:]
        groups, c_out, c_in, _ = values.shape
        if self.op == "ConvTranspose":
            w = values.swapaxes(1, 2).reshape(groups * c_in, c_out, *kernel)
        else:
            w = np.moveaxis(values.reshape(groups * c_out, c_in, *kernel), 0, self.out_axis)
        self.set_weight(model, w)

    @property
    def bias_or_zeros(self) -> Floats | None:
        """Bias as float64 (c_out,), zeros without one; None if it is not one per channel."""
        if self.bias_tensor is None:
            return np.zeros(self.c_out)
        if self.bias is None or self.bias.size not in (1, self.c_out):
            return None
        return np.broadcast_to(self.bias, self.c_out).astype(np.float64)

    def set_weight(self, model: Model, values: Floats) -> None:
        """Give the node a weight of its own; another reader of the old one keeps it."""
        name = self.weight_tensor.name
        self.node.inputs[self.weight_index] = model.constant(name, values.astype(np.float32))

    def set_bias(self, model: Model, values: Floats) -> None:
        """Give the node a bias of its own, (c_out,), whether or not it had one.

        It has the rank of the old one and may have more values. A MatMul gets an Add for it.
        """
        old = self.bias_tensor
        name = old.name if old is not None else f"{self.weight_tensor.name}_bias"
        if self.weight_index == 0:  # output channels are rows
            values = values.reshape(-1, 1)
        elif isinstance(old, gs.Constant):
            values = values.reshape(*old.shape[:-1], -1)
        tensor = model.constant(name, values.astype(np.float32))
        if self.op != "MatMul" or old is not None:
            self.attach_bias(tensor)
            return
        result = self.node.outputs[0]
        self.node.outputs[0] = model.variable(f"{result.name}_unbiased")
        model.add("Add", [self.node.outputs[0], tensor], result)

    def attach_bias(self, tensor: gs.Tensor) -> None:
        """Put ``tensor`` where the bias is, or would be."""
        node, index = self.bias_slot or (self.node, 2)
        if index < len(node.inputs):
            node.inputs[index] = tensor
        else:
            node.inputs.append(tensor)


def layer_of(node: gs.Node) -> Layer | None:
    """The layer a node is, or None if it has no float32 constant weight."""
    if node.op not in WEIGHTED or node.domain or len(node.inputs) < 2:
        return None
    right = _is_weight(node.inputs[1])
    if node.op in ("Conv", "ConvTranspose"):
        out_axis = 0 if node.op == "Conv" else 1
        groups = int(node.attrs.get("group", 1))
        return Layer(node, 1, out_axis, 1 - out_axis, groups) if right else None
    if right == _is_weight(node.inputs[0]):
        return None
    index = 1 if right else 0
    if node.op == "Gemm":
        flipped = int(node.attrs.get("transB" if right else "transA", 0))
        out_axis = flipped ^ index
        return Layer(node, index, out_axis, 1 - out_axis)
    rank = len(node.inputs[index].shape)
    if rank < 2:
        return None
    return Layer(node, index, rank - 2 + index, rank - 1 - index)


def pads(node: gs.Node) -> bool:
    """Whether a convolution or pool may see values beyond the border of its data."""
    automatic = node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return automatic or any(node.attrs.get("pads", []))


def layers(model: Model) -> Iterator[Layer]:
    """The weighted layers of the main graph, in its order."""
    for node in list(model.graph.nodes):
        if (layer := layer_of(node)) is not None:
            yield layer


def twins(found: Iterable[Layer]) -> dict[str, str]:
    """Layers with equal weights, as the heads of a detector over several scales: the first's name.

    Such weights are rounded alike and stored once. Few, and those that are one number, as of means,
    are equal by chance or cost nothing.
    """
    first: dict[tuple[str, int, bytes], list[Layer]] = {}
    names: dict[str, str] = {}
    for layer in found:
        weight = layer.weight
        if weight.size < MANY or (weight == weight.flat[0]).all():
            continue
        key = layer.op, layer.out_axis, weight.reshape(-1)[:MANY].tobytes()
        alike = first.setdefault(key, [])
        known = next((one for one in alike if np.array_equal(one.weight, weight)), None)
        if known is None:
            alike.append(layer)
        else:
            names[layer.name] = names[known.name] = known.name
    return names


def _is_weight(tensor: gs.Tensor) -> bool:
    return isinstance(tensor, gs.Constant) and tensor.dtype == np.float32
