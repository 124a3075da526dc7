"""More channels around depthwise layers: the same function, and none that costs a scalar loop."""

import numpy as np
import onnx
import pytest

from onnxq.evidence.validation import quantized_against
from onnxq.passes.pad_channels import VECTOR, PadChannels
from tests.graphs import after, build, feeds, quantize, run

BLOCK = "e = Conv(x, w) r = {act} d = Conv<group=24, pads=[1,1,1,1]>(r, v, b) s = Clip(d, lo, hi) "
WEIGHTS = {"w": (24, 8, 1, 1), "v": (24, 1, 3, 3), "b": (24,), "p": (8, 24, 1, 1)}
ENDS = {"lo": np.float32(-0.5), "hi": np.float32(6)}


def net(body, act="Relu(e)", channels=8, opset=20, **weights):
    text = f"(float[N,{channels},9,9] x) => (float[] y) {{ {body.format(act=act)} }}"
    given = {name: x for name, x in (WEIGHTS | ENDS | weights).items() if f"{name})" in text
             or f"{name}," in text}  # fmt: skip
    return build(text, opset=opset, **given)


def groups(model):
    return [node.attrs["group"] for node in model.graph.nodes if node.attrs.get("group", 1) > 1]


def same(proto, model):
    given = feeds(proto, 3, 2)
    found, right = run(model.to_proto(), given)["y"], run(proto, given)["y"]
    np.testing.assert_allclose(found, right, atol=1e-5 * np.abs(right).max())


GATED = (
    BLOCK + "g = GlobalAveragePool(s) q = Conv(g, m) k = Relu(q) o = Conv(k, n) h = HardSigmoid(o) "
    "t = Mul(s, h) y = Conv(t, p)"
)
SQUEEZE = {"m": (6, 24, 1, 1), "n": (24, 6, 1, 1)}


@pytest.mark.parametrize("act", ["Relu(e)", "Sigmoid(e)", "HardSwish(e)", "Add(e, hi)", "Mish(e)"])
def test_a_block_has_more_channels_inside_and_computes_the_same(act):
    proto = net(BLOCK + "y = Conv(s, p)", act)
    model, outcome = after(proto, PadChannels())
    assert groups(model) == [32]
    assert [edit.what for edit in outcome.edits] == ["32 channels instead of 24"]
    assert model.filled == {"Conv_e": 8, "Conv_d": 8}
    same(proto, model)


def test_a_squeeze_and_excitation_has_more_channels_too():
    proto = net(GATED, **SQUEEZE)
    model, _ = after(proto, PadChannels())
    shapes = [node.inputs[1].shape for node in model.graph.nodes if node.op == "Conv"]
    assert shapes == [(32, 8, 1, 1), (32, 1, 3, 3), (6, 32, 1, 1), (32, 6, 1, 1), (8, 32, 1, 1)]
    same(proto, model)


def test_several_depthwise_layers_and_readers_grow_together():
    body = (
        BLOCK + "f = Conv<group=24, strides=[2,2]>(s, v) z = Conv(f, p) u = MaxPool<kernel_shape="
        "[3,3], strides=[2,2]>(s) i = Conv(u, p) y = Add(z, i)"
    )
    proto = net(body)
    model, outcome = after(proto, PadChannels())
    assert groups(model) == [32, 32]
    assert len(outcome.edits) == 1
    same(proto, model)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("y = Conv<group=24>(x, v)", "an input or output of the model"),
        (BLOCK + "y = Relu(s)", "an input or output of the model"),
        (BLOCK + "y = Concat<axis=1>(s, r)", "Concat Concat_y does not leave its channels apart"),
        (BLOCK + "t = Mul(s, each) y = Conv(t, p)", "Mul Mul_t does not"),
        (BLOCK + "t = Exp(s) u = Div(s, t) y = Conv(u, p)", "does not"),
        (BLOCK + "t = ReduceMean(s, one) y = Mul(t, hi)", "ReduceMean"),
        (BLOCK + "t = Reshape(s, flat) y = MatMul(t, z)", "Reshape"),
        (BLOCK + "y = Conv<group=2>(s, half)", "Conv Conv_y does not"),
    ],
    ids=["first", "last", "concat", "vector", "quotient", "mean", "reshape", "groups"],
)  # fmt: skip
def test_channels_that_something_else_counts_stay(body, why):
    constants = {
        "each": (24, 1, 1), "one": np.array([1]), "flat": np.array([-1, 24 * 81]),
        "z": (24 * 81, 3), "half": (8, 12, 1, 1),
    }  # fmt: skip
    channels = 24 if "Conv<group=24>(x" in body else 8
    proto = net(body, channels=channels, **constants)
    before = [a.i for n in proto.graph.node for a in n.attribute if a.name == "group"]
    model, outcome = after(proto, PadChannels())
    assert groups(model) == before
    assert why in outcome.skips[0].why


def test_whole_vectors_and_full_convolutions_are_left_alone():
    body = "e = Conv(x, w) d = Conv<group=16>(e, v) y = Conv(d, p)"
    proto = net(body, w=(16, 8, 1, 1), v=(16, 1, 3, 3), p=(7, 16, 1, 1))
    model, outcome = after(proto, PadChannels())
    assert not outcome.edits and not outcome.skips
    assert groups(model) == [16]


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_channels_of_zeros_are_not_told_to_be_dead_and_run_on_integers(tmp_path, bits):
    proto = net(GATED, **SQUEEZE)
    for quality in ("fast", "balanced"):
        report, file = quantize(
            proto, tmp_path, [feeds(proto, s, 4) for s in range(4)], bits=bits, recipe=quality
        )
        assert report.kernels.floating == []
        assert not [note for note in report.notes if "dead" in note]
        (group,) = (
            a.i for node in onnx.load(file).graph.node for a in node.attribute
            if a.name == "group" and a.i > 1
        )  # fmt: skip
        assert group % VECTOR == 0
        data = [feeds(proto, s, 4) for s in range(2)]
        errors = quantized_against(tmp_path / "model.onnx", file, data)
        assert len(errors) == 5
        assert all(np.isfinite(error.isolated) for error in errors)


ROWS = {"w": (17, 3, 1), "v": (17, 1, 3), "p": (2, 17, 1), "two": np.array([-2, -1]),
        "lo": np.full((1, 1, 1, 1), 0.5, np.float32)}  # fmt: skip
FEWER_AXES = "u = ReduceMax<keepdims=0>(x, one) t = Conv(u, w) e = Add(d, t) y = Conv(e, p4)"


@pytest.mark.parametrize(
    ("data", "end"),
    [("N,3,9", "m = ReduceMean(d, two) e = Sub(d, m) y = Conv(e, p)"),
     ("17,3,8", "e = Add(d, lo) y = Conv(e, p4)"),
     ("1,3,17,17", FEWER_AXES)],
    ids=["mean of channels", "constant of more axes", "data of fewer axes"],
)  # fmt: skip
def test_channels_that_lie_elsewhere_in_part_stay(data, end):
    more = {"p4": (2, 17, 1, 1), "one": np.array([1])}
    flat = data.count(",") == 2
    more |= {"w": (17, 17, 1)} if "t =" in end else {}
    more |= {} if flat else {"w4": (17, 3, 1, 1), "v": (17, 1, 3, 3)}
    body = f"a = Conv(x, {'w' if flat else 'w4'}) d = Conv<group=17>(a, v) {end}"
    if not flat:
        body = body.replace("group=17", "group=17, pads=[1,1,1,1]")
    used = {name: x for name, x in (ROWS | more).items() if f"{name})" in body}
    proto = build(f"(float[{data}] x) => (float[] y) {{ {body} }}", opset=18, **used)
    model, outcome = after(proto, PadChannels())
    assert not outcome.edits and outcome.skips
    same(proto, model)


@pytest.mark.parametrize(("side", "grown"), [(1, True), (3, False)])
def test_dense_layers_around_may_cost_more_than_is_saved(side, grown):
    """For each weight of the depthwise layer, 8 * (40 + 40) products, or 9 times as many."""
    pads = f"pads={[side // 2] * 4}"
    body = f"e = Conv<{pads}>(x, w) d = Conv<group=40>(e, v) z = Conv<{pads}>(d, p) y = Relu(z)"
    shape = (40, 40, side, side)
    proto = net(body, channels=40, w=shape, v=(40, 1, 3, 3), p=shape)
    model, outcome = after(proto, PadChannels())
    assert groups(model) == [48 if grown else 40]
    told = [skip.why for skip in outcome.skips]
    assert told == ([] if grown else ["8 channels more would cost 1.4 times what they save"])
