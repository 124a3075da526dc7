"""Write the plan into the graph in the forms onnxruntime's CPU provider fuses, and in no other.

An integer layer:    x -> DequantizeLinear -> Conv -> QuantizeLinear -> codes
Codes below 8 bits:  QuantizeLinear -> Clip(codes, 2^b - 1) -> DequantizeLinear
A ceiling by channel: QuantizeLinear -> Min(codes, ceilings) -> DequantizeLinear
A move:              codes -> Transpose -> codes
A sum with a number: codes -> codes, cut off by a Clip, of another zero point
A bias:              int32 -> DequantizeLinear; of a Conv the float of its codes
An AveragePool:      x -> DequantizeLinear -> depthwise Conv of equal weights -> QuantizeLinear
A Conv over strips:  x -> DequantizeLinear -> strips -> Conv -> pixels -> QuantizeLinear
A weight:            int8, or narrower and unpacked (storage.py), -> DequantizeLinear
Weight of a float layer:  the same -> Cast(float) -> Mul(scale), which folds away at load
"""

import math
import re
from dataclasses import replace
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import field_validator

from onnxq.graph.forms import AVERAGED, Forms, forms, regroup
from onnxq.graph.layers import layer_of
from onnxq.graph.model import Model
from onnxq.graph.moves import ACTIVATIONS, MOVES, bounds, factor, moved, term
from onnxq.graph.placement import (
    COMPANIONS,
    READERS_OF_SHAPE,
    Placement,
    data_inputs,
    end_of,
    place,
)
from onnxq.graph.storage import OLDEST, Storage
from onnxq.graph.weights import Weights
from onnxq.numerics import affine
from onnxq.pipeline import Outcome, Pass, Statistics
from onnxq.spec import Array, Floats, QParams

EVERYTHING = (np.array(-np.inf, np.float32), np.array(np.inf, np.float32))


class InsertQdq(Pass):
    """Emit the chosen grids as QuantizeLinear and DequantizeLinear nodes.

    Attributes:
        target_ort: The oldest onnxruntime that must read the file.
    """

    name: ClassVar[str] = "insert-qdq"
    exact: ClassVar[bool] = False

    target_ort: str = OLDEST

    @field_validator("target_ort")
    @classmethod
    def _check_version(cls, text: str) -> str:
        if not re.fullmatch(r"1\.[2-9]\d(\.\d+)?", text):
            raise ValueError(f"an onnxruntime is wanted, as 1.23, from 1.20 on, not {text}")
        return text

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Rewrite the graph; tensors keep their names, so that they compare with the source's."""
        return self._write(model, plain=False)

    def rehearse(self, model: Model) -> None:
        """The same, but each layer reads its data and weights as in the float model."""
        self._write(model, plain=True)

    def _write(self, model: Model, *, plain: bool) -> Outcome:
        outcome = Outcome()
        placement = place(model) if model.activations else Placement()
        for node in model.graph.nodes:
            for tensor in node.outputs:
                if not model.is_output(tensor):
                    tensor.dtype = tensor.shape = None
        storage = Storage(model, self.target_ort)
        chosen = forms(model, placement, plain=plain)
        emitter = _Emitter(model, placement, chosen, outcome, storage)
        for node in list(model.graph.nodes):
            emitter.emit(node)
        emitter.weights.write_tables()
        emitter.storage.finish()
        return outcome


class _Emitter:
    """One walk over the graph in topological order; ``codes`` grows as tensors become integers."""

    def __init__(
        self,
        model: Model,
        placement: Placement,
        forms: Forms,
        outcome: Outcome,
        storage: Storage,
    ) -> None:
        self.model = model
        self.storage = storage
        self.placement = placement
        self.forms = forms
        self.weights = Weights(model, storage, forms, outcome.remark)
        self.codes: dict[str, gs.Tensor] = {}
        self.params: dict[str, QParams] = {}
        self.entered: dict[str, gs.Tensor] = {}
        self.scalars: dict[bytes, gs.Tensor] = {}

    def emit(self, node: gs.Node) -> None:
        """Rewrite one node of the float graph."""
        if node.name in self.placement.integer and self._shift(node):
            return
        if node.name in self.placement.integer:
            layer, end = layer_of(node), end_of(self.model, node)
            for i, tensor in enumerate(node.inputs):
                if layer is None and isinstance(tensor, gs.Constant):
                    node.inputs[i] = self._scalar(tensor)
                elif tensor.name in self.placement.entries and tensor.name not in self.codes:
                    node.inputs[i] = self._enter(tensor)
            if layer is not None:
                scale = float(self.params[layer.data.name].scale)
                self.weights.write_integer(layer, scale)
            if node.name in self.forms.pools:
                self._average(node)
            if node.name in self.placement.results:
                self._leave(node.name, end)
        elif node.name in self.placement.moves:
            self._move(node)
        else:
            if node.op in READERS_OF_SHAPE and node.inputs[0].name in self.codes:
                node.inputs[0] = self.codes[node.inputs[0].name]
            kept = node.op in COMPANIONS and node.name in self.model.kept_float
            if (kept or node.op == "AveragePool") and node.inputs[0].name in self.codes:
                self._shield(node)
            if (layer := layer_of(node)) is not None:
                self.weights.write_float(layer, self._stems_from_codes(layer.data))

    def _leave(self, name: str, node: gs.Node) -> None:
        """Quantize a result; absorbed activations go, but their tensor keeps its name."""
        activations = self.placement.absorbed[name]
        result = activations[-1].outputs[0] if activations else node.outputs[0]
        ends = _ends(activations)
        if activations:
            raw = node.outputs[0]
            for activation in activations:
                activation.inputs.clear()
                activation.outputs.clear()
        else:
            raw = self.model.variable(f"{result.name}_float")
            node.outputs[0] = raw
        params = self.model.activations[result.name]
        if name in self.forms.strips:
            strip, c_out = self.forms.strips[name], len(self.model.weights[name].codes)
            strips = node.outputs[0] = self.model.variable(f"{raw.name}_strips")
            regroup(self.storage, strips, strip.row // strip.stride, c_out, raw)
        self._dequantize(self._quantize(raw, result.name, params, ends), result, params)

    def _enter(self, tensor: gs.Tensor) -> gs.Tensor:
        """The quantized and dequantized copy of a float tensor, made once."""
        if tensor.name not in self.entered:
            params = self.model.activations[tensor.name]
            copy = self.model.variable(f"{tensor.name}_dequantized")
            self.params[copy.name] = params
            codes = self._quantize(tensor, tensor.name, params)
            self.model.add("DequantizeLinear", [codes, *self._grid(tensor.name, params)], copy)
            self.entered[tensor.name] = copy
        return self.entered[tensor.name]

    def _quantize(
        self,
        source: gs.Tensor,
        name: str,
        params: QParams,
        ends: tuple[Floats, Floats] = EVERYTHING,
    ) -> gs.Tensor:
        """QuantizeLinear, and an integer Clip if the grid or ``ends`` leave codes of 8 bits out."""
        codes = self.model.variable(f"{name}_codes")
        self.model.add("QuantizeLinear", [source, *self._grid(name, params)], codes)
        return self._clip(codes, f"{name}_clipped", params, ends)

    def _dequantize(self, codes: gs.Tensor, result: gs.Tensor, params: QParams) -> None:
        """Make ``result`` the dequantized ``codes``; both stay known for the nodes that follow."""
        self.codes[result.name] = codes
        self.params[result.name] = params
        grid = self._grid(result.name, params)
        self.model.add("DequantizeLinear", [codes, *grid], result)

    def _average(self, node: gs.Node) -> None:
        """Let a depthwise Conv average: onnxruntime's kernel for it is several times as fast."""
        channels, area = self.forms.pools[node.name], math.prod(node.attrs["kernel_shape"])
        shape = np.array([channels, 1, *node.attrs["kernel_shape"]], np.int64)
        codes, weight = self.model.variable("codes"), self.model.variable("weight")
        code = self.storage.shared("code", np.full((1, 1, 1, 1), AVERAGED, np.int8))
        scale = self.storage.shared("scale", np.asarray(1.0 / (AVERAGED * area), np.float32))
        self.model.add("Expand", [code, self.storage.shared("shape", shape)], codes)
        self.model.add("DequantizeLinear", [codes, scale], weight)
        node.op = "Conv"
        node.inputs.append(weight)
        kept = ("kernel_shape", "strides", "pads")
        node.attrs = {k: v for k, v in node.attrs.items() if k in kept} | {"group": channels}

    def _shield(self, node: gs.Node) -> None:
        """Keep a float node from being fused after all, by a sum of one term before it.

        Between a DequantizeLinear and a QuantizeLinear onnxruntime takes any companion for its
        integer kernel, also an AveragePool for which that kernel computes something else.
        """
        term = self.model.variable(f"{node.inputs[0].name}_term")
        self.model.add("Sum", [node.inputs[0]], term)
        node.inputs[0] = term

    def _shift(self, node: gs.Node) -> bool:
        """Write a sum with a number as another zero point, if the grids are made for that."""
        number = term(node)
        if number is None or (data := data_inputs(node)[0]).name not in self.codes:
            return False
        activations = self.placement.absorbed[node.name]
        result = (activations[-1] if activations else node).outputs[0]
        before, behind = self.params[data.name], self.model.activations[result.name]
        steps = int(before.zero_point) - int(behind.zero_point)
        same = before.spec == behind.spec and math.isclose(before.scale, behind.scale, rel_tol=1e-6)
        if not same or not math.isclose(before.scale * steps, number, rel_tol=1e-6):
            return False
        params, ends = replace(before, zero_point=behind.zero_point), _ends(activations)
        for gone in (node, *activations):
            gone.inputs.clear()
            gone.outputs.clear()
        codes = self._clip(self.codes[data.name], f"{result.name}_codes", params, ends)
        self._dequantize(codes, result, params)
        return True

    def _move(self, node: gs.Node) -> None:
        """Run a node on codes instead of floats."""
        source = moved(node).name
        params = self.params[source]
        spec = params.spec
        if (by := factor(node)) is not None:
            result = node.outputs[0]
            node.inputs.clear()
            node.outputs.clear()
            scaled = replace(params, scale=np.asarray(params.scale * by, np.float32))
            self._dequantize(self.codes[source], result, scaled)
            return
        if node.op in ACTIVATIONS:
            result, ends = node.outputs[0], _ends([node])
            node.inputs.clear()
            node.outputs.clear()
            codes = self._clip(self.codes[source], f"{result.name}_codes", params, ends)
            self._dequantize(codes, result, params)
            return
        node.inputs[0] = self.codes[source]
        if node.op == "Pad" and node.attrs.get("mode", "constant") == "constant":
            zero = self.model.constant(f"{node.name}_zero", params.zero_point.astype(spec.dtype))
            while len(node.inputs) < 3:
                node.inputs.append(zero)
            node.inputs[2] = zero
        for i, result in enumerate(node.outputs):
            codes = self.model.variable(f"{result.name}_codes")
            node.outputs[i] = codes
            self._dequantize(codes, result, params)

    def _clip(
        self, codes: gs.Tensor, name: str, params: QParams, ends: tuple[Floats, Floats]
    ) -> gs.Tensor:
        """The codes, cut off where the grid or ``ends`` leave codes of 8 bits out."""
        low, high = (affine.quantize(end, params) for end in ends)
        if not low.any() and np.all(high == 255):
            return codes
        result = self.model.variable(name)
        if np.ptp(low) == np.ptp(high) == 0:  # a Clip is faster than a Min
            least, most = (
                self.storage.shared(f"code{n.min()}", np.asarray(n.min())) for n in (low, high)
            )
            self.model.add("Clip", [codes, least, most], result)
            return result
        if low.any():
            raised = self.model.variable(f"{name}_raised")
            self.model.add("Max", [codes, self.model.constant(f"{name}_least", low)], raised)
            codes = raised
        self.model.add("Min", [codes, self.model.constant(f"{name}_most", high)], result)
        return result

    def _scalar(self, tensor: gs.Constant) -> gs.Tensor:
        """A one-number operand, whatever its rank, as code 1 times itself, or code 0 minus 1."""
        if (key := tensor.values.tobytes() + bytes(tensor.values.ndim)) in self.scalars:
            return self.scalars[key]
        value = np.float32(tensor.values.reshape(()))
        scale = np.abs(value) if value else np.float32(1.0)
        code, zero = (1, 0) if value > 0 else (0, 1) if value < 0 else (0, 0)
        result = self.model.variable(f"{tensor.name}_dequantized")
        codes = np.full(tensor.shape, code, np.uint8)
        arrays = (codes, np.asarray(scale), np.array(zero, np.uint8))
        self.model.add("DequantizeLinear", self._constants(tensor.name, arrays), result)
        self.scalars[key] = result
        return result

    def _grid(self, name: str, params: QParams) -> tuple[gs.Constant, gs.Constant]:
        """Scale and zero point of a tensor as constants."""
        zero_point = params.zero_point.astype(params.spec.dtype)
        return (
            self.storage.shared(f"{name}_scale", params.scale),
            self.storage.shared(f"{name}_zero_point", zero_point),
        )

    def _stems_from_codes(self, tensor: gs.Tensor) -> bool:
        """Whether a DequantizeLinear may come to stand before ``tensor``.

        onnxruntime moves it from before to behind a node that only rearranges values.
        """
        while tensor.name not in self.codes:
            if not tensor.inputs or tensor.inputs[0].op not in MOVES:
                return False
            tensor = tensor.inputs[0].inputs[0]
        return True

    def _constants(self, name: str, arrays: tuple[Array, ...]) -> list[gs.Tensor]:
        kinds = ("codes", "scale", "zero_point")
        return [
            self.model.constant(f"{name}_{kind}", array)
            for kind, array in zip(kinds, arrays, strict=True)
        ]


def _ends(activations: list[gs.Node]) -> tuple[Floats, Floats]:
    """What Relus, Clips and Mins in a row keep values between; a Min may do so by channel."""
    low, high = EVERYTHING
    for activation in activations:
        limits = bounds(activation)
        assert limits is not None
        low, high = np.clip(low, *limits), np.clip(high, *limits)
    return np.asarray(low), np.asarray(high)
