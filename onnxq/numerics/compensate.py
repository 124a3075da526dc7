"""Rounding with the errors of some weights made up for by others (OBQ, GPTQ), for any level set.

A layer computes W x in the float model. Behind quantized layers its input is z instead of x, and
its quantized weights are W_q = s q with levels q. With the moments H and G of numerics/moments.py,

    E|W x - W_q z|^2 = tr (W_q - T) H (W_q - T)ᵀ + const,    T = W G H^-1

once the bias has taken the means. T is what the weights would have to be to make up for the errors
of the layers before. GPTQ (Frantar et al. 2023) rounds W itself in the metric H; rounding T instead
follows from the same objective. Both H and G need a little damping.

Rows of W (output channels) are independent. All arrays are float64 with a leading axis of channel
groups: w (groups, rows, size), H (groups, size, size).
"""

import numpy as np

from onnxq.numerics.levels import nearest
from onnxq.spec import Array

# Least and largest level of a uniform grid.
Ends = tuple[Array | int, Array | int]

# Columns rounded before the rest of the matrix hears of it.
BLOCK = 128
# Added to the diagonal of H at least, relative to its mean.
DAMP = 0.01
# What is added for inputs that few rows tell of: where rows are to say what weights should be, and
# where they only weigh what rounding them costs. Rows of one image are alike, and so tell less than
# their number. Of 0, 1, 2, 4, 8 and 16 for the first, of 0 to 16 for the second, with 24 to 1,024
# images of four networks of the zoo and two others, these are best or near it everywhere.
AIM, WEIGH = 8.0, 0.5
# Scales tried, relative to the one given.
FACTORS = np.array([1.0, 0.55, 0.7, 0.85, 1.15, 1.3])
# How often levels are chosen anew beside all others; eight sweeps win no more.
SWEEPS = 4


def damping(hessian: Array, count: float = np.inf, part: float = WEIGH) -> Array:
    """D = max(0.01, part inputs / rows) times the mean of H_ii, diagonal; 1 where all are zero.

    Moments of few rows know the inputs badly; weights fitted to them would fail on others. As in a
    ridge regression, what draws them back is in proportion to what a row has to tell.

    Args:
        hessian: H.
        count: Rows behind it.
        part: AIM or WEIGH.
    """
    size = hessian.shape[-1]
    mean = np.einsum("gii->gi", hessian).mean(axis=1)
    extra = max(DAMP, part * size / max(count, 1)) * mean
    return np.where(mean > 0, extra, 1.0)[:, None, None] * np.eye(size)


def target(w: Array, hessian: Array, cross: Array, extra: Array) -> Array:
    """T = W (G + D) (H + D)^-1, which the damping D draws to W where the data say little."""
    right = (cross + extra).transpose(0, 2, 1) @ w.transpose(0, 2, 1)
    return np.linalg.solve(hessian + extra, right).transpose(0, 2, 1)


def to_levels(u: Array, ends: Ends, book: Array | None) -> Array:
    """The nearest integer between two ends, or the nearest level of an ascending book."""
    if book is None:
        return np.clip(np.rint(u), *ends)
    return np.asarray(book[nearest(u, book)])


def error(w_q: Array, w: Array, hessian: Array) -> Array:
    """(w_q - w) H (w_q - w)ᵀ of every row, (groups, rows)."""
    return np.asarray((((w_q - w) @ hessian) * (w_q - w)).sum(axis=-1))


def gptq(w: Array, hessian: Array, scale: Array, ends: Ends, book: Array | None) -> Array:
    """Levels q: one column after the other is rounded, its error spread over those still to come.

    With U the upper Cholesky factor of H^-1,

        e_i = (w_i - s q_i) / U_ii,     w_j -= e_i U_ij  for all j > i

    in the order of falling H_ii, and in blocks of columns.

    Args:
        w: What to round.
        hessian: Positive definite.
        scale: s, of the shape of ``w``, or broadcast to it.
        ends: Least and largest level of the uniform grid, each to broadcast to ``w``.
        book: Levels, where they are not uniform.
    """
    size = w.shape[2]
    order = np.argsort(-np.einsum("gii->gi", hessian), axis=1, kind="stable")
    columns = order[:, None, :]
    w = np.take_along_axis(w, columns, axis=2)
    scale, low, high = (
        np.take_along_axis(np.broadcast_to(a, w.shape), columns, axis=2) for a in (scale, *ends)
    )
    h = np.take_along_axis(hessian, columns, axis=2)
    h = np.take_along_axis(h, order[:, :, None], axis=1)
    # H = A Aᵀ with A upper, the factor of H in reversed order, gives H^-1 = Uᵀ U with U = A^-1.
    u = np.linalg.inv(_cholesky(h[:, ::-1, ::-1]))[:, ::-1, ::-1]
    q = np.empty_like(w)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        e = np.empty((*w.shape[:2], stop - start))
        for i in range(start, stop):
            at = low[:, :, i], high[:, :, i]
            q[:, :, i] = to_levels(w[:, :, i] / scale[:, :, i], at, book)
            e[:, :, i - start] = (w[:, :, i] - scale[:, :, i] * q[:, :, i]) / u[:, None, i, i]
            w[:, :, i + 1 : stop] -= e[:, :, i - start, None] * u[:, None, i, i + 1 : stop]
        w[:, :, stop:] -= e @ u[:, start:stop, stop:]
    return np.take_along_axis(q, np.argsort(order, axis=1)[:, None, :], axis=2)


def _cholesky(h: Array) -> Array:
    """The lower factor; where sums of rounded products left H not quite positive, of more of D."""
    extra = 0.0 * h
    while True:
        try:
            return np.linalg.cholesky(h + extra)
        except np.linalg.LinAlgError:
            extra = 10.0 * extra + damping(np.abs(h))


def compensated(
    w: Array,
    hessian: Array,
    scale: Array,
    ends: Ends,
    book: Array | None,
    factors: Array = FACTORS,
    shared: bool = False,
) -> tuple[Array, Array]:
    """The best, for each row, of rounding to nearest and of ``gptq`` with several scales, refined.

    Args:
        w: What to round.
        hessian: H + D.
        scale: s, of the shape of ``w``.
        ends: Least and largest level of the uniform grid, each to broadcast to ``w``.
        book: Levels, where they are not uniform.
        factors: What to multiply the scale with, (k,).
        shared: One scale serves all rows, so that all take the same factor.

    Returns:
        Levels of the shape of ``w``, and the factor of the scale, (groups, rows, 1).
    """
    groups, rows, size = w.shape
    # Scales are further rows of the same problem.
    finer = (factors[:, None, None] * scale[:, None]).reshape(groups, -1, size)
    again = (1, len(factors), 1)
    many, low, high = (np.tile(np.broadcast_to(a, w.shape), again) for a in (w, *ends))
    clever = gptq(many, hessian, finer, (low, high), book)
    tried = np.concatenate([finer, scale], axis=1).reshape(groups, -1, rows, size)
    plain = to_levels(w / scale, ends, book)
    q = np.concatenate([clever, plain], axis=1).reshape(tried.shape)
    errors = np.stack([error(tried[:, k] * q[:, k], w, hessian) for k in range(q.shape[1])], axis=1)
    if shared:
        errors[:] = errors.sum(axis=(0, 2), keepdims=True)
    best = errors.argmin(axis=1)[:, None, :, None]
    chosen, factor = np.take_along_axis(q, best, axis=1)[:, 0], np.append(factors, 1.0)[best[:, 0]]
    for _ in range(SWEEPS):
        chosen = descended(w, hessian, factor * scale, chosen, ends, book)
    return chosen, factor


def descended(
    w: Array, hessian: Array, scale: Array, q: Array, ends: Ends, book: Array | None
) -> Array:
    """Levels chosen anew one after the other, each the best beside all others as they stand.

        q_i <- Q(q_i - r_i / (s H_ii)),    r = (s q - w) H

    That is coordinate descent in the error of ``gptq``, which never looks back at what it rounded.

    Args:
        w: What was rounded.
        hessian: H + D.
        scale: s, of the shape of ``w``.
        q: Levels to start from.
        ends: Least and largest level of the uniform grid, each to broadcast to ``w``.
        book: Levels, where they are not uniform.
    """
    q, size = q.copy(), w.shape[2]
    low, high = (np.broadcast_to(end, w.shape) for end in ends)
    slope = (scale * q - w) @ hessian
    step = scale * np.einsum("gii->gi", hessian)[:, None]
    for start in range(0, size, BLOCK):
        block = slice(start, min(start + BLOCK, size))
        before, near = q[:, :, block].copy(), slope[:, :, block].copy()
        for k, i in enumerate(range(size)[block]):
            at = low[:, :, i], high[:, :, i]
            best = to_levels(q[:, :, i] - near[:, :, k] / step[:, :, i], at, book)
            moved = scale[:, :, i] * (best - q[:, :, i])
            near += moved[:, :, None] * hessian[:, None, i, block]
            q[:, :, i] = best
        slope += (scale[:, :, block] * (q[:, :, block] - before)) @ hessian[:, block]
    return q
