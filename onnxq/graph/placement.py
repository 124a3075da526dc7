"""Which nodes run on integers: a decision about the whole graph, made before any tensor is touched.

Three kinds of node take part, after what onnxruntime's CPU kernels were measured to do:

* A *layer* (Conv, Gemm, MatMul with a constant weight) has an integer kernel and is worth it. A
  MatMul of two activations is treated alike, unless a pass keeps it float.
* A *companion* (Add, Mul, Concat, pools, Sigmoid, LeakyRelu) has one too, but pays only between
  integer neighbours: all its inputs must be on integers already, born there or quantized for a
  layer (of a Concat one input is enough), and something after it must want its result.
  Near the outputs nothing does, so decoders of boxes and scores stay float by themselves.
* A *move* (Reshape, Transpose, Slice, MaxPool, nearest Resize, ...) only rearranges or selects
  values. It runs on the 8-bit codes themselves, exactly, between a QuantizeLinear and the
  DequantizeLinear of whoever reads it next. A product with a positive constant is one, too: the
  codes stay and their scale takes the factor.

A Relu or Clip right behind a layer or companion is *absorbed*: the quantizer of the result
saturates where it would have clipped. Elsewhere it is a move: a Clip of the codes. A Min with
a constant for each channel is absorbed, too, but leaves a Min of the codes behind: no quantizer
saturates each channel elsewhere.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.layers import WEIGHTED, Layer, layer_of, layers
from onnxq.graph.model import Model
from onnxq.graph.moves import ACTIVATIONS, FUSED, MOVES, factor, moved, moves
from onnxq.graph.storage import stored_names
from onnxq.graph.tensors import is_constant

COMPANIONS = {
    "Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid",
}  # fmt: skip
BEFORE = "an input comes from a float operator"
READERS_OF_SHAPE = {"Shape", "Size"}


@dataclass
class Placement:
    """The decision, by node and tensor name.

    Attributes:
        integer: Layers and companions that run on integer kernels.
        moves: Nodes that run on codes.
        results: Integer node to the tensor its output is quantized as (after absorbed
            activations); a Gemm or MatMul that nothing integer reads is not in it: its integer
            kernel returns floats.
        absorbed: Integer node to the activation nodes its quantizer replaces.
        born: Tensors that exist as codes.
        entries: Float tensors that an integer node reads and that must be quantized for it.
        captured: Tensors that the body of a control flow node reads.
        why_float: Weighted node or companion left float to the reason, a clause.
    """

    integer: set[str] = field(default_factory=set)
    moves: set[str] = field(default_factory=set)
    results: dict[str, str] = field(default_factory=dict)
    absorbed: dict[str, list[gs.Node]] = field(default_factory=dict)
    born: set[str] = field(default_factory=set)
    entries: set[str] = field(default_factory=set)
    captured: set[str] = field(default_factory=set)
    why_float: dict[str, str] = field(default_factory=dict)

    @property
    def roots(self) -> list[str]:
        """Tensors that need a grid of their own."""
        return sorted({*self.results.values(), *self.entries})


def place(model: Model) -> Placement:
    """Decide for the model as it stands, respecting ``model.kept_float``.

    The largest consistent choice: start with every node that could run on integers, then let go
    of companions whose neighbours are not there, until nothing changes.
    """
    placement = Placement(captured=model.captured())
    nodes = model.graph.nodes
    ends = {layer.end.name for layer in layers(model) if layer.end is not layer.node}
    counts = _counts(model)
    for node in nodes:
        if node.name in ends or node.name in counts:
            continue
        if (why := _obstacle(model, node)) is None:
            placement.integer.add(node.name)
        elif node.op in WEIGHTED or node.op in COMPANIONS:
            placement.why_float[node.name] = why
    changed = True
    while changed:
        changed = False
        _trace(model, placement)
        wanted = _wanted(model, placement)
        at_hand = placement.born | _quantized_for_layers(placement, nodes)
        for node in nodes:
            if node.name not in placement.integer or node.op not in COMPANIONS:
                continue
            why = None
            enough = any if node.op == "Concat" else all
            if not enough(t.name in at_hand for t in node.inputs if not is_constant(t)):
                why = BEFORE
            elif _result(model, placement, node)[0].name not in wanted:
                why = "nothing that follows runs on integers"
            if why is not None:
                placement.integer.discard(node.name)
                placement.why_float[node.name] = why
                changed = True
    for name in placement.moves:
        placement.why_float.pop(name, None)
    return placement


def _quantized_for_layers(placement: Placement, nodes: list[gs.Node]) -> set[str]:
    """Tensors that a layer needs on a grid, wherever they come from: a companion may share it."""
    integer = (node for node in nodes if node.name in placement.integer and node.op in WEIGHTED)
    return {t.name for node in integer for t in data_inputs(node)}


def data_inputs(node: gs.Node) -> list[gs.Tensor]:
    """Inputs that carry activations: all but weights, biases and other constants."""
    layer = layer_of(node)
    found = [layer.data] if layer is not None else list(node.inputs)
    return [t for t in found if not t.is_empty() and not is_constant(t)]


def end_of(model: Model, node: gs.Node) -> gs.Node:
    """The last node of what runs as one: the Add that is the bias of a MatMul, or the node."""
    layer = layer_of(node)
    return node if layer is None or layer.end.name in model.kept_float else layer.end


def _trace(model: Model, placement: Placement) -> None:
    """Follow the codes forward: fill in results, absorbed, born, moves and entries."""
    wanted = _wanted(model, placement)
    placement.results, placement.absorbed = {}, {}
    placement.born, placement.moves, placement.entries = set(), set(), set()
    swallowed: set[str] = set()
    for node in model.graph.nodes:
        if node.name in placement.integer:
            placement.entries |= {t.name for t in data_inputs(node) if t.name not in placement.born}
            result, activations = _result(model, placement, node)
            if result.name not in wanted and _returns_floats(model, node):
                continue
            placement.results[node.name] = result.name
            placement.absorbed[node.name] = activations
            placement.born.add(result.name)
            swallowed |= {a.name for a in activations}
        elif (
            moves(node)
            and moved(node).name in placement.born
            and node.name not in swallowed
            and node.name not in model.kept_float
        ):
            placement.moves.add(node.name)
            placement.born |= {t.name for t in node.outputs}


def _wanted(model: Model, placement: Placement) -> set[str]:
    """Tensors that an integer node reads, directly or through moves."""
    wanted: set[str] = set()
    for node in reversed(model.graph.nodes):
        if node.name in placement.integer:
            wanted |= {t.name for t in data_inputs(node)}
        elif node.name in model.kept_float or not moves(node):
            continue
        elif any(t.name in wanted for t in node.outputs):
            wanted.add(moved(node).name)
    return wanted


def _result(model: Model, placement: Placement, node: gs.Node) -> tuple[gs.Tensor, list[gs.Node]]:
    """The tensor a node's output is quantized as, and the activations on the way to it."""
    end = end_of(model, node)
    tensor, activations = end.outputs[0], []
    while (reader := model.single_consumer(tensor)) is not None and reader.op in ACTIVATIONS:
        if not moves(reader) or moved(reader) is not tensor or reader.name in model.kept_float:
            break
        if tensor.name in placement.captured:
            break
        activations.append(reader)
        tensor = reader.outputs[0]
    return tensor, activations


def _returns_floats(model: Model, node: gs.Node) -> bool:
    """Whether the integer kernel of a node needs no QuantizeLinear behind it.

    That of a Gemm or MatMul does not, unless onnxruntime takes what follows for part of it first:
    a Relu or Clip with one reader, or an Add that makes a Gemm of a MatMul. A Relu that is kept
    float it may drop in favour of a QuantizeLinear behind it, which other readers then rule out.
    """
    if node.op not in ("Gemm", "MatMul"):
        return False
    end = end_of(model, node)
    readers = end.outputs[0].outputs
    if len(readers) != 1:
        return not any(r.op in FUSED and r.name in model.kept_float for r in readers)
    if readers[0].op == "Add" and end.op == "MatMul":
        return any(
            (t.shape is not None and len(t.shape) > 2) or (is_constant(t) and t.values.size == 1)
            for t in readers[0].inputs
        )
    return readers[0].op not in FUSED or len(readers[0].outputs[0].outputs) != 1


def root_of(tensor: gs.Tensor, placement: Placement) -> tuple[str, float]:
    """The tensor on a grid of its own that ``tensor`` is, or is moved from, and its factor."""
    by = 1.0
    if tensor.name in placement.born:
        tensor, by = back_to(tensor, placement.roots)
    return str(tensor.name), by


def back_to(tensor: gs.Tensor, there: Container[str]) -> tuple[gs.Tensor, float]:
    """Back through moves to a tensor that is ``there``, and the factor from that one."""
    by = 1.0
    while tensor.name not in there:
        node = tensor.inputs[0]
        by *= float(factor(node) or 1.0)
        tensor = moved(node)
    return tensor, by


def is_product(node: gs.Node) -> bool:
    """Whether a node is a matrix product of two activations, as in attention."""
    return node.op == "MatMul" and not node.domain and not any(map(stored_names, node.inputs))


def _obstacle(model: Model, node: gs.Node) -> str | None:
    """Why a node cannot run on integers whatever its neighbours do; None if it can."""
    if node.name in model.kept_float:
        return model.kept_float[node.name]
    if node.domain:
        return f"a custom operator of {node.domain}"
    if is_product(node):
        return None
    if node.op in WEIGHTED:
        layer = layer_of(node)
        if layer is None:
            vector = any(is_constant(t) and t.values.ndim == 1 for t in node.inputs[:2])
            return "its weight is a vector" if vector else "it has no constant float32 weight"
        return _layer_obstacle(layer)
    if factor(node) is not None:
        return BEFORE
    if node.op in ("Add", "Mul"):
        constants = [t for t in node.inputs if is_constant(t)]
        wide = any(t.values.size != 1 or t.dtype != np.float32 for t in constants)
        if wide or not all(np.isfinite(t.values) for t in constants):
            return "it has a constant operand that is not one finite number"
        return None
    if node.op == "Concat":
        return "it has a constant operand" if any(map(is_constant, node.inputs)) else None
    if node.op == "AveragePool":
        if node.attrs.get("ceil_mode", 0) and node.attrs.get("count_include_pad", 0):
            return "onnxruntime's integer kernel divides otherwise at a border it rounds up to"
        return "it is dilated" if set(node.attrs.get("dilations", [1])) != {1} else None
    return None if node.op in COMPANIONS else "it has no integer kernel in onnxruntime"


def _counts(model: Model) -> set[str]:
    """Nodes that compute with shapes and indices rather than activations."""
    found: set[str] = set()
    numbers: set[str] = set()
    for node in model.graph.nodes:
        data = node.inputs[:1] if node.op in MOVES else node.inputs
        foreign = any(t.dtype is not None and t.dtype != np.float32 for t in data)
        carries = node.op in MOVES | COMPANIONS | {"Div", "Sub"} and (
            foreign or any(t.name in numbers for t in data)
        )
        if node.op in READERS_OF_SHAPE or carries:
            found.add(node.name)
            numbers |= {t.name for t in node.outputs}
    return found


def _layer_obstacle(layer: Layer) -> str | None:
    node = layer.node
    if layer.op == "ConvTranspose":
        return "ConvTranspose has no integer kernel in onnxruntime; its weight is stored quantized"
    if layer.weight_tensor.values.size == 0:
        return "its weight is empty"
    if layer.weight_index == 0:
        return "its weight is the left operand; its weight is stored quantized"
    if layer.bias_tensor is not None and (layer.bias is None or layer.bias.size != layer.c_out):
        return "its bias is not one constant per output channel"
    if layer.op == "MatMul" and layer.weight.ndim != 2:
        return "its weight is a batch of matrices; its weight is stored quantized"
    if layer.op == "Gemm" and (node.attrs.get("transA", 0) or node.attrs.get("beta", 1.0) != 1.0):
        return "its data operand is transposed or its bias scaled; its weight is stored quantized"
    return None


def demote(model: Model, reasons: Mapping[str, str]) -> Placement:
    """Keep more nodes float and decide again."""
    model.kept_float.update(reasons)
    return place(model)


def without_products(model: Model) -> Placement:
    """The placement where products of two activations stay float, as a rule; the model stays."""
    trial = model.clone()
    products = [node.name for node in trial.graph.nodes if is_product(node)]
    return demote(trial, dict.fromkeys(products, "as a rule"))
