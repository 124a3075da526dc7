"""Weights and biases of quantized layers, in the forms that onnxruntime's kernels want."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.forms import Forms, regroup
from onnxq.graph.layers import Layer
from onnxq.graph.model import Model
from onnxq.graph.storage import Storage, rounds_biases
from onnxq.graph.tensors import FLOAT
from onnxq.numerics import affine
from onnxq.numerics.bias import exact_codes, fit_weight, quantize_bias
from onnxq.numerics.strips import PIXELS, Strip
from onnxq.spec import Array, Floats, QTensor


class Weights:
    """Writes what layers multiply with and add, after the model's plan.

    Args:
        model: Its graph is edited.
        storage: Takes the codes.
        forms: Which layers have another form.
        remark: Hears of what layer what had to be done.
    """

    def __init__(
        self, model: Model, storage: Storage, forms: Forms, remark: Callable[[str, str], None]
    ) -> None:
        self.model = model
        self.storage = storage
        self.forms = forms
        self.remark = remark

    def write_integer(self, layer: Layer, input_scale: float) -> None:
        """Quantized weight, and bias, of a layer whose data are dequantized codes.

        Args:
            layer: Its data come from a DequantizeLinear.
            input_scale: The scale there.
        """
        strip = self.forms.strips.get(layer.name)
        weight = self._write_bias(layer, self.model.weights[layer.name], strip, input_scale)
        name, params = layer.weight_tensor.name, weight.params
        stored, scale = self.storage.store(name, weight), params.scale
        if (count := self.forms.groups.get(layer.name, 1)) > 1:
            stored = self.storage.merge(stored, weight.codes.shape, layer.groups, count)
            layer.node.attrs["group"] = layer.groups // count
        if strip is not None:
            stored = self.storage.widen(stored, weight.codes.shape, strip)
            scale = _repeated(scale, strip)
            self._read_strips(layer, strip)
        # onnxruntime fuses a Gemm, or a MatMul and Add it makes one of, only if the zero point of
        # the weight is spelled out.
        spelled = layer.op in ("Gemm", "MatMul")
        result = self._dequantized(name, stored, scale, params.axis, spelled)
        layer.node.inputs[layer.weight_index] = result

    def write_float(self, layer: Layer, from_codes: bool) -> None:
        """Stored weight of a layer that computes in floats, and a bias that keeps it so.

        onnxruntime requantizes, per tensor and in silence, the float weight of a Conv, Gemm or
        ConvTranspose that it finds between a DequantizeLinear and a QuantizeLinear, unless the
        bias is not an initializer. One behind a DequantizeLinear, exact to the last bit, is not.

        Args:
            layer: It computes in floats.
            from_codes: A DequantizeLinear may come to stand before its data.
        """
        node, model = layer.node, self.model
        if layer.weight_index == 1 and from_codes:
            self._guard_bias(layer)
        if (weight := model.weights.get(layer.name)) is not None:
            name = layer.weight_tensor.name
            result = model.variable(f"{name}_dequantized")
            self._unpack(name, weight, result)
            shape = layer.weight.shape
            if weight.codes.shape != shape:  # its input channels are split into groups
                whole = model.variable(f"{name}_whole")
                target = model.constant(f"{name}_shape", np.array(shape, np.int64))
                model.add("Reshape", [result, target], whole)
                result = whole
            node.inputs[layer.weight_index] = result

    def _write_bias(
        self, layer: Layer, weight: QTensor, strip: Strip | None, input_scale: float
    ) -> QTensor:
        """Quantized bias of an integer layer; its weight, whose scale the bias may have raised."""
        bias = layer.bias
        if bias is None and layer.op == "Gemm":
            # Without one, onnxruntime merges it with a Transpose or Sum and then cannot fuse it.
            bias = np.zeros(layer.c_out, np.float32)
        if bias is None:
            return weight
        weight, raised = fit_weight(weight, bias, input_scale)
        if raised:
            what = f"weight scale raised on {raised} channels to fit the bias"
            self.remark(layer.name, what)
        codes, scale = quantize_bias(bias, weight.params.scale, input_scale)
        if strip is not None:
            codes, scale = np.tile(codes, strip.outputs), _repeated(scale, strip)
        if layer.op == "Conv" and rounds_biases(self.storage.target):
            # Codes and their scales take twice the room, and onnxruntime makes them of floats.
            rounded = (codes * scale).astype(np.float32)
            layer.attach_bias(self.model.constant(f"{layer.name}_bias", rounded))
        else:
            self._store_bias(layer, codes, scale)
        return weight

    def _read_strips(self, layer: Layer, strip: Strip) -> None:
        """Let a Conv read its data in strips of pixels, and return strips."""
        node, data = layer.node, self.model.variable(f"{layer.data.name}_strips")
        regroup(self.storage, layer.data, strip.row // PIXELS, PIXELS * layer.c_in, data)
        node.inputs[0] = data
        top, _, bottom, _ = node.attrs.get("pads", [0, 0, 0, 0])
        height, _ = node.attrs.get("strides", [1, 1])
        node.attrs["pads"] = [top, strip.before, bottom, strip.after]
        node.attrs["strides"] = [height, 1]
        node.attrs["kernel_shape"] = [layer.weight.shape[2], strip.width]

    def write_tables(self) -> None:
        """Stored codes of constants that are no weights of layers, brought back as floats."""
        found = [*self.model.constants(), *self.model.inner_constants()]
        constants = {constant.name: constant for constant in found}
        for name, table in self.model.tables.items():
            result = self.model.variable(f"{name}_dequantized")
            self.model.redirect(constants[name], result)
            self._unpack(name, table, result)

    def _unpack(self, name: str, weight: QTensor, result: gs.Tensor) -> None:
        """Make ``result`` the floats of a weight, which onnxruntime computes at load."""
        scale = affine.broadcast(weight.params.scale, weight.codes.ndim, weight.params.axis)
        stored = self.storage.store(name, weight, FLOAT)
        self.model.add("Mul", [stored, self.model.constant(f"{name}_scale", scale)], result)

    def _guard_bias(self, layer: Layer) -> None:
        """Store the bias, or zeros, as exact int32 codes; a MatMul without one needs none."""
        bias = layer.bias
        if layer.bias_tensor is None and layer.op != "MatMul":
            bias = np.zeros(layer.c_out, np.float32)
        if bias is not None:
            self._store_bias(layer, *exact_codes(bias))

    def _store_bias(self, layer: Layer, codes: Array, scale: Floats) -> None:
        """Let the layer read a quantized bias, in the shape of the float one if there was one."""
        old = layer.bias_tensor
        name, shape = f"{layer.name}_bias", codes.shape
        if old is not None:
            name, shape = old.name, (*old.shape[:-1], -1)
        stored = self.model.constant(f"{name}_codes", codes.reshape(shape))
        layer.attach_bias(self._dequantized(name, stored, scale, len(shape) - 1))

    def _dequantized(
        self, name: str, codes: gs.Tensor, scale: Floats, axis: int | None, zero: bool = False
    ) -> gs.Tensor:
        """Stored codes behind a DequantizeLinear.

        The zero point is zero and left out, unless ``zero`` asks to spell it.
        """
        result = self.model.variable(f"{name}_dequantized")
        parts = [codes, self.model.constant(f"{name}_scale", scale)]
        if zero:
            parts.append(self.model.constant(f"{name}_zero_point", np.zeros(scale.shape, np.int8)))
        attrs: dict[str, Any] = {"axis": axis} if scale.ndim else {}
        self.model.add("DequantizeLinear", parts, result, **attrs)
        return result


def _repeated(scale: Floats, strip: Strip) -> Floats:
    """A scale for each channel of a strip of outputs; one for all of them stays that."""
    return np.tile(scale, strip.outputs) if scale.ndim else scale
