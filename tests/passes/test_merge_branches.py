"""Branches become one convolution, and the model computes what it did."""

import re

import numpy as np
import pytest

from onnxq.graph.loading import from_proto
from onnxq.passes.merge_branches import MergeBranches
from tests.graphs import after, build, feeds, norm, ops, run

HEAD = "(float[n,4,9,8] x) => (float[] y)"
THREE, ONE = "a = Conv<pads=[1,1,1,1]>(x, w3, b3)", "b = Conv(x, w1)"
NORM = "c = BatchNormalization(x, g, s, m, v)"
WEIGHTS = {"w3": (4, 4, 3, 3), "b3": (4,), "w1": (4, 4, 1, 1), "d3": (4, 1, 3, 3),
           "d1": (4, 1, 1, 1), "b1": (4,), "d5": (4, 1, 5, 5), "w13": (4, 4, 1, 3),
           "w31": (4, 4, 3, 1), "k": (4, 1, 1), **norm(4)}  # fmt: skip


def net(nodes, head=HEAD):
    used = {name: WEIGHTS[name] for name in re.findall(r"\w+", nodes) if name in WEIGHTS}
    return build(f"{head} {{ {nodes} }}", **used)


def merged(nodes, head=HEAD):
    """Operators after the pass, whose results are found to be the same; the model; what it did."""
    proto = net(nodes, head)
    values = feeds(proto, batch=2)
    wanted = run(proto, values)
    model, outcome = after(proto, MergeBranches())
    for name, found in run(model.to_proto(), values).items():
        np.testing.assert_allclose(found, wanted[name], rtol=1e-4, atol=1e-5)
    return sorted(ops(model)), model, outcome


ONES = {
    "RepVGG": f"{THREE} {ONE} d = Add(a, b) {NORM} y = Add(d, c)",
    "RepVGG, another order": f"{THREE} {ONE} {NORM} d = Add(b, c) y = Add(d, a)",
    "MobileOne": f"a = Conv<pads=[1,1,1,1],group=4>(x, d3, b3) b = Conv<group=4>(x, d1) {NORM} "
    "d = Add(c, b) y = Add(d, a)",
    "kernels in kernels": "a = Conv<pads=[1,1,1,1],group=4>(x, d3, b3) "
    "b = Conv<pads=[2,2,2,2],group=4>(x, d5) y = Add(a, b)",
    "asymmetric kernels": f"{THREE} b = Conv<pads=[0,1,0,1]>(x, w13) d = Add(a, b) "
    "c = Conv<pads=[1,0,1,0]>(x, w31, b1) y = Add(d, c)",
    "strides": "a = Conv<pads=[1,1,1,1],strides=[2,2]>(x, w3, b3) b = Conv<strides=[2,2]>(x, w1) "
    "y = Add(b, a)",
    "a difference": f"{THREE} {NORM} y = Sub(a, c)",
    "the other difference": f"{THREE} {NORM} y = Sub(c, a)",
    "no pads": 'a = Conv<auto_pad="VALID">(x, w1, b1) b = Conv<group=4>(x, d1) y = Add(a, b)',
    "of a result": f"r = Relu(x) {THREE} {ONE} y = Add(a, b)".replace("(x, w", "(r, w"),
}


@pytest.mark.parametrize("case", ONES)
def test_one_convolution_is_left(case):
    found, model, outcome = merged(ONES[case])
    assert [op for op in found if op != "Relu"] == ["Conv"]
    sums = ONES[case].count("Add(") + ONES[case].count("Sub(")
    norms = ONES[case].count("BatchNormalization")
    (conv,) = (node for node in model.graph.nodes if node.op == "Conv")
    assert len(outcome.edits) == norms + sums
    assert outcome.edits[-1].what == f"became part of {conv.name}"


def test_what_else_is_added_stays():
    nodes = f"{THREE} {ONE} d = Add(a, k) e = Sub(x, d) y = Sub(e, b)"
    found, model, _ = merged(nodes)
    assert found == ["Add", "Conv", "Sub"]
    # Tensors that have other values have other names.
    assert not {"a", "d"} & model.graph.tensors().keys()


def test_the_difference_from_a_sum_stays():
    nodes = f"{THREE} {ONE} d = Add(a, x) y = Sub(b, d)"
    assert merged(nodes)[0] == ["Add", "Conv", "Conv", "Sub"]


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Conv<pads=[1,1,1,1],group=4>(x, d3, b3) b = Conv(x, w1) y = Add(a, b)",  # more work
        "b = Conv<pads=[0,1,0,1]>(x, w13) c = Conv<pads=[1,0,1,0]>(x, w31) y = Add(b, c)",
        f"{THREE} r = Relu(x) b = Conv(r, w1) y = Add(a, b)",  # other data
        f"{THREE} {ONE} y = Mul(a, b)",
        f"{THREE} r = Relu(a) {ONE} y = Add(r, b)",
        f"{THREE} {ONE} d = Add(a, b) y = Mul(d, b)",  # another reader
        f"{THREE} y = Add(a, a)",
        f"{THREE} y = Add(a, x)",  # a residual is no branch with weights
        f"t = Tanh(b1) b = Conv(x, w1, t) {THREE} y = Add(a, b)",
    ],
)
def test_others_stay(nodes):
    found, _, outcome = merged(nodes)
    assert found == sorted(ops(from_proto(net(nodes))))
    assert not outcome.edits


def test_a_result_that_leaves_the_graph_stays():
    head = "(float[1,4,9,8] x) => (float[] y, float[] b)"
    assert merged(f"{THREE} {ONE} y = Add(a, b)", head)[0] == ["Add", "Conv", "Conv"]


@pytest.mark.parametrize("name", ["Conv_a", "Conv_b", "Add_y"])
def test_what_is_kept_float_stays(name):
    model = from_proto(net(f"{THREE} {ONE} y = Add(a, b)"))
    model.kept_float = {name: "as asked"}
    assert not MergeBranches().run(model, {}).edits


def test_a_norm_is_no_branch_of_a_convolution_along_one_axis():
    head = "(float[1,4,9] x) => (float[] y)"
    proto = build(
        f"{head} {{ a = Conv<pads=[1,1]>(x, w) {NORM} y = Add(a, c) }}", w=(4, 4, 3), **norm(4)
    )
    assert sorted(ops(after(proto, MergeBranches())[0])) == ["Add", "BatchNormalization", "Conv"]


def test_a_norm_with_another_reader_stays_one():
    found, *_ = merged(f"{THREE} {NORM} d = Add(a, c) y = Mul(d, c)")
    assert found == ["Add", "BatchNormalization", "Conv", "Mul"]
