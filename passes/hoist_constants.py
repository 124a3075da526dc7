"""What the bodies of control flow nodes hold, and compute of it at every turn, is the model's."""

from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxq.graph.model import INLINE_LIMIT, Model
from onnxq.pipeline import Outcome, Pass, Statistics

# What cannot fail: a body that is never run may hold what does.
SAFE = {"Add", "Cast", "Identity", "Mul", "Neg", "Sub", "Transpose", "Unsqueeze"}


class HoistConstants(Pass):
    """Bring constants out of the state of loops, and what is computed of them out of bodies.

    Exporters hand a Loop its weights as state, which a turn returns as it was. onnxruntime takes
    these for data: it computes anew at every turn what depends on them alone, and prepares no
    weights. Bodies read constants of the model as well.
    """

    name: ClassVar[str] = "hoist-constants"
    exact: ClassVar[bool] = True

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        if model.nbytes > INLINE_LIMIT:
            if next(model.graph.subgraphs(), None) is not None:
                outcome.skip("model", "too large: what bodies alone read is written inline")
            return outcome
        for node in model.nodes():  # the outer before the inner, which it may hand its constants
            if node.op == "Loop" and not node.domain:
                _free_state(model, node, outcome)
        for node in model.graph.nodes:
            for body in node.subgraphs(recursive=True):
                _hoist(model, body, outcome)
        model.tidy()
        return outcome


def _free_state(model: Model, loop: gs.Node, outcome: Outcome) -> None:
    """Let the body of a Loop read constants itself that are handed on from turn to turn."""
    body: gs.Graph = loop.attrs["body"]
    graphs = [model.graph, *model.graph.subgraphs(recursive=True)]
    leaving = {id(t) for graph in graphs for t in graph.outputs}
    returned = {t.name for graph in body.subgraphs(recursive=True) for t in graph.outputs}
    made = {t.name for node in body.nodes for t in node.outputs}
    states = min(len(loop.inputs) - 2, len(loop.outputs))
    for place in reversed(range(2, 2 + states)):
        constant, inner, kept = loop.inputs[place], body.inputs[place], body.outputs[place - 1]
        result = loop.outputs[place - 2]
        if not isinstance(constant, gs.Constant) or not _handed_on(inner, kept):
            continue
        known = {t.name for t in body.inputs if t is not inner} | made
        others = [t.name for i, t in enumerate(body.outputs) if i != place - 1]
        if constant.name in known or inner.name in returned.union(others) or id(result) in leaving:
            continue
        model.redirect(inner, constant)
        model.redirect(result, constant)
        for there in (loop.inputs, body.inputs):
            del there[place]
        del body.outputs[place - 1], loop.outputs[place - 2]
        outcome.edit(loop.name, f"{constant.name} is no state")


def _handed_on(inner: gs.Tensor, kept: gs.Tensor) -> bool:
    """Whether a turn returns what it was given."""
    maker = kept.inputs[0] if kept.inputs else None
    return kept is inner or (
        maker is not None and maker.op == "Identity" and maker.inputs[0] is inner
    )


def _hoist(model: Model, body: gs.Graph, outcome: Outcome) -> None:
    """Move nodes that read constants alone, or what was moved before, out of a body."""
    known, moved = set[int](), list[gs.Node]()
    own = {id(constant) for constant in model.inner_constants()}
    leaving = {id(t) for t in body.outputs}
    for node in body.nodes:
        given = [t for t in node.inputs if not t.is_empty()]
        constant = all(isinstance(t, gs.Constant) or id(t) in known for t in given)
        if not constant or node.op not in SAFE or node.domain:
            continue
        if any(id(t) in leaving for t in (*given, *node.outputs)):
            continue
        known |= {id(t) for t in node.outputs}
        moved.append(node)
        for tensor in (*node.outputs, *(t for t in given if id(t) in own)):
            tensor.name = model.fresh(tensor.name)  # bodies side by side may share names
        outcome.edit(node.name, f"{node.op} of constants is out of the body")
    body.nodes = [node for node in body.nodes if not any(node is other for other in moved)]
    model.graph.nodes += moved
