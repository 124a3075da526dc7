"""Operators that rearrange, select or describe tensors."""

import math

from torch import Tensor

from onnxq.lowering.registry import integers, operator


@operator("Reshape")
def reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    """The same values in another shape; a 0 keeps a size unless ``allowzero`` is set."""
    sizes = integers(shape)
    return x.reshape([x.shape[i] if n == 0 and not allowzero else n for i, n in enumerate(sizes)])


@operator("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """A matrix: the axes before ``axis``, and those from it on."""
    return x.reshape(math.prod(x.shape[:axis]), -1)
