"""A stop on the walk through a network: one layer, and what is known of it there."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from onnxq.graph.layers import Layer
from onnxq.graph.model import Model
from onnxq.numerics import affine
from onnxq.numerics.compensate import Ends
from onnxq.numerics.moments import InputMoments
from onnxq.runtime import in_order
from onnxq.spec import SAFE, Array, Floats, QTensor

# With more inputs of an output channel, second moments are too large to take and to invert.
MOST_INPUTS = 8192

# Makes rows of the float model and of the quantized one, each (groups, n, inputs).
Portion = Callable[[], tuple[Floats, Floats]]


@dataclass
class Visit:
    """A layer behind layers that are quantized already.

    Attributes:
        model: The model; its plan and its biases are the pass's to edit.
        layer: The layer.
        portions: What the weights are multiplied with, rows of the same places of the input in both
            models.
    """

    model: Model
    layer: Layer
    portions: Callable[[], Iterator[Portion]]

    @cached_property
    def inputs(self) -> InputMoments:
        """Moments of what the weights are multiplied with."""
        groups, _, size = self.layer.rows(self.layer.weight).shape

        def of(portion: Portion) -> InputMoments:
            moments = InputMoments(groups, size)
            moments.update(*portion())
            return moments

        total = InputMoments(groups, size)
        for moments in in_order(of, self.portions()):
            total.merge(moments)
        return total

    @property
    def obstacle(self) -> str | None:
        """Why there are no such moments that a weight could be chosen by; None if there are."""
        layer = self.layer
        if layer.op == "ConvTranspose":
            return "the outputs of a ConvTranspose overlap: rounded to nearest"
        if layer.obstacle is not None:
            return f"{layer.obstacle}: rounded to nearest"
        if layer.node.attrs.get("transA", 0):
            return "its data are transposed: rounded to nearest"
        if (size := layer.rows(layer.weight).shape[2]) > MOST_INPUTS:
            return f"it has {size} inputs, more than {MOST_INPUTS}: rounded to nearest"
        if not self.inputs.count:
            return "it read nothing on calibration data: rounded to nearest"
        if not np.isfinite(self.inputs.hessian).all():
            return "it read NaN or infinite values on calibration data: rounded to nearest"
        return None

    @property
    def weight(self) -> QTensor:
        """The layer's integer weight as it stands."""
        return self.model.weights[self.layer.name]

    @property
    def rows(self) -> Array:
        """The float weight, float64 (groups, rows, inputs); a row is an output channel."""
        return self.layer.rows(self.layer.weight).astype(np.float64)

    @property
    def scales(self) -> Array:
        """The scale of every integer weight, likewise."""
        return self.layer.rows(affine.scales(self.weight)).astype(np.float64)

    @property
    def top(self) -> int:
        """Largest level of a uniform grid that any weight may have."""
        spec = self.weight.params.spec
        return min(spec.qmax, SAFE) if spec.headroom else spec.qmax

    @property
    def ends(self) -> Ends:
        """Least and largest level of a uniform grid, () or (groups, rows, inputs)."""
        if (room := self.layer.room(self.weight)) is not None:
            return self.layer.rows(room[0]), self.layer.rows(room[1])
        spec = self.weight.params.spec
        return np.array(spec.qmin, np.int16), np.array(spec.qmax, np.int16)

    @property
    def book(self) -> Array | None:
        """Levels that are not uniform, float64."""
        book = self.weight.book
        return None if book is None else book.astype(np.float64)

    def settle(self, levels: Array, factor: Array) -> None:
        """Take levels (groups, rows, inputs), and scales times a factor (groups, rows, 1)."""
        weight, params, layer = self.weight, self.weight.params, self.layer
        if params.scale.ndim <= 1:
            factor = factor.reshape(-1)[: params.scale.size].reshape(params.scale.shape)
            params = replace(params, scale=(params.scale * factor).astype(np.float32))
        codes = levels if weight.book is None else np.searchsorted(weight.book, levels)
        codes = layer.from_rows(codes).reshape(weight.codes.shape).astype(weight.codes.dtype)
        self.model.weights[layer.name] = QTensor(codes, params, weight.book)


@dataclass(frozen=True)
class Correction:
    """What a pass makes of a layer's result y_q: ``gain * y_q + offset``, each (c_out,)."""

    gain: Floats
    offset: Floats
