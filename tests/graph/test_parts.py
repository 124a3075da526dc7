"""Outputs that join results of different operators, and what their parts are called."""

import numpy as np
import onnx
import pytest

from onnxq.graph.loading import from_proto
from onnxq.graph.parts import apart, parts
from tests.graphs import build, feeds, quantize, run

HEAD = "b = Conv(x, w4) m = Mul(b, k) c = Conv(x, w3) s = Sigmoid(c) d = Conv(x, w2)"
JOINED = {
    "boxes and scores": ("y = Concat<axis=1>(m, s)", (1, [4, 7])),
    "counted from behind": ("y = Concat<axis=-3>(m, s)", (1, [4, 7])),
    "in turn": ("t = Concat<axis=1>(m, s) y = Concat<axis=1>(t, d)", (1, [4, 7, 9])),
    "of one kind beside another": ("y = Concat<axis=1>(b, d, c, s)", (1, [9, 12])),
    "moved": ("r = Reshape(m, flat) q = Reshape(s, flat) t = Concat<axis=1>(r, q) y = Concat"
              "<axis=2>(t, t)", None),
    "moved, along the other axis": ("r = Reshape(m, flat) q = Reshape(s, flat) "
                                    "y = Concat<axis=1>(r, q)", (1, [4, 7])),
    "of one kind": ("y = Concat<axis=1>(b, c, d)", None),
    "not joined": ("y = Add(b, m)", None),
}  # fmt: skip


def net(nodes):
    used = {"flat": np.array([0, 0, -1])} if "flat" in nodes else {}
    text = f"(float[2,3,5,5] x) => (float[] y) {{ {HEAD} {nodes} }}"
    weights = {f"w{n}": (n, 3, 1, 1) for n in (2, 3, 4)}
    return build(text, **weights, k=np.float32(300), **used)


@pytest.mark.parametrize(("nodes", "expected"), JOINED.values(), ids=JOINED)
def test_parts_are_of_one_kind_each(nodes, expected):
    assert parts(from_proto(net(nodes))) == ({} if expected is None else {"y": expected})


def test_parts_are_cut_out_as_they_are_called():
    x, y = np.arange(24).reshape(2, 3, 4), np.arange(4)
    cut = apart({"x": x, "y": y}, {"x": (1, [1, 3])})
    assert [*cut] == ["x", "x[:, 0:1]", "x[:, 1:3]", "y"]
    np.testing.assert_array_equal(cut["x[:, 0:1]"], x[:, 0:1])
    np.testing.assert_array_equal(cut["x[:, 1:3]"], x[:, 1:3])


def test_a_part_that_is_much_smaller_has_a_figure_of_its_own(tmp_path):
    proto = net(JOINED["boxes and scores"][0])
    samples = [feeds(proto, seed) for seed in range(16)]
    report, file = quantize(proto, tmp_path, samples, validate=samples, min_sqnr=25.0)
    for found in (report.fidelity, report.validation):
        assert [*found.outputs] == ["y", "y[:, 0:4]", "y[:, 4:7]"]
        assert found.outputs["y[:, 4:7]"].sqnr > 25.0
    truth, result = (run(p, samples[0])["y"][:, 4:7] for p in (proto, onnx.load(file)))
    assert np.square(truth - result).sum() < np.square(truth).sum() / 10**2.3


def test_search_relieves_for_a_part_that_the_whole_hides(tmp_path):
    proto = net(JOINED["boxes and scores"][0])
    samples = [feeds(proto, seed) for seed in range(16)]
    report, _ = quantize(proto, tmp_path, samples, min_sqnr=28.0, bits=2)
    least = min(fidelity.sqnr for fidelity in report.fidelity.outputs.values())
    assert report.fit.reliefs and least > 26.0
