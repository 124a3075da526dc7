"""Per-tensor weight grids waste their levels on narrow channels; equal ranges waste none.

The algebra stands in numerics/equalize.py, what factors may cross in regions.py.
"""

from typing import ClassVar

import numpy as np

from onnxq.graph.layers import Layer
from onnxq.graph.model import Model
from onnxq.graph.regions import Region, over_inputs, over_outputs, regions, unreached
from onnxq.numerics import equalize
from onnxq.pipeline import Outcome, Pass, Statistics
from onnxq.spec import Floats

# What all channels of a region have in common spreads slowly along a deep network: mobilenetv2 of
# the zoo takes 272 rounds, of a few milliseconds each. A last step below the tolerance moves the
# largest weight by an eighth of a step of 8 bits.
ROUNDS, TOLERANCE = 1000, 1e-3


class Equalize(Pass):
    """Scale the channels behind one layer so that the weights on both sides have equal ranges.

    What residual connections or concatenations bring together from several layers stays as it is,
    as in the source: one factor for the weights of all of them does more harm than good.

    Attributes:
        ceilings: Go through Clip(0, c), too, which becomes a Relu and a Min with a ceiling for
            each channel. The Min of codes is slow in onnxruntime 1.32: 35 of them take mobilenetv2
            of the zoo about a third of its speed.
    """

    name: ClassVar[str] = "equalize"
    exact: ClassVar[bool] = True

    ceilings: bool = False

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        found = regions(model, self.ceilings)
        for region in found:
            if why := region.reasons or _joint(region):
                outcome.skip(region.name, why)
        for name, why in unreached(model, found):
            outcome.skip(name, why)
        scaled = [region for region in found if region.free.any() and not _joint(region)]
        totals, settled = _balance(scaled)
        for region in scaled:
            s = totals[region.name]
            if moved := int(np.sum(s != 1.0)):
                region.divide(model, s)
                what = f"{moved} of {region.count} channels, by {s.min():.3g} to {s.max():.3g}"
                outcome.edit(region.name, what)
        if not settled:
            outcome.remark("model", f"ranges were still moving after {ROUNDS} rounds")
        return outcome


def _joint(region: Region) -> str:
    """Why a region is left alone though factors may cross it; empty if it is not."""
    makers = [layer.name for layer, _ in region.sources]
    return f"{len(makers)} layers make it, {makers[0]} first" if len(makers) > 1 else ""


def _balance(scaled: list[Region]) -> tuple[dict[str, Floats], bool]:
    """The factors of every region, (count,), and whether the last round left them alone.

    One layer makes each of the regions.
    """
    ends = [layer for region in scaled for layer, _ in (*region.sources, *region.sinks)]
    largest = {x.name: np.abs(x.by_group).max(axis=3).astype(np.float64) for x in ends}
    totals: dict[str, Floats] = {region.name: np.ones(region.count) for region in scaled}
    rows = _in_a_row(scaled)
    for _ in range(ROUNDS):
        settled = True
        for row in rows:
            steps = equalize.factors(_ranges(row, largest))
            if np.abs(steps - 1.0).max() <= TOLERANCE:
                continue
            settled = False
            for region, s in zip(row, steps, strict=True):
                totals[region.name] *= s
                ((source, made),) = region.sources
                largest[source.name] /= over_outputs(source, s[made])
                for layer, own in region.sinks:
                    largest[layer.name] *= over_inputs(layer, s[own])
        if settled:
            return totals, True
    return totals, False


def _in_a_row(scaled: list[Region]) -> list[list[Region]]:
    """Regions by what solves them at once: those with nothing but a depthwise layer between."""
    after = {region.sources[0][0].name: region for region in scaled if region.free.all()}
    rows: list[list[Region]] = []
    joined: set[str] = set()
    for region in scaled:
        if region.name in joined:
            continue
        row = [region]
        while (link := _link(row[-1])) is not None and link.name in after:
            row.append(after[link.name])
        rows.append(row)
        joined |= {member.name for member in row}
    return rows


def _link(region: Region) -> Layer | None:
    """The depthwise layer that is all that reads a region."""
    if len(region.sinks) != 1 or not region.free.all():
        return None
    layer, _ = region.sinks[0]
    return layer if layer.groups == layer.c_in == layer.c_out == region.count else None


def _ranges(row: list[Region], largest: dict[str, Floats]) -> Floats:
    """Ranges of the layers before, between and behind; 0 where a factor must stay 1."""
    first, last = np.zeros((2, row[0].count))
    ((source, made),) = row[0].sources
    first[made] = largest[source.name].max(axis=2).reshape(-1)
    for layer, own in row[-1].sinks:
        blocks = largest[layer.name].max(axis=1).reshape(own.stop - own.start, -1)
        last[own] = np.maximum(last[own], blocks.max(axis=1))
    between = [largest[region.sources[0][0].name].reshape(-1) for region in row[1:]]
    return np.stack([np.where(row[0].free, first, 0.0), *between, last])
