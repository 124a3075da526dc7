"""Constant folding and common simplifications, by the optimizer that ships with onnxscript."""

from typing import ClassVar

from onnxq.model import INLINE_LIMIT, Model
from onnxq.pipeline import Outcome, Pass, Statistics


class CleanGraph(Pass):
    """Fold constants and shape arithmetic, and inline functions, with onnxscript's optimizer."""

    name: ClassVar[str] = "clean-graph"
    exact: ClassVar[bool] = True

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        if model.nbytes > INLINE_LIMIT:
            outcome.skip("model", "too large to hand to the optimizer")
            return outcome
        before = len(model.graph.nodes)
        # Imported late: it costs half a second, and commands that only read never need it.
        from onnxscript import optimizer

        try:
            proto = optimizer.optimize(model.to_proto())
        except Exception as cause:
            outcome.skip("model", f"the optimizer gave up ({type(cause).__name__}: {cause})")
            return outcome
        model.replace_by(proto)
        model.tidy()
        after = len(model.graph.nodes)
        if after != before:
            outcome.edit("model", f"{before} nodes became {after}")
        return outcome
