"""Operators that bring values to a common size."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812  (torch's custom)
from torch import Tensor
from torch.linalg import vector_norm

from onnxq.lowering.registry import Refused, operator


@operator("BatchNormalization")
def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    count: int,
) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) scale + bias, by channel."""
    if training_mode or count > 1:
        raise Refused("BatchNormalization in training is not implemented")
    return F.batch_norm(x, mean, variance, scale, bias, eps=epsilon)


@operator("InstanceNormalization")
def instance_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5
) -> Tensor:
    """Every channel of every sample to mean 0 and variance 1, then scaled and shifted."""
    return torch.group_norm(x, x.shape[1], scale, bias, epsilon)


@operator("GroupNormalization")
def group_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    opset: int,
) -> Tensor:
    """Groups of channels to mean 0 and variance 1, then scaled and shifted."""
    _check(stash_type)
    if opset < 21:  # a scale for every group, not for every channel
        size = x.shape[1] // num_groups
        scale, bias = scale.repeat_interleave(size), bias.repeat_interleave(size)
    return torch.group_norm(x, num_groups, scale, bias, epsilon)


@operator("LayerNormalization")
def layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> tuple[Tensor, ...]:
    """All axes from ``axis`` on to mean 0 and variance 1, then scaled; mean and 1 / deviation."""
    _check(stash_type)
    shape = x.shape[axis:]
    scale = scale.expand(shape)
    bias = bias if bias is None else bias.expand(shape)
    return torch.native_layer_norm(x, shape, scale, bias, epsilon)


@operator("RMSNormalization")
def rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """All axes from ``axis`` on to mean square 1, then scaled."""
    _check(stash_type)
    shape = x.shape[axis:]
    return F.rms_norm(x, shape, scale.expand(shape), epsilon)


def _check(stash_type: int) -> None:
    """Refuse any type to compute in but float, which is torch's."""
    if stash_type != 1:
        raise Refused(f"stash_type {stash_type} is not implemented")


@operator("LRN")
def lrn(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    """X / (bias + alpha mean of squares)^beta over ``size`` neighboring channels."""
    if size % 2:
        return F.local_response_norm(x, size, alpha, beta, bias)
    # torch's window reaches farther before a channel, ONNX's after it
    return F.local_response_norm(x.flip(1), size, alpha, beta, bias).flip(1)


@operator("LpNormalization")
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """X over its norm along an axis; 0 where that is 0."""
    norm = vector_norm(x, p, axis, keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    """The axes to mean 0 and variance 1."""
    centered = x - x.mean(list(axes), keepdim=True)
    return centered / (centered.square().mean(list(axes), keepdim=True).sqrt() + 1e-9)
