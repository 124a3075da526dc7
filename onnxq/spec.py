"""Value types of quantization: what a grid is (QuantSpec), where it lies (QParams), codes on it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

# x86 processors without instructions for dot products add two products of a uint8 activation and an
# int8 weight in 16 bits, which saturate. Two of 255 and 64 fit; one of a larger weight fits beside
# one of a smaller (numerics/pairs.py).
SAFE = 64


@dataclass(frozen=True)
class QuantSpec:
    """The integer grid of a uniform quantizer.

    Attributes:
        bits: 1 to 8; the one bit of a binary weight has no grid, only a book of levels.
        signed: Codes are two's complement rather than unsigned.
        symmetric: The zero point is 0 and the range is mirrored.
        per_channel: One scale for each output channel instead of one for the tensor.
        headroom: Any two codes of one sign that kernels may add fit 16 bits (numerics/pairs.py).
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = True
    per_channel: bool = True
    headroom: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits must be 1 to 8, not {self.bits}")

    @property
    def qmin(self) -> int:
        """Smallest code; a symmetric grid is narrow: its most negative code is left unused."""
        return -self.qmax if self.signed else 0

    @property
    def qmax(self) -> int:
        """Largest code."""
        return (1 << self.bits - self.signed) - 1

    @property
    def dtype(self) -> np.dtype[np.signedinteger] | np.dtype[np.unsignedinteger]:
        """Numpy dtype that holds the codes, one a byte."""
        return np.dtype(np.int8) if self.signed else np.dtype(np.uint8)


def weight_spec(bits: int, per_channel: bool = True, headroom: bool = True) -> QuantSpec:
    """Signed symmetric narrow grid, the form of all weights; with headroom for integer kernels."""
    return QuantSpec(bits, True, True, per_channel, headroom)


def activation_spec(bits: int) -> QuantSpec:
    """Unsigned asymmetric per-tensor grid, the form of all activations."""
    return QuantSpec(bits=bits, signed=False, symmetric=False, per_channel=False)


@dataclass(frozen=True, eq=False)
class QParams:
    """Where a grid lies on the real line.

    Attributes:
        scale: float32, () or (channels,), or of the tensor's rank with size 1 along every axis that
            shares a scale; positive, finite and normal.
        zero_point: Integer of the spec's dtype, same shape as ``scale``.
        axis: Channel axis of the tensor the parameters belong to; None if the scale broadcasts to
            it as it is.
        spec: The grid.
    """

    scale: Floats
    zero_point: Ints
    axis: int | None
    spec: QuantSpec

    @property
    def lo(self) -> Floats:
        """Smallest representable value, float64."""
        return np.asarray((self.spec.qmin - self.zero_point.astype(np.int32)) * self.scale)

    @property
    def hi(self) -> Floats:
        """Largest representable value, float64."""
        return np.asarray((self.spec.qmax - self.zero_point.astype(np.int32)) * self.scale)


@dataclass(frozen=True, eq=False)
class QTensor:
    """A quantized weight: what is stored of each value, and what it stands for.

    Attributes:
        codes: Codes of the spec's dtype; with a book, uint8 indices into it.
        params: What the codes, or the entries of the book, are to be multiplied with.
        book: Levels that are not evenly spaced, ascending, int8 or float32; None if they are.
    """

    codes: Ints
    params: QParams
    book: Array | None = None

    @property
    def levels(self) -> Array:
        """The stored values in units of the scale."""
        return self.codes if self.book is None else self.book[self.codes]
