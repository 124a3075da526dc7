"""Writing files so that a failure leaves nothing behind and nothing is overwritten by mistake."""

import contextlib
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from onnxq.errors import UsageError

# Under this name, a checkpoint holds the states of trainings.
TRAININGS = "onnxq trainings"


def check_writable(path: Path, source: Path | None, force: bool) -> None:
    """Raise UsageError unless ``path`` may be written.

    Args:
        path: The file to write.
        source: A file that must never be overwritten, however ``path`` spells it.
        force: Whether another existing file may be replaced.
    """
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file")
    if source is not None and path.exists() and path.samefile(source):
        raise UsageError(f"{path}: is the input; the input is never overwritten")
    if path.exists() and not force:
        raise UsageError(f"{path}: exists already; --force replaces it")


def check_checkpoint(path: Path, *models: Path) -> None:
    """Raise UsageError unless ``path`` may hold the states of trainings.

    Args:
        path: The checkpoint.
        models: Files that are read and written meanwhile.
    """
    check_writable(path, None, force=True)
    taken = {file.resolve() for model in models for file in (model, data_file(model))}
    if path.resolve() in taken:
        raise UsageError(f"{path}: is a model of this conversion: name another file")
    if path.exists() and not _holds_trainings(path):
        raise not_a_checkpoint(path)


def not_a_checkpoint(path: Path) -> UsageError:
    """What is wrong with a file of something else."""
    return UsageError(f"{path}: is no checkpoint: name another file, or move it away")


def _holds_trainings(path: Path) -> bool:
    """Whether a file looks like a checkpoint: what torch can read shows when it is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            index = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            return any(TRAININGS.encode() in archive.read(name) for name in index)
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error):
        return False


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed to it on success and removed on failure."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def restored_on_failure(path: Path) -> Iterator[None]:
    """Put back what lay at ``path`` and its data file, or nothing, if what follows fails."""
    kept = {f: f.with_name(f".{f.name}.{os.getpid()}.old") for f in (path, data_file(path))}
    kept = {file: aside for file, aside in kept.items() if file.exists()}
    for file, aside in kept.items():
        aside.hardlink_to(file)
    try:
        yield
    except BaseException:
        for file in {path, data_file(path)} - kept.keys():
            file.unlink(missing_ok=True)
        for file, aside in kept.items():
            aside.replace(file)
        raise
    finally:
        for aside in kept.values():
            aside.unlink(missing_ok=True)


def data_file(path: Path) -> Path:
    """Where the weights of a model go that is too large for one file."""
    return path.with_name(path.name + ".data")
