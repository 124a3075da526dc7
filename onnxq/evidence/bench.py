"""Latency of quantized models as ratios to the float model, measured interleaved in one run."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxq.errors import InputError, UsageError
from onnxq.runtime import Input, Session, random_feeds
from onnxq.spec import Array

# Height and width used where a model leaves them open.
OPEN_SIZE = 224
ROUNDS = 31
# A slice of one model's turn must be long against the clock and short against drift.
SLICE_SECONDS = 0.02
# Each model is loaded so often, in turns.
LOADS = 5


@dataclass
class Speed:
    """Latency of one model against the first.

    Attributes:
        file: The model.
        ratio: Median over rounds of float latency / this latency: above 1 is faster.
        low: First quartile of the ratio.
        high: Third quartile.
        ms: Median milliseconds of a run, of this machine at this moment.
        load: Median over LOADS of this time to load / the first model's: above 1 is slower.
    """

    file: str
    ratio: float
    low: float
    high: float
    ms: float
    load: float


def bench(
    files: Sequence[Path],
    *,
    threads: int = 1,
    batch: int = 1,
    progress: Callable[[str, int, int | None], None] = lambda stage, advance, total: None,
) -> list[Speed]:
    """Time models in turns, A B C A B C ..., so that drift of the machine meets all alike.

    Args:
        files: The float model first.
        threads: Intra-op threads of each, no more than there are cores: they wait for each other in
            loops that never sleep.
        batch: Batch size where it is open.
        progress: Called after every round.

    Raises:
        UsageError: There are fewer cores than threads.
        InputError: A model cannot be loaded or run.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if threads > (cores or 1):
        raise UsageError(f"--threads {threads}: there are {cores or 1} cores to run on")
    sessions = [Session(file, threads=threads) for file in files]
    feeds = random_feeds([_sized(i, batch) for i in sessions[0].inputs])
    for file, session in zip(files, sessions, strict=True):
        if [i.name for i in session.inputs] != list(feeds):
            raise InputError(f"{file}: its inputs are not those of {files[0]}")
    repeats = [max(1, round(SLICE_SECONDS / _timed(s, feeds, 3))) for s in sessions]
    times = np.empty((ROUNDS, len(sessions)))
    for turn in range(ROUNDS):
        for column, (session, count) in enumerate(zip(sessions, repeats, strict=True)):
            times[turn, column] = _timed(session, feeds, count)
        progress("timing", 1, ROUNDS)
    loads = np.array([[_loaded(file) for file in files] for _ in range(LOADS)])
    ratios = times[:, :1] / times
    load = np.median(loads / loads[:, :1], axis=0)
    low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75), axis=0)
    return [
        Speed(str(f), float(median[i]), float(low[i]), float(high[i]), float(ms), float(load[i]))
        for i, (f, ms) in enumerate(zip(files, np.median(times, axis=0) * 1e3, strict=True))
    ]


def _timed(session: Session, feeds: dict[str, Array], count: int) -> float:
    """Seconds a run takes, over ``count`` runs after one that is not counted."""
    session.run(feeds)
    start = time.perf_counter()
    for _ in range(count):
        session.run(feeds)
    return (time.perf_counter() - start) / count


def _loaded(file: Path) -> float:
    """Seconds to load a model: what unpacks its weights runs then."""
    start = time.perf_counter()
    Session(file)
    return time.perf_counter() - start


def _sized(i: Input, batch: int) -> Input:
    """The input with its open sizes filled in: ``batch`` first, OPEN_SIZE after."""
    shape = i.shape or ()
    return Input(
        i.name,
        i.dtype,
        tuple(d or (batch if axis == 0 else OPEN_SIZE) for axis, d in enumerate(shape)),
    )
