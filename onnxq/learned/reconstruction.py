"""Reconstruction: unit by unit, the float network's results out of what the quantized one reads.

A unit is a layer (Nagel et al. 2020, AdaRound) or a block (Li et al. 2021, BRECQ). Whether its
input, and what is quantized inside it, is taken as it is quantized or as it is in floats, is drawn
for every element (Wei et al. 2022, QDrop).
"""

from collections.abc import Callable, Container

import numpy as np

from onnxq.blocks import Block, nodes_of
from onnxq.learned.parts import give_biases, parts, refusals, surroundings
from onnxq.learned.prefix import Prefix
from onnxq.learned.training import Trained
from onnxq.learned.unit import Rates, UnitTraining
from onnxq.lessons import Lessons
from onnxq.model import Model
from onnxq.pipeline import Outcome

# Share of undecided weights that the user should hear of.
MOST_UNDECIDED = 0.02


def reconstruct(
    name: str,
    model: Model,
    reference: Model,
    lessons: Lessons,
    units: Callable[[Model, Container[str]], list[Block]],
    rates: Rates,
    steps: int,
    batch: int,
    drop: float = 0.0,
) -> Outcome:
    """Train the rounding of a plan, in place, one unit after the other.

    In memory are, on all samples, the tensors of both networks that are still to be read where a
    unit begins (before a block there is one), and what the unit returns in the float network.

    Args:
        name: Of the pass.
        model: Its plan is trained.
        reference: The float model.
        lessons: Samples.
        units: Finds them in a model, given the tensors on grids: ``blocks`` or ``single_layers``.
        rates: What is trained, and how fast.
        steps: To take for each unit.
        batch: Samples of a step.
        drop: Probability of each element to be taken as it is in floats.
    """
    outcome = Outcome()
    if rates.biases:
        give_biases(model)
    refused = refusals(reference, lessons.rows(np.arange(lessons.fixed or 1)))
    found = [(unit, nodes_of(model, unit)) for unit in units(model, model.activations)]
    trained: set[str] = set()
    skipped: dict[str, str] = {}
    for unit, nodes in found:
        why = next((refused[node.name] for node in nodes if node.name in refused), None)
        skipped |= dict.fromkeys(unit.layers, why or "it is not trained")
    done: Trained | None = None
    for part in parts(model, refused):
        samples, own = surroundings(part, model, reference, lessons)
        if samples is None:
            continue
        prefix = Prefix(model, reference, part, samples, own, batch)
        before = {layer.name: model.weights[layer.name].codes for layer in prefix.network.layers}
        for number, (unit, nodes) in enumerate(found):
            if not {node.name for node in nodes} <= part.nodes:
                continue
            if (why := prefix.advance(unit)) is not None:
                skipped |= dict.fromkeys(unit.layers, why)
                continue
            training = UnitTraining(prefix, unit, nodes, number, rates, drop)
            label = f"{name}, unit {number + 1} of {len(found)}"
            done = training.run(label, steps, batch)
            trained |= {*unit.layers}
            outcome.remark(unit.result, f"{label}: {done}")
            if training.undecided > MOST_UNDECIDED and done.best < done.before:
                undecided = f"{training.undecided:.1%} of the weights are between two levels still"
                outcome.remark(unit.result, undecided)
            if done.interrupted:
                break
        prefix.network.store(model)
        for layer in [layer for layer in before if layer in trained]:
            moved = float(np.mean(model.weights[layer].codes != before[layer]))
            outcome.edit(layer, f"{moved:.2%} of its codes moved")
        if done is not None and done.interrupted:
            outcome.remark(
                "model", "interrupted: the best so far is kept, later units are left out"
            )
            break
    for layer, why in skipped.items():
        if layer not in trained:
            outcome.skip(layer, why)
    return outcome
