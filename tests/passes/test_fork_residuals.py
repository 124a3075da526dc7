"""What residual connections carry keeps 8 bits where the layers beside them read fewer."""

import numpy as np

from onnxq import recipes
from onnxq.graph.loading import from_proto
from onnxq.passes.fork_residuals import ForkResiduals
from onnxq.pipeline import run
from onnxq.runtime import Session
from onnxq.samples.calibration import Calibration
from onnxq.samples.preprocess import PRESETS
from tests.graphs import build
from tests.passes.layerwise import samples

RESIDUAL = build(
    """(float[N,4,6,6] x) => (float[] y) {
        a = Conv<pads=[1,1,1,1]>(x, v)
        r = Relu(a)
        c = Conv<pads=[1,1,1,1]>(r, w)
        s = Add(r, c)
        t = Relu(s)
        y = Conv(t, u)
    }""",
    v=(4, 4, 3, 3), w=(4, 4, 3, 3), u=(3, 4, 1, 1),
)  # fmt: skip


def converted(*narrow):
    """The written model, its float one and the bits of every tensor on a grid."""
    recipe = recipes.build(act_bits=3, narrow=narrow)
    model, source = from_proto(RESIDUAL), Calibration(samples(RESIDUAL), PRESETS["raw"])
    model.raise_opset(recipe.opset)
    run(model, recipe.exact, None)
    prepared = model.clone()
    run(model, recipe.lossy, source)
    return prepared, model, {n: p.spec.bits for n, p in model.activations.items()}


def test_layers_read_a_copy():
    model = from_proto(RESIDUAL)
    outcome = ForkResiduals().run(model, {})
    assert [edit.where for edit in outcome.edits] == ["r"]
    readers = {
        t.name: sorted(n.op for n in t.outputs) for n in model.graph.nodes for t in n.outputs
    }
    assert readers["r"] == ["Add", "Identity"]
    assert readers["r_copy"] == ["Conv"]
    assert not ForkResiduals().run(model, {}).edits


def test_what_is_carried_on_keeps_8_bits():
    _, _, alone = converted()
    _, _, forked = converted(ForkResiduals())
    assert alone["r"] == 3
    assert forked["r"] == 8
    assert forked["r_copy"] == 3


def test_what_is_carried_on_has_the_errors_of_a_fine_grid():
    x = np.concatenate([feed["x"] for _, feed in samples(RESIDUAL, seed=1).items()])
    errors = []
    for narrow in ((), (ForkResiduals(),)):
        prepared, model, _ = converted(*narrow)
        y, z = (Session(m, ["r"]).run({"x": x})["r"] for m in (prepared, model))
        errors.append(float(np.mean((y - z) ** 2)))
    assert errors[1] < errors[0] / 100  # a thousandth: 31 times finer, squared


def test_8_bit_recipes_are_without_it():
    names = [step.name for step in recipes.plan("best", bits=4, calibrated=True).passes]
    assert "fork-residuals" not in names
    narrow = recipes.plan("best", bits=4, act_bits=4, calibrated=True)
    assert "fork-residuals" in [step.name for step in narrow.passes]
