"""AdaRound: whether each weight is rounded up or down, learned layer by layer."""

from typing import ClassVar

from pydantic import Field

from onnxq.graph.blocks import single_layers
from onnxq.graph.model import Model
from onnxq.pipeline import LearnedPass, Outcome
from onnxq.samples.lessons import Lessons


class LearnRounding(LearnedPass):
    """Learn for every weight whether it is rounded up or down, layer by layer (AdaRound).

    Attributes:
        steps: To take for each layer.
        batch: Samples of a step.
        rate: Peak learning rate of V; a weight is decided where |V| is 2.4.
    """

    name: ClassVar[str] = "learn-rounding"

    steps: int = Field(500, ge=1)
    batch: int = Field(32, ge=1)
    rate: float = Field(0.03, gt=0)

    def learn(self, model: Model, reference: Model, lessons: Lessons) -> Outcome:
        """Train the rounding."""
        from onnxq.learned.reconstruction import reconstruct
        from onnxq.learned.unit import Rates

        rates, options = Rates(self.rate), (self.steps, self.batch)
        return reconstruct(self.name, model, reference, lessons, single_layers, rates, *options)
