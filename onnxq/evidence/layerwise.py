"""Which layer hurts: the error of every layer's result, of its own making and as it accumulates.

A quantized file keeps the names of the float model's tensors, so results compare by name. Where a
result exists as codes alone, since what reads it only moves values, its node tells the name.
"""

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.forms import regroupers
from onnxq.graph.layers import WEIGHTED
from onnxq.graph.model import Model
from onnxq.graph.moves import ACTIVATIONS
from onnxq.graph.storage import stored, stored_names
from onnxq.numerics.affine import dequantize, quantize
from onnxq.numerics.metrics import Fidelity
from onnxq.numerics.moments import OutputMoments
from onnxq.progress import Progress, silent
from onnxq.runtime import Session, in_order
from onnxq.samples.data import Batch, Samples, batch_size, batches
from onnxq.spec import Array, Floats, QParams, QuantSpec

CUTS = {"Clip": 2, "Min": 1}  # what cuts codes off, and its input that says where
ROUNDING = {"QuantizeLinear", *CUTS, "Max"}
TRANSPARENT = {*ROUNDING, "DequantizeLinear"}


@dataclass
class LayerError:
    """Errors of one layer's result against the float model.

    Attributes:
        name: The layer's node.
        result: The tensor compared.
        isolated: SQNR in dB with this layer alone quantized, fed the float model's tensors.
        accumulated: SQNR in dB inside the quantized model.
        shift_share: What part of the squared error there is a shift of the channels' means, 0 to 1.
        shift_ratio: MSSR there: root mean square of that shift over that of the signal.
    """

    name: str
    result: str
    isolated: float
    accumulated: float
    shift_share: float
    shift_ratio: float


@dataclass
class _Probe:
    """A quantized layer cut out of its graph, to be fed float activations."""

    name: str
    data: str
    feed: str
    result: str
    grid: QParams | None
    axis: int


def layer_errors(
    reference: Model, quantized: Model, samples: Samples, progress: Progress = silent
) -> list[LayerError]:
    """Errors of all layers whose data and result both models name, worst accumulated first.

    Args:
        reference: The float model.
        quantized: A quantized file made from it.
        samples: Data; a few dozen are enough.
        progress: Called after every batch.
    """
    quantized = _dequantized(quantized, reference)
    bench, probes = _cut_out(quantized, set(_float_tensors(reference)))
    if not probes:
        return []
    names = sorted({p.data for p in probes} | {p.result for p in probes})
    floats = Session(reference, taps=names)
    whole = Session(quantized, taps=sorted({p.result for p in probes}))
    alone = Session(bench)
    isolated = {p.name: Fidelity() for p in probes}
    accumulated = {p.name: Fidelity() for p in probes}
    means: dict[str, OutputMoments] = {}
    size = batch_size(floats, samples)

    def run(batch: Batch) -> tuple[Batch, dict[str, Array], dict[str, Array], dict[str, Array]]:
        truth = floats.run(batch.feeds) | batch.feeds
        single = alone.run({p.feed: _onto(truth[p.data], p.grid) for p in probes})
        return batch, truth, whole.run(batch.feeds), single

    for batch, truth, mixed, single in in_order(run, batches(samples, floats.inputs, size)):
        for p in probes:
            wanted = batch.trim(truth[p.result])
            found = batch.trim(mixed[p.result])
            accumulated[p.name].update(wanted, found)
            channels = OutputMoments(wanted.shape[p.axis])
            means.setdefault(p.name, channels).update(wanted, found, p.axis)
            isolated[p.name].update(wanted, batch.trim(single[p.result]))
        progress("comparing layers", batch.valid, samples.total)
    errors = [
        LayerError(
            p.name, p.result, isolated[p.name].sqnr, accumulated[p.name].sqnr,
            means[p.name].share, means[p.name].ratio,
        )
        for p in probes
    ]  # fmt: skip
    return sorted(errors, key=lambda e: e.accumulated)


def quantized_layers(model: Model) -> list[gs.Node]:
    """Nodes whose weight is stored in integers."""
    return [
        node
        for node in model.graph.nodes
        if node.op in WEIGHTED
        and any(stored_names(t) and stored(t).scales for t in node.inputs[:2])
    ]


def grid_of(tensor: gs.Tensor) -> QParams | None:
    """The grid a dequantized activation lies on; None for a tensor that is not one.

    Read back from the graph: scale and zero point from its DequantizeLinear, the number of levels
    from the Clip or Min behind its QuantizeLinear, found through any moves between the two.
    """
    node = tensor.inputs[0] if tensor.inputs else None
    while node is not None and node.op in ("Reshape", "Transpose"):
        node = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
    if node is None or node.op != "DequantizeLinear" or isinstance(node.inputs[0], gs.Constant):
        return None
    scale, zero = node.inputs[1].values, node.inputs[2].values
    bits, above = 8, node.inputs[0].inputs[0]
    while above.op != "QuantizeLinear":
        source = above.inputs[0].inputs[0]
        if above.op in CUTS and source.op == "QuantizeLinear":
            levels = int(above.inputs[CUTS[above.op]].values.max()) + 1
            bits = levels.bit_length() - 1 if levels > 1 and levels & levels - 1 == 0 else 8
        above = source
    spec = QuantSpec(bits=bits, signed=False, symmetric=False, per_channel=False)
    return QParams(np.asarray(scale, np.float32), np.asarray(zero), None, spec)


def _onto(x: Floats, grid: QParams | None) -> Floats:
    return x if grid is None else dequantize(quantize(x, grid), grid)


def _float_tensors(model: Model) -> list[str]:
    inputs = [t.name for t in model.graph.inputs]
    return inputs + [t.name for node in model.graph.nodes for t in node.outputs]


def _cut_out(quantized: Model, known: set[str]) -> tuple[Model, list[_Probe]]:
    """A graph of all quantized layers side by side, each with an input and an output of its own."""
    bench = quantized.clone()
    probes: list[_Probe] = []
    feeds: list[gs.Tensor] = []
    results: list[gs.Tensor] = []
    for node in quantized_layers(bench):
        side = next(i for i, t in enumerate(node.inputs[:2]) if not stored_names(t))
        if any(not t.is_empty() and not stored_names(t) for t in node.inputs[2:]):
            continue  # a bias that is computed, or fed
        first, last = regroupers(node) or (node, node)
        reader, place = (node, side) if first is node else (first, 0)
        data = reader.inputs[place]
        grid = grid_of(data)
        source = data.name if data.name in known else _entry(data)
        result = _result(last)
        if source not in known or result.name not in known:
            continue
        feed = gs.Variable(bench.fresh(f"{node.name}_feed"), dtype=np.float32)
        reader.inputs[place] = feed
        axis = 1 if node.op in ("Conv", "ConvTranspose") else side - 1
        probes.append(_Probe(node.name, source, feed.name, result.name, grid, axis))
        feeds.append(feed)
        results.append(result)
    bench.graph.inputs, bench.graph.outputs = feeds, results
    bench.tidy()
    return bench, probes


def _dequantized(quantized: Model, reference: Model) -> Model:
    """A copy in which results of layers that are codes alone are floats, too."""
    copy = quantized.clone()
    kept, named = {node.name for node in copy.graph.nodes}, copy.graph.tensors()
    floats = {node.name: node for node in reference.graph.nodes}
    for node in quantized_layers(copy):
        _, last = regroupers(node) or (node, node)
        codes, grid = last.outputs[0], list[gs.Tensor]()
        while len(codes.outputs) == 1 and codes.outputs[0].op in ROUNDING:
            reader = codes.outputs[0]
            grid = reader.inputs[1:3] if reader.op == "QuantizeLinear" else grid
            codes = reader.outputs[0]
        moved = grid and all(reader.op != "DequantizeLinear" for reader in codes.outputs)
        if moved and node.name in floats:
            name = _last(floats[node.name], kept)
            if name is not None and name not in named:
                copy.add("DequantizeLinear", [codes, *grid], gs.Variable(name))
    return copy


def _last(node: gs.Node, kept: set[str]) -> str | None:
    """The result of a float layer and of the activations behind it that the quantized one absorbed.

    None if other nodes are gone, too, such as a product that changed the grid.
    """
    tensor = node.outputs[0]
    while len(tensor.outputs) == 1 and (reader := tensor.outputs[0]).name not in kept:
        if reader.op not in ACTIVATIONS:
            return None
        tensor = reader.outputs[0]
    return str(tensor.name)


def _entry(tensor: gs.Tensor) -> str:
    """The float tensor that was quantized into ``tensor``."""
    while tensor.inputs and (maker := tensor.inputs[0]).op in TRANSPARENT:
        tensor = maker.inputs[0]
        if maker.op == "QuantizeLinear":
            break
    return str(tensor.name)


def _result(node: gs.Node) -> gs.Tensor:
    """The layer's result as its readers see it: dequantized, if it is quantized."""
    tensor, passing = node.outputs[0], {"DequantizeLinear", "QuantizeLinear"}
    while readers := [reader for reader in tensor.outputs if reader.op in passing]:
        reader = next((r for r in readers if r.op == "DequantizeLinear"), readers[0])
        tensor = reader.outputs[0]
        if reader.op == "DequantizeLinear":
            break
        passing = TRANSPARENT  # of floats, one reader's Clip is not what the others see
    return tensor
