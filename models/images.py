"""Labeled images from class folders, or from an archive of them. Needs no torch."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def read(data: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read `data/part/CLASS/*` or `data/part.tar`, classes numbered in sorted order.

    Returns:
        Pixels `(N, H, W, 3)` and classes `(N,)`, ordered by class and file name.

    Raises:
        FileNotFoundError: There is neither.
    """
    folder, archive = data / part, data / f"{part}.tar"
    if not (folder.is_dir() or archive.is_file()):
        raise FileNotFoundError(f"{data}: holds neither a folder {part} nor {part}.tar")
    found = sorted(_folder(folder) if folder.is_dir() else _archive(archive))
    names = sorted({name for name, _, _ in found})
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(b)).convert("RGB")) for _, _, b in found])
    return pixels, np.array([names.index(name) for name, _, _ in found])


def _folder(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    for file in folder.glob("*/*"):
        yield file.parent.name, file.name, file.read_bytes()


def _archive(archive: Path) -> Iterator[tuple[str, str, bytes]]:
    with tarfile.open(archive) as tar:
        for member in tar:
            if (content := tar.extractfile(member)) is not None:
                *_, name, file = member.name.split("/")
                yield name, file, content.read()
