"""Channel groups of a convolution computed several at once, with zeros between their weights.

onnxruntime multiplies the matrices of each group by themselves, which takes about as long for 4
inputs of a group as for 32.
"""

import math

import numpy as np

from onnxq.spec import Array

# Measured with 64 to 1,024 channels and 3x3 kernels, so many inputs of a group are best: with fewer
# most of the time is the groups' own, with more that of the zeros that stand in wider ones.
BEST = 32


def together(groups: int, inputs: int) -> int:
    """How many of so many groups to compute at once, each with so many inputs."""
    counts = (n for n in range(1, groups + 1) if groups % n == 0)
    return min(counts, key=lambda n: n * inputs + BEST**2 / (n * inputs))


def merge(w: Array, groups: int, count: int) -> Array:
    """The weight of the same convolution in groups / count groups.

    An output channel of the b-th of the groups that become one reads the b-th block of its inputs:
    rows that are padded by the width of all blocks, laid end to end and cut again at that width,
    each start a block further to the right.

    Args:
        w: (c_out, c_in / groups, *kernel).
        groups: Of the convolution.
        count: Divides them.

    Returns:
        (c_out, count c_in / groups, *kernel).
    """
    c_out, inputs, *kernel = w.shape
    width = math.prod(w.shape[1:])
    whole, rows = count * width, c_out // groups
    blocks = w.reshape(-1, count, rows, width).swapaxes(1, 2)
    padded = np.pad(blocks, [(0, 0)] * 3 + [(0, whole)]).reshape(-1, rows, count * (whole + width))
    apart = padded[:, :, : count * whole].reshape(-1, rows, count, whole).swapaxes(1, 2)
    return np.ascontiguousarray(apart.reshape(c_out, count * inputs, *kernel))
