"""One grid for a tensor is too coarse for its narrow channels; weights can carry the differences.

The algebra stands in numerics/smoothing.py, what factors may cross in regions.py.
"""

from typing import ClassVar

import numpy as np
from pydantic import Field

from onnxq.layers import Layer
from onnxq.model import Model
from onnxq.numerics import smoothing
from onnxq.numerics.observe import Observer, RowSample
from onnxq.numerics.smoothing import Read
from onnxq.numerics.unfold import Window
from onnxq.pipeline import Outcome, Pass, Statistics
from onnxq.regions import Region, regions
from onnxq.spec import Floats

# Less than this part of the noise is not worth it: so well the noise of weights is not known.
LEAST_GAIN = 0.05


class EqualizeActivations(Pass):
    """Scale the channels between layers so that rounding activations and weights errs least.

    A Clip(0, c) becomes a Relu and a Min with a ceiling for each channel.

    Attributes:
        bits: Of what layers read.
        weights: Bits of the weights.
    """

    name: ClassVar[str] = "equalize-activations"
    exact: ClassVar[bool] = False

    bits: int = Field(4, ge=2, le=8)
    weights: int = Field(4, ge=1, le=8)

    def observe(self, model: Model) -> dict[str, Observer]:
        """Sample what layers read."""
        free = [region for region in regions(model, ceilings=True, norms=True) if region.free.any()]
        return {
            layer.data.name: RowSample(_pixel(layer), 1, layer.c_in)
            for region in free
            for layer, _ in region.sinks
        }

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        rho = smoothing.weight_noise(self.weights)
        for region in regions(model, ceilings=True, norms=True):
            if not region.free.any():
                outcome.skip(region.name, region.reasons or "no layer both makes and reads it")
                continue
            reads = _reads(region, statistics)
            if not all(read.rows.size for read in reads):
                outcome.skip(region.name, "layers read nothing of it on the calibration data")
                continue
            s, noise = smoothing.factors(reads, region.free, self.bits, rho)
            if not noise <= 1.0 - LEAST_GAIN:
                outcome.skip(region.name, f"of its noise {noise:.0%} would be left")
                continue
            region.divide(model, s)
            moved = int(np.sum(s != 1.0))
            what = f"{moved} of {region.count} channels, by {s.min():.3g} to {s.max():.3g}"
            outcome.edit(region.name, f"{what}: {noise:.0%} of its noise are left")
        return outcome


def _pixel(layer: Layer) -> Window | None:
    """The window that sees one pixel of what a layer reads; None for a matrix product."""
    n = len(layer.weight_tensor.shape) - 2
    images = layer.op in ("Conv", "ConvTranspose")
    return Window((1,) * n, (1,) * n, (1,) * n, (0,) * 2 * n) if images else None


def _reads(region: Region, statistics: Statistics) -> list[Read]:
    """The tensors of a region that layers read."""
    places = {layer.data.name: own for layer, own in region.sinks}
    layers: dict[str, list[tuple[int, Floats]]] = {name: [] for name in places}
    for layer, own in region.sinks:
        power = np.square(layer.by_group, dtype=np.float64).sum(axis=(1, 3))
        blocks = power.reshape(own.stop - own.start, -1)
        layers[layer.data.name].append((layer.groups, blocks.sum(axis=1)))
    return [
        Read(own, _rows(statistics[name], own.stop - own.start), layers[name])
        for name, own in places.items()
    ]


def _rows(sample: Observer, count: int) -> Floats:
    """A sample as (n, channels): those of a flattened channel are below each other."""
    assert isinstance(sample, RowSample)
    (rows,) = sample.rows
    blocks = rows.reshape(len(rows), count, rows.shape[1] // count)
    return np.asarray(blocks.swapaxes(1, 2).reshape(-1, count))
