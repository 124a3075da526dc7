"""Writing files so that a failure leaves nothing behind and nothing is overwritten by mistake."""

import contextlib
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from PIL import Image

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
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path}: the folder {path.parent} may not be written to")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file")
    if source is not None and path.exists() and path.samefile(source):
        raise UsageError(f"{path}: is the input; the input is never overwritten")
    if path.exists() and not force:
        raise UsageError(f"{path}: exists already; --force replaces it")


def check_model_path(path: Path) -> None:
    """Raise UsageError unless onnx and onnxruntime, which take UTF-8 alone, can open ``path``."""
    try:
        str(path).encode()
    except UnicodeEncodeError as cause:
        raise UsageError(f"{path}: the path of a model must be UTF-8: name another file") from cause


def check_apart(
    written: Mapping[str, Iterable[Path | None]], read: Mapping[str, Iterable[object]]
) -> None:
    """Raise UsageError if a file to write is read as well, or is written for two flags.

    Args:
        written: Files by the flag that names them.
        read: Files and folders, likewise; what is no path, as a preset or an array, is passed over.
    """
    taken = [(flag, Path(f)) for flag, fs in read.items() for f in fs if isinstance(f, str | Path)]
    for flag, files in written.items():
        own = [file for file in files if file is not None]
        for file in own:
            for other, known in taken:
                if _is_of(file, known):
                    raise UsageError(f"{flag} {file}: is a file of {other}: name another file")
        taken += [(flag, file) for file in own]


def _is_of(file: Path, known: Path) -> bool:
    """Whether a file is another one, under whatever name, or an image in that folder."""
    if file.resolve() == known.resolve():
        return True
    if not (file.exists() and known.exists()):
        return False
    if known.is_dir():
        inside = file.resolve().is_relative_to(known.resolve())
        return inside and file.suffix.lower() in Image.registered_extensions()
    return file.samefile(known)


def check_checkpoint(path: Path) -> None:
    """Raise UsageError unless ``path`` may hold the states of trainings."""
    check_writable(path, None, force=True)
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
    except OSError as error:
        if error.filename in (None, str(temporary)):  # a write does not say what it writes
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def filling(folder: Path) -> Iterator[None]:
    """Make a folder, which is empty again if what follows fails.

    Raises:
        UsageError: It has something in it already, or is a file.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder}: exists already; name a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for file in folder.iterdir():
            file.unlink()
        raise


@contextlib.contextmanager
def restored_on_failure(path: Path) -> Iterator[None]:
    """Put back what lay at ``path`` and its data file, or nothing, if what follows fails."""
    kept = {f: f.with_name(f".{f.name}.{os.getpid()}.old") for f in (path, data_file(path))}
    kept = {file: aside for file, aside in kept.items() if file.exists()}
    try:
        for file, aside in kept.items():
            aside.hardlink_to(file)
        yield
    except BaseException:
        for file in {path, data_file(path)} - kept.keys():
            file.unlink(missing_ok=True)
        for file, aside in kept.items():
            if aside.exists():  # a signal may come before it is there
                aside.replace(file)
        raise
    finally:
        for aside in kept.values():
            aside.unlink(missing_ok=True)


def data_file(path: Path) -> Path:
    """Where the weights of a model go that is too large for one file."""
    return Path(f"{path}.data")
