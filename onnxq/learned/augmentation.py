"""Images changed at random: flipped, shifted, mixed with one another."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's custom)
from torch import Tensor

from onnxq.spec import Array, Ints

# An image is shifted by this share of its side, at most.
SHIFT = 1 / 8


@dataclass(frozen=True, eq=False)
class Move:
    """How images are moved.

    Attributes:
        flipped: Which are, bool (images,).
        shift: By how many pixels all are shifted, down and right.
    """

    flipped: Array
    shift: tuple[int, int]

    def of(self, rows: Ints) -> "Move":
        """That of some of the images."""
        return replace(self, flipped=self.flipped[rows])


def drawn(count: int, sides: Sequence[int], rng: np.random.Generator) -> Move:
    """A move of ``count`` images of that height and width."""
    flipped = rng.random(count) < 0.5
    down, right = (farthest(side) - int(rng.integers(2 * farthest(side) + 1)) for side in sides)
    return Move(flipped, (down, right))


def farthest(side: int) -> int:
    """Pixels that an image is shifted by, at most."""
    return round(SHIFT * side)


def moved(x: Tensor, move: Move) -> Tensor:
    """Images (n, channels, height, width), the pixels at an edge repeated beyond it."""
    flipped = torch.from_numpy(move.flipped.reshape(-1, 1, 1, 1)).to(x.device)
    x = torch.where(flipped, x.flip(3), x)
    height, width = x.shape[2:]
    (down, right), up, left = move.shift, farthest(height), farthest(width)
    padded = F.pad(x, [left, left, up, up], mode="replicate")
    return padded[:, :, up - down :, left - right :][:, :, :height, :width]


def mixed(x: Tensor, most: float, rng: np.random.Generator) -> Tensor:
    """Each image with another one of the batch, up to that share."""
    share = torch.from_numpy(most * rng.random((len(x), 1, 1, 1), np.float32)).to(x.device)
    other = torch.from_numpy(rng.permutation(len(x))).to(x.device)
    return x + share * (x[other] - x)


def channels_last(x: Tensor) -> Tensor:
    """An image as convolutions run fastest on it."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
