"""What a pass that trains is given: calibration samples in memory, and how to speak to the user."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxq.errors import CalibrationError
from onnxq.graph.model import Model
from onnxq.progress import Progress
from onnxq.samples.data import Batch
from onnxq.spec import Array, Ints

# Of so many samples one is held out: nothing is trained on it, and it judges what was.
HELD_OUT = 10

Feeds = Mapping[str, Array]


@dataclass(frozen=True)
class Lessons:
    """Samples of one shape, and the rest of what training needs.

    Attributes:
        feeds: Every input, samples along the first axis.
        fixed: The number of samples that have to run together, if it is not open.
        images: Name of the input that holds images, (n, channels, height, width); None if there is
            none.
        others: Number of samples left out, since their shape is another.
        seed: Of everything that is drawn.
        digest: Tells this training from others: its samples, its seed, the plan, the pass.
        checkpoint: Where the state of the training is kept, to go on from; None for nowhere.
        write: The model as it would be deployed with the plan as it is.
        progress: Called with what is done, the steps since the last call and all of them, and a
            note on how well it goes.
    """

    feeds: Feeds
    fixed: int | None
    images: str | None
    others: int
    seed: int
    digest: str
    checkpoint: Path | None
    write: Callable[[Model], Model]
    progress: Progress

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(next(iter(self.feeds.values())))

    @property
    def held(self) -> Ints:
        """Rows that judge."""
        return np.arange(HELD_OUT - 1, self.count, HELD_OUT)

    @property
    def taught(self) -> Ints:
        """Rows that are trained on."""
        return np.setdiff1d(np.arange(self.count), self.held)

    @property
    def few(self) -> dict[str, Array]:
        """As many samples as have to run together, or two."""
        return self.rows(np.arange(self.fixed or 2) % self.count)

    def portions(self, chosen: Ints, size: int) -> list[Ints]:
        """Rows that run together, at most ``size``.

        Of a fixed number, the last are filled up with the first.
        """
        if self.fixed:
            size = self.fixed
            chosen = np.resize(chosen, -(-len(chosen) // size) * size)
        return np.split(chosen, range(size, len(chosen), size))

    def rows(self, chosen: Ints) -> dict[str, Array]:
        """Some of the samples."""
        return {name: x[chosen] for name, x in self.feeds.items()}


def of_one_shape(batches: Sequence[Batch]) -> tuple[dict[str, Array], list[int], int]:
    """The samples of the shape that most have, their keys, and how many others there are.

    Raises:
        CalibrationError: An input has no row for each sample.
    """
    for batch in batches:
        rows = max((len(x) for x in batch.feeds.values() if x.ndim), default=0)
        for name, x in batch.feeds.items():
            if x.ndim == 0 or len(x) != rows:
                raise CalibrationError(f"input {name} has no row for each sample to train on")
    groups: dict[frozenset[tuple[str, tuple[int, ...]]], list[Batch]] = {}
    for batch in batches:
        shapes = frozenset((name, x.shape[1:]) for name, x in batch.feeds.items())
        groups.setdefault(shapes, []).append(batch)
    count = {shape: sum(batch.valid for batch in group) for shape, group in groups.items()}
    most = max(groups, key=count.__getitem__)
    feeds = {
        name: np.concatenate([batch.trim(batch.feeds[name]) for batch in groups[most]])
        for name in groups[most][0].feeds
    }
    keys = [key for batch in groups[most] for key in batch.keys[: batch.valid]]
    return feeds, keys, sum(count.values()) - count[most]
