"""Distillation: parts of a plan, trained together so that outputs and features agree."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxq.blocks import blocks
from onnxq.layers import layers
from onnxq.learned.network import QuantizedNetwork
from onnxq.learned.parts import Part, parts, refusals
from onnxq.learned.teaching import Teaching
from onnxq.learned.training import Group, optimise
from onnxq.lessons import Lessons
from onnxq.lowering import Lowered
from onnxq.model import Model
from onnxq.pipeline import Outcome
from onnxq.runtime import Session
from onnxq.spec import Array


@dataclass(frozen=True)
class Rates:
    """Peak learning rates; what has 0 stays as it is.

    Attributes:
        weights: Of weights, in steps of their grids.
        scales: Of the scales of weights, relative to them.
        biases: Of biases, in standard deviations of what their layers return.
        ranges: Of the scales of activations, relative to them.
    """

    weights: float = 0.0
    scales: float = 0.0
    biases: float = 0.0
    ranges: float = 0.0


def distill(
    name: str,
    model: Model,
    reference: Model,
    lessons: Lessons,
    rates: Rates,
    steps: int,
    batch: int,
    mix: float = 0.0,
) -> Outcome:
    """Train a plan, in place.

    Args:
        name: Of the pass.
        model: Its plan is trained.
        reference: The float model.
        lessons: Samples.
        rates: What is trained, and how fast.
        steps: To take for each part of the model that torch can compute.
        batch: Samples of a step.
        mix: Images are mixed up to this share.
    """
    outcome = Outcome()
    if rates.biases:
        _give_biases(model)
    refused = refusals(reference, lessons.rows(np.arange(lessons.fixed or 1)))
    found = parts(model, refused)
    untrained = {layer.name for layer in layers(model)} & model.weights.keys()
    for number, part in enumerate(found, 1):
        label = name if len(found) == 1 else f"{name}, part {number} of {len(found)}"
        network = QuantizedNetwork(model, part.nodes)
        groups = _groups(network, rates)
        samples, own = _surroundings(part, model, reference, lessons)
        if samples is None or not groups:
            continue
        teacher = Lowered(reference, part.nodes & {node.name for node in reference.graph.nodes})
        points, scores = _points(model, part, network)
        teaching = Teaching(teacher, network, points, scores, samples, own, batch, mix)
        done = optimise(label, groups, teaching.loss, teaching.judge, steps, lessons)
        before = {layer.name: model.weights[layer.name].codes for layer in network.layers}
        network.store(model)
        for layer, codes in before.items():
            moved = float(np.mean(model.weights[layer].codes != codes))
            outcome.edit(layer, f"{moved:.2%} of its codes moved")
        untrained -= before.keys()
        outcome.remark("model", f"{label}: {done}")
        if done.interrupted:
            outcome.remark(
                "model", "interrupted: the best so far is kept, later steps are left out"
            )
            break
    for layer in sorted(untrained):
        outcome.skip(layer, refused.get(layer, "it is not trained"))
    return outcome


def _give_biases(model: Model) -> None:
    """Give every layer a bias that can be trained, if it can have one."""
    for layer in list(layers(model)):
        bare = layer.name in model.weights and layer.bias_tensor is None
        if bare and (zeros := layer.bias_or_zeros) is not None:
            layer.set_bias(model, zeros)
    model.tidy()


def _groups(network: QuantizedNetwork, rates: Rates) -> list[Group]:
    """What is trained; all else is frozen."""
    kinds = (
        ([weight.latent for weight in network.weights], rates.weights),
        ([weight.stretch for weight in network.weights], rates.scales),
        (list(network.biases.values()), rates.biases),
        ([grid.stretch for grid in network.grids], rates.ranges),
    )
    for parameters, rate in kinds:
        for parameter in parameters:
            parameter.requires_grad_(rate > 0)
    return [Group(parameters, rate) for parameters, rate in kinds if parameters and rate]


def _points(model: Model, part: Part, network: QuantizedNetwork) -> tuple[list[str], str | None]:
    """The tensors to compare, and that with the scores of a classifier, if there is one."""
    made = {
        t.name: t for node in model.graph.nodes if node.name in part.nodes for t in node.outputs
    }
    inner = [block.result for block in blocks(model, set(network.graded)) if block.result in made]
    points = list(dict.fromkeys([*inner, *part.outputs]))
    (scores, *others) = [t for t in model.graph.outputs if t.name in made] or [None]
    if scores is None or others:
        return points, None
    if scores.inputs[0].op in ("Softmax", "LogSoftmax"):
        scores = scores.inputs[0].inputs[0]
    return points, scores.name if scores.name in made else None


def _surroundings(
    part: Part, model: Model, reference: Model, lessons: Lessons
) -> tuple[Lessons | None, dict[str, Array] | None]:
    """What a part reads in the float model, as samples, and in the quantized one if that differs.

    None if that cannot be told apart by sample.
    """
    if set(part.inputs) <= lessons.feeds.keys():
        return replace(lessons, feeds={n: lessons.feeds[n] for n in part.inputs}), None
    seen = [_run(m, part.inputs, lessons) for m in (reference, lessons.write(model))]
    if any(len(x) != lessons.count for feeds in seen for x in feeds.values()):
        return None, None
    return replace(lessons, feeds=seen[0], images=None), seen[1]


def _run(model: Model, wanted: Sequence[str], lessons: Lessons) -> dict[str, Array]:
    """Tensors of a model on all samples, by onnxruntime."""
    size = lessons.fixed or 1
    session = Session(model, taps=wanted)
    every = range(0, lessons.count - lessons.count % size, size)
    found = [
        session.run(lessons.rows(np.arange(i, i + size))) | lessons.rows(np.arange(i, i + size))
        for i in every
    ]
    return {name: np.concatenate([results[name] for results in found]) for name in wanted}
