"""The SQNR that is asked for: a recipe rounds less, where that helps most for what it costs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxq.errors import CalibrationError
from onnxq.evidence.inspect import multiply_accumulates
from onnxq.graph.model import Model
from onnxq.graph.parts import parts
from onnxq.numerics.relief import cheapest
from onnxq.numerics.smoothing import LEFT
from onnxq.progress import Progress
from onnxq.recipe import Recipe, Relief
from onnxq.runtime import Session, in_order
from onnxq.samples.data import Samples, batches, first_batch, without
from onnxq.sensitivity import SILENT, Judge, Rounding, alone, prices, roundings, unemitted
from onnxq.spec import Array

# Plans that are tried at most.
ROUNDS = 6
# A round aims no lower than this, relative to the one before.
STRICTER = 0.8
# What is nearer than this, half a decibel, is not worth another round.
CLOSE = 0.9
# One of so many runs judges, or a larger part where that makes fewer than ENOUGH, up to one half.
HELD_OUT, ENOUGH = 10, 16
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
        sqnr: That of the output that is worst with its doubt taken off, on samples held out, before
            any training.
        doubt: Its standard error in dB, by which it has to be better than what was asked for; None
            if a single run judges, which tells none.
        judges: Number of those samples.
        unjudged: Outputs that could not be judged, and why.
        reliefs: Where the recipe rounds less.
        worst: Layers and tensors whose rounding cost most before any relief, each with its share of
            all noise at the output where that is largest; none if no relief was needed.
    """

    least: float
    sqnr: float
    doubt: float | None
    judges: int
    unjudged: Mapping[str, str]
    reliefs: tuple[Relief, ...]
    worst: tuple[tuple[str, float], ...] = ()

    @property
    def missed(self) -> float | None:
        """Decibels that are missing; None if none are."""
        sure = self.sqnr - (self.doubt or 0.0)
        return self.least - sure if sure < self.least else None


@dataclass(frozen=True)
class Trial:
    """A plan that was tried.

    Attributes:
        reliefs: Where it rounds less.
        model: What was made by it.
        power: Noise power at the outputs, relative to the signal, (outputs,).
        noise: The sum of that and its standard error: what has to be low enough.
    """

    reliefs: frozenset[Relief]
    model: Model
    power: Array
    noise: Array


@dataclass(frozen=True)
class Choices:
    """What could be relieved of a plan.

    Attributes:
        reliefs: Where the plan rounds less already.
        found: What it rounds, n places.
        each: Noise of each of them at the outputs, (n, outputs); they add up to the plan's.
        price: Of every relief.
    """

    reliefs: frozenset[Relief]
    found: Sequence[Rounding]
    each: Array
    price: Mapping[Relief, float]

    def cheapest(self, aim: Array) -> frozenset[Relief]:
        """All reliefs by which so much noise should be left, (outputs,), at the least price."""
        needed = [frozenset(r.reliefs) for r in self.found]
        chosen = cheapest(self.each, needed, self.price, aim)
        return self.reliefs.union(*(needed[i] for i in chosen))

    def cost(self, reliefs: frozenset[Relief]) -> float:
        """What some reliefs cost, without those that the plan has."""
        return math.fsum(self.price[relief] for relief in reliefs - self.reliefs)


class Search:
    """Tries plans and judges them.

    Args:
        reference: The float model as quantization begins.
        recipe: What is relieved.
        plan: Makes a quantized model, which still has its plan, by a recipe from samples.
        samples: Calibration data.
        progress: Called after every sensitivity.

    Attributes:
        judge: Judges on samples that no plan sees.
        count: Plans that were tried.
        worst: The roundings that cost most in the first of them, if it had to be relieved.

    Raises:
        CalibrationError: There are too few samples, or no output can be judged.
    """

    def __init__(
        self,
        reference: Model,
        recipe: Recipe,
        plan: Callable[[Recipe, Samples], Model],
        samples: Samples,
        progress: Progress,
    ) -> None:
        self.judge, self._samples = _held_out(reference, samples)
        self.count, self.worst = 0, dict[str, float]()
        self._reference, self._recipe, self._plan = reference, recipe, plan
        self._progress = progress
        self._known = dict[Rounding, Array]()

    def attempt(self, reliefs: frozenset[Relief]) -> Trial:
        """A plan with some reliefs."""
        model = self._plan(self._recipe.relieved(reliefs), self._samples)
        power, error = self.judge.noise(model)
        self.count += 1
        return Trial(reliefs, model, power, power + error)

    def choices(self, trial: Trial) -> Choices:
        """What could be relieved in addition; for the first trial, ``worst`` as well.

        Sensitivities are those of rounding to nearest, since weights that make up for other errors
        err where these are not; what such weights gain is LEFT. They are added up, and how far the
        sum is off shows where everything is rounded, and corrects it.
        """
        tried = self._recipe.relieved(trial.reliefs)
        plain = trial.model if tried.plain == tried else self._plan(tried.plain, self._samples)
        before = unemitted(self._reference, plain)
        found = roundings(before)
        self._measure(before, [r for r in found if r not in self._known])
        left = LEFT if tried.compensated else 1.0
        each = [self._known[r] * (left if r.kind == "weights" else 1.0) for r in found]
        noise = np.array(each).reshape(-1, len(trial.noise))
        total = noise.sum(axis=0)
        self.worst = self.worst or _largest(found, noise / np.maximum(total, SILENT))
        noise *= np.divide(trial.noise, total, where=total > 0, out=np.ones_like(total))
        return Choices(trial.reliefs, found, noise, prices(before, found, self._macs))

    @cached_property
    def _macs(self) -> Mapping[str, int | None]:
        """Multiply-accumulates of each layer."""
        return multiply_accumulates(self._reference, self.judge.feeds)

    def _measure(self, plan: Model, new: list[Rounding]) -> None:
        """Find out what roundings do when they are alone."""

        def noise(rounding: Rounding) -> Array:
            return self.judge.noise(alone(plan, rounding), FEW)[0] / rounding.part**2

        for rounding, found in zip(new, in_order(noise, new), strict=True):
            self._known[rounding] = found
            self._progress("measuring sensitivities", 1, len(new))


def fit(
    reference: Model,
    recipe: Recipe,
    plan: Callable[[Recipe, Samples], Model],
    samples: Samples,
    least: float,
    progress: Progress,
) -> tuple[Recipe, Fit]:
    """Relieve a recipe until its plan, made without some samples, is good enough on these.

    Few samples tell the noise to within a decibel or several: what has to be low enough is the
    noise and its standard error together.

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
    search = Search(reference, recipe, plan, samples, progress)
    trial = _relieved(search, frozenset(recipe.reliefs), 10.0 ** (-least / 10.0))
    # A tensor that got bits before all around it came to compute in floats needs none any more.
    tensors = trial.model.activations
    idle = {r for r in trial.reliefs if r.kind == "activations" and r.name not in tensors}
    fitted = recipe.relieved(trial.reliefs - (idle - {*recipe.reliefs}))
    of = trial.noise.argmax()
    sqnr, sure = (-10.0 * float(np.log10(x[of])) for x in (trial.power, trial.noise))
    judge, worst = search.judge, tuple(search.worst.items())
    doubt = sqnr - sure if judge.runs > 1 else None
    return fitted, Fit(least, sqnr, doubt, judge.count, judge.unjudged, fitted.reliefs, worst)


def _relieved(search: Search, reliefs: frozenset[Relief], most: float) -> Trial:
    """The first plan that leaves little enough noise, or one that gives up less; else the best.

    Each round relieves what the one before has left too much of: what relief leaves of a noise is
    not counted. If the last one took away a part of what it should have, the next one will, too.
    """
    best = trial = search.attempt(reliefs)
    aim = floor = np.full(len(trial.noise), most)
    while (trial.noise > most).any() and search.count < ROUNDS:
        before, choices = trial.noise, search.choices(trial)
        reliefs = choices.cheapest(aim)
        if reliefs == trial.reliefs:
            break
        trial = search.attempt(reliefs)
        best = min(best, trial, key=lambda tried: tried.noise.max())
        if (trial.noise <= most).all():
            return _given_back(search, choices, trial, aim, most)
        # So far below what is left as is missing, divided by the part that came true.
        part = (before - trial.noise) / np.maximum(before - aim, SILENT)
        missing = trial.noise - CLOSE * most
        floor = floor * STRICTER
        aim = np.maximum(floor, trial.noise - missing / np.maximum(part, SILENT))
        aim[trial.noise <= most] = most
    return best


def _given_back(search: Search, choices: Choices, trial: Trial, aim: Array, most: float) -> Trial:
    """A plan that is good enough and costs less than the one that some choices led to, if any.

    For as long as the plan is better than it has to be, half of the decibels are tried between an
    aim that was good enough and one that was not.
    """
    good, bad = aim, np.maximum(choices.each.sum(axis=0), aim)
    failed = {choices.reliefs}
    while (trial.noise < CLOSE * most).all() and (good < CLOSE * bad).any():
        middle = np.sqrt(good * bad)
        reliefs = choices.cheapest(middle)
        if reliefs not in failed and choices.cost(reliefs) < choices.cost(trial.reliefs):
            if search.count == ROUNDS:
                break
            found = search.attempt(reliefs)
            if (found.noise > most).any():
                failed.add(reliefs)
            else:
                trial = found
        good, bad = (good, middle) if reliefs in failed else (middle, bad)
    return trial


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
    judge = Judge(session, held, parts(reference))
    if not judge.outputs:
        reasons = "; ".join(f"{name}: {why}" for name, why in judge.unjudged.items())
        raise CalibrationError(f"--min-sqnr cannot be judged by any output: {reasons}")
    return judge, without(samples, chosen, whole=False)
