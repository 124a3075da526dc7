"""Training images: read once into memory, then cropped, flipped and painted on as tensors."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

# ImageNet's mean and standard deviation of red, green and blue in [0, 1].
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MARGIN = 4


class Labeled(NamedTuple):
    """Pixels uint8 `(N, 3, 32, 32)` and classes int64 `(N,)`."""

    pixels: Tensor
    labels: Tensor


def read(data: Path, part: str) -> Labeled:
    """Read `data/part/CLASS/*` or `data/part.tar`, classes numbered in sorted order.

    Raises:
        FileNotFoundError: There is neither.
    """
    folder, archive = data / part, data / f"{part}.tar"
    if not (folder.is_dir() or archive.is_file()):
        raise FileNotFoundError(f"{data}: holds neither a folder {part} nor {part}.tar")
    found = sorted(_folder(folder) if folder.is_dir() else _archive(archive))
    names = sorted({name for name, _, _ in found})
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(b)).convert("RGB")) for _, _, b in found])
    labels = torch.tensor([names.index(name) for name, _, _ in found])
    return Labeled(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels)


def _folder(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    for file in folder.glob("*/*"):
        yield file.parent.name, file.name, file.read_bytes()


def _archive(archive: Path) -> Iterator[tuple[str, str, bytes]]:
    with tarfile.open(archive) as tar:
        for member in tar:
            if (content := tar.extractfile(member)) is not None:
                *_, name, file = member.name.split("/")
                yield name, file, content.read()


def crop_and_flip(pixels: Tensor) -> Tensor:
    """Shift each image by up to MARGIN pixels, filling with black, and mirror half of them."""
    count, _, height, width = pixels.shape
    windows = pad(pixels, (MARGIN,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    dy, dx = torch.randint(2 * MARGIN + 1, (2, count))
    cropped = windows[torch.arange(count), :, dy, dx]
    mirrored = (torch.rand(count) < 0.5).view(-1, 1, 1, 1)
    return torch.where(mirrored, cropped.flip(3), cropped)


def normalize(pixels: Tensor, size: int) -> Tensor:
    """Float32 `(N, 3, size, size)` with the mean and deviation of ImageNet taken out."""
    x = pixels.float() / 255
    if size != x.shape[-1]:
        x = interpolate(x, size=(size, size), mode="bilinear", antialias=True)
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def paint(pixels: Tensor) -> Labeled:
    """Draw a disc, a square and a triangle of random place, size and color on each image.

    Returns the images and, for each pixel, what was drawn on it: 0 nothing, 1 disc, 2 square,
    3 triangle. These targets are synthetic: they test structure, not the recognition of anything.
    """
    count, _, height, width = pixels.shape
    painted, labels = pixels.clone(), torch.zeros(count, height, width, dtype=torch.int64)
    rows, columns = torch.arange(height).view(1, -1, 1), torch.arange(width).view(1, 1, -1)
    for label in (1, 2, 3):
        y, x = (torch.rand(2, count) * torch.tensor([[height], [width]])).view(2, count, 1, 1)
        radius = 3 + 5 * torch.rand(count, 1, 1)
        down, right = (rows - y) / radius, (columns - x) / radius
        inside = {
            1: down**2 + right**2 < 1,
            2: (down.abs() < 0.8) & (right.abs() < 0.8),
            3: (down < 0.8) & (down > 2.2 * right.abs() - 1),
        }[label]
        color = torch.randint(256, (count, 3, 1, 1), dtype=torch.uint8)
        painted = torch.where(inside[:, None], color, painted)
        labels[inside] = label
    return Labeled(painted, labels)
