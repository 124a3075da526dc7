"""One streaming pass over the calibration data: run, fold what was asked for, forget."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from onnxq.errors import CalibrationError, InputError
from onnxq.graph.model import Model
from onnxq.numerics.observe import ChannelMoments, Observer
from onnxq.pipeline import LayerPass, Outcome
from onnxq.progress import Progress, silent
from onnxq.runtime import Feeds, Session, in_order
from onnxq.samples.data import (
    LARGEST_BATCH,
    Batch,
    Samples,
    batch_size,
    batches,
    fixed_batch,
    without,
)
from onnxq.samples.lessons import HELD_OUT, Lessons, of_one_shape
from onnxq.samples.preprocess import Preprocess
from onnxq.spec import Array
from onnxq.walk import walk


@dataclass
class Calibration:
    """Calibration data bound to their preprocessing, and what was seen of them.

    Peak memory is one batch of the observed tensors and O(1) per tensor, whatever the number of
    samples.

    Attributes:
        samples: Where the data come from.
        preprocess: How images were read.
        progress: Called with the number of samples after every batch.
        count: Samples folded in the last pass.
        digest: SHA-256 over the samples of the last pass.
        moments: Per channel, of the first input, if it is an image batch.
        seed: Of what training draws.
        checkpoint: Where training keeps its state.
    """

    samples: Samples
    preprocess: Preprocess
    progress: Progress = silent
    count: int = 0
    digest: str = ""
    moments: ChannelMoments | None = None
    seed: int = 0
    checkpoint: Path | None = None

    def collect(self, model: Model, observers: dict[str, Observer]) -> dict[str, Observer]:
        """Fold every observed tensor of ``model`` over all samples.

        Raises:
            CalibrationError: The samples do not fit the model.
        """
        session = Session(model, taps=list(observers))
        hasher = hashlib.sha256()
        moments = ChannelMoments(self.preprocess.channel_axis)
        self.count = 0
        size = batch_size(session, self.samples)

        def run(batch: Batch) -> tuple[Batch, dict[str, Array]]:
            return batch, session.run(batch.feeds) | batch.feeds

        for batch, results in in_order(run, batches(self.samples, session.inputs, size)):
            for name, observer in observers.items():
                observer.update(batch.trim(results.pop(name)))
            first = batch.trim(next(iter(batch.feeds.values())))
            for source in session.inputs:
                x = np.ascontiguousarray(batch.trim(batch.feeds[source.name]))
                hasher.update(x.data)
                if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all():
                    raise CalibrationError(
                        f"the calibration data for {source.name} hold NaN or infinite values"
                    )
            if first.ndim == 4:
                moments.update(first)
            self.count += batch.valid
            self.progress("calibrating", batch.valid, self.samples.total)
        self.digest = hasher.hexdigest()
        self.moments = moments if np.ndim(moments.lo) else None
        return observers

    def walk(
        self, model: Model, written: Model, steps: Sequence[LayerPass], judged: bool
    ) -> dict[str, Outcome]:
        """Visit the layers of ``model``, which would be deployed as ``written``.

        On all samples, or without those that are held out, if these are to judge the result.
        """
        if not self.count:
            self.collect(model, {})
        session = Session(model)
        size = batch_size(session, self.samples)
        samples = self.samples
        if judged:
            _, keys, _ = of_one_shape(list(batches(samples, session.inputs, size)))
            fixed = fixed_batch(session.inputs) is not None
            samples = without(samples, set(keys[HELD_OUT - 1 :: HELD_OUT]), whole=fixed)
        # Pieces of a model have little to do for one batch.
        size = min(4 * size, LARGEST_BATCH) if size > 1 else size
        held = list(batches(samples, session.inputs, size))
        return walk(model, written, steps, held, partial(self.progress, "walking through layers"))

    def teach(self, model: Model, write: Callable[[Model], Model]) -> Lessons:
        """All samples of one shape, in memory.

        Raises:
            CalibrationError: They are too few to hold some out, or cannot be told apart.
        """
        if not self.count:
            self.collect(model, {})
        session = Session(model)
        size = batch_size(session, self.samples)
        feeds, _, others = of_one_shape(list(batches(self.samples, session.inputs, size)))
        pictures = self.moments is not None and self.preprocess.channel_axis == 1
        first = next(iter(feeds))
        images = first if pictures and feeds[first].dtype == np.float32 else None
        fixed = fixed_batch(session.inputs)
        if fixed is None and not _run_together(session, feeds):
            fixed = 1
        lessons = Lessons(
            feeds, fixed, images, others, self.seed,
            f"{self.digest} {self.seed}", self.checkpoint, write, self.progress,
        )  # fmt: skip
        if not len(lessons.held):
            raise CalibrationError(
                f"{lessons.count} samples of one shape are too few to train on: at least {HELD_OUT}"
            )
        return lessons

    def warnings(self) -> list[str]:
        """Where the data are far from what the declared normalization yields, a sentence each."""
        if self.moments is None or len(np.atleast_1d(self.moments.lo)) != self.preprocess.channels:
            return []
        lo, hi = self.preprocess.expected_range
        span = hi - lo
        found = []
        for c in range(self.preprocess.channels):
            seen = (
                f"channel {c} of the calibration data has mean {self.moments.mean[c]:.3g} and "
                f"range [{self.moments.lo[c]:.3g}, {self.moments.hi[c]:.3g}]; the declared "
                f"normalization maps 0..255 to [{lo[c]:.3g}, {hi[c]:.3g}]"
            )
            outside = (
                self.moments.lo[c] < lo[c] - 0.05 * span[c]
                or self.moments.hi[c] > hi[c] + 0.05 * span[c]
            )
            place = (self.moments.mean[c] - lo[c]) / span[c]
            narrow = self.moments.hi[c] - self.moments.lo[c] < 0.25 * span[c]
            if outside or narrow or not 0.05 < place < 0.95:
                found.append(f"{seen}: check the preprocessing")
        return found


def _run_together(session: Session, feeds: Feeds) -> bool:
    """Whether two samples run at once, and results can be told apart."""
    try:
        results = session.run({name: x[:2] for name, x in feeds.items()})
    except InputError:
        return False
    return all(x.ndim and len(x) == 2 for x in results.values())
