"""What every pass promises, held against every pass of the registry on the same small models."""

import numpy as np
import onnx
import pytest

from onnxq.graph.loading import from_proto
from onnxq.pipeline import REGISTRY, run
from onnxq.recipe import Recipe
from onnxq.recipes import PREPARATION
from tests.graphs import build, feeds, norm
from tests.graphs import run as ort_run

TOLERANCE, TOLERANCE_HALF = 1e-5, 2e-2

rng = np.random.default_rng(0)


def normal(*shape, dtype=np.float32):
    return (0.5 * rng.standard_normal(shape)).astype(dtype)


IMAGE = "(float[2,4,6,6] x) => (float[] y)"
ROWS = "(float[3,4] x) => (float[] y)"
NORM = "BatchNormalization"

MODELS = {
    "conv norm relu": build(
        f"{IMAGE} {{ a = Conv<pads=[1,1,1,1]>(x, w, b) c = {NORM}(a, g, s, m, v) y = Relu(c) }}",
        w=(6, 4, 3, 3), b=(6,), **norm(6),
    ),
    "grouped conv without bias, norm at the output": build(
        f"{IMAGE} {{ a = Conv<group=2>(x, w) y = {NORM}<epsilon=0.01>(a, g, s, m, v) }}",
        w=(6, 2, 3, 3), **norm(6),
    ),
    "norm conv unpadded": build(
        f"{IMAGE} {{ a = {NORM}(x, g, s, m, v) y = Conv(a, w, b) }}",
        w=(6, 4, 3, 3), b=(6,), **norm(4),
    ),
    "norm grouped conv unpadded": build(
        f"{IMAGE} {{ a = {NORM}(x, g, s, m, v) y = Conv<group=2>(a, w) }}",
        w=(6, 2, 3, 3), **norm(4),
    ),
    "norm conv padded": build(
        f"{IMAGE} {{ a = {NORM}(x, g, s, m, v) y = Conv<pads=[1,1,1,1]>(a, w, b) }}",
        w=(6, 4, 3, 3), b=(6,), **norm(4),
    ),
    "norm conv padded by auto_pad": build(
        f'{IMAGE} {{ a = {NORM}(x, g, s, m, v) y = Conv<auto_pad="SAME_UPPER">(a, w, b) }}',
        w=(6, 4, 3, 3), b=(6,), **norm(4),
    ),
    "norm without offset, conv padded": build(
        f"{IMAGE} {{ a = {NORM}(x, g, s, m, v) y = Conv<pads=[1,1,1,1]>(a, w) }}",
        w=(6, 4, 3, 3), **norm(4, shift=False),
    ),
    "norm without offset, grouped deconv": build(
        f"{IMAGE} {{ a = {NORM}(x, g, s, m, v) y = ConvTranspose<group=2>(a, w, b) }}",
        w=(4, 3, 3, 3), b=(6,), **norm(4, shift=False),
    ),
    "norm between relus": build(
        f"{IMAGE} {{ a = Relu(x) c = {NORM}(a, g, s, m, v) y = Relu(c) }}", **norm(4)
    ),
    "norm of three axes": build(
        f"(float[2,4,6] x) => (float[] y) {{ a = Relu(x) y = {NORM}(a, g, s, m, v) }}", **norm(4)
    ),
    "norm with computed statistics": build(
        f"{IMAGE} {{ a = ReduceMax<keepdims=0,axes=[0,2,3]>(x) y = {NORM}(x, g, a, m, v) }}",
        **norm(4),
    ),
    "norm of a layer that others read": build(
        f"{IMAGE} {{ a = Conv(x, w) c = {NORM}(a, g, s, m, v) y = Add(a, c) }}",
        w=(6, 4, 3, 3), **norm(6),
    ),
    "norm of a layer at an output": build(
        "(float[2,4,6,6] x) => (float[] y, float[] a) "
        f"{{ a = Conv(x, w) y = {NORM}(a, g, s, m, v) }}",
        w=(6, 4, 3, 3), **norm(6),
    ),
    "two norms": build(
        f"{IMAGE} {{ a = Conv(x, w) c = {NORM}(a, g, s, m, v) y = {NORM}(c, g2, s2, m2, v2) }}",
        w=(6, 4, 3, 3), **norm(6), **norm(6, "2"),
    ),
    "grouped deconv norm": build(
        f"{IMAGE} {{ a = ConvTranspose<group=2,strides=[2,2]>(x, w, b) "
        f"y = {NORM}(a, g, s, m, v) }}",
        w=(4, 3, 3, 3), b=(6,), **norm(6),
    ),
    "gemm norm": build(
        f"{ROWS} {{ a = Gemm<transB=1>(x, w, b) y = {NORM}(a, g, s, m, v) }}",
        w=(5, 4), b=(5,), **norm(5),
    ),
    "gemm with a bias for each row, norm": build(
        f"{ROWS} {{ a = Gemm(x, w, b) y = {NORM}(a, g, s, m, v) }}",
        w=(4, 3), b=(3, 1), **norm(3),
    ),
    "gemm with one bias, norm": build(
        f"{ROWS} {{ a = Gemm(x, w, b) y = {NORM}(a, g, s, m, v) }}", w=(4, 5), b=(1,), **norm(5)
    ),
    "gemm with factors, norm": build(
        f"{ROWS} {{ a = Gemm<alpha=0.5,beta=3.0>(x, w, b) y = {NORM}(a, g, s, m, v) }}",
        w=(4, 5), b=(5,), **norm(5),
    ),
    "gemm with factors and no bias, norm": build(
        f"{ROWS} {{ a = Gemm<alpha=0.5,beta=3.0>(x, w) y = {NORM}(a, g, s, m, v) }}",
        w=(4, 5), **norm(5),
    ),
    "norm gemm": build(
        f"{ROWS} {{ a = {NORM}(x, g, s, m, v) y = Gemm(a, w, b) }}", w=(4, 5), b=(1, 5), **norm(4)
    ),
    "norm gemm with factors": build(
        f"{ROWS} {{ a = {NORM}(x, g, s, m, v) y = Gemm<alpha=0.5,beta=3.0,transB=1>(a, w, b) }}",
        w=(5, 4), b=(5,), **norm(4),
    ),
    "norm transposed gemm": build(
        f"{ROWS} {{ a = {NORM}(x, g, s, m, v) y = Gemm<transA=1>(a, w, b) }}",
        w=(3, 5), b=(5,), **norm(4),
    ),
    "norm matmul": build(
        f"{ROWS} {{ a = {NORM}(x, g, s, m, v) c = MatMul(a, w) y = {NORM}(c, g2, s2, m2, v2) }}",
        w=(4, 5), **norm(4), **norm(5, "2"),
    ),
    "shared weight and bias": build(
        f"{IMAGE} {{ a = Conv(x, w, b) c = Conv(a, w, b) d = Mul(b, b) e = Reshape(d, r) "
        "y = Mul(c, e) }",
        w=(4, 4, 3, 3), b=(4,), r=np.array([1, 4, 1, 1]),
    ),
    "shared by gemm and matmul": build(
        f"{ROWS} {{ a = Gemm(x, w, b) c = Gemm<transB=1>(a, w, b) d = MatMul(c, w) "
        "y = Add(d, b) }",
        w=(4, 4), b=(4,),
    ),
    "identities": build(
        f"{IMAGE} {{ a = Identity(x) c = Conv(a, w) d = Identity(c) e, mask = Dropout(d) "
        "f = Concat<axis=1>(e) g = Pad(f, p) y = Identity(g) }",
        w=(4, 4, 3, 3), p=np.zeros(8, np.int64),
    ),
    "identities at the ends": build(
        "(float[2,4] x) => (float[] y, float[] z, float[] u, float[] k, bool[] mask) "
        "{ y = Identity(x) a = Relu(x) z = Identity(a) u = Identity(a) k = Identity(w) "
        "r, mask = Dropout(z) q = Neg(r) t = Neg(q) }",
        w=(2, 3),
    ),
    "casts": build(
        f"{IMAGE} {{ a = Cast<to=1>(x) c = Conv(a, w) d = Cast<to=1>(c) e = Cast<to=11>(d) "
        "f = Cast<to=1>(e) y = Relu(f) }",
        w=(4, 4, 3, 3),
    ),
    "constant nodes": build(
        "(float[4] x) => (float[] y, int64[2] n, float[] k) { "
        "a = Constant<value = float[4] {1, 2, 3, 4}>() c = Constant<value_float = 0.3>() "
        "d = Constant<value_floats = [1.5, 2.5, 3.5, 4.5]>() e = Constant<value_int = 3>() "
        "n = Constant<value_ints = [1, 2]>() k = Constant<value_float = 7.0>() "
        "f = Cast<to=1>(e) o = Add(x, a) p = Mul(o, c) q = Add(p, d) r = Mul(q, f) y = Add(r, k) }"
    ),
    "computed weights": build(
        f"{IMAGE} {{ h = Cast<to=1>(w16) c = Conv(x, h) q = Transpose<perm=[3,2,1,0]>(w) "
        "d = Conv(c, q) e = ConstantOfShape<value = float[1] {0.5}>(n) f = Conv(d, e) "
        "p, t = Split<axis=0>(two) i = Conv(f, p) y = Conv(i, t) }",
        w16=normal(4, 4, 1, 1, dtype=np.float16), w=(3, 3, 4, 6), n=np.array([2, 6, 1, 1]),
        two=(4, 2, 1, 1),
    ),
    "shape arithmetic": build(
        f"{IMAGE} {{ n = Shape(x) b = Gather(n, zero) c = Unsqueeze(b, zero1) "
        "d = Concat<axis=0>(c, rest) e = Reshape(x, d) y = MatMul(e, w) }",
        zero=np.array(0), zero1=np.array([0]), rest=np.array([-1]), w=(144, 3),
    ),
    "half precision": build(
        "(float16[2,4,6,6] x) => (float16[] y) { a = Conv<pads=[1,1,1,1]>(x, w, b) "
        f"c = {NORM}(a, g, s, m, v) d = Clip(c, lo, hi) e = Cast<to=1>(d) f = Cast<to=10>(e) "
        "h = Mul(f, f) y = ReduceMean<axes=[2,3]>(h) }",
        w=normal(6, 4, 3, 3, dtype=np.float16), b=normal(6, dtype=np.float16),
        lo=np.float16(-1), hi=np.float16(2),
        **{name: x.astype(np.float16) for name, x in norm(6).items()},
    ),
    "half precision in the middle": build(
        "(float[3,4] x) => (float[] y, float16[] z) { a = Cast<to=10>(x) c = Gemm(a, w, b) "
        "z = Relu(c) y = Cast<to=1>(z) }",
        w=normal(4, 5, dtype=np.float16), b=normal(5, dtype=np.float16),
    ),
    "gemm with factors": build(
        f"{ROWS} {{ a = Gemm<alpha=0.5,beta=3.0,transA=1,transB=1>(x, w, b) "
        "c = Gemm<alpha=2.0>(a, w2, b2) y = Gemm<beta=0.5>(c, w3) }",
        w=(5, 3), b=(4, 1), w2=(5, 2), b2=(2,), w3=(2, 2),
    ),
    "gemm with factors and a computed bias": build(
        f"{ROWS} {{ a = ReduceMax<axes=[1],keepdims=1>(x) "
        f"c = Gemm<alpha=0.5,beta=3.0>(x, w, a) y = {NORM}(c, g, s, m, v) }}",
        w=(4, 5), **norm(5),
    ),
    "gemm with the weight on the left": build(
        f"{ROWS} {{ a = Transpose(x) c = Gemm<alpha=0.5,beta=2.0>(w, a, b) y = Transpose(c) }}",
        w=(5, 4), b=(5, 1),
    ),
    "means": build(
        "(float[2,4,6,6] x) => (float[] a, float[] b, float[] c, float[] d, float[] e) "
        "{ a = ReduceMean<axes=[2,3]>(x) b = ReduceMean<axes=[-1,-2],keepdims=0>(x) "
        "c = ReduceMean<axes=[1]>(x) d = ReduceMean(x) e = ReduceMean<axes=[2]>(x) }"
    ),
    "means with axes as input": build(
        "(float[2,4,6,6] x, int64[2] n) => (float[] a, float[] b, float[] c, float[2,4,1,1] d) "
        "{ a = ReduceMean(x, hw) b = ReduceMean<keepdims=0>(x, wh) c = ReduceMean(x, ch) "
        "z = Mul(n, zero) k = Add(z, hw) d = ReduceMean(x, k) }",
        opset=18, hw=np.array([2, 3]), wh=np.array([-1, -2]), ch=np.array([1, 2]),
        zero=np.array(0),
    ),
    "means of other types and ranks": build(
        "(double[2,4,6,6] x, float[2,3,4] t, int64[1,2,3,3] n) => "
        "(double[] a, float[] b, int64[] c) { a = ReduceMean<axes=[2,3]>(x) "
        "b = ReduceMean<axes=[1,2]>(t) "
        "c = ReduceMean<axes=[2,3]>(n) }"
    ),
    "if": build(
        "(float[2,4,6,6] x, bool c) => (float[] y) { a = Conv<pads=[1,1,1,1]>(x, w, b) "
        "y = If (c) <then_branch = one () => (float[] u) { u = Relu(a) }, "
        "else_branch = two () => (float[] t) { q = Conv<pads=[1,1,1,1]>(a, w) t = Identity(q) }> }",
        w=(4, 4, 3, 3), b=(4,),
    ),
    "if with its own weights": build(
        f"(float[2,4,6,6] x, bool c) => (float[] y) {{ a = Conv(x, w) e = {NORM}(a, g, s, m, v) "
        "k = Constant<value_float = 2.0>() "
        "y = If (c) <then_branch = one () => (float[] u) { d = Mul(e, k) u = Relu(d) }, "
        "else_branch = two () => (float[] t) "
        "<float[1] n = {0.5}> { q = Constant<value_float = 3.0>() r = Mul(n, q) t = Mul(e, r) }> }",
        w=(4, 4, 3, 3), **norm(4),
    ),
    "if decided beforehand": build(
        "(float[2,4,6,6] x) => (float[] y) { c = Constant<value = bool {1}>() a = Relu(x) "
        "y = If (c) <then_branch = one () => (float[] u) { u = Conv(a, w) }, "
        "else_branch = two () => (float[] t) { t = Identity(a) }> }",
        w=(4, 4, 3, 3),
    ),
    "loop": build(
        "(float[2,4] x) => (float[2,4] y) { n = Constant<value = int64 {3}>() "
        "c = Constant<value = bool {1}>() "
        "y = Loop (n, c, x) <body = b (int64 i, bool k, float[2,4] h) => (bool l, float[2,4] o) "
        "{ l = Identity(k) q = MatMul(h, w) o = Tanh(q) }> }",
        w=(4, 4),
    ),
    "loop that is handed its weights": build(
        "(float[2,4] x) => (float[2,4] y, float[4,4] last) { n = Constant<value = int64 {3}>() "
        "c = Constant<value = bool {1}>() "
        "y, k, b1, last = Loop (n, c, x, w, b, v) <body = body (int64 i, bool go, float[2,4] h, "
        "float[4,4] w1, float[4] b0, float[4,4] v1) "
        "=> (bool l, float[2,4] o, float[4,4] w1, float[4] b2, float[4,4] v1) "
        "{ l = Identity(go) u = Transpose(w1) q = MatMul(h, u) r = Add(q, b0) b2 = Identity(b0) "
        "p = MatMul(r, v1) o = Tanh(p) }> }",
        w=(4, 4), b=(4,), v=(4, 4),
    ),
    "loop in a loop": build(
        "(float[2,4] x) => (float[2,4] y) { n = Constant<value = int64 {2}>() "
        "c = Constant<value = bool {1}>() "
        "y, k = Loop (n, c, x, w) <body = outer (int64 i, bool go, float[2,4] h, float[4,4] w1) "
        "=> (bool l, float[2,4] o, float[4,4] w1) { l = Identity(go) "
        "o, j = Loop (n, c, h, w1) <body = inner (int64 e, bool run, float[2,4] g, float[4,4] w2) "
        "=> (bool m, float[2,4] z, float[4,4] w2) "
        "{ m = Identity(run) u = Transpose(w2) q = MatMul(g, u) z = Tanh(q) }> }> }",
        w=(4, 4),
    ),
    "branches that name alike what they hold": build(
        "(float[2,4] x, bool c) => (float[] y) { a = Relu(x) "
        "y = If (c) <then_branch = one () => (float[] u) <float[4,1] n = {1, 2, 3, 4}> "
        "{ m = Mul(n, n) u = MatMul(a, m) }, else_branch = two () => (float[] t) "
        "<float[4,1] n = {4, 3, 2, 1}> { m = Add(n, n) t = MatMul(a, m) }> }",
    ),
    "matmul on both sides": build(
        "(float[2,3,4] x) => (float[] y) { a = MatMul(x, w) c = MatMul(l, a) "
        "d = Transpose<perm=[0,2,1]>(c) e = MatMul(c, d) y = Softmax<axis=-1>(e) }",
        w=(4, 5), l=(6, 3),
    ),
    "residual concat": build(
        f"{IMAGE} {{ a = Conv<pads=[1,1,1,1]>(x, w) r = Relu(a) s = Add(r, x) "
        "c = Concat<axis=1>(s, r) p = MaxPool<kernel_shape=[2,2]>(c) y = Conv(p, w2) }",
        w=(4, 4, 3, 3), w2=(3, 8, 1, 1),
    ),
    "nothing to do": build(
        f"{ROWS} {{ a = Sigmoid(x) y = Softmax(a) }}"
    ),
}  # fmt: skip
listed = MODELS["initializers among the inputs"] = build(
    f"{IMAGE} {{ a = Conv(x, w, b) c = {NORM}(a, g, s, m, v) y = Relu(c) }}",
    ir=8, w=(6, 4, 3, 3), b=(6,), **norm(6),
)  # fmt: skip
listed.graph.input.extend(
    onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims)
    for t in listed.graph.initializer
)
MODELS["a function"] = onnx.parser.parse_model(
    '<ir_version: 10, opset_import: ["" : 17, "local" : 1]>'
    "net (float[2,2] x) => (float[2,2] y) <float[2,2] w = {1, 2, 3, 4}, float[2] b = {1, 2}> "
    "{ a = local.dense(x, w, b) y = local.dense(a, w, b) } "
    '<domain: "local", opset_import: ["" : 17]> dense (x, w, b) => (y) '
    "{ k = Constant<value_float = 2.0>() h = Mul(w, k) p = MatMul(x, h) y = Add(p, b) }"
)
for _name, _attrs in {
    "by two": "kernel_shape=[2,2],strides=[2,2]",
    "that overlaps and pads": "kernel_shape=[4,4],strides=[2,2],pads=[1,1,1,1]",
    "padded unevenly": "kernel_shape=[3,5],strides=[2,2],pads=[1,0,2,1],output_padding=[1,0]",
    "by three, grouped": "kernel_shape=[5,4],strides=[3,3],group=2",
    "without stride": "kernel_shape=[3,3],pads=[1,1,1,1]",
    "padded beyond its taps": "kernel_shape=[2,2],strides=[2,2],output_padding=[1,1]",
    "of two strides": "kernel_shape=[4,4],strides=[2,1]",
    "much smaller than its stride": "kernel_shape=[1,1],strides=[2,2]",
}.items():
    _groups = 2 if "group" in _attrs else 1
    MODELS[f"transposed conv {_name}"] = build(
        f"{IMAGE} {{ a = Relu(x) y = ConvTranspose<{_attrs}>(a, w, b) }}",
        w=(4, 6 // _groups, *map(int, _attrs.split("[")[1].split("]")[0].split(","))), b=(6,),
    )  # fmt: skip
MODELS["hard activations"] = build(
    f"{IMAGE} {{ a = Conv(x, w) b = HardSwish(a) c = Conv(b, v) d = HardSigmoid<alpha=0.4>(c) "
    "e = Conv(d, v) f = Neg(e) y = HardSwish(f) }",
    w=(4, 4, 1, 1), v=(4, 4, 1, 1),
)  # fmt: skip
MODELS["traces"] = build(f"{IMAGE} {{ a = Conv(x, w) y = Relu(a) }}", w=(4, 4, 1, 1))
for _key in ("pkg.torch.onnx.stack_trace", "namespace", "author"):
    MODELS["traces"].graph.node[0].metadata_props.add(key=_key, value="long" * 100)
CUSTOM = build(
    "(float[2,4,6,6] x) => (float[2,6,4,4] y) { a = Identity(x) c = Conv(a, w) "
    "y = acme.Thing<level = 3>(c) }",
    imports=', "acme" : 1', w=(6, 4, 3, 3),
)  # fmt: skip

EXACT = [kind for kind in REGISTRY.values() if kind.exact]

each_pass = pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
each_model = pytest.mark.parametrize("name", [*MODELS, "a custom operator"])


def model_of(name):
    proto = CUSTOM if name == "a custom operator" else MODELS[name]
    return from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))


def assert_same_function(before, after):
    values = feeds(before)
    expected, found = ort_run(before, values), ort_run(after, values)
    half = any(t.data_type == onnx.TensorProto.FLOAT16 for t in before.graph.initializer)
    assert list(found) == list(expected)
    for name, x in expected.items():
        assert (found[name].shape, found[name].dtype) == (x.shape, x.dtype)
        tolerance = TOLERANCE_HALF if half else TOLERANCE
        largest = np.abs(x.astype(np.float64)).max(initial=0.0) or 1.0
        np.testing.assert_allclose(
            found[name].astype(np.float64) / largest, x.astype(np.float64) / largest, atol=tolerance
        )


@each_pass
@each_model
def test_an_exact_pass_alone_keeps_the_function_and_the_graph_valid(kind, name):
    model = model_of(name)
    run(model, (kind(),), None)
    onnx.checker.check_model(model.to_proto(), full_check=True)
    if name in MODELS:
        assert_same_function(MODELS[name], model.to_proto())


@each_model
def test_the_exact_passes_in_order_keep_the_function_and_the_graph_valid(name):
    model = model_of(name)
    run(model, PREPARATION, None)
    onnx.checker.check_model(model.to_proto(), full_check=True)
    if name in MODELS:
        assert_same_function(MODELS[name], model.to_proto())


@each_pass
@each_model
def test_a_pass_reports_an_edit_exactly_when_it_changes_the_model(kind, name):
    model = model_of(name)
    model.tidy()
    before = model.to_bytes()
    outcome = run(model, (kind(),), None)[kind.name]
    assert bool(outcome) == (model.to_bytes() != before)
    assert all(skip.where and skip.why for skip in outcome.skips)


@each_pass
@each_model
def test_running_a_pass_twice_changes_nothing_the_second_time(kind, name):
    model = model_of(name)
    run(model, (kind(),), None)
    once = model.to_bytes()
    outcome = run(model, (kind(),), None)[kind.name]
    assert not outcome
    assert model.to_bytes() == once


@pytest.mark.parametrize("kind", REGISTRY.values(), ids=lambda kind: kind.name)
def test_the_options_of_a_pass_survive_a_recipe_file(kind, tmp_path):
    last = () if kind.exact or kind.name == "insert-qdq" else (REGISTRY["insert-qdq"](),)
    weights = REGISTRY["quantize-weights"]
    first = () if kind.exact or kind is weights else (weights(),)
    if kind.name == "compensate-rounding":
        last = (REGISTRY["correct-bias"](), *last)
    if kind.name in ("absorb-bias", "equalize-activations"):
        first, last = (), (*first, *last)
    recipe = Recipe(passes=(*first, kind(), *last), keep_float=("conv*",))
    (tmp_path / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
    assert Recipe.from_toml(tmp_path / "recipe.toml") == recipe


@pytest.mark.parametrize("kind", REGISTRY.values(), ids=lambda kind: kind.name)
def test_a_pass_says_in_one_line_what_it_does(kind):
    assert kind.summary().endswith(".")
    assert kind.name == kind.name.lower().replace("_", "-")
