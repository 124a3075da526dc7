"""A graph as a torch module: every node a function, run one after the other."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from torch import Tensor, nn

from onnxq.lowering.registry import Function, Refused, bind, tensor_of
from onnxq.model import Model


@dataclass(frozen=True)
class Step:
    """A node, bound.

    Attributes:
        name: Of the node.
        op: Its operator.
        function: Of its inputs.
        inputs: Names of tensors, empty where an optional input is missing.
        outputs: Likewise.
    """

    name: str
    op: str
    function: Function
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Lowered(nn.Module):
    """A model, or some of its nodes, as a differentiable function of named tensors.

    Args:
        model: Not edited.
        nodes: Names of the nodes to lower; all by default.
        own: Functions for operators that are not ONNX's, by operator.

    Raises:
        Refused: A node cannot be lowered; the text names it.
    """

    def __init__(
        self,
        model: Model,
        nodes: Iterable[str] | None = None,
        own: Mapping[str, Callable[[gs.Node], Function]] | None = None,
    ) -> None:
        super().__init__()
        wanted = None if nodes is None else set(nodes)
        self.steps: list[Step] = []
        self._constants: dict[str, str] = {}
        for node in model.graph.nodes:
            if wanted is None or node.name in wanted:
                self._add(node, model.opset, own or {})
        self.inputs = [t.name for t in model.graph.inputs]
        self.outputs = [t.name for t in model.graph.outputs]

    def _add(
        self, node: gs.Node, opset: int, own: Mapping[str, Callable[[gs.Node], Function]]
    ) -> None:
        try:
            function = own[node.op](node) if node.op in own else bind(node, opset)
            for tensor in node.inputs:
                if isinstance(tensor, gs.Constant) and tensor.name not in self._constants:
                    key = f"constant{len(self._constants)}"
                    self.register_buffer(key, tensor_of(np.asarray(tensor.values)))
                    self._constants[tensor.name] = key
        except Refused as cause:
            raise Refused(f"{node.name}: {cause}") from cause
        names = (tuple(t.name for t in side) for side in (node.inputs, node.outputs))
        self.steps.append(Step(node.name, node.op, function, *names))

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """The graph's outputs from its inputs, in order."""
        found = self.run(dict(zip(self.inputs, inputs, strict=True)), self.outputs)
        return [found[name] for name in self.outputs]

    def run(self, given: Mapping[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
        """Named tensors from named tensors; steps that they do not need do not run.

        Args:
            given: Values, which also take the place of constants and of what would compute them.
            wanted: Names of what to return.

        Raises:
            Refused: A step cannot do what the values ask for; the text names it.
        """
        steps = self._needed(given.keys(), wanted)
        last = {name: i for i, step in enumerate(steps) for name in step.inputs}
        keep = set(wanted)
        values = {name: getattr(self, key) for name, key in self._constants.items()}
        values |= given
        for i, step in enumerate(steps):
            try:
                found = step.function(*(values[n] if n else None for n in step.inputs))
            except Refused as cause:
                raise Refused(f"{step.name}: {cause}") from cause
            results = (found,) if isinstance(found, Tensor) else found
            values |= {n: x for n, x in zip(step.outputs, results, strict=False) if n}
            for name in step.inputs:
                if last[name] == i and name not in keep and name not in self._constants:
                    values.pop(name, None)
        return {name: values[name] for name in wanted}

    def _needed(self, given: Iterable[str], wanted: Sequence[str]) -> list[Step]:
        """The steps that lead from what is given to what is wanted."""
        there = set(given) | self._constants.keys()
        missing, found = set(wanted) - there, []
        for step in reversed(self.steps):
            if not missing.isdisjoint(step.outputs):
                found.append(step)
                missing |= set(step.inputs) - there
        return found[::-1]
