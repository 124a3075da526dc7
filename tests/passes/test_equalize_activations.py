"""Channels of activations on one grid: the float function stays, and rounding errs less."""

import numpy as np
import onnx
import pytest

from onnxq import pipeline, recipes
from onnxq.graph.layers import layers
from onnxq.graph.loading import from_proto
from onnxq.graph.regions import regions
from onnxq.passes.equalize_activations import EqualizeActivations
from onnxq.passes.expand_hard_activations import ExpandHardActivations
from onnxq.passes.fork_residuals import ForkResiduals
from tests.graphs import build, feeds, ops, quantize, run
from tests.passes.test_absorb_bias import calibration

HEAD = "(float[16,4,6,6] x) => (float[] y)"
FIRST = "a = Conv<pads=[1,1,1,1]>(x, w1, b1)"
UNEVEN = np.logspace(-1, 1, 8, dtype=np.float32)
rng = np.random.default_rng(0)


def normal(*shape):
    return (0.3 * rng.standard_normal(shape)).astype(np.float32)


WEIGHTS = {
    "w1": normal(8, 4, 3, 3) * UNEVEN.reshape(-1, 1, 1, 1), "b1": normal(8) * UNEVEN,
    "w2": normal(5, 8, 1, 1), "w3": normal(8, 8, 3, 3), "depth": (8, 1, 3, 3), "flat": (288, 5),
    "wide": (5, 16, 1, 1), "zero": np.float32(0), "six": np.float32(6),
    "even": normal(8, 4, 3, 3), "gain": UNEVEN, "offset": 0.1 * UNEVEN, "last": normal(8, 5),
    "w0": normal(6, 8), "three": np.float32(3), "small": normal(3, 8, 1, 1),
    "large": normal(8, 3, 1, 1),
}  # fmt: skip


def equalized(nodes, *before, head=HEAD, opset=17, **options):
    proto = build(f"{head} {{ {nodes} }}", opset=opset, **WEIGHTS)
    model = from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    samples = [feeds(proto, seed) for seed in range(4)]
    step = EqualizeActivations(**options)
    outcomes = pipeline.run(model, (*before, step), calibration(samples))
    return proto, model, outcomes[step.name]


def assert_same(proto, model, times=1.0):
    onnx.checker.check_model(model.to_proto(), full_check=True)
    values = {name: times * x for name, x in feeds(proto).items()}
    before, found = run(proto, values)["y"], run(model.to_proto(), values)["y"]
    np.testing.assert_allclose(found, before, atol=1e-5 * np.abs(before).max())


@pytest.mark.parametrize(
    "nodes",
    [
        "r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, w3)",
        "r = Relu(a) f = Flatten(r) y = Gemm(f, flat)",
        "r = Relu(a) d = Conv<group=8>(r, depth) s = Relu(d) y = Conv(s, w2)",
        "r = Relu(a) s = Conv(r, w2) t = Conv(r, w2) y = Add(s, t)",
        "r = Clip(a, zero, six) y = Conv(r, w2)",
    ],
)
def test_the_function_stays_and_channels_come_together(nodes):
    proto, model, outcome = equalized(f"{FIRST} {nodes}")
    assert outcome.edits[0].where == "a"
    assert_same(proto, model, times=5)  # beyond what was seen, too
    values = feeds(proto)
    before, found = (
        run(m, values, taps=["r"])["r"].max(axis=(0, 2, 3)) for m in (proto, model.to_proto())
    )
    assert np.ptp(np.log(found)) < 0.6 * np.ptp(np.log(before))


# One channel is wide, so that the others are lost on its grid.
LONE = np.array([0.5, 0.7, 0.5, 10, 0.5, 0.7, 0.5, 0.7], np.float32)
# With the part of the largest value that may change: a gate that is open by no more than a quarter
# of a step of 8 bits may shut for good.
GATED = {
    "hard swish": ("h = HardSwish(a)", 1e-3),
    "written out": ("p = Add(a, three) q = Clip(p, zero, six) m = Mul(a, q) h = Div(m, six)", 1e-3),
    "swish": ("s = Sigmoid(a) h = Mul(a, s)", 1e-3),
    "hard swish, times and plus a number": (
        "g = HardSwish(a) m = Mul(g, six) h = Add(m, three)", 1e-3),
    "squeezed": (
        "r = Relu(a) g = GlobalAveragePool(r) d = Conv(g, small) e = Relu(d) b = Conv(e, large) "
        "s = HardSigmoid(b) h = Mul(r, s)", 1e-5),
}  # fmt: skip


def expanded(nodes, bits=8, **weights):
    """The model with HardSwish in parts and channels equalized."""
    proto = build(f"{HEAD} {{ {nodes} }}", **WEIGHTS | weights)
    model = from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    steps = (ExpandHardActivations(), EqualizeActivations(bits=bits, weights=8))
    samples = [feeds(proto, seed) for seed in range(4)]
    return proto, model, pipeline.run(model, steps, calibration(samples))["equalize-activations"]


def lone(scale=1.0):
    weight = normal(8, 4, 3, 3) * LONE.reshape(-1, 1, 1, 1)
    return {"w1": np.float32(scale) * weight, "b1": 0.1 * LONE}


@pytest.mark.parametrize("read", ["Conv<group=8>(h, depth)", "Conv(h, even_out)"])
@pytest.mark.parametrize("name", GATED)
def test_channels_come_together_through_gates_and_sums(name, read):
    nodes, tolerance = GATED[name]
    proto, model, outcome = expanded(
        f"{FIRST} {nodes} k = {read} l = Relu(k) y = Conv(l, w2)",
        even_out=normal(8, 8, 1, 1), **lone(),
    )  # fmt: skip
    written = {edit.where for edit in outcome.edits if edit.what.startswith("written as")}
    assert written == {layer.name for layer in layers(model) if layer.by_channel}
    assert bool(written) == (name != "squeezed")
    before, found = (run(m, feeds(proto), taps=["h"]) for m in (proto, model.to_proto()))
    assert np.abs(found["y"] - before["y"]).max() <= tolerance * np.abs(before["y"]).max()
    spans = [np.ptp(np.log(np.abs(x["h"]).max(axis=(0, 2, 3)))) for x in (before, found)]
    assert spans[1] < 0.7 * spans[0]


def test_what_a_gate_shuts_out_of_channels_is_cut_off():
    proto, model, _ = expanded(f"{FIRST} h = HardSwish(a) y = Conv(h, w3)", **lone(9.0))
    (cut,) = [n for n in model.graph.nodes if n.op == "Clip" and n.inputs[0].name == "a"]
    (gate,) = [layer for layer in layers(model) if layer.by_channel]
    seen = [run(model.to_proto(), feeds(proto, seed), taps=["a"])["a"] for seed in range(4)]
    least = np.concatenate(seen).min(axis=(0, 2, 3))
    expected = np.maximum(-3 / gate.weight.reshape(-1), least).min()
    assert cut.inputs[1].values == pytest.approx(expected, rel=0.05)
    assert expected > 0.95 * least.min()  # both are negative
    before, found = (run(m, feeds(proto))["y"] for m in (proto, model.to_proto()))
    np.testing.assert_allclose(found, before, atol=1e-3 * np.abs(before).max())


def mild():
    return normal(8, 4, 3, 3) * np.linspace(0.3, 2, 8, dtype=np.float32).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("bits", [8, 4])
def test_layers_are_written_only_for_much_less_noise(bits):
    nodes = "b = Conv<pads=[1,1,1,1]>(x, mild) h = HardSwish(b) y = Conv<pads=[1,1,1,1]>(h, w3)"
    _, model, outcome = expanded(nodes, bits, mild=mild())
    assert not outcome.edits
    (left,) = [skip.why for skip in outcome.skips if skip.where == "b"]
    assert 40 < int(left.removeprefix("of its noise ").removesuffix("% would be left")) < 95
    assert "Add" in ops(model)


@pytest.mark.parametrize(("bits", "op"), [(8, "Clip"), (7, "Min")])
def test_at_8_bits_little_gain_is_not_worth_a_min_of_codes(bits, op):
    nodes = "b = Conv<pads=[1,1,1,1]>(x, mild) r = Clip(b, zero, six) y = Conv(r, w2)"
    _, model, _ = expanded(nodes, bits=bits, mild=mild())
    assert op in ops(model)


def test_one_channel_that_a_gate_makes_many_stays():
    proto, model, outcome = expanded(
        "a = Conv(x, lone) b = Conv(x, w4) g = GlobalAveragePool(b) s = Sigmoid(g) "
        "h = Mul(a, s) v = AveragePool<kernel_shape=[2,2]>(h) f = Flatten(v) y = Gemm(f, flat2)",
        lone=normal(1, 4, 1, 1), w4=normal(8, 4, 1, 1), flat2=normal(200, 5),
    )  # fmt: skip
    assert "a" not in {edit.where for edit in outcome.edits}
    assert_same(proto, model)


def test_what_factors_cannot_cross_is_left_alone_with_the_reason():
    _, _, outcome = equalized(
        f"{FIRST} r = Relu(a) i = Identity(r) k = Concat<axis=1>(r, r) s = Conv(i, w2) "
        "m = ReduceMax(k) y = Add(s, m)"
    )
    assert not outcome.edits
    assert "does not hand factors on" in outcome.skips[0].why


@pytest.mark.parametrize("op", ["LayerNormalization", "RMSNormalization"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_normalization_is_divided_where_layers_read_it(op, turned):
    read = "t = Transpose<perm=[1,0,2]>(n) y = MatMul(t, last)" if turned else "y = MatMul(n, last)"
    norm = f"n = {op}<axis=-1>(p, gain{', offset' if op.startswith('L') else ''})"
    nodes = f"p = MatMul(x, w0) {norm} {read}"
    proto, model, outcome = equalized(nodes, head="(float[4,7,6] x) => (float[] y)", opset=23)
    assert [edit.where for edit in outcome.edits] == ["n"]
    assert_same(proto, model)
    norm = next(node for node in model.graph.nodes if node.op == op)
    assert np.ptp(np.log(norm.inputs[1].values)) < 0.5 * np.ptp(np.log(UNEVEN))


def test_an_other_reader_of_a_normalizations_scale_keeps_it():
    nodes = ("p = MatMul(x, w0) n = LayerNormalization<axis=-1>(p, gain, offset) "
             "m = MatMul(n, last) z = Mul(p, gain) k = ReduceMax(z) y = Add(m, k)")  # fmt: skip
    proto, model, outcome = equalized(nodes, head="(float[4,7,6] x) => (float[] y)")
    assert outcome.edits
    assert_same(proto, model)


@pytest.mark.parametrize(
    ("norm", "read"),
    [
        ("LayerNormalization<axis=1>(p, both)", "MatMul(n, last)"),
        ("LayerNormalization<axis=-1>(p, one)", "MatMul(n, last)"),
        ("LayerNormalization<axis=-1>(p, g)", "MatMul(n, last)"),
        ("LayerNormalization<axis=-1>(p, gain)", "Relu(n)"),
    ],
)
def test_a_normalization_without_a_scale_of_each_channel_stays(norm, read):
    proto = build(
        f"(float[4,7,6] x) => (float[] y) {{ p = MatMul(x, w0) g = Abs(gain) "
        f"n = {norm} y = {read} }}",
        both=normal(7, 8), one=normal(1), **WEIGHTS,
    )  # fmt: skip
    model = from_proto(proto)
    outcome = pipeline.run(
        model, (EqualizeActivations(),), calibration([feeds(proto, s) for s in range(2)])
    )["equalize-activations"]
    assert not outcome.edits


def test_what_a_residual_connection_and_its_fork_carry_is_one_region():
    nodes = (
        f"{FIRST} r = Relu(a) b = Conv<pads=[1,1,1,1]>(x, w1) c = Relu(b) s = Add(r, c) "
        "t = Relu(s) u = Conv(t, w2) v = ReduceMax(u) k = Conv(r, w2) y = Add(k, v)"
    )
    proto, model, outcome = equalized(nodes, ForkResiduals())
    assert "Identity" in ops(model)
    assert [edit.where for edit in outcome.edits] == ["a"]
    assert_same(proto, model)


def test_what_gains_little_is_left_alone_with_the_figure():
    nodes = "b = Conv<pads=[1,1,1,1]>(x, even) r = Relu(b) y = Conv<pads=[1,1,1,1]>(r, w3)"
    _, model, outcome = equalized(nodes, bits=8, weights=2)
    told = {skip.where: skip.why for skip in outcome.skips}
    assert not outcome.edits
    assert told["b"].startswith("of its noise ") and told["b"].endswith(" would be left")
    assert told["y"] == "y is an output of the model"
    np.testing.assert_array_equal(next(layers(model)).weight, WEIGHTS["even"])


def test_a_normalization_that_is_kept_float_stays():
    nodes = "p = MatMul(x, w0) n = LayerNormalization<axis=-1>(p, gain, offset) y = MatMul(n, last)"
    model = from_proto(build(f"(float[4,7,6] x) => (float[] y) {{ {nodes} }}", **WEIGHTS))
    model.kept_float = {"LayerNormalization_n": "kept by --keep-float"}
    found = regions(model, ceilings=True, norms=True)
    assert [region.name for region in found] == ["p", "y"]


@pytest.mark.parametrize(
    ("scale", "least", "why"),
    [
        (1.0, 1e3, "layers read nothing of it on the calibration data"),
        (1e-40, 0.0, "of its noise all would be left"),
    ],
)
def test_data_that_tell_nothing_leave_a_region_as_it_is(scale, least, why):
    proto = build(
        "(float[n,6] x) => (float[] y) { m = ReduceMax<axes=[1],keepdims=0>(x) i = Greater(m, t) "
        "c = Compress<axis=0>(x, i) a = MatMul(c, w0) r = Relu(a) y = MatMul(r, last) }",
        t=np.float32(least), **WEIGHTS,
    )  # fmt: skip
    samples = [{"x": np.float32(scale) * feeds(proto, seed, batch=9)["x"]} for seed in range(2)]
    outcome = pipeline.run(from_proto(proto), (EqualizeActivations(),), calibration(samples))
    (found,) = outcome.values()
    assert not found.edits
    assert {skip.where: skip.why for skip in found.skips}["a"] == why


@pytest.mark.parametrize("scale", [1e-20, 1e25])
def test_scales_of_data_do_not_matter(scale):
    found = []
    for by in (1.0, scale):
        weights = {"b1": np.float32(by) * WEIGHTS["b1"]}
        proto = build(f"{HEAD} {{ {FIRST} r = Relu(a) y = Conv(r, w2) }}", **WEIGHTS | weights)
        samples = [{"x": np.float32(by) * feeds(proto, seed)["x"]} for seed in range(2)]
        outcome = pipeline.run(from_proto(proto), (EqualizeActivations(),), calibration(samples))
        found.append(outcome["equalize-activations"].edits)
    assert found[0] == found[1]


@pytest.mark.parametrize("least", [900.0, 0.5])
def test_a_min_that_widens_its_data_still_does(tmp_path, least):
    proto = build(
        f"{HEAD} {{ a = Conv(x, lone) m = Min(a, most) b = Conv(m, w2) r = Relu(b) "
        "y = Conv(r, w5) }",
        lone=normal(1, 4, 1, 1), most=np.full((1, 8, 1, 1), least, np.float32),
        w5=normal(3, 5, 1, 1), **WEIGHTS,
    )  # fmt: skip
    _, file = quantize(proto, tmp_path, act_bits=4, first_last_bits=4)
    values = feeds(proto)
    assert run(onnx.load(file), values)["y"].shape == run(proto, values)["y"].shape


def test_ceilings_beyond_the_grid_are_one_clip_of_codes(tmp_path):
    proto = build(
        f"{HEAD} {{ {FIRST} r = Relu(a) m = Min(r, far) d = Conv<group=8>(m, depth) s = Relu(d) "
        "y = Conv(s, w2) }",
        far=np.linspace(90, 99, 8, dtype=np.float32).reshape(1, 8, 1, 1), **WEIGHTS,
    )  # fmt: skip
    report, _ = quantize(proto, tmp_path, act_bits=4)
    assert len(report.kernels.integer) == 3
    assert report.kernels.operators.keys() & {"Min", "Clip"} == {"Clip"}


@pytest.mark.parametrize("act_bits", [4, 7, 8])
@pytest.mark.parametrize("quality", ["fast", "balanced", "best"])
def test_recipes_have_it_where_activations_are_rounded(quality, act_bits):
    recipe = recipes.plan(quality, bits=3, act_bits=act_bits, calibrated=True)
    found = [step for step in recipe.passes if isinstance(step, EqualizeActivations)]
    expected = [EqualizeActivations(bits=act_bits, weights=3)]
    assert found == (expected if quality != "fast" else [])


def test_recipes_do_without_where_activations_are_floats():
    recipe = recipes.plan("balanced", bits=3, act_bits="float", calibrated=True)
    assert not any(isinstance(step, EqualizeActivations) for step in recipe.passes)
