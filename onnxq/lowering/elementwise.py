"""Operators that treat every element alike: arithmetic, comparison, logic, functions."""

import math
from functools import reduce

import torch
from torch import Tensor

from onnxq.lowering.registry import Refused, number, operator, operators

# ONNX's codes of the element types that torch computes with.
DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    16: torch.bfloat16,
}


def dtype_of(code: int) -> torch.dtype:
    """The type that ONNX's code means."""
    if code not in DTYPES:
        raise Refused(f"torch does not compute with ONNX's element type {code}")
    return DTYPES[code]


operators(
    {
        "Abs": torch.abs,
        "Acos": torch.acos,
        "Acosh": torch.acosh,
        "Add": torch.add,
        "And": torch.logical_and,
        "Asin": torch.asin,
        "Asinh": torch.asinh,
        "Atan": torch.atan,
        "Atanh": torch.atanh,
        "BitwiseAnd": torch.bitwise_and,
        "BitwiseNot": torch.bitwise_not,
        "BitwiseOr": torch.bitwise_or,
        "BitwiseXor": torch.bitwise_xor,
        "Ceil": torch.ceil,
        "Cos": torch.cos,
        "Cosh": torch.cosh,
        "Equal": torch.eq,
        "Erf": torch.erf,
        "Exp": torch.exp,
        "Floor": torch.floor,
        "Greater": torch.gt,
        "GreaterOrEqual": torch.ge,
        "IsNaN": torch.isnan,
        "Less": torch.lt,
        "LessOrEqual": torch.le,
        "Log": torch.log,
        "Mul": torch.mul,
        "Neg": torch.neg,
        "Not": torch.logical_not,
        "Or": torch.logical_or,
        "Reciprocal": torch.reciprocal,
        "Round": torch.round,  # half to even, as in ONNX
        "Sigmoid": torch.sigmoid,
        "Sign": torch.sign,
        "Sin": torch.sin,
        "Sinh": torch.sinh,
        "Sqrt": torch.sqrt,
        "Sub": torch.sub,
        "Tan": torch.tan,
        "Tanh": torch.tanh,
        "Where": torch.where,
        "Xor": torch.logical_xor,
    }
)


@operator("Identity")
def identity(x: Tensor) -> Tensor:
    """What it is given."""
    return x


@operator("Dropout")
def dropout(
    x: Tensor,
    probability: Tensor | None = None,
    training: Tensor | None = None,
    *,
    ratio: float = 0.5,
    seed: int = 0,
    count: int,
) -> Tensor | tuple[Tensor, Tensor]:
    """What it is given: nothing is dropped but in training."""
    if training is not None and training.item():
        raise Refused("Dropout in training is not implemented")
    return x if count == 1 else (x, torch.ones_like(x, dtype=torch.bool))


@operator("Cast")
def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """The same numbers of another type; all but ``to`` is about types that are refused."""
    return x.to(dtype_of(to))


@operator("CastLike")
def cast_like(x: Tensor, like: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """The same numbers with the type of another tensor."""
    return x.to(like.dtype)


@operator("Div")
def div(a: Tensor, b: Tensor) -> Tensor:
    """A / b; integers truncate toward zero."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@operator("Mod")
def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """The remainder of a / b, of a's sign if ``fmod`` is set, else of b's."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@operator("Pow")
def power(a: Tensor, b: Tensor) -> Tensor:
    """A to the power of b, of a's type."""
    if not a.is_floating_point() and b.is_floating_point():
        return torch.pow(a.double(), b.double()).to(a.dtype)
    exponent = number(b) if b.numel() == 1 and b.ndim <= a.ndim else b
    return torch.pow(a, exponent).to(a.dtype)


@operator("BitShift")
def bit_shift(a: Tensor, b: Tensor, *, direction: str) -> Tensor:
    """A shifted by b bits."""
    left = direction == "LEFT"
    return torch.bitwise_left_shift(a, b) if left else torch.bitwise_right_shift(a, b)


@operator("Clip")
def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Min(max(x, low), high)."""
    if low is None and high is None:
        return x
    bounds = [None if t is None else number(t) for t in (low, high)]
    if any(isinstance(bound, Tensor) for bound in bounds):
        bounds = [low, high]
    return torch.clamp(x, *bounds)


@operator("Max")
def maximum(*inputs: Tensor) -> Tensor:
    """The largest of several tensors."""
    return reduce(torch.maximum, inputs)


@operator("Min")
def minimum(*inputs: Tensor) -> Tensor:
    """The smallest of several tensors."""
    return reduce(torch.minimum, inputs)


@operator("Sum")
def total(*inputs: Tensor) -> Tensor:
    """The sum of several tensors."""
    return reduce(torch.add, inputs)


@operator("Mean")
def mean(*inputs: Tensor) -> Tensor:
    """The mean of several tensors."""
    return reduce(torch.add, inputs) / len(inputs)


@operator("IsInf")
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Whether x is infinite, of the signs asked for."""
    found = torch.zeros_like(x, dtype=torch.bool)
    if detect_negative:
        found = found | (x == -math.inf)
    if detect_positive:
        found = found | (x == math.inf)
    return found
