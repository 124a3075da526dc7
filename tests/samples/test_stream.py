"""Piece by piece is as good as at once: the same values, every node once, nothing kept for long."""

import numpy as np
import pytest

from onnxq.graph.loading import from_proto
from onnxq.runtime import Session
from onnxq.samples import stream
from onnxq.samples.data import Batch
from onnxq.samples.stream import Stream
from tests.graphs import build, feeds

BRANCHES = build(
    "(float[N,3,8,8] x) => (float[] y) { a = Conv<pads=[1,1,1,1]>(x, w1) b = Relu(a) "
    "c = Conv<pads=[1,1,1,1]>(b, w2) d = Add(b, c) e = Relu(d) y = Conv(e, w3) }",
    w1=(4, 3, 3, 3), w2=(4, 4, 3, 3), w3=(2, 4, 1, 1),
)  # fmt: skip
BATCHES = [Batch(feeds(BRANCHES, seed, batch=2), [0, 1], 2) for seed in range(3)]
NAMES = ("a", "b", "c", "d", "e", "y")


@pytest.fixture
def pieces(monkeypatch):
    """The nodes of every piece that is run."""
    ran = []

    def record(proto, nodes, *rest):
        ran.append(set(nodes))
        return part(proto, nodes, *rest)

    part = stream.part
    monkeypatch.setattr(stream, "part", record)
    return ran


def wanted(name, batches=BATCHES):
    session = Session(from_proto(BRANCHES), taps=NAMES)
    return [session.run(batch.feeds)[name] for batch in batches]


def test_tensors_are_those_of_the_whole_model(pieces):
    found = Stream(from_proto(BRANCHES), BATCHES)
    for name in NAMES:
        for x, y in zip(found[name], wanted(name), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    assert sum(map(len, pieces)) == len(set().union(*pieces)) == len(NAMES)


def test_only_what_is_needed_runs(pieces):
    found = Stream(from_proto(BRANCHES), BATCHES)
    found["b"]
    assert len(pieces[0]) == 2
    found["b"]
    assert len(pieces) == 1


def test_what_nobody_reads_any_more_is_let_go():
    found, size = Stream(from_proto(BRANCHES), BATCHES), 6 * 8 * 8 * 4
    found["a"]
    assert found.nbytes == 4 * size
    found["c"]
    assert found.nbytes == 8 * size  # b and c, for their sum
    found["y"]
    assert found.nbytes == 2 * size
    with pytest.raises(KeyError):
        found["a"]


def test_a_fixed_tensor_takes_the_place_of_what_computes_it(pieces):
    found = Stream(from_proto(BRANCHES), BATCHES)
    found.fix("w2", np.zeros((4, 4, 3, 3), np.float32))
    found.fix("a", np.ones((1, 4, 1, 1), np.float32))
    assert all((x == 0).all() for x in found["c"])
    assert all((x == 1).all() for x in found["d"])
    assert not any("Conv_a" in nodes for nodes in pieces)


def test_later_nodes_read_what_a_tensor_was_scaled_to():
    found = Stream(from_proto(BRANCHES), BATCHES)
    plain = found["a"]
    found.scale("a", np.full(4, 2.0), np.arange(4.0), 1)
    for x, b in zip(plain, found["b"], strict=True):
        np.testing.assert_allclose(
            b, np.maximum(2 * x + np.arange(4).reshape(4, 1, 1), 0), atol=1e-5
        )


def test_rows_that_only_fill_a_batch_are_left_out():
    filled = Stream(from_proto(BRANCHES), [Batch(BATCHES[0].feeds, [0], 1)])
    assert [len(x) for x in filled["a"]] == [1]
    assert [len(x) for x in filled["y"]] == [1]


def test_a_body_reads_tensors_from_outside(pieces):
    proto = build(
        "(float[2,4] x, bool flag) => (float[2,4] y) { a = Relu(x) b = Neg(a) "
        "y = If(flag) <then_branch = yes () => (float[2,4] p) { p = Add(a, b) }, "
        "else_branch = no () => (float[2,4] q) { q = Sub(a, b) }> }"
    )
    x = np.array([[1, -1, 2, 0]] * 2, np.float32)
    found = Stream(from_proto(proto), [Batch({"x": x, "flag": np.array(False)}, [0, 1], 2)])
    found["b"]
    np.testing.assert_array_equal(found["y"][0], 2 * np.maximum(x, 0))
    assert [len(nodes) for nodes in pieces] == [2, 1]


SEQUENCE = build(
    "(float[N,4,3,3] x) => (float[] y) { b = Relu(x) s = SplitToSequence<axis=1>(b, two) "
    "c = SequenceAt(s, nil) d = Neg(c) e = SequenceAt(s, one) y = Sub(d, e) }",
    two=np.array(2), nil=np.array(0), one=np.array(1),
)  # fmt: skip


def test_what_a_sequence_holds_is_read_piece_by_piece():
    batches = [Batch(feeds(SEQUENCE, seed, batch=2), [0, 1], 2) for seed in range(3)]
    names = ("c", "d", "e", "y")
    session = Session(from_proto(SEQUENCE), taps=names)
    found = Stream(from_proto(SEQUENCE), batches)
    for name in names:
        for x, batch in zip(found[name], batches, strict=True):
            np.testing.assert_array_equal(x, session.run(batch.feeds)[name])
