"""OAQ fine-tuning: the sigma of every channel, trained at the network's output."""

from typing import ClassVar

from pydantic import Field

from onnxq.graph.model import Model
from onnxq.pipeline import LearnedPass, Outcome
from onnxq.samples.lessons import Lessons


class FinetuneSigma(LearnedPass):
    """Train the sigma that outliers are cut off at, and nothing else (OAQ, Yoo & Ban 2025).

    The step of a weight is M / (sigma L), M its largest value: training the logarithm of the step
    is training that of sigma.

    Attributes:
        steps: To take, at most.
        batch: Samples of a step.
        rate: Peak learning rate, relative to sigma.
    """

    name: ClassVar[str] = "finetune-sigma"

    steps: int = Field(300, ge=1)
    batch: int = Field(64, ge=1)
    rate: float = Field(5e-3, gt=0)

    def learn(self, model: Model, reference: Model, lessons: Lessons) -> Outcome:
        """Train the scales."""
        from onnxq.learned.distillation import Rates, distill

        rates = Rates(scales=self.rate)
        return distill(self.name, model, reference, lessons, rates, self.steps, self.batch)
