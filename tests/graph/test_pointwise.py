"""What may be written as a layer is, and computes what it did."""

import numpy as np
import onnx
import pytest

from onnxq.graph.layers import layers
from onnxq.graph.loading import from_proto
from onnxq.graph.pointwise import unlock, unlockable
from tests.graphs import build, feeds, ops, run

HEAD = "(float[2,4,6,6] x) => (float[] y)"
WEIGHTS = {
    "w": (8, 4, 3, 3), "v": (5, 8, 1, 1), "depth": (8, 1, 3, 3), "m": (6, 7), "c": np.float32(0.7),
    "k": (7, 5), "vector": (8, 1, 1), "d": np.float32(-2),
}  # fmt: skip


def unlocked(nodes, wanted=None, kept=()):
    proto = build(f"{HEAD} {{ {nodes} }}", **WEIGHTS)
    model = from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    model.kept_float = dict.fromkeys(kept, "kept by --keep-float")
    places = unlockable(model)
    made = unlock(model, {k: places[k] for k in (places if wanted is None else wanted)})
    onnx.checker.check_model(model.to_proto(), full_check=True)
    values = feeds(proto)
    before, found = run(proto, values)["y"], run(model.to_proto(), values)["y"]
    np.testing.assert_allclose(found, before, atol=1e-5 * np.abs(before).max())
    return model, made


@pytest.mark.parametrize("sum_", ["Add(a, c)", "Add(c, a)"])
def test_the_sum_with_a_number_becomes_a_layer(sum_):
    model, made = unlocked(f"a = Conv(x, w) s = {sum_} y = Conv(s, v)")
    assert made == {"Add_s": "Add_s"}
    assert ops(model) == ["Conv"] * 3
    assert [layer.by_channel for layer in layers(model)] == [False, True, False]


def test_a_layer_is_put_before_a_sigmoid():
    model, made = unlocked("a = Conv(x, w) s = Sigmoid(a) h = Mul(a, s) y = Conv(h, v)")
    assert list(made.values()) == ["Sigmoid_s"]
    (layer,) = [layer for layer in layers(model) if layer.name in made]
    assert layer.by_channel
    assert ops(model) == ["Conv", "Conv", "Sigmoid", "Mul", "Conv"]


def test_one_behind_the_other_are_both_found():
    nodes = "a = Conv(x, w) r = Relu(a) s = Add(r, c) q = Relu(s) t = Add(q, d) y = Conv(t, v)"
    model, made = unlocked(nodes)
    assert set(made) == {"Add_s", "Add_t"}
    assert "Add" not in ops(model)


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Conv(x, w) s = Add(a, vector) y = Conv(s, v)",  # a number for each channel
        "a = Conv(x, w) s = Add(a, c) y = ReduceMax(s)",  # on floats
        "a = MatMul(x, m) s = Add(a, c) r = Relu(s) y = MatMul(r, k)",  # no image
    ],
)
def test_nothing_else_changes(nodes):
    _, made = unlocked(nodes)
    assert made == {}


def test_what_is_not_wanted_or_kept_float_stays():
    nodes = "a = Conv(x, w) s = Add(a, c) r = Relu(s) t = Add(r, d) y = Conv(t, v)"
    model, made = unlocked(nodes, wanted={"Add_t"})
    assert set(made) == {"Add_t"}
    assert ops(model).count("Add") == 1
    _, made = unlocked(nodes, kept=["Add_s"])
    assert "Add_s" not in made
