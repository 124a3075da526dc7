"""One grid for a tensor is too coarse for its narrow channels; weights can carry the differences.

The algebra stands in numerics/smoothing.py, what factors may cross in regions.py, what may be
written anew to let them in pointwise.py, and what of all that is rounded in gridded.py.
"""

from typing import ClassVar

import numpy as np
from pydantic import Field

from onnxq.graph.gates import gates
from onnxq.graph.gridded import Gridded, observers
from onnxq.graph.model import Model
from onnxq.graph.pointwise import unlock, unlockable
from onnxq.graph.regions import Region, regions
from onnxq.numerics import smoothing
from onnxq.numerics.observe import Observer
from onnxq.pipeline import Outcome, Pass, Statistics
from onnxq.spec import Floats

# Less than this part of the noise is not worth it: so well the noise of weights is not known.
LEAST_GAIN = 0.05
# Nor is less than this worth a layer more.
NODES_GAIN = 0.5
# Nor is less at 8 bits, where equal channels lose the room that the widest leaves the others for
# values that calibration has not seen.
WIDE_GAIN = 2 / 3


class EqualizeActivations(Pass):
    """Scale the channels between layers so that rounding activations and weights errs least.

    A Clip(0, c) becomes a Relu and a Min with a ceiling for each channel; and where it pays, the
    Add of a number becomes a 1x1 depthwise Conv, and one comes before a Sigmoid.

    Attributes:
        bits: Of what layers read.
        weights: Bits of the weights.
    """

    name: ClassVar[str] = "equalize-activations"
    exact: ClassVar[bool] = False

    bits: int = Field(4, ge=2, le=8)
    weights: int = Field(4, ge=1, le=8)

    def observe(self, model: Model) -> dict[str, Observer]:
        """Sample what has a grid, and what layers read."""
        trial = model.clone()
        unlock(trial, unlockable(model))
        return observers(trial, _regions(trial))

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        trial, places = model.clone(), unlockable(model)
        unlocked = unlock(trial, places)
        found = _regions(trial)
        gridded = Gridded(trial, found, gates(model), statistics)
        chosen: dict[str, tuple[Floats, float]] = {}
        wanted: set[str] = set()
        for region in found:
            ends = {layer.name for layer, _ in (*region.sources, *region.sinks)}
            new = {unlocked[name] for name in ends & unlocked.keys()}
            s, noise, why = self._factors(region, gridded, bool(new))
            if why:
                outcome.skip(region.name, why)
            else:
                chosen[region.name] = s, noise
                wanted |= new
        for name, node in unlock(model, {node: places[node] for node in wanted}).items():
            outcome.edit(name, f"written as a 1x1 depthwise Conv, for {node}")
        for region in _regions(model):
            if region.name in chosen:
                s, noise = chosen[region.name]
                region.divide(model, s)
                gridded.cut_off(model, region, s)
                moved = int(np.sum(s != 1.0))
                what = f"{moved} of {region.count} channels, by {s.min():.3g} to {s.max():.3g}"
                outcome.edit(region.name, f"{what}: {noise:.0%} of its noise are left")
        return outcome

    def _factors(self, region: Region, gridded: Gridded, longer: bool) -> tuple[Floats, float, str]:
        """Factors of a region, the noise that they leave, and why not to use them, if not.

        Args:
            region: The region.
            gridded: What of it is rounded.
            longer: Whether that takes a layer more.
        """
        s: Floats = np.ones(region.count)
        noise = 1.0
        if not region.free.any():
            return s, noise, region.reasons or "no layer both makes and reads it"
        reads = gridded.reads(region, self.bits)
        if not all(read.rows.size for read in reads):
            return s, noise, "layers read nothing of it on the calibration data"
        s, noise = smoothing.factors(reads, region.free, smoothing.weight_noise(self.weights))
        least = WIDE_GAIN if self.bits == 8 else NODES_GAIN if longer else LEAST_GAIN
        enough = noise <= 1.0 - least
        left = "all" if noise >= 0.995 else f"{noise:.0%}"
        return s, noise, "" if enough else f"of its noise {left} would be left"


def _regions(model: Model) -> list[Region]:
    return regions(model, ceilings=True, norms=True)
