"""What is in a model: its layers, how their weights are stored, and what they cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.errors import InputError
from onnxq.evidence.kernels import Kernels, census
from onnxq.evidence.layerwise import grid_of
from onnxq.graph.layers import HOLDERS, MANY, WEIGHTED
from onnxq.graph.model import Model
from onnxq.graph.storage import stored, stored_names
from onnxq.graph.tensors import reads
from onnxq.numerics import oaq
from onnxq.runtime import Feeds, Session, evaluate, random_feeds
from onnxq.spec import Floats, weight_spec

# Where outlier-aware quantization matters most: few bits, one scale for a layer.
OAQ_SPEC = weight_spec(4, per_channel=False)


@dataclass
class LayerInfo:
    """One weighted layer as the file has it.

    Attributes:
        name: Node name.
        op: Operator.
        shape: Of the weight.
        bits: That a weight takes in the file, scales apart; 32 if it is float.
        act_bits: Of the data it reads; 32 if they are float.
        scales: Number of weight scales; 0 if it is float.
        lo: Smallest weight.
        hi: Largest weight.
        kernel: What computes it in onnxruntime.
        overhead: Bits of its scales and its codebook.
        macs: Multiply-accumulates of one run, at batch 1 where it is open; None if sizes are open
            or the model does not run on random inputs.
        oaq_ssim: Similarity of the histograms of its weights before and after outlier-aware
            quantization at 4 bits, one scale and the tabulated sigma; None if it is not float.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    bits: int
    act_bits: int
    scales: int
    lo: float
    hi: float
    kernel: str
    overhead: int
    macs: int | None
    oaq_ssim: float | None


@dataclass
class Cost:
    """What the weighted layers cost, as surveys of quantization count it (Rokh et al. 2023).

    Attributes:
        average_bits: sum b_l P_l / sum P_l over the layers' weights.
        compression: 32 sum P_l / (sum b_l P_l + bits of scales and codebooks).
        macs: Multiply-accumulates of one run; None if they are not known.
        bops: Bit operations, sum MACs_l b_w b_a; None likewise.
    """

    average_bits: float
    compression: float
    macs: int | None
    bops: int | None


def cost(found: Sequence[LayerInfo]) -> Cost | None:
    """The cost of all layers together; None without any."""
    if not found:
        return None
    count = sum(math.prod(layer.shape) for layer in found) or 1
    bits = sum(math.prod(layer.shape) * layer.bits for layer in found)
    macs = [layer.macs for layer in found if layer.macs is not None]
    whole = len(macs) == len(found)
    return Cost(
        bits / count,
        32 * count / max(1, bits + sum(layer.overhead for layer in found)),
        sum(macs) if whole else None,
        sum(n * x.bits * x.act_bits for n, x in zip(macs, found, strict=True)) if whole else None,
    )


def inspect(
    model: Model, file: Path | None = None, feeds: Feeds | None = None
) -> tuple[list[LayerInfo], Kernels]:
    """The layers of a float or quantized model, and the kernels onnxruntime runs them on.

    Args:
        model: The model.
        file: Its file, if it should be loaded from there.
        feeds: One sample, to know the sizes of; random if the model leaves only its batch open.
    """
    kernels = census(model, file)
    weighted = _weighted(model)
    weights = [node.inputs[side] for node, side in weighted]
    values = evaluate(model, [t for t in weights if not isinstance(t, gs.Constant)])
    macs = multiply_accumulates(model, feeds)
    found = []
    for (node, side), tensor in zip(weighted, weights, strict=True):
        w = tensor.values if isinstance(tensor, gs.Constant) else values[tensor.name]
        how = stored(tensor)
        grid = grid_of(node.inputs[1 - side])
        uses, shape = macs[node.name], how.shape or w.shape
        if uses and how.shape:  # zeros between the weights are none of the model's
            uses = uses * math.prod(shape[1:]) // math.prod(w.shape[1:])
        found.append(
            LayerInfo(
                node.name,
                node.op,
                shape,
                how.bits,
                32 if grid is None else grid.spec.bits,
                how.scales,
                float(w.min(initial=0.0)),
                float(w.max(initial=0.0)),
                kernels.integer.get(node.name, "float"),
                32 * how.scales + how.book,
                uses,
                _oaq_ssim(w) if how.bits >= 16 else None,
            )
        )
    return found, kernels


def multiply_accumulates(model: Model, feeds: Feeds | None = None) -> dict[str, int | None]:
    """Multiply-accumulates of every weighted layer, by its name; see ``LayerInfo``."""
    weighted = _weighted(model)
    tensors = [t for node, side in weighted for t in (_place(node, side), node.inputs[side])]
    shapes = _shapes(model, [t.name for t in tensors if not isinstance(t, gs.Constant)], feeds)
    shapes |= {t.name: tuple(t.shape) for t in tensors if isinstance(t, gs.Constant)}
    return {
        node.name: _macs(node, side, shapes[weight.name], shapes[place.name])
        if {weight.name, place.name} <= shapes.keys()
        else None
        for (node, side), place, weight in zip(weighted, tensors[::2], tensors[1::2], strict=True)
    }


def _weighted(model: Model) -> list[tuple[gs.Node, int]]:
    """Layers whose weight is stored in the file, and which input that is."""
    return [
        (node, next(i for i, t in enumerate(node.inputs[:2]) if stored_names(t)))
        for node in model.graph.nodes
        if node.op in WEIGHTED and not node.domain and any(map(stored_names, node.inputs[:2]))
    ]


def unquantized(model: Model) -> dict[str, str]:
    """Nodes that are no layers and hold many float weights; why these stay as they are."""
    found: dict[str, str] = {}
    for node in model.graph.nodes:
        inside = any(node.subgraphs())
        if not (inside or (node.op in HOLDERS and not node.domain)):
            continue
        if held := _held(reads(node)):
            what = f"what {node.op} runs" if inside else node.op
            found[node.name] = f"{what} is not quantized: {held:,} weights stay float"
    return found


def _held(tensors: Sequence[gs.Tensor]) -> int:
    """Float constants among tensors, if they are many, together; each once."""
    constants = {t.name: t for t in tensors if isinstance(t, gs.Constant)}.values()
    sizes = [math.prod(t.shape) for t in constants if np.issubdtype(t.dtype, np.floating)]
    return sum(size for size in sizes if size >= MANY)


def _oaq_ssim(w: Floats) -> float | None:
    return oaq.similarity(w, oaq.sigma(OAQ_SPEC), None) if np.isfinite(w).all() else None


def _place(node: gs.Node, side: int) -> gs.Tensor:
    """The tensor whose shape tells how often weights are used: see ``_macs``."""
    return node.inputs[1 - side] if node.op == "ConvTranspose" else node.outputs[0]


def _macs(node: gs.Node, side: int, weight: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of a node, with the shapes of its weight and of its place.

    A convolution uses each weight at every position of its output, a transposed one of its input;
    every element of a matrix product takes as many as the operands have in common.
    """
    if "Conv" in node.op:
        return math.prod(weight) * math.prod(shape) // max(1, shape[1])
    if node.op == "Gemm":
        return math.prod(weight) * math.prod(shape) // max(1, shape[side])
    common = weight[-1] if side == 0 else weight[-2:][0]
    return common * math.prod(shape)


def _shapes(model: Model, names: Sequence[str], feeds: Feeds | None) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors in a run; none if there cannot be one or sizes are open."""
    made = {t.name for node in model.graph.nodes for t in node.outputs}
    try:
        session = Session(model, [name for name in names if name in made], optimize=False)
        if feeds is None:
            if any(i.shape is None or None in i.shape[1:] for i in session.inputs):
                return {}
            feeds = random_feeds(session.inputs)
        return {name: x.shape for name, x in (dict(feeds) | session.run(feeds)).items()}
    except InputError:
        return {}
