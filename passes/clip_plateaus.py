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

from onnxq.graph.model import Model
from onnxq.graph.placement import without_products
from onnxq.graph.tensors import is_number
from onnxq.numerics.observe import MinMax, Observer
from onnxq.numerics.plateaus import APART, POINTS, flat
from onnxq.pipeline import Outcome, Pass, Statistics
from onnxq.runtime import evaluate
from onnxq.spec import Floats

# What makes a value of one value, or of two at the same place.
ELEMENTWISE = {
    "Add", "Celu", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish",
    "LeakyRelu", "Mish", "Mul", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sub", "Swish",
    "Tanh", "ThresholdedRelu",
}  # fmt: skip
# A plateau that is less than this part of a range is not worth a node.
LEAST_GAIN = 0.02


@dataclass(frozen=True, eq=False)
class Cone:
    """All that is computed from a tensor alone, value by value.

    Attributes:
        tensor: The tensor.
        nodes: What computes it, in order.
        ends: The results that something else reads, each with the part of its span that its
            values are told apart from: none, unless nothing but integer nodes reads it.
    """

    tensor: gs.Tensor
    nodes: list[gs.Node]
    ends: list[tuple[gs.Tensor, float]]


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
        points = {name: _points(statistics[name]) for name in statistics}
        cones = {name: cone for name, cone in _cones(model).items() if len(points[name])}
        results = _run(model, cones, points)
        for name, cone in cones.items():
            low, high = _plateaus([(results[name, t.name], part) for t, part in cone.ends])
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
    captured, placement = model.captured(), without_products(model)
    integer = placement.integer | placement.moves
    results = set(placement.results.values())
    found = {}
    for tensor in (t for node in model.graph.nodes for t in node.outputs if t.name in results):
        if _is_end(model, tensor, captured) or not all(map(_is_elementwise, tensor.outputs)):
            continue
        cone, inside, names = Cone(tensor, [], []), [tensor], {tensor.name}
        for reached in inside:  # which grows
            for node in filter(_is_elementwise, reached.outputs):
                alone = all(t.name in names or t.is_empty() or is_number(t) for t in node.inputs)
                if alone and node.outputs[0].name not in names:
                    cone.nodes.append(node)
                    inside.append(node.outputs[0])
                    names.add(node.outputs[0].name)
        for reached in inside:
            others = [node for node in reached.outputs if node.outputs[0].name not in names]
            exact = _is_end(model, reached, captured) or any(n.name not in integer for n in others)
            if others or exact:
                cone.ends.append((reached, 0.0 if exact else APART))
        if all(end is not tensor for end, _ in cone.ends):
            found[tensor.name] = cone
    return found


def _is_end(model: Model, tensor: gs.Tensor, captured: Collection[str]) -> bool:
    """Whether a tensor leaves the graph, or enters a body."""
    return model.is_output(tensor) or tensor.name in captured


def _is_elementwise(node: gs.Node) -> bool:
    return node.op in ELEMENTWISE and not node.domain


def _points(seen: Observer) -> Floats:
    """Values between the ends of a tensor, float32 (POINTS,); none if it has but one value."""
    assert isinstance(seen, MinMax)
    count = POINTS if seen.lo < seen.hi else 0
    return np.linspace(seen.lo, seen.hi, count, dtype=np.float32)


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
                or (gs.Constant(f"{number}{i}", t.values.reshape(())) if is_number(t) else t)
                for i, t in enumerate(node.inputs)
            ]
            outputs = [gs.Variable(f"{name}/{t.name}") for t in node.outputs]
            copies |= {t.name: copy for t, copy in zip(node.outputs, outputs, strict=True)}
            nodes.append(gs.Node(node.op, number, dict(node.attrs), inputs, outputs))
        results |= {(name, t.name): copies[t.name] for t, _ in cone.ends}
    graph = gs.Graph(nodes, opset=model.opset)
    values = evaluate(replace(model, graph=graph), list(results.values()))
    return {key: values[t.name] for key, t in results.items()}


def _plateaus(results: Sequence[tuple[Floats, float]]) -> tuple[int, int]:
    """Length of the plateau that all results begin with and of that they end with, in points.

    0 if it is short, or if there is nothing else.

    Args:
        results: Each with the part of its span that its values are told apart from.
    """
    if not all(np.isfinite(y).all() for y, _ in results):
        return 0, 0
    ends = [int(flat([(y[::step], part) for y, part in results])) for step in (1, -1)]
    low, high = (end if end > LEAST_GAIN * POINTS else 0 for end in ends)
    return low, high
