"""Fake quantizers: the rounding of the emitted file, with gradients that let it be trained.

    x_hat = s P(x / s)        P: to the nearest level, of an integer grid or of a book

    dx_hat/dx = 1 inside the levels, 0 outside                       (straight-through estimator)
    dx_hat/ds = P(u) - u inside, P(u) outside,  u = x / s            (LSQ, Esser et al. 2020, eq. 3)

A scale is trained as the logarithm of its ratio to what it was, and a weight in steps from level to
level: one learning rate then means the same in every layer of every network.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onnxq.numerics import affine, levels
from onnxq.spec import Array, Floats, QParams, QTensor

# What lies on the outermost levels is inside.
EDGE = 1e-4


class _Project(torch.autograd.Function):
    """(x, s) -> s P(x / s)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, low: float, high: float, book: Tensor | None
    ) -> Tensor:
        found = nearest(torch.div(x, scale), low, high, book).mul_(scale)
        ctx.save_for_backward(x, scale, found)
        ctx.ends = low, high
        return found

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, found = ctx.saved_tensors
        u = torch.div(x, scale)
        low, high = ctx.ends
        passed, slope = _inside(g, u, low, high), None
        if ctx.needs_input_grad[1]:
            slope = _inner(g, found - _inside(x, u, low, high), scale) / scale
        return passed, slope, None, None, None


def _inside(values: Tensor, u: Tensor, low: float, high: float) -> Tensor:
    """The values where u is inside the levels, 0 outside: in one pass, as a clip's gradient."""
    found: Tensor = torch.ops.aten.hardtanh_backward(values, u, low - EDGE, high + EDGE)
    return found


def _inner(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """The sum of a b over all that has one scale; a product of vectors where that is everything."""
    if scale.numel() > 1:
        return (a * b).sum_to_size(scale.shape)
    if a.ndim == 4:  # the order in which images lie in memory
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.dot(a.reshape(-1), b.reshape(-1)).reshape(scale.shape)


def project(
    x: Tensor, scale: Tensor, low: float, high: float, book: Tensor | None = None
) -> Tensor:
    """Every value of ``x`` rounded to the nearest level times its scale; the levels see nearest."""
    found: Tensor = _Project.apply(x, scale, low, high, book)  # type: ignore[no-untyped-call]
    return found


def nearest(u: Tensor, low: float, high: float, book: Tensor | None = None) -> Tensor:
    """The nearest integers between ``low`` and ``high``, or levels of a book; ``u`` is overwritten.

    As numerics/affine.py and numerics/levels.py round: half to even, or down.
    """
    if book is None:
        return u.round_().clamp_(low, high)
    return book[torch.bucketize(u, (book[1:] + book[:-1]) / 2)]


class ActivationQuantizer(nn.Module):
    """A tensor on its grid.

    Attributes:
        stretch: Logarithm of the scale, relative to what it was; ().
        mix: Makes of a quantized tensor and the one it is of what comes out; None for the former.
    """

    origin: Tensor

    def __init__(self, params: QParams) -> None:
        super().__init__()
        zero_point = int(params.zero_point)
        self.params = params
        self.low, self.high = params.spec.qmin - zero_point, params.spec.qmax - zero_point
        self.register_buffer("origin", torch.tensor(float(params.scale)))
        self.stretch = nn.Parameter(torch.zeros(()))
        self.mix: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def scale(self) -> Tensor:
        """The scale, ()."""
        return self.origin * self.stretch.exp()

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        """Quantize and dequantize ``x``, on a grid times ``factor``."""
        scale = self.scale if factor == 1 else self.scale * factor
        found = project(x, scale, self.low, self.high)
        return found if self.mix is None else self.mix(found, x)

    def plan(self) -> QParams:
        """The grid as it is now."""
        scale = self.scale.detach().cpu().numpy()
        return replace(self.params, scale=np.asarray(scale, np.float32))


class WeightQuantizer(nn.Module):
    """A weight on its grid.

    Args:
        weight: What it rounds to at first.
        source: The float weight. It is where training begins if it rounds to that, and otherwise,
            after a compensation of errors, training begins in the middle of every step.
        ends: Least and largest code of each weight; None for those of the grid.

    Attributes:
        latent: In steps of the first scale, or mean ones of a book; of the shape of the codes.
        stretch: Logarithm of the scale, relative to what it was.
    """

    origin: Tensor
    step: Tensor
    book: Tensor | None
    least: Tensor | None
    most: Tensor | None

    def __init__(
        self, weight: QTensor, source: Floats, ends: tuple[Array, Array] | None = None
    ) -> None:
        super().__init__()
        params, codes, book = weight.params, weight.codes, weight.book
        self.weight, self.shape = weight, source.shape
        scale = np.array(affine.broadcast(params.scale, codes.ndim, params.axis), np.float32)
        gap = 1.0
        if book is None:
            self.low, self.high = float(params.spec.qmin), float(params.spec.qmax)
        else:
            self.low, self.high = float(book[0]), float(book[-1])
            gap = (self.high - self.low) / max(1, len(book) - 1) or 1.0
        self.register_buffer("book", None if book is None else torch.from_numpy(book).float())
        self.register_buffer("origin", torch.from_numpy(scale))
        self.register_buffer("step", self.origin * gap)
        for name, end in zip(("least", "most"), ends or (None, None), strict=True):
            self.register_buffer(name, None if end is None else torch.from_numpy(end).float())
        values = torch.from_numpy(np.ascontiguousarray(weight.levels, np.float32))
        middle = values / gap
        w = source.reshape(codes.shape)
        if np.array_equal(_rounded(w, weight), codes):
            begin = torch.from_numpy(np.array(w, np.float32, order="C")) / self.step
            # In float32, what lies next to a border may come to lie beyond it.
            again = nearest(begin * self.step / self.origin, self.low, self.high, self.book)
            self.latent = nn.Parameter(torch.where(again == values, begin, middle))
        else:
            self.latent = nn.Parameter(middle)
        self.stretch = nn.Parameter(torch.zeros(scale.shape))

    @property
    def scale(self) -> Tensor:
        """The scale, of the rank of the codes."""
        return self.origin * self.stretch.exp()

    def forward(self) -> Tensor:
        """The weight as the layer sees it."""
        scale = self.scale
        x = self._within(scale)
        return project(x, scale, self.low, self.high, self.book).reshape(self.shape)

    def _within(self, scale: Tensor) -> Tensor:
        """What is rounded."""
        x = self.latent * self.step
        if self.least is None or self.most is None:
            return x
        return x.clamp(self.least * scale, self.most * scale)

    def plan(self) -> QTensor:
        """The integer weight as it is now."""
        params = self.weight.params
        with torch.no_grad():
            scale = self.scale
            found = nearest(self._within(scale) / scale, self.low, self.high, self.book)
        codes = found.cpu().numpy()
        if self.weight.book is not None:
            codes = np.searchsorted(self.weight.book, codes)
        fitted = scale.cpu().numpy().reshape(params.scale.shape)
        return QTensor(
            codes.astype(self.weight.codes.dtype), replace(params, scale=fitted), self.weight.book
        )


def _rounded(w: Floats, weight: QTensor) -> Array:
    """Codes of the values of ``w`` nearest to them, on the grid or in the book of ``weight``.

    A range may have ended before the grid does: no code is larger than the largest of its channel.
    """
    if weight.book is None:
        codes, axes = weight.codes, affine.reduce_axes(w.ndim, weight.params.axis)
        top = np.abs(codes.astype(np.int16)).max(axis=axes, keepdims=True, initial=0)
        return np.clip(affine.quantize(w, weight.params), -top, top)
    u = w.astype(np.float64) / affine.scales(weight)
    return levels.nearest(u, weight.book.astype(np.float64))
