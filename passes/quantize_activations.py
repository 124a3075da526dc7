"""Activations to integers: where is placement.py's choice, on which grid is made here."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import Field
from threadpoolctl import threadpool_limits

from onnxq.graph.layers import WEIGHTED, Layer, layer_of, layers
from onnxq.graph.model import Model
from onnxq.graph.moves import bounds, term
from onnxq.graph.placement import (
    READERS_OF_SHAPE,
    Placement,
    back_to,
    data_inputs,
    demote,
    is_product,
    root_of,
)
from onnxq.numerics import affine, ranges, tuning
from onnxq.numerics.observe import Histogram, LayerInput, MinMax, Observer, RowSample
from onnxq.pipeline import Outcome, Pass, Statistics
from onnxq.spec import Array, QParams, activation_spec

# What reads a tensor: a layer, or None for all else, and the factor it was multiplied with before.
Reader = tuple[Layer | None, float]

PRODUCT = "it multiplies two activations; --attention puts it on integers"
IN_FLOATS = "the recipe has it compute in floats"
# Beyond this ratio one shared grid leaves the narrower input of a Concat fewer than 2 bits of 8.
WIDEST_CONCAT = 64.0
# A tensor that others read, too, is put on the grid of a Concat if that has steps of at most so
# many times its own, and leaves out at most so much of its range at either end.
WIDER, LEFT_OUT = 1.25, 0.05


class QuantizeActivations(Pass):
    """Choose a grid for every tensor that an integer kernel reads or writes.

    Attributes:
        bits: Of what layers read, 2 to 8; what nothing but additions, products with other
            activations or with a number for each channel, and pools read has 8, which costs
            nothing.
        first_last_bits: At least these for what the first layers and the last layers read.
        range: How the range is chosen from the calibration data.
        attention: Products of two activations run on integers, too. That costs accuracy and pays,
            a little, from some 200 tokens on.
        tuned: What layers read has, of the range and others around it, the one that leaves the
            least noise in what they return.
        wide: Tensors that have other bits, and how many.
        floats: Nodes that compute in floats, with weights as the others have.
    """

    name: ClassVar[str] = "quantize-activations"
    exact: ClassVar[bool] = False

    bits: int = Field(8, ge=2, le=8)
    first_last_bits: int = Field(8, ge=2, le=8)
    range: Literal["minmax", "percentile", "mse", "aciq", "entropy"] = "minmax"
    attention: bool = False
    tuned: bool = False
    wide: dict[str, Annotated[int, Field(ge=2, le=8)]] = Field(default_factory=dict)
    floats: tuple[str, ...] = ()

    def observe(self, model: Model) -> dict[str, Observer]:
        """Watch every tensor that needs a grid and, to tune it, what layers read."""
        placement = self._place(model)
        fold = MinMax if self.range == "minmax" and not self.tuned else Histogram
        inputs = _layer_inputs(model, placement) if self.tuned else {}
        return {**{name: fold() for name in placement.roots}, **inputs}

    def _place(self, model: Model) -> Placement:
        """The placement, products of two activations kept float unless they are asked for."""
        products = () if self.attention else filter(is_product, model.graph.nodes)
        reasons = dict.fromkeys(self.floats, IN_FLOATS) | {n.name: PRODUCT for n in products}
        return demote(model, {k: why for k, why in reasons.items() if k not in model.kept_float})

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Fill in ``model.activations`` and demote what calibration shows to be unfit."""
        outcome = Outcome()
        tensors = {t.name: t for node in model.graph.nodes for t in (*node.inputs, *node.outputs)}
        placement = self._place(model)
        while reasons := self._unfit(model, placement, tensors, statistics):
            placement = demote(model, reasons)
        ends, read = _ends(model, placement), _read_by_layers(model, placement)
        readers, gains = _readers(model, placement), dict[str, str]()
        for name in placement.roots:
            least = self.first_last_bits if name in ends else 0
            bits = max(self.bits, least) if name in read else 8
            spec = activation_spec(self.wide.get(name, bits))
            stats, by = _seen(tensors[name], statistics)
            if self.tuned and any(layer is not None for layer, _ in readers[name]):
                grids = tuning.candidates(stats, spec, self.range)
                noise = _noise(grids, stats, [(r, by * f) for r, f in readers[name]], statistics)
                best = int(np.argmin(noise))
                params = tuning.moved(grids[best], by)
                what = f", noise {noise[best]:.3g} instead of {noise[0]:.3g}"
            else:
                lo, hi = (by * end for end in ranges.ACTIVATION[self.range](stats, spec))
                params, what = affine.qparams(lo, hi, spec), ""
                if self.tuned:
                    outcome.skip(name, f"no layer reads it: its range is that of {self.range}")
            model.activations[name], gains[name] = params, what
        _join(model, placement, _align(model, placement))
        for name, what in gains.items():
            params = model.activations[name]
            outcome.edit(name, f"[{float(params.lo):.4g}, {float(params.hi):.4g}]{what}")
        nodes = {node.name for node in model.graph.nodes}
        for name in sorted(self.wide.keys() - {*placement.roots}):
            outcome.skip(name, "the recipe gives it more bits, and no integer kernel touches it")
        for name in sorted({*self.floats} - nodes):
            outcome.skip(name, "there is no such node to compute in floats")
        for name, why in sorted(placement.why_float.items()):
            outcome.skip(name, why)
        return outcome

    def _unfit(
        self,
        model: Model,
        placement: Placement,
        tensors: dict[str, gs.Tensor],
        statistics: Statistics,
    ) -> dict[str, str]:
        """Integer nodes that calibration speaks against, each with the reason."""
        reasons: dict[str, str] = {}
        for node in model.graph.nodes:
            if node.name not in placement.integer:
                continue
            touched = [t.name for t in data_inputs(node)]
            if node.name in placement.results:
                touched.append(placement.results[node.name])
            seen = {name: _seen(tensors[name], statistics) for name in touched}
            for name, (stats, _) in seen.items():
                if stats.dtype != np.float32:
                    why = f"{name} is {stats.dtype}"
                elif stats.nonfinite:
                    why = f"{name} had NaN or infinite values on calibration data"
                elif stats.count == 0:
                    why = f"{name} was empty on the calibration data"
                else:
                    continue
                reasons.setdefault(node.name, why)
            if node.op == "Concat" and node.name not in reasons:
                spans = [_span(*seen[t.name]) for t in node.inputs]
                if min(spans) > 0 and max(spans) / min(spans) > WIDEST_CONCAT:
                    reasons[node.name] = (
                        f"its inputs' ranges differ {max(spans) / min(spans):.0f}-fold, too much "
                        "for one grid"
                    )
        return reasons


def _ends(model: Model, placement: Placement) -> set[str]:
    """Tensors on a grid of their own that a layer reads before, or behind, which there is none."""
    weighted = {layer.name: layer for layer in layers(model)}
    behind: set[str] = set()
    first: list[gs.Tensor] = []
    for node in model.graph.nodes:
        if node.name in weighted and weighted[node.name].data.name not in behind:
            first.append(weighted[node.name].data)
        if node.name in weighted or any(t.name in behind for t in node.inputs):
            behind |= {t.name for t in node.outputs}
    before: set[str] = set()
    last: list[gs.Tensor] = []
    for node in reversed(model.graph.nodes):
        leads = any(t.name in before for t in node.outputs)
        if node.name in weighted and not leads:
            last.append(weighted[node.name].data)
        if node.name in weighted or leads:
            before |= {t.name for t in node.inputs}
    return {root_of(tensor, placement)[0] for tensor in (*first, *last)}


def _read_by_layers(model: Model, placement: Placement) -> set[str]:
    """Tensors on a grid of their own whose codes a layer mixes."""
    nodes = [n for n in model.graph.nodes if n.name in placement.integer and n.op in WEIGHTED]
    mixing = (n for n in nodes if (layer := layer_of(n)) is None or not layer.by_channel)
    return {root_of(tensor, placement)[0] for node in mixing for tensor in data_inputs(node)}


def _layer_inputs(model: Model, placement: Placement) -> dict[str, LayerInput]:
    """A fold for every tensor that the kernel of a layer reads."""
    found: dict[str, LayerInput] = {}
    for layer in layers(model):
        if layer.name in placement.integer:
            groups, _, size = layer.rows(layer.weight).shape
            samples = found.setdefault(layer.data.name, LayerInput()).samples
            samples.setdefault(layer.window, RowSample(layer.window, groups, size))
    return found


def _readers(model: Model, placement: Placement) -> dict[str, list[Reader]]:
    """What reads each tensor on a grid of its own, rounded, directly or through moves."""
    found: dict[str, list[Reader]] = {name: [] for name in placement.roots}
    for node in model.graph.nodes:
        if node.name in placement.moves or node.op in READERS_OF_SHAPE:
            continue
        integer = node.name in placement.integer
        for tensor in data_inputs(node):
            # Operators on floats read what exists as codes rounded, and all else as it was.
            if integer or tensor.name in placement.born:
                root, by = root_of(tensor, placement)
                found[root].append((layer_of(node) if integer else None, by))
    return found


def _align(model: Model, placement: Placement) -> set[str]:
    """Choose grids so that sums with a number, as HardSwish has one, are other zero points.

    Then they are written as nothing but that, and round nothing. Returns which tensors have them.
    """
    done: set[str] = set()
    for node in model.graph.nodes:
        if node.name not in placement.integer or (number := term(node)) is None:
            continue
        (data,) = data_inputs(node)
        root, by = root_of(data, placement)
        result = placement.results[node.name]
        grid, other = model.activations[root], model.activations[result]
        if data.name not in placement.born or root in done or grid.spec != other.spec:
            continue
        grids = affine.aligned(grid, by, float(number))
        if grids is not None:
            model.activations[root], model.activations[result] = grids
            done |= {root, result}
    return done


def _join(model: Model, placement: Placement, fixed: set[str]) -> None:
    """Give what a Concat joins the grid of its result, which then copies codes and rounds nothing.

    Where other nodes read it, too, if that grid is about its own. In a chain of Concats, as a
    DenseNet has, all have that of the last.
    """
    readers = _reading(model, placement)
    free = {root: grid for root, grid in model.activations.items() if root not in fixed}
    for node in reversed(model.graph.nodes):
        if node.op != "Concat" or node.name not in placement.integer:
            continue
        result = placement.results[node.name]
        joined = {root_of(tensor, placement) for tensor in node.inputs}
        twice = {root for root, _ in joined if sum(root == other for other, _ in joined) > 1}
        for root, by in sorted(joined):
            grid = tuning.moved(model.activations[result], 1.0 / by)
            own = free.get(root)
            if own is None or own.spec != grid.spec or root in twice:
                continue
            fits = readers[root] == {node.name} or _resembles(grid, own)
            if fits and _saturates(grid, root, placement):
                model.activations[root] = grid
                del free[root]


def _resembles(grid: QParams, own: QParams) -> bool:
    """Whether a grid has about the steps of another one and leaves little of its range out."""
    some = LEFT_OUT * (own.hi - own.lo)
    covers = grid.lo <= own.lo + some and grid.hi >= own.hi - some
    return bool(covers and grid.scale <= WIDER * own.scale)


def _reading(model: Model, placement: Placement) -> dict[str, set[str]]:
    """Names of the nodes that read the codes of each tensor on a grid of its own.

    Bodies of control flow and what is outside go by the name of the tensor.
    """
    found: dict[str, set[str]] = {}
    known, outside = placement.born | placement.entries, {t.name for t in model.graph.outputs}
    for node in model.graph.nodes:
        for tensor in (t for t in (*node.inputs, *node.outputs) if t.name in known):
            names = found.setdefault(root_of(tensor, placement)[0], set())
            if tensor.name in placement.captured | outside:
                names.add(tensor.name)
            if node.name not in placement.moves and any(t is tensor for t in node.inputs):
                names.add(node.name)
    return found


def _saturates(grid: QParams, root: str, placement: Placement) -> bool:
    """Whether a grid ends where the activations that it is to replace would cut off."""
    absorbed = next((placement.absorbed[k] for k, r in placement.results.items() if r == root), [])
    ends = [bounds(node) for node in absorbed]
    return all(
        end is not None and (end[0] <= grid.lo).all() and (grid.hi <= end[1]).all() for end in ends
    )


def _noise(
    grids: list[QParams], seen: Histogram, readers: Sequence[Reader], statistics: Statistics
) -> Array:
    """Noise to signal that grids of the tensor ``seen`` leave in all its readers, (grids,)."""
    total = np.zeros(len(grids))
    for layer, by in readers:
        if layer is None:
            total += tuning.noise(seen, grids)
            continue
        stats = statistics[layer.data.name]
        assert isinstance(stats, LayerInput)
        rows, moved_grids = stats.samples[layer.window].rows, [tuning.moved(g, by) for g in grids]
        # On one core, sums do not depend on the number of cores.
        with threadpool_limits(1, "blas"):
            total += tuning.layer_noise(rows, layer.rows(layer.weight), moved_grids)
    return total


def _seen(tensor: gs.Tensor, statistics: Statistics) -> tuple[Histogram, float]:
    """Statistics of a tensor, or of the one before it that it moves, and its factor to that."""
    tensor, by = back_to(tensor, statistics)
    stats = statistics[tensor.name]
    assert isinstance(stats, MinMax)
    return stats, by  # type: ignore[return-value]


def _span(stats: MinMax, by: float) -> float:
    return by * max(-stats.lo, stats.hi)
