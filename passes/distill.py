"""End-to-end distillation: everything that a plan leaves free, trained together."""

from typing import ClassVar

from pydantic import Field

from onnxq.graph.model import Model
from onnxq.pipeline import LearnedPass, Outcome
from onnxq.samples.lessons import Lessons

# The fewer bits, the farther weights have to go: rates are multiplied by this.
PACE = {1: 3.0, 2: 3.0, 3: 2.0}


class Distill(LearnedPass):
    """Train weights, scales, biases and activation ranges together, as the float network teaches.

    Peak learning rates are those for weights of 4 bits and more; 0 leaves a kind as it is.

    Attributes:
        steps: To take, at most.
        batch: Samples of a step.
        weights: Rate of weights, in mean steps between their levels.
        scales: Of the scales of weights, relative to them.
        biases: Of biases, in standard deviations of what their layers return.
        ranges: Of the ranges of activations, relative to them.
        mix: Images are mixed with others, up to this share.
    """

    name: ClassVar[str] = "distill"

    steps: int = Field(360, ge=1)
    batch: int = Field(64, ge=1)
    weights: float = Field(1e-2, ge=0)
    scales: float = Field(1e-3, ge=0)
    biases: float = Field(1.5e-3, ge=0)
    ranges: float = Field(1e-3, ge=0)
    mix: float = Field(0.5, ge=0, le=0.5)

    def learn(self, model: Model, reference: Model, lessons: Lessons) -> Outcome:
        """Train the plan."""
        from onnxq.learned.distillation import Rates, distill

        fewest = min((w.params.spec.bits for w in model.weights.values()), default=8)
        rates = (self.weights, self.scales, self.biases, self.ranges)
        paced = Rates(*(PACE.get(fewest, 1.0) * rate for rate in rates))
        options = (self.steps, self.batch, self.mix)
        return distill(self.name, model, reference, lessons, paced, *options)
