"""What a layer multiplies its weights with: one row of its input for every place of its output.

A convolution is a matrix product of its weights, (c_out / groups, c_in / groups x kernel) for each
group, with patches of its input. For Gemm and MatMul the patches are the rows of the input.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.spec import Array, Floats


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution: each a value for every spatial axis.

    Attributes:
        kernel: Size.
        strides: Between two places.
        dilations: Between two taps.
        pads: Zeros before and behind, all befores first, as ONNX orders them.
        groups: Channel groups.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    groups: int = 1

    def places(self, size: Sequence[int]) -> tuple[int, ...]:
        """Spatial size of the output for that of the input."""
        n = len(self.kernel)
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilations, self.kernel, strict=True)]
        padded = [size[i] + self.pads[i] + self.pads[n + i] for i in range(n)]
        return tuple((padded[i] - reach[i]) // self.strides[i] + 1 for i in range(n))


def same_pads(
    size: Sequence[int], kernel: Sequence[int], strides: Sequence[int],
    dilations: Sequence[int], lower: bool,
) -> tuple[int, ...]:  # fmt: skip
    """Pads of ONNX's SAME_UPPER and, with ``lower``, SAME_LOWER: ceil(size / stride) places.

    The one zero more that an odd number leaves stands behind, or with ``lower`` before.
    """
    total = [
        max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        for n, k, s, d in zip(size, kernel, strides, dilations, strict=True)
    ]
    first = [-(-t // 2) if lower else t // 2 for t in total]
    return (*first, *(t - f for t, f in zip(total, first, strict=True)))


def patches(x: Floats, window: Window, places: Array) -> Floats:
    """Rows of the input at some places of the output, (groups, n, c_in / groups x kernel).

    Args:
        x: Input (batch, c_in, *size).
        window: The convolution.
        places: Flat indices (n,) into (batch, *places of the output).
    """
    shape = (len(x), *window.places(x.shape[2:]))
    image, *corner = np.unravel_index(places, shape)
    axes = range(len(window.kernel))
    pads = [(window.pads[i], window.pads[len(window.kernel) + i]) for i in axes]
    padded = np.pad(x, [(0, 0), (0, 0), *pads])
    taps = []
    for tap in np.ndindex(*window.kernel):
        at = (corner[i] * window.strides[i] + tap[i] * window.dilations[i] for i in axes)
        taps.append(padded[(image, slice(None), *at)])
    rows = np.stack(taps, axis=-1).reshape(len(places), window.groups, -1)
    return np.ascontiguousarray(rows.transpose(1, 0, 2))


def count_places(x: Floats, window: Window) -> int:
    """Number of places in the output of a batch (batch, c_in, *size)."""
    return len(x) * math.prod(window.places(x.shape[2:]))
