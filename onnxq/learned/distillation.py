"""Distillation: parts of a plan, trained together so that outputs and features agree."""

from collections.abc import Container
from dataclasses import dataclass

from torch import nn

from onnxq.graph.blocks import blocks
from onnxq.graph.layers import layers
from onnxq.graph.model import Model
from onnxq.learned.network import QuantizedNetwork
from onnxq.learned.parts import NOT_BY_SAMPLE, Part, give_biases, parts, refusals, surroundings
from onnxq.learned.quantizers import WeightQuantizer
from onnxq.learned.teaching import Teaching
from onnxq.learned.training import INTERRUPTED, LEFT_OUT, UNDONE, Group, optimise
from onnxq.lowering import Lowered
from onnxq.pipeline import Outcome
from onnxq.samples.lessons import Lessons

# Share of the steps that states are averaged over.
MEMORY = 0.15


@dataclass(frozen=True)
class Rates:
    """Peak learning rates; what has 0 stays as it is.

    Attributes:
        weights: Of weights, in mean steps between their levels.
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
        samples, own = surroundings(part, model, reference, lessons)
        if samples is None:
            untrained |= dict.fromkeys(names, NOT_BY_SAMPLE)
            continue
        teacher = Lowered(reference, part.nodes & {node.name for node in reference.graph.nodes})
        points, scores = _points(model, part, network)
        teaching = Teaching(teacher, network, points, scores, samples, own, batch, mix)
        if teaching.empty:
            untrained |= dict.fromkeys(names, "nothing that follows can be compared")
            continue
        done = optimise(label, groups, teaching.loss, teaching.judge, steps, lessons, MEMORY)
        settled |= set(network.graded)
        if done.undone:
            untrained |= dict.fromkeys(names, UNDONE)
        else:
            for layer, moved in network.store(model).items():
                outcome.edit(layer, f"trained; {moved:.2%} of its codes moved")
                del untrained[layer]
        outcome.remark("model", f"{label}: {done}")
        if done.interrupted:
            outcome.remark("model", LEFT_OUT)
            break
    for layer, why in untrained.items():
        outcome.skip(layer, why)
    return outcome


def _groups(network: QuantizedNetwork, rates: Rates, settled: Container[str]) -> list[Group]:
    """What is trained; all else is frozen, and so are the grids of tensors that are settled."""
    weights = [weight for weight in network.weights if isinstance(weight, WeightQuantizer)]
    graded = zip(network.graded, network.grids, strict=True)
    kinds: tuple[tuple[list[nn.Parameter], float], ...] = (
        ([weight.latent for weight in weights], rates.weights),
        ([weight.stretch for weight in weights], rates.scales),
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
