"""Where samples come from: folders of images, archives of arrays, or what the caller made."""

import zipfile
import zlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from onnxq.errors import CalibrationError, InputError, UsageError
from onnxq.runtime import Input
from onnxq.samples.data import Arrays, Data, Feeds, Images, Samples
from onnxq.samples.labels import ClassFolders, by_folder, by_table, hidden_folder
from onnxq.samples.preprocess import Preprocess, as_input
from onnxq.spec import Array

# Suffixes of files of ready tensors.
ARRAYS = (".npz", ".npy")


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
