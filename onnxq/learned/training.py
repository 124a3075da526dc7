"""The loop that all learned passes share: steps, a judge, the best so far."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onnxq.files import TRAININGS, not_a_checkpoint, replacing
from onnxq.samples.lessons import Lessons
from onnxq.spec import Array

# Share of the steps over which learning rates rise, and how often the judge is asked.
WARMUP, JUDGEMENTS = 0.05, 12
# So many times in a row that the judge's figure rose, in the second half, end a training.
PATIENCE = 3
# A mean loss has fallen if it fell by so many standard errors; too few samples do not tell them.
SURE, FEW = 2.0, 10
# What is said of a training that the user ended, and of layers that it had not come to or that won
# nothing.
LEFT_OUT = "interrupted: the best so far is kept, later steps are left out"
INTERRUPTED = "the training was interrupted before it came to it"
UNDONE = "its training won nothing for certain and was undone"


@dataclass(frozen=True)
class Group:
    """Parameters of one kind, and the peak of their learning rate."""

    parameters: Sequence[nn.Parameter]
    rate: float


@dataclass
class Trained:
    """How far a training is.

    Attributes:
        start: What the judge said of the start, a loss for each sample; none before it was asked.
        best: The mean of the best state since then; infinite before there is one.
        last: And that of the last one; likewise.
        sure: The best is better than the start by more than chance.
        step: Steps done.
        rises: How often in a row that figure has risen, in the second half.
        kept: The parameters of the best.
        interrupted: The user ended it.
    """

    start: list[float]
    best: float
    last: float
    sure: bool
    step: int
    rises: int
    kept: list[Tensor]
    interrupted: bool = False

    @property
    def before(self) -> float:
        """The mean loss of the start; infinite before the judge was asked."""
        return float(np.mean(self.start)) if self.start else math.inf

    @property
    def undone(self) -> bool:
        """Whether the start is what is left in the end."""
        return not (self.best < self.before and self.sure)

    @property
    def note(self) -> str:
        """The judge's best figure, while it lasts."""
        return f"held-out loss {min(self.best, self.before):.4g}, was {self.before:.4g}"

    def __str__(self) -> str:
        if math.isinf(self.last):
            return f"{self.step} steps, none of them judged: left as it was"
        what = f"loss on held-out samples {self.before:.4g} -> {self.best:.4g}, {self.step} steps"
        if not self.undone:
            return what
        why = "may be chance" if self.best < self.before else "no better"
        return f"{what}: {why}, left as it was"


def optimise(
    name: str,
    groups: Sequence[Group],
    loss: Callable[[int], Iterable[Tensor]],
    judge: Callable[[], Array],
    steps: int,
    lessons: Lessons,
    memory: float = 0.0,
) -> Trained:
    """Take Adam's steps, rates falling along a cosine, and leave the parameters at their best.

    What is judged and kept is a moving average over the steps (Polyak and Juditsky 1992): single
    states are blurred by steps that are as long for noise as for a slope. High rates make things
    worse before they fall: it is in the second half of the steps that a training ends early, when
    things get worse and worse. What is no better than the start in the end, or by no more than
    chance, is undone. Ctrl-C ends a training and keeps the best so far.

    Args:
        name: Of the training: for the user, and in a checkpoint.
        groups: What is trained.
        loss: The loss of a step, by its number, in parts that add up.
        judge: Losses of samples that nothing is trained on, float64 (samples,).
        steps: To take.
        lessons: The rest.
        memory: Share of the steps that the average is over; with 0 it is the last state.

    Raises:
        UsageError: The checkpoint is something else.
        OSError: It cannot be written.
    """
    parameters = [p for group in groups for p in group.parameters]
    optimizer = torch.optim.Adam([{"params": list(g.parameters)} for g in groups])
    key = f"{name}, {steps} steps on {lessons.digest}"
    start, average = _copies(parameters), _copies(parameters)
    resumed = _resume(lessons.checkpoint, key, parameters, average, optimizer)
    state = resumed or Trained([], math.inf, math.inf, False, 0, 0, start)
    every = max(1, steps // JUDGEMENTS)
    try:
        if resumed is None:
            state.start = judge().tolist()
        lessons.progress(name, state.step, steps, state.note)
        while state.step < steps and state.rises < PATIENCE:
            for group, entry in zip(groups, optimizer.param_groups, strict=True):
                entry["lr"] = group.rate * _schedule((state.step + 0.5) / steps)
            optimizer.zero_grad()
            for part in loss(state.step):
                part.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            state.step += 1
            _approach(average, parameters, 1.0 / (1.0 + memory * steps))
            if state.step % every == 0 or state.step == steps:
                _ask(judge, state, parameters, average, late=2 * state.step > steps)
                _save(lessons.checkpoint, key, parameters, average, optimizer, state)
            lessons.progress(name, 1, steps, state.note)
        lessons.progress(name, steps - state.step, steps, state.note)
    except KeyboardInterrupt:
        state.interrupted = True
    _restore(parameters, start if state.undone else state.kept)
    return state


def _ask(
    judge: Callable[[], Array],
    state: Trained,
    parameters: Sequence[nn.Parameter],
    average: Sequence[Tensor],
    late: bool,
) -> None:
    """Have the average judged, and keep it if it is the best so far."""
    latest = _copies(parameters)
    _restore(parameters, average)
    losses = judge()
    _restore(parameters, latest)
    found = float(np.mean(losses))
    rises = late and not found <= state.last
    state.last, state.rises = found, state.rises + 1 if rises else 0
    if found < state.best:
        state.best, state.kept = found, [x.clone() for x in average]
        state.sure = surely_less(losses, np.array(state.start))


def surely_less(losses: Array, start: Array) -> bool:
    """Whether losses of the same samples, each (n,), have fallen by more than chance.

    What rounding does to a sample differs from one set of weights to the next, and so does the
    mean over a few samples, of which the best of a dozen is taken: it has to fall by ``SURE``
    standard errors of the differences.
    """
    gain = start - losses
    if len(gain) < FEW or not np.isfinite(gain).all():
        return bool(losses.mean() < start.mean())
    return bool(gain.mean() > SURE * gain.std(ddof=1) / math.sqrt(len(gain)))


def _schedule(done: float) -> float:
    """The learning rate at a share of the steps, relative to its peak; 0 at both ends alone."""
    return min(1.0, done / WARMUP) * (1 + math.cos(math.pi * done)) / 2


def _approach(average: Sequence[Tensor], parameters: Sequence[nn.Parameter], share: float) -> None:
    """Move the average by this share of the way to the parameters."""
    with torch.no_grad():
        for mean, parameter in zip(average, parameters, strict=True):
            mean.lerp_(parameter, share)


def _copies(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [p.detach().clone() for p in parameters]


def _restore(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def _save(
    path: Path | None,
    key: str,
    parameters: Sequence[nn.Parameter],
    average: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    state: Trained,
) -> None:
    """Write the state into the checkpoint, beside those of other trainings."""
    if path is None:
        return
    now = {
        "parameters": _copies(parameters),
        "average": list(average),
        "optimizer": optimizer.state_dict(),
        "state": asdict(state),
    }
    known = _load(path) | {key: now}
    # By itself torch opens a file in C++, and a full disk is a RuntimeError.
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save({TRAININGS: known}, file)


def _resume(
    path: Path | None,
    key: str,
    parameters: Sequence[nn.Parameter],
    average: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
) -> Trained | None:
    """The state that the checkpoint holds of this training, put back; None without one."""
    if path is None or (found := _load(path).get(key)) is None:
        return None
    _restore(parameters, found["parameters"])
    _restore(average, found["average"])
    optimizer.load_state_dict(found["optimizer"])
    return Trained(**found["state"])


def _load(path: Path) -> dict[str, Any]:
    """The states in a checkpoint, which may not be there yet, by their keys.

    Raises:
        UsageError: It is a file of something else.
    """
    if not path.exists():
        return {}
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True)[TRAININGS])
    except Exception as cause:
        raise not_a_checkpoint(path) from cause
