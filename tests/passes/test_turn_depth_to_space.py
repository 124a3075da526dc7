"""DepthToSpace on codes becomes a Transpose with channels last, and computes what it did."""

import numpy as np
import pytest

from onnxq.passes.turn_depth_to_space import TurnDepthToSpace
from tests.graphs import after, build, feeds, ops, run

IMAGE = "(float[2,4,6,5] x) => (float[] y)"
OPEN = "(float[N,4,H,W] x) => (float[] y)"
CRD, DCR = ('DepthToSpace<blocksize=2,mode="CRD">({})', "DepthToSpace<blocksize=2>({})")
LAST = "y = Conv(d, last)"
WEIGHTS = {"w": (12, 4, 3, 3), "b": (12,), "last": (2, 3, 1, 1), "half": (12, 2, 3, 3)}
WEIGHTS |= {"zero": np.float32(0), "six": np.float32(6), "end": (2, 12, 1, 1)}


def turned(nodes, head=IMAGE):
    used = {name: x for name, x in WEIGHTS.items() if f"{name})" in nodes or f"{name}," in nodes}
    proto = build(f"{head} {{ {nodes} }}", **used)
    return proto, *after(proto, TurnDepthToSpace())


@pytest.mark.parametrize("head", [IMAGE, OPEN], ids=["fixed", "open"])
@pytest.mark.parametrize(
    "nodes",
    [
        f"a = Conv(x, w, b) d = {CRD.format('a')} {LAST}",
        f"a = Conv(x, w, b) d = {DCR.format('a')} {LAST}",
        f"a = Conv(x, w) d = {CRD.format('a')} {LAST}",
        f"a = Conv(x, w, b) r = Relu(a) d = {CRD.format('r')} {LAST}",
        f"a = Conv(x, w, b) r = Clip(a, zero, six) d = {CRD.format('r')} {LAST}",
        f"a = Conv<group=2>(x, half, b) d = {DCR.format('a')} {LAST}",
        f"a = Conv(x, w, b) p = MaxPool<kernel_shape=[2,2]>(a) d = {DCR.format('p')} {LAST}",
    ],
)
def test_the_function_stays(nodes, head):
    proto, model, outcome = turned(nodes, head)
    assert [edit.what for edit in outcome.edits] == ["became a Transpose with channels last"]
    assert "DepthToSpace" not in ops(model)
    given = feeds(proto) if head is IMAGE else {"x": feeds(build(f"{IMAGE} {{ y = Neg(x) }}"))["x"]}
    np.testing.assert_allclose(
        run(model.to_proto(), given)["y"], run(proto, given)["y"], rtol=1e-5, atol=1e-5
    )


def test_channels_in_another_order_have_another_name():
    _, model, _ = turned(f"a = Conv(x, w, b) r = Relu(a) d = {CRD.format('r')} {LAST}")
    names = {t.name for node in model.graph.nodes for t in node.outputs}
    assert not names & {"a", "r"}
    assert "d" in names


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        (f"a = Exp(x) d = {DCR.format('a')} y = Neg(d)", "it runs on floats"),
        (
            f"a = Conv<group=2>(x, half, b) d = {CRD.format('a')} {LAST}",
            "no layer alone makes its channels, whose order matters",
        ),
        (
            f"a = Conv(x, w) c = Conv(x, w) s = Add(a, c) d = {CRD.format('s')} {LAST}",
            "no layer alone makes its channels, whose order matters",
        ),
        (
            f"a = Conv(x, w) s = Add(a, a) d = {CRD.format('a')} e = Conv(d, last) "
            "g = GlobalAveragePool(s) h = Conv(g, end) y = Add(e, h)",
            "no layer alone makes its channels, whose order matters",
        ),
    ],
)
def test_the_others_stay_with_a_reason(nodes, why):
    _, model, outcome = turned(nodes)
    assert "DepthToSpace" in ops(model)
    assert [skip.why for skip in outcome.skips] == [why]
