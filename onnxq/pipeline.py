"""A pass, what it reports, and how a sequence of passes runs over a model.

A pass is a frozen pydantic model: its fields are its options, the first line of its docstring is
its help, its file is its home. Subclassing registers it under its ``name``. A pass declares the
statistics it needs with ``observe``; the pipeline collects them and hands them to ``run``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

from onnxq.errors import CalibrationError, OnnxqError, PassError
from onnxq.model import Model
from onnxq.numerics.observe import Observer


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

    def options(self) -> dict[str, Any]:
        """The fields, as plain values."""
        return self.model_dump(mode="json")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """A pass from plain values; unknown keys are errors."""
        return cls.model_validate(dict(options))


Collect = Callable[[Model, dict[str, Observer]], Statistics]


def run(
    model: Model,
    passes: tuple[Pass, ...],
    collect: Collect | None,
    done: Callable[[Pass, Outcome], None] = lambda step, outcome: None,
) -> dict[str, Outcome]:
    """Run passes in order and return what each did, by its name.

    Args:
        model: Edited in place.
        passes: Each runs once.
        collect: Streams the calibration data through a model into observers; None without data.
        done: Called after every pass.

    Raises:
        CalibrationError: A pass needs statistics and there are no data.
        PassError: A pass failed; the message names it, the cause is chained.
    """
    outcomes: dict[str, Outcome] = {}
    for step in passes:
        try:
            observers = step.observe(model)
            if observers and collect is None:
                raise CalibrationError(f"{step.name} needs calibration data: give --calib")
            statistics = collect(model, observers) if collect and observers else {}
            outcomes[step.name] = step.run(model, statistics)
            model.tidy()
        except OnnxqError:
            raise
        except Exception as cause:
            after = ", ".join(outcomes) or "nothing"
            message = f"{step.name} failed ({type(cause).__name__}: {cause}); done before: {after}"
            raise PassError(message) from cause
        done(step, outcomes[step.name])
    return outcomes
