"""Which parts of a model can be trained: those that are lowered, as onnxruntime computes them."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs
import torch

from onnxq.graph.layers import layers
from onnxq.graph.model import Model
from onnxq.graph.tensors import reads
from onnxq.lowering import Lowered, Refused
from onnxq.runtime import Session
from onnxq.samples.lessons import Lessons
from onnxq.spec import Array

# Difference to onnxruntime, relative to a tensor's largest value, that float32 explains.
TOLERANCE = 1e-3
# Why layers are not trained, of a part that reads what has no row for each sample.
NOT_BY_SAMPLE = "what is read there cannot be told apart by sample"


@dataclass(frozen=True)
class Part:
    """Nodes that are trained together.

    Attributes:
        nodes: Their names.
        inputs: Names of the tensors that they read from outside, inputs of the model among them.
        outputs: Names of those that they hand on, outputs of the model among them.
    """

    nodes: set[str]
    inputs: list[str]
    outputs: list[str]


def refusals(model: Model, feeds: Mapping[str, Array]) -> dict[str, str]:
    """Nodes that are not lowered, or compute something else than onnxruntime, with the reason.

    Args:
        model: Float.
        feeds: One sample.
    """
    nodes = model.graph.nodes
    computed = [t.name for node in nodes for t in node.outputs if not t.is_empty()]
    known = {**feeds, **Session(model, taps=computed, optimize=False).run(feeds)}
    found: dict[str, str] = {}
    for node in nodes:
        if (why := _refusal(model, node, known)) is not None:
            found[node.name] = why
    return found


def _refusal(model: Model, node: gs.Node, known: Mapping[str, Array]) -> str | None:
    read = [t for t in node.inputs if not t.is_empty() and not isinstance(t, gs.Constant)]
    outputs = [t.name for t in node.outputs if not t.is_empty()]
    if not all(t.name in known for t in read) or not all(name in known for name in outputs):
        return "onnxruntime does not show what it reads or returns"
    try:
        given = {t.name: torch.from_numpy(np.array(known[t.name])) for t in read}
        with torch.no_grad():
            results = Lowered(model, [node.name]).run(given, outputs)
    except Refused as cause:
        return str(cause).removeprefix(f"{node.name}: ")
    except Exception as cause:
        return f"torch cannot compute it: {' '.join(str(cause).split())[:120]}"
    for name in outputs:
        x, y = known[name], results[name].numpy()
        if x.shape != y.shape or x.dtype != y.dtype:
            return "torch and onnxruntime give it another shape or type"
        if not np.allclose(x, y, rtol=0, atol=_rounding(x), equal_nan=True):
            return "torch and onnxruntime compute different values"
    return None


def _rounding(x: Array) -> float:
    """The difference to ``x`` that float32 explains: none for integers."""
    if x.dtype.kind != "f":
        return 0.0
    return TOLERANCE * max(float(np.abs(x[np.isfinite(x)]).max(initial=0)), 1e-6)


def parts(model: Model, refused: Container[str]) -> list[Part]:
    """The parts of a model with an integer weight, in order.

    Nodes are in one part if as many borders between lowered and refused nodes lie before them: no
    path then leaves a part and comes back.

    Args:
        model: In topological order, and planned.
        refused: Names of nodes that belong to no part.
    """
    stage: dict[str, int] = {}
    found: dict[int, list[gs.Node]] = {}
    for node in model.graph.nodes:
        side = int(node.name in refused)
        before = max((stage.get(t.name, 0) for t in reads(node)), default=0)
        here = before + (before % 2 != side)
        stage |= {t.name: here for t in node.outputs}
        if not side:
            found.setdefault(here, []).append(node)
    trained = (nodes for _, nodes in sorted(found.items()))
    return [_part(model, nodes) for nodes in trained if any(n.name in model.weights for n in nodes)]


def _part(model: Model, nodes: list[gs.Node]) -> Part:
    names = {node.name for node in nodes}
    made = {t.name: t for node in nodes for t in node.outputs if not t.is_empty()}
    read = {t.name: t for node in nodes for t in node.inputs if not t.is_empty()}
    inputs = [n for n, t in read.items() if n not in made and not isinstance(t, gs.Constant)]
    others = {t.name for node in model.graph.nodes if node.name not in names for t in reads(node)}
    outputs = [n for n, t in made.items() if n in others or model.is_output(t)]
    return Part(names, inputs, outputs)


def surroundings(
    part: Part, model: Model, reference: Model, lessons: Lessons
) -> tuple[Lessons | None, dict[str, Array] | None]:
    """What a part reads in the float model, as samples, and in the quantized one if that differs.

    None if that cannot be told apart by sample.
    """
    if not part.inputs:
        return None, None
    if set(part.inputs) <= lessons.feeds.keys():
        images = lessons.images if lessons.images in part.inputs else None
        given = {name: lessons.feeds[name] for name in part.inputs}
        return replace(lessons, feeds=given, images=images), None
    ours, own = (_run(m, part.inputs, lessons) for m in (reference, lessons.write(model)))
    if ours is None or own is None:
        return None, None
    return replace(lessons, feeds=ours, images=None), own


def _run(model: Model, wanted: Sequence[str], lessons: Lessons) -> dict[str, Array] | None:
    """Tensors of a model on all samples, by onnxruntime; None if they have no row for each."""
    size = lessons.fixed or 1
    session = Session(model, taps=[name for name in wanted if name not in lessons.feeds])
    found: dict[str, list[Array]] = {name: [] for name in wanted}
    for start in range(0, lessons.count, size):
        feeds = lessons.rows(np.arange(start, start + size) % lessons.count)
        results = session.run(feeds) | feeds
        for name in wanted:
            if np.shape(results[name])[:1] != (size,):
                return None
            found[name].append(results[name])
    if any(x.shape != whole[0].shape for whole in found.values() for x in whole):
        return None
    return {name: np.concatenate(whole)[: lessons.count] for name, whole in found.items()}


def give_biases(model: Model) -> None:
    """Give every layer a bias that can be trained, if it can have one."""
    for layer in list(layers(model)):
        # Behind a weight on the left, no bias would be seen as the layer's.
        bare = layer.bias_tensor is None and (layer.op != "MatMul" or layer.weight_index == 1)
        bare = bare and layer.name in model.weights
        if bare and (zeros := layer.bias_or_zeros) is not None:
            layer.set_bias(model, zeros)
    model.tidy()
