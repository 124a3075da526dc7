"""Resize: an image of another size, each pixel made of those around where it lies."""

from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
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
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0

    @property
    def exact(self) -> bool:
        """Whether the new size is what the scale says, and was not rounded."""
        return abs(self.size * self.scale - self.out) < 1e-5 * self.out


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
# Those of which ONNX does not say whether the new size is that before or after rounding.
OF_EXACT_SIZES = {"align_corners", "tf_crop_and_resize"}

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


@lru_cache
@torch.inference_mode(False)  # since what is kept may meet a gradient later
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
        weights = [w / reduce(torch.add, weights) for w in weights]
    places = [p.clamp(0, to.size - 1).long() for p in places]
    return list(zip(places, weights, strict=True)), (at < 0) | (at > to.size - 1)


def _along(x: Tensor, axis: int, to: Axis, rule: Rule, beyond: float) -> Tensor:
    """One axis resized."""
    taps, outside = _taps(to, rule)
    across = (-1, *[1] * (x.ndim - 1 - axis))
    if rule.mode == "nearest":
        found = x.index_select(axis, taps[0][0].to(x.device))
    else:
        parts = [x.index_select(axis, p.to(x.device)) * w.to(x).reshape(across) for p, w in taps]
        found = reduce(torch.add, parts)
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
    if not all(to.exact for to in image) or len(image) not in LINEAR:
        return None
    if rule.mode == "nearest":
        repeats = all(to.out in (to.size, 2 * to.size, 4 * to.size, 8 * to.size) for to in image)
        return "nearest" if repeats and (rule.transformation, rule.nearest) in REPEATING else None
    halved = rule.transformation == "pytorch_half_pixel" and all(to.out > 1 for to in image)
    if not halved and rule.transformation not in ("half_pixel", "align_corners"):
        return None
    if rule.mode == "linear":
        return LINEAR[len(image)]
    return "bicubic" if len(image) == 2 and rule.a == -0.75 and not rule.inside else None


def _targets(
    sizes: Sequence[int], scales: Tensor | None, wanted: Tensor | None, policy: str
) -> list[Axis]:
    """How axes of some sizes are resized."""
    if wanted is not None and wanted.numel():
        out = integers(wanted)
        if policy != "stretch":
            pick = min if policy == "not_larger" else max
            scale = pick(o / n for o, n in zip(out, sizes, strict=True))
            return [Axis(n, int(n * scale + 0.5), scale) for n in sizes]
        return [Axis(n, o, o / n) for n, o in zip(sizes, out, strict=True)]
    if scales is None or not scales.numel():
        raise Refused("Resize has neither scales nor sizes")
    # In single precision, as by onnxruntime: 10 times 0.7 is 7.
    return [
        Axis(n, int(np.float32(n) * np.float32(scale)), scale)
        for n, scale in zip(sizes, scales.tolist(), strict=True)
    ]


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
    if mode not in ("nearest", "linear", "cubic") or transformation not in COORDINATES:
        raise Refused(f"Resize of mode {mode} by {transformation} is not implemented")
    if mode != "nearest" and not x.is_floating_point():
        raise Refused(f"Resize of integers in mode {mode} is not implemented")
    chosen = [a % x.ndim for a in (range(x.ndim) if axes is None else axes)]
    targets = _targets([x.shape[a] for a in chosen], scales, sizes, keep_aspect_ratio_policy)
    if transformation in OF_EXACT_SIZES and not all(to.exact for to in targets):
        raise Refused(f"Resize to rounded sizes by {transformation} is not implemented")
    if transformation == "tf_crop_and_resize" and roi is not None:
        part = zip(roi.tolist()[: len(chosen)], roi.tolist()[len(chosen) :], strict=True)
        targets = [Axis(*to[:3], *ends) for to, ends in zip(targets, part, strict=True)]
    moved = {a: to for a, to in zip(chosen, targets, strict=True) if to != Axis(to.size, to.size)}
    rule = Rule(mode, transformation, nearest_mode, cubic_coeff_a, bool(exclude_outside))
    if x.is_floating_point() and not {0, 1} & moved.keys():
        image = [moved.get(a, Axis(x.shape[a], x.shape[a])) for a in range(2, x.ndim)]
        if (kernel := _kernel(image, rule)) is not None:
            corners = None if kernel == "nearest" else transformation == "align_corners"
            return F.interpolate(x, [to.out for to in image], mode=kernel, align_corners=corners)
    for axis, to in moved.items():
        x = _along(x, axis, to, rule, extrapolation_value)
    return x
