"""Samples in, batches out, one batch in memory at a time."""

import itertools
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from onnxq.errors import CalibrationError, InputError
from onnxq.runtime import Input, Session
from onnxq.samples.preprocess import Preprocess, as_input
from onnxq.spec import Array

# Elements of the input in one batch: enough to amortize a call, little enough for any model.
BATCH_ELEMENTS = 1 << 15
LARGEST_BATCH = 64

# What Pillow raises at files that are broken, of an unknown kind or absurdly large.
UNREADABLE = (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Batch:
    """Feeds of one run.

    Attributes:
        feeds: Input name to array.
        keys: Index of each sample in its source.
        valid: Samples that count; the rest repeats them to fill a fixed batch.
    """

    feeds: dict[str, Array]
    keys: list[int]
    valid: int

    def trim(self, x: Array) -> Array:
        """``x`` without the rows of the filling, if it has a row for each sample."""
        size = len(next(iter(self.feeds.values())))
        return x[: self.valid] if self.valid < size and x.ndim and len(x) == size else x


class Samples(Protocol):
    """A source of samples, iterable any number of times.

    Attributes:
        skipped: Files that could not be read and folders left out, each with the reason.
    """

    skipped: dict[str, str]

    def items(self) -> Iterator[tuple[int, dict[str, Array]]]:
        """Index and feeds of every readable sample, each array with a leading axis."""

    @property
    def regroup(self) -> bool:
        """Whether items are single samples that may be batched at will."""

    @property
    def total(self) -> int | None:
        """Number of samples, if it is known beforehand."""


# What callers may give: a folder or file, a source that is open, or feeds by input name.
Data = str | Path | Samples | Iterable[Mapping[str, Array]]


@dataclass
class Images:
    """Image files and how to read them.

    Attributes:
        files: The chosen files.
        preprocess: From image to tensor.
        target: The model input the tensor is for.
        labels: Class of each file, or None.
        unlabeled: Why there are no labels in spite of class folders, or nothing.
        assumed: What was assumed of the preprocessing, which nobody declared, or nothing.
        spare: Bytes of memory for tensors of images, which then need not be read again.
        resized: An image had another size than the model's fixed one, and no resize was declared.
    """

    files: Sequence[Path]
    preprocess: Preprocess
    target: Input
    labels: Sequence[int] | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    unlabeled: str = ""
    resized: bool = False
    assumed: str = ""
    regroup: bool = True
    spare: int = 0
    _held: dict[int, Array] = field(default_factory=dict, init=False, repr=False)

    @property
    def total(self) -> int | None:
        """See Samples."""
        return len(self.files)

    def items(self) -> Iterator[tuple[int, dict[str, Array]]]:
        """See Samples."""
        sizes = _spatial(self.target, self.preprocess)
        unreadable = 0
        for key, file in enumerate(self.files):
            if key in self._held:
                yield key, {self.target.name: self._held[key]}
                continue
            try:
                with Image.open(file) as image:
                    x = self.preprocess.apply(image, sizes)
                    self.resized |= self.preprocess.adapts and sizes not in (None, image.size[::-1])
            except UNREADABLE as cause:
                self.skipped[str(file)] = " ".join(str(cause).split())
                unreadable += 1
                continue
            tensor = as_input(x, self.target.dtype)
            if tensor.nbytes <= self.spare:
                self.spare -= tensor.nbytes
                self._held[key] = tensor
            yield key, {self.target.name: tensor}
        if unreadable == len(self.files):
            raise CalibrationError(f"{self.files[0].parent}: none of its images can be read")


@dataclass
class Arrays:
    """Ready tensors, one array per input, samples along the first axis."""

    arrays: Mapping[str, Array]
    rows: Sequence[int]
    labels: Sequence[int] | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    regroup: bool = True

    @property
    def total(self) -> int | None:
        """See Samples."""
        return len(self.rows)

    def items(self) -> Iterator[tuple[int, dict[str, Array]]]:
        """See Samples."""
        for row in self.rows:
            yield row, {name: array[row : row + 1] for name, array in self.arrays.items()}


@dataclass
class Feeds:
    """Feeds as the caller made them, batch by batch."""

    feeds: Iterable[Mapping[str, Array]]
    size: int
    labels: Sequence[int] | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    regroup: bool = False
    total: int | None = None

    def held(self) -> "Feeds":
        """The same feeds in memory."""
        return replace(self, feeds=[feed for _, feed in self.items()])

    def items(self) -> Iterator[tuple[int, dict[str, Array]]]:
        """See Samples."""
        seen = 0
        for feed in self.feeds:
            if seen >= self.size:
                return
            if not isinstance(feed, Mapping) or not feed:
                raise CalibrationError("every feed is a dict of input name to array")
            arrays = {name: np.asarray(x) for name, x in feed.items()}
            yield seen, arrays
            seen += _rows(arrays)
        if not seen:
            raise CalibrationError("the iterable of feeds is empty, or was used up before")


def thinned(samples: "Samples", size: int) -> "Samples":
    """The same source cut down to at most ``size`` of its samples, evenly spaced."""
    if isinstance(samples, Feeds):
        return replace(samples, size=min(size, samples.size))
    if isinstance(samples, Images):
        step = -(-len(samples.files) // size)
        return replace(samples, files=samples.files[::step], labels=None, skipped={})
    assert isinstance(samples, Arrays)
    return replace(samples, rows=samples.rows[:: -(-len(samples.rows) // size)])


def without(samples: "Samples", keys: Container[int], whole: bool) -> "Samples":
    """The same source without some of its samples.

    Args:
        samples: The source.
        keys: Of the samples to leave out.
        whole: Feeds that the caller made run as they are: one stays if it holds others, too.
    """
    if isinstance(samples, Images):
        files = [f for key, f in enumerate(samples.files) if key not in keys]
        return replace(samples, files=files, labels=None, skipped={})
    if isinstance(samples, Arrays):
        return replace(samples, rows=[row for row in samples.rows if row not in keys])
    assert isinstance(samples, Feeds)
    feeds = []
    for key, feed in samples.items():
        rows = _rows(feed)
        kept = [row for row in range(rows) if key + row not in keys]
        # Not all arrays need have a row for each sample: what can stay as it is does.
        if whole or len(kept) == rows:
            feeds += [feed] if kept else []
        elif kept:
            feeds.append({name: x[kept] if x.ndim else x for name, x in feed.items()})
    return replace(samples, feeds=feeds)


def batches(samples: Samples, inputs: Sequence[Input], size: int) -> Iterator[Batch]:
    """Group samples into batches of at most ``size``, or of exactly the model's fixed size.

    Samples of different shapes never share a batch. A short last batch of a fixed size is filled
    by repeating its own samples.

    Raises:
        CalibrationError: The samples do not fit the inputs.
    """
    fixed = fixed_batch(inputs)
    size = fixed or size
    group: list[tuple[int, dict[str, Array]]] = []
    for key, feed in samples.items():
        rows = _rows(feed)
        if not samples.regroup and fixed in (None, rows):
            yield _checked(Batch(feed, list(range(key, key + rows)), rows), inputs)
            continue
        for row in range(rows):
            single = {name: x[row : row + 1] for name, x in feed.items()}
            if group and (len(group) == size or _shapes(single) != _shapes(group[0][1])):
                yield _joined(group, fixed, inputs)
                group = []
            group.append((key + row, single))
    if group:
        yield _joined(group, fixed, inputs)


def first_batch(samples: Samples, inputs: Sequence[Input]) -> Batch:
    """One sample, or as many as the model insists on.

    Raises:
        CalibrationError: It does not fit the inputs.
    """
    return next(iter(batches(samples, inputs, 1)))


def batch_size(session: Session, samples: Samples) -> int:
    """How many samples to run at once: fixed by the model, else by size, else by trial.

    A model may leave its batch open and still run one sample only, or return results that cannot
    be told apart by sample; two samples tried together show it.
    """
    if (fixed := fixed_batch(session.inputs)) is not None:
        return fixed
    if not samples.regroup:
        return 1
    first = list(itertools.islice(samples.items(), 2))
    elements = sum(x.size for x in first[0][1].values())
    wanted = max(1, min(LARGEST_BATCH, BATCH_ELEMENTS // max(elements, 1)))
    if wanted == 1 or len(first) < 2 or _shapes(first[0][1]) != _shapes(first[1][1]):
        return wanted
    pair = _joined(first, None, session.inputs)
    try:
        together = session.run(pair.feeds)
    except InputError:
        return 1
    return wanted if all(x.ndim and len(x) == 2 for x in together.values()) else 1


def fixed_batch(inputs: Sequence[Input]) -> int | None:
    """The batch size a model insists on, if it does."""
    shape = inputs[0].shape if inputs else None
    return shape[0] if shape else None


def _spatial(target: Input, preprocess: Preprocess) -> tuple[int, int] | None:
    """Fixed (height, width) of an image input, if both are."""
    if target.shape is None:
        return None
    h, w = target.shape[1:3] if preprocess.layout == "nhwc" else target.shape[2:4]
    return (h, w) if h and w else None


def _rows(feed: Mapping[str, Array]) -> int:
    """Samples in a feed: the leading size of its first array that has one."""
    rows = next((len(x) for x in feed.values() if x.ndim), 0)
    if not rows:
        raise CalibrationError("a feed holds no samples: arrays have a leading batch axis")
    return rows


def _shapes(feed: Mapping[str, Array]) -> list[tuple[int, ...]]:
    return [x.shape[1:] for x in feed.values()]


def _joined(
    group: Sequence[tuple[int, dict[str, Array]]], fixed: int | None, inputs: Sequence[Input]
) -> Batch:
    """One batch of the samples in ``group``, filled up to ``fixed``."""
    keys = [key for key, _ in group]
    filled = [group[i % len(group)][1] for i in range(fixed or len(group))]
    feeds = {name: np.concatenate([feed[name] for feed in filled]) for name in filled[0]}
    return _checked(Batch(feeds, keys, len(group)), inputs)


def _checked(batch: Batch, inputs: Sequence[Input]) -> Batch:
    """The batch, if it is what the model takes."""
    for wanted in inputs:
        x = batch.feeds.get(wanted.name)
        if x is None:
            raise CalibrationError(
                f"no data for input {wanted.name}; given: {', '.join(batch.feeds)}"
            )
        if wanted.shape is not None and (
            x.ndim != len(wanted.shape)
            or any(w not in (None, s) for w, s in zip(wanted.shape, x.shape, strict=True))
        ):
            shape = ["any" if d is None else d for d in wanted.shape]
            raise CalibrationError(
                f"input {wanted.name} takes {shape}, the data are {list(x.shape)}: set color, "
                "resize, crop and layout in the preprocessing"
            )
    return batch
