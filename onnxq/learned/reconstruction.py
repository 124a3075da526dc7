"""Reconstruction: unit by unit, the float network's results out of what the quantized one reads.

A unit is a layer (Nagel et al. 2020, AdaRound) or a block (Li et al. 2021, BRECQ). Whether its
input, and what is quantized inside it, is taken as it is quantized or as it is in floats, is drawn
for every element (Wei et al. 2022, QDrop).
"""

from collections.abc import Callable, Container

import onnx_graphsurgeon as gs

from onnxq.graph.blocks import Block, nodes_of, single_layers
from onnxq.graph.model import Model
from onnxq.learned.parts import NOT_BY_SAMPLE, give_biases, parts, refusals, surroundings
from onnxq.learned.prefix import Prefix
from onnxq.learned.training import INTERRUPTED, LEFT_OUT, UNDONE
from onnxq.learned.unit import Rates, UnitTraining
from onnxq.pipeline import Outcome
from onnxq.samples.lessons import Lessons

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
    refused = refusals(reference, lessons.few)
    found = _units(model, units, refused)
    untrained = {
        layer: next((refused[node.name] for node in nodes if node.name in refused), INTERRUPTED)
        for unit, nodes in found
        for layer in unit.layers
    }
    for part in parts(model, refused):
        inside = [i for i, (_, nodes) in enumerate(found) if {n.name for n in nodes} <= part.nodes]
        samples, own = surroundings(part, model, reference, lessons)
        if samples is None:
            units_here = (found[i][0] for i in inside)
            untrained |= {layer: NOT_BY_SAMPLE for unit in units_here for layer in unit.layers}
            continue
        prefix = Prefix(model, reference, part, samples, own, batch)
        interrupted = False
        try:
            for number in inside:
                unit, nodes = found[number]
                if (why := prefix.advance(unit)) is not None:
                    untrained |= dict.fromkeys(unit.layers, why)
                    continue
                training = UnitTraining(prefix, unit, nodes, number, rates, drop)
                label = f"{name}, unit {number + 1} of {len(found)}"
                done = training.run(label, steps, batch)
                for layer in unit.layers:
                    if done.undone:
                        untrained[layer] = UNDONE
                    else:
                        del untrained[layer]
                outcome.remark(unit.result, f"{label}: {done}")
                if training.undecided > MOST_UNDECIDED and not done.undone:
                    undecided = (
                        f"{training.undecided:.1%} of the weights are between two levels still"
                    )
                    outcome.remark(unit.result, undecided)
                if interrupted := done.interrupted:
                    break
        except KeyboardInterrupt:
            interrupted = True
        for layer, moved in prefix.network.store(model).items():
            if layer not in untrained:
                outcome.edit(layer, f"{moved:.2%} of its codes moved")
        if interrupted:
            outcome.remark("model", LEFT_OUT)
            break
    for layer, why in untrained.items():
        outcome.skip(layer, why)
    return outcome


def _units(
    model: Model, units: Callable[[Model, Container[str]], list[Block]], refused: Container[str]
) -> list[tuple[Block, list[gs.Node]]]:
    """Units and their nodes; where a node among these is refused, every layer is one of its own."""
    alone = {unit.layers: unit for unit in single_layers(model, model.activations)}
    found = []
    for unit in units(model, model.activations):
        whole = not any(node.name in refused for node in nodes_of(model, unit))
        found += [unit] if whole else [alone[layer,] for layer in unit.layers]
    return [(unit, nodes_of(model, unit)) for unit in found]
