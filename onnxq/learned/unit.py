"""One unit of a network in training: it should return what it returns in floats.

    L = E|y_q - y|^2 / Var(y)

Weights between two levels have a price, whose slope they go down before each step on L. It is 0 at
first, and then its exponent beta falls, so that first those weights are drawn to a level that are
near one, and in the end all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx_graphsurgeon as gs
import torch
import torch.nn.functional as F  # noqa: N812  (torch's custom)
from torch import Tensor, nn

from onnxq.graph.blocks import Block
from onnxq.learned.prefix import Prefix
from onnxq.learned.quantizers import ActivationQuantizer
from onnxq.learned.rounding import SoftRounding
from onnxq.learned.teaching import LEAST
from onnxq.learned.training import Group, Trained, optimise
from onnxq.spec import Array, Ints

# Share of the steps before indecision has a price, and after which beta has arrived.
WARMUP, SETTLED = 0.2, 0.7
# The price, and its exponent (beta) at first and at last.
PRICE, SHARP, BLUNT = 0.05, 20.0, 2.0
# Samples that tell how far the results of a layer spread.
SPREAD = 32


@dataclass(frozen=True)
class Rates:
    """Peak learning rates; what has 0 stays as it is.

    Attributes:
        rounding: Of V, which decides at -2.4 and 2.4.
        biases: Of biases, in standard deviations of what their layers return.
        ranges: Of the scales of activations, relative to them.
    """

    rounding: float
    biases: float = 0.0
    ranges: float = 0.0


class Drop:
    """Chooses for every element whether it is taken quantized, or as it is in floats (QDrop).

    Attributes:
        share: Probability of the latter.
        rng: What draws; without it all are quantized.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.rng: np.random.Generator | None = None

    def __call__(self, quantized: Tensor, floats: Tensor) -> Tensor:
        """Elements of both."""
        if self.rng is None or not self.share:
            return quantized
        kept = torch.from_numpy(self.rng.random(quantized.shape, np.float32) >= self.share)
        return torch.where(kept.to(quantized.device), quantized, floats)


class UnitTraining:
    """A unit, and how far from the float network it is.

    Args:
        prefix: Has advanced to the unit. In its quantized network, the weights of the unit are
            rounded softly from now on.
        unit: A layer or a block.
        nodes: Of the unit.
        number: Of the unit, for the draws.
        rates: What is trained.
        drop: Probability of each element to be taken as it is in floats.
    """

    def __init__(
        self,
        prefix: Prefix,
        unit: Block,
        nodes: Sequence[gs.Node],
        number: int,
        rates: Rates,
        drop: float,
    ) -> None:
        self.prefix, self.unit = prefix, unit
        self._lessons, self._number = prefix.lessons, number
        taught = prefix.target[torch.from_numpy(self._lessons.taught)]
        self._variance = float(taught.var().clamp_min(LEAST))
        self._drop = Drop(drop)
        self.rounding: list[SoftRounding] = []
        self._groups = self._trained(rates, nodes)

    def _trained(self, rates: Rates, nodes: Sequence[gs.Node]) -> list[Group]:
        """Make the weights soft, and collect what is trained."""
        network, biases = self.prefix.network, []
        for i, layer in enumerate(network.layers):
            if layer.name in self.unit.layers:
                weight = network.weights[i].plan()
                soft = SoftRounding(weight, layer.weight, layer.room(weight))
                cast(nn.ModuleList, network.weights)[i] = soft.to(self.prefix.device)
                self.rounding.append(soft)
                if i in network.units and rates.biases:
                    network.units[i] = self._spread(layer.output.name)
                    biases.append(network.biases[str(i)])
        inside = {self.unit.source, *(t.name for node in nodes for t in node.outputs)}
        self._grids: list[ActivationQuantizer] = [
            grid for name, grid in zip(network.graded, network.grids, strict=True) if name in inside
        ]
        ranges = [grid.stretch for grid in self._grids] if rates.ranges else []
        groups = [
            Group([soft.latent for soft in self.rounding], rates.rounding),
            Group(biases, rates.biases),
            Group(ranges, rates.ranges),
        ]
        return [group for group in groups if group.parameters]

    def _spread(self, name: str) -> float:
        """Standard deviation of a tensor in the float network; 0 if it has none."""
        source, seen = self.unit.source, []
        for rows in self._portions(self._lessons.taught[:SPREAD]):
            x = self.prefix.rows(self.prefix.floats[source], rows)
            with torch.no_grad():
                seen.append(self.prefix.teacher.run({source: x}, [name])[name].flatten())
        found = float(torch.cat(seen).std(correction=0))
        return found if np.isfinite(found) else 0.0

    def _portions(self, rows: Ints) -> list[Ints]:
        return self._lessons.portions(rows, self.prefix.size)

    def run(self, label: str, steps: int, batch: int) -> Trained:
        """Train, and leave the unit rounded as its plan is."""
        parameters = [p for group in self._groups for p in group.parameters]
        for parameter in parameters:
            parameter.requires_grad_(True)
        for grid in self._grids:
            grid.mix = self._drop

        def loss(step: int) -> Iterator[Tensor]:
            return self._loss(step, steps, batch)

        done = optimise(label, self._groups, loss, self._judge, steps, self._lessons)
        self._soften(False)
        for grid in self._grids:
            grid.mix = None
        for parameter in parameters:
            parameter.requires_grad_(False)
        return done

    @property
    def undecided(self) -> float:
        """Share of its weights that are between levels."""
        sizes = [soft.latent.numel() for soft in self.rounding]
        return float(np.average([soft.undecided for soft in self.rounding], weights=sizes))

    def _loss(self, step: int, steps: int, batch: int) -> Iterator[Tensor]:
        """The loss of a step, in parts that add up."""
        rng = np.random.default_rng((self._lessons.seed, self._number, step))
        taught = self._lessons.taught
        drawn = rng.choice(taught, batch, replace=len(taught) < batch)
        self._soften(True)
        self._drop.rng = rng
        if (beta := sharpness((step + 1) / steps)) is not None:
            for soft in self.rounding:
                soft.decide(beta, PRICE)
        portions = self._portions(drawn)
        for rows in portions:
            yield self._errors(rows).sum() / sum(map(len, portions))

    def _judge(self) -> Array:
        """The loss of every sample held out, all quantized and rounded, float64 (held,)."""
        self._soften(False)
        self._drop.rng = None
        held = self._lessons.held
        with torch.no_grad():
            found = [self._errors(rows).double().cpu().numpy() for rows in self._portions(held)]
        return np.concatenate(found)[: len(held)]

    def _errors(self, rows: Ints) -> Tensor:
        """The loss of every row, (rows,)."""
        source, result = self.unit.source, self.unit.result
        quantized, floats = (
            self.prefix.rows(held[source], rows)
            for held in (self.prefix.quantized, self.prefix.floats)
        )
        network = self.prefix.network
        given = {**network.given(self.unit.layers), source: self._drop(quantized, floats)}
        found = network.lowered.run(given, [result])[result]
        wanted = self.prefix.rows(self.prefix.target, rows)
        errors = F.mse_loss(found, wanted, reduction="none")
        return errors.reshape(len(rows), -1).mean(1) / self._variance

    def _soften(self, soft: bool) -> None:
        for rounding in self.rounding:
            rounding.train(soft)


def sharpness(done: float) -> float | None:
    """The exponent beta after a share of the steps; None while indecision has no price."""
    if done <= WARMUP:
        return None
    return max(BLUNT, SHARP + (BLUNT - SHARP) * (done - WARMUP) / (SETTLED - WARMUP))
