"""Operators that read an image at places that tensors name."""

import math

import torch
import torch.nn.functional as F  # noqa: N812  (torch's custom)
from torch import Tensor

from onnxq.lowering.registry import Refused, integers, operator

# Names of modes that changed with opset 20.
MODES = {"linear": "bilinear", "cubic": "bicubic"}


@operator("GridSample")
def grid_sample(
    x: Tensor,
    grid: Tensor,
    *,
    align_corners: int = 0,
    mode: str = "linear",
    padding_mode: str = "zeros",
) -> Tensor:
    """X at the places of a grid, whose coordinates go from -1 to 1."""
    if x.ndim not in (4, 5) or (x.ndim == 5 and mode in ("cubic", "bicubic")):
        raise Refused(f"GridSample of {x.ndim} axes in mode {mode} is not implemented")
    return F.grid_sample(x, grid, MODES.get(mode, mode), padding_mode, bool(align_corners))


@operator("AffineGrid")
def affine_grid(theta: Tensor, size: Tensor, *, align_corners: int = 0) -> Tensor:
    """The grid of an affine map."""
    return F.affine_grid(theta, integers(size), bool(align_corners))


def _weights(start: Tensor, length: Tensor, bins: int, ratio: int, size: int) -> Tensor:
    """The weight of each of ``size`` pixels in each bin: the mean of linear samples."""
    samples = ratio or math.ceil(length.item() / bins)
    at = start + length / bins * (torch.arange(bins * samples, device=start.device) + 0.5) / samples
    there = (at >= -1) & (at <= size)
    away = at.clamp(0, size - 1)[:, None] - torch.arange(size, device=start.device)
    hats = (1 - away.abs()).clamp(min=0) * there[:, None]
    return hats.reshape(bins, samples, size).sum(1) / max(samples, 1)


@operator("RoiAlign")
def roi_align(
    x: Tensor,
    rois: Tensor,
    batch: Tensor,
    *,
    coordinate_transformation_mode: str | None = None,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
    opset: int,
) -> Tensor:
    """Regions of an image in one size: every pixel the mean of a bin."""
    if mode != "avg":
        raise Refused(f"RoiAlign of mode {mode} is not implemented")
    default = "half_pixel" if opset >= 16 else "output_half_pixel"
    half = (coordinate_transformation_mode or default) == "half_pixel"
    corners = rois * spatial_scale - 0.5 * half
    sizes = corners[:, 2:] - corners[:, :2]
    sizes = sizes if half else sizes.clamp(min=1)
    found = []
    for (left, top, *_), (width, height), image in zip(
        corners, sizes, integers(batch), strict=True
    ):
        rows = _weights(top, height, output_height, sampling_ratio, x.shape[2])
        columns = _weights(left, width, output_width, sampling_ratio, x.shape[3])
        found.append(rows @ x[image] @ columns.T)
    return torch.stack(found) if found else x.new_zeros(0, x.shape[1], output_height, output_width)
