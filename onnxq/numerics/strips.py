"""Pixels of a row side by side, so that a convolution of few channels computes several at once.

onnxruntime copies the window of each output pixel, a row of the kernel at a time. Of three channels
these are a few bytes, and copying them takes longer than the products do. Where PIXELS pixels are
one with as many times the channels, which with channels last is the same memory, a window serves
several outputs; what an output does not read of it is multiplied by zero.
"""

from dataclasses import dataclass

import numpy as np

from onnxq.spec import Array

# Measured with kernels of 3 to 9 pixels, strides of 1, 2 and 4 and 16 to 96 output channels: up to
# MOST_CHANNELS, so many pixels are best, and above nothing is won.
PIXELS, MOST_CHANNELS = 4, 3
# What brings weights into this form takes 1 to 2 KiB of a file, which shorter rows do not repay.
LEAST_ROW = 32


@dataclass(frozen=True)
class Strip:
    """A convolution along a row of pixels, all of whose outputs are those of whole strips.

    Attributes:
        kernel: Its width.
        stride: Divides PIXELS.
        pad: Zeros before the row.
        row: Pixels of it, whole strips.
    """

    kernel: int
    stride: int
    pad: int
    row: int

    @property
    def outputs(self) -> int:
        """Output pixels of a strip."""
        return PIXELS // self.stride

    @property
    def before(self) -> int:
        """Strips before its own that a strip of outputs reads."""
        return -(-self.pad // PIXELS)

    @property
    def after(self) -> int:
        """Likewise behind it."""
        last = self.stride * (self.outputs - 1) - self.pad + self.kernel - 1
        return max(0, last // PIXELS)

    @property
    def width(self) -> int:
        """All strips it reads: the width of the kernel over strips."""
        return self.before + 1 + self.after

    @property
    def zeros(self) -> list[tuple[int, int]]:
        """Pixels before and behind the kernel within what a strip reads, for each output pixel."""
        room = PIXELS * self.width - self.kernel
        first = PIXELS * self.before - self.pad
        starts = [first + self.stride * output for output in range(self.outputs)]
        return [(start, room - start) for start in starts]


def widen(w: Array, strip: Strip) -> Array:
    """The weight of the same convolution over strips.

    Args:
        w: (c_out, c_in, height, kernel).
        strip: What it does along a row.

    Returns:
        (outputs c_out, PIXELS c_in, height, width): of an output pixel all channels, and of an
        input pixel, follow each other.
    """
    _, c_in, height, _ = w.shape
    padded = [np.pad(w, [(0, 0)] * 3 + [zeros]) for zeros in strip.zeros]
    split = np.concatenate(padded).reshape(-1, c_in, height * strip.width, PIXELS)
    return np.moveaxis(split, 3, 1).reshape(-1, PIXELS * c_in, height, strip.width)
