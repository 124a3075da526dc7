"""Blocks of a network: what lies between two tensors that everything flows through.

Where the branches of a residual connection meet, a block ends (Li et al. 2021, BRECQ, sec. 3.2);
on a chain, each layer with what follows it is one. Where so many branches lie side by side that
nothing flows through one tensor for long, as in the head of a detector, every layer is a block of
its own, since what a large block returns says too little about each of its layers.
"""

from collections.abc import Container, Iterator, Set
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxq.graph.layers import Layer, layers
from onnxq.graph.model import Model
from onnxq.graph.moves import ACTIVATIONS
from onnxq.graph.tensors import reads

# Layers of a block, at most.
MOST_LAYERS = 12


@dataclass(frozen=True)
class Block:
    """Part of a model that one tensor leads into and one leads out of.

    Attributes:
        source: Name of the tensor that it reads.
        result: Name of the one that it computes.
        layers: Names of its layers with an integer weight, at least one.
    """

    source: str
    result: str
    layers: tuple[str, ...]


def blocks(model: Model, ends: Container[str]) -> list[Block]:
    """The blocks of a model, in the order of their first layers; each layer is in one of them.

    Args:
        model: In topological order, and planned.
        ends: Tensors that a block may end with, besides outputs of the model and those in which
            branches meet.
    """
    found: list[Block] = []
    source: str | None = None
    inside: list[str] = []
    for node, alive in flow(model):
        # What is computed from constants alone is no part of the flow.
        flowing = node is not None and any(t.name in alive for t in node.outputs)
        if node is not None and flowing and node.name in model.weights:
            inside.append(node.name)
        if len(alive) != 1:
            continue
        (result,) = alive
        if inside and source is not None:
            if result not in ends and not _ends(model, node, result):
                continue
            found.append(Block(source, result, tuple(inside)))
        source, inside = result, []
    small = [block for block in found if len(block.layers) <= MOST_LAYERS]
    covered = {name for block in small for name in block.layers}
    alone = [block for block in single_layers(model, ends) if block.layers[0] not in covered]
    first = {block.layers[0]: block for block in (*small, *alone)}
    return [first[layer.name] for layer in layers(model) if layer.name in first]


def single_layers(model: Model, ends: Container[str]) -> list[Block]:
    """Every layer with the activation function behind it as a block, in order.

    Args:
        model: In topological order, and planned.
        ends: Tensors that a block may end with before its activation function.
    """
    found = (layer for layer in layers(model) if layer.name in model.weights)
    return [Block(la.data.name, _activated(model, la, ends), (la.name,)) for la in found]


def nodes_of(model: Model, block: Block) -> list[gs.Node]:
    """The nodes that lead from the source of a block to its result, in order."""
    wanted, found = {block.result}, []
    for node in reversed(model.graph.nodes):
        if any(t.name in wanted and t.name != block.source for t in node.outputs):
            found.append(node)
            wanted |= {t.name for t in reads(node)}
    return found[::-1]


def _activated(model: Model, layer: Layer, ends: Container[str]) -> str:
    """The result of a layer, behind activation functions, and biases, that read nothing else."""
    tensor = layer.output
    while tensor.name not in ends and (reader := model.single_consumer(tensor)) is not None:
        if reader.op not in (*ACTIVATIONS, "Add") or _variables(reader) > 1:
            break
        tensor = reader.outputs[0]
    return str(tensor.name)


def flow(model: Model) -> Iterator[tuple[gs.Node | None, Set[str]]]:
    """Before and behind every node, the tensors computed from inputs that are still to be read."""
    nodes = model.graph.nodes
    last = {t.name: i for i, node in enumerate(nodes) for t in reads(node)}
    last |= {t.name: len(nodes) for t in model.graph.outputs}
    alive = {t.name for t in model.graph.inputs}
    yield None, alive
    for i, node in enumerate(nodes):
        if any(t.name in alive for t in reads(node)):
            alive = alive | {t.name for t in node.outputs if t.name in last}
        alive = {name for name in alive if last[name] > i}
        yield node, alive


def _ends(model: Model, node: gs.Node | None, name: str) -> bool:
    """Whether a tensor leaves the model, or branches meet in it and no activation follows."""
    if any(t.name == name for t in model.graph.outputs):
        return True
    made = {t.name: t for t in node.outputs} if node is not None else {}
    if name not in made or _variables(node) < 2:
        return False
    reader = model.single_consumer(made[name])
    return reader is None or reader.op not in ACTIVATIONS


def _variables(node: gs.Node) -> int:
    return len({t.name for t in node.inputs if isinstance(t, gs.Variable) and not t.is_empty()})
