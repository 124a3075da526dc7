"""Where a function of one number, seen at points in order, begins to move."""

import numpy as np

from onnxq.spec import Floats, Ints

POINTS = 4097
# What is rounded to 8 bits next is told apart by this part of its span: a quarter of a step.
APART = 1 / (4 * 255)


def flat(y: Floats, part: float) -> Ints:
    """Index of the last point up to which a function stays where it begins, int64 (...,).

    0 where it never moves, or at once.

    Args:
        y: Its values, (points, ...).
        part: Of its span that makes a difference.
    """
    far = np.abs(y - y[:1]) > part * np.ptp(y, axis=0)
    return np.asarray(np.maximum(np.argmax(far, axis=0) - 1, 0))
