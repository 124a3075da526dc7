"""Which nodes run on integers, which are left float, and the reasons given."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from onnxq.graph.loading import from_proto
from onnxq.graph.placement import place
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.normalize import Normalize
from onnxq.passes.quantize_activations import PRODUCT, QuantizeActivations
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.pipeline import run as run_passes
from tests.graphs import build, feeds, quantize, run

IMAGE = "(float[1,3,8,8] x) => (float[] y)"
CONVS = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3)}
FIRST = "a = Conv<pads=[1,1,1,1]>(x, w1, b1)"

FOLLOWS = "nothing that follows runs on integers"
BEFORE = "an input comes from a float operator"


def placed(graph, kept=(), **weights):
    model = from_proto(build(graph, **weights))
    run_passes(model, (Normalize(),), None)
    model.kept_float = dict.fromkeys(kept, "kept by --keep-float")
    return place(model)


def skips(report):
    return {s.where: s.why for s in report.outcomes["quantize-activations"].skips}


DETECTOR = build(
    "(float[1,3,8,8] x) => (float[] y) { a = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(a) "
    "p = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r) "
    "u = Conv(r, head) ur = Reshape(u, five) ut = Transpose<perm=[0,1,3,4,2]>(ur) "
    "uf = Reshape(ut, rows) v = Conv(p, head) vr = Reshape(v, small) "
    "vt = Transpose<perm=[0,1,3,4,2]>(vr) vf = Reshape(vt, rows) "
    "all = Concat<axis=1>(uf, vf) box, size, score = Split<axis=2>(all, parts) "
    "place = Add(box, grid) side = Exp(size) scaled = Mul(side, anchors) prob = Sigmoid(score) "
    "far = Mul(place, stride) y = Concat<axis=2>(far, scaled, prob) }",
    w1=(8, 3, 3, 3), b1=(8,), head=(12, 8, 1, 1), five=np.array([1, 2, 6, 8, 8]),
    small=np.array([1, 2, 6, 4, 4]), rows=np.array([1, -1, 6]), parts=np.array([2, 2, 2]),
    grid=(1, 160, 2), anchors=(1, 160, 2), stride=np.float32(8),
)  # fmt: skip


def test_the_decoder_of_a_detector_stays_float_behind_its_last_convolutions(tmp_path):
    report, file = quantize(DETECTOR, tmp_path)
    assert set(report.kernels.integer) == {"Conv_a", "Conv_u", "Conv_v"}
    assert skips(report) == {
        "Concat_all": FOLLOWS,
        "Add_place": "it has a constant operand that is not one finite number",
        "Mul_scaled": "it has a constant operand that is not one finite number",
        "Sigmoid_prob": FOLLOWS,
        "Mul_far": BEFORE,
        "Concat_y": FOLLOWS,
    }
    decoder = {"Split", "Exp", "Sigmoid", "Add", "Mul", "Concat"}
    assert decoder <= report.kernels.operators.keys()
    values = feeds(DETECTOR)
    expected, found = run(DETECTOR, values)["y"], run(onnx.load(file), values)["y"]
    for columns in (slice(0, 2), slice(2, 4), slice(4, 6)):  # places, sizes, scores
        span = np.ptp(expected[..., columns])
        np.testing.assert_allclose(found[..., columns], expected[..., columns], atol=0.05 * span)


def test_what_only_rearranges_codes_runs_on_them_as_far_as_the_decoder():
    placement = placed(f"{IMAGE} {{ {FIRST} t = Transpose(a) f = Reshape(t, n) y = Exp(f) }}",
                       **CONVS, n=np.array([1, -1]))  # fmt: skip
    assert placement.moves == {"Transpose_t", "Reshape_f"}
    assert placement.born == {"a", "t", "f"}


@pytest.mark.parametrize(("factor", "integer"), [(1 / 60, True), (1 / 70, False)])
def test_a_concat_of_ranges_64_fold_apart_stays_float(tmp_path, factor, integer):
    proto = build(
        f"{IMAGE} {{ {FIRST} s = Mul(a, factor) c = Concat<axis=1>(a, s) y = Conv(c, w3) }}",
        **CONVS, w3=(4, 16, 1, 1), factor=np.float32(factor),
    )  # fmt: skip
    report, _ = quantize(proto, tmp_path)
    found = skips(report)
    if integer:
        assert found == {}
        assert report.kernels.operators["QLinearConcat"] == 1
    else:
        assert found["Concat_c"] == ("its inputs' ranges differ 70-fold, too much for one grid")
        assert report.kernels.operators["QLinearMul"] == 0


@pytest.mark.parametrize("asked", [False, True])
def test_a_product_of_two_activations_stays_float_unless_it_is_asked_for(tmp_path, asked):
    proto = build(
        "(float[2,5,8] x) => (float[] y) { q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) "
        "t = Transpose<perm=[0,2,1]>(k) s = MatMul(q, t) p = Softmax(s) o = MatMul(p, v) "
        "y = MatMul(o, wo) }",
        wq=(8, 8), wk=(8, 8), wv=(8, 8), wo=(8, 8),
    )  # fmt: skip
    report, _ = quantize(proto, tmp_path, attention=asked)
    products = {} if asked else {"MatMul_s": PRODUCT, "MatMul_o": PRODUCT}
    assert skips(report) == products
    assert set(report.kernels.integer) == {"MatMul_q", "MatMul_k", "MatMul_v", "MatMul_y"}
    integer = ("MatMulIntegerToFloat", "QLinearMatMul")
    found, floats = (
        sum(report.kernels.operators[op] for op in ops)
        for ops in (integer, ("MatMul", "FusedMatMul"))
    )
    assert (found, floats) == ((6, 0) if asked else (4, 2))


@pytest.mark.parametrize(
    ("kept", "integer", "moves"),
    [
        ((), {"Conv_a", "Add_s", "Conv_y"}, {"MaxPool_p"}),
        (("Conv_a",), {"Conv_y"}, set()),
        (("Add_s",), {"Conv_a", "Conv_y"}, set()),
        (("MaxPool_p",), {"Conv_a", "Conv_y"}, set()),
        (("Relu_r",), {"Conv_a", "Conv_y"}, set()),
        (("Conv_y",), {"Conv_a"}, set()),
    ],
)
def test_what_the_user_keeps_float_stays_float_and_so_does_what_hangs_on_it(kept, integer, moves):
    placement = placed(
        f"{IMAGE} {{ {FIRST} r = Relu(a) s = Add(r, r) p = MaxPool<kernel_shape=[2,2]>(s) "
        "y = Conv(p, w2) }",
        kept, **CONVS,
    )  # fmt: skip
    assert (placement.integer, placement.moves) == (integer, moves)
    assert all(name not in placement.integer | placement.moves for name in kept)


@pytest.mark.parametrize(
    ("nodes", "tensor", "absorbed"),
    [
        ("r = Relu(a) y = Conv(r, w2)", "r", ["Relu_r"]),
        ("r = Clip(a, zero) y = Conv(r, w2)", "r", ["Clip_r"]),
        ("r = Relu(a) c = Clip(r, , one) y = Conv(c, w2)", "c", ["Relu_r", "Clip_c"]),
        ("r = Relu(a) s = Add(a, r) y = Conv(s, w2)", "a", []),
        ("m = ReduceMax(x) r = Clip(a, , m) y = Conv(r, w2)", "a", []),
        ("r = Tanh(a) y = Conv(r, w2)", "a", []),
    ],
)
def test_an_activation_is_absorbed_if_the_result_has_no_other_reader(nodes, tensor, absorbed):
    placement = placed(f"{IMAGE} {{ {FIRST} {nodes} }}", **CONVS, zero=np.float32(0),
                       one=np.float32(1))  # fmt: skip
    assert placement.results["Conv_a"] == tensor
    assert [node.name for node in placement.absorbed["Conv_a"]] == absorbed


def test_an_output_of_the_graph_is_never_absorbed():
    graph = f"(float[1,3,8,8] x) => (float[] y, float[] a) {{ {FIRST} y = Relu(a) }}"
    placement = placed(graph, **CONVS)
    assert placement.results == {"Conv_a": "a"}


@pytest.mark.parametrize(
    ("rest", "quantized"),
    [
        ("y = Identity(a)", False),
        ("y = Relu(a)", False),
        ("y = Softmax(a)", False),
        ("y = MatMul(a, w2)", True),
        ("r = Relu(a) y = MatMul(r, w2)", True),
        ("r = Relu(a) y = Softmax(r)", True),  # else onnxruntime would not fuse it
    ],
)
@pytest.mark.parametrize("layer", ["a = Gemm(x, w1)", "a = MatMul(x, w1)",
                                   "m = MatMul(x, w1) a = Add(m, b)"])  # fmt: skip
def test_a_dense_layer_returns_floats_unless_integers_are_wanted(layer, rest, quantized):
    placement = placed(
        f"(float[4,16] x) => (float[] y) {{ {layer} {rest} }}", w1=(16, 8), w2=(8, 5), b=(8,)
    )
    first = layer.split("=")[1].split("(")[0].strip() + "_" + layer[0]
    assert first in placement.integer
    assert (first in placement.results) == quantized
    assert not placement.why_float


@pytest.mark.parametrize(
    ("nodes", "where", "why"),
    [
        ("h = Add(x, x) y = Conv(h, w1)", "Add_h", BEFORE),
        ("a = Conv(x, w1) y = Sigmoid(a)", "Sigmoid_y", FOLLOWS),
        ("a = Conv(x, w1) h = Add(a, b) y = Conv(h, w2)", "Add_h",
         "it has a constant operand that is not one finite number"),
        ("a = Conv(x, w1) h = Mul(a, nan) y = Conv(h, w2)", "Mul_h",
         "it has a constant operand that is not one finite number"),
        ("a = Conv(x, w1) h = Concat<axis=1>(a, b) y = Conv(h, w5)", "Concat_h",
         "it has a constant operand"),
        ("a = Conv(x, w1) h = AveragePool<kernel_shape=[2,2],dilations=[2,2]>(a) y = Conv(h, w4)",
         "AveragePool_h", "it is dilated"),
        ("y = ConvTranspose(x, w3)", "ConvTranspose_y",
         "ConvTranspose has no integer kernel in onnxruntime; its weight is stored quantized"),
        ("y = MatMul(w6, x)", "MatMul_y",
         "its weight is the left operand; its weight is stored quantized"),
        ("y = MatMul(x, w7)", "MatMul_y",
         "its weight is a batch of matrices; its weight is stored quantized"),
        ("y = MatMul(x, v)", "MatMul_y", "its weight is a vector"),
        ("a = ReduceSum(x, n) b2 = Reshape(a, one) y = Conv(x, w8, b2)", "Conv_y",
         "its bias is not one constant per output channel"),
        ("f = Flatten(x) t = Transpose(f) y = Gemm<transA=1>(t, w9)", "Gemm_y",
         "its data operand is transposed or its bias scaled; its weight is stored quantized"),
    ],
)  # fmt: skip
def test_whatever_stays_float_has_its_reason(nodes, where, why):
    placement = placed(
        f"(float[1,3,8,8] x) => (float[] y) {{ {nodes} }}", opset=19,
        w1=(8, 3, 3, 3), w2=(8, 8, 3, 3), w3=(3, 8, 3, 3), w4=(8, 8, 1, 1), w5=(4, 16, 1, 1),
        w6=(8, 8), w7=(1, 3, 8, 8), w8=(1, 3, 3, 3), w9=(192, 5), b=(1, 8, 6, 6),
        nan=np.float32("nan"), n=np.array([0, 1, 2, 3]), one=np.array([1]),
        v=(8,),
    )  # fmt: skip
    assert placement.why_float[where] == why
    assert where not in placement.integer


def test_a_dense_layer_beside_a_relu_that_is_kept_float_runs_on_integers(tmp_path):
    proto = build(
        "(float[4,16] x) => (float[] y, float[] z) "
        "{ a = Gemm(x, w1) r = Relu(a) y = Gemm(r, w2) z = Softmax(a) }",
        w1=(16, 8), w2=(8, 5),
    )  # fmt: skip
    report, _ = quantize(proto, tmp_path, keep_float=("Relu_r",))
    assert report.kernels.floating == []


def test_shape_arithmetic_is_not_reported():
    placement = placed(
        "(float[N,3,8,8] x) => (float[] y) { a = Conv(x, w1) n = Shape(a) b = Gather(n, zero) "
        "c = Gather(n, two) d = Mul(c, c) e = Unsqueeze(b, first) f = Unsqueeze(d, first) "
        "s = Concat<axis=0>(e, minus, f) r = Reshape(a, s) y = MatMul(r, w2) }",
        w1=(8, 3, 3, 3), w2=(36, 4), zero=np.array(0), two=np.array(2), first=np.array([0]),
        minus=np.array([-1]),
    )  # fmt: skip
    assert placement.why_float == {}
    assert placement.moves == {"Reshape_r"}


IF = build(
    "(float[1,3,8,8] x, bool c) => (float[] y) { a = Conv<pads=[1,1,1,1]>(x, w1, b1) "
    "r = If (c) <then_branch = one () => (float[1,8,8,8] u) { u = Relu(a) }, "
    "else_branch = two () => (float[1,8,8,8] v) { v = Conv<pads=[1,1,1,1]>(k, w2) }> "
    "y = Conv<pads=[1,1,1,1]>(r, w2) }",
    k=(1, 8, 8, 8), **CONVS,
)  # fmt: skip


@pytest.mark.parametrize("bits", [8, 4])
def test_bodies_of_control_flow_are_left_alone(tmp_path, bits):
    samples = [feeds(IF, seed) | {"c": np.array(seed % 2 == 0)} for seed in range(4)]
    report, file = quantize(IF, tmp_path, samples, bits=bits)
    assert set(report.kernels.integer) == {"Conv_a", "Conv_y"}
    written = onnx.load(file)
    body = next(node for node in written.graph.node if node.op_type == "If")
    assert [[n.op_type for n in a.g.node] for a in body.attribute] == [["Relu"], ["Conv"]]
    for choice in (True, False):
        values = feeds(IF) | {"c": np.array(choice)}
        expected, found = run(IF, values)["y"], run(written, values)["y"]
        plain = run(written, values, optimize=False)["y"]
        np.testing.assert_allclose(found, plain, atol=1e-2 * np.abs(plain).max())
        if bits == 8:
            np.testing.assert_allclose(found, expected, atol=0.1 * np.abs(expected).max())


def test_custom_operators_are_left_alone_and_never_stop_a_conversion():
    proto = build(
        "(float[1,3,8,8] x) => (float[1,8,6,6] y) { a = Conv(x, w1, b1) "
        "t = acme.Conv<level = 3>(a, w2) r = Relu(t) s = acme.Add(r, r) y = Conv(s, w3) }",
        imports=', "acme" : 1', w3=(8, 8, 1, 1), **CONVS,
    )  # fmt: skip
    model = from_proto(proto)

    def collect(model, observers):
        for observer in observers.values():
            observer.update(np.linspace(-1, 1, 8, dtype=np.float32))
        return observers

    passes = (QuantizeWeights(bits=4), QuantizeActivations(), InsertQdq())
    outcomes = run_passes(model, passes, SimpleNamespace(collect=collect))
    reasons = {s.where: s.why for s in outcomes["quantize-activations"].skips}
    assert reasons == {
        "Conv_t": "a custom operator of acme",
        "Add_s": "a custom operator of acme",
    }
    written = model.to_proto()
    onnx.checker.check_model(written)
    custom = next(node for node in written.graph.node if node.domain == "acme")
    assert (custom.op_type, custom.attribute[0].i, list(custom.input)) == ("Conv", 3, ["a", "w2"])
    weighted = [node.name for node in written.graph.node if node.op_type == "Conv"]
    assert weighted == ["Conv_a", "Conv_t", "Conv_y"]


def test_a_residual_behind_a_float_stem_shares_the_grid_of_the_layer():
    model = from_proto(
        build(
            "(float[2,4,6,6] x) => (float[] y) "
            "{ stem = Conv<pads=[1,1,1,1]>(x, w, b) a = Conv<pads=[1,1,1,1]>(stem, w1, b1) "
            "r = Add(stem, a) y = Conv<pads=[1,1,1,1]>(r, w2, b2) }",
            w=(4, 4, 3, 3), b=(4,), w1=(4, 4, 3, 3), b1=(4,), w2=(4, 4, 3, 3), b2=(4,),
        )
    )  # fmt: skip
    stem, add = model.graph.nodes[0], model.graph.nodes[2]
    model.kept_float = {stem.name: "kept"}
    placement = place(model)
    assert add.name in placement.integer
    assert "stem" in placement.entries


@pytest.mark.parametrize(
    ("node", "float_op"),
    [
        ("h = Add(a, a)", "Add"),
        ("h = Mul(a, a)", "Mul"),
        ("h = Sigmoid(a)", "Sigmoid"),
        ("h = LeakyRelu(a)", "LeakyRelu"),
        ("h = Concat<axis=1>(a, a)", "Concat"),
        ("h = AveragePool<kernel_shape=[2,2]>(a)", "AveragePool"),
        ("h = GlobalAveragePool(a)", "GlobalAveragePool"),
        ("h = ReduceMean<axes=[2,3]>(a)", "ReduceMean"),
    ],
)
def test_what_is_kept_float_is_not_fused_into_an_integer_kernel(tmp_path, node, float_op):
    width = 16 if float_op == "Concat" else 8
    proto = build(
        f"{IMAGE} {{ {FIRST} {node} y = Conv(h, w) }}", w=(4, width, 1, 1), w1=(8, 3, 3, 3), b1=(8,)
    )
    kept = (f"{float_op}_h",)
    report, _ = quantize(proto, tmp_path, keep_float=kept)
    assert report.kernels.operators[float_op] == 1
    why = [x.why for out in report.outcomes.values() for x in out.skips if x.where == kept[0]]
    assert why
    assert why[0].startswith("kept by --keep-float")
    assert len(report.kernels.integer) == 2
