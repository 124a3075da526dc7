"""Gates that a tensor opens for itself: x g(a x + b), with a Sigmoid or a Clip for g.

So are SiLU and HardSwish written where they run on integers.
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.model import Model
from onnxq.graph.moves import bounds, factor, moved
from onnxq.graph.tensors import is_number
from onnxq.numerics import plateaus
from onnxq.spec import Floats


@dataclass(frozen=True, eq=False)
class Gate:
    """A product x g(a x + b).

    Attributes:
        data: x.
        function: The node of g.
        slope: a, which is positive.
        offset: b.
    """

    data: gs.Tensor
    function: gs.Node
    slope: float
    offset: float

    def opened(self, x: Floats) -> Floats:
        """The gate, float64 of the shape of x."""
        inner = self.slope * x.astype(np.float64) + self.offset
        if self.function.op == "Sigmoid":
            return np.asarray(0.5 + 0.5 * np.tanh(0.5 * inner))  # which does not overflow
        return np.clip(inner, *self._ends)

    def derivative(self, x: Floats) -> Floats:
        """Of the product by x, float64 of that shape."""
        gate = self.opened(x)
        if self.function.op == "Sigmoid":
            return np.asarray(gate + self.slope * x * gate * (1.0 - gate))
        low, high = self._ends
        return np.asarray(gate + self.slope * x * ((low < gate) & (gate < high)))

    def floors(self, lo: Floats, hi: Floats) -> Floats:
        """Below which x, (channels,), the product is nearly the same down to ``lo``."""
        x = np.linspace(lo, hi, plateaus.POINTS)
        last = plateaus.flat([(x * self.opened(x), plateaus.APART)])
        return np.asarray(np.take_along_axis(x, last[None], axis=0)[0])

    @property
    def _ends(self) -> tuple[float, float]:
        found = bounds(self.function)
        assert found is not None
        return float(found[0]), float(found[1])


def gates(model: Model) -> Iterator[Gate]:
    """All gates of tensors that nothing but their product reads."""
    captured = model.captured()
    for node in model.graph.nodes:
        if node.op == "Mul" and not node.domain and len({t.name for t in node.inputs}) == 2:
            for x, g in (node.inputs, node.inputs[::-1]):
                if (gate := _gate(model, node, x, g, captured)) is not None:
                    yield gate


def _gate(
    model: Model, product: gs.Node, x: gs.Tensor, g: gs.Tensor, captured: Container[str]
) -> Gate | None:
    """What opens the gate ``g`` of ``x``; None if it is something else."""
    slope, offset, function, reader, tensor = 1.0, 0.0, None, product, g
    while tensor is not x:
        node = tensor.inputs[0] if tensor.inputs else None
        if node is None or node.domain or tensor.name in captured:
            return None
        if model.single_consumer(tensor) is not reader:
            return None
        if function is None:
            ends = bounds(node) if node.op == "Clip" else None
            if node.op != "Sigmoid" and (ends is None or ends[0] != 0.0 or ends[1] == np.inf):
                return None
            function, tensor = node, node.inputs[0]
        elif (by := factor(node)) is not None:
            slope *= float(by)
            tensor = moved(node)
        elif node.op == "Add" and any(map(is_number, node.inputs)):
            first = int(is_number(node.inputs[0]))
            offset += slope * float(node.inputs[1 - first].values.reshape(()))
            tensor = node.inputs[first]
        else:
            return None
        reader = node
    alone = {node.name for node in x.outputs} == {product.name, reader.name}
    open_to_x = function is not None and alone and not model.is_output(x) and x.name not in captured
    return Gate(x, function, slope, offset) if open_to_x else None
