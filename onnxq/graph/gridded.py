"""What of the regions of a model is rounded, and how much of the noise layers see.

A tensor's noise counts in each channel with the power of the weights that it meets, relative to
what the layer returns: |W_i|^2 / sum_j |W_j|^2 E[x_j^2], summed over the layers it reaches. A
depthwise layer does not mix channels: it passes noise on to those behind it. A mean over all pixels
leaves little of it.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.channels import Channels
from onnxq.graph.gates import Gate
from onnxq.graph.layers import Layer
from onnxq.graph.model import Model
from onnxq.graph.placement import Placement, root_of, without_products
from onnxq.graph.regions import Region
from onnxq.numerics.observe import ChannelSample, Observer
from onnxq.numerics.smoothing import Read
from onnxq.numerics.unfold import Window
from onnxq.spec import Floats

MEANS = {"GlobalAveragePool", "ReduceMean"}


def observers(model: Model, found: Iterable[Region]) -> dict[str, Observer]:
    """A sample of every tensor that layers read, or that is rounded and can take factors.

    Args:
        model: Its nodes are sorted.
        found: Regions of it.
    """
    placement = without_products(model)
    samples: dict[str, Observer] = {}
    for region in found:
        sizes = {layer.data.name: layer.c_in for layer, _ in _mixing(region)}
        for tensor, channels, _ in _tensors(region, placement):
            n = channels.rank - 2
            pixel = Window((1,) * n, (1,) * n, (1,) * n, (0,) * 2 * n) if n > 0 else None
            samples[tensor.name] = ChannelSample(pixel, sizes.get(tensor.name, channels.count))
    return samples


class Gridded:
    """The tensors of regions that layers read or that have a grid of their own.

    Args:
        model: Its nodes are sorted.
        found: Regions of it.
        gates: Of its tensors.
        samples: What ``observers`` of that became.
    """

    def __init__(
        self,
        model: Model,
        found: Sequence[Region],
        gates: Iterable[Gate],
        samples: Mapping[str, Observer],
    ) -> None:
        self._samples, self._placement = samples, without_products(model)
        self._gates = {gate.data.name: gate for gate in gates}
        sinks = [sink for region in found for sink in _mixing(region)]
        # Power of weights relative to that of what their layer returns, (channels,).
        self._relative = {layer.name: self._of_signal(layer, own) for layer, own in sinks}
        self._powers = self._reached(model, found)

    def reads(self, region: Region, bits: int) -> list[Read]:
        """The tensors of a region as ``smoothing.factors`` wants them.

        Args:
            region: One of the regions.
            bits: Of what layers read.
        """
        layers: dict[str, list[tuple[int, Floats]]] = {}
        for layer, _ in _mixing(region):
            power = self._relative[layer.name]
            layers.setdefault(layer.data.name, []).append((layer.groups, power))
        roots, found = set(self._placement.roots), []
        for tensor, channels, own in _tensors(region, self._placement):
            rows, slopes = self._rows(tensor, channels.count), None
            if (gate := self._gate(tensor, rows)) is not None:
                rows = np.maximum(rows, _floors(gate, rows).astype(np.float32))
                slopes = gate.derivative(rows).astype(np.float32)
            power = self._powers[tensor.name] * (root_of(tensor, self._placement)[0] in roots)
            read = layers.get(tensor.name, [])
            found.append(Read(own, rows, bits if read else 8, power, read, slopes))
        return found

    def cut_off(self, model: Model, region: Region, s: Floats) -> None:
        """Cut off what gates shut out of tensors that were divided by s, (channels,)."""
        for tensor, channels, own in region.tensors:
            if tensor.name not in self._gates or tensor.name not in self._samples:
                continue
            rows = self._rows(tensor, channels.count)
            if (gate := self._gate(tensor, rows)) is not None:
                floor = np.asarray(np.min(_floors(gate, rows) / s[own]), np.float32)
                if floor > np.min(rows.min(axis=0) / s[own]):
                    cut = model.variable(f"{tensor.name}_cut")
                    model.redirect(tensor, cut)
                    model.add("Clip", [tensor, model.constant(f"{tensor.name}_floor", floor)], cut)

    def _reached(self, model: Model, found: Sequence[Region]) -> dict[str, Floats]:
        """What noise in the channels of each tensor is weighed with, float64 (channels,)."""
        order = {node.name: i for i, node in enumerate(model.graph.nodes)}
        places = [(tensor, own, region) for region in found for tensor, _, own in region.tensors]
        spans = {(region.name, tensor.name): own for tensor, own, region in places}
        powers: dict[str, Floats] = {}
        for tensor, own, region in sorted(places, key=lambda p: -order[p[0].inputs[0].name]):
            total = np.zeros(region.count)
            for layer, reads in region.sinks:
                if layer.data is tensor:
                    later = powers.get(layer.output.name, np.zeros(layer.c_out))
                    if layer.by_channel or (layer.depthwise and later.any()):
                        total[reads] += _power(layer, reads) * later
                    else:
                        total[reads] += self._relative[layer.name]
            for node in tensor.outputs:
                result = node.outputs[0].name
                if (region.name, result) in spans and node.op not in MEANS:
                    total[spans[region.name, result]] += powers[result]
            powers[tensor.name] = total[own]
        return powers

    def _of_signal(self, layer: Layer, own: slice) -> Floats:
        power, rows = _power(layer, own), self._rows(layer.data, own.stop - own.start)
        signal = power @ np.square(rows, dtype=np.float64).mean(axis=0) if rows.size else 0.0
        return power / signal if 0.0 < signal < np.inf else power

    def _rows(self, tensor: gs.Tensor, count: int) -> Floats:
        """A sample as (n, channels): those of a flattened channel are below each other."""
        sample = self._samples[tensor.name]
        assert isinstance(sample, ChannelSample)
        (rows,) = sample.rows
        blocks = rows.reshape(len(rows), count, rows.shape[1] // count)
        return np.asarray(blocks.swapaxes(1, 2).reshape(-1, count))

    def _gate(self, tensor: gs.Tensor, rows: Floats) -> Gate | None:
        """The gate of a tensor, where something is known of its values."""
        known = rows.size > 0 and bool(np.isfinite(rows).all())
        return self._gates.get(tensor.name) if known else None


def _tensors(region: Region, placement: Placement) -> list[tuple[gs.Tensor, Channels, slice]]:
    """What layers read, and if the region can take factors, all else with a grid of its own."""
    read = {layer.data.name for layer, _ in _mixing(region)}
    roots = set(placement.roots) if region.free.any() else set()
    roots -= {root_of(layer.data, placement)[0] for layer, _ in _mixing(region)}
    return [
        (tensor, channels, own)
        for tensor, channels, own in region.tensors
        if tensor.name in read or (tensor.name in roots and channels.form != "flat")
    ]


def _mixing(region: Region) -> list[tuple[Layer, slice]]:
    """The sinks that do more than multiply channels."""
    return [(layer, own) for layer, own in region.sinks if not layer.by_channel]


def _power(layer: Layer, own: slice) -> Floats:
    """Power of a layer's weights for each channel that it reads, float64 (channels,)."""
    power = np.square(layer.by_group, dtype=np.float64).sum(axis=(1, 3))
    return np.asarray(power.reshape(own.stop - own.start, -1).sum(axis=1))


def _floors(gate: Gate, rows: Floats) -> Floats:
    """The values, (channels,), that what opens its own gate need not go below."""
    return gate.floors(rows.min(axis=0), rows.max(axis=0))
