"""Error compensation: GPTQ, aimed at what also makes up for the errors of the layers before.

The algebra stands in numerics/compensate.py.
"""

from typing import ClassVar

import numpy as np

from onnxq.numerics import compensate
from onnxq.pipeline import LayerPass, Outcome
from onnxq.visit import Visit


class CompensateRounding(LayerPass):
    """Round weights so that later ones make up for the errors of earlier ones (GPTQ).

    What the errors do to the mean of a channel is left to ``correct-bias``, which has to follow.

    Attributes:
        prefix: The weights also make up for what earlier layers did to the layer's input.
    """

    name: ClassVar[str] = "compensate-rounding"

    prefix: bool = True

    def choose(self, visit: Visit, outcome: Outcome) -> None:
        """Round the weight anew, on its grid or, below 8 bits, on one a little finer or coarser."""
        name, params = visit.layer.name, visit.weight.params
        if (why := visit.obstacle) is not None:
            outcome.skip(name, why)
            return
        hessian, goal = visit.inputs.hessian, visit.rows
        count = visit.inputs.count
        if self.prefix:
            extra = compensate.damping(hessian, count, compensate.AIM)
            goal = compensate.target(goal, hessian, visit.inputs.cross, extra)
        # Groups of inputs have scales of their own, which were fitted to them; and of many levels
        # some more or fewer make no difference.
        fixed = params.scale.ndim > 1 or params.spec.bits == 8
        factors = np.ones(1) if fixed else compensate.FACTORS
        levels, factor = compensate.compensated(
            goal,
            hessian + compensate.damping(hessian, count),
            visit.scales,
            visit.ends,
            visit.book,
            factors,
            shared=params.scale.ndim == 0,
        )
        visit.settle(levels, factor)
        outcome.edit(name, f"scales times {factor.min():.2g} to {factor.max():.2g}")
