"""BRECQ with QDrop: rounding, biases and activation ranges, learned block by block."""

from typing import ClassVar

from pydantic import Field

from onnxq.graph.blocks import blocks
from onnxq.graph.model import Model
from onnxq.pipeline import LearnedPass, Outcome
from onnxq.samples.lessons import Lessons


class ReconstructBlocks(LearnedPass):
    """Learn rounding, biases and activation ranges, block by block (BRECQ with QDrop).

    Attributes:
        steps: To take for each block.
        batch: Samples of a step.
        rate: Peak learning rate of V; a weight is decided where |V| is 2.4.
        biases: That of biases, in standard deviations of what their layers return; 0 leaves them.
        ranges: That of the ranges of activations, relative to them.
        drop: Probability of an activation to be left as it is in floats, in each step anew.
    """

    name: ClassVar[str] = "reconstruct-blocks"

    steps: int = Field(500, ge=1)
    batch: int = Field(32, ge=1)
    rate: float = Field(0.03, gt=0)
    biases: float = Field(1e-3, ge=0)
    ranges: float = Field(1e-3, ge=0)
    drop: float = Field(0.5, ge=0, lt=1)

    def learn(self, model: Model, reference: Model, lessons: Lessons) -> Outcome:
        """Train rounding, biases and ranges."""
        from onnxq.learned.reconstruction import reconstruct
        from onnxq.learned.unit import Rates

        rates = Rates(self.rate, self.biases, self.ranges)
        options = (self.steps, self.batch, self.drop)
        return reconstruct(self.name, model, reference, lessons, blocks, rates, *options)
