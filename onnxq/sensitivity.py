"""What each rounding of a plan does to the outputs, and what it costs to round there less.

The sensitivity of a rounding is what it does to the outputs when nothing else is rounded. ZeroQ
(Cai et al. 2020, arXiv 2001.00281) takes a KL divergence for it; here it is noise power relative to
the signal, which every output has, not a classifier's alone.

Relief has a price. Weights of more bits take room in the file; activations of more cost bit
operations, which onnxruntime does not feel. Where 8 bits are too few, the nodes on both sides of a
tensor compute in floats, with weights as small as before. A percent of the weights' bytes is held
as dear as a percent of the multiply-accumulates in floats.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from onnxq.graph.layers import layers
from onnxq.graph.model import Model
from onnxq.graph.parts import Parts, apart
from onnxq.graph.placement import Placement, data_inputs, place, root_of
from onnxq.numerics import affine
from onnxq.numerics.metrics import Fidelity, noise_to_signal
from onnxq.recipe import Relief
from onnxq.runtime import Session
from onnxq.samples.data import Batch
from onnxq.spec import Array

# What a node without weights costs in floats, as a share of all multiply-accumulates.
TRIFLE = 1e-3
# Rounding weights to so many bits is a small error.
LINEAR = 4
# Noise that is as good as none, and as bad as any, relative to the signal.
SILENT, LOUD = 1e-30, 1e6


@dataclass(frozen=True)
class Rounding:
    """The weights of a layer, or a tensor of activations, on a grid.

    Attributes:
        kind: Which of the two.
        name: The layer's or the tensor's.
        bits: Of the grid.
        reliefs: All that a recipe has to relieve to be rid of it, or of most of it.
        beside: The integer nodes that write or read a tensor.
        born: Whether a tensor exists as codes, so that all its readers see it rounded; else only
            those ``beside`` it do.
    """

    kind: Literal["weights", "activations"]
    name: str
    bits: int
    reliefs: tuple[Relief, ...] = field(compare=False)
    beside: tuple[str, ...] = field(default=(), compare=False)
    born: bool = field(default=False, compare=False)

    @property
    def part(self) -> float:
        """What part of its errors is tried: outputs answer in proportion to small ones alone."""
        return 2.0 ** min(0, self.bits - LINEAR) if self.kind == "weights" else 1.0


class Judge:
    """Noise of models against a float one.

    Args:
        session: The float model.
        held: What is run; the float model's outputs stay in memory.
        joined: Outputs whose parts are judged by themselves, too.

    Attributes:
        outputs: The outputs that are judged, and their parts.
        unjudged: The others, and why.
        runs: Number of runs, one sample each unless samples only run together.
        count: Number of samples.
        feeds: Those of the first run.
    """

    def __init__(
        self, session: Session, held: Sequence[Batch], joined: Mapping[str, Parts] | None = None
    ) -> None:
        self._joined = joined or {}
        self._pairs = [(batch, self._run(session, batch)) for batch in held]
        self.count, self.feeds = sum(batch.valid for batch in held), held[0].feeds
        self.runs = len(held)
        flaws = {name: self._flaw(name) for name in self._pairs[0][1]}
        self.outputs = [name for name, flaw in flaws.items() if flaw is None]
        self.unjudged = {name: flaw for name, flaw in flaws.items() if flaw is not None}

    def _run(self, session: Session, batch: Batch) -> dict[str, Array]:
        return apart(session.run(batch.feeds), self._joined)

    def _flaw(self, output: str) -> str | None:
        """Why an output cannot be judged."""
        truths = [truth[output] for _, truth in self._pairs]
        if not np.issubdtype(truths[0].dtype, np.floating):
            return "no floats"
        if not all(np.isfinite(truth).all() for truth in truths):
            return "infinite or not a number"
        if not any(truth.any() for truth in truths):
            return "zero throughout"
        shapes = dict[tuple[tuple[int, ...], ...], tuple[int, ...]]()
        for (batch, _), truth in zip(self._pairs, truths, strict=True):
            read = tuple(x.shape for x in batch.feeds.values())
            if shapes.setdefault(read, truth.shape) != truth.shape:
                return "its shape depends on what the model reads"
        return None

    def noise(self, model: Model, most: int | None = None) -> tuple[Array, Array]:
        """Noise power relative to the signal, and its standard error, on at most so many runs.

        Returns:
            Both (outputs,). Noise is between SILENT and LOUD, and its error no larger than LOUD.
        """
        session, powers = Session(model), list[list[tuple[float, float]]]()
        for batch, truth in self._pairs[:most]:
            results, found = self._run(session, batch), list[tuple[float, float]]()
            for name in self.outputs:
                fidelity = Fidelity()
                fidelity.update(batch.trim(truth[name]), batch.trim(results[name]))
                found.append((fidelity.noise, fidelity.signal))
            powers.append(found)
        ratio, error = noise_to_signal(*np.moveaxis(np.array(powers), -1, 0))
        ratio = np.clip(np.nan_to_num(ratio, nan=LOUD), SILENT, LOUD)
        return ratio, np.clip(np.nan_to_num(error), 0.0, LOUD)


def unemitted(reference: Model, quantized: Model) -> Model:
    """The float graph that a quantized model was made of, with the plan it was made by."""
    plan = reference.clone()
    plan.weights, plan.activations = quantized.weights, quantized.activations
    plan.kept_float = quantized.kept_float
    return plan


def roundings(plan: Model) -> list[Rounding]:
    """What a plan rounds and a recipe could round less, in the order of the graph.

    That is weights and activations of fewer than 8 bits, which could have more, and activations
    of 8, which could be floats if all nodes that write or read them were.
    """
    found: list[Rounding] = []
    for layer in layers(plan):
        weight = plan.weights.get(layer.name)
        if weight is not None and (bits := weight.params.spec.bits) < 8:
            own = Relief("weights", layer.name, _more(bits))
            found.append(Rounding("weights", layer.name, bits, (own,)))
    placement = place(plan) if plan.activations else Placement()
    for name, beside in _beside(plan, placement).items():
        floats = tuple(Relief("floats", node, 32) for node in beside)
        bits, born = plan.activations[name].spec.bits, name in placement.born
        reliefs = (Relief("activations", name, _more(bits)),) if bits < 8 else floats
        found.append(Rounding("activations", name, bits, reliefs, tuple(beside), born))
    return found


def _more(bits: int) -> int:
    """The next width that is worth its own: 4 bits have a type in ONNX, and 8 are the most."""
    return 4 if bits < 4 else 8


def _beside(plan: Model, placement: Placement) -> dict[str, list[str]]:
    """Every tensor on a grid of its own, and the integer nodes that write or read it."""
    found: dict[str, list[str]] = {}
    for node in plan.graph.nodes:
        if node.name in placement.integer:
            touched = [root_of(tensor, placement)[0] for tensor in data_inputs(node)]
            touched += [placement.results[node.name]] if node.name in placement.results else []
            for name in dict.fromkeys(touched):
                found.setdefault(name, []).append(node.name)
    return found


def alone(plan: Model, rounding: Rounding) -> Model:
    """The float model with one rounding, or with the part of it that is tried."""
    model = plan.clone()
    if rounding.kind == "weights":
        layer = next(layer for layer in layers(model) if layer.name == rounding.name)
        error = affine.values(plan.weights[layer.name]).reshape(layer.weight.shape) - layer.weight
        layer.set_weight(model, layer.weight + np.float32(rounding.part) * error)
        return model
    params, tensor = plan.activations[rounding.name], model.graph.tensors()[rounding.name]
    if rounding.born:
        # What exists as codes is rounded for all, also where it leaves the graph.
        source, result = model.variable(tensor.name), tensor
        tensor.inputs[0].outputs[0] = source
    else:
        # What is quantized for layers is rounded for these alone.
        source, result = tensor, model.variable(tensor.name)
        floats = [n for n in tensor.outputs if n.name not in rounding.beside]
        model.redirect(tensor, result, but=floats)
    grid = [
        model.constant("scale", params.scale),
        model.constant("zero_point", params.zero_point.astype(params.spec.dtype)),
    ]
    codes, clipped = model.variable(tensor.name), model.variable(tensor.name)
    model.add("QuantizeLinear", [source, *grid], codes)
    ends = [model.constant("end", np.array(end, np.uint8)) for end in (0, params.spec.qmax)]
    model.add("Clip", [codes, *ends], clipped)
    model.add("DequantizeLinear", [clipped, *grid], result)
    model.tidy()
    return model


def prices(
    plan: Model, found: Sequence[Rounding], macs: Mapping[str, int | None]
) -> dict[Relief, float]:
    """What each relief of some roundings costs.

    Args:
        plan: The plan.
        found: Its roundings.
        macs: Multiply-accumulates of each layer.
    """
    size = {layer.name: layer.weight.size for layer in layers(plan)}
    total = max(1, sum(macs.get(name) or 0 for name in size))
    share = {name: (macs.get(name) or 0) / total for name in size}
    price: dict[Relief, float] = {}
    for rounding in found:
        name, bits, more = rounding.name, rounding.bits, _more(rounding.bits)
        if rounding.kind == "weights":
            part = size[name] / sum(size.values())
            price[Relief("weights", name, more)] = (more - bits) / 8 * part
        else:
            read = sum(share.get(node, 0.0) for node in rounding.beside)
            # Bit operations by 8-bit weights, relative to those of 32 by 32 bits.
            price[Relief("activations", name, more)] = 8 * (more - bits) / 32**2 * read
        for node in rounding.beside:
            price[Relief("floats", node, 32)] = max(share.get(node, 0.0), TRIFLE)
    return price
