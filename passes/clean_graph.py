"""Weights and biases that are still computed, not stored, are brought out by an optimizer."""

from collections.abc import Container
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxq.graph.layers import WEIGHTED
from onnxq.graph.model import INLINE_LIMIT, Model
from onnxq.graph.protos import check_proto, keep_names
from onnxq.passes.fold_sizes import fold_sizes
from onnxq.passes.normalize import fold_constants
from onnxq.pipeline import Outcome, Pass, Statistics

# Elements; what is larger is left to be made at load, as a grid of positions that is computed.
LARGEST_RESULT = 1 << 13


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
            after = optimizer.optimize(before, output_size_limit=LARGEST_RESULT)
        except Exception as cause:
            outcome.skip("model", f"the optimizer gave up ({type(cause).__name__}: {cause})")
            return outcome
        if (complaint := check_proto(after)) is not None and check_proto(before) is None:
            outcome.skip("model", f"what the optimizer makes of it is not valid: {complaint}")
            return outcome
        ends = [[t.name for t in p.graph.input] for p in (before, after)]
        if ends[0] != ends[1]:
            outcome.skip("model", "the optimizer renames its inputs")
            return outcome
        was, now = ([node.op_type for node in p.graph.node] for p in (before, after))
        if now != was:
            keep_names(before, after)
            _bequeath(model, {node.name for node in after.graph.node})
            model.replace_by(after)
            model.tidy()
            outcome.edit("model", f"{len(was)} nodes became {len(now)}")
            fold_constants(model, outcome)
            model.tidy()
            fold_sizes(model, outcome)
        return outcome


def _bequeath(model: Model, left: Container[str]) -> None:
    """Keep float what a node that is kept float became a part of: the next one that is left."""
    for node in model.graph.nodes:
        why, heir = model.kept_float.get(node.name), node
        while why is not None and heir.name not in left and heir.outputs[0].outputs:
            heir = heir.outputs[0].outputs[0]
            if heir.name in left:
                model.kept_float[heir.name] = why


def _hides_constants(model: Model) -> bool:
    """Whether there is anything the exact passes before this one could not see into."""
    if model.graph.functions or next(model.graph.subgraphs(), None) is not None:
        return True
    return any(
        node.op in (*WEIGHTED, "BatchNormalization")
        and not all(isinstance(t, gs.Constant) for t in node.inputs[1:])
        for node in model.graph.nodes
    )
