"""Operators that slide a window over an image: convolutions and pools."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812  (torch's custom)
from torch import Tensor
from torch.linalg import vector_norm

from onnxq.lowering.registry import Refused, operator

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
MEAN_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}

Ints = Sequence[int]


def _same(total: int, auto_pad: str) -> tuple[int, int]:
    """Padding before and after an axis; the odd one is after, or before if LOWER."""
    small, large = total // 2, total - total // 2
    return (large, small) if auto_pad == "SAME_LOWER" else (small, large)


def _ends(
    x: Tensor, kernel: Ints, auto_pad: str, pads: Ints | None, strides: Ints, dilations: Ints
) -> list[tuple[int, int]]:
    """Padding before and after every axis of an image."""
    n = len(kernel)
    if auto_pad == "NOTSET" and pads is not None:
        return list(zip(pads[:n], pads[n:], strict=True))
    if auto_pad in ("NOTSET", "VALID"):
        return [(0, 0)] * n
    if max(dilations) > 1:
        raise Refused(f"auto_pad {auto_pad} with dilations is not implemented")
    sizes = zip(x.shape[2:], kernel, strides, strict=True)
    return [_same(max((-(-size // s) - 1) * s + k - size, 0), auto_pad) for size, k, s in sizes]


def _around(x: Tensor, ends: Sequence[tuple[int, int]], value: float = 0) -> Tensor:
    """An image with padding, or cropped where it is negative."""
    return F.pad(x, [end for pair in reversed(ends) for end in pair], value=value)


def _begins(ends: Sequence[tuple[int, int]]) -> list[int] | None:
    """The padding before every axis, if that after it is the same, as torch wants it."""
    return [a for a, _ in ends] if all(a == b for a, b in ends) else None


@operator("Conv")
def conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    """Convolution over one to three axes."""
    n = _known(w.ndim - 2)
    steps, spread = list(strides or [1] * n), list(dilations or [1] * n)
    ends = _ends(x, w.shape[2:], auto_pad, pads, steps, spread)
    if (padding := _begins(ends)) is None:
        x, padding = _around(x, ends), [0] * n
    return CONVOLUTIONS[n](x, w, b, steps, padding, spread, group)


def _known(n: int) -> int:
    if n not in CONVOLUTIONS:
        raise Refused(f"a window over {n} axes is not implemented")
    return n


@operator("ConvTranspose")
def conv_transpose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    output_padding: Ints | None = None,
    output_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    """The gradient of a convolution by its input, over one to three axes."""
    n = _known(w.ndim - 2)
    steps, spread = list(strides or [1] * n), list(dilations or [1] * n)
    extra = list(output_padding or [0] * n)
    full = [
        (size - 1) * s + (k - 1) * d + 1
        for size, k, s, d in zip(x.shape[2:], w.shape[2:], steps, spread, strict=True)
    ]
    if auto_pad.startswith("SAME") and output_shape is None:
        output_shape = [size * s for size, s in zip(x.shape[2:], steps, strict=True)]
    if output_shape is not None:
        cuts = [f + e - o for f, e, o in zip(full, extra, output_shape[-n:], strict=True)]
        if min(cuts) < 0 and auto_pad.startswith("SAME"):
            raise Refused(f"auto_pad {auto_pad} is not defined where windows leave gaps")
        # Half is cut off before and after, the odd one before but for SAME_UPPER.
        side = "SAME_UPPER" if auto_pad == "SAME_UPPER" else "SAME_LOWER"
        ends = [_same(cut, side) if cut > 0 else (0, cut) for cut in cuts]
    else:
        ends = _ends(x, w.shape[2:], auto_pad, pads, steps, spread)
    padding = _begins(ends)
    if padding is not None and all(
        e < max(s, d) for e, s, d in zip(extra, steps, spread, strict=True)
    ):
        return TRANSPOSED[n](x, w, b, steps, padding, extra, group, spread)
    found = TRANSPOSED[n](x, w, None, steps, 0, 0, group, spread)
    found = _around(found, [(-a, e - z) for (a, z), e in zip(ends, extra, strict=True)])
    return found if b is None else found + b.reshape(-1, *[1] * n)


def _to_fit(
    x: Tensor, kernel: Ints, ends: Sequence[tuple[int, int]], strides: Ints, dilations: Ints
) -> list[tuple[int, int]]:
    """Padding with which as many windows fit as ceil_mode asks for: those that start inside."""
    found = []
    for size, k, (a, b), s, d in zip(x.shape[2:], kernel, ends, strides, dilations, strict=True):
        extent = (k - 1) * d + 1
        count = -(-(size + a + b - extent) // s) + 1
        if (count - 1) * s >= size + a:
            count -= 1
        found.append((a, (count - 1) * s + extent - size - a))
    return found


@operator("MaxPool")
def max_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints | None = None,
    kernel_shape: Ints,
    pads: Ints | None = None,
    storage_order: int = 0,
    strides: Ints | None = None,
    count: int,
) -> Tensor | tuple[Tensor, Tensor]:
    """The maximum in every window, and where in x it lies."""
    n, kernel = _known(len(kernel_shape)), list(kernel_shape)
    steps, spread = list(strides or [1] * n), list(dilations or [1] * n)
    ends = _ends(x, kernel, auto_pad, pads, steps, spread)
    padding = _begins(ends)
    if padding is None or any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        if count > 1:
            raise Refused("the indices of a MaxPool with such padding are not implemented")
        if ceil_mode:
            ends, ceil_mode = _to_fit(x, kernel, ends, steps, spread), 0
        lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        x, padding = _around(x, ends, lowest), [0] * n
    if count == 1:
        return MAX_POOLS[n](x, kernel, steps, padding, spread, bool(ceil_mode))
    if storage_order:
        raise Refused("the indices of a MaxPool in the order of columns are not implemented")
    values, places = MAX_POOLS[n](x, kernel, steps, padding, spread, bool(ceil_mode), True)
    planes = torch.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *[1] * n)
    return values, places + planes * x.shape[2:].numel()


def _sums(x: Tensor, kernel: Ints, strides: Ints, dilations: Ints) -> Tensor:
    """The sum of every window."""
    ones = torch.ones(1, 1, *kernel, dtype=x.dtype, device=x.device)
    planes = x.reshape(-1, 1, *x.shape[2:])
    found = CONVOLUTIONS[len(kernel)](planes, ones, None, list(strides), 0, list(dilations))
    return found.reshape(*x.shape[:2], *found.shape[2:])


@operator("AveragePool")
def average_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Ints | None = None,
    kernel_shape: Ints,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    """The mean of every window, of its padding too if ``count_include_pad`` is set."""
    n, kernel = _known(len(kernel_shape)), list(kernel_shape)
    steps, spread = list(strides or [1] * n), list(dilations or [1] * n)
    ends = _ends(x, kernel, auto_pad, pads, steps, spread)
    padding = _begins(ends)
    if (
        padding is not None
        and max(spread) == 1
        and all(2 * p <= k for p, k in zip(padding, kernel, strict=True))
    ):
        return MEAN_POOLS[n](x, kernel, steps, padding, bool(ceil_mode), bool(count_include_pad))
    counted = torch.ones_like(x[:1, :1])
    if count_include_pad:
        counted = _around(counted, ends, 1)
    windows = _to_fit(x, kernel, ends, steps, spread) if ceil_mode else ends
    if count_include_pad:
        missing = [(0, w - e) for (_, w), (_, e) in zip(windows, ends, strict=True)]
    else:
        missing = windows
    total = _sums(_around(x, windows), kernel, steps, spread)
    return total / _sums(_around(counted, missing), kernel, steps, spread)


@operator("LpPool")
def lp_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints | None = None,
    kernel_shape: Ints,
    p: int = 2,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    """The p-norm of every window."""
    n, kernel = _known(len(kernel_shape)), list(kernel_shape)
    steps, spread = list(strides or [1] * n), list(dilations or [1] * n)
    ends = _ends(x, kernel, auto_pad, pads, steps, spread)
    if ceil_mode:
        ends = _to_fit(x, kernel, ends, steps, spread)
    return _sums(_around(x.abs() ** p, ends), kernel, steps, spread).pow(1 / p)


@operator("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    """Mean over all axes but the first two."""
    return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    """Maximum over all axes but the first two."""
    return x.amax(dim=tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    """The p-norm over all axes but the first two."""
    norm: Tensor = vector_norm(x, p, tuple(range(2, x.ndim)), keepdim=True)
    return norm
