"""End-to-end distillation: everything that a plan leaves free, trained together."""

from typing import ClassVar

from pydantic import Field

from onnxq.lessons import Lessons
from onnxq.model import Model
from onnxq.pipeline import LearnedPass, Outcome


class Distill(LearnedPass):
    """Train weights, scales, biases and activation ranges together, as the float network teaches.

    Attributes:
        steps: To take, at most.
        batch: Samples of a step.
        weights: Peak learning rate of weights, in steps of their grids; 0 leaves them as they are.
        scales: That of the scales of weights, relative to them.
        biases: That of biases, in standard deviations of what their layers return.
        ranges: That of the ranges of activations, relative to them.
        mix: Images are mixed with others, up to this share.
    """

    name: ClassVar[str] = "distill"

    steps: int = Field(600, ge=1)
    batch: int = Field(64, ge=1)
    weights: float = Field(3e-3, ge=0)
    scales: float = Field(1e-3, ge=0)
    biases: float = Field(1e-3, ge=0)
    ranges: float = Field(1e-3, ge=0)
    mix: float = Field(0.0, ge=0, le=0.5)

    def learn(self, model: Model, reference: Model, lessons: Lessons) -> Outcome:
        """Train the plan."""
        from onnxq.learned.distillation import Rates, distill

        rates = Rates(self.weights, self.scales, self.biases, self.ranges)
        options = (self.steps, self.batch, self.mix)
        return distill(self.name, model, reference, lessons, rates, *options)
