"""Regions: the tensors between layers through which a positive factor of each channel travels.

If channel i of every tensor of a region is divided by s_i > 0, the layers that make it (its
*sources*) divide their output channels, the layers that read it (its *sinks*) multiply their input
channels, and the model computes what it did. What lies between must hand the factors on:

| operator                                          | because                                   |
|---------------------------------------------------|-------------------------------------------|
| Identity, Relu, LeakyRelu, PRelu, MaxPool         | f(s x) = s f(x) for s > 0                 |
| AveragePool, GlobalAveragePool, ReduceMean, Resize | linear, each channel for itself          |
| Slice of pixels, Pad                              | pixels are chosen, or zeros beside them   |
| Mul with a number or with a gate                  | linear in its other operand               |
| Add                                               | operands and result take the same factors |
| Concat                                            | the result takes its operands' in turn    |
| Pad of channels with zeros                        | likewise; a zero is one at every scale    |
| Flatten, Reshape to rows, Squeeze                 | a channel becomes a block of neighbours   |
| Min with a ceiling of each channel                | min(x, c) / s = min(x / s, c / s)         |
| Clip(0, c), where ceilings are wanted             | it is a Relu and such a Min               |
| Clip(., 0)                                        | f(s x) = s f(x) for s > 0                 |
| Transpose of tokens                               | if it leaves the channels the last axis   |

Where norms are wanted, a LayerNormalization or RMSNormalization makes channels, too: its scale and
offset are divided.

Whatever else touches a channel freezes it: its factor is 1, and the region says why.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.channels import Channels, carrier, joined, made, normed, padded, passed, unreadable
from onnxq.graph.layers import Layer, layer_of, layers, twins
from onnxq.graph.model import Model
from onnxq.graph.moves import bounds, moved
from onnxq.graph.placement import READERS_OF_SHAPE
from onnxq.spec import Array, Floats

WHY = {
    "Add": "adds to it what no layer makes",
    "Clip": "cuts all channels off at one value",
    "Concat": "joins it to what no layer makes",
    "Mul": "multiplies it with another activation",
}
SHARED = "other layers have its weight, too"


@dataclass(frozen=True, eq=False)
class Ceiling:
    """A node that cuts each channel off at a value: a Min, or a Clip(0, c) that may become one.

    Attributes:
        node: The node.
        channels: Of its result.
        values: Float64 (channels,).
    """

    node: gs.Node
    channels: Channels
    values: Floats

    def set(self, model: Model, values: Floats) -> None:
        """Cut off at ``values``, (channels,), instead; a Clip becomes a Relu and a Min for that."""
        node, result = self.node, self.node.outputs[0]
        shaped = self.channels.shaped(values.astype(np.float32))
        ceiling = model.constant(f"{result.name}_ceiling", shaped)
        if node.op == "Min":
            node.inputs = [moved(node), ceiling]
            return
        uncut = model.variable(f"{result.name}_uncut")
        node.op, node.inputs, node.outputs = "Relu", node.inputs[:1], [uncut]
        model.add("Min", [uncut, ceiling], result)


@dataclass
class Region:
    """Channels that are scaled together, and all that takes part.

    The slice beside a layer, node or reason says which channels of the region it is about.

    Attributes:
        name: The first tensor.
        count: Channels, those of all operands of a Concat together.
        sources: Layers whose output channels they are.
        norms: Normalizations whose results they are.
        sinks: Layers that read them; of flattened ones, each is a block of input channels.
        between: Nodes that hand them on.
        tensors: All that have them, and where.
        ceilings: Those of them that cut channels off.
        obstacles: Why factors must be 1, a clause each.
    """

    name: str
    count: int = 0
    sources: list[tuple[Layer, slice]] = field(default_factory=list)
    norms: list[tuple[gs.Node, slice]] = field(default_factory=list)
    sinks: list[tuple[Layer, slice]] = field(default_factory=list)
    between: list[gs.Node] = field(default_factory=list)
    tensors: list[tuple[gs.Tensor, Channels, slice]] = field(default_factory=list)
    ceilings: list[tuple[Ceiling, slice]] = field(default_factory=list)
    obstacles: list[tuple[str, slice]] = field(default_factory=list)

    @property
    def free(self) -> Array:
        """Which channels can take a factor, bool (count,): made and read, and nothing against."""
        made, read, held = (
            _mask(self.count, [own for _, own in found])
            for found in ([*self.sources, *self.norms], self.sinks, self.obstacles)
        )
        return np.asarray(made & read & ~held)

    @property
    def reasons(self) -> str:
        """All that stands in the way, in one line; empty if nothing does."""
        told = list(dict.fromkeys(why for why, _ in self.obstacles))
        return "; ".join(told or ([] if self.sinks else ["no layer reads it"]))

    def divide(self, model: Model, s: Floats) -> None:
        """Divide the channels by s, (count,): all that makes, cuts off and reads them."""
        for layer, own in self.sources:
            layer.set_by_group(model, layer.by_group / over_outputs(layer, s[own])[..., None])
            if layer.bias is not None:
                layer.set_bias(model, layer.bias / s[own])
        for norm, own in self.norms:
            for i, tensor in enumerate(norm.inputs[1:], start=1):
                if isinstance(tensor, gs.Constant):
                    values = (tensor.values / s[own]).astype(np.float32)
                    norm.inputs[i] = model.constant(tensor.name, values)
        for ceiling, own in self.ceilings:
            ceiling.set(model, ceiling.values / s[own])
        for layer, own in self.sinks:
            layer.set_by_group(model, layer.by_group * over_inputs(layer, s[own])[..., None])
        self.shift_moments(model, np.zeros(self.count), s)

    def shift_moments(self, model: Model, c: Floats, s: Floats) -> None:
        """Keep the moments of the model up: each channel x became (x - c) / s, both (count,)."""
        for layer, own in self.sources:
            if layer.output.name in model.moments:
                mean, std = model.moments[layer.output.name]
                model.moments[layer.output.name] = (mean - c[own]) / s[own], std / s[own]
        for node in self.between:
            model.moments.pop(node.outputs[0].name, None)


def regions(model: Model, ceilings: bool = False, norms: bool = False) -> list[Region]:
    """The regions behind the layers of a model, in its order; no two share a tensor.

    Args:
        model: Its nodes are sorted.
        ceilings: Whether a Clip(0, c) may become a Relu and a Min.
        norms: Whether normalizations make channels, too; their regions come last.
    """
    return list(_Search(model, ceilings, norms))


def located(model: Model) -> dict[str, Channels]:
    """Where the tensors whose channels layers make have them, by name."""
    return _Search(model, ceilings=True, norms=False).channels


def unreached(model: Model, found: Sequence[Region]) -> Iterator[tuple[str, str]]:
    """Tensors that layers read and no region comes near, each with the reason, a clause.

    Where a region ends at what makes such a tensor, its obstacles have told.
    """
    near = {layer.output.name for region in found for layer, _ in region.sources}
    near |= {node.outputs[0].name for region in found for node in region.between}
    for name, tensor in {layer.data.name: layer.data for layer in layers(model)}.items():
        makers = list(tensor.inputs)
        if name not in near and not any(t.name in near for node in makers for t in node.inputs):
            told = [f"{node.op} {node.name}, not a layer, makes" for node in makers]
            yield name, f"{(told or ['the model is fed'])[0]} its channels"


def over_outputs(layer: Layer, s: Floats) -> Floats:
    """Factors of output channels as they broadcast over ``by_group``, reduced or not."""
    return s.reshape(layer.groups, -1, 1)


def over_inputs(layer: Layer, s: Floats) -> Floats:
    """Factors of input channels likewise; one of a flattened channel is that of its block."""
    return np.repeat(s, layer.c_in // len(s)).reshape(layer.groups, 1, -1)


def _mask(count: int, parts: Sequence[slice]) -> Array:
    mask = np.zeros(count, bool)
    for part in parts:
        mask[part] = True
    return mask


class _Search:
    """Iterates over the regions: each is flooded from the output of a layer.

    Attributes:
        ends: Layers by the name of the node at their end.
        fixed: Why a layer's weight is not to be scaled, by the layer's name.
        norms: Normalizations that make channels, by name.
        channels: Of every tensor whose channels these make, by name.
        operands: Node that hands channels on to its tensors that they come from, each with the
            place of its first channel in the result.
    """

    def __init__(self, model: Model, ceilings: bool, norms: bool) -> None:
        self.model, self.ceilings = model, ceilings
        self.captured = model.captured()
        twin = twins(layer for layer in layers(model) if layer.name not in model.kept_float)
        self.fixed = model.kept_float | dict.fromkeys(twin, SHARED)
        self.ends = {layer.end.name: layer for layer in layers(model)}
        self.norms: dict[str, gs.Node] = {}
        self.channels: dict[str, Channels] = {}
        self.operands: dict[str, list[tuple[gs.Tensor, int]]] = {}
        for node in model.graph.nodes:
            if (layer := self.ends.get(node.name)) is not None:
                if layer.obstacle is None:
                    self.channels[layer.output.name] = made(layer)
            elif norms and node.name not in model.kept_float and (scaled := normed(node)):
                self.norms[node.name] = node
                self.channels[node.outputs[0].name] = scaled
            elif (handed := self._handed(node)) is not None:
                self.operands[node.name], self.channels[node.outputs[0].name] = handed

    def __iter__(self) -> Iterator[Region]:
        seen: set[str] = set()
        for layer in self.ends.values():
            name = layer.output.name
            if layer.obstacle is not None:
                why = f"{layer.op} {layer.name}, which makes it: {layer.obstacle}"
                yield Region(name, obstacles=[(why, slice(0))])
            elif name not in seen:
                found, tangled = self._flood(layer.output)
                seen |= found.keys()
                yield self._region(name, found, tangled)
        for node in self.norms.values():
            if (name := node.outputs[0].name) not in seen:
                found, tangled = self._flood(node.outputs[0])
                seen |= found.keys()
                yield self._region(name, found, tangled)

    def _handed(self, node: gs.Node) -> tuple[list[tuple[gs.Tensor, int]], Channels] | None:
        """As ``operands``, and where the only result of the node has those channels."""
        if node.domain or len(node.outputs) != 1 or not node.inputs or layer_of(node) is not None:
            return None
        if node.op in ("Add", "Concat"):
            return self._joined(node)
        x = carrier(node)
        if x is None or (had := self.channels.get(x.name)) is None:
            return None
        if node.op == "Pad":
            grown = padded(node, had)
            return None if grown is None else ([(x, grown[1])], grown[0])
        cuts = node.op in ("Clip", "Min")
        channels = self._cut(node, had) if cuts else passed(node, had)
        return None if channels is None else ([(x, 0)], channels)

    def _joined(self, node: gs.Node) -> tuple[list[tuple[gs.Tensor, int]], Channels] | None:
        """Likewise of an Add or Concat."""
        found = [self.channels.get(t.name) for t in node.inputs]
        if (joint := joined(node, found)) is None:
            return None
        counts = [c.count if node.op == "Concat" else 0 for c in found if c is not None]
        return list(zip(node.inputs, accumulate(counts, initial=0), strict=False)), joint

    def _cut(self, node: gs.Node, had: Channels) -> Channels | None:
        """What a Clip or Min passes on, if factors may cross it."""
        ends = bounds(node)
        if ends is None:
            return None
        if node.op == "Clip" and ends[0] != 0.0:
            return had if ends[0] == -np.inf and ends[1] == 0.0 else None
        if node.op == "Min":
            return had if np.shape(ends[1]) == had.shaped(np.ones(had.count)).shape else None
        opened = self.ceilings and had.form != "flat" and node.name not in self.model.kept_float
        return had if ends[1] == np.inf or (opened and ends[1] > 0.0) else None

    def _flood(self, start: gs.Tensor) -> tuple[dict[str, tuple[gs.Tensor, int]], bool]:
        """Tensors that share channels with ``start``, each with the number of its first one.

        Numbers count from the first channel of ``start``. The second result says whether a
        tensor was met again under another number.
        """
        found: dict[str, tuple[gs.Tensor, int]] = {}
        tangled = False
        todo = [(start, 0)]
        while todo:
            tensor, at = todo.pop()
            if tensor.name in found:
                tangled |= found[tensor.name][1] != at
                continue
            found[tensor.name] = tensor, at
            for node in (*tensor.inputs, *tensor.outputs):
                shared = self._shared(node)
                for base in {at - offset for t, offset in shared if t is tensor}:
                    todo += [(t, base + offset) for t, offset in shared]
        return found, tangled

    def _shared(self, node: gs.Node) -> list[tuple[gs.Tensor, int]]:
        """Tensors at a node that hands channels on, each with its first among the result's."""
        operands = self.operands.get(node.name)
        return [] if operands is None else [*operands, (node.outputs[0], 0)]

    def _region(self, name: str, found: dict[str, tuple[gs.Tensor, int]], tangled: bool) -> Region:
        first = min(at for _, at in found.values())
        region = Region(name)
        for tensor, at in found.values():
            channels = self.channels[tensor.name]
            own = slice(at - first, at - first + channels.count)
            region.count = max(region.count, own.stop)
            region.tensors.append((tensor, channels, own))
            maker = tensor.inputs[0]
            if (layer := self.ends.get(maker.name)) is not None:
                region.sources.append((layer, own))
            elif maker.name in self.norms:
                region.norms.append((maker, own))
            else:
                region.between.append(maker)
                if (values := _ceilings(maker, channels)) is not None:
                    region.ceilings.append((Ceiling(maker, channels, values), own))
            for reader in tensor.outputs:
                sink = layer_of(reader)
                if sink is not None and sink.data is tensor and not unreadable(sink, channels):
                    region.sinks.append((sink, own))
            region.obstacles += [(why, own) for why in self._against(tensor, channels)]
        whole = slice(0, region.count)
        if tangled:
            region.obstacles.append(("its channels meet one another in another order", whole))
        made = {layer.name: own for layer, own in region.sources}
        for layer, own in region.sinks:
            # What gives a channel a factor of its own does so at any scale.
            if layer.name in made and not (layer.by_channel and made[layer.name] == own):
                region.obstacles.append((f"{layer.name} both makes and reads it", whole))
        return region

    def _against(self, tensor: gs.Tensor, channels: Channels) -> Iterator[str]:
        """Why the channels of a tensor cannot be scaled, as far as its own neighbours go."""
        if self.model.is_output(tensor):
            yield f"{tensor.name} is an output of the model"
        if tensor.name in self.captured:
            yield f"the body of a control flow node reads {tensor.name}"
        if (source := self.ends.get(tensor.inputs[0].name)) is not None:
            yield from self._against_source(source)
        for node in tensor.outputs:
            layer = layer_of(node)
            if layer is not None and layer.data is tensor:
                yield from self._against_sink(layer, channels)
            elif node.op in READERS_OF_SHAPE:
                continue
            elif not any(t is tensor for t, _ in self._shared(node)):
                what = WHY.get(node.op, "does not hand factors on")
                yield f"{node.op} {node.name} {what}"

    def _against_source(self, layer: Layer) -> Iterator[str]:
        why = self.fixed.get(layer.name)
        if why is None and layer.bias_or_zeros is None:
            why = "its bias is not one constant per output channel"
        inner = layer.node.outputs[0]
        if why is None and inner is not layer.output and self.model.is_output(inner):
            why = "it is an output of the model before its bias is added"
        if why is not None:
            yield f"{layer.op} {layer.name}, which makes it: {why}"

    def _against_sink(self, layer: Layer, channels: Channels) -> Iterator[str]:
        why = self.fixed.get(layer.name) or unreadable(layer, channels)
        if why is None and sum(t is layer.data for t in layer.node.inputs) > 1:
            why = "it is its bias, too"
        if why is not None:
            yield f"{layer.op} {layer.name}, which reads it: {why}"


def _ceilings(node: gs.Node, channels: Channels) -> Floats | None:
    """Where a node cuts each channel off, float64 (channels,); None if it does not."""
    ends = bounds(node) if node.op in ("Clip", "Min") else None
    if ends is None or np.min(ends[1]) == np.inf or (node.op == "Clip" and ends[0] != 0.0):
        return None
    return np.broadcast_to(ends[1].reshape(-1).astype(np.float64), channels.count)
