"""Classes of the images in a folder: from the folders they lie in, or from a table."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onnxq.errors import InputError


@dataclass(frozen=True)
class ClassFolders:
    """What the folders say.

    Attributes:
        labels: Class of each file; None if there are no class folders.
        why: Why there are none in spite of folders, or nothing.
        empty: Folders that count as a class and hold no image.
    """

    labels: list[int] | None = None
    why: str = ""
    empty: Sequence[Path] = field(default=())


def hidden_folder(file: Path, root: Path) -> Path | None:
    """The outermost hidden folder below ``root`` that a file lies in, if any.

    Notebooks and archivers leave copies of images in them, or files that only look like images.
    """
    folders = file.relative_to(root).parts[:-1]
    for depth, name in enumerate(folders, 1):
        if _is_hidden(name):
            return root.joinpath(*folders[:depth])
    return None


def by_folder(root: Path, files: Sequence[Path]) -> ClassFolders:
    """The classes of files: folders in ``root``, in sorted order, two at least."""
    classes = sorted(f.name for f in root.iterdir() if f.is_dir() and not _is_hidden(f.name))
    if len(classes) < 2:
        return ClassFolders()
    stray = [f.name for f in files if f.parent == root]
    if stray:
        return ClassFolders(
            why=f"{len(stray)} images lie beside the class folders, first {stray[0]}"
        )
    tops = [f.relative_to(root).parts[0] for f in files]
    # Said aloud: the indices of all classes behind it depend on it.
    empty = [root / name for name in sorted(set(classes) - set(tops))]
    return ClassFolders([classes.index(top) for top in tops], empty=empty)


def by_table(root: Path, files: Sequence[Path], table: Path) -> list[int]:
    """Class of every file in a CSV of names, relative to ``root`` or bare, and classes.

    Raises:
        InputError: It is no CSV, or lacks a file.
    """
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if len(row) >= 2]
        known = {row[0]: int(row[1]) for row in rows if row[1].strip().isdecimal()}
    except (OSError, UnicodeDecodeError, csv.Error) as cause:
        raise InputError(f"{table}: cannot be read as CSV ({cause})") from cause
    names = [str(f.relative_to(root)) for f in files]
    unknown = [n for n in names if n not in known and Path(n).name not in known]
    if unknown:
        raise InputError(f"{table}: {len(unknown)} images have no class in it, first {unknown[0]}")
    return [known.get(n, known.get(Path(n).name, -1)) for n in names]


def _is_hidden(folder: str) -> bool:
    return folder.startswith(".") or folder == "__MACOSX"
