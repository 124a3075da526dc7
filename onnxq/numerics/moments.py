"""First and second moments of what layers read and return, streamed.

x, y    input rows and outputs of the float model
z, y_q  the same in the quantized model
"""

import math
from typing import Self

import numpy as np

from onnxq.spec import Array, Floats


class InputMoments:
    """Means and second moments of what a layer multiplies its weights with.

        H = E[z zᵀ] - E[z] E[z]ᵀ        the Hessian of the layer's squared error, up to a factor
        G = E[x zᵀ] - E[x] E[z]ᵀ

    The means are taken out: what they contribute to an error of the output is a constant of each
    channel, and the bias takes it.

    Args:
        groups: Channel groups of the layer.
        size: Inputs of one output channel.

    Attributes:
        count: Rows seen.
    """

    def __init__(self, groups: int, size: int) -> None:
        self.count = 0
        self._x, self._z = np.zeros((2, groups, size))
        self._xz, self._zz = np.zeros((2, groups, size, size))

    @np.errstate(over="ignore", invalid="ignore")  # whoever reads them looks for what overflowed
    def update(self, x: Floats, z: Floats) -> None:
        """Fold rows in.

        Args:
            x: Of the float model, float32 (groups, n, size).
            z: The same rows of the quantized model.
        """
        if not x.shape[1]:
            return
        mean_x, mean_z = (a.mean(axis=1, dtype=np.float64) for a in (x, z))
        x, z = (a - mean.astype(np.float32)[:, None] for a, mean in ((x, mean_x), (z, mean_z)))
        xz, zz = np.zeros((2, *self._zz.shape))
        for group, (a, b) in enumerate(zip(x, z, strict=True)):
            xz[group], zz[group] = a.T @ b, b.T @ b
        self._fold(x.shape[1], mean_x, mean_z, xz, zz)

    def merge(self, other: Self) -> None:
        """Fold the rows in that another one has seen."""
        self._fold(other.count, other._x, other._z, other._xz, other._zz)

    @np.errstate(over="ignore", invalid="ignore")
    def _fold(self, count: int, x: Array, z: Array, xz: Array, zz: Array) -> None:
        """Merge moments about means pairwise (Chan et al. 1983).

        Means would drown a small spread beside them in a sum of squares.
        """
        if not count:
            return
        before, self.count = self.count, self.count + count
        share = before * count / self.count
        d_x, d_z = x - self._x, z - self._z
        self._xz += xz + share * d_x[:, :, None] * d_z[:, None, :]
        self._zz += zz + share * d_z[:, :, None] * d_z[:, None, :]
        self._x = self._x + d_x * (count / self.count)
        self._z = self._z + d_z * (count / self.count)

    @property
    def hessian(self) -> Array:
        """H, float64 (groups, size, size)."""
        return self._zz / max(self.count, 1)

    @property
    def cross(self) -> Array:
        """G, float64 (groups, size, size)."""
        return self._xz / max(self.count, 1)


class OutputMoments:
    """Means, variances and the error of what a layer returns, for each channel; 0 of nothing.

    Args:
        channels: Output channels.

    Attributes:
        count: Values of each channel seen.
        mean: E[y], float64 (channels,).
        mean_q: E[y_q].
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean, self.mean_q = np.zeros((2, channels))
        self._yy, self._yq, self._qq = np.zeros((3, channels))

    @np.errstate(over="ignore", invalid="ignore")
    def update(self, y: Floats, y_q: Floats, axis: int) -> Self:
        """Fold results of the float and of the quantized layer in, channels at ``axis``.

        The moments about the mean are summed in the arrays' own precision if it holds them, in
        portions. A pair of different shapes, where these depend on values, is left out.
        """
        axis %= y.ndim
        shape = (math.prod(y.shape[:axis]), y.shape[axis], math.prod(y.shape[axis + 1 :]))
        if y.shape != y_q.shape or not y.size:
            return self
        y, y_q = y.reshape(shape), y_q.reshape(shape)
        count = shape[0] * shape[2]
        means = [a.sum(axis=(0, 2), dtype=np.float64) / count for a in (y, y_q)]
        sums = _central(y, y_q, *means)
        if not np.isfinite(sums).all():
            sums = _central(y.astype(np.float64), y_q.astype(np.float64), *means)
        self._fold(count, *means, *sums)
        return self

    def merge(self, other: Self) -> None:
        """Fold the results in that another one has seen."""
        self._fold(other.count, other.mean, other.mean_q, other._yy, other._yq, other._qq)

    @np.errstate(over="ignore", invalid="ignore")
    def _fold(
        self, count: int, mean: Array, mean_q: Array, yy: Array, yq: Array, qq: Array
    ) -> None:
        """Merge moments about means pairwise, as those of inputs."""
        if not count:
            return
        before, self.count = self.count, self.count + count
        share = before * count / self.count
        d, d_q = mean - self.mean, mean_q - self.mean_q
        self._yy = self._yy + yy + share * d * d
        self._yq = self._yq + yq + share * d * d_q
        self._qq = self._qq + qq + share * d_q * d_q
        self.mean = self.mean + d * (count / self.count)
        self.mean_q = self.mean_q + d_q * (count / self.count)

    def corrected(self, gain: Floats, offset: Floats) -> None:
        """Put gain y_q + offset, each (channels,), in the place of y_q."""
        self.mean_q = gain * self.mean_q + offset
        self._yq = gain * self._yq
        self._qq = gain**2 * self._qq

    @property
    def var(self) -> Array:
        """Var[y], float64 (channels,)."""
        return self._yy / max(self.count, 1)

    @property
    def var_q(self) -> Array:
        """Var[y_q]."""
        return self._qq / max(self.count, 1)

    @property
    def shift(self) -> Array:
        """Mean activation shift, MAS = E[y_q] - E[y] (Finkelstein et al. 2019)."""
        return self.mean_q - self.mean

    @property
    def share(self) -> float:
        """What part of the squared error, over all channels, is the shift: 0 to 1."""
        spread = (self._yy - 2 * self._yq + self._qq) / max(self.count, 1)
        total = float(np.sum(self.shift**2 + spread))
        return float(np.sum(self.shift**2)) / total if total > 0 else 0.0

    @property
    def ratio(self) -> float:
        """MSSR, mean shift to signal: sqrt(mean MAS^2 / mean E[y^2]) over all channels."""
        signal = float(np.mean(self.mean**2 + self.var))
        return float(np.sqrt(np.mean(self.shift**2) / signal)) if signal > 0 else 0.0


def _central(y: Floats, y_q: Floats, mean: Array, mean_q: Array) -> list[Array]:
    """Sums of (y - mean)^2, (y - mean) (y_q - mean_q) and (y_q - mean_q)^2 of each channel."""
    y, y_q = y - mean.astype(y.dtype)[:, None], y_q - mean_q.astype(y.dtype)[:, None]
    pairs = ((y, y), (y, y_q), (y_q, y_q))
    return [np.einsum("ocn,ocn->oc", a, b).sum(axis=0, dtype=np.float64) for a, b in pairs]
