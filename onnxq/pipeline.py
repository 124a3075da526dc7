"""A pass, what it reports, and how a sequence of passes runs over a model.

A pass is a frozen pydantic model: its fields are its options, the first line of its docstring is
its help, its file is its home. Subclassing registers it under its ``name``. A pass declares the
statistics it needs with ``observe``; the pipeline collects them and hands them to ``run``. A layer
pass goes from layer to layer instead, through a network that is quantized up to there, and a
learned pass trains the network as a whole or block by block.
"""

import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Protocol, Self

from pydantic import BaseModel, ConfigDict

from onnxq._version import __version__
from onnxq.errors import CalibrationError, OnnxqError, PassError, UsageError
from onnxq.graph.model import Model
from onnxq.numerics.moments import OutputMoments
from onnxq.numerics.observe import Observer
from onnxq.samples.lessons import Lessons
from onnxq.visit import Correction, Visit


@dataclass(frozen=True)
class Edit:
    """What a pass did at one place."""

    where: str
    what: str


@dataclass(frozen=True)
class Skip:
    """What a pass left alone at one place, and why: a sentence."""

    where: str
    why: str


@dataclass
class Outcome:
    """What one run of a pass did; true if it changed the model.

    Attributes:
        edits: What was changed.
        skips: What was left alone, and why.
        remarks: What the user should hear of: unusual places, and what was done about them.
    """

    edits: list[Edit] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    remarks: list[Edit] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.edits)

    def edit(self, where: str, what: str) -> None:
        """Record a change."""
        self.edits.append(Edit(where, what))

    def remark(self, where: str, what: str) -> None:
        """Record something unusual."""
        self.remarks.append(Edit(where, what))

    def skip(self, where: str, why: str) -> None:
        """Record a place left alone."""
        self.skips.append(Skip(where, why))


REGISTRY: dict[str, type["Pass"]] = {}

Statistics = Mapping[str, Observer]


class Pass(BaseModel):
    """One step over a model, edited in place.

    Attributes:
        name: In recipes, reports and tables.
        exact: True: the float function is unchanged, and the tests hold the pass to it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    exact: ClassVar[bool]

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if not hasattr(cls, "name"):
            return  # a kind of pass, not one
        if cls.name in REGISTRY:
            raise TypeError(f"two passes are named {cls.name}")
        REGISTRY[cls.name] = cls

    @classmethod
    def summary(cls) -> str:
        """First line of the docstring."""
        return (cls.__doc__ or "").strip().splitlines()[0]

    def observe(self, model: Model) -> dict[str, Observer]:
        """Tensors to watch on the calibration data, each with the fold that watches it."""
        return {}

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        raise NotImplementedError

    def rehearse(self, model: Model) -> None:
        """Run without statistics, for others to look into what the model computes."""
        self.run(model, {})

    def options(self) -> dict[str, Any]:
        """The fields, as plain values."""
        return self.model_dump(mode="json")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """A pass from plain values; unknown keys are errors."""
        return cls.model_validate(dict(options))


class LayerPass(Pass):
    """A lossy step over one layer after the other, each seen behind the quantized ones before it.

    Passes of this kind that follow each other share one walk, in which every layer runs once.
    """

    exact: ClassVar[bool] = False

    def choose(self, visit: Visit, outcome: Outcome) -> None:
        """Choose the layer's integer weight, before it runs."""

    def correct(self, visit: Visit, seen: OutputMoments, outcome: Outcome) -> Correction | None:
        """Correct the layer, in the plan, for what it returned; say what that makes of it."""
        return None


class LearnedPass(Pass):
    """A lossy step that trains a plan on calibration data, with the float model as its teacher.

    Needs torch, which it imports when it runs.
    """

    exact: ClassVar[bool] = False

    def learn(self, model: Model, reference: Model, lessons: Lessons) -> Outcome:
        """Train the plan of ``model``, in place.

        Args:
            model: The planned model.
            reference: The float model, whose tensors have the same names.
            lessons: The calibration data.
        """
        raise NotImplementedError


class Source(Protocol):
    """Calibration data."""

    def collect(self, model: Model, observers: dict[str, Observer]) -> Statistics:
        """Stream the data through a model into observers."""

    def walk(
        self, model: Model, written: Model, steps: Sequence[LayerPass], judged: bool
    ) -> dict[str, Outcome]:
        """Visit the layers of ``model``, which would be deployed as ``written``.

        ``judged`` says that the samples held out are to judge what becomes of the model.
        """

    def teach(self, model: Model, write: Callable[[Model], Model]) -> Lessons:
        """The data in memory, for training; ``write`` gives a model as it would be deployed."""


def run(
    model: Model,
    passes: Sequence[Pass],
    data: Source | None,
) -> dict[str, Outcome]:
    """Run passes in order and return what each did, by its name.

    Args:
        model: Edited in place.
        passes: Each runs once; layer passes in a row run together.
        data: Calibration data, if there are any.

    Raises:
        CalibrationError: A pass needs statistics and there are no data.
        PassError: A pass failed; the message names it, the cause is chained.
    """
    outcomes: dict[str, Outcome] = {}
    rest = list(passes)
    reference = model.clone()
    _require_torch(passes)
    while rest:
        walking = _layer_passes(rest)
        steps: Sequence[Pass] = walking or rest[:1]
        rest = rest[len(steps) :]
        name = " and ".join(step.name for step in steps)
        try:
            if walking:
                found = _walk(model, walking, rest, data)
            elif isinstance(steps[0], LearnedPass):
                found = _learn(model, reference, steps[0], rest, data)
            else:
                found = _run(model, steps[0], data)
            model.tidy()
        except (OnnxqError, OSError, MemoryError):  # a full disk is no fault of a pass
            raise
        except Exception as cause:
            after = ", ".join(outcomes) or "nothing"
            message = f"{name} failed ({type(cause).__name__}: {cause}); done before: {after}"
            raise PassError(message) from cause
        outcomes |= found
    return outcomes


def _require_torch(steps: Sequence[Pass]) -> None:
    """Raise UsageError if a pass trains and there is nothing to train with."""
    trains = [step.name for step in steps if isinstance(step, LearnedPass)]
    if not trains:
        return
    needed = f"{trains[0]} trains, which needs torch"
    if importlib.util.find_spec("torch") is None:
        raise UsageError(f"{needed}: pip install 'onnxq[torch]'")
    try:
        importlib.import_module("torch")
    except Exception as cause:  # whatever is wrong with an installation
        raise UsageError(f"{needed}, and that cannot be imported: {cause}") from cause


def _layer_passes(steps: Sequence[Pass]) -> list[LayerPass]:
    """Those that the steps begin with."""
    found: list[LayerPass] = []
    for step in steps:
        if not isinstance(step, LayerPass):
            break
        found.append(step)
    return found


def _run(model: Model, step: Pass, data: Source | None) -> dict[str, Outcome]:
    """Collect what a pass wants to know and run it."""
    observers = step.observe(model)
    if observers and data is None:
        raise CalibrationError(f"{step.name} needs calibration data: give --calib")
    statistics = data.collect(model, observers) if data and observers else {}
    return {step.name: step.run(model, statistics)}


def _walk(
    model: Model, steps: list[LayerPass], rest: Sequence[Pass], data: Source | None
) -> dict[str, Outcome]:
    """Walk through the model as the rest of the passes would write it."""
    if data is None:
        raise CalibrationError(f"{steps[0].name} needs calibration data: give --calib")
    judged = any(isinstance(step, LearnedPass) for step in rest)
    return data.walk(model, _written(model, rest), steps, judged)


def _learn(
    model: Model, reference: Model, step: LearnedPass, rest: Sequence[Pass], data: Source | None
) -> dict[str, Outcome]:
    """Train the model, which the rest of the passes would write."""
    if data is None:
        raise CalibrationError(f"{step.name} needs calibration data: give --calib")
    lessons = data.teach(model, partial(_written, rest=rest))
    if lessons.checkpoint is not None:
        models = model.digest(), lessons.write(model).digest()
        parts = __version__, lessons.digest, *models, str(step.options())
        lessons = replace(lessons, digest=hashlib.sha256("".join(parts).encode()).hexdigest())
    outcome = step.learn(model, reference, lessons)
    if lessons.others:
        outcome.remark("model", f"{lessons.others} samples of other shapes are left out")
    return {step.name: outcome}


def _written(model: Model, rest: Sequence[Pass]) -> Model:
    """The model as passes that need no data, or are done, would write it."""
    written = model.clone()
    for step in rest:
        if not isinstance(step, LayerPass | LearnedPass):
            step.rehearse(written)
            written.tidy()
    return written
