"""Distillation: chosen parameters of a plan, trained together until outputs and features agree."""

from dataclasses import dataclass

import numpy as np

from onnxq.blocks import blocks
from onnxq.layers import layers
from onnxq.learned.network import QuantizedNetwork
from onnxq.learned.parts import Part, give_biases, parts, refusals, surroundings
from onnxq.learned.teaching import Teaching
from onnxq.learned.training import Group, optimise
from onnxq.lessons import Lessons
from onnxq.lowering import Lowered
from onnxq.model import Model
from onnxq.pipeline import Outcome


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
        give_biases(model)
    refused = refusals(reference, lessons.rows(np.arange(lessons.fixed or 1)))
    found = parts(model, refused)
    untrained = {layer.name for layer in layers(model)} & model.weights.keys()
    for number, part in enumerate(found, 1):
        label = name if len(found) == 1 else f"{name}, part {number} of {len(found)}"
        network = QuantizedNetwork(model, part.nodes)
        groups = _groups(network, rates)
        samples, own = surroundings(part, model, reference, lessons)
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
