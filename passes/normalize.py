"""Bring the many spellings of a thing to one: constants are float32 initializers, a Sum is Adds."""

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.layers import ARITHMETIC, RANDOM, layer_of
from onnxq.graph.model import Model
from onnxq.graph.tensors import FLOAT, FLOAT16, is_number, size_of
from onnxq.pipeline import Outcome, Pass, Statistics
from onnxq.runtime import evaluate

# Results that are larger than this and than what they were made of are left to be made at load.
LARGEST_RESULT = 1 << 16
# A Sum of more would lose more by being rounded after every term than integers win.
MOST_TERMS = 4
# Not the same at every run, or no tensors; a Constant that is left holds strings or a sparse one.
UNFOLDED = RANDOM | {"Constant", "SequenceConstruct", "SequenceEmpty", "SplitToSequence"}


class Normalize(Pass):
    """Turn all that is computed from constants into constants, in float32.

    Graph inputs and outputs keep their type: a float16 model gets a Cast at either end. The alpha
    and beta of a Gemm move into its constants, a number that others multiply with or add has no
    axes, and a Sum of few, for which there is no integer kernel, is Adds in the same order.
    """

    name: ClassVar[str] = "normalize"
    exact: ClassVar[bool] = True

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        _upcast(model, outcome)
        fold_constants(model, outcome)
        model.tidy()
        for node in list(model.graph.nodes):
            if node.op == "Gemm":
                _absorb_factors(model, node, outcome)
            if node.op == "Sum" and not node.domain and len(node.inputs) > 1:
                _add_in_pairs(model, node, outcome)
        model.tidy()  # the new Adds stand at the end
        _strip_axes(model, outcome)
        return outcome


def _upcast(model: Model, outcome: Outcome) -> None:
    """Rewrite a float16 graph as a float32 one between two casts."""
    halves = [c for c in model.constants() if c.dtype == np.float16]
    if not halves:
        return
    if next(model.graph.subgraphs(), None) is not None:
        outcome.skip("float16", "the model has control flow, whose bodies keep their types")
        return
    for constant in halves:
        constant.values = constant.values.astype(np.float32)
    for node in model.graph.nodes:
        if node.op == "Cast" and node.attrs["to"] in (FLOAT16, np.float16):
            node.attrs["to"] = FLOAT
        if node.op == "ConstantOfShape" and "value" in node.attrs:
            value = node.attrs["value"]
            if value.dtype == np.float16:
                node.attrs["value"] = gs.Constant("", value.values.astype(np.float32))
    ends = {id(t) for t in (*model.graph.inputs, *model.graph.outputs)}
    for tensor in model.graph.tensors().values():
        if id(tensor) not in ends and isinstance(tensor, gs.Variable):
            tensor.dtype = np.float32 if tensor.dtype == np.float16 else tensor.dtype
    for tensor in [t for t in model.graph.inputs if t.dtype == np.float16]:
        wide = model.variable(f"{tensor.name}_float32")
        model.redirect(tensor, wide)
        model.add("Cast", [tensor], wide, to=FLOAT)
    for tensor in [t for t in model.graph.outputs if t.dtype == np.float16 and t.inputs]:
        wide = model.variable(f"{tensor.name}_float32")
        producer = tensor.inputs[0]
        model.redirect(tensor, wide)
        producer.outputs[[id(t) for t in producer.outputs].index(id(tensor))] = wide
        model.add("Cast", [wide], tensor, to=FLOAT16)
    outcome.edit("float16", f"{len(halves)} constants widened to float32")


def fold_constants(model: Model, outcome: Outcome) -> None:
    """Compute in one run everything that depends on constants alone."""
    # What each result is made of, in the end: bytes of constants, by their names.
    known: dict[str, dict[str, int]] = {}
    folded: list[gs.Node] = []
    for node in model.graph.nodes:
        given = [t for t in node.inputs if not t.is_empty()]
        constant = all(isinstance(t, gs.Constant) or t.name in known for t in given)
        if constant and not node.domain and node.op not in UNFOLDED and not any(node.subgraphs()):
            source: dict[str, int] = {}
            for t in given:
                made = isinstance(t, gs.Variable)
                source |= known[t.name] if made else {t.name: size_of(t)}
            known |= dict.fromkeys((t.name for t in node.outputs), source)
            folded.append(node)
    needed = [
        node
        for node in folded
        if any(not known.keys() & {t.name for t in r.outputs} for r in node.outputs[0].outputs)
        and len(node.outputs) == 1
    ]
    values = evaluate(model, [node.outputs[0] for node in needed])
    for node in needed:
        value = values[node.outputs[0].name]
        if value.nbytes > max(LARGEST_RESULT, sum(known[node.outputs[0].name].values())):
            outcome.skip(node.name, f"its {value.nbytes} bytes are made at load")
        elif model.become_constant(node, value):
            outcome.edit(node.name, f"constant {node.op} folded")


def _add_in_pairs(model: Model, node: gs.Node, outcome: Outcome) -> None:
    """Let a Sum be Adds, the last of which keeps its name."""
    if len(node.inputs) > MOST_TERMS:
        outcome.skip(node.name, f"a Sum of {len(node.inputs)} would be rounded as often")
        return
    total, *others, last = node.inputs
    for other in others:
        terms, total = [total, other], model.variable(f"{node.outputs[0].name}_part")
        model.add("Add", terms, total)
    node.op = "Add"
    node.inputs.clear()
    node.inputs.extend([total, last])
    outcome.edit(node.name, f"a Sum of {len(others) + 2} is {len(others) + 1} Add")


def _strip_axes(model: Model, outcome: Outcome) -> None:
    """Give a number that an arithmetic node reads no axes, where its data have as many anyway."""
    found = [
        (node, place, data)
        for node in model.graph.nodes
        if node.op in ARITHMETIC and not node.domain
        for place, data in ((0, node.inputs[1]), (1, node.inputs[0]))
        if is_number(node.inputs[place]) and node.inputs[place].shape
    ]
    ranks = model.ranks() if found else {}
    for node, place, data in found:
        number = node.inputs[place]
        if ranks.get(data.name, 0) >= len(number.shape):
            node.inputs[place] = model.constant(number.name, number.values.reshape(()))
            outcome.edit(node.name, "its number has no axes now")


def _absorb_factors(model: Model, node: gs.Node, outcome: Outcome) -> None:
    """Multiply alpha into the weight and beta into the bias where they are constants."""
    alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
    layer = layer_of(node)
    if layer is None or (alpha == 1.0 and beta == 1.0):
        return
    if beta != 1.0 and layer.bias_tensor is not None:
        bias = layer.bias_tensor
        if not isinstance(bias, gs.Constant):
            outcome.skip(node.name, "beta multiplies a bias that is not constant")
            return
        node.inputs[2] = model.constant(bias.name, bias.values * np.float32(beta))
    layer.set_weight(model, layer.weight * np.float32(alpha))
    node.attrs.pop("alpha", None)
    node.attrs.pop("beta", None)
    outcome.edit(node.name, f"alpha {alpha:g} and beta {beta:g} absorbed")
