"""Values that nothing tells apart need no codes of their own.

HardSwish(x) = x clip(x / 6 + 1/2, 0, 1) is 0 for all x below -3, and x Sigmoid(x) nearly so below
-8: a grid that ends there is finer where it matters. No function is known by name here: whatever is
computed from a tensor alone is run, on values between its ends, and looked at.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.model import Model
from onnxq.numerics.observe import MinMax, Observer
from onnxq.pipeline import Outcome, Pass, Statistics
from onnxq.placement import without_products
from onnxq.runtime import evaluate
from onnxq.spec import Floats

# What makes a value of one value, or of two at the same place.
ELEMENTWISE = {
    "Add", "Celu", "Clip", "Div", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu",
    "Mish", "Mul", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sub", "Swish", "Tanh",
    "ThresholdedRelu",
}  # fmt: skip
POINTS = 4097
# Results differ from this part of their span on: a quarter of a step of 8 bits.
APART = 1 / (4 * 255)
# A plateau that is less than this part of a range is not worth a node.
LEAST_GAIN = 0.02


@dataclass(frozen=True, eq=False)
class Cone:
    """All that is computed from a tensor alone, value by value.

    Attributes:
        tensor: The tensor.
        nodes: What computes it, in order.
        ends: The results that something else reads.
    """

    tensor: gs.Tensor
    nodes: list[gs.Node]
    ends: list[gs.Tensor]


class ClipPlateaus(Pass):
    """Clip results of integer layers where the functions behind them make no difference."""

    name: ClassVar[str] = "clip-plateaus"
    exact: ClassVar[bool] = False

    def observe(self, model: Model) -> dict[str, Observer]:
        """Find the ends of the tensors."""
        return {name: MinMax() for name in _cones(model)}

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        cones = {name: cone for name, cone in _cones(model).items() if _spans(statistics[name])}
        points = {name: _points(statistics[name]) for name in cones}
        results = _run(model, cones, points)
        for name, cone in cones.items():
            low, high = _plateaus([results[name, t.name] for t in cone.ends])
            if low == high == 0:
                continue
            x, tensor = points[name], cone.tensor
            first, last = x[low], x[POINTS - 1 - high]
            clipped = model.variable(f"{name}_clipped")
            model.redirect(tensor, clipped)
            lo = model.constant(f"{name}_min", first) if low else gs.Variable.empty()
            hi = model.constant(f"{name}_max", last) if high else gs.Variable.empty()
            model.add("Clip", [tensor, lo, hi], clipped)
            what = f"[{x[0]:.4g}, {x[-1]:.4g}] to [{first:.4g}, {last:.4g}]"
            outcome.edit(name, what)
        return outcome


def _cones(model: Model) -> dict[str, Cone]:
    """Of the results of integer nodes those that nothing but a function of them alone reads."""
    captured = model.captured()
    results = set(without_products(model).results.values())
    found = {}
    for tensor in (t for node in model.graph.nodes for t in node.outputs if t.name in results):
        if _is_end(model, tensor, captured) or not all(map(_is_elementwise, tensor.outputs)):
            continue
        cone, inside = Cone(tensor, [], []), {tensor.name: tensor}
        for node in filter(_is_elementwise, model.graph.nodes):
            data = [t for t in node.inputs if not t.is_empty()]
            alone = all(t.name in inside or _is_number(t) for t in data)
            if alone and any(t.name in inside for t in data):
                cone.nodes.append(node)
                inside |= {t.name: t for t in node.outputs}
        left = [t for t in inside.values() if any(r not in cone.nodes for r in t.outputs)]
        cone.ends.extend(t for t in inside.values() if t in left or _is_end(model, t, captured))
        if tensor not in left:
            found[tensor.name] = cone
    return found


def _is_end(model: Model, tensor: gs.Tensor, captured: Collection[str]) -> bool:
    """Whether a tensor leaves the graph, or enters a body."""
    return model.is_output(tensor) or tensor.name in captured


def _is_elementwise(node: gs.Node) -> bool:
    return node.op in ELEMENTWISE and not node.domain


def _is_number(tensor: gs.Tensor) -> bool:
    return isinstance(tensor, gs.Constant) and tensor.values.size == 1


def _spans(seen: Observer) -> bool:
    assert isinstance(seen, MinMax)
    return seen.lo < seen.hi and not seen.nonfinite


def _points(seen: Observer) -> Floats:
    assert isinstance(seen, MinMax)
    return np.linspace(seen.lo, seen.hi, POINTS, dtype=np.float32)


def _run(
    model: Model, cones: Mapping[str, Cone], points: Mapping[str, Floats]
) -> dict[tuple[str, str], Floats]:
    """What a cone makes of the points of its tensor, by the names of both."""
    nodes: list[gs.Node] = []
    results: dict[tuple[str, str], gs.Tensor] = {}
    for name, cone in cones.items():
        copies: dict[str, gs.Tensor] = {name: gs.Constant(f"{name}/", points[name])}
        for node in cone.nodes:
            number = f"{name}/{node.name}/"
            inputs = [
                copies.get(t.name)
                or (gs.Constant(f"{number}{i}", t.values.reshape(())) if _is_number(t) else t)
                for i, t in enumerate(node.inputs)
            ]
            outputs = [gs.Variable(f"{name}/{t.name}") for t in node.outputs]
            copies |= {t.name: copy for t, copy in zip(node.outputs, outputs, strict=True)}
            nodes.append(gs.Node(node.op, number, dict(node.attrs), inputs, outputs))
        results |= {(name, t.name): copies[t.name] for t in cone.ends}
    graph = gs.Graph(nodes, opset=model.opset)
    values = evaluate(replace(model, graph=graph), list(results.values()))
    return {key: values[t.name] for key, t in results.items()}


def _plateaus(results: Sequence[Floats]) -> tuple[int, int]:
    """Length of the plateau that all results begin with and of that they end with, in points.

    0 if it is short, or if there is nothing else.
    """
    found = []
    with np.errstate(invalid="ignore"):  # infinite results have no plateau
        apart = [APART * np.ptp(y) for y in results]
        for step in (1, -1):
            ordered = [y[::step] for y in results]
            far = [np.abs(y - y[0]) > a for y, a in zip(ordered, apart, strict=True)]
            flat = max(0, int(np.argmax(np.any(far, axis=0))) - 1)
            found.append(flat if flat > LEAST_GAIN * POINTS else 0)
    return found[0], found[1]
