"""Convolutions over strips of pixels: the same values, fewer windows, and nothing else changed."""

import numpy as np
import onnx
import pytest

from onnxq.evidence.inspect import inspect
from onnxq.graph import forms
from onnxq.graph.loading import load
from tests.graphs import build, feeds, quantize, run

pytestmark = pytest.mark.usefixtures("long_names", "short_rows")


@pytest.fixture
def short_rows(monkeypatch):
    """Rows are as long as they are slow to test."""
    monkeypatch.setattr(forms, "LEAST_ROW", 4)


def net(attrs="kernel_shape=[3,3],pads=[1,1,1,1]", *, kernel=(3, 3), size="3,8,8", c_in=3,
        before="", bias="b", between="r = Relu(a)", c_out=6):  # fmt: skip
    return build(
        f"(float[n,{size}] x) => (float[] y) {{ {before} a = Conv<{attrs}>(x, w, {bias}) {between} "
        "p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, v) }",
        w=(c_out, c_in, *kernel), b=(c_out,), v=(c_out, 5),
    )  # fmt: skip


def both(monkeypatch, tmp_path, proto, **options):
    """The report and file of a conversion, and the file of one without strips."""
    with monkeypatch.context() as patch:
        patch.setattr(forms, "MOST_CHANNELS", 0)
        _, file = quantize(proto, tmp_path, **options)
    plain = onnx.load(file)
    report, file = quantize(proto, tmp_path, **options)
    return report, onnx.load(file), plain


def widths(proto):
    """Input channels, and width of the kernel, of the first Conv."""
    node = next(n for n in proto.graph.node if n.op_type == "Conv")
    wide = run(proto, feeds(proto), optimize=False, taps=[node.input[1]])[node.input[1]]
    return wide.shape[1], wide.shape[3]


CASES = {
    "stem": net("strides=[2,2],pads=[1,1,1,1]"),
    "TensorFlow's borders": net("strides=[2,2],pads=[0,0,1,1]"),
    "large kernel": net("strides=[2,2],pads=[3,3,3,3]", kernel=(7, 7)),
    "patches": net("strides=[4,4]", kernel=(4, 4)),
    "overlapping patches": net("strides=[4,4],pads=[3,3,3,3]", kernel=(7, 7)),
    "every pixel": net(),
    "gray": net(size="1,9,12", c_in=1),
    "two channels": net("strides=[3,2],pads=[0,1,0,0]", kernel=(2, 3), size="2,9,4", c_in=2),
    "float result": net(between="r = Softplus(a)"),
    "single pixels": net("strides=[1,1]", kernel=(1, 1)),
    "kept height": net("strides=[1,2],pads=[2,1,2,1],dilations=[2,1]"),
    "no bias": build(
        "(float[2,3,8,8] x) => (float[] y) { a = Conv<pads=[1,1,1,1]>(x, w) y = Conv(a, v) }",
        w=(6, 3, 3, 3), v=(4, 6, 1, 1),
    ),
    "ceilings": build(
        "(float[2,3,8,8] x) => (float[] y) { a = Conv<pads=[1,1,1,1]>(x, w) r = Clip(a, low, high) "
        "y = Conv(r, v) }",
        w=(6, 3, 3, 3), v=(4, 6, 1, 1), low=np.float32(-0.5), high=np.float32(1.0),
    ),
}  # fmt: skip
OPTIONS = [
    {},
    {"bits": 4},
    {"bits": 3, "levels": "kmeans", "act_bits": 4, "first_last_bits": 4},
    {"per_tensor": True},
    {"bits": 2, "target_ort": "1.20"},
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_results_are_those_of_the_plain_convolution_to_the_last_bit(
    monkeypatch, tmp_path, case, options
):
    proto = CASES[case]
    report, strips, plain = both(monkeypatch, tmp_path, proto, **options)
    assert widths(strips)[0] == 4 * widths(plain)[0]
    onnx.checker.check_model(strips, full_check=True)
    for optimize in (True, False):
        values = feeds(proto, seed=5, batch=3)
        found, wanted = (run(p, values, optimize=optimize)["y"] for p in (strips, plain))
        np.testing.assert_array_equal(found, wanted)
    assert report.kernels.integer["Conv_a"] == "QLinearConv"
    assert not {"Conv", "Pad"} & {*report.kernels.operators}


OTHERS = {
    "width of no strips": net(size="3,8,10"),
    "open width": net(size="3,8,w"),
    "four channels": net(size="4,8,8", c_in=4),
    "stride of three": net("strides=[3,3],pads=[1,1,1,1]", size="3,12,12"),
    "fewer results": net("pads=[0,0,0,0]"),
    "more results": net("pads=[2,2,2,2]"),
    "dilated": net("pads=[2,2,2,2],dilations=[2,2]"),
    "dilated, with as many borders": net("pads=[1,1,1,1],dilations=[2,2]"),
    "automatic borders": net('auto_pad="SAME_UPPER"'),
    "groups": net("pads=[1,1,1,1],group=3", c_in=1),
    "computed bias": net(before="m = ReduceMean<keepdims=0>(x) t = Mul(b, m)", bias="t"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_others_stay(tmp_path, case):
    proto = OTHERS[case]
    samples = [feeds(proto, seed, batch=8) for seed in range(4)]
    _, file = quantize(proto, tmp_path, [{"x": s["x"][:1]} for s in samples])
    assert "Concat" not in {n.op_type for n in onnx.load(file).graph.node}


def test_a_layer_kept_float_stays(tmp_path):
    _, file = quantize(net(), tmp_path, keep_float=("Conv_a",))
    assert "Concat" not in {n.op_type for n in onnx.load(file).graph.node}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_nothing_of_it_is_in_the_report(monkeypatch, tmp_path, options):
    proto = net("strides=[2,2],pads=[1,1,1,1]")
    with monkeypatch.context() as patch:
        patch.setattr(forms, "MOST_CHANNELS", 0)
        plain, file = quantize(proto, tmp_path, **options)
        before = inspect(load(file), file)[0]
    report, file = quantize(proto, tmp_path, **options)
    assert report.layers == plain.layers
    assert {layer.name for layer in report.layers} == {"Conv_a", "Gemm_y"}
    for layer, other in zip(inspect(load(file), file)[0], before, strict=True):
        for figure in ("shape", "bits", "act_bits", "macs", "kernel", "lo", "hi"):
            assert getattr(layer, figure) == getattr(other, figure), figure


@pytest.mark.parametrize("recipe", ["balanced", "ibc"])
def test_passes_that_look_into_layers_see_them_all(monkeypatch, tmp_path, recipe):
    proto = net("strides=[2,2],pads=[1,1,1,1]")
    samples = [feeds(proto, seed) for seed in range(24)]
    _, strips, plain = both(monkeypatch, tmp_path, proto, bits=3, recipe=recipe, samples=samples)
    values = feeds(proto, seed=5)
    np.testing.assert_array_equal(run(strips, values)["y"], run(plain, values)["y"])


def test_no_images_give_no_results(tmp_path):
    _, file = quantize(net("strides=[2,2],pads=[1,1,1,1]"), tmp_path)
    for optimize in (True, False):
        nothing = {"x": np.zeros((0, 3, 8, 8), np.float32)}
        assert run(onnx.load(file), nothing, optimize=optimize)["y"].shape == (0, 5)


def test_short_rows_stay(monkeypatch, tmp_path):
    monkeypatch.setattr(forms, "LEAST_ROW", 12)
    _, file = quantize(net(), tmp_path)
    assert "Concat" not in {n.op_type for n in onnx.load(file).graph.node}
