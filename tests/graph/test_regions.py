"""Which channels may be scaled together, by whom they are made and read, and what is in the way."""

import numpy as np
import pytest

from onnxq.graph.loading import from_proto
from onnxq.graph.regions import regions, unreached
from tests.graphs import build, feeds, run

HEAD = "(float[2,4,6,6] x) => (float[] y)"
FIRST = "a = Conv<pads=[1,1,1,1]>(x, w1, b1)"
WEIGHTS = {
    "w1": (8, 4, 3, 3), "b1": (8,), "w2": (5, 8, 1, 1), "w3": (8, 8, 1, 1), "depth": (8, 1, 3, 3),
    "halves": (6, 4, 1, 1), "wide": (5, 16, 1, 1), "up": (8, 3, 2, 2), "dense": (8, 5),
    "flat": (288, 5), "slope": (8, 1, 1),
    "c": np.linspace(1, 2, 8, dtype=np.float32).reshape(1, 8, 1, 1),
    "zero": np.float32(0), "one": np.float32(1), "six": np.float32(6), "two": np.float32(2),
    "hw": np.array([2, 3]), "scales": np.array([1, 1, 2, 2], np.float32), "rows": np.array([0, -1]),
    "spread": np.array([1, 2, 1, 1], np.float32), "pixels": np.array([-1, 8]), "vector": (8, 1, 1),
    "lone": np.array([2]), "from": np.array([0, 1]), "to": np.array([9, 9]), "by": np.array([2, 2]),
    "beside": np.array([0, 0, 1, 2, 0, 0, 3, 4]), "around": np.array([0, 5, 0, 0, 0, 3, 0, 0]),
    "less": np.array([0, -1, 0, 0, 0, 1, 0, 0]), "all": np.array([1, 2]), "lr": np.array([1, 1]),
}  # fmt: skip


def found_in(nodes, ceilings=False, head=HEAD, kept=(), opset=17, **weights):
    model = from_proto(build(f"{head} {{ {nodes} }}", opset=opset, **WEIGHTS | weights))
    model.kept_float = dict.fromkeys(kept, "kept by --keep-float")
    return model, regions(model, ceilings)


def ends(region):
    """Names of sources and sinks, each with its channels as a pair."""
    return tuple(
        {layer.name: (own.start, own.stop) for layer, own in found}
        for found in (region.sources, region.sinks)
    )


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Conv(a, w2)",
        "r = Relu(a) y = Conv(r, w2)",
        "r = LeakyRelu(a) y = Conv(r, w2)",
        "r = PRelu(a, slope) y = Conv(r, w2)",
        "r = Clip(a, zero) y = Conv(r, w2)",
        "r = Clip(a, , zero) y = Conv(r, w2)",
        "r = Min(a, c) y = Conv(r, w2)",
        "p = MaxPool<kernel_shape=[2,2],pads=[1,1,1,1]>(a) y = Conv(p, w2)",
        "p = AveragePool<kernel_shape=[2,2]>(a) y = Conv(p, w2)",
        "p = GlobalAveragePool(a) y = Conv(p, w2)",
        "p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, dense)",
        "p = GlobalAveragePool(a) f = Squeeze(p, hw) y = MatMul(f, dense)",
        "p = GlobalAveragePool(a) f = Reshape(p, pixels) r = Relu(f) y = Gemm(r, dense)",
        "p = ReduceMean<axes=[2,3]>(a) y = Conv(p, w2)",
        "p = ReduceMean<axes=[-1,-2],keepdims=0>(a) y = Gemm(p, dense)",
        "f = Flatten(a) y = Gemm(f, flat)",
        "f = Reshape(a, rows) r = Relu(f) y = MatMul(r, flat)",
        "u = Resize(a, , scales) y = Conv(u, w2)",
        "i = Identity(a) y = Conv(i, w2)",
        "s = Slice(a, from, to, hw, by) y = Conv(s, w2)",
        "p = Pad(a, beside) y = Conv(p, w2)",
        "p = Pad(a, beside, zero) y = Conv(p, w2)",
        'p = Pad<mode="edge">(a, beside) y = Conv(p, w2)',
        "m = Mul(two, a) y = Conv(m, w2)",
        "m = Div(a, two) y = Conv(m, w2)",
        "p = ReduceMax(x) g = Sigmoid(p) m = Mul(g, a) y = Conv(m, w2)",
        "n = Shape(a) z = Cast<to=1>(n) y = Conv(a, w2)",
        "y = Conv<group=2>(a, halves)",
        "y = Conv<group=8>(a, depth)",
        "y = ConvTranspose(a, up)",
        "y = ConvTranspose<group=2>(a, up)",
    ],
)
def test_factors_travel_from_one_layer_to_the_other(nodes):
    _, (region, *_) = found_in(f"{FIRST} {nodes}")
    assert region.reasons == ""
    assert region.free.all()
    assert ends(region) == ({"Conv_a": (0, 8)}, {next(reversed(ends(region)[1])): (0, 8)})
    assert region.sinks[0][0].output.name == "y"


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ("r = Sigmoid(a) y = Conv(r, w2)", "Sigmoid Sigmoid_r does not hand factors on"),
        ("r = HardSwish(a) y = Conv(r, w2)", "HardSwish HardSwish_r does not hand factors on"),
        ("r = Clip(a, zero, six) y = Conv(r, w2)",
         "Clip Clip_r cuts all channels off at one value"),
        ("r = Clip(a, one) y = Conv(r, w2)", "Clip Clip_r cuts all channels off at one value"),
        ("m = ReduceMax<keepdims=0>(x) r = Clip(a, , m) y = Conv(r, w2)",
         "Clip Clip_r cuts all channels off at one value"),
        ("r = Min(a, six) y = Conv(r, w2)", "Min Min_r does not hand factors on"),
        ("n = Concat<axis=1>(x, x) r = Min(a, n) y = Conv(r, w2)",
         "Min Min_r does not hand factors on"),
        ("r = Add(a, c) y = Conv(r, w2)", "Add Add_r adds to it what no layer makes"),
        ("n = Concat<axis=1>(x, x) r = Add(a, n) y = Conv(r, w2)",
         "Add Add_r adds to it what no layer makes"),
        ("b = Conv(x, one1) r = Add(a, b) y = Conv(r, w2)",
         "Add Add_r adds to it what no layer makes"),
        ("r = Concat<axis=1>(a, x, x) y = Conv(r, wide)",
         "Concat Concat_r joins it to what no layer makes"),
        ("r = Concat<axis=0>(a, a) y = Conv(r, w2)",
         "Concat Concat_r joins it to what no layer makes"),
        ("f = Flatten(a) c2 = Concat<axis=1>(f, f) y = Gemm(c2, long)",
         "Concat Concat_c2 joins it to what no layer makes"),
        ("r = Mul(a, vector) y = Conv(r, w2)", "Mul Mul_r multiplies it with another activation"),
        ("r = Mul(a, a) y = Conv(r, w2)", "Mul Mul_r multiplies it with another activation"),
        ("m = ReduceMax(x) r = Div(a, m) y = Conv(r, w2)", "Div Div_r does not hand factors on"),
        ("u = Resize(a, , spread) y = Conv(u, wide)", "Resize Resize_u does not hand factors on"),
        ("t = Transpose<perm=[0,2,3,1]>(a) y = MatMul(t, dense)",
         "Transpose Transpose_t does not hand factors on"),
        ("f = Flatten<axis=2>(a) y = MatMul(f, wf)", "Flatten Flatten_f does not hand factors on"),
        ("f = Reshape(a, pixels) y = Gemm(f, dense)",
         "Reshape Reshape_f does not hand factors on"),
        ("p = ReduceMean<axes=[1,2]>(a) y = Conv(p, tall)",
         "ReduceMean ReduceMean_p does not hand factors on"),
        ("y = MatMul(a, wm)",
         "MatMul MatMul_y, which reads it: its input channels lie along another axis"),
        ("y = MatMul(wl, a)", "MatMul MatMul_y, which reads it: its weight is the left operand"),
        ("r = Concat<axis=1>(a, a) y = Conv(r, wide)",
         "its channels meet one another in another order"),
        ("r = Conv(a, w3) s = Add(a, r) y = Conv(s, w2)", "Conv_r both makes and reads it"),
        ("s = Slice(a, from, to, all) y = Conv(s, less7)",
         "Slice Slice_s does not hand factors on"),
        ("s = Slice(a, from, to) y = Conv(s, w2)", "Slice Slice_s does not hand factors on"),
        ("p = Pad(a, beside, one) y = Conv(p, w2)", "Pad Pad_p does not hand factors on"),
        ("p = Pad(a, less) y = Conv(p, w2)", "Pad Pad_p does not hand factors on"),
        ('p = Pad<mode="wrap">(a, around) y = Conv(p, wide)', "Pad Pad_p does not hand factors on"),
        ("n = Shape(b1) k = Concat<axis=0>(n, n, n, n, n, n, n, n) p = Pad(a, k) y = Conv(p, wide)",
         "Pad Pad_p does not hand factors on"),
        ("r = PRelu(a, a) y = Conv(r, w2)", "PRelu PRelu_r does not hand factors on"),
        ("c1 = Cast<to=9>(one) y = If (c1) <then_branch = t () => (float[] u) { u = Relu(a) }, "
         "else_branch = e () => (float[] v) { v = Neg(a) }>",
         "the body of a control flow node reads a"),
    ],
)  # fmt: skip
def test_whatever_is_in_the_way_is_named(nodes, why):
    opset = 14 if "HardSwish" in nodes else 19 if "wrap" in nodes else 17
    _, (region, *_) = found_in(
        f"{FIRST} {nodes}", opset=opset, one1=(1, 4, 1, 1), long=(576, 5), wf=(36, 5), wm=(6, 5),
        wl=(5, 6), tall=(5, 1, 1, 1), less7=(5, 7, 1, 1),
    )  # fmt: skip
    assert why in region.reasons.split("; ")
    assert not region.free.any()


def test_what_multiplies_each_channel_may_make_and_read_a_region():
    nodes = "r = Relu(a) n = Clip(a, , zero) m = Conv<group=8>(n, each) h = Add(r, m) "
    model, (region, *_) = found_in(f"{FIRST} {nodes} y = Conv(h, w2)", each=(8, 1, 1, 1))
    assert region.reasons == ""
    assert region.free.all()
    assert not region.ceilings
    own = (0, 8)
    assert ends(region) == ({"Conv_a": own, "Conv_m": own}, {"Conv_m": own, "Conv_y": own})
    proto = model.to_proto()
    before = run(proto, feeds(proto), taps=["h", "m"])
    s = np.exp2(np.arange(8) - 3.0)
    region.divide(model, s)
    found = run(model.to_proto(), feeds(proto), taps=["h", "m"])
    np.testing.assert_allclose(found["y"], before["y"], rtol=1e-5, atol=1e-5)
    for name in ("h", "m"):
        np.testing.assert_allclose(found[name] * s.reshape(-1, 1, 1), before[name], rtol=1e-5)


def test_what_makes_other_channels_of_those_it_reads_is_in_the_way():
    nodes = "n = Relu(a) m = Conv<group=8>(n, each) h = Concat<axis=1>(m, n)"
    _, (region, *_) = found_in(f"{FIRST} {nodes} y = Conv(h, wide)", each=(8, 1, 1, 1))
    assert region.reasons == "Conv_m both makes and reads it"


def test_a_clip_from_zero_on_is_crossed_where_ceilings_are_wanted():
    nodes = f"{FIRST} r = Clip(a, zero, six) y = Conv(r, w2)"
    _, (region, _) = found_in(nodes, ceilings=True)
    (ceiling, own), *_ = region.ceilings
    assert (ceiling.node.name, ceiling.values.tolist(), own) == ("Clip_r", [6.0] * 8, slice(0, 8))
    assert region.free.all()
    _, (region, _) = found_in(nodes, ceilings=True, kept=("Clip_r",))
    assert region.reasons == "Clip Clip_r cuts all channels off at one value"


def test_ceilings_that_a_min_has_already_need_not_be_asked_for():
    _, (region, _) = found_in(f"{FIRST} r = Relu(a) m = Min(c, r) y = Conv(m, w2)")
    ((ceiling, _),) = region.ceilings
    np.testing.assert_array_equal(ceiling.values, WEIGHTS["c"].reshape(-1).astype(np.float64))


def test_the_terms_of_a_sum_are_one_region():
    _, (region, *_) = found_in(
        f"{FIRST} b = Conv<pads=[1,1,1,1]>(x, w1) r = Relu(b) s = Add(a, r) t = Add(s, a) "
        "u = Conv(t, w2) v = Conv(a, w2) y = Add(u, v)"
    )
    assert ends(region) == (
        {"Conv_a": (0, 8), "Conv_b": (0, 8)}, {"Conv_u": (0, 8), "Conv_v": (0, 8)}
    )  # fmt: skip
    assert region.free.all()
    assert {node.name for node in region.between} == {"Relu_r", "Add_s", "Add_t"}


@pytest.mark.parametrize("first", ["a", "b"])
def test_the_operands_of_a_concat_are_neighbours_whichever_is_met_first(first):
    layers = {"a": FIRST, "b": "b = Conv<pads=[1,1,1,1]>(x, small)"}
    order = [layers.pop(first), *layers.values()]
    _, (region, *_) = found_in(
        f"{' '.join(order)} d = Conv<pads=[1,1,1,1]>(x, small) v = Conv(a, w2) "
        "k = Concat<axis=1>(b, a) t = Concat<axis=1>(k, d) y = Conv(t, last)",
        small=(3, 4, 3, 3), last=(2, 14, 1, 1),
    )  # fmt: skip
    assert ends(region) == (
        {"Conv_b": (0, 3), "Conv_a": (3, 11), "Conv_d": (11, 14)},
        {"Conv_v": (3, 11), "Conv_y": (0, 14)},
    )
    assert region.free.tolist() == [True] * 14


def test_channels_keep_their_places_among_zeros_that_a_shortcut_pads():
    nodes = f"{FIRST} p = Pad(a, around)"
    _, (region, *_) = found_in(f"{nodes} y = Conv(p, wide)")
    assert ends(region) == ({"Conv_a": (5, 13)}, {"Conv_y": (0, 16)})
    assert region.free.tolist() == [False] * 5 + [True] * 8 + [False] * 3
    _, (other, *_) = found_in(f"{FIRST} p = Pad(a, lr, , one1) y = Conv(p, ten)", opset=18,
                              one1=np.array([1]), ten=(5, 10, 1, 1))  # fmt: skip
    assert ends(other) == ({"Conv_a": (1, 9)}, {"Conv_y": (0, 10)})
    _, (joint, *_) = found_in(f"{nodes} b = Conv<pads=[1,1,1,1]>(a, more) s = Add(p, b) "
                              "y = Conv(s, wide)", more=(16, 8, 3, 3))  # fmt: skip
    assert joint.reasons == "Conv_b both makes and reads it"
    _, (joint, *_) = found_in(f"{nodes} b = Conv<pads=[1,1,1,1]>(x, more) s = Add(p, b) "
                              "y = Conv(s, wide)", more=(16, 4, 3, 3))  # fmt: skip
    assert joint.free.all()


def test_only_the_channels_that_something_touches_are_frozen():
    _, (region, *_) = found_in(
        f"{FIRST} b = Conv<pads=[1,1,1,1]>(x, w1) s = Sigmoid(b) r = ReduceMax(s) "
        "k = Concat<axis=1>(a, b) t = Conv(k, wide) y = Add(t, r)"
    )
    assert region.free.tolist() == [True] * 8 + [False] * 8
    assert region.reasons == "Sigmoid Sigmoid_s does not hand factors on"


def test_a_channel_without_a_reader_is_not_free_and_a_region_without_one_says_so():
    head = "(float[2,4,6,6] x) => (float[] y, float[] a)"
    _, (region,) = found_in("a = Conv(x, w2b) y = ReduceMax(a)", head=head, w2b=(8, 4, 1, 1))
    assert region.reasons.split("; ") == [
        "a is an output of the model", "ReduceMax ReduceMax_y does not hand factors on"
    ]  # fmt: skip
    _, (region,) = found_in("a = Conv(x, w2b) n = Shape(a) y = Cast<to=1>(n)", w2b=(8, 4, 1, 1))
    assert region.reasons == "no layer reads it"
    assert not region.free.any()


def test_a_layer_that_adds_what_it_reads_is_in_the_way():
    _, (region, *_) = found_in("a = Gemm(x, g) r = Relu(a) y = Gemm(r, h, r)", g=(6, 8), h=(8, 8),
                               head="(float[2,6] x) => (float[] y)")  # fmt: skip
    assert region.reasons == "Gemm Gemm_y, which reads it: it is its bias, too"


@pytest.mark.parametrize(
    "odd", ["MatMul(a, wm)", "MatMul(wl, a)", "MatMul(a, batch)", "Gemm<transA=1>(f, deep)"]
)
def test_a_layer_that_reads_along_another_axis_is_no_sink_of_what_stays_free(odd):
    _, (region, *_) = found_in(
        f"{FIRST} f = Flatten<axis=0>(a) b = Conv<pads=[1,1,1,1]>(x, w1) k = Concat<axis=1>(a, b) "
        f"m = {odd} n = ReduceMax(m) t = Conv(k, wide) y = Add(t, n)",
        wm=(6, 5), wl=(5, 6), batch=(2, 8, 6, 3), deep=(1, 3),
    )  # fmt: skip
    assert [layer.name for layer, _ in region.sinks] == ["Conv_t"]
    assert region.free.tolist() == [False] * 8 + [True] * 8


def test_a_layer_that_is_kept_float_is_left_alone_at_both_ends():
    nodes = f"{FIRST} b = Conv(a, w3) y = Conv(b, w2)"
    _, found = found_in(nodes, kept=("Conv_b",))
    assert [region.reasons for region in found[:2]] == [
        "Conv Conv_b, which reads it: kept by --keep-float",
        "Conv Conv_b, which makes it: kept by --keep-float",
    ]


def test_the_sum_that_is_the_bias_of_a_product_belongs_to_it():
    _, (region, _) = found_in(
        "p = MatMul(x, w) a = Add(p, b) r = Relu(a) y = MatMul(r, v)", w=(6, 8), b=(8,), v=(8, 3)
    )
    assert (region.name, ends(region)) == ("a", ({"MatMul_p": (0, 8)}, {"MatMul_y": (0, 8)}))
    head = "(float[2,4,6,6] x) => (float[] y, float[] p)"
    _, (region, _) = found_in(
        "p = MatMul(x, w) a = Add(p, b) y = MatMul(a, v)",
        head=head, w=(6, 8), b=(8,), v=(8, 3),
    )  # fmt: skip
    assert region.reasons == (
        "MatMul MatMul_p, which makes it: it is an output of the model before its bias is added"
    )


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ("h = MatMul(w, x) y = MatMul(h, v)", "its weight is the left operand"),
        ("m = ReduceMax<axes=[0,1,2],keepdims=0>(x) f = Flatten(x) a = Gemm(f, wg, m) "
         "y = Gemm(a, wh)", "its bias is not one constant per output channel"),
    ],
)  # fmt: skip
def test_a_source_whose_channels_cannot_be_divided_says_why(nodes, why):
    _, (region, *_) = found_in(nodes, w=(5, 6), v=(6, 3), wg=(144, 6), wh=(6, 3))
    assert region.reasons.endswith(why)
    assert not region.free.any()


def test_what_layers_read_and_no_region_comes_near_is_told():
    model, found = found_in(f"{FIRST} s = Sigmoid(a) t = Neg(s) b = Conv(t, w3) r = Relu(b) "
                            "m = Exp(r) y = Conv(m, w2)")  # fmt: skip
    assert dict(unreached(model, found)) == {
        "x": "the model is fed its channels",
        "t": "Neg Neg_t, not a layer, makes its channels",
    }
    assert [(region.name, region.reasons) for region in found] == [
        ("a", "Sigmoid Sigmoid_s does not hand factors on"),
        ("b", "Exp Exp_m does not hand factors on"),
        ("y", "y is an output of the model"),
    ]


def test_what_layers_have_in_common_is_not_scaled_for_one_of_them():
    both = "b = Conv(a, wide) c = Conv(a, wide) d = Conv(b, other) e = Conv(c, other)"
    weights = {"w1": (40, 4, 3, 3), "b1": (40,), "wide": (40, 40, 1, 1), "other": (4, 40, 1, 1)}
    nodes = f"{FIRST} {both} y = Add(d, e)"
    _, found = found_in(nodes, **weights)
    told = "other layers have its weight, too"
    obstacles = {region.name: {why for why, _ in region.obstacles} for region in found}
    assert obstacles["a"] == {f"Conv Conv_{n}, which reads it: {told}" for n in "bc"}
    assert obstacles["b"] == {f"Conv Conv_b, which makes it: {told}"}
    assert obstacles["c"] == {f"Conv Conv_c, which makes it: {told}"}
