"""Nonlinearities."""

import torch
import torch.nn.functional as F  # noqa: N812  (torch's custom)
from torch import Tensor

from onnxq.lowering.registry import operator, operators

operators(
    {
        "HardSwish": F.hardswish,
        "Mish": F.mish,
        "Relu": torch.relu,
        "Softplus": F.softplus,
        "Softsign": F.softsign,
    }
)


@operator("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """X where positive, else alpha x."""
    return F.leaky_relu(x, alpha)


@operator("PRelu")
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """X where positive, else slope x."""
    channels = x.shape[1:2] + (1,) * (x.ndim - 2)
    if slope.numel() == channels.numel() and slope.shape[1 - x.ndim :] == channels:
        return F.prelu(x, slope.flatten())  # the same in one kernel
    return torch.where(x >= 0, x, slope * x)


@operator("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """X where positive, else alpha (exp(x) - 1)."""
    return F.elu(x, alpha)


@operator("Selu")
def selu(
    x: Tensor, *, alpha: float = 1.6732631921768188, gamma: float = 1.0507010221481323
) -> Tensor:
    """Gamma times Elu."""
    return gamma * F.elu(x, alpha)


@operator("Celu")
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """X where positive, else alpha (exp(x / alpha) - 1)."""
    return F.celu(x, alpha)


@operator("Gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """X times the normal distribution of x, or an approximation by tanh."""
    return F.gelu(x, approximate=approximate)


@operator("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """Alpha x + beta, between 0 and 1."""
    if beta == 0.5 and abs(alpha - 1 / 6) < 1e-7:
        return F.hardsigmoid(x)  # the same in one kernel
    return torch.clamp(alpha * x + beta, 0, 1)


@operator("Swish")
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """X sigmoid(alpha x)."""
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


@operator("ThresholdedRelu")
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """X where above alpha, else 0."""
    return F.threshold(x, alpha, 0)


@operator("Shrink")
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """X drawn toward 0 by ``bias`` where beyond ``lambd``, else 0."""
    inner = torch.where(x > lambd, x - bias, torch.zeros_like(x))
    return torch.where(x < -lambd, x + bias, inner)


def _last(x: Tensor, axis: int | None, opset: int) -> tuple[Tensor, int]:
    """X and the axis to normalize; before opset 13 that was all axes from ``axis`` on as one."""
    if opset >= 13:
        return x, -1 if axis is None else axis
    return x.flatten((1 if axis is None else axis) % max(x.ndim, 1)), -1


@operator("Softmax")
def softmax(x: Tensor, *, axis: int | None = None, opset: int) -> Tensor:
    """Exp(x) / sum(exp(x))."""
    rows, along = _last(x, axis, opset)
    return torch.softmax(rows, along).reshape(x.shape)


@operator("LogSoftmax")
def log_softmax(x: Tensor, *, axis: int | None = None, opset: int) -> Tensor:
    """Log of Softmax."""
    rows, along = _last(x, axis, opset)
    return torch.log_softmax(rows, along).reshape(x.shape)


@operator("Hardmax")
def hardmax(x: Tensor, *, axis: int | None = None, opset: int) -> Tensor:
    """1 at the first maximum, else 0."""
    rows, along = _last(x, axis, opset)
    first = rows.argmax(along, keepdim=True)
    return torch.zeros_like(rows).scatter(along, first, 1).reshape(x.shape)
