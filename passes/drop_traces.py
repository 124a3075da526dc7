"""What an exporter wrote about the origin of each node can outweigh a small model's weights."""

from typing import ClassVar

from onnxq.graph.model import Model
from onnxq.pipeline import Outcome, Pass, Statistics


class DropTraces(Pass):
    """Remove the stack traces and module scopes that torch's exporter leaves on every node."""

    name: ClassVar[str] = "drop-traces"
    exact: ClassVar[bool] = True

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        if dropped := model.drop_traces():
            outcome.edit("model", f"{dropped} bytes of source traces dropped")
            outcome.remark("model", f"{dropped / 1024:.0f} KiB of the exporter's traces left out")
        return outcome
