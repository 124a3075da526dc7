"""GELU is one operator since opset 20; most exports write it with Erf.

    GELU(x) = x (1 + erf(x / sqrt 2)) / 2

onnxruntime finds that by itself in floats, but not where x comes from codes: it unpacks them anew
for each reader, so that the two x are no longer one.
"""

from math import isclose, sqrt
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxq.errors import UnsupportedModel
from onnxq.graph.model import Model
from onnxq.graph.moves import factor, moved
from onnxq.graph.tensors import is_number
from onnxq.pipeline import Outcome, Pass, Statistics

# The first with Gelu.
OPSET = 20
# As far as the root of two is from its float16.
CLOSE = 2e-4


class FuseGelu(Pass):
    """Write GELU as one operator, in whatever order its factors come."""

    name: ClassVar[str] = "fuse-gelu"
    exact: ClassVar[bool] = True

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        if model.opset < OPSET and _found(model):
            if model.graph.functions:
                outcome.skip("model", "raising its opset would inline its functions")
                return outcome
            try:
                model.raise_opset(OPSET)
            except UnsupportedModel as cause:
                outcome.skip("model", str(cause))
                return outcome
        for x, last in _found(model):
            last.op, last.inputs = "Gelu", [x]
            outcome.edit(last.name, "became Gelu")
        return outcome


def _found(model: Model) -> list[tuple[gs.Tensor, gs.Node]]:
    """The x and the last node of every GELU in the graph."""
    found = []
    for erf in [n for n in model.graph.nodes if n.op == "Erf" and not n.domain]:
        x, root = _scaled(erf.inputs[0])
        chain = _chain(model, erf, x) if isclose(root, sqrt(0.5), rel_tol=CLOSE) else []
        if chain and not any(n.name in model.kept_float for n in (erf, *chain)):
            found.append((x, chain[-1]))
    return found


def _scaled(tensor: gs.Tensor) -> tuple[gs.Tensor, float]:
    """What ``tensor`` is a multiple of, and by what factor; itself, once, if of nothing else."""
    for node in tensor.inputs:
        if (by := factor(node)) is not None:
            return moved(node), float(by)
    return tensor, 1.0


def _chain(model: Model, erf: gs.Node, x: gs.Tensor) -> list[gs.Node]:
    """The nodes from an Erf to x (1 + erf) / 2, read by nothing else; none if that is not so."""
    chain, by, gated = [erf], 1.0, False
    while not (gated and isclose(by, 0.5)):
        tensor = chain[-1].outputs[0]
        node = model.single_consumer(tensor)
        if node is None or node.domain or node.op not in ("Add", "Mul", "Div"):
            return []
        others = [t for t in node.inputs if t is not tensor]
        if len(others) != 1 or (node.op == "Add") != (len(chain) == 1):
            return []
        if node.op == "Add":
            if not is_number(others[0]) or others[0].shape or others[0].values != 1.0:
                return []
        elif (c := factor(node)) is not None:
            by *= float(c)
        else:
            data, multiple = (x, 1.0) if others[0] is x else _scaled(others[0])
            if node.op != "Mul" or data is not x or gated:
                return []
            by, gated = by * multiple, True
        chain.append(node)
    return chain[1:]
