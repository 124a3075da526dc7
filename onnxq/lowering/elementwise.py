"""Operators that treat every element alike."""

import torch
from torch import Tensor

from onnxq.lowering.registry import operator


@operator("Relu")
def relu(x: Tensor) -> Tensor:
    """Max(x, 0)."""
    return torch.relu(x)


@operator("Add")
def add(a: Tensor, b: Tensor) -> Tensor:
    """Sum of two tensors."""
    return a + b
