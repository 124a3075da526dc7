"""What of the regions of a model is rounded, and how much of the noise layers see.

A tensor's noise counts in each channel with the power of the weights that it meets, relative to
what the layer returns: |W_i|^2 / sum_j |W_j|^2 E[x_j^2], summed over the layers it reaches. A
depthwise layer does not mix channels: it passes noise on to those behind it. A mean over all pixels
leaves little of it.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.channels import Channels
from onnxq.gates import Gate
from onnxq.layers import Layer
from onnxq.model import Model
from onnxq.numerics.observe import ChannelSample, Observer
from onnxq.numerics.smoothing import Read
from onnxq.numerics.unfold import Window
from onnxq.placement import Placement, root_of, without_products
from onnxq.regions import Region
from onnxq.spec import Floats

MEANS = {"GlobalAveragePool", "ReduceMean"}


class Gridded:
    """The tensors of regions that layers read or that have a grid of their own.

    Args:
        model: Its nodes are sorted.
        found: Regions of it.
        gates: Of its tensors.
    """

    def __init__(self, model: Model, found: Iterable[Region], gates: Iterable[Gate]) -> None:
        self._regions = list(found)
        self._placement: Placement = without_products(model)
        self._order = {node.name: i for i, node in enumerate(model.graph.nodes)}
        self._gates: dict[str, Gate] = {gate.data.name: gate for gate in gates}

    def observers(self) -> dict[str, Observer]:
        """A sample of every tensor that layers read, or that is rounded and can take factors."""
        found: dict[str, Observer] = {}
        for region in self._regions:
            sizes = {layer.data.name: layer.c_in for layer, _ in _mixing(region)}
            for tensor, channels, _ in self._tensors(region):
                n = channels.rank - 2
                pixel = Window((1,) * n, (1,) * n, (1,) * n, (0,) * 2 * n) if n > 0 else None
                size = sizes.get(tensor.name, channels.count)
                found[tensor.name] = ChannelSample(pixel, size)
        return found

    def reads(
        self,
        region: Region,
        samples: Mapping[str, Observer],
        powers: Mapping[str, Floats],
        bits: int,
    ) -> list[Read]:
        """The tensors of a region as ``smoothing.factors`` wants them.

        Args:
            region: One of the regions.
            samples: What ``observers`` became.
            powers: See ``powers``.
            bits: Of what layers read.
        """
        layers: dict[str, list[tuple[int, Floats]]] = {}
        for layer, own in _mixing(region):
            power = _relative(layer, own, samples)
            layers.setdefault(layer.data.name, []).append((layer.groups, power))
        found = []
        for tensor, channels, own in self._tensors(region):
            rows, slopes = _rows(samples[tensor.name], channels.count), None
            if (gate := self._gates.get(tensor.name)) is not None and rows.size:
                rows = np.maximum(rows, _floors(gate, rows).astype(np.float32))
                slopes = gate.derivative(rows).astype(np.float32)
            rounded = root_of(tensor, self._placement)[0] in self._placement.roots
            read = layers.get(tensor.name, [])
            width = bits if read else 8
            found.append(Read(own, rows, width, powers[tensor.name] * rounded, read, slopes))
        return found

    def cut_off(
        self, model: Model, region: Region, s: Floats, samples: Mapping[str, Observer]
    ) -> None:
        """Cut off what gates shut out of tensors that were divided by s, (channels,)."""
        for tensor, channels, own in region.tensors:
            if (gate := self._gates.get(tensor.name)) is not None and tensor.name in samples:
                rows = _rows(samples[tensor.name], channels.count)
                floor = np.asarray(np.min(_floors(gate, rows) / s[own]), np.float32)
                if floor > np.min(rows.min(axis=0) / s[own]):
                    cut = model.variable(f"{tensor.name}_cut")
                    model.redirect(tensor, cut)
                    model.add("Clip", [tensor, model.constant(f"{tensor.name}_floor", floor)], cut)

    def powers(self, samples: Mapping[str, Observer]) -> dict[str, Floats]:
        """What noise in the channels of each tensor is weighed with, float64 (channels,)."""
        found: dict[str, Floats] = {}
        places = [(t, own, region) for region in self._regions for t, _, own in region.tensors]
        spans = {(region.name, tensor.name): own for tensor, own, region in places}
        for tensor, own, region in sorted(places, key=self._depth, reverse=True):
            total = np.zeros(region.count)
            for layer, reads in region.sinks:
                if layer.data is tensor:
                    later = found.get(layer.output.name, np.zeros(layer.c_out))
                    if layer.by_channel or (layer.depthwise and later.any()):
                        total[reads] += _power(layer, reads) * later
                    else:
                        total[reads] += _relative(layer, reads, samples)
            for node in tensor.outputs:
                result = node.outputs[0].name
                if (region.name, result) in spans and node.op not in MEANS:
                    later = np.zeros(region.count)
                    later[spans[region.name, result]] = found[result]
                    total += later
            found[tensor.name] = total[own]
        return found

    def _depth(self, place: tuple[gs.Tensor, slice, Region]) -> int:
        return self._order[place[0].inputs[0].name]

    def _tensors(self, region: Region) -> list[tuple[gs.Tensor, Channels, slice]]:
        read = {layer.data.name for layer, _ in _mixing(region)}
        roots = set(self._placement.roots) if region.free.any() else set()
        roots -= {root_of(layer.data, self._placement)[0] for layer, _ in _mixing(region)}
        return [
            (tensor, channels, own)
            for tensor, channels, own in region.tensors
            if tensor.name in read or (tensor.name in roots and channels.form != "flat")
        ]


def _mixing(region: Region) -> list[tuple[Layer, slice]]:
    """The sinks that do more than multiply channels."""
    return [(layer, own) for layer, own in region.sinks if not layer.by_channel]


def _relative(layer: Layer, own: slice, samples: Mapping[str, Observer]) -> Floats:
    """Power of a layer's weights relative to that of what it returns, float64 (channels,)."""
    power, rows = _power(layer, own), _rows(samples[layer.data.name], own.stop - own.start)
    signal = power @ np.square(rows, dtype=np.float64).mean(axis=0) if rows.size else 0.0
    return power / signal if 0.0 < signal < np.inf else power


def _power(layer: Layer, own: slice) -> Floats:
    """Power of a layer's weights for each channel that it reads, float64 (channels,)."""
    power = np.square(layer.by_group, dtype=np.float64).sum(axis=(1, 3))
    return np.asarray(power.reshape(own.stop - own.start, -1).sum(axis=1))


def _floors(gate: Gate, rows: Floats) -> Floats:
    """The values, (channels,), that what opens its own gate need not go below."""
    return gate.floors(rows.min(axis=0), rows.max(axis=0))


def _rows(sample: Observer, count: int) -> Floats:
    """A sample as (n, channels): those of a flattened channel are below each other."""
    assert isinstance(sample, ChannelSample)
    (rows,) = sample.rows
    blocks = rows.reshape(len(rows), count, rows.shape[1] // count)
    return np.asarray(blocks.swapaxes(1, 2).reshape(-1, count))
