"""The cheapest way to leave little enough of a noise that has many sources."""

import math
from collections.abc import Hashable, Mapping, Sequence, Set
from typing import TypeVar

import numpy as np

from onnxq.spec import Array

T = TypeVar("T", bound=Hashable)

# A price of nothing still orders what costs nothing by its noise.
FREE = 1e-12


def cheapest(
    noise: Array, units: Sequence[Set[T]], price: Mapping[T, float], most: Array
) -> list[int]:
    """The sources to silence so that the sum of the others is small enough, ascending.

    Greedy: what takes away most of the excess for its price goes first, and what turns out to be
    needless in the end is given back. Sources share what they cost: a unit that is paid for costs
    nothing more. All of them, if even that is not enough. Of equals the first goes, whatever order
    a set has its units in.

    Args:
        noise: Of each source at each output, (n, outputs), not negative.
        units: What each source needs.
        price: Of each unit.
        most: What may be left at each output, (outputs,), positive.
    """
    left, paid, chosen = noise.sum(axis=0), set[T](), list[int]()
    while (left > most).any() and len(chosen) < len(noise):
        gain = (np.minimum(noise, np.maximum(left - most, 0.0)) / most).sum(axis=1)
        cost = np.array([FREE + math.fsum(price[unit] for unit in need - paid) for need in units])
        worth = np.where(np.isin(np.arange(len(noise)), chosen), -1.0, gain / cost)
        chosen.append(int(worth.argmax()))
        paid |= units[chosen[-1]]
        left = np.delete(noise, chosen, axis=0).sum(axis=0)
    for source in list(chosen):
        rest = [i for i in chosen if i != source]
        if (np.delete(noise, rest, axis=0).sum(axis=0) <= most).all():
            chosen = rest
    return sorted(chosen)
