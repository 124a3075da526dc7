"""A channel that never comes near zero wastes the codes below it; the next bias can hold the rest.

The algebra stands in numerics/equalize.py.
"""

from typing import ClassVar, Literal

import numpy as np

from onnxq.graph.layers import Layer, pads
from onnxq.graph.model import Model
from onnxq.graph.regions import Region, regions
from onnxq.numerics import equalize, fold
from onnxq.numerics.observe import ChannelMoments, Observer
from onnxq.pipeline import Outcome, Pass, Statistics
from onnxq.spec import Floats

# f(x - c) = f(x) - c for x >= c >= 0; an AveragePool must not see padding.
SHIFTED = {
    "AveragePool", "Concat", "Flatten", "GlobalAveragePool", "Identity", "LeakyRelu", "MaxPool",
    "Min", "PRelu", "ReduceMean", "Relu", "Reshape", "Slice", "Squeeze",
}  # fmt: skip


class AbsorbBias(Pass):
    """Move what a channel always exceeds from the bias before a Relu to the biases behind it.

    Attributes:
        least: What a channel exceeds: the least value on the calibration data, or their mean less
            three standard deviations. The latter is what the source takes from a batch
            normalization, whose beta and gamma are this mean and deviation on the training data.
    """

    name: ClassVar[str] = "absorb-bias"
    exact: ClassVar[bool] = False

    least: Literal["seen", "moments"] = "seen"

    def observe(self, model: Model) -> dict[str, Observer]:
        """Watch every channel of the layers' results."""
        fit = [region for region in regions(model) if _obstacle(region) is None]
        sources = [layer for region in fit for layer, _ in region.sources]
        return {x.output.name: ChannelMoments(x.result_axis) for x in sources}

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        for region in regions(model):
            if (why := _obstacle(region)) is not None:
                outcome.skip(region.name, why)
                continue
            c = np.zeros(region.count)
            for layer, own in region.sources:
                c[own] = equalize.high_bias(self._least(statistics[layer.output.name]))
            if absorbed := int(np.count_nonzero(c)):
                _shift(model, region, c)
                what = f"{absorbed} of {region.count} channels, by up to {c.max():.3g}"
                outcome.edit(region.name, what)
            else:
                outcome.skip(region.name, "no channel stays above zero")
        return outcome

    def _least(self, stats: Observer) -> Floats:
        assert isinstance(stats, ChannelMoments)
        least = stats.lo if self.least == "seen" else stats.mean - 3.0 * stats.std
        return np.where(np.isfinite(least), least, 0.0)


def _obstacle(region: Region) -> str | None:
    """Why an offset cannot travel through a region, if so."""
    if region.reasons:
        return region.reasons
    for node in region.between:
        if node.op not in SHIFTED or (node.op == "AveragePool" and pads(node)):
            return f"{node.op} {node.name} does not keep an offset"
    for layer, _ in region.sinks:
        if layer.op == "ConvTranspose" or pads(layer.node):
            return f"{layer.name} meets less of an offset at its border"
    for layer, _ in (*region.sources, *region.sinks):
        if layer.bias_or_zeros is None:
            return f"{layer.name} has no constant bias of each channel"
    return None


def _shift(model: Model, region: Region, c: Floats) -> None:
    """Take c from the channels of a region: from what makes them, cuts them off and reads them."""
    for layer, own in region.sources:
        layer.set_bias(model, _bias(layer) - c[own])
    for ceiling, own in region.ceilings:
        ceiling.set(model, ceiling.values - c[own])
    for layer, own in region.sinks:
        offset = np.repeat(c[own], layer.c_in // (own.stop - own.start))
        w = layer.by_group.reshape(layer.c_out, -1, layer.by_group.shape[-1])
        _, bias = fold.fold_before(w, _bias(layer), np.ones(layer.c_in), offset, layer.groups)
        layer.set_bias(model, bias)
    region.shift_moments(model, c, np.ones(region.count))


def _bias(layer: Layer) -> Floats:
    bias = layer.bias_or_zeros
    assert bias is not None
    return bias
