"""Operators that make, reshape, rearrange or describe tensors."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812  (torch's custom)
from torch import Tensor

from onnxq.lowering.elementwise import dtype_of
from onnxq.lowering.registry import Refused, integers, operator


@operator("Constant")
def constant(
    *,
    value: Tensor | None = None,
    value_float: float | None = None,
    value_floats: Sequence[float] | None = None,
    value_int: int | None = None,
    value_ints: Sequence[int] | None = None,
) -> Tensor:
    """A tensor that an attribute holds."""
    if value is not None:
        return value
    floats = value_float if value_floats is None else value_floats
    if floats is not None:
        return torch.tensor(floats, dtype=torch.float32)
    return torch.tensor(value_int if value_ints is None else value_ints, dtype=torch.int64)


@operator("ConstantOfShape")
def constant_of_shape(shape: Tensor, *, value: Tensor | None = None) -> Tensor:
    """One number, 0 by default, everywhere."""
    fill = torch.zeros(1) if value is None else value
    return torch.full(integers(shape), fill.item(), dtype=fill.dtype)


@operator("EyeLike")
def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    """1 on the k-th diagonal of a matrix, else 0."""
    rows, columns = (torch.arange(n) for n in x.shape)
    return (columns - rows[:, None] == k).to(x.dtype if dtype is None else dtype_of(dtype))


@operator("Range")
def range_of(start: Tensor, limit: Tensor, delta: Tensor, *, stash_type: int = 1) -> Tensor:
    """Numbers from ``start`` to before ``limit`` in steps of ``delta``."""
    if stash_type != 1:
        raise Refused(f"stash_type {stash_type} is not implemented")
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


@operator("Shape")
def shape_of(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """The sizes of the axes from ``start`` to before ``end``."""
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


@operator("Size")
def size_of(x: Tensor) -> Tensor:
    """The number of elements."""
    return torch.tensor(x.numel())


@operator("Reshape")
def reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    """The same values in another shape; a 0 keeps a size unless ``allowzero`` is set."""
    sizes = integers(shape)
    return x.reshape([x.shape[i] if n == 0 and not allowzero else n for i, n in enumerate(sizes)])


@operator("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """A matrix: the axes before ``axis``, and those from it on."""
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("Squeeze")
def squeeze(x: Tensor, which: Tensor | None = None, *, axes: Sequence[int] | None = None) -> Tensor:
    """Without the axes named, or without all of size 1."""
    chosen = axes if which is None else integers(which)
    if chosen is None:
        return x.squeeze()
    if any(x.shape[a] != 1 for a in chosen):
        raise Refused(f"Squeeze of axes {list(chosen)} of the shape {list(x.shape)}")
    return x.squeeze(tuple(chosen))


@operator("Unsqueeze")
def unsqueeze(
    x: Tensor, which: Tensor | None = None, *, axes: Sequence[int] | None = None
) -> Tensor:
    """With new axes of size 1 at the places named."""
    chosen = list(axes or []) if which is None else integers(which)
    rank = x.ndim + len(chosen)
    for axis in sorted(a % rank for a in chosen):
        x = x.unsqueeze(axis)
    return x


@operator("Transpose")
def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    """The axes in another order, by default the reverse."""
    return x.permute(*(reversed(range(x.ndim)) if perm is None else perm))


@operator("Concat")
def concat(*inputs: Tensor, axis: int) -> Tensor:
    """Tensors one after the other."""
    return torch.cat(inputs, axis)


@operator("Split")
def split_up(
    x: Tensor,
    sizes: Tensor | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    split: Sequence[int] | None = None,
    count: int,
) -> tuple[Tensor, ...]:
    """Pieces along an axis, by default equal, but for the last."""
    if sizes is not None:
        split = integers(sizes)
    if split is None:
        size = -(-x.shape[axis] // count)
        split = [size] * (count - 1) + [x.shape[axis] - size * (count - 1)]
    if min(split) < 0:
        raise Refused(f"Split of {x.shape[axis]} into {count}")
    return torch.split_with_sizes(x, list(split), axis)


@operator("Expand")
def expand(x: Tensor, shape: Tensor) -> Tensor:
    """Repeated along axes of size 1 until the shape is reached."""
    sizes = integers(shape)
    lead = [1] * (x.ndim - len(sizes))
    kept = [1] * (len(sizes) - x.ndim) + list(x.shape)
    return x.expand([k if n == 1 else n for n, k in zip(lead + sizes, kept, strict=True)])


@operator("Tile")
def tile(x: Tensor, repeats: Tensor) -> Tensor:
    """Repeated along every axis."""
    return x.repeat(integers(repeats))


# Where the values beside an axis of n come from, by mode.
BORDERS = {
    "edge": lambda at, n: at.clamp(0, n - 1),
    "reflect": lambda at, n: n - 1 - (at % max(2 * n - 2, 1) - (n - 1)).abs(),
    "wrap": lambda at, n: at % n,
}


@operator("Pad")
def pad(
    x: Tensor,
    pads: Tensor,
    fill: Tensor | None = None,
    axes: Tensor | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    """More values before and after, or fewer where negative."""
    ends = integers(pads)
    chosen = range(x.ndim) if axes is None else [a % x.ndim for a in integers(axes)]
    around = dict(
        zip(chosen, zip(ends[: len(chosen)], ends[len(chosen) :], strict=True), strict=True)
    )
    if mode == "constant":
        flat = [end for axis in reversed(range(x.ndim)) for end in around.get(axis, (0, 0))]
        return F.pad(x, flat, value=0 if fill is None else fill.item())
    if mode not in BORDERS:
        raise Refused(f"Pad of mode {mode} is not implemented")
    for axis, (before, after) in around.items():
        if before or after:
            n = x.shape[axis]
            at = BORDERS[mode](torch.arange(-before, n + after, device=x.device), n)
            x = x.index_select(axis, at)
    return x


@operator("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Channels to blocks of pixels; the place in a block counts channels first, or last (CRD)."""
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    n, h, w = x.shape[0], *x.shape[2:]
    blocks = x.reshape(n, blocksize, blocksize, -1, h, w).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(n, -1, h * blocksize, w * blocksize)


@operator("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Blocks of pixels to channels."""
    if mode == "CRD":
        return F.pixel_unshuffle(x, blocksize)
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // blocksize, blocksize, w // blocksize, blocksize)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, -1, h // blocksize, w // blocksize)
