"""Training images: read once into memory, then shifted, mirrored and painted on as tensors."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import images
import numpy as np
import torch
from shapes import paint
from torch import Tensor
from torch.nn.functional import interpolate, pad

from onnxq.samples.preprocess import PRESETS, Preprocess


class Labeled(NamedTuple):
    """Pixels uint8 `(N, C, H, W)` and classes int64 `(N,)`, or `(N, H, W)` one for each pixel."""

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Dataset:
    """Images of one kind and what is done to them.

    Attributes:
        read: From a folder and the name of a part to its images.
        shape: Channels, height and width.
        preprocess: From pixels to the network's input.
        margin: Training images are shifted by up to so many pixels, the background being 0.
        mirrored: Half of the training images are mirrored.
        painted: Shapes are drawn on the images, and the labels are those of the pixels.
    """

    read: Callable[[Path, str], Labeled]
    shape: tuple[int, int, int]
    preprocess: Preprocess
    margin: int
    mirrored: bool
    painted: bool = False

    def augment(self, some: Labeled) -> Labeled:
        """Random variants of the images."""
        pixels = shift(some.pixels, self.margin)
        if self.mirrored:
            chosen = (torch.rand(len(pixels), device=pixels.device) < 0.5).view(-1, 1, 1, 1)
            pixels = torch.where(chosen, pixels.flip(3), pixels)
        if not self.painted:
            return Labeled(pixels, some.labels)
        seed = int(torch.randint(2**31, ()))
        painted = paint(pixels.cpu().numpy(), np.random.default_rng(seed))
        return Labeled(*(torch.from_numpy(x).to(pixels.device) for x in painted))

    def test_images(self, data: Path) -> Labeled:
        """The images that nothing is chosen on."""
        found = self.read(data, "val")
        if not self.painted:
            return found
        painted = paint(found.pixels.numpy(), np.random.default_rng(0))
        return Labeled(*map(torch.from_numpy, painted))

    def tensor(self, pixels: Tensor, size: int | None = None) -> Tensor:
        """The network's input, float32; made smaller if ``size``, in pixels, is given."""
        steps = self.preprocess
        mean, std = (
            torch.tensor(v, device=pixels.device).view(-1, 1, 1) for v in (steps.mean, steps.std)
        )
        x = pixels.float() * steps.scale
        if size is not None and size != x.shape[-1]:
            x = interpolate(x, size=(size, size), mode="bilinear", antialias=True)
        return (x - mean) / std


def shift(pixels: Tensor, margin: int) -> Tensor:
    """Move each image by up to ``margin`` pixels along both axes, filling with 0."""
    count, _, height, width = pixels.shape
    windows = pad(pixels, (margin,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    dy, dx = torch.randint(2 * margin + 1, (2, count), device=pixels.device)
    return windows[torch.arange(count, device=pixels.device), :, dy, dx]


def read_folders(data: Path, part: str) -> Labeled:
    """The part `train` or `val` of a folder; see ``images.read``."""
    pixels, labels = (torch.from_numpy(x) for x in images.read(data, part))
    return Labeled(pixels.permute(0, 3, 1, 2).contiguous(), labels)


def read_digits(data: Path, part: str) -> Labeled:
    """The part `train`, `calib` or `val` of scikit-learn's digits, stratified by class."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]

    digits = load_digits()
    pictures, classes = digits.images.astype(np.uint8)[:, None], digits.target
    train, rest, train_classes, rest_classes = train_test_split(
        pictures, classes, train_size=900, stratify=classes, random_state=0
    )
    calib, val, calib_classes, val_classes = train_test_split(
        rest, rest_classes, train_size=300, stratify=rest_classes, random_state=0
    )
    pixels, labels = {
        "train": (train, train_classes),
        "calib": (calib, calib_classes),
        "val": (val, val_classes),
    }[part]
    return Labeled(torch.from_numpy(pixels), torch.from_numpy(labels))


DIGITS = Dataset(read_digits, (1, 8, 8), Preprocess(color="gray", scale=1 / 16), 1, False)
CIFAR10 = Dataset(
    read_folders,
    (3, 32, 32),
    PRESETS["imagenet"].model_copy(update={"resize": None, "crop": None}),
    4,
    True,
)
SHAPES = Dataset(read_folders, (3, 32, 32), CIFAR10.preprocess, 4, True, painted=True)
