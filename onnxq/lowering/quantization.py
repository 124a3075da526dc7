"""Numbers on grids of integers."""

import torch
from torch import Tensor

from onnxq.lowering.elementwise import dtype_of
from onnxq.lowering.registry import Refused, operator

UINT8 = 2  # ONNX's code


def _spread(parameter: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """A scale or zero point for every element: of the tensor, of a slice, or of a block of it."""
    if parameter.numel() == 1 and not block:
        return parameter.reshape(())
    if block:
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return parameter.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


@operator("QuantizeLinear")
def quantize_linear(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Tensor:
    """Round(x / scale) + zero, within what the type of the result holds."""
    if precision not in (0, 1):
        raise Refused(f"QuantizeLinear of precision {precision} is not implemented")
    dtype = zero.dtype if zero is not None else dtype_of(output_dtype or UINT8)
    grid = torch.round(x / _spread(scale, x, axis, block_size))
    if zero is not None:
        grid = grid + _spread(zero, x, axis, block_size).to(grid.dtype)
    info = torch.iinfo(dtype)
    return grid.clamp(info.min, info.max).to(dtype)


@operator("DequantizeLinear")
def dequantize_linear(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """(x - zero) scale."""
    centered = x.to(torch.int32)
    if zero is not None:
        centered = centered - _spread(zero, x, axis, block_size).to(torch.int32)
    found = centered.to(scale.dtype) * _spread(scale, x, axis, block_size)
    return found.to(dtype_of(output_dtype)) if output_dtype else found
