"""Outlier channel splitting.

Source: Zhao et al., Improving Neural Network Quantization without Retraining using Outlier Channel
Splitting, ICML 2019 (arXiv 1901.09504). Input channel j of a layer is fed twice, and its weight
w_j is split in two:

    naive               w_j x_j = (w_j / 2) x_j + (w_j / 2) x_j
    quantization-aware  w_j x_j = (w_j - s / 2) / 2 x_j + (w_j + s / 2) / 2 x_j

s is the step of the weight's grid. The rounded halves of the second kind add up to the rounded
weight, Q((w - s / 2) / 2) + Q((w + s / 2) / 2) = Q(w), where plain halves may both round up. The
first kind is the second with s = 0.
"""

import numpy as np

from onnxq.spec import Floats, Ints

# Each brings the step at least four times nearer to where it stays.
ROUNDS = 6


def halves(w: Floats, step: float) -> tuple[Floats, Floats]:
    """The lower and the upper half of ``w``, of any shape."""
    return (w - step / 2) / 2, (w + step / 2) / 2


def split(w: Floats, count: int, step: float = 0.0) -> tuple[Floats, Ints]:
    """Split the input channel with the largest weight, ``count`` times; halves are split again.

    Args:
        w: (c_out, c_in, taps).
        count: How many channels to add.
        step: s, or 0 for equal halves.

    Returns:
        The weight, float64 (c_out, c_in + count, taps), and which channel of the data each of its
        input channels reads, int64 (c_in + count,).
    """
    found = np.concatenate([w.astype(np.float64), np.zeros((len(w), count, w.shape[2]))], axis=1)
    origin = np.arange(found.shape[1])
    largest = np.abs(found).max(axis=(0, 2))
    for new in range(w.shape[1], found.shape[1]):
        j = int(np.argmax(largest))
        found[:, j], found[:, new] = halves(found[:, j], step)
        origin[new] = origin[j]
        largest[[j, new]] = np.abs(found[:, [j, new]]).max(axis=(0, 2))
    return found, origin


def step(w: Floats, count: int, qmax: int) -> float:
    """The step of the grid -qmax to qmax that spans ``w`` after ``split`` with this very step.

    Args:
        w: (c_out, c_in, taps).
        count: See ``split``.
        qmax: The largest code.
    """
    found = 0.0
    for _ in range(ROUNDS):
        found = float(np.abs(split(w, count, found)[0]).max()) / qmax
    return found
