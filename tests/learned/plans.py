"""Planned models on random data, and a module held to the file that is written of the same plan."""

import numpy as np

from onnxq import pipeline
from onnxq.graph.loading import load
from onnxq.graph.placement import Placement, place, root_of
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.progress import silent
from onnxq.quantization import prepare
from onnxq.recipes import build
from onnxq.runtime import Session, random_feeds
from onnxq.samples.calibration import Calibration
from onnxq.samples.lessons import Lessons
from onnxq.samples.preprocess import Preprocess
from onnxq.samples.sources import open_samples

# Steps of a grid: one that a tie takes, and what float32 adds.
STEP = 1.01
# Elements of a tensor that may lie next to a tie.
TIES = 0.02
# Of a bias, where its scale is chosen for it.
BIAS = 1e-5
# Of the largest value of a tensor that lies on no grid.
FLOATS = 1e-4


def planned(path, feeds=None, **flags):
    """A prepared model and its plan, as a recipe leaves them before they are written.

    The float model, the planned one, and feeds, which are random unless they are given.
    """
    recipe = build(**{"weight_range": "max", "act_range": "minmax"} | flags)
    model = load(path)
    prepare(model, recipe)
    session = Session(model)
    feeds = feeds or [random_feeds(session.inputs, seed) for seed in range(4)]
    calibration = Calibration(open_samples(feeds, session.inputs, Preprocess()), Preprocess())
    reference = model.clone()
    pipeline.run(model, recipe.lossy[:-1], calibration)
    return reference, model, feeds


def lessons(feeds, *, fixed=None, images=None, seed=0, checkpoint=None, progress=silent):
    """Samples to train on; the models around a training are written as the recipes write them."""

    def write(model):
        return written(model)[0]

    return Lessons(feeds, fixed, images, 0, seed, f"seed {seed}", checkpoint, write, progress)


def written(model):
    """The model as it would be deployed, and what was unusual about that."""
    found = model.clone()
    outcome = InsertQdq().run(found, {})
    found.tidy()
    return found, [remark.what for remark in outcome.remarks]


def steps_of(model):
    """Of every tensor that is on codes in the file, one step of its grid."""
    placement = place(model) if model.activations else Placement()
    tensors = [t for node in model.graph.nodes for t in node.outputs]
    found = {t.name: root_of(t, placement) for t in tensors if t.name in placement.born}
    found |= {f"{name}_dequantized": (name, 1.0) for name in placement.entries}
    return {name: float(model.activations[r].scale) * by for name, (r, by) in found.items()}


def assert_same_as_written(model, network, feeds):
    """Hold every tensor of a module to onnxruntime, on the file as written, without optimization.

    The module computes each tensor that both have from the nearest tensors before it that both
    have, with onnxruntime's values for these, so that what a tie moves does not grow. On a grid, a
    tensor may then lie a step away in a few places next to ties, and is the same elsewhere. Biases
    are rounded alike, but for those of channels of zeros, whose scale is chosen for them.
    """
    import torch

    file, _ = written(model)
    steps = steps_of(model)
    there = {t.name for node in file.graph.nodes for t in node.outputs}
    common = [
        name for step in network.lowered.steps for name in step.outputs if name and name in there
    ]
    nodes = {node.name: node for node in file.graph.nodes}
    biases = {}
    for i, name in network.biased.items():
        end, index = network.layers[i].bias_slot
        biases[name] = nodes[end.name].inputs[index].name
    theirs = Session(file, taps=[*common, *biases.values()], optimize=False).run(feeds)
    tensors = {name: torch.from_numpy(theirs[name]) for name in common}
    tensors |= {name: torch.from_numpy(x) for name, x in feeds.items()}
    with torch.no_grad():
        tensors = network.given() | tensors
    for name, t in biases.items():
        repeated = np.resize(tensors[name].numpy(), theirs[t].shape)  # for each pixel of a strip
        np.testing.assert_allclose(repeated, theirs[t], rtol=BIAS, atol=1e-30)
    for name in common:
        others = {n: x for n, x in tensors.items() if n != name}
        with torch.no_grad():
            ours = network.lowered.run(others, [name])[name].numpy()
        assert ours.shape == theirs[name].shape, name
        assert ours.dtype == theirs[name].dtype, name
        if not ours.size:
            continue
        difference = np.abs(ours.astype(np.float64) - theirs[name])
        if name in steps:
            assert difference.max() <= STEP * steps[name], name
            moved = np.sum(difference > (STEP - 1) * steps[name])
            assert moved <= max(2, TIES * difference.size), name
        else:
            assert difference.max() <= FLOATS * max(np.abs(theirs[name]).max(), 1.0), name
    assert steps.keys() & there <= set(common)
    return common
