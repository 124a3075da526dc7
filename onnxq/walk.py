"""Layer by layer: every weight decided on behind the layers before it, as they will be deployed.

Two streams run side by side, the float model and the quantized one. What a layer reads in both is
handed to the passes that choose its weight; the layer runs, once; what it returns is handed to
those that correct it; and the quantized stream goes on from the corrected result.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import onnx_graphsurgeon as gs
from threadpoolctl import threadpool_limits

from onnxq.graph.layers import Layer, layers, twins
from onnxq.graph.model import Model
from onnxq.numerics import affine
from onnxq.numerics.bias import fit_weight, quantize_bias
from onnxq.numerics.moments import OutputMoments
from onnxq.numerics.unfold import Window, count_places, patches
from onnxq.pipeline import LayerPass, Outcome
from onnxq.runtime import in_order
from onnxq.samples.data import Batch
from onnxq.samples.stream import Stream
from onnxq.spec import Floats, Ints, QTensor
from onnxq.visit import Portion, Visit

# Rows of its input that a layer is judged by: so many for each input of an output channel, within
# limits. Places of an image are alike, and second moments need no more.
ROWS_PER_INPUT, LEAST_ROWS, MOST_ROWS = 20, 6144, 32768
# Rows handed on at once, at least.
PORTION = 1024
# Bytes that both streams may hold.
BUDGET = 1 << 30


def walk(
    model: Model,
    written: Model,
    steps: Sequence[LayerPass],
    batches: Sequence[Batch],
    progress: Callable[[int, int], None],
) -> dict[str, Outcome]:
    """Visit every layer with an integer weight, in order.

    Args:
        model: The passes edit its plan and its biases.
        written: The same model as it would be deployed now.
        steps: The passes.
        batches: The samples, all of them.
        progress: Called after every layer with 1 and the number of layers.
    """
    outcomes = {step.name: Outcome() for step in steps}
    nodes = {node.name: node for node in written.graph.nodes}
    visited = [layer for layer in layers(model) if layer.name in model.weights]
    kept = batches[: _affordable(model, written, visited, nodes, batches[0])]
    if len(kept) < len(batches):
        count = sum(batch.valid for batch in kept)
        outcomes[steps[0].name].remark("model", f"{count} samples, which is what the memory allows")
    floats, quantized = Stream(model, kept), Stream(written, kept)
    first = _first(model, visited)
    # On one core, sums do not depend on the number of cores; the passes look for what overflows.
    with threadpool_limits(1, "blas"), np.errstate(over="ignore", invalid="ignore"):
        for layer in visited:
            known = first.get(layer.name, layer.name)
            _visit(model, layer, known, floats, quantized, nodes, steps, outcomes)
            progress(1, len(visited))
    return outcomes


def _affordable(
    model: Model,
    written: Model,
    visited: Sequence[Layer],
    nodes: Mapping[str, gs.Node],
    batch: Batch,
) -> int:
    """How many batches both streams can hold, from what they hold of one."""
    floats, quantized, most = Stream(model, [batch]), Stream(written, [batch]), 1
    for layer in visited:
        held = 0
        node, end = nodes[layer.name], nodes[layer.end.name]
        data = node.inputs[1 - layer.weight_index]
        for read, read_q in ((layer.data, data), (layer.output, end.outputs[0])):
            floats[read.name], quantized[read_q.name]
            held += floats.nbytes + quantized.nbytes
        most = max(most, held)
    return max(1, BUDGET // most)


def _visit(
    model: Model,
    layer: Layer,
    known: str,
    floats: Stream,
    quantized: Stream,
    nodes: Mapping[str, gs.Node],
    steps: Sequence[LayerPass],
    outcomes: Mapping[str, Outcome],
) -> None:
    """Choose a layer's weight, or take that of a twin known before, run the layer, correct it."""
    node, end, slot = nodes[layer.name], nodes[layer.end.name], layer.bias_slot
    truth, result = layer.output.name, end.outputs[0].name
    x, z = floats[layer.data.name], quantized[node.inputs[1 - layer.weight_index].name]
    comparable = all(a.shape == b.shape and a.ndim > 1 for a, b in zip(x, z, strict=True))
    if not comparable:
        for outcome in outcomes.values():
            outcome.skip(
                layer.name, "the shape of what it reads depends on values, or has one axis"
            )
        return
    visit = Visit(model, layer, partial(_portions, layer, x, z))
    if known != layer.name:
        model.weights[layer.name] = model.weights[known]
        outcomes[steps[0].name].edit(layer.name, f"as {known}, whose weight it has")
    else:
        for step in steps:
            step.choose(visit, outcomes[step.name])
    weight = model.weights[layer.name]
    values = affine.values(weight).reshape(layer.weight.shape)
    quantized.fix(node.inputs[layer.weight_index].name, values)
    if slot is not None and isinstance(layer.bias_tensor, gs.Constant):
        quantized.fix(end.inputs[slot[1]].name, layer.bias_tensor.values)
    seen, axis = OutputMoments(layer.c_out), layer.result_axis
    pairs = zip(floats[truth], quantized[result], strict=True)
    for moments in in_order(lambda pair: OutputMoments(layer.c_out).update(*pair, axis), pairs):
        seen.merge(moments)
    gain, offset = np.ones(layer.c_out), np.zeros(layer.c_out)
    for step in steps:
        made = step.correct(visit, seen, outcomes[step.name])
        if made is not None:
            seen.corrected(made.gain, made.offset)
            gain, offset = made.gain * gain, made.gain * offset + made.offset
    if layer.bias is not None and (input_scale := _input_scale(node, layer)) is not None:
        offset = offset + _bias_rounding(model.weights[layer.name], layer.bias, input_scale)
    quantized.scale(result, gain, offset, axis)


def _first(model: Model, visited: Sequence[Layer]) -> dict[str, str]:
    """Layers with equal weights that are on one grid so far, and the first of them."""
    grids: dict[tuple[object, ...], list[Layer]] = {}
    for layer in visited:
        weight = model.weights[layer.name]
        spec, scale = weight.params.spec, weight.params.scale
        grids.setdefault((spec, scale.shape, scale.tobytes()), []).append(layer)
    return {name: known for alike in grids.values() for name, known in twins(alike).items()}


def _bias_rounding(weight: QTensor, bias: Floats, input_scale: float) -> Floats:
    """What rounding to int32 will do to the bias of an integer layer, (c_out,)."""
    fitted, _ = fit_weight(weight, bias, input_scale)
    codes, scale = quantize_bias(bias, fitted.params.scale, input_scale)
    return np.asarray(codes * scale.astype(np.float64) - bias)


def _input_scale(node: gs.Node, layer: Layer) -> float | None:
    """The step of the codes that an integer layer reads; None for a layer that stays float."""
    data, weight = (node.inputs[i].inputs for i in (1 - layer.weight_index, layer.weight_index))
    if not (data and weight and data[0].op == weight[0].op == "DequantizeLinear"):
        return None
    return float(data[0].inputs[1].values)


def _portions(layer: Layer, x: Sequence[Floats], z: Sequence[Floats]) -> Iterator[Portion]:
    """Rows of a layer's input at places drawn from all batches alike, some batches at a time."""
    size = layer.rows(layer.weight).shape[2]
    wanted = min(max(ROWS_PER_INPUT * size, LEAST_ROWS), MOST_ROWS)
    there = [count_places(a, layer.window) for a in x]
    rng = np.random.default_rng(0)
    group: list[tuple[Floats, Floats, Ints]] = []
    for a, b, places in zip(x, z, there, strict=True):
        count = min(places, -(-wanted * places // max(sum(there), 1)))
        group.append((a, b, np.sort(rng.choice(places, count, replace=False))))
        if sum(len(chosen) for *_, chosen in group) >= PORTION:
            yield partial(_rows, layer.window, group)
            group = []
    if group:
        yield partial(_rows, layer.window, group)


def _rows(
    window: Window | None, group: Sequence[tuple[Floats, Floats, Ints]]
) -> tuple[Floats, Floats]:
    """Rows of both models, (groups, n, inputs)."""
    x = np.concatenate([patches(a, window, chosen) for a, _, chosen in group], axis=1)
    z = np.concatenate([patches(b, window, chosen) for _, b, chosen in group], axis=1)
    return x, z
