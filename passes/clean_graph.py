"""Weights and biases that are still computed, not stored, are brought out by an optimizer."""

from typing import ClassVar

import onnx
import onnx_graphsurgeon as gs
from onnx import ModelProto

from onnxq.layers import WEIGHTED
from onnxq.model import INLINE_LIMIT, Model
from onnxq.pipeline import Outcome, Pass, Statistics


class CleanGraph(Pass):
    """Run onnxscript's optimizer where functions, branches or computed weights hide constants."""

    name: ClassVar[str] = "clean-graph"
    exact: ClassVar[bool] = True

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        if not _hides_constants(model):
            return outcome
        if model.nbytes > INLINE_LIMIT:
            outcome.skip("model", "too large to hand to the optimizer")
            return outcome
        # Imported late: it costs half a second, and commands that only read never need it.
        from onnxscript import optimizer

        before = model.to_proto()
        try:
            after = optimizer.optimize(before)
        except Exception as cause:
            outcome.skip("model", f"the optimizer gave up ({type(cause).__name__}: {cause})")
            return outcome
        if (complaint := _complaint(after)) is not None and _complaint(before) is None:
            outcome.skip("model", f"what the optimizer makes of it is not valid: {complaint}")
            return outcome
        was, now = ([node.op_type for node in p.graph.node] for p in (before, after))
        if now != was:
            _keep_names(before, after)
            model.replace_by(after)
            model.tidy()
            outcome.edit("model", f"{len(was)} nodes became {len(now)}")
        return outcome


def _complaint(proto: ModelProto) -> str | None:
    """What onnx's checker has to say against a model; None if nothing."""
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as complaint:
        return " ".join(str(complaint).split())
    return None


def _keep_names(before: ModelProto, after: ModelProto) -> None:
    """Call a node what the one was called that made its first result: users know it by that."""
    names = {name: node.name for node in before.graph.node for name in node.output if name}
    for node in after.graph.node:
        node.name = names.get(node.output[0], node.name)


def _hides_constants(model: Model) -> bool:
    """Whether there is anything the exact passes before this one could not see into."""
    if model.graph.functions or next(model.graph.subgraphs(), None) is not None:
        return True
    return any(
        node.op in (*WEIGHTED, "BatchNormalization")
        and not all(isinstance(t, gs.Constant) for t in node.inputs[1:])
        for node in model.graph.nodes
    )
