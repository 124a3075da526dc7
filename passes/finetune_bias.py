"""Bias fine-tuning: biases alone, trained so that the network says what the float one says."""

from typing import ClassVar

from pydantic import Field

from onnxq.graph.model import Model
from onnxq.pipeline import LearnedPass, Outcome
from onnxq.samples.lessons import Lessons


class FinetuneBias(LearnedPass):
    """Train the biases, and nothing else (BFT, Finkelstein et al. 2019).

    Attributes:
        steps: To take, at most.
        batch: Samples of a step.
        rate: Peak learning rate, in standard deviations of what a layer returns.
    """

    name: ClassVar[str] = "finetune-bias"

    steps: int = Field(300, ge=1)
    batch: int = Field(32, ge=1)
    rate: float = Field(5e-3, gt=0)

    def learn(self, model: Model, reference: Model, lessons: Lessons) -> Outcome:
        """Train the biases."""
        from onnxq.learned.distillation import Rates, distill

        rates = Rates(biases=self.rate)
        return distill(self.name, model, reference, lessons, rates, self.steps, self.batch)
