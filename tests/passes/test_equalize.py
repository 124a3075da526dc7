"""Equalization: the same function, equal ranges on both sides, a reason wherever there is none."""

import numpy as np
import onnx
import pytest

from onnxq import pipeline
from onnxq.evidence.inspect import inspect
from onnxq.graph.layers import layers
from onnxq.graph.loading import from_proto, load
from onnxq.graph.regions import regions
from onnxq.passes.equalize import TOLERANCE, Equalize
from onnxq.recipes import PREPARATION
from tests.graphs import after, build, feeds, ops, quantize, run

HEAD = "(float[2,4,6,6] x) => (float[] y)"
FIRST = "a = Conv<pads=[1,1,1,1]>(x, w1, b1)"
UNEVEN = np.logspace(-2, 2, 8, dtype=np.float32)
rng = np.random.default_rng(0)


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


# Of very different channels, so that a factor forgotten anywhere would show.
WEIGHTS = {
    "w1": normal(8, 4, 3, 3) * UNEVEN.reshape(-1, 1, 1, 1), "b1": normal(8) * UNEVEN,
    "w2": normal(5, 8, 1, 1), "b2": (5,), "w3": normal(8, 8, 3, 3), "depth": (8, 1, 3, 3),
    "many": (16, 1, 3, 3), "halves": (6, 4, 1, 1), "wide": (5, 16, 1, 1), "up": (8, 3, 2, 2),
    "dense": (8, 5), "flat": (288, 5), "tflat": (5, 288), "slope": (8, 1, 1),
    "six": np.float32(2), "zero": np.float32(0), "two": np.float32(2), "hw": np.array([2, 3]),
    "scales": np.array([1, 1, 2, 2], np.float32), "rows": np.array([0, -1]),
    "small": normal(3, 4, 3, 3), "eleven": (2, 11, 1, 1), "squeeze": (4, 8, 1, 1),
    "excite": (8, 4, 1, 1), "head": (5, 8, 1, 1), "from": np.array([0, 1]), "to": np.array([9, 9]),
    "by": np.array([2, 2]), "beside": np.array([0, 0, 1, 2, 0, 0, 3, 4]),
    "around": np.array([0, 5, 0, 0, 0, 3, 0, 0]), "sixteen": normal(16, 4, 1, 1),
}  # fmt: skip

PAIRS = {
    "Conv": "y = Conv(a, w2, b2)",
    "a padded Conv": "r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, w3)",
    "LeakyRelu": "r = LeakyRelu(a) y = Conv(r, w2)",
    "PRelu": "r = PRelu(a, slope) y = Conv(r, w2)",
    "MaxPool": "r = Relu(a) p = MaxPool<kernel_shape=[3,3],pads=[1,1,1,1]>(r) y = Conv(p, w2)",
    "AveragePool": "p = AveragePool<kernel_shape=[2,2],pads=[1,1,1,1],count_include_pad=1>(a) "
                   "y = Conv(p, w2)",
    "GlobalAveragePool": "r = Relu(a) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, dense)",
    "ReduceMean": "p = ReduceMean<axes=[2,3],keepdims=0>(a) y = MatMul(p, dense)",
    "Squeeze": "p = GlobalAveragePool(a) f = Squeeze(p, hw) y = Gemm(f, dense)",
    "Flatten": "r = Relu(a) f = Flatten(r) y = Gemm(f, flat)",
    "Flatten, transposed": "f = Flatten(a) r = Relu(f) y = Gemm<transB=1>(r, tflat)",
    "Reshape": "f = Reshape(a, rows) y = MatMul(f, flat)",
    "Resize": 'u = Resize<mode="linear">(a, , scales) y = Conv(u, w2)',
    "Identity": "r = Relu(a) i = Identity(r) y = Conv(i, w2)",
    "Slice": "s = Slice(a, from, to, hw, by) r = Relu(s) y = Conv(r, w2)",
    "Pad": "r = Relu(a) p = Pad(r, beside) y = Conv(p, w2)",
    "a number": "m = Mul(two, a) n = Div(m, two) y = Conv(n, w2)",
    "a grouped Conv": "r = Relu(a) y = Conv<group=2>(r, halves)",
    "a depthwise Conv": "r = Relu(a) y = Conv<group=8>(r, depth)",
    "a depthwise Conv that multiplies": "r = Relu(a) y = Conv<group=8>(r, many)",
    "ConvTranspose": "r = Relu(a) y = ConvTranspose<strides=[2,2]>(r, up)",
    "a grouped ConvTranspose": "r = Relu(a) y = ConvTranspose<group=2>(r, up)",
}  # fmt: skip

NETS = {
    "a depthwise triplet": (2, f"{FIRST} r = Relu(a) d = Conv<group=8,pads=[1,1,1,1]>(r, depth) "
                               "s = Relu(d) y = Conv(s, w2)"),
    "a row of four": (3, f"{FIRST} r = Relu(a) d = Conv<group=8,pads=[1,1,1,1]>(r, depth) "
                         "s = Relu(d) e = Conv<group=8>(s, depth) y = Conv(e, w2)"),
    "a depthwise layer with another reader beside it": (2,
        f"{FIRST} r = Relu(a) d = Conv<group=8,pads=[1,1,1,1]>(r, depth) s = Relu(d) "
        "t = Conv(s, w2) u = Conv(r, w2) y = Add(t, u)"),
    "several readers": (1, f"{FIRST} r = Relu(a) p = MaxPool<kernel_shape=[1,1]>(a) "
                           "s = Conv(r, w2) t = Conv(p, w2, b2) y = Add(s, t)"),
    "a residual": (1, f"{FIRST} r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, w3) c = Relu(b) "
                      "d = Conv<pads=[1,1,1,1]>(c, w3) s = Add(r, d) t = Relu(s) y = Conv(t, w2)"),
    "a concat": (0, f"{FIRST} c = Conv<pads=[1,1,1,1]>(x, small) k = Concat<axis=1>(c, a) "
                    "s = Conv(k, eleven) t = Conv(a, w2) u = ReduceMax(s) y = Add(t, u)"),
    "a shortcut that pads": (0, f"{FIRST} r = Relu(a) s = Slice(r, from, to, hw, by) "
        "p = Pad(s, around) b = Conv(x, sixteen) c = Slice(b, from, to, hw, by) d = Add(p, c) "
        "e = Relu(d) y = Conv(e, wide)"),
    "a gate": (2, f"{FIRST} r = Relu(a) p = GlobalAveragePool(r) q = Conv(p, squeeze) v = Relu(q) "
                  "e = Conv(v, excite) g = HardSigmoid(e) m = Mul(r, g) y = Conv(m, head)"),
    "a ConvTranspose and a Gemm": (2, "a = ConvTranspose<group=2>(x, tw, tb) r = Relu(a) "
                                      "b = Conv(r, tc) f = Flatten(b) y = Gemm(f, tg)"),
    "products": (2, "p = MatMul(x, p1) a = Add(p, p1b) r = Relu(a) q = MatMul(r, p2) "
                    "s = Relu(q) y = MatMul(s, p3)"),
    "a Gemm with one bias": (1, "f = Flatten(x) g = Gemm(f, g1, g1b) r = Relu(g) "
                                "y = Gemm<alpha=0.5,beta=2.0>(r, g2, g2b)"),
}  # fmt: skip
MORE = {
    "tw": (4, 3, 2, 2), "tb": (6,), "tc": (4, 6, 1, 1), "tg": (4 * 49, 3), "p1": (6, 8),
    "p1b": (8,), "p2": (8, 7), "p3": (7, 3), "g1": (144, 6), "g1b": (1,), "g2": (6, 3), "g2b": (3,),
}  # fmt: skip


def model_of(nodes, **weights):
    return build(f"{HEAD} {{ {nodes} }}", **WEIGHTS | weights)


def assert_same(proto, model, tolerance=1e-5):
    onnx.checker.check_model(model.to_proto(), full_check=True)
    values = feeds(proto)
    before, found = run(proto, values)["y"], run(model.to_proto(), values)["y"]
    np.testing.assert_allclose(found, before, atol=tolerance * np.abs(before).max())


def spans(model):
    """Largest weight of every output and input channel of every layer, by operator and axis."""
    found = {}
    for layer in layers(model):
        w = np.abs(layer.by_group).max(axis=3)
        found[layer.name] = w.max(axis=2).reshape(-1), w.max(axis=1).reshape(-1)
    return found


@pytest.mark.parametrize("nodes", PAIRS.values(), ids=PAIRS.keys())
def test_both_sides_of_a_pair_have_equal_ranges_and_the_function_stays(nodes):
    proto = model_of(f"{FIRST} {nodes}")
    model, outcome = after(proto, Equalize())
    assert [edit.where for edit in outcome.edits] == ["a"]
    assert_same(proto, model)
    ranges = spans(model)
    (_, last), first = ranges[list(ranges)[-1]], ranges["Conv_a"][0]
    np.testing.assert_allclose(first, last.reshape(8, -1).max(axis=1), rtol=2 * TOLERANCE)
    before = np.abs(WEIGHTS["w1"]).max(axis=(1, 2, 3))
    assert np.ptp(np.log(first)) < np.ptp(np.log(before))


@pytest.mark.parametrize(("count", "nodes"), NETS.values(), ids=NETS.keys())
def test_nets_of_more_layers_keep_their_function(count, nodes):
    proto = model_of(nodes, **MORE)
    model, outcome = after(proto, Equalize())
    assert len(outcome.edits) == count
    assert_same(proto, model)


@pytest.mark.parametrize("nodes", [f"{FIRST} {nodes}" for nodes in PAIRS.values()]
                         + [nodes for _, nodes in NETS.values()], ids=[*PAIRS, *NETS])  # fmt: skip
def test_any_factors_of_free_channels_leave_the_function_alone(nodes):
    proto = model_of(nodes, **MORE)
    model = from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    found = regions(model, ceilings=True, norms=True)
    draw = np.random.default_rng(1)
    for region in found:
        region.divide(model, np.where(region.free, np.exp(draw.uniform(-2, 2, region.count)), 1.0))
    assert any(region.free.any() for region in found)
    assert_same(proto, model)


@pytest.mark.parametrize("net", ["a residual", "a concat", "a shortcut that pads"])
def test_what_several_layers_make_is_left_alone_with_the_reason(net):
    _, outcome = after(model_of(NETS[net][1], **MORE), Equalize())
    told = [skip.why for skip in outcome.skips]
    assert any(why.startswith("2 layers make it, Conv_") for why in told)


def test_all_layers_in_a_row_have_the_cube_root_of_their_ranges():
    proto = model_of(NETS["a depthwise triplet"][1])
    before, after_ = spans(from_proto(proto)), spans(after(proto, Equalize())[0])
    sides = {"Conv_a": 0, "Conv_d": 0, "Conv_y": 1}
    expected = np.cbrt(np.prod([before[name][side] for name, side in sides.items()], axis=0))
    for name, side in sides.items():
        np.testing.assert_allclose(after_[name][side], expected, rtol=2 * TOLERANCE)


def test_the_widest_of_several_readers_counts():
    ranges = spans(after(model_of(NETS["several readers"][1]), Equalize())[0])
    last = np.maximum(ranges["Conv_s"][1], ranges["Conv_t"][1])
    np.testing.assert_allclose(ranges["Conv_a"][0], last, rtol=2 * TOLERANCE)


def test_dead_channels_are_left_alone():
    dead = WEIGHTS["w1"].copy()
    dead[2] = 0
    unread = WEIGHTS["w2"].copy()
    unread[:, 5] = 0
    proto = model_of(f"{FIRST} r = Relu(a) y = Conv(r, w2)", w1=dead, w2=unread)
    model, outcome = after(proto, Equalize())
    first, last = (layer.weight for layer in layers(model))
    assert outcome.edits[0].what.startswith("6 of 8 channels")
    np.testing.assert_array_equal(first[[2, 5]], dead[[2, 5]])
    np.testing.assert_array_equal(last[:, [2, 5]], unread[:, [2, 5]])
    assert_same(proto, model)


CLIPPED = f"{FIRST} r = Clip(a, zero, six) y = Conv(r, w2)"


def test_a_clip_is_a_boundary_with_a_reason():
    model, outcome = after(model_of(CLIPPED), Equalize())
    assert not outcome
    assert {skip.where: skip.why for skip in outcome.skips} == {
        "a": "Clip Clip_r cuts all channels off at one value",
        "x": "the model is fed its channels",
        "y": "y is an output of the model",
    }
    assert ops(model) == ["Conv", "Clip", "Conv"]


def test_with_ceilings_it_becomes_a_relu_and_a_min():
    proto = model_of(CLIPPED)
    model, outcome = after(proto, Equalize(ceilings=True))
    assert ops(model) == ["Conv", "Relu", "Min", "Conv"]
    assert [edit.where for edit in outcome.edits] == ["a"]
    ceiling = model.graph.nodes[2].inputs[1].values
    assert ceiling.shape == (1, 8, 1, 1)
    values = {"x": 100 * feeds(proto)["x"]}  # far beyond the ceilings
    before, found = run(proto, values)["y"], run(model.to_proto(), values)["y"]
    np.testing.assert_allclose(found, before, atol=1e-5 * np.abs(before).max())
    np.testing.assert_allclose(
        run(model.to_proto(), values, taps=["r"])["r"].max(axis=(0, 2, 3)), ceiling.ravel()
    )
    again = pipeline.run(model, (Equalize(ceilings=True),), None)["equalize"]
    assert not again


@pytest.mark.parametrize("act_bits", [8, 4])
def test_layers_between_ceilings_stay_on_integers_and_codes_are_cut_off(tmp_path, act_bits):
    proto = model_of(f"{CLIPPED.replace('y = Conv(r, w2)', 'd = Conv<group=8>(r, depth)')} "
                     "s = Clip(d, zero, six) y = Conv(s, w2)")  # fmt: skip
    model, _ = after(proto, Equalize(ceilings=True))
    report, file = quantize(model.to_proto(), tmp_path, act_bits=act_bits)
    assert (len(report.kernels.integer), report.kernels.floating) == (3, [])
    assert report.kernels.operators["Min"] == 2
    assert not report.kernels.operators.keys() & {"Relu", "Conv", "FusedConv"}
    # The first and the last layer read 8 bits in any case.
    assert [info.act_bits for info in inspect(load(file))[0]] == [8, act_bits, 8]
    assert min(layer.isolated for layer in report.layers) > 3 * act_bits
    written = onnx.load(file)
    values = {"x": 100 * feeds(proto)["x"]}
    exact = run(model.to_proto(), values, taps=["r"])["r"]
    codes = run(written, values, optimize=False, taps=["r"])["r"]
    step = codes.max() / (2**act_bits - 1)
    cut = exact.clip(max=codes.max()).max(axis=(0, 2, 3))  # the grid ends where calibration did
    assert np.abs(codes.max(axis=(0, 2, 3)) - cut).max() <= 0.51 * step


def test_a_mean_over_space_is_crossed_as_the_pool_it_becomes():
    proto = model_of(f"{FIRST} r = Relu(a) m = ReduceMean<axes=[2,3],keepdims=0>(r) "
                     "y = Gemm(m, dense)")  # fmt: skip
    model, outcome = after(proto, *PREPARATION, Equalize())
    assert "GlobalAveragePool" in ops(model)
    assert [edit.where for edit in outcome.edits] == ["a"]
    assert_same(proto, model)


def test_weights_that_others_share_are_left_to_them():
    proto = model_of(
        f"{FIRST} r = Relu(a) b = Conv(r, w2) c = Conv<pads=[1,1,1,1]>(x, w1, b1) "
        "d = Sigmoid(c) e = Conv(d, w2) y = Add(b, e)"
    )
    model, outcome = after(proto, Equalize())
    assert len(outcome.edits) == 1
    assert_same(proto, model)


def test_equal_ranges_are_no_edit():
    proto = model_of(f"{FIRST} r = Relu(a) y = Conv(r, w2)")
    model, outcome = after(proto, Equalize())
    assert outcome
    before = model.to_bytes()
    assert not pipeline.run(model, (Equalize(),), None)["equalize"]
    assert model.to_bytes() == before
