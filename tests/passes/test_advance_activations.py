"""Relu and Clip before pools and moves: the same function, on a grid of what they leave."""

import numpy as np
import onnx
import pytest

from onnxq.passes.advance_activations import AdvanceActivations
from tests.graphs import after, build, feeds, ops, quantize, run

WEIGHT = {"w": (4, 3, 3, 3)}
CUTS = {"relu": "Relu({})", "clip": "Clip({}, lo, hi)"}
MOVES = {
    "MaxPool": "MaxPool<kernel_shape=[2,2], pads=[1,1,1,1], strides=[2,2]>({})",
    "DepthToSpace": "DepthToSpace<blocksize=2>({})",
    "Transpose": "Transpose<perm=[0,2,3,1]>({})",
    "Reshape": "Reshape({}, shape)",
    "Flatten": "Flatten({})",
    "Slice": "Slice({}, one, many, two)",
    "Unsqueeze": "Unsqueeze({}, one)",
}
CONSTANTS = {
    "lo": np.float32(-0.1),
    "hi": np.float32(0.2),
    "shape": np.array([0, 2, -1]),
    "one": np.array([1]),
    "many": np.array([5]),
    "two": np.array([2]),
    "yes": np.array(True),
}


def net(body, **more):
    used = {name: x for name, x in CONSTANTS.items() if name in body}
    text = f"(float[2,3,6,6] x) => (float[] y) {{ a = Conv<pads=[1,1,1,1]>(x, w)\n {body} }}"
    return build(text, **WEIGHT, **used, **more)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_it_comes_before_what_moves_values_and_the_function_stays(move, cut):
    proto = net(f"b = {move.format('a')} y = {cut.format('b')}")
    model, outcome = after(proto, AdvanceActivations())
    conv, first, second = ops(model)
    assert (conv, first, second) == ("Conv", cut.split("(")[0], move.split("<")[0].split("(")[0])
    assert len(outcome.edits) == 1
    given = feeds(proto)
    np.testing.assert_array_equal(run(model.to_proto(), given)["y"], run(proto, given)["y"])


def test_it_crosses_several():
    proto = net(
        f"b = {MOVES['MaxPool'].format('a')} c = Flatten(b) d = Relu(c) y = Gemm(d, v)", v=(64, 2)
    )
    model, _ = after(proto, AdvanceActivations())
    assert ops(model) == ["Conv", "Relu", "MaxPool", "Flatten", "Gemm"]
    given = feeds(proto)
    np.testing.assert_allclose(
        run(model.to_proto(), given)["y"], run(proto, given)["y"], rtol=1e-5, atol=1e-6
    )


POOL = "MaxPool<kernel_shape=[2,2]>"
STAYS = {
    "the pool has another reader": f"b = {POOL}(a) r = Relu(b) n = Neg(b) y = Add(r, n)",
    "the layer has another reader": "b = MaxPool<kernel_shape=[1,1]>(a) r = Relu(b) y = Add(r, a)",
    "a pool rounds up": "b = MaxPool<kernel_shape=[2,2], ceil_mode=1>(a) y = Relu(b)",
    "no layer makes it": "s = Softmax(a) b = Flatten(s) y = Relu(b)",
    "it is computed where it ends": "m = ReduceMax<keepdims=0>(a) b = Flatten(a) y = Clip(b, m)",
    "nothing lies between": "y = Relu(a)",
    "a branch reads what is moved": f"b = {POOL}(a) r = Relu(b) y = If (yes) <"
    "then_branch = one () => (float[] o) { o = Add(r, b) }, "
    "else_branch = two () => (float[] o) { o = Neg(r) }>",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS)
def test_where_it_stays(body):
    proto = net(body)
    model, outcome = after(proto, AdvanceActivations())
    assert not outcome
    assert ops(model) == [node.op_type for node in proto.graph.node]


@pytest.mark.parametrize("kept", ["MaxPool_b", "Relu_y"])
def test_nodes_that_are_kept_float_stay(kept):
    from onnxq.graph.loading import from_proto

    model = from_proto(net("b = MaxPool<kernel_shape=[2,2]>(a) y = Relu(b)"))
    names = {node.op: node.name for node in model.graph.nodes}
    model.kept_float = {names[kept.split("_")[0]]: "kept"}
    assert not AdvanceActivations().run(model, {})


@pytest.mark.parametrize("act_bits", [8, 4])
def test_a_pool_before_a_relu_loses_no_more_than_one_behind_it(tmp_path, act_bits):
    found = []
    for name, body in (
        ("before", "b = MaxPool<kernel_shape=[2,2]>(a) r = Relu(b)"),
        ("behind", "b = Relu(a) r = MaxPool<kernel_shape=[2,2]>(b)"),
    ):
        proto = net(f"{body} y = Conv(r, v)", v=(2, 4, 2, 2))
        samples = [feeds(proto, seed) for seed in range(8)]
        folder = tmp_path / name
        folder.mkdir()
        _, file = quantize(proto, folder, samples, act_bits=act_bits)
        found.append(run(onnx.load(file), samples[0])["y"])
    np.testing.assert_array_equal(*found)
