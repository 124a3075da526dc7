"""Distillation: parts of a plan, trained together so that outputs and features agree."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

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

# Why a layer is not trained that would have been.
INTERRUPTED = "the training was interrupted before it came to it"


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
    refused = refusals(reference, lessons.few)
    found = parts(model, refused)
    whys = {layer.name: refused.get(layer.name, INTERRUPTED) for layer in layers(model)}
    untrained = {name: why for name, why in whys.items() if name in model.weights}
    settled: set[str] = set()
    for number, part in enumerate(found, 1):
        label = name if len(found) == 1 else f"{name}, part {number} of {len(found)}"
        network = QuantizedNetwork(model, part.nodes)
        names = [layer.name for layer in network.layers]
        groups = _groups(network, rates, settled)
        if not groups:
            untrained |= dict.fromkeys(names, "it has nothing that this pass trains")
            continue
        samples, own = _surroundings(part, model, reference, lessons)
        if samples is None:
            untrained |= dict.fromkeys(names, "what is read there cannot be told apart by sample")
            continue
        teacher = Lowered(reference, part.nodes & {node.name for node in reference.graph.nodes})
        points, scores = _points(model, part, network)
        teaching = Teaching(teacher, network, points, scores, samples, own, batch, mix)
        if teaching.empty:
            untrained |= dict.fromkeys(names, "nothing that follows can be compared")
            continue
        done = optimise(label, groups, teaching.loss, teaching.judge, steps, lessons)
        before = {name: model.weights[name].codes for name in names}
        network.store(model)
        settled |= set(network.graded)
        for layer, codes in before.items():
            moved = float(np.mean(model.weights[layer].codes != codes))
            outcome.edit(layer, f"trained; {moved:.2%} of its codes moved")
            del untrained[layer]
        outcome.remark("model", f"{label}: {done}")
        if done.interrupted:
            outcome.remark(
                "model", "interrupted: the best so far is kept, later steps are left out"
            )
            break
    for layer, why in untrained.items():
        outcome.skip(layer, why)
    return outcome


def _give_biases(model: Model) -> None:
    """Give every layer a bias that can be trained, if it can have one."""
    for layer in list(layers(model)):
        bare = layer.name in model.weights and layer.bias_tensor is None
        if bare and (zeros := layer.bias_or_zeros) is not None:
            layer.set_bias(model, zeros)
    model.tidy()


def _groups(network: QuantizedNetwork, rates: Rates, settled: Container[str]) -> list[Group]:
    """What is trained; all else is frozen, and so are the grids of tensors that are settled."""
    graded = zip(network.graded, network.grids, strict=True)
    kinds: tuple[tuple[list[nn.Parameter], float], ...] = (
        ([weight.latent for weight in network.weights], rates.weights),
        ([weight.stretch for weight in network.weights], rates.scales),
        (list(network.biases.values()), rates.biases),
        ([grid.stretch for name, grid in graded if name not in settled], rates.ranges),
    )
    network.requires_grad_(False)
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
    points = list(dict.fromkeys([*inner[-2:], *part.outputs]))
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
    if not part.inputs:
        return None, None
    if set(part.inputs) <= lessons.feeds.keys():
        images = lessons.images if lessons.images in part.inputs else None
        given = {name: lessons.feeds[name] for name in part.inputs}
        return replace(lessons, feeds=given, images=images), None
    ours, own = (_run(m, part.inputs, lessons) for m in (reference, lessons.write(model)))
    if ours is None or own is None:
        return None, None
    return replace(lessons, feeds=ours, images=None), own


def _run(model: Model, wanted: Sequence[str], lessons: Lessons) -> dict[str, Array] | None:
    """Tensors of a model on all samples, by onnxruntime; None if they have no row for each."""
    size = lessons.fixed or 1
    session = Session(model, taps=[name for name in wanted if name not in lessons.feeds])
    found: dict[str, list[Array]] = {name: [] for name in wanted}
    for start in range(0, lessons.count, size):
        feeds = lessons.rows(np.arange(start, start + size) % lessons.count)
        results = session.run(feeds) | feeds
        for name in wanted:
            if np.shape(results[name])[:1] != (size,):
                return None
            found[name].append(results[name])
    if any(x.shape != whole[0].shape for whole in found.values() for x in whole):
        return None
    return {name: np.concatenate(whole)[: lessons.count] for name, whole in found.items()}
