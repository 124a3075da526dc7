"""Which layers of a model onnxruntime really runs on integer kernels."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from onnxq.graph.layers import WEIGHTED
from onnxq.graph.model import Model
from onnxq.graph.storage import stored_names
from onnxq.runtime import optimized_graph, runs_on_integers


@dataclass
class Kernels:
    """Census of an optimised graph.

    Attributes:
        integer: Weighted layer to the integer kernel that computes it.
        floating: Weighted layers computed in floats.
        operators: Every operator of the optimised graph with its count.
    """

    integer: dict[str, str] = field(default_factory=dict)
    floating: list[str] = field(default_factory=list)
    operators: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """All weighted layers."""
        return len(self.integer) + len(self.floating)


def census(model: Model, file: Path | None = None) -> Kernels:
    """Count the kernels onnxruntime uses for ``model``.

    A fused node has another name, but it still reads the layer's stored weight: that is how the two
    are matched.

    Args:
        model: The model.
        file: Its file, if it should be loaded from there.
    """
    graph = optimized_graph(file or model)
    readers = {name: node.op_type for node in graph.node if runs_on_integers(node)
               for name in node.input}  # fmt: skip
    found = Kernels(operators=Counter(node.op_type for node in graph.node))
    for node in model.graph.nodes:
        if node.op not in WEIGHTED or node.domain or len(node.inputs) < 2:
            continue
        stored = [name for tensor in node.inputs[:2] for name in stored_names(tensor)]
        if not stored:
            continue
        kernel = next((readers[name] for name in stored if name in readers), None)
        if kernel is None:
            found.floating.append(node.name)
        else:
            found.integer[node.name] = kernel
    return found
