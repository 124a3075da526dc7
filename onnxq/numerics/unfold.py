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
        pads: Zeros before and behind, all befores first, as ONNX orders them; or its SAME_UPPER or
            SAME_LOWER, which leave them to the size of the input.
        groups: Channel groups.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] | str
    groups: int = 1

    def padding(self, size: Sequence[int]) -> tuple[int, ...]:
        """Zeros before and behind an input of this spatial size."""
        if isinstance(self.pads, str):
            lower = self.pads == "SAME_LOWER"
            return same_pads(size, self.kernel, self.strides, self.dilations, lower)
        return self.pads

    def places(self, size: Sequence[int]) -> tuple[int, ...]:
        """Spatial size of the output for that of the input."""
        n, pads = len(self.kernel), self.padding(size)
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilations, self.kernel, strict=True)]
        padded = [size[i] + pads[i] + pads[n + i] for i in range(n)]
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


def patches(x: Floats, window: Window | None, places: Array) -> Floats:
    """Rows of the input at some places of the output, (groups, n, c_in / groups x kernel).

    Args:
        x: Input (batch, c_in, *size), or (..., c_in) of a matrix product.
        window: The convolution; None for a matrix product, whose rows are (1, n, c_in).
        places: Flat indices (n,) into (batch, *places of the output), or into (...).
    """
    if window is None:
        return x.reshape(-1, x.shape[-1])[None, places]
    shape = (len(x), *window.places(x.shape[2:]))
    image, *corner = np.unravel_index(places, shape)
    axes = range(len(window.kernel))
    pads = window.padding(x.shape[2:])
    around = [(pads[i], pads[len(window.kernel) + i]) for i in axes]
    padded = np.pad(x, [(0, 0), (0, 0), *around])
    rows = np.empty((len(places), x.shape[1], math.prod(window.kernel)), x.dtype)
    for i, tap in enumerate(np.ndindex(*window.kernel)):
        at = (corner[n] * window.strides[n] + tap[n] * window.dilations[n] for n in axes)
        rows[:, :, i] = padded[(image, slice(None), *at)]
    rows = rows.reshape(len(places), window.groups, x.shape[1] // window.groups * rows.shape[2])
    return np.ascontiguousarray(rows.transpose(1, 0, 2))


def count_places(x: Floats, window: Window | None) -> int:
    """How many rows an input has; the arguments are those of ``patches``."""
    if window is None:
        return math.prod(x.shape[:-1])
    return len(x) * math.prod(window.places(x.shape[2:]))
