"""Learned rounding: for each weight one of two neighbouring levels (AdaRound, Nagel et al. 2020).

    W~ = s (f + (c - f) h(V))        h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1)

f and c are the levels of the grid, or of the book, below and above; V >= 0 rounds up. A penalty
draws h to its ends:

    sum(1 - |2 h(V) - 1|^beta)
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from onnxq.numerics import affine
from onnxq.spec import Array, Floats, QTensor

# Ends of the sigmoid before it is cut off: h reaches 0 and 1.
GAMMA, ZETA = -0.1, 1.1
# How far from the middle h starts where the code is not what the weight rounds to.
LEANING = 0.05
# A weight whose h is farther than this from both 0 and 1 is undecided.
DECIDED = 0.05


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(V), between 0 and 1."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def inverse(h: Tensor) -> Tensor:
    """The V that ``h``, between 0 and 1, is of."""
    return torch.logit((h - GAMMA) / (ZETA - GAMMA))


class SoftRounding(nn.Module):
    """A weight between levels, in the place of a ``WeightQuantizer``; its scale stays as it is.

    In training mode it is soft, else as ``plan`` rounds it.

    At first every weight is between the level that it has and the neighbour on the side of the
    float weight. h is the fraction of the float weight there if that rounds to the level it has.
    If it does not, a compensation of errors chose the level, for reasons that the float weight
    knows nothing of: h is just on the level's side of the middle, since either may be right.

    Args:
        weight: What it rounds to at first.
        source: The float weight.
        ends: Least and largest code of each weight; None for those of the grid.

    Attributes:
        latent: V, of the shape of the codes.
    """

    scale: Tensor
    below: Tensor
    above: Tensor

    def __init__(
        self, weight: QTensor, source: Floats, ends: tuple[Array, Array] | None = None
    ) -> None:
        super().__init__()
        params, codes = weight.params, weight.codes.astype(np.int64)
        self.weight, self.shape = weight, source.shape
        low = 0 if weight.book is not None else params.spec.qmin
        book = np.arange(low, params.spec.qmax + 1) if weight.book is None else weight.book
        scale = affine.broadcast(params.scale, codes.ndim, params.axis).astype(np.float32)
        u = source.reshape(codes.shape) / scale
        level = codes - low
        least, most = (0, len(book) - 1) if ends is None else (end - low for end in ends)
        below = np.clip(level - (u < book[level]), least, most - 1)
        levels = torch.from_numpy(book.astype(np.float32))
        self.floor = torch.from_numpy((below + low).astype(weight.codes.dtype))
        self.register_buffer("scale", torch.from_numpy(np.array(scale)))
        self.register_buffer("below", levels[torch.from_numpy(below)])
        self.register_buffer("above", levels[torch.from_numpy(below + 1)])
        self.latent = nn.Parameter(inverse(self._start(torch.from_numpy(u), level > below)))

    def _start(self, u: Tensor, up: Array) -> Tensor:
        """Where h begins: at the fraction, or else just on the side of what is rounded up."""
        fraction = ((u - self.below) / (self.above - self.below)).clamp(0, 1)
        upper = torch.from_numpy(np.asarray(up))
        agrees = torch.where(upper, fraction >= 0.5, fraction < 0.5)
        leaning = torch.where(upper, 0.5 + LEANING, 0.5 - LEANING)
        return torch.where(agrees, fraction, leaning)

    @property
    def upward(self) -> Tensor:
        """h, between 0 and 1, of the shape of the codes."""
        return rectified_sigmoid(self.latent)

    def forward(self) -> Tensor:
        """The weight as the layer sees it."""
        h = self.upward if self.training else (self.latent >= 0).float()
        return (torch.lerp(self.below, self.above, h) * self.scale).reshape(self.shape)

    def decide(self, beta: float, pace: float) -> None:
        """Go down the penalty's slope, apart from what the loss does.

        Adam would divide the slope by the noise of the loss, which is larger by far, and leave
        weights undecided: it is kept out, as is weight decay (Loshchilov & Hutter 2019, AdamW).
        """
        with torch.no_grad():
            sigmoid = torch.sigmoid(self.latent)
            side = 2 * self.upward - 1
            slope = 2 * beta * side.abs().pow(beta - 1) * side.sign() * (side.abs() < 1)
            self.latent.add_(pace * slope * (ZETA - GAMMA) * sigmoid * (1 - sigmoid))

    @property
    def undecided(self) -> float:
        """Share of the weights that are not on a level, nor nearly."""
        with torch.no_grad():
            h = self.upward
            return float(((h > DECIDED) & (h < 1 - DECIDED)).float().mean())

    def plan(self) -> QTensor:
        """The integer weight as it is now."""
        with torch.no_grad():
            up = (self.latent >= 0).cpu().numpy()
        codes = self.floor.numpy() + up.astype(self.weight.codes.dtype)
        return replace(self.weight, codes=codes)
