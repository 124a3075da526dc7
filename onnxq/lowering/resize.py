"""Resize: an image of another size, each pixel made of those around where it lies."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's custom)
from torch import Tensor

from onnxq.lowering.registry import Refused, integers, operator


class Axis(NamedTuple):
    """How an axis is resized: from ``size`` to ``out``, by ``scale``, from a part of its length."""

    size: int
    out: int
    scale: float
    start: float
    end: float


class Rule(NamedTuple):
    """The attributes that say of which pixels one is made, and with what weights."""

    mode: str
    transformation: str
    nearest: str
    a: float
    inside: bool


# Where pixel x lies in the image that is resized, in its pixels.
COORDINATES: dict[str, Callable[[Tensor, Axis], Tensor]] = {
    "align_corners": lambda x, to: x * (to.size - 1) / max(to.out - 1, 1),
    "asymmetric": lambda x, to: x / to.scale,
    "half_pixel": lambda x, to: (x + 0.5) / to.scale - 0.5,
    "half_pixel_symmetric": lambda x, to: (
        (x + 0.5) / to.scale - 0.5 + to.size / 2 * (1 - to.out / (to.size * to.scale))
    ),
    "pytorch_half_pixel": lambda x, to: (x + 0.5) / to.scale - 0.5 if to.out > 1 else 0 * x,
    "tf_crop_and_resize": lambda x, to: (
        (to.size - 1)
        * (
            to.start + x * (to.end - to.start) / (to.out - 1)
            if to.out > 1
            else (to.start + to.end) / 2 + 0 * x
        )
    ),
    "tf_half_pixel_for_nn": lambda x, to: (x + 0.5) / to.scale,
}
# Those that ONNX does not define where the new size, but not the scale, was rounded.
OF_EXACT_SIZES = {"align_corners", "pytorch_half_pixel", "tf_crop_and_resize"}

NEAREST: dict[str, Callable[[Tensor], Tensor]] = {
    "ceil": torch.ceil,
    "floor": torch.floor,
    "round_prefer_ceil": lambda at: torch.floor(at + 0.5),
    "round_prefer_floor": lambda at: torch.ceil(at - 0.5),
}


def _cubic(t: Tensor, a: float) -> list[Tensor]:
    """Weights of the four pixels around a place that lies t behind the second (Keys)."""

    def near(d: Tensor) -> Tensor:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Tensor) -> Tensor:
        return (((d - 5) * d + 8) * d - 4) * a

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


@cache
def _taps(to: Axis, rule: Rule) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Pixels and their weights, whose products make up the new ones; and which lie outside."""
    at = COORDINATES[rule.transformation](torch.arange(to.out, dtype=torch.float32), to)
    first = at.floor()
    if rule.mode == "nearest":
        places, weights = [NEAREST[rule.nearest](at)], [torch.ones_like(at)]
    elif rule.mode == "linear":
        places, weights = [first, first + 1], [1 - (at - first), at - first]
    else:
        places, weights = [first + i for i in range(-1, 3)], _cubic(at - first, rule.a)
    if rule.inside:
        weights = [w * ((p >= 0) & (p < to.size)) for p, w in zip(places, weights, strict=True)]
        total = torch.stack(weights).sum(0)
        weights = [w / total for w in weights]
    places = [p.clamp(0, to.size - 1).long() for p in places]
    return list(zip(places, weights, strict=True)), (at < 0) | (at > to.size - 1)


def _along(x: Tensor, axis: int, to: Axis, rule: Rule, beyond: float) -> Tensor:
    """One axis resized."""
    taps, outside = _taps(to, rule)
    across = (-1, *[1] * (x.ndim - 1 - axis))
    if rule.mode == "nearest":
        found = x.index_select(axis, taps[0][0].to(x.device))
    else:
        found = torch.zeros(())
        for place, weight in taps:
            found = found + x.index_select(axis, place.to(x.device)) * weight.to(x).reshape(across)
    if rule.transformation == "tf_crop_and_resize":
        found = found.masked_fill(outside.to(x.device).reshape(across), beyond)
    return found


# Ways to choose a pixel that repeat every one where the scale is a small power of two.
REPEATING = {
    ("asymmetric", "floor"),
    ("half_pixel", "round_prefer_ceil"),
    ("half_pixel", "round_prefer_floor"),
    ("pytorch_half_pixel", "round_prefer_ceil"),
    ("pytorch_half_pixel", "round_prefer_floor"),
    ("tf_half_pixel_for_nn", "floor"),
}
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def _kernel(image: Sequence[Axis], rule: Rule) -> str | None:
    """The mode of the kernel of torch that computes the same, if there is one."""
    if rule.mode == "nearest":
        repeats = all(to.out in (to.size, 2 * to.size, 4 * to.size, 8 * to.size) for to in image)
        same = repeats and (rule.transformation, rule.nearest) in REPEATING
        return "nearest" if same and len(image) in LINEAR else None
    whole = rule.transformation == "pytorch_half_pixel" and all(to.out > 1 for to in image)
    if not whole and rule.transformation not in ("half_pixel", "align_corners"):
        return None
    if rule.mode == "linear":
        return LINEAR.get(len(image))
    return "bicubic" if len(image) == 2 and rule.a == -0.75 and not rule.inside else None


def _targets(
    sizes: Sequence[int], scales: Tensor | None, wanted: Tensor | None, policy: str
) -> tuple[list[int], list[float]]:
    """The new sizes, and what the old ones were multiplied by."""
    if wanted is None or not wanted.numel():
        if scales is None or not scales.numel():
            raise Refused("Resize has neither scales nor sizes")
        factors = [float(f) for f in scales.tolist()]
        # In single precision, as by onnxruntime: 10 times 0.7 is 7.
        return [
            int(np.float32(n) * np.float32(f)) for n, f in zip(sizes, factors, strict=True)
        ], factors
    out = integers(wanted)
    factors = [o / n for o, n in zip(out, sizes, strict=True)]
    if policy == "stretch":
        return out, factors
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [int(factor * n + 0.5) for n in sizes], [factor] * len(out)


@operator("Resize")
def resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
    opset: int,
) -> Tensor:
    """Some axes of another size; by torch where it has a kernel that does the same."""
    transformation = coordinate_transformation_mode
    if opset < 11:
        raise Refused(f"Resize of opset {opset} is not implemented")
    if antialias:
        raise Refused("Resize with antialias is not implemented")
    if mode != "nearest" and not x.is_floating_point():
        raise Refused(f"Resize of integers in mode {mode} is not implemented")
    chosen = [a % x.ndim for a in (range(x.ndim) if axes is None else axes)]
    before = [x.shape[a] for a in chosen]
    after, factors = _targets(before, scales, sizes, keep_aspect_ratio_policy)
    whole = all(abs(n * f - o) < 1e-5 * o for n, f, o in zip(before, factors, after, strict=True))
    if not whole and transformation in OF_EXACT_SIZES:
        raise Refused(f"Resize to rounded sizes by {transformation} is not implemented")
    part = roi.tolist() if transformation == "tf_crop_and_resize" and roi is not None else []
    n = len(chosen)
    part = part or [0.0] * n + [1.0] * n
    rule = Rule(mode, transformation, nearest_mode, cubic_coeff_a, bool(exclude_outside))
    to = {
        axis: Axis(*row)
        for axis, *row in zip(chosen, before, after, factors, part[:n], part[n:], strict=True)
    }
    moved = {a: t for a, t in to.items() if t != Axis(t.size, t.size, 1.0, 0.0, 1.0)}
    image = [to.get(a, Axis(x.shape[a], x.shape[a], 1.0, 0.0, 1.0)) for a in range(2, x.ndim)]
    kernel = (
        _kernel(image, rule)
        if whole and x.is_floating_point() and min(moved, default=2) > 1
        else None
    )
    if kernel is not None:
        corners = None if kernel == "nearest" else transformation == "align_corners"
        return F.interpolate(x, [t.out for t in image], mode=kernel, align_corners=corners)
    for axis, target in moved.items():
        x = _along(x, axis, target, rule, extrapolation_value)
    return x
