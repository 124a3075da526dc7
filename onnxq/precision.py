"""The SQNR that is asked for: a recipe rounds less, where that helps most for what it costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.data import Samples, batches, first_batch, without
from onnxq.errors import CalibrationError
from onnxq.inspect import multiply_accumulates
from onnxq.model import Model
from onnxq.numerics.relief import cheapest
from onnxq.numerics.smoothing import LEFT
from onnxq.progress import Progress
from onnxq.recipe import Recipe, Relief
from onnxq.runtime import Session, in_order
from onnxq.sensitivity import SILENT, Judge, Rounding, alone, prices, roundings, unemitted
from onnxq.spec import Array

# Plans that are tried at most; each relieves what the one before has left too much of.
ROUNDS = 6
# What a round aims at, relative to the one before: an estimate that fell short may do so again.
STRICTER = 0.8
# One of so many runs judges, or a larger part where that makes fewer than ENOUGH, up to one half.
HELD_OUT, ENOUGH = 10, 8
# Bytes of what judges, inputs and outputs: all of it stays in memory.
BUDGET = 1 << 30
# Runs that sensitivities are measured on.
FEW = 8
# Roundings that are named as the worst.
WORST = 5


@dataclass(frozen=True)
class Fit:
    """What became of the wish for an SQNR.

    Attributes:
        least: The SQNR in dB that every output was to have.
        sqnr: That of the output where it is least, on samples held out, before any training.
        judges: Number of those samples.
        reliefs: Where the recipe rounds less.
        worst: Layers and tensors whose rounding cost most before any relief, each with its share of
            all noise at the output where that is largest; none if no relief was needed.
    """

    least: float
    sqnr: float
    judges: int
    reliefs: tuple[Relief, ...]
    worst: tuple[tuple[str, float], ...] = ()

    @property
    def missed(self) -> float | None:
        """Decibels that are missing; None if none are."""
        return self.least - self.sqnr if self.sqnr < self.least else None


def fit(
    reference: Model,
    recipe: Recipe,
    plan: Callable[[Recipe, Samples], Model],
    samples: Samples,
    least: float,
    progress: Progress,
) -> tuple[Recipe, Fit]:
    """Relieve a recipe until its plan, made without some samples, is good enough on these.

    Sensitivities are those of rounding to nearest, since weights that make up for other errors err
    where these are not; what such weights gain is LEFT. They are added up, and how far the sum is
    off shows where everything is rounded, and corrects it.

    Args:
        reference: The float model as quantization begins.
        recipe: Where to start.
        plan: Makes a quantized model, which still has its plan, by a recipe from samples.
        samples: Calibration data.
        least: SQNR in dB that every output is to have.
        progress: Called after every sensitivity.

    Raises:
        CalibrationError: There are too few samples, or no output can be judged.
    """
    judge, rest = _held_out(reference, samples)
    macs = multiply_accumulates(reference, judge.feeds)
    most = np.full(len(judge.outputs), 10.0 ** (-least / 10.0))
    reliefs, known, worst = set(recipe.reliefs), dict[Rounding, Array](), dict[str, float]()
    for turn in range(1, ROUNDS + 1):
        tried = recipe.relieved(reliefs)
        quantized = plan(tried, rest)
        noise = judge.noise(quantized)
        if turn == ROUNDS or (noise <= most).all():
            break
        plain = quantized if tried.plain == tried else plan(tried.plain, rest)
        before = unemitted(reference, plain)
        found = roundings(before)
        _measure([r for r in found if r not in known], before, judge, known, progress)
        shares = [LEFT if recipe.compensated and r.kind == "weights" else 1.0 for r in found]
        each = np.array([known[r] * share for r, share in zip(found, shares, strict=True)])
        each = each.reshape(-1, len(noise))
        total = each.sum(axis=0)
        worst = worst or _largest(found, each / np.maximum(total, SILENT))
        each *= np.divide(noise, total, where=total > 0, out=np.ones_like(noise))
        needed = [frozenset(r.reliefs) for r in found]
        # What relief leaves of a noise is not counted: a round that has left too much is followed.
        aim = most * STRICTER ** (turn - 1)
        chosen = cheapest(each, needed, prices(before, found, macs), aim)
        if not chosen:
            break
        reliefs |= {relief for i in chosen for relief in needed[i]}
    # A tensor that got bits before all around it came to compute in floats needs none any more.
    idle = {r for r in reliefs if r.kind == "activations" and r.name not in quantized.activations}
    reliefs -= idle - {*recipe.reliefs}
    sqnr = -10.0 * float(np.log10(noise.max()))
    fitted = recipe.relieved(reliefs)
    return fitted, Fit(least, sqnr, judge.count, fitted.reliefs, tuple(worst.items()))


def _largest(found: Sequence[Rounding], shares: Array) -> dict[str, float]:
    """The names of the roundings with the largest shares of some output's noise, and these."""
    most = shares.max(axis=1, initial=0.0)
    return {found[i].name: float(most[i]) for i in np.argsort(-most, kind="stable")[:WORST]}


def _held_out(reference: Model, samples: Samples) -> tuple[Judge, Samples]:
    """A judge on some of the samples, and the others.

    Raises:
        CalibrationError: There is nothing to judge with.
    """
    session = Session(reference)
    inputs = session.inputs
    keys = [batch.keys for batch in batches(samples, inputs, 1)]
    if len(keys) < 2:
        raise CalibrationError("--min-sqnr needs calibration data of two runs at least: one judges")
    first = first_batch(samples, inputs).feeds
    size = sum(x.nbytes for x in (*first.values(), *session.run(first).values()))
    every = min(max(len(keys) // ENOUGH, 2), HELD_OUT)
    every = min(max(every, -(-len(keys) * size // BUDGET)), len(keys))
    chosen = {key for some in keys[every - 1 :: every] for key in some}
    held = [b for b in batches(samples, inputs, 1) if not chosen.isdisjoint(b.keys)]
    judge = Judge(session, held)
    if not judge.outputs:
        raise CalibrationError(
            "--min-sqnr cannot be judged: no output has finite floats other than zero"
        )
    return judge, without(samples, chosen, whole=False)


def _measure(
    new: list[Rounding],
    plan: Model,
    judge: Judge,
    known: dict[Rounding, Array],
    progress: Progress,
) -> None:
    """Fill in what roundings do when they are alone."""

    def noise(rounding: Rounding) -> Array:
        return np.asarray(judge.noise(alone(plan, rounding), FEW) / rounding.part**2)

    for rounding, found in zip(new, in_order(noise, new), strict=True):
        known[rounding] = found
        progress("measuring sensitivities", 1, len(new))
