"""Convolutions of the same data whose results are added: one whose weight is the sum of theirs.

    A x + B x = (A + B) x

with every weight at the place of its tap in a kernel that has room for both. So networks are folded
that were trained with branches, as RepVGG (Ding et al. 2021) and its kin are.
"""

import math
from typing import NamedTuple

import numpy as np

from onnxq.numerics import groups
from onnxq.numerics.unfold import Window
from onnxq.spec import Floats


def union(a: Window, b: Window) -> Window | None:
    """The smallest convolution that either can be written as; None if there is none.

    A tap lies dilation * index - pad pixels from where a window begins. Where each result reads the
    same pixels in both and both end alike, their results have the same size.
    """
    fewer, more = sorted((a.groups, b.groups))
    unlike = isinstance(a.pads, str) or isinstance(b.pads, str) or a.strides != b.strides
    if unlike or len(a.kernel) != len(b.kernel) or more % fewer:
        return None
    kernel, dilations, before, behind = [], [], [], []
    for axis in range(len(a.kernel)):
        one, other = _reach(a, axis), _reach(b, axis)
        steps = {reach.step for reach in (one, other) if reach.step}
        step = max(steps, default=1)
        if len(steps) > 1 or one.slack != other.slack or (one.first - other.first) % step:
            return None
        first, last = min(one.first, other.first), max(one.last, other.last)
        kernel.append((last - first) // step + 1)
        dilations.append(step)
        before.append(-first)
        behind.append(last + one.slack)
    return Window(tuple(kernel), a.strides, tuple(dilations), (*before, *behind), fewer)


def placed(w: Floats, window: Window, whole: Window) -> Floats:
    """The weight of the same convolution as one of a union.

    Args:
        w: (c_out, c_in / groups, *kernel).
        window: Its own.
        whole: The union, which has fewer groups or as many.

    Returns:
        (c_out, c_in / groups of the union, *kernel of the union).
    """
    merged = groups.merge(w, window.groups, window.groups // whole.groups)
    result = np.zeros((*merged.shape[:2], *whole.kernel), w.dtype)
    taps = []
    for axis, (count, step) in enumerate(zip(window.kernel, whole.dilations, strict=True)):
        first = (_reach(window, axis).first - _reach(whole, axis).first) // step
        taps.append(slice(first, first + count))
    result[:, :, *taps] = merged
    return result


def products(window: Window, c_in: int) -> int:
    """Multiply-accumulates for each result."""
    return math.prod(window.kernel) * c_in // window.groups


class _Reach(NamedTuple):
    """Offsets of the first and last tap along an axis, pixels padded behind, and the dilation.

    A single tap has no dilation, which is 0 then.
    """

    first: int
    last: int
    slack: int
    step: int


def _reach(window: Window, axis: int) -> _Reach:
    count, dilation = window.kernel[axis], window.dilations[axis]
    first = -int(window.pads[axis])
    last = first + dilation * (count - 1)
    slack = int(window.pads[axis + len(window.kernel)]) - last
    return _Reach(first, last, slack, dilation if count > 1 else 0)
