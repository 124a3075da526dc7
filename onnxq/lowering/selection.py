"""Operators that pick values out of tensors, or put them in."""

from collections.abc import Callable

import torch
from torch import Tensor

from onnxq.lowering.registry import Refused, integers, operator


@operator("Slice")
def slice_of(
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Every step-th value from ``starts`` to before ``ends``, backward for negative steps."""
    first, last = integers(starts), integers(ends)
    chosen = range(len(first)) if axes is None else [a % x.ndim for a in integers(axes)]
    strides = [1] * len(first) if steps is None else integers(steps)
    parts, backward = [slice(None)] * x.ndim, []
    for axis, start, end, step in zip(chosen, first, last, strides, strict=True):
        n = x.shape[axis]
        start, end = (at + n if at < 0 else at for at in (start, end))
        if step > 0:
            at = range(min(max(start, 0), n), min(max(end, 0), n), step)
        elif end >= 2**31 - 1:
            raise Refused("whether a Slice backward to after the end is empty is not defined")
        else:  # as torch's slices cannot: forward, and flipped
            at = range(min(max(start, 0), n - 1), min(max(end, -1), n - 1), step)[::-1]
            backward.append(axis)
        parts[axis] = slice(at.start, at.stop, at.step)
    found = x[tuple(parts)]
    return found.flip(backward) if backward else found


@operator("Gather")
def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """The slices along an axis that the indices name."""
    return x[(slice(None),) * (axis % x.ndim) + (indices,)]


def _from_start(indices: Tensor, size: int) -> Tensor:
    """Indices, of which negative ones count from the end, as torch's gather wants them."""
    return torch.where(indices < 0, indices + size, indices).long()


@operator("GatherElements")
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """For every place of the indices the value that lies elsewhere along the axis."""
    return x.gather(axis, _from_start(indices, x.shape[axis]))


@operator("GatherND")
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """The slices at points whose coordinates lie along the last axis of the indices."""
    rank = indices.ndim - 1
    batch = [
        torch.arange(x.shape[i], device=x.device).reshape(
            [-1 if j == i else 1 for j in range(rank)]
        )
        for i in range(batch_dims)
    ]
    return x[(*batch, *indices.unbind(-1))]


# ONNX's ways to put a value where another lies, and torch's names for them.
REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _reduction(name: str) -> str:
    if name not in REDUCTIONS:
        raise Refused(f"the reduction {name} is not implemented")
    return REDUCTIONS[name]


@operator("ScatterElements")
def scatter_elements(
    x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    """X with every update put, or reduced, where its index says along the axis."""
    at = _from_start(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, at, updates)
    return x.scatter_reduce(axis, at, updates, _reduction(reduction))


@operator("ScatterND")
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """X with slices put, or reduced, at points as in GatherND."""
    points = tuple(indices.unbind(-1))
    if reduction in ("none", "add"):
        return x.index_put(points, updates, accumulate=reduction == "add")
    # torch reduces along one axis only: the indexed ones become one
    sizes = x.shape[: len(points)]
    at = torch.zeros_like(points[0], dtype=torch.int64)
    for point, size in zip(points, sizes, strict=True):
        at = at * size + _from_start(point, size)
    rows = x.reshape(sizes.numel(), -1)
    values = updates.reshape(at.numel(), -1)
    places = at.reshape(-1, 1).expand_as(values)
    return rows.scatter_reduce(0, places, values, _reduction(reduction)).reshape(x.shape)


@operator("OneHot")
def one_hot(indices: Tensor, depth: Tensor, values: Tensor, *, axis: int = -1) -> Tensor:
    """The second of two values at the indices, the first elsewhere, along a new axis."""
    size, axis = int(depth.item()), axis % (indices.ndim + 1)
    at = _from_start(indices, size).unsqueeze(axis)
    places = torch.arange(size, device=at.device).reshape([-1] + [1] * (indices.ndim - axis))
    off, on = values.unbind()
    return torch.where(at == places, on, off)


@operator("Trilu")
def trilu(x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    """Matrices with 0 on one side of the k-th diagonal."""
    cut: Callable[[Tensor, int], Tensor] = torch.triu if upper else torch.tril
    return cut(x, 0 if k is None else int(k.item()))


@operator("NonZero")
def non_zero(x: Tensor) -> Tensor:
    """The coordinates of all values but 0, a row for every axis."""
    return x.nonzero().T


@operator("Compress")
def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    """The slices along an axis, or the elements, where a condition holds."""
    at = condition.nonzero().flatten()
    return x.flatten()[at] if axis is None else x.index_select(axis, at)
