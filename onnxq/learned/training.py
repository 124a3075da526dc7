"""The loop that all learned passes share: steps, a judge, the best so far."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from onnxq.errors import UsageError
from onnxq.files import replacing
from onnxq.lessons import Lessons

# Share of the steps over which learning rates rise, and how often the judge is asked.
WARMUP, JUDGEMENTS = 0.05, 12
# How many judgements in a row may find nothing better.
PATIENCE = 4


@dataclass(frozen=True)
class Group:
    """Parameters of one kind, and the peak of their learning rate."""

    parameters: Sequence[nn.Parameter]
    rate: float


@dataclass
class Trained:
    """How far a training is.

    Attributes:
        before: What the judge said of the start.
        best: And of the best so far.
        step: Steps done.
        since: Judgements since the best.
        kept: The parameters of the best.
        interrupted: The user ended it.
    """

    before: float
    best: float
    step: int
    since: int
    kept: list[Tensor]
    interrupted: bool = False

    def __str__(self) -> str:
        change = f"loss on held-out samples {self.before:.4g} -> {self.best:.4g}"
        return f"{change}, {self.step} steps"


def optimise(
    name: str,
    groups: Sequence[Group],
    loss: Callable[[int], Iterable[Tensor]],
    judge: Callable[[], float],
    steps: int,
    lessons: Lessons,
    patience: int = PATIENCE,
) -> Trained:
    """Take Adam's steps, rates falling along a cosine, and leave the parameters at their best.

    The start counts: what was trained is never worse for the judge. Ctrl-C ends a training early,
    with the best so far.

    Args:
        name: Of the training: for the user, and in a checkpoint.
        groups: What is trained.
        loss: The loss of a step, by its number, in parts that add up.
        judge: A figure that should be small, on samples that nothing is trained on.
        steps: To take.
        lessons: The rest.
        patience: So many judgements in a row that find nothing better end the training.

    Raises:
        UsageError: The checkpoint is of another training.
    """
    parameters = [p for group in groups for p in group.parameters]
    optimizer = torch.optim.Adam([{"params": list(g.parameters)} for g in groups])
    key = f"{name}, {steps} steps on {lessons.digest}"
    state = _resume(lessons.checkpoint, key, parameters, optimizer)
    if state is None:
        start = judge()
        state = Trained(start, start, 0, 0, _copies(parameters))
    every = max(1, steps // JUDGEMENTS)
    lessons.progress(name, state.step, steps)
    try:
        while state.step < steps and state.since < patience:
            for group, entry in zip(groups, optimizer.param_groups, strict=True):
                entry["lr"] = group.rate * _schedule((state.step + 1) / steps)
            optimizer.zero_grad()
            for part in loss(state.step):
                part.backward()
            optimizer.step()
            state.step += 1
            lessons.progress(name, 1, steps)
            if state.step % every == 0 or state.step == steps:
                found = judge()
                state.since += 1
                if found < state.best:
                    state.best, state.since, state.kept = found, 0, _copies(parameters)
                _save(lessons.checkpoint, key, parameters, optimizer, state)
    except KeyboardInterrupt:
        state.interrupted = True
    _restore(parameters, state.kept)
    return state


def _schedule(done: float) -> float:
    """The learning rate after a share of the steps, relative to its peak."""
    return min(1.0, done / WARMUP) * (1 + math.cos(math.pi * done)) / 2


def _copies(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [p.detach().clone() for p in parameters]


def _restore(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def _save(
    path: Path | None,
    key: str,
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    state: Trained,
) -> None:
    """Write the state into the checkpoint, beside those of other trainings."""
    if path is None:
        return
    now = {"parameters": _copies(parameters), "optimizer": optimizer.state_dict()}
    known = torch.load(path, map_location="cpu") if path.exists() else {}
    with replacing(path) as temporary:
        torch.save(known | {key: now | {"state": asdict(state)}}, temporary)


def _resume(
    path: Path | None,
    key: str,
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> Trained | None:
    """The state that the checkpoint holds of this training, put back; None without one.

    Raises:
        UsageError: There is no way to read it.
    """
    if path is None or not path.exists():
        return None
    try:
        known = torch.load(path, map_location="cpu")
        found = known.get(key)
    except Exception as cause:
        raise UsageError(f"{path}: is no checkpoint: name another file, or move it away") from cause
    if found is None:
        return None
    _restore(parameters, found["parameters"])
    optimizer.load_state_dict(found["optimizer"])
    return Trained(**found["state"])
