"""Blocks of a network: what lies between two tensors that everything flows through.

Where the branches of a residual connection meet, a block ends (Li et al. 2021, BRECQ, sec. 3.2);
on a chain, each layer with what follows it is one.
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxq.model import Model


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
    """The blocks of a model, in order.

    Args:
        model: In topological order, and planned.
        ends: Tensors that a block may end with, besides an output of the model.
    """
    found: list[Block] = []
    source: str | None = None
    inside: list[str] = []
    for node, alive in _alive(model):
        if node is not None and node.name in model.weights:
            inside.append(node.name)
        if len(alive) != 1:
            continue
        (result,) = alive
        if inside and source is not None:
            if result not in ends and not _leaves(model, result):
                continue
            found.append(Block(source, result, tuple(inside)))
        source, inside = result, []
    return found


def _alive(model: Model) -> Iterator[tuple[gs.Node | None, set[str]]]:
    """Before and behind every node, the tensors computed from inputs that are still to be read."""
    nodes = model.graph.nodes
    last = {t.name: i for i, node in enumerate(nodes) for t in node.inputs}
    last |= {t.name: len(nodes) for t in model.graph.outputs}
    alive = {t.name for t in model.graph.inputs}
    yield None, alive
    for i, node in enumerate(nodes):
        if any(t.name in alive for t in node.inputs):
            alive |= {t.name for t in node.outputs if t.name in last}
        alive = {name for name in alive if last[name] > i}
        yield node, set(alive)


def _leaves(model: Model, name: str) -> bool:
    return any(t.name == name for t in model.graph.outputs)
