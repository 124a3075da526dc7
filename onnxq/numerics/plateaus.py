"""Where functions of one number, seen at points in order, begin to move."""

from collections.abc import Sequence

import numpy as np

from onnxq.spec import Floats, Ints

POINTS = 4097
# What is rounded to 8 bits next is told apart by this part of its span: a quarter of a step.
APART = 1 / (4 * 255)


def flat(functions: Sequence[tuple[Floats, float]]) -> Ints:
    """Index of the last point up to which all functions stay where they begin, int64 (...,).

    0 where none ever moves, or one at once.

    Args:
        functions: Of each its values, (points, ...), and the part of its span that makes a
            difference.
    """
    far = np.any([np.abs(y - y[:1]) > part * np.ptp(y, axis=0) for y, part in functions], axis=0)
    return np.asarray(np.maximum(np.argmax(far, axis=0) - 1, 0))
