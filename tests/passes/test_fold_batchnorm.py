import numpy as np
import pytest

from onnxq.graph.loading import from_proto
from onnxq.passes.absorb_batchnorm import AbsorbBatchnorm
from onnxq.passes.fold_batchnorm import FoldBatchnorm
from onnxq.passes.normalize import Normalize
from tests.graphs import after, build, feeds, norm, ops, run

NORM = "BatchNormalization"
IMAGE = "(float[2,4,6,6] x) => (float[] y)"
ROWS = "(float[3,4] x) => (float[] y)"


def same(proto, model):
    """The model computes what the file did."""
    given = feeds(proto)
    right = run(proto, given)["y"]
    found = run(model.to_proto(), given)["y"]
    np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5 * np.abs(right).max())


@pytest.mark.parametrize(
    ("layer", "weight"),
    [
        ("Conv<pads=[1,1,1,1]>(x, w)", (6, 4, 3, 3)),
        ("Conv<group=2>(x, w)", (6, 2, 3, 3)),
        ("ConvTranspose(x, w)", (4, 6, 3, 3)),
        ("ConvTranspose<group=2>(x, w)", (4, 3, 3, 3)),
        ("Gemm(x, w)", (4, 6)),
        ("Gemm<transB=1>(x, w)", (6, 4)),
    ],
)
def test_a_norm_is_folded_into_the_layer_before_it(layer, weight):
    head = ROWS if "Gemm" in layer else IMAGE
    proto = build(f"{head} {{ a = {layer} y = {NORM}(a, g, s, m, v) }}", w=weight, **norm(6))
    model, outcome = after(proto, FoldBatchnorm())
    assert ops(model) == [layer.split("(")[0].split("<")[0]]
    assert [edit.what for edit in outcome.edits] == [f"folded into {model.graph.nodes[0].name}"]


@pytest.mark.parametrize(
    ("layer", "weight", "shift"),
    [
        ("Conv(a, w)", (6, 4, 3, 3), True),
        ('Conv<auto_pad="VALID">(a, w)', (6, 4, 3, 3), True),
        ("Conv<group=4>(a, w)", (8, 1, 3, 3), True),
        ("Conv<pads=[1,1,1,1]>(a, w)", (6, 4, 3, 3), False),
        ("ConvTranspose<pads=[1,1,1,1]>(a, w)", (4, 6, 3, 3), False),
        ("Gemm(a, w)", (4, 6), True),
    ],
)
def test_a_norm_is_folded_into_the_layer_after_it_where_that_is_exact(layer, weight, shift):
    head = ROWS if "Gemm" in layer else IMAGE
    proto = build(
        f"{head} {{ a = {NORM}(x, g, s, m, v) y = {layer} }}", w=weight, **norm(4, shift=shift)
    )
    assert len(ops(after(proto, FoldBatchnorm())[0])) == 1


@pytest.mark.parametrize(
    ("layer", "weight"),
    [
        ("Conv<pads=[1,1,1,1]>(a, w)", (6, 4, 3, 3)),
        ('Conv<auto_pad="SAME_LOWER">(a, w)', (6, 4, 3, 3)),
        ("ConvTranspose(a, w)", (4, 6, 3, 3)),
    ],
)
def test_a_padded_border_would_miss_the_offset_so_the_norm_becomes_a_layer(layer, weight):
    proto = build(f"{IMAGE} {{ a = {NORM}(x, g, s, m, v) y = {layer} }}", w=weight, **norm(4))
    model, outcome = after(proto, FoldBatchnorm())
    conv, reader = model.graph.nodes
    assert (conv.op, conv.attrs["group"], conv.inputs[1].shape) == ("Conv", 4, (4, 1, 1, 1))
    assert reader.inputs[0] is conv.outputs[0]
    assert [edit.what for edit in outcome.edits] == ["became a 1x1 depthwise Conv"]


def test_a_norm_between_other_operators_becomes_a_depthwise_layer():
    proto = build(f"{IMAGE} {{ a = Relu(x) b = {NORM}(a, g, s, m, v) y = Relu(b) }}", **norm(4))
    assert ops(after(proto, FoldBatchnorm())[0]) == ["Relu", "Conv", "Relu"]


def test_a_scale_apart_from_its_norm_is_folded_into_what_the_norm_became():
    """Caffe's Scale behind its BatchNorm, before the convolutions of a DenseNet."""
    proto = build(
        f"{IMAGE} {{ a = MaxPool<kernel_shape=[1,1]>(x) b = {NORM}(a, g, s, m, v) c = Mul(b, f) "
        "d = Add(c, o) e = Relu(d) y = Conv<pads=[1,1,1,1]>(e, w) }",
        w=(6, 4, 3, 3), f=(4, 1, 1), o=(4, 1, 1), **norm(4),
    )  # fmt: skip
    model, outcome = after(proto, AbsorbBatchnorm(), FoldBatchnorm())
    assert ops(model) == ["MaxPool", "Conv", "Relu", "Conv"]
    assert len(outcome.edits) == 3
    same(proto, model)
    assert {*model.moments} >= {model.graph.nodes[1].outputs[0].name}


def test_norms_in_a_row_are_all_folded():
    proto = build(
        f"{IMAGE} {{ a = Conv(x, w) b = {NORM}(a, g, s, m, v) y = {NORM}(b, g2, s2, m2, v2) }}",
        w=(6, 4, 3, 3), **norm(6), **norm(6, "2"),
    )  # fmt: skip
    assert ops(after(proto, FoldBatchnorm())[0]) == ["Conv"]


def test_a_layer_that_others_read_keeps_its_own_result():
    proto = build(
        f"{IMAGE} {{ a = Conv(x, w) b = {NORM}(a, g, s, m, v) y = Add(a, b) }}",
        w=(6, 4, 3, 3), **norm(6),
    )  # fmt: skip
    assert ops(after(proto, FoldBatchnorm())[0]) == ["Conv", "Conv", "Add"]


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ("a = Sigmoid(x) y = NORM(a, g, s, m, v)", "no layer beside it can absorb it exactly"),
        ("a = MatMul(w, x) y = NORM(a, g, s, m, v)", "no layer beside it can absorb it exactly"),
        ("a = Gemm<alpha=0.5>(x, w) y = NORM(a, g, s, m, v)", "no layer beside it"),
        ("a = Gemm(x, w, r) y = NORM(a, g, s, m, v)", "no layer beside it"),
        ("a = ReduceSum<keepdims=0>(x, n) y = NORM(x, a, s, m, v)", "its statistics are not"),
        ("y, p, q = NORM<training_mode=1>(x, g, s, m, v) z = Relu(p)", "it is in training mode"),
    ],
)
def test_what_cannot_be_folded_exactly_is_left_with_a_reason(nodes, why):
    proto = build(
        f"(float[4,4] x) => (float[] y) {{ {nodes.replace('NORM', NORM)} }}",
        w=(4, 4), r=(4, 1), n=np.array([0]), **norm(4),
    )  # fmt: skip
    model, outcome = after(proto, FoldBatchnorm())
    assert NORM in ops(model)
    assert [skip.why.startswith(why) for skip in outcome.skips] == [True]
    assert not outcome


def test_factors_of_a_gemm_are_no_obstacle_after_normalize():
    proto = build(
        f"{ROWS} {{ a = Gemm<alpha=0.5,beta=2.0>(x, w, b) y = {NORM}(a, g, s, m, v) }}",
        w=(4, 6), b=(6,), **norm(6),
    )  # fmt: skip
    assert ops(after(proto, Normalize(), FoldBatchnorm())[0]) == ["Gemm"]


def test_a_shared_weight_is_folded_for_its_own_reader_alone():
    proto = build(
        f"{IMAGE} {{ a = Conv(x, w) b = {NORM}(a, g, s, m, v) y = Conv(b, w) }}",
        w=(4, 4, 3, 3), **norm(4),
    )  # fmt: skip
    model, _ = after(proto, FoldBatchnorm())
    first, second = model.graph.nodes
    assert second.inputs[1].name == "w"
    assert first.inputs[1].name != "w"


def test_a_norm_that_is_kept_float_stays():
    proto = build(
        f"{IMAGE} {{ a = Conv(x, w) y = {NORM}(a, g, s, m, v) }}", w=(6, 4, 3, 3), **norm(6)
    )
    model = from_proto(proto)
    (name,) = (node.name for node in model.graph.nodes if node.op == NORM)
    model.kept_float = {name: "kept"}
    outcome = FoldBatchnorm().run(model, {})
    assert ops(model) == ["Conv", NORM]
    assert [(skip.where, skip.why) for skip in outcome.skips] == [(name, "kept")]


AFFINE = {
    "bias": "Add(a, each)",
    "bias first": "Add(each, a)",
    "difference": "Sub(a, row)",
    "difference from": "Sub(number, a)",
    "product": "Mul(a, each)",
    "product with a number": "Mul(long, a)",
    "quotient": "Div(a, row)",
}
NUMBERS = {
    "each": np.linspace(0.5, 2, 4, dtype=np.float32).reshape(1, 4, 1, 1),
    "row": np.linspace(-2, -0.5, 4, dtype=np.float32).reshape(4, 1, 1),
    "long": np.full((1, 1, 1), -0.7, np.float32),
    "number": np.float32(0.3),
    "zero": np.zeros((4, 1, 1), np.float32),
    "columns": np.linspace(0.5, 2, 6, dtype=np.float32),
    "deep": np.ones((1, 1, 4, 1, 1), np.float32),
    "inf": np.float32("inf"),
    "width": np.linspace(1, 2, 4, dtype=np.float32),
    "tower": np.full((1, 1, 1, 1, 1), 0.5, np.float32),
    "vast": np.float32(3e38),
}


def affine(text, **weights):
    used = {name: x for name, x in NUMBERS.items() if f"{name}," in text or f"{name})" in text}
    return build(text, **weights, **used)


@pytest.mark.parametrize("node", AFFINE.values(), ids=AFFINE)
@pytest.mark.parametrize("layer", ["Conv<pads=[1,1,1,1]>(x, w)", "ConvTranspose(x, w)"])
def test_arithmetic_behind_a_layer_is_folded_into_it(node, layer):
    proto = affine(f"{IMAGE} {{ a = {layer} y = {node} }}", w=(4, 4, 3, 3))
    model, outcome = after(proto, FoldBatchnorm())
    assert ops(model) == [layer.split("<")[0].split("(")[0]]
    assert len(outcome.edits) == 1
    same(proto, model)


@pytest.mark.parametrize(
    "node", ["Add(number, a)", "Sub(number, a)", "Mul(a, long)", "Div(a, long)"]
)
def test_arithmetic_with_a_number_before_a_layer_is_folded_into_it(node):
    proto = affine(f"{IMAGE} {{ a = Relu(x) b = {node} y = Conv(b, w) }}", w=(4, 4, 3, 3))
    model, _ = after(proto, Normalize(), FoldBatchnorm())
    assert ops(model) == ["Relu", "Conv"]
    same(proto, model)


def test_of_an_input_only_factors_are_folded_into_the_layer_that_reads_it():
    proto = affine(
        f"{IMAGE} {{ a = Sub(x, number) b = Div(a, number) y = Conv(b, w) }}", w=(4, 4, 3, 3)
    )
    model, _ = after(proto, FoldBatchnorm())
    assert ops(model) == ["Sub", "Conv"]
    same(proto, model)


@pytest.mark.parametrize(
    ("shape", "number"),
    [("1,1,8,8", (1, 3, 1, 1)), ("3,8,8", (1, 3, 1, 1)), ("3,8,8", (1, 1, 1, 1))],
)
def test_a_constant_that_broadcasts_its_data_stays(shape, number):
    proto = build(
        f"(float[{shape}] x) => (float[] y) {{ a = Relu(x) b = Mul(a, c) y = Conv(b, w) }}",
        w=(4, 3, 3, 3), c=number,
    )  # fmt: skip
    model, _ = after(proto, Normalize(), FoldBatchnorm())
    assert ops(model) == ["Relu", "Mul", "Conv"]


def test_a_norm_of_a_constant_keeps_its_data():
    proto = build(
        f"(float[1,4,6,6] x) => (float[] y) {{ a = {NORM}(k, g, s, m, v) b = Conv(a, w) "
        "y = Add(b, x) }",
        k=(1, 3, 6, 6), w=(4, 3, 1, 1), **norm(3),
    )  # fmt: skip
    model, _ = after(proto, FoldBatchnorm())
    assert ops(model) == ["Conv", "Add"]
    same(proto, model)


def test_arithmetic_on_rows_is_folded_into_a_gemm():
    proto = affine(f"{ROWS} {{ a = Gemm(x, w) b = Mul(a, columns) y = Add(b, number) }}", w=(4, 6))
    model, _ = after(proto, FoldBatchnorm())
    assert ops(model) == ["Gemm"]
    same(proto, model)


TOKENS = "(float[2,5,4] x) => (float[] y)"
ARRAYS = {
    "w": (4, 3),
    "batch": (2, 4, 3),
    "left": (5, 5),
    "conv": (3, 4, 1, 1),
    "some": np.linspace(0.5, 2, 3, dtype=np.float32),
    "line": np.linspace(0.5, 2, 3, dtype=np.float32).reshape(1, 1, 3),
    "column": np.linspace(0.5, 2, 3, dtype=np.float32).reshape(3, 1),
    "tall": np.linspace(0.5, 2, 5, dtype=np.float32).reshape(5, 1),
    "five": np.linspace(0.5, 2, 5, dtype=np.float32),
    "tower": np.full((1, 1, 1, 1, 1), 0.5, np.float32),
    "number": np.float32(0.3),
}


def with_arrays(text):
    used = {name: x for name, x in ARRAYS.items() if f"{name}," in text or f"{name})" in text}
    return build(text, **used, **(norm(3) if NORM in text else {}))


@pytest.mark.parametrize(
    ("nodes", "left"),
    [
        ("a = MatMul(x, w) y = Mul(a, some)", ["MatMul"]),
        ("a = MatMul(x, w) b = Add(some, a) y = Mul(line, b)", ["MatMul", "Add"]),
        ("a = MatMul(x, w) b = Add(a, some) y = Sub(b, some)", ["MatMul", "Add"]),
        ("a = MatMul(x, w) b = Mul(a, some) y = Add(b, some)", ["MatMul", "Add"]),
        ("a = MatMul(x, w) b = Mul(a, some) c = Add(b, some) y = Mul(c, some)", ["MatMul", "Add"]),
        ("a = MatMul(x, w) b = Sub(a, some) y = Add(b, some)", ["MatMul", "Add"]),
        (
            "a = MatMul(x, w) b = Transpose<perm=[0,2,1]>(a) c = Sub(b, column) y = Add(c, column)",
            ["MatMul", "Add", "Transpose"],
        ),
        (
            "a = MatMul(x, w) b = Add(a, some) c = Transpose<perm=[0,2,1]>(b) y = Mul(c, column)",
            ["MatMul", "Add", "Transpose"],
        ),
        (
            f"a = MatMul(x, w) b = Transpose<perm=[0,2,1]>(a) y = {NORM}(b, g, s, m, v)",
            ["MatMul", "Add", "Transpose"],
        ),
    ],
)
def test_scales_of_tokens_are_folded_in_either_order_of_axes(nodes, left):
    proto = with_arrays(f"{TOKENS} {{ {nodes} }}")
    model, _ = after(proto, FoldBatchnorm())
    assert ops(model) == left
    same(proto, model)


def test_a_scale_is_folded_into_a_convolution_before_a_transpose():
    nodes = "a = Conv(x, conv) b = Transpose<perm=[0,2,3,1]>(a) y = Mul(b, some)"
    proto = with_arrays(f"{IMAGE} {{ {nodes} }}")
    model, _ = after(proto, FoldBatchnorm())
    assert ops(model) == ["Conv", "Transpose"]
    same(proto, model)


@pytest.mark.parametrize(
    "nodes",
    [
        "a = MatMul(x, w) y = Mul(a, tall)",  # along another axis than the channels
        "a = MatMul(x, w) b = Transpose<perm=[0,2,1]>(a) y = Mul(b, five)",
        "a = MatMul(x, w) y = Mul(a, tower)",  # gives its result more axes
        "a = MatMul(x, w) b = Transpose(a) y = Mul(b, number)",  # of any number of axes
        "a = MatMul(x, w) b = Mul(a, number) y = Add(a, b)",
        "a = MatMul(x, w) b = Transpose<perm=[0,2,1]>(a) c = Mul(b, number) y = Add(b, c)",
        "a = MatMul(x, w) b = Transpose<perm=[0,1,2]>(a) c = Mul(b, number) y = Add(a, c)",
        "a = MatMul(x, batch) y = Mul(a, number)",
        "a = MatMul(left, x) y = Mul(a, number)",
        "a = MatMul(x, w) b = Relu(a) c = Add(b, number) y = Mul(c, number)",
        f"a = MatMul(x, w) y = {NORM}(a, g, s, m, v)",  # along the second axis, not the last
    ],
)
def test_arithmetic_on_tokens_that_is_no_map_of_channels_stays(nodes):
    head = "(float[2,3,4] x) => (float[] y)" if NORM in nodes else TOKENS
    proto = with_arrays(f"{head} {{ {nodes} }}")
    model, outcome = after(proto, FoldBatchnorm())
    assert ops(model) == ops(after(proto, Normalize())[0])
    assert not outcome.edits


def test_a_chain_is_folded_from_both_ends():
    proto = affine(
        f"{IMAGE} {{ a = Conv(x, w) b = Add(a, each) c = Mul(b, number) d = {NORM}(c, g, s, m, v) "
        "e = HardSwish(d) f = Mul(e, number) h = Add(f, number) y = Conv(h, w) }",
        w=(4, 4, 3, 3), **norm(4),
    )  # fmt: skip
    model, _ = after(proto, FoldBatchnorm())
    assert ops(model) == ["Conv", "HardSwish", "Conv"]
    same(proto, model)


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Relu(x) b = Add(a, number) y = Conv<pads=[1,1,1,1]>(b, w)",
        "a = Relu(x) b = Mul(a, each) y = Conv(b, w)",
        "a = Conv(x, w) y = Mul(a, vast)",
        "a = Conv(x, w) y = Mul(a, width)",
        "a = Conv(x, w) y = Mul(a, tower)",
        "a = Conv(x, w) y = Mul(a, a)",
        "a = Conv(x, w) b = Mul(a, number) y = Add(a, b)",
        "a = Conv(x, w) y = Div(number, a)",
        "a = Conv(x, w) y = Div(a, zero)",
        "a = Conv(x, w) y = Mul(a, inf)",
        "a = Conv(x, w) y = Mul(a, deep)",
        "a = Conv<pads=[1,1,2,2]>(x, w) y = Mul(a, columns)",
    ],
)
def test_arithmetic_that_is_no_map_of_channels_stays(nodes):
    proto = affine(f"{IMAGE} {{ {nodes} }}", w=(4, 4, 3, 3))
    model, outcome = after(proto, FoldBatchnorm())
    assert ops(model) == ops(after(proto, Normalize())[0])
    assert not outcome.edits
    assert not outcome.skips


def test_arithmetic_that_is_kept_float_stays():
    model = from_proto(affine(f"{IMAGE} {{ a = Conv(x, w) y = Add(a, each) }}", w=(4, 4, 3, 3)))
    model.kept_float = {"Add_y": "as asked"}
    FoldBatchnorm().run(model, {})
    assert ops(model) == ["Conv", "Add"]


def test_what_a_norm_tells_goes_through_arithmetic_behind_it():
    proto = affine(
        f"{IMAGE} {{ a = Conv(x, w) b = {NORM}(a, g, s, m, v) c = Mul(b, long) "
        "y = Add(c, number) }",
        w=(4, 4, 3, 3), **norm(4),
    )  # fmt: skip
    model, _ = after(proto, FoldBatchnorm())
    alone, _ = after(build(f"{IMAGE} {{ a = Conv(x, w) y = {NORM}(a, g, s, m, v) }}",
                           w=(4, 4, 3, 3), **norm(4)), FoldBatchnorm())  # fmt: skip
    mean, spread = alone.moments["y"]
    np.testing.assert_allclose(model.moments["y"][0], np.float32(-0.7) * mean + 0.3, rtol=1e-5)
    np.testing.assert_allclose(model.moments["y"][1], np.float32(0.7) * spread, rtol=1e-5)


@pytest.mark.parametrize(
    ("nodes", "stale"),
    [
        ("a = MatMul(x, w) b = Add(a, some) y = Mul(b, some)", {"a", "b"}),
        ("a = MatMul(x, w) b = Transpose<perm=[0,2,1]>(a) y = Mul(b, column)", {"a", "b"}),
        ("a = MatMul(x, w) b = Add(a, some) c = Transpose<perm=[0,2,1]>(b) y = Mul(c, column)",
         {"a", "b", "c"}),
    ],
)  # fmt: skip
def test_what_has_other_values_has_another_name(nodes, stale):
    model, _ = after(with_arrays(f"{TOKENS} {{ {nodes} }}"), FoldBatchnorm())
    assert not {t.name for node in model.graph.nodes for t in node.outputs} & stale


def test_what_a_norm_tells_is_not_told_of_another_axis():
    proto = build(
        f"{IMAGE} {{ a = Conv(x, w) b = {NORM}(a, g, s, m, v) c = Transpose<perm=[0,2,3,1]>(b) "
        "d = Mul(c, q) y = Relu(d) }",
        w=(4, 4, 1, 1), q=NUMBERS["width"], **norm(4),
    )  # fmt: skip
    model, _ = after(proto, FoldBatchnorm())
    assert ops(model) == ["Conv", "Transpose", "Relu"]
    known = {t.name for node in model.graph.nodes for t in node.outputs} & model.moments.keys()
    assert not known
