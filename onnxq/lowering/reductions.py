"""Operators that make one number of many: reductions, running sums, positions of extremes."""

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.linalg import vector_norm

from onnxq.lowering.registry import Refused, integers, operator

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Sum, of x's type."""
    return x.sum(axes, keep, dtype=x.dtype)


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Mean; of integers truncated."""
    if x.is_floating_point():
        return x.mean(axes, keep)
    count = torch.Size(x.shape[a] for a in axes).numel()
    return torch.div(_sum(x, axes, keep), count, rounding_mode="trunc")


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Product, of x's type."""
    product = reduce(lambda x, axis: x.prod(axis, True, dtype=x.dtype), axes, x)
    return product if keep else product.squeeze(axes)


def _max(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Maximum."""
    return _some(x, axes).amax(axes, keep)


def _min(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Minimum."""
    return _some(x, axes).amin(axes, keep)


def _some(x: Tensor, axes: list[int]) -> Tensor:
    """X, if there is something along the axes."""
    if any(x.shape[axis] == 0 for axis in axes):
        raise Refused("the extreme of no numbers is not implemented")
    return x


REDUCTIONS: dict[str, Reduction] = {
    "ReduceL1": lambda x, axes, keep: _sum(x.abs(), axes, keep),
    "ReduceL2": lambda x, axes, keep: vector_norm(x, 2, axes, keep),
    "ReduceLogSum": lambda x, axes, keep: torch.log(_sum(x, axes, keep)),
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceMax": _max,
    "ReduceMean": _mean,
    "ReduceMin": _min,
    "ReduceProd": _prod,
    "ReduceSum": _sum,
    "ReduceSumSquare": lambda x, axes, keep: _sum(x.square(), axes, keep),
}


def _declare(name: str, function: Reduction) -> None:
    @operator(name)
    def apply(
        x: Tensor,
        along: Tensor | None = None,
        *,
        axes: Sequence[int] | None = None,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Tensor:
        chosen = list(axes or []) if along is None else integers(along)
        if not chosen and noop_with_empty_axes:
            return x
        positive = sorted(a % x.ndim for a in chosen) or list(range(x.ndim))
        return function(x, positive, bool(keepdims))


for _name, _function in REDUCTIONS.items():
    _declare(_name, _function)


def _position(
    find: Callable[[Tensor, int, bool], Tensor], x: Tensor, axis: int, keep: bool, last: bool
) -> Tensor:
    """Where along an axis the first, or last, extreme lies."""
    if not last:
        return find(x, axis, keep)
    return x.shape[axis] - 1 - find(x.flip(axis), axis, keep)


@operator("ArgMax")
def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Where along an axis the maximum lies."""
    return _position(torch.argmax, x, axis, bool(keepdims), bool(select_last_index))


@operator("ArgMin")
def arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Where along an axis the minimum lies."""
    return _position(torch.argmin, x, axis, bool(keepdims), bool(select_last_index))


@operator("TopK")
def top_k(
    x: Tensor, k: Tensor, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Tensor, Tensor]:
    """The k largest, or smallest, and where they lie; of equals the first, unlike torch's topk."""
    values, positions = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    count = int(k.item())
    return values.narrow(axis, 0, count), positions.narrow(axis, 0, count)


def _running(
    accumulate: Callable[..., Tensor],
    x: Tensor,
    axis: int,
    first: int,
    exclusive: int,
    reverse: int,
) -> Tensor:
    """Results up to every element, or before it, from either end; ``first`` is that of nothing."""
    x = x.flip(axis) if reverse else x
    if exclusive:
        start = torch.full_like(x.narrow(axis, 0, 1), first)
        x = torch.cat([start, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    found = accumulate(x, axis, dtype=x.dtype)
    return found.flip(axis) if reverse else found


@operator("CumSum")
def cum_sum(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Running sum."""
    return _running(torch.cumsum, x, int(axis.item()), 0, exclusive, reverse)


@operator("CumProd")
def cum_prod(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Running product."""
    return _running(torch.cumprod, x, int(axis.item()), 1, exclusive, reverse)
