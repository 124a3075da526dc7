"""Sizes that a Reshape asks of its own data become zeros, and no others do."""

import numpy as np
import pytest

from onnxq.passes.copy_sizes import CopySizes
from tests.graphs import after, build, feeds, ops, run

HEAD = "(float[n,4,6,3] x) => (float[] y)"
WEIGHTS = {
    "at0": np.array(0), "at1": np.array(1), "v0": np.array([0]), "v1": np.array([1]),
    "rest": np.array([-1]), "more": np.array([-1, 9]),
}  # fmt: skip


def rewritten(nodes, **weights):
    proto = build(f"{HEAD} {{ r = Relu(x) {nodes} }}", **WEIGHTS | weights)
    model, outcome = after(proto, CopySizes())
    model.tidy()
    values = feeds(proto, batch=5)
    np.testing.assert_array_equal(run(model.to_proto(), values)["y"], run(proto, values)["y"])
    return model, outcome


def gathered(index, vector, of="r"):
    return f"s{index} = Shape({of}) g{index} = Gather(s{index}, at{index}) " \
           f"u{index} = Unsqueeze(g{index}, {vector})"  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        (f"{gathered(0, 'v0')} t = Concat<axis=0>(u0, rest) y = Reshape(r, t)", [0, -1]),
        (f"{gathered(0, 'v0')} {gathered(1, 'v0')} t = Concat<axis=0>(u0, u1, more) "
         "y = Reshape(r, t)", [0, 0, -1, 9]),
        ("s = Shape(r) g = Gather(s, v0) t = Concat<axis=0>(g, rest) y = Reshape(r, t)", [0, -1]),
        ("s = Shape<start=0,end=1>(r) t = Concat<axis=0>(s, rest) y = Reshape(r, t)", [0, -1]),
        ("s = Shape<start=1,end=2>(r) t = Concat<axis=0>(rest, s) y = Reshape(r, t)", [-1, 0]),
    ],
)  # fmt: skip
def test_a_size_of_the_data_is_copied(nodes, shape):
    model, outcome = rewritten(nodes)
    assert ops(model) == ["Relu", "Reshape"]
    assert model.graph.nodes[1].inputs[1].values.tolist() == shape
    assert outcome.edits[0].what == f"to {shape}"


@pytest.mark.parametrize(
    "nodes",
    [
        f"{gathered(1, 'v0')} t = Concat<axis=0>(u1, rest) y = Reshape(r, t)",
        f"{gathered(0, 'v0', 'x')} t = Concat<axis=0>(u0, rest) y = Reshape(r, t)",
        f"{gathered(0, 'v0')} t = Concat<axis=0>(rest, u0) y = Reshape(r, t)",
        f"{gathered(0, 'v0')} t = Concat<axis=0>(u0, rest) y = Reshape<allowzero=1>(r, t)",
        "s = Shape<start=1>(r) g = Gather(s, v0) t = Concat<axis=0>(g, rest) y = Reshape(r, t)",
        "s = Shape<end=2>(r) t = Concat<axis=0>(s, rest) y = Reshape(r, t)",
        "s = Shape(r) y = Reshape(r, s)",
        "f = Flatten(r) s = Shape<start=0,end=1>(f) e = Shape<start=2,end=3>(f) "
        "t = Concat<axis=0>(s, rest, e) y = Reshape(f, t)",
    ],
)
def test_what_is_anything_else_stays(nodes):
    model, outcome = rewritten(nodes)
    assert not outcome
    assert "Shape" in ops(model)
