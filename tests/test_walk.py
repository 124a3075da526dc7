"""The walk through odd models: nothing that is not deployed is made up for, and nothing breaks."""

import numpy as np
import onnx
import pytest

from onnxq.recipe import Relief
from onnxq.recipes import plan
from onnxq.runtime import Session
from tests.graphs import build, feeds, quantize, run


def sqnr(folder, proto, x, **options):
    """Signal to noise of the output in dB, on the calibration data, and the report."""
    calib = [{"x": row[None]} for row in x]
    report, file = quantize(proto, folder, calib, **options)
    plain, found = run(proto, {"x": x})["y"], run(onnx.load(file), {"x": x})["y"]
    noise = float(((plain - found) ** 2).sum())
    return 10 * np.log10(float((plain**2).sum()) / noise), report


MLP = build(
    "(float[N,24] x) => (float[] y) { a = Gemm(x, w1, b1) b = Relu(a) y = Gemm(b, w2, b2) }",
    w1=(24, 32), b1=(32,), w2=(32, 8), b2=(8,),
)  # fmt: skip


@pytest.mark.parametrize(("mean", "spread"), [(300, 0.1), (3000, 1), (0, 1)])
def test_means_do_not_drown_the_spread(tmp_path, mean, spread):
    x = np.random.default_rng(0).normal(mean, spread, (128, 24)).astype(np.float32)
    _, report = sqnr(tmp_path, MLP, x, recipe="balanced", bits=4)
    assert len(report.outcomes["compensate-rounding"].edits) == 2


@pytest.mark.parametrize("count", [1, 2, 8])
def test_few_samples_do_no_harm(tmp_path, count):
    x = np.random.default_rng(0).standard_normal((64, 24)).astype(np.float32)
    noise = {}
    for recipe in ("mse", "balanced"):
        calib = [{"x": row[None]} for row in x[:count]]
        _, file = quantize(MLP, tmp_path, calib, recipe=recipe, bits=8)
        plain, found = run(MLP, {"x": x})["y"], run(onnx.load(file), {"x": x})["y"]
        noise[recipe] = float(((plain - found) ** 2).sum())
    assert noise["balanced"] < 2 * noise["mse"]


@pytest.mark.parametrize("tiny", [0.0, 1e-20, 1e-9, 1e-6])
def test_a_nearly_dead_channel_is_seen_as_it_will_be_deployed(tmp_path, tiny):
    weights = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32) / 4
    weights[0] *= tiny
    proto = build(
        "(float[N,3,9,9] x) => (float[] y) { a = Conv(x, w1, b1) b = Relu(a) c = Conv(b, w2) "
        "d = Relu(c) y = Conv(d, w3) }",
        w1=weights, b1=np.full(8, 1.5, np.float32), w2=(8, 8, 3, 3), w3=(4, 8, 1, 1),
    )  # fmt: skip
    x = np.random.default_rng(1).standard_normal((32, 3, 9, 9)).astype(np.float32)
    found, _ = sqnr(tmp_path, proto, x, recipe="balanced")
    plain, _ = sqnr(tmp_path, proto, x, recipe="vanilla")
    assert found > plain - 1.0


HEADS = {
    "s": (32, 3, 3, 3), "t": (32, 32, 3, 3), "w1": (32, 32, 3, 3), "b1": (32,), "w2": (9, 32, 3, 3),
    "b2": (9,),
}  # fmt: skip


def heads():
    """Two sizes of features, and on each of them layers of the same weights."""
    nodes = "a = Conv<pads=[1,1,1,1]>(x, s) p = Relu(a) b = Conv<strides=[2,2]>(p, t) q = Relu(b) "
    for level in "pq":
        nodes += f"{level}1 = Conv({level}, w1, b1) {level}2 = Relu({level}1) "
        nodes += f"{level}y = Conv({level}2, w2, b2) "
    return build(f"(float[1,3,16,16] x) => (float[] py, float[] qy) {{ {nodes} }}", **HEADS)


@pytest.mark.parametrize("options", [{}, {"act_bits": 4}, {"target_ort": "1.20"}], ids=str)
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_layers_of_one_weight_have_one_still(tmp_path, bits, options):
    report, file = quantize(heads(), tmp_path, recipe="balanced", bits=bits, **options)
    codes = [t for t in onnx.load(file).graph.initializer if len(t.dims) > 1]
    narrow = [t for t in codes if t.data_type != onnx.TensorProto.FLOAT]
    stored = sum(8 * len(t.raw_data) for t in narrow)
    distinct = sum(np.prod(HEADS[name]) for name in ("s", "t", "w1", "w2"))
    assert stored <= 1.02 * distinct * bits
    edits = {e.where: e.what for e in report.outcomes["compensate-rounding"].edits}
    for name, first in (("Conv_q1", "Conv_p1"), ("Conv_qy", "Conv_py")):
        assert edits[name] == f"as {first}, whose weight it has"
        assert edits[first].startswith("scales times")
    assert all(layer.isolated > 2.5 * bits for layer in report.layers)


def test_what_is_left_of_layers_of_one_weight_shares_it(tmp_path):
    nodes = "a = Conv(x, w, b) c = Conv(x, w, b) d = Conv(x, w, b) y = Concat<axis=1>(a, c, d)"
    proto = build(f"(float[1,32,9,9] x) => (float[] y) {{ {nodes} }}", w=(32, 32, 3, 3), b=(32,))
    report, file = quantize(proto, tmp_path, recipe="balanced", bits=4, keep_float=("Conv_a",))
    assert "as Conv_c, whose weight it has" in {
        e.what for e in report.outcomes["compensate-rounding"].edits
    }
    large = [t for t in onnx.load(file).graph.initializer if len(t.dims) > 1]
    assert [t.data_type == onnx.TensorProto.FLOAT for t in large].count(True) == 1 == len(large) - 1


def test_one_weight_along_two_axes_has_scales_along_both(tmp_path):
    w = np.random.default_rng(0).uniform(-0.3, 0.3, (64, 64)).astype(np.float32)
    np.fill_diagonal(w, 0.3)
    nodes = "a = Gemm<transB=1>(x, w, b) y = Relu(a) c = Gemm(x, w, b) z = Relu(c)"
    proto = build(f"(float[8,64] x) => (float[] y, float[] z) {{ {nodes} }}", w=w, b=(64,))
    report, file = quantize(proto, tmp_path, recipe="balanced", bits=4)
    assert not any("whose weight" in e.what for e in report.outcomes["compensate-rounding"].edits)
    values = feeds(proto, 9)
    plain, found = (run(p, values) for p in (proto, onnx.load(file)))
    noise = [np.square(plain[n] - found[n]).sum() / np.square(plain[n]).sum() for n in "yz"]
    assert max(noise) < 2 * min(noise)


def test_a_weight_of_more_bits_is_one_of_its_own(tmp_path):
    recipe = plan("balanced", bits=4, calibrated=True)
    wide = recipe.relieved([Relief("weights", "Conv_qy", 8)])
    report, _ = quantize(heads(), tmp_path, recipe=wide, act_bits=None)
    edits = {e.where: e.what for e in report.outcomes["compensate-rounding"].edits}
    assert edits["Conv_q1"].startswith("as Conv_p1")
    assert edits["Conv_qy"].startswith("scales times")


def test_a_float_layer_behind_integer_ones(tmp_path):
    proto = build(
        "(float[N,4,6,6] x) => (float[] y) { a = Conv(x, w1, b1) b = Relu(a) "
        "y = ConvTranspose<strides=[2,1],group=2>(b, w2, b2) }",
        w1=(8, 4, 3, 3), b1=(8,), w2=(8, 8, 2, 2), b2=(16,),
    )  # fmt: skip
    x = np.random.default_rng(1).standard_normal((32, 4, 6, 6)).astype(np.float32)
    found, report = sqnr(tmp_path, proto, x, recipe="balanced", bits=4)
    assert len(report.outcomes["correct-bias"].edits) == 2
    assert found > 15


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        (
            "m = ReduceMax<keepdims=0,axes=[1]>(a) k = Greater(m, t) c = Compress<axis=0>(a, k) "
            "y = MatMul(c, w2)",
            {"t": np.float32(1.0), "w2": (8, 4)},
        ),
        ("c = Gather(a, i) y = MatMul(w2, c)", {"i": np.array(0), "w2": (4, 8)}),
    ],
    ids=["rows that depend on values", "one axis"],
)
def test_a_layer_whose_input_has_no_rows_to_compare_says_so(tmp_path, nodes, weights):
    proto = build(
        f"(float[6,24] x) => (float[] y) {{ a = MatMul(x, w1) {nodes} }}", w1=(24, 8), **weights
    )
    calib = [{"x": x} for x in np.random.default_rng(0).standard_normal((8, 6, 24), np.float32)]
    report, file = quantize(proto, tmp_path, calib, recipe="balanced", bits=2, act_bits="float")
    (skip,) = report.outcomes["correct-bias"].skips
    assert skip.why == "the shape of what it reads depends on values, or has one axis"
    Session(file)


def test_weights_alone_are_chosen_on_data_that_the_report_counts(tmp_path):
    x = np.random.default_rng(0).standard_normal((16, 24)).astype(np.float32)
    _, report = sqnr(tmp_path, MLP, x, recipe="balanced", bits=4, act_bits="float")
    assert report.calibration["count"] == 16
    assert len(report.calibration["digest"]) == 64
    _, report = sqnr(tmp_path, MLP, x, recipe="mse", bits=4, act_bits="float")
    assert report.calibration == {}
    assert "no pass of this recipe looks at the calibration data" in report.notes


def test_a_layer_that_reads_nothing_is_rounded_to_nearest(tmp_path):
    proto = build(
        "(float[6,24] x) => (float[] y) { a = MatMul(x, w1) m = ReduceMax<keepdims=0,axes=[1]>(a) "
        "k = Greater(m, t) c = Compress<axis=0>(a, k) y = MatMul(c, w2) }",
        w1=(24, 8), t=np.float32(1e9), w2=(8, 4),
    )  # fmt: skip
    calib = [{"x": x} for x in np.random.default_rng(0).standard_normal((8, 6, 24), np.float32)]
    report, _ = quantize(
        proto, tmp_path, calib, recipe="balanced", act_bits="float", validate=calib
    )
    (skip,) = report.outcomes["compensate-rounding"].skips
    assert skip.why == "it read nothing on calibration data: rounded to nearest"
    assert report.validation.agreement is None
