"""One grid for a tensor is too coarse for its narrow channels; weights can carry the differences.

The algebra stands in numerics/smoothing.py, what factors may cross in regions.py, what may be
written anew to let them in pointwise.py, and what of all that is rounded in gridded.py.
"""

from typing import ClassVar

import numpy as np
from pydantic import Field

from onnxq.channels import Channels
from onnxq.gates import gates
from onnxq.gridded import Gridded
from onnxq.model import Model
from onnxq.numerics import smoothing
from onnxq.numerics.observe import Observer
from onnxq.pipeline import Outcome, Pass, Statistics
from onnxq.pointwise import unlock, unlockable
from onnxq.regions import regions
from onnxq.spec import Floats

# Less than this part of the noise is not worth it: so well the noise of weights is not known.
LEAST_GAIN = 0.05
# Nor is less than this worth a layer more, or at 8 bits a Min of codes.
NODES_GAIN = 0.5


class EqualizeActivations(Pass):
    """Scale the channels between layers so that rounding activations and weights errs least.

    A Clip(0, c) becomes a Relu and a Min with a ceiling for each channel; and the Add of a number,
    where it pays, a 1x1 depthwise Conv.

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
        unlock(trial, unlockable(trial))
        found = regions(trial, ceilings=True, norms=True)
        return Gridded(trial, found, ()).observers()

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        trial, places = model.clone(), unlockable(model)
        unlocked = unlock(trial, places)
        every = regions(trial, ceilings=True, norms=True)
        gridded = Gridded(trial, every, gates(model))
        powers = gridded.powers(statistics)
        chosen: dict[str, tuple[Floats, float]] = {}
        wanted: dict[str, Channels] = {}
        for region in every:
            if not region.free.any():
                outcome.skip(region.name, region.reasons or "no layer both makes and reads it")
                continue
            reads = gridded.reads(region, statistics, powers, self.bits)
            if not all(read.rows.size for read in reads):
                outcome.skip(region.name, "layers read nothing of it on the calibration data")
                continue
            s, noise = smoothing.factors(reads, region.free, smoothing.weight_noise(self.weights))
            ends = {layer.name for layer, _ in (*region.sources, *region.sinks)}
            new = {unlocked[name] for name in ends & unlocked.keys()}
            cuts = any(ceiling.node.op == "Clip" for ceiling, _ in region.ceilings)
            slower = new or (self.bits == 8 and cuts)
            if not noise <= 1.0 - (NODES_GAIN if slower else LEAST_GAIN):
                outcome.skip(region.name, f"of its noise {noise:.0%} would be left")
                continue
            wanted |= {name: places[name] for name in new}
            chosen[region.name] = s, noise
        for name, node in unlock(model, wanted).items():
            outcome.edit(name, f"written as a 1x1 depthwise Conv, for {node}")
        for region in regions(model, ceilings=True, norms=True):
            if region.name in chosen:
                s, noise = chosen[region.name]
                region.divide(model, s)
                gridded.cut_off(model, region, s, statistics)
                moved = int(np.sum(s != 1.0))
                what = f"{moved} of {region.count} channels, by {s.min():.3g} to {s.max():.3g}"
                outcome.edit(region.name, f"{what}: {noise:.0%} of its noise are left")
        return outcome
