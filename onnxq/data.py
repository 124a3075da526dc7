"""Samples in, batches out: image folders, arrays and iterables, one batch in memory at a time."""

import itertools
import zipfile
import zlib
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from onnxq.errors import CalibrationError, InputError, UsageError
from onnxq.labels import ClassFolders, by_folder, by_table, hidden_folder
from onnxq.preprocess import Preprocess, as_input
from onnxq.runtime import Input, Session
from onnxq.spec import Array

# Elements of the input in one batch: enough to amortize a call, little enough for any model.
BATCH_ELEMENTS = 1 << 15
LARGEST_BATCH = 64
# Suffixes of files of ready tensors.
ARRAYS = (".npz", ".npy")

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
        assumed: Nobody declared the preprocessing.
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
    assumed: bool = False
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
        kept = [row for row in range(_rows(feed)) if key + row not in keys]
        if whole:
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


def open_samples(
    source: Data,
    inputs: Sequence[Input],
    preprocess: Preprocess,
    size: int | None = None,
    seed: int = 0,
    labels: str | Path = "none",
) -> Samples:
    """Open a folder of images, an .npz or .npy file, or feeds made by the caller.

    Images in hidden folders are none of the samples.

    Args:
        source: Folder (searched recursively), file, or iterable of {input name: array}.
        inputs: The model's inputs.
        preprocess: For images.
        size: Draw this many samples at random; None takes all.
        seed: Of the draw.
        labels: ``none``; ``auto`` for class folders in sorted order, or for an array named
            ``labels``; or a CSV file of image name and class, for a folder.

    Raises:
        UsageError: ``size`` is below 1, ``seed`` below 0, or a CSV file is to label arrays.
        InputError: The CSV file is missing, no CSV, or lacks an image.
        CalibrationError: Nothing there, nothing readable, or not what the model takes.
    """
    if size is not None and size < 1:
        raise UsageError(f"{size} samples: give 1 or more")
    if seed < 0:
        raise UsageError(f"seed {seed}: give 0 or more")
    if not inputs:
        raise CalibrationError("the model has no inputs, so that no data can be fed to it")
    _check_table(labels, source)
    if isinstance(source, Images | Arrays | Feeds):
        return source
    if not isinstance(source, str | Path):
        limited = Feeds(source, 2**62 if size is None else size)  # type: ignore[arg-type]
        # The data are read more than once, which an iterator does not survive.
        return limited if iter(limited.feeds) is not limited.feeds else limited.held()
    path = Path(source)
    rng = np.random.default_rng(seed)
    if path.suffix in ARRAYS:
        return _open_arrays(path, inputs, size, rng, str(labels) == "auto")
    if not path.is_dir():
        kind = "not a folder, .npz or .npy" if path.exists() else "no such file or folder"
        raise CalibrationError(f"{path}: {kind}")
    target = _image_input(inputs, path)
    found = sorted(f for f in path.rglob("*") if f.is_file())
    suffixes = _image_suffixes(found)
    hidden = {f: hidden_folder(f, path) for f in found if f.suffix.lower() in suffixes}
    files = [f for f, folder in hidden.items() if folder is None]
    if not files:
        raise CalibrationError(f"{path}: no images in it (any format Pillow reads)")
    skipped = {str(folder): "a hidden folder" for folder in hidden.values() if folder is not None}
    known = ClassFolders()
    if str(labels) == "auto":
        known = by_folder(path, files)
        skipped |= {str(folder): "no images in it, but a class" for folder in known.empty}
    elif str(labels) != "none":
        known = ClassFolders(by_table(path, files, Path(labels)))
    chosen = _draw(len(files), size, rng)
    kept = None if known.labels is None else [known.labels[i] for i in chosen]
    return Images([files[i] for i in chosen], preprocess, target, kept, skipped, known.why)


def _check_table(labels: str | Path, source: Data) -> None:
    """Refuse a CSV file of labels that is not there, or that has no images to label.

    Raises:
        InputError: There is no such file.
        UsageError: The samples are arrays, which have no names to look up.
    """
    if str(labels) in ("none", "auto"):
        return
    if not Path(labels).exists():
        raise InputError(f"{labels}: no such file; labels are auto, none or a CSV file")
    if not isinstance(source, str | Path) or Path(source).suffix in ARRAYS:
        raise UsageError(
            f"{labels}: a CSV file labels a folder of images; arrays bring their labels in an .npz "
            "file, as an array named labels"
        )


def _image_suffixes(files: Iterable[Path]) -> Collection[str]:
    """Suffixes Pillow reads; it loads its rarer formats only if there is a file of another kind."""
    Image.preinit()
    if not {f.suffix.lower() for f in files} <= set(Image.EXTENSION):
        Image.init()
    return Image.EXTENSION


def _draw(count: int, size: int | None, rng: np.random.Generator) -> list[int]:
    """A sorted random subset of range(count), or all of it."""
    if size is None or size >= count:
        return list(range(count))
    return sorted(int(i) for i in rng.choice(count, size, replace=False))


def _open_arrays(
    path: Path, inputs: Sequence[Input], size: int | None, rng: np.random.Generator, labeled: bool
) -> Arrays:
    try:
        if path.suffix == ".npy":
            arrays: dict[str, Array] = {inputs[0].name: np.lib.format.open_memmap(path, mode="r")}
        else:
            with path.open("rb") as file, np.lib.npyio.NpzFile(file) as archive:
                # What is no array comes as bytes.
                arrays = {k: x for k, x in archive.items() if isinstance(x, np.ndarray)}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as cause:
        raise CalibrationError(f"{path}: not a readable {path.suffix} file ({cause})") from cause
    names = [i.name for i in inputs]
    labels = None if "labels" in names else arrays.pop("labels", None)
    missing = [name for name in names if name not in arrays]
    if missing:
        raise CalibrationError(
            f"{path}: no array named {', '.join(missing)}; the model's inputs are "
            f"{', '.join(names)}, the file holds {', '.join(arrays) or 'nothing'}"
        )
    try:
        arrays = {i.name: as_input(arrays[i.name], i.dtype) for i in inputs}
        kept = None if labels is None or not labeled else [int(c) for c in labels]
    except (ValueError, TypeError) as cause:
        raise CalibrationError(f"{path}: its arrays are not of numbers ({cause})") from cause
    counts = {len(a) if a.ndim else 0 for a in arrays.values()}
    if len(counts) != 1 or counts == {0}:
        raise CalibrationError(f"{path}: its arrays are empty or of different lengths {counts}")
    count = counts.pop()
    if kept is not None and len(kept) != count:
        raise CalibrationError(f"{path}: it has {len(kept)} labels for {count} samples")
    return Arrays(arrays, _draw(count, size, rng), kept)


def _image_input(inputs: Sequence[Input], path: Path) -> Input:
    if len(inputs) != 1:
        names = ", ".join(i.name for i in inputs)
        raise CalibrationError(
            f"{path}: a folder of images feeds one input, the model has {names}: give an .npz file"
        )
    shape = inputs[0].shape
    if shape is not None and len(shape) != 4:
        raise CalibrationError(
            f"{path}: input {inputs[0].name} has {len(shape)} axes, an image batch has 4: give an "
            ".npz file"
        )
    return inputs[0]


def _spatial(target: Input, preprocess: Preprocess) -> tuple[int, int] | None:
    """Fixed (height, width) of an image input, if both are."""
    if target.shape is None:
        return None
    h, w = target.shape[2:4] if preprocess.layout == "nchw" else target.shape[1:3]
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
                f"input {wanted.name} takes {shape}, the data are {list(x.shape)}: set resize, "
                "crop and layout in the preprocessing"
            )
    return batch
