"""Which activations get how many bits."""

import numpy as np
import onnx
import pytest

from onnxq.evidence.inspect import inspect
from onnxq.graph.loading import from_proto, load
from onnxq.numerics import tuning
from onnxq.numerics.observe import Histogram
from onnxq.passes.quantize_activations import QuantizeActivations
from onnxq.pipeline import run
from onnxq.runtime import Session
from onnxq.samples.calibration import Calibration
from onnxq.samples.preprocess import PRESETS
from onnxq.samples.sources import open_samples
from onnxq.spec import activation_spec
from tests.graphs import build, feeds, quantize
from tests.graphs import run as ort_run
from tests.passes.layerwise import samples

BRANCHES = (
    "(float[1,3,8,8] x) => (float[] y, float[] z) { a = Conv(x, w1) r = Relu(a) "
    "b = Conv(r, w2) f = Flatten(b) c = Conv(b, w2) p = GlobalAveragePool(c) g = Flatten(p) "
    "y = Gemm(g, w3) z = Gemm(f, w4) }"
)
WEIGHTS = {"w1": (4, 3, 3, 3), "w2": (4, 4, 3, 3), "w3": (4, 5), "w4": (64, 5)}


@pytest.mark.parametrize("ends", [8, 5, 2])
def test_what_the_first_and_the_last_layers_read_keeps_more_bits(tmp_path, ends):
    _, file = quantize(build(BRANCHES, **WEIGHTS), tmp_path, act_bits=3, first_last_bits=ends)
    found, kernels = inspect(load(file), file)
    wide = max(3, ends)
    # The second Conv's result is what a last layer reads, too.
    assert {layer.name: layer.act_bits for layer in found} == {
        "Conv_a": wide, "Conv_b": 3, "Conv_c": wide, "Gemm_y": wide, "Gemm_z": wide,
    }  # fmt: skip
    assert len(kernels.integer) == 5


def test_what_a_number_of_each_channel_multiplies_keeps_8_bits(tmp_path):
    proto = build(
        "(float[N,3,8,8] x) => (float[] y) { a = Conv(x, w) r = Relu(a) n = Conv<group=4>(r, g, b) "
        "l = Relu(n) d = Conv<group=4>(l, t) m = Relu(d) y = Conv(m, v) }",
        w=(4, 3, 3, 3), g=(4, 1, 1, 1), b=(4,), t=(4, 1, 3, 3), v=(5, 4, 1, 1),
    )  # fmt: skip
    _, file = quantize(proto, tmp_path, act_bits=4, first_last_bits=2)
    found, _ = inspect(load(file), file)
    assert [layer.act_bits for layer in found] == [4, 8, 4, 4]


JOINED = {
    # name: the nodes, the tensors that share a grid, and those that keep their own.
    "alone": ("a = Conv(x, w) b = Conv(x, v) c = Concat<axis=1>(a, b) {last}", "abc", ""),
    "moved": (
        "e = Conv(x, w) a = MaxPool<kernel_shape=[2,2]>(e) f = Conv(x, v) "
        "b = MaxPool<kernel_shape=[2,2]>(f) c = Concat<axis=1>(a, b) {last}",
        "efc", "",
    ),
    "read twice": (
        "a = Conv(x, w) b = Conv(x, v) c = Concat<axis=1>(a, b) d = Conv(b, u) {last} z = Relu(d)",
        "ac", "b",
    ),
    "cut off": (
        "a = Conv(x, w) e = Conv(x, v) b = Relu(e) c = Concat<axis=1>(a, b) {last}", "ac", "b",
    ),
    "both cut off": (
        "d = Conv(x, w) a = Relu(d) e = Conv(x, v) b = Relu(e) c = Concat<axis=1>(a, b) {last}",
        "abc", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "shared", "own"), JOINED.values(), ids=JOINED)
def test_what_a_concat_joins_is_on_its_grid(tmp_path, nodes, shared, own):
    """One of the two is four times as wide as the other: its grid is too coarse for that."""
    w = drawn(4, 3, 3, 3)
    weights = {"w": w, "v": 0.25 * w[::-1], "u": (2, 4, 1, 1), "l": (5, 8, 1, 1)}
    outputs = "float[] y, float[] z" if "z =" in nodes else "float[] y"
    text = nodes.format(last="y = Conv(c, l)")
    used = {name: values for name, values in weights.items() if f"{name})" in text}
    proto = build(f"(float[N,3,8,8] x) => ({outputs}) {{ {text} }}", **used)
    samples = [feeds(proto, seed, 4) for seed in range(4)]
    model = from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    data = open_samples(samples, Session(model).inputs, PRESETS["raw"])
    run(model, (QuantizeActivations(),), Calibration(data, PRESETS["raw"]))
    grids = {name: (float(g.scale), int(g.zero_point)) for name, g in model.activations.items()}
    assert {name for name in grids if grids[name] == grids["c"]} == {*shared, "c"}
    assert {*own} <= grids.keys()
    _, file = quantize(proto, tmp_path, samples)
    found, right = ort_run(onnx.load(file), samples[0])["y"], ort_run(proto, samples[0])["y"]
    assert np.square(found - right).sum() < 1e-3 * np.square(right).sum()


CUT = "c = Concat<axis=1>(a, b) r = Relu(c) "
FACTORS = {"k": np.float32(40), "t": np.float32(0.02)}
KEPT = {
    # A grid from 0 on has the steps of one around 0, and half of its range.
    "read elsewhere": f"a = Conv(x, w) b = Conv(x, v) {CUT} y = Conv(r, l) z = Conv(a, u)",
    "an output": f"z = Conv(x, w) a = Identity(z) b = Conv(x, v) {CUT} y = Conv(r, l)",
    "twice": "a = Conv(x, w) b = Mul(a, k) c = Concat<axis=1>(a, b) z = Conv(c, l) y = Relu(z)",
    "twice, turned": (
        "a = Conv(x, w) b = Mul(a, t) c = Concat<axis=1>(b, a) z = Conv(c, l) y = Relu(z)"
    ),
    "in a body": (
        "a = Conv(x, v) b = Conv(x, w) c = Concat<axis=1>(a, b) y = Conv(c, l) s = ReduceMax(x) "
        "o = Greater(s, s) z = If(o) <then_branch = g1 () => (float[N,4,6,6] p) { p = Neg(a) }, "
        "else_branch = g2 () => (float[N,4,6,6] q) { q = Sub(a, t) }>"
    ),
}


@pytest.mark.parametrize("nodes", KEPT.values(), ids=KEPT)
def test_what_others_need_finer_is_not_on_the_grid_of_a_concat(tmp_path, nodes):
    w = drawn(4, 3, 3, 3)
    weights = {"w": w, "v": w[::-1] * (0.04 if "If" in nodes else 2.3), "u": (2, 4, 1, 1),
               "l": (5, 8, 1, 1)} | FACTORS  # fmt: skip
    used = {name: values for name, values in weights.items() if f"{name})" in nodes}
    proto = build(f"(float[N,3,8,8] x) => (float[] y, float[] z) {{ {nodes} }}", **used)
    samples = [feeds(proto, seed, 4) for seed in range(4)]
    _, file = quantize(proto, tmp_path, samples)
    found, right = ort_run(onnx.load(file), samples[0]), ort_run(proto, samples[0])
    for name in ("y", "z"):
        assert np.square(found[name] - right[name]).sum() < 3e-3 * np.square(right[name]).sum()


# -- ranges tuned on what layers return -----------------------------------------------------------


def drawn(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


# From a tensor r (N, 4, 6, 6), behind a Relu, to the layers that read it.
TAILS = {
    "conv": ("y = Conv<strides=[2,1],pads=[1,0,1,1]>(r, w)", {"w": drawn(5, 4, 3, 3)}),
    "padded by itself": (
        'y = Conv<strides=[2,1],auto_pad="SAME_LOWER">(r, w)', {"w": drawn(5, 4, 3, 2)},
    ),
    "depthwise": ("y = Conv<group=4>(r, w)", {"w": drawn(8, 1, 3, 3)}),
    "grouped": ("y = Conv<group=2>(r, w)", {"w": drawn(6, 2, 3, 3)}),
    "gemm": ("f = Flatten(r) y = Gemm<transB=1>(f, w)", {"w": drawn(5, 144)}),
    "matmul": ("t = Transpose<perm=[0,2,3,1]>(r) y = MatMul(t, w)", {"w": drawn(4, 5)}),
    "pooled": (
        "m = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r) y = Conv(m, w)",
        {"w": drawn(5, 4, 2, 2)},
    ),
    "multiplied": (
        "m = Mul(r, by) y = Conv(m, w)", {"w": drawn(5, 4, 2, 2), "by": np.float32(0.3)},
    ),
    "read twice": (
        "m = Mul(r, by) f = Flatten(m) z = Gemm(f, v) y = Conv(r, w)",
        {"w": drawn(5, 4, 2, 2), "v": drawn(144, 6), "by": np.float32(7.0)},
    ),
    "added": (
        "c = Conv<pads=[1,1,1,1]>(r, v) y = Add(r, c) u = Conv(y, w) z = Relu(u)",
        {"v": drawn(4, 4, 3, 3), "w": drawn(5, 4, 2, 2)},
    ),
}  # fmt: skip


def whole(name):
    """The model, and the part of it from ``r`` on, which returns what reads ``r``."""
    text, weights = TAILS[name]
    ends = ["z"] if name == "added" else ["y", "z"] if name == "read twice" else ["y"]
    results = ["c"] if name == "added" else ends
    head = "a = Conv<pads=[1,1,1,1]>(x, w0) r = Relu(a)"

    def graph(data, outputs, body):
        return f"(float[{data}) => ({', '.join(f'float[] {o}' for o in outputs)}) {{ {body} }}"

    model = build(graph("N,3,6,6] x", ends, f"{head} {text}"), w0=(4, 3, 3, 3), **weights)
    return model, build(graph("N,4,6,6] r", results, text), **weights)


def rounded(r, grid):
    """``r`` through onnxruntime's QuantizeLinear, clipped to the grid, and DequantizeLinear."""
    proto = build(
        "(float[N,4,6,6] r) => (float[] d) { q = QuantizeLinear(r, s, z) c = Clip(q, lo, hi) "
        "d = DequantizeLinear(c, s, z) }",
        s=grid.scale, z=grid.zero_point, lo=np.uint8(0), hi=np.uint8(grid.spec.qmax),
    )  # fmt: skip
    return ort_run(proto, {"r": r}, optimize=False)["d"]


def brute_force(name, r, grids):
    """Noise that each grid leaves, summed over what reads ``r``, by running it."""
    _, tail = whole(name)
    y, total = ort_run(tail, {"r": r}, optimize=False), []
    for grid in grids:
        r_q = rounded(r, grid)
        y_q = ort_run(tail, {"r": r_q}, optimize=False)
        # An Add has no bias that could take a mean.
        noise = np.mean((r_q - r).astype(float) ** 2) / np.var(r) if name == "added" else 0.0
        for result, plain in y.items():
            axis = -1 if name == "matmul" else 1
            a, b = (
                np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]).astype(float)
                for x in (plain, y_q[result])
            )
            noise += (b - a).var(axis=0).sum() / a.var(axis=0).sum()
        total.append(noise)
    return np.array(total)


def told(outcome, name):
    """Noise with the tuned range and without, in the words of the pass."""
    (what,) = (edit.what for edit in outcome.edits if edit.where == name)
    return [float(number) for number in what.split(", noise ")[1].split(" instead of ")]


@pytest.mark.parametrize("name", TAILS)
@pytest.mark.parametrize(("bits", "method"), [(4, "mse"), (3, "minmax"), (8, "minmax")])
def test_a_tuned_range_is_the_candidate_that_layers_return_the_least_noise_with(name, bits, method):
    model, _ = whole(name)
    data = samples(model, count=40)
    found = {}
    for tuned in (False, True):
        planned = from_proto(model)
        step = QuantizeActivations(bits=bits, first_last_bits=bits, range=method, tuned=tuned)
        outcome = run(planned, (step,), Calibration(data, PRESETS["raw"]))[step.name]
        found[tuned] = planned.activations
    x = np.concatenate([feed["x"] for _, feed in data.items()])
    r = ort_run(model, {"x": x}, optimize=False, taps=["r"])["r"]
    seen = Histogram()
    seen.update(r)
    grids = tuning.candidates(seen, activation_spec(bits), method)
    noise = brute_force(name, r, [found[True]["r"], found[False]["r"], *grids])
    np.testing.assert_allclose(told(outcome, "r"), noise[:2], rtol=1e-2)
    # There are fewer rows than a sample holds: all but the histogram of what an Add reads is exact.
    slack = 1e-2 if name == "added" else 1e-4
    assert noise[0] <= noise[1:].min() * (1 + slack)
    kept = {n for n, grid in found[True].items() if grid.scale == found[False][n].scale}
    unread = set(found[True]) - {"x", "r", "y" if name == "added" else ""}
    assert unread == {skip.where for skip in outcome.skips} <= kept
    assert {skip.why for skip in outcome.skips} <= {
        f"no layer reads it: its range is that of {method}"
    }


def test_tuning_pays_where_the_widest_channel_matters_least():
    w0, w = drawn(4, 3, 3, 3), drawn(5, 4, 3, 3)
    w0[0] *= 8
    w[:, 0] *= 0.01
    model = build(
        "(float[N,3,6,6] x) => (float[] y) "
        "{ a = Conv<pads=[1,1,1,1]>(x, w0) r = Relu(a) y = Conv(r, w) }",
        w0=w0, w=w,
    )  # fmt: skip
    step = QuantizeActivations(bits=4, first_last_bits=4, range="mse", tuned=True)
    data = Calibration(samples(model, count=40), PRESETS["raw"])
    tuned, plain = told(run(from_proto(model), (step,), data)[step.name], "r")
    assert tuned < 0.7 * plain
