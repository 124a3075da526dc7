"""Both networks on all samples, up to where training is: what a unit reads, and should return."""

from collections.abc import Mapping, Sequence, Set
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from onnxq.graph.blocks import Block, flow
from onnxq.graph.model import Model
from onnxq.learned.augmentation import channels_last
from onnxq.learned.network import QuantizedNetwork
from onnxq.learned.parts import Part
from onnxq.learned.teaching import Tensors
from onnxq.lowering import Lowered
from onnxq.samples.lessons import Lessons
from onnxq.spec import Array, Ints


class Prefix:
    """A float network and a quantized one, and what is alive in them before the next unit.

    Each node runs once for each network, on the way from unit to unit.

    Args:
        model: Planned.
        reference: The float model.
        part: What of them.
        samples: What the float network reads.
        own: What the quantized one reads, where that is something else.
        size: Samples that run together.

    Attributes:
        lessons: The samples, and the rest.
        size: Samples that run together, unless their number is fixed.
        device: Where is computed; what is held lies in the memory of the CPU.
        teacher: The float network.
        network: The quantized one, frozen.
        floats: Tensors of the float network on all samples, by name.
        quantized: Likewise, of the quantized one.
        target: What the unit returns in the float network, on all samples.
    """

    def __init__(
        self,
        model: Model,
        reference: Model,
        part: Part,
        samples: Lessons,
        own: Mapping[str, Array] | None,
        size: int,
    ) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        nodes = part.nodes & {node.name for node in reference.graph.nodes}
        self.teacher = Lowered(reference, nodes).to(self.device)
        self.network = QuantizedNetwork(model, part.nodes).to(self.device).requires_grad_(False)
        self.lessons, self.size = samples, size
        self._inputs = tuple(
            {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in feeds.items()}
            for feeds in (samples.feeds, samples.feeds if own is None else own)
        )
        self.floats, self.quantized = self._inputs
        self.target = torch.empty(0)
        self._alive = tuple(_alive_before(m, part) for m in (reference, model))

    def advance(self, unit: Block) -> str | None:
        """Compute what nodes from the first layer of a unit on read, and what it should return.

        What has no row of floats for each sample is not held, but computed from the inputs again
        when something needs it. Returns why the unit cannot be trained, if so.
        """
        # A bias that the float model lacks is a node, with a tensor before it, in the other alone.
        floats, quantized = (
            [unit.source, *sorted(alive[unit.layers[0]] - {unit.source})] for alive in self._alive
        )
        with torch.no_grad():
            own, network = self.network.given(), self.network.lowered
            self.quantized = self._run(network, own, self._inputs[1], self.quantized, quantized)
            self.floats = self._run(self.teacher, {}, self._inputs[0], self.floats, floats)
            found = self._run(self.teacher, {}, self._inputs[0], self.floats, [unit.result])
        if unit.source not in self.floats or unit.source not in self.quantized or not found:
            return "what it reads or returns is no row of floats for each sample"
        self.target = found[unit.result]
        self.floats = self.floats | found
        return None

    def rows(self, x: Tensor, rows: Ints) -> Tensor:
        """Some samples of a tensor that is held, to compute with."""
        return channels_last(x[torch.from_numpy(rows)].to(self.device))

    def _run(
        self, network: Lowered, own: Tensors, inputs: Tensors, held: Tensors, wanted: Sequence[str]
    ) -> Tensors:
        """Tensors on all samples, of those that have a row of floats for each."""
        count = self.lessons.count
        found: dict[str, list[Tensor]] = {name: [] for name in wanted}
        for rows in self.lessons.portions(np.arange(count), self.size):
            feeds = {name: self.rows(x, rows) for name, x in {**inputs, **held}.items()}
            for name, x in network.run({**own, **feeds}, wanted).items():
                if x.is_floating_point() and x.ndim and len(x) == len(rows):
                    found[name].append(x.cpu())
        whole = {name: torch.cat(pieces)[:count] for name, pieces in found.items() if pieces}
        return {name: x for name, x in whole.items() if len(x) == count}


def _alive_before(model: Model, part: Part) -> dict[str, Set[str]]:
    """The tensors of a part that are still to be read before each node, by its name."""
    made = {t.name for n in model.graph.nodes if n.name in part.nodes for t in n.outputs}
    known, stops = made | {*part.inputs}, pairwise(flow(model))
    return {node.name: known & alive for (_, alive), (node, _) in stops if node is not None}
