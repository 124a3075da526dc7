"""A graph as a torch module: every node a function, run one after the other."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
import torch
from torch import Tensor, nn

from onnxq.graph.model import Model
from onnxq.lowering.registry import Function, Refused, bind, tensor_of


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


@dataclass(frozen=True)
class Plan:
    """How some tensors come from others.

    Attributes:
        constants: Names of those that are read.
        steps: In order, each with the names of its outputs, empty where nobody needs one, and those
            of the tensors that nobody needs after it.
    """

    constants: list[str]
    steps: list[tuple[Step, list[str], list[str]]]


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
        # Shapes and indices stay where torch wants them, on the CPU, wherever the module goes.
        self._integers: dict[str, Tensor] = {}
        self._plans: dict[tuple[frozenset[str], tuple[str, ...]], Plan] = {}
        for node in model.graph.nodes:
            if wanted is None or node.name in wanted:
                try:
                    self._add(node, model.opset, own or {})
                except Refused as cause:
                    raise Refused(f"{node.name}: {cause}") from cause
        self._keep_all(model.graph.outputs)
        self.inputs = [t.name for t in model.graph.inputs]
        self.outputs = [t.name for t in model.graph.outputs]

    def _add(
        self, node: gs.Node, opset: int, own: Mapping[str, Callable[[gs.Node], Function]]
    ) -> None:
        function = own[node.op](node) if node.op in own else bind(node, opset)
        if node.op == "Constant":
            value = function()
            assert isinstance(value, Tensor)
            self._keep(node.outputs[0].name, value)
            return
        self._keep_all(node.inputs)
        names = (tuple(t.name for t in side) for side in (node.inputs, node.outputs))
        self.steps.append(Step(node.name, node.op, function, *names))

    def _keep_all(self, tensors: Iterable[gs.Tensor]) -> None:
        for tensor in tensors:
            known = tensor.name in self._constants or tensor.name in self._integers
            if isinstance(tensor, gs.Constant) and not known:
                self._keep(tensor.name, tensor_of(np.asarray(tensor.values)))

    def _keep(self, name: str, value: Tensor) -> None:
        if value.dtype == torch.int64:
            self._integers[name] = value
        else:
            self._constants[name] = key = f"constant{len(self._constants)}"
            self.register_buffer(key, value)

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
        plan = self._plan(frozenset(given), tuple(wanted))
        values = {name: getattr(self, self._constants[name]) for name in plan.constants}
        values |= self._integers
        values |= given
        for step, outputs, dead in plan.steps:
            values[""] = None  # what an optional input is that is missing
            try:
                found = step.function(*[values[name] for name in step.inputs])
            except (Refused, NotImplementedError) as cause:
                raise Refused(f"{step.name}: {cause}") from cause
            except Exception as cause:
                cause.add_note(f"in the node {step.name}")
                raise
            results = (found,) if isinstance(found, Tensor) else found
            values.update(zip(outputs, results, strict=False))
            for name in dead:
                del values[name]
        return {name: values[name] for name in wanted}

    def _plan(self, given: frozenset[str], wanted: tuple[str, ...]) -> Plan:
        """The steps that lead from what is given to what is wanted; found once."""
        if (given, wanted) in self._plans:
            return self._plans[given, wanted]
        there = given | self._constants.keys() | self._integers.keys() | {""}
        computed, found = set(wanted) - there, []
        for step in reversed(self.steps):
            if not computed.isdisjoint(step.outputs):
                found.append(step)
                computed |= set(step.inputs) - there
        steps, alive = [], set(wanted)
        for step in found:
            outputs = [name if name in computed else "" for name in step.outputs]
            steps.append((step, outputs, list((computed & set(step.inputs)) - alive)))
            alive |= set(step.inputs)
        constants = [name for name in self._constants if name in alive - given]
        plan = self._plans[given, wanted] = Plan(constants, steps[::-1])
        return plan
