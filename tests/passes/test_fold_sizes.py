"""Sizes that fixed inputs imply are constants, whatever the batch."""

import numpy as np
import pytest

from onnxq.passes.fold_sizes import FoldSizes
from tests.graphs import after, build, feeds, ops, run

SAME = (
    "s{n} = Shape({x}) h{n} = Gather(s{n}, axis) f{n} = Cast<to=1>(h{n}) d{n} = Div(f{n}, two) "
    "c{n} = Ceil(d{n}) m{n} = Sub(c{n}, one) l{n} = Clip(m{n}, one, ) k{n} = Cast<to=7>(l{n}) "
    "u{n} = Unsqueeze(k{n}, zero) b{n} = Concat<axis=0>(zeros, u{n}, u{n}) "
    "p{n} = Pad({x}, b{n}) {y} = Conv<strides=[2,2]>(p{n}, w)"
)
NUMBERS = {"axis": np.array(2), "two": np.float32(2), "one": np.float32(1), "zero": np.array([0]),
           "zeros": np.zeros(6, np.int64), "w": (3, 3, 3, 3)}  # fmt: skip


def test_what_is_known_makes_more_known():
    nodes = " ".join(SAME.format(n=n, x=f"x{n}", y=f"x{n + 1}") for n in range(3))
    proto = build(f"(float[n,3,16,16] x0) => (float[] x3) {{ {nodes} }}", **NUMBERS)
    model, outcome = after(proto, FoldSizes())
    assert ops(model) == ["Pad", "Conv"] * 3
    assert sum(edit.what == "a size that is known" for edit in outcome.edits) == 3
    for batch in (1, 4):
        values = feeds(proto, batch=batch)
        found, wanted = (run(p, values)["x3"] for p in (model.to_proto(), proto))
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("nodes", "known"),
    [
        ("s = Shape(x) g = Gather(s, last)", 1),
        ("s = Shape(x) g = Slice(s, one, three)", 1),
        ("s = Shape(x) g = Slice(s, three, one, zero, back)", 1),
        ("s = Shape(x) g = Slice(s, zero, three)", 0),  # the batch is open
        ("s = Shape(x) g = Gather(s, zero)", 0),
        ("s = Shape<start=1>(x) g = Gather(s, zero)", 0),
        ("s = Shape(x) m = Cast<to=7>(zero) c = Gather(x, m) t = Shape(c) g = Gather(t, last)", 1),
    ],
)
def test_which_sizes_are_known(nodes, known):
    values = {"last": np.array([-1]), "one": np.array([1]), "three": np.array([3]),
              "zero": np.array([0]), "back": np.array([-1])}  # fmt: skip
    proto = build(
        f"(float[n,4,6] x) => (float[] y) {{ {nodes} f = Cast<to=1>(g) r = ReduceSum(f) "
        "y = Add(x, r) }",
        **{name: v for name, v in values.items() if f", {name}" in nodes or f"({name}" in nodes},
    )  # fmt: skip
    model, outcome = after(proto, FoldSizes())
    assert sum(edit.what == "a size that is known" for edit in outcome.edits) == known
    values = feeds(proto, batch=3)
    found, wanted = (run(p, values)["y"] for p in (model.to_proto(), proto))
    np.testing.assert_array_equal(found, wanted)


def test_a_size_of_minus_one_is_open():
    proto = build(
        "(float[n,4,6] x) => (float[n,4,6] y) { s = Shape(x) g = Slice(s, zero, one) "
        "o = Constant<value_ints=[1,1]>() r = Concat<axis=0>(g, o) t = Tile(state, r) "
        "y = Add(x, t) }",
        zero=np.array([0]), one=np.array([1]), state=np.ones((1, 4, 6), np.float32),
    )  # fmt: skip
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    model, outcome = after(proto, FoldSizes())
    assert not any(edit.what == "a size that is known" for edit in outcome.edits)
    written = model.to_proto()
    assert not any(
        size.HasField("dim_value") and size.dim_value < 0
        for value in (*written.graph.input, *written.graph.output)
        for size in value.type.tensor_type.shape.dim
    )
    values = {"x": np.zeros((3, 4, 6), np.float32)}
    np.testing.assert_array_equal(run(written, values)["y"], np.ones((3, 4, 6)))


def test_what_is_declared_inside_does_not_count():
    proto = build(
        "(float[n,4,m] x) => (float[] y) { a = Relu(x) s = Shape(a) g = Gather(s, axis) "
        "f = Cast<to=1>(g) y = Mul(a, f) }",
        axis=np.array(2),
    )
    info = proto.graph.value_info.add(name="a")
    info.CopyFrom(proto.graph.input[0])
    info.name = "a"
    info.type.tensor_type.shape.dim[2].dim_value = 5
    assert not after(proto, FoldSizes())[1].edits


QUERY = (
    "s = Shape(x) n = Gather(s, zero) r = Concat<axis=0>({repeats}) q = Tile(query, r) "
    "t = Shape(q) c = Gather(t, last) h = Div(c, two) e = Slice(v, zero, h, zero) "
    "y = MatMul(q, e)"
)


@pytest.mark.parametrize(
    ("repeats", "shape", "expands"),
    [("n, one, one", (1, 5, 4), True), ("one, n, one", (5, 1, 4), True),
     ("n, three, one", (1, 1, 4), True), ("n, three, one", (1, 5, 4), False),
     ("n, one, one", (2, 5, 4), False), ("n, one", (1, 5, 4), False)],
)  # fmt: skip
def test_what_is_repeated_for_each_image_has_the_sizes_of_one(repeats, shape, expands):
    """Queries of attention, whose sizes say which part of a weight is theirs."""
    numbers = {"zero": np.array([0]), "one": np.array([1]), "three": np.array([3]),
               "last": np.array([-1]), "two": np.array([1])}  # fmt: skip
    text = QUERY.format(repeats=repeats)
    proto = build(
        f"(float[n,3,4,4] x) => (float[] y) {{ {text} }}", query=shape, v=(4, 6), **numbers
    )
    model, outcome = after(proto, FoldSizes())
    assert any(edit.what == "an Expand now" for edit in outcome.edits) is expands
    assert ("Slice" not in ops(model)) is expands
    if repeats.count(",") == 2:
        values = feeds(proto, batch=2)
        found, wanted = (run(p, values)["y"] for p in (model.to_proto(), proto))
        np.testing.assert_array_equal(found, wanted)
