"""Borders of zeros move into the convolution, and the model computes what it did."""

import numpy as np
import pytest

from onnxq.graph.loading import from_proto
from onnxq.passes.absorb_pads import AbsorbPads
from tests.graphs import after, build, feeds, ops, run

HEAD = "(float[2,3,9,8] x) => (float[] y)"
VALUES = {"w": (4, 3, 3, 3), "pads": np.array([0, 0, 1, 0, 0, 0, 2, 1]), "zero": np.float32(0),
          "one": np.float32(1), "axes": np.array([2, 3]), "two": np.array([1, 1, 1, 1]),
          "cut": np.array([0, 0, -1, 0, 0, 0, 0, 0]), "more": np.array([0, 1, 0, 0, 0, 0, 0, 0]),
          "wide": (4, 4, 3, 3)}  # fmt: skip


def net(nodes):
    found = {name: value for name, value in VALUES.items()
             if any(f"{sep}{name}{end}" in nodes for sep in " (" for end in ",)")}  # fmt: skip
    return build(f"{HEAD} {{ {nodes} }}", opset=18, **found)


@pytest.mark.parametrize(
    ("nodes", "pads"),
    [
        ("p = Pad(x, pads) y = Conv(p, w)", [1, 0, 2, 1]),
        ("p = Pad(x, pads, zero) y = Conv<pads=[0,1,0,1],strides=[2,2]>(p, w)", [1, 1, 2, 2]),
        ('p = Pad(x, pads) y = Conv<auto_pad="VALID">(p, w)', [1, 0, 2, 1]),
        ("p = Pad(x, pads) a = Conv(p, w) b = Conv(p, w) y = Add(a, b)", [1, 0, 2, 1]),
    ],
)
def test_convolutions_pad_by_themselves(nodes, pads):
    proto = net(nodes)
    model, outcome = after(proto, AbsorbPads())
    assert "Pad" not in ops(model)
    assert [edit.what for edit in outcome.edits] == ["taken over by what reads it"]
    assert all(n.attrs["pads"] == pads for n in model.graph.nodes if n.op == "Conv")
    values = feeds(proto)
    found, wanted = (run(p, values)["y"] for p in (model.to_proto(), proto))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "nodes",
    [
        "p = Pad(x, pads, one) y = Conv(p, w)",
        'p = Pad<mode="reflect">(x, pads) y = Conv(p, w)',
        "p = Pad(x, cut) y = Conv(p, w)",
        "p = Pad(x, more) y = Conv(p, wide)",
        "p = Pad(x, two, , axes) y = Conv(p, w)",
        'p = Pad(x, pads) y = Conv<auto_pad="SAME_UPPER">(p, w)',
        "p = Pad(x, pads) y = MaxPool<kernel_shape=[2,2]>(p)",
        "p = Pad(x, pads) a = Conv(p, w) b = Neg(p) c = ReduceMax(b) y = Add(a, c)",
    ],
)
def test_others_stay(nodes):
    proto = net(nodes)
    model, outcome = after(proto, AbsorbPads())
    assert ops(model) == ops(from_proto(proto))
    assert not outcome.edits


def test_what_is_kept_float_stays():
    model = from_proto(net("p = Pad(x, pads) y = Conv(p, w)"))
    model.kept_float = {"Pad_p": "as asked"}
    assert not AbsorbPads().run(model, {}).edits
