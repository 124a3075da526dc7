"""Synthetic targets: shapes drawn on images, to be found again pixel by pixel."""

import numpy as np
from numpy.typing import NDArray

LABELS = ("nothing", "disc", "square", "triangle")


def paint(
    images: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw a disc, a square and a triangle of random place, size and color on each image.

    These targets test structure, not the recognition of anything.

    Args:
        images: `(N, 3, H, W)`.
        rng: Places, sizes and colors come from it.

    Returns:
        The painted images, and the index in LABELS of each pixel, `(N, H, W)`.
    """
    count, _, height, width = images.shape
    painted, labels = images.copy(), np.zeros((count, height, width), np.int64)
    rows, columns = np.arange(height)[:, None], np.arange(width)
    for label in (1, 2, 3):
        y, x = rng.random((2, count, 1, 1)) * np.array([height, width]).reshape(2, 1, 1, 1)
        radius = 3 + 5 * rng.random((count, 1, 1))
        down, right = (rows - y) / radius, (columns - x) / radius
        inside = (
            down**2 + right**2 < 1,
            (np.abs(down) < 0.8) & (np.abs(right) < 0.8),
            (down < 0.8) & (down > 2.2 * np.abs(right) - 1),
        )[label - 1]
        color = rng.integers(256, size=(count, 3, 1, 1), dtype=np.uint8)
        painted = np.where(inside[:, None], color, painted)
        labels[inside] = label
    return painted, labels
