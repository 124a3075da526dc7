"""Resize and Pad between integer layers: the same function, in a form onnxruntime can turn."""

import numpy as np
import onnx
import pytest

from onnxq.passes.layout_proof import LayoutProof
from onnxq.runtime import optimized_graph
from tests.graphs import after, build, feeds, ops, quantize, run

CONSTANTS = {
    "half": np.array([1, 1, 0.5, 0.5], np.float32),
    "two": np.array([2, 1.5], np.float32),
    "sizes": np.array([1, 4, 5, 9]),
    "wide": np.array([5, 9]),
    "roi": np.array([0.1, 0.2, 0.8, 0.9], np.float32),
    "pads": np.array([1, 2, 3, 0]),
    "images": np.array([2, 3]),
    "turned": np.array([-1, -2]),
    "first": np.array([2]),
    "last": np.array([4]),
    "value": np.float32(0.5),
    "nothing": np.array([], np.float32),
}
CROP = 'mode="linear", coordinate_transformation_mode="tf_crop_and_resize"'
TOLD = {
    "scales": 'Resize<axes=[2,3], mode="nearest">(a, , two)',
    "scales turned": 'Resize<axes=[-1,2], mode="linear">(a, , two)',
    "roi": f"Resize<axes=[2,3], {CROP}>(a, roi, two)",
    "sizes": 'Resize<axes=[2,3], mode="linear">(a, , , wide)',
    "pad": "Pad(a, pads, , images)",
    "pad turned": "Pad(a, pads, value, turned)",
    "pad reflect": 'Pad<mode="reflect">(a, pads, , images)',
}
SHIELDED = {
    "scales": 'Resize<mode="cubic">(a, , half)',
    "sizes": 'Resize<mode="cubic">(a, , , sizes)',
    "some scales": 'Resize<mode="cubic", axes=[-1,2]>(a, , two)',
    "some sizes": 'Resize<mode="cubic", axes=[3,2]>(a, , , wide)',
    "ratio": 'Resize<axes=[2,3], keep_aspect_ratio_policy="not_larger">(a, , , wide)',
}


def net(middle, before="", opset=18):
    """A layer, what stands in the middle, and another layer."""
    body = f"{before} c = Conv<pads=[1,1,1,1]>(x, w) a = Relu(c) b = {middle} y = Conv(b, v)"
    used = {name: x for name, x in CONSTANTS.items() if name in body}
    weights = {"w": (4, 3, 3, 3), "v": (2, 4, 3, 3)}
    text = f"(float[N,3,8,12] x) => (float[N,2,H,W] y) {{ {body} }}"
    return build(text, opset=opset, **weights, **used)


POOLED = "c = Conv(x, w) p = Pad(c, sides) m = MaxPool<kernel_shape=[3,3], strides=[2,2]>(p) "
SIDES = np.array([0, 0, 1, 2, 0, 0, 1, 0])


def test_a_pad_before_a_maxpool_has_channels_last_and_so_has_the_pool(tmp_path):
    text = f"(float[N,3,8,12] x) => (float[] y) {{ {POOLED} y = InstanceNormalization(m, s, b) }}"
    proto = build(text, w=(4, 3, 3, 3), s=(4,), b=(4,), sides=SIDES)
    model, outcome = after(proto, LayoutProof())
    assert [edit.what for edit in outcome.edits] == ["channels last, as for the MaxPool behind it"]
    given = feeds(proto)
    np.testing.assert_array_equal(run(model.to_proto(), given)["y"], run(proto, given)["y"])
    _, file = quantize(proto, tmp_path)
    kernels = {node.op_type for node in optimized_graph(file).node}
    assert "NhwcMaxPool" in kernels and "MaxPool" not in kernels


@pytest.mark.parametrize(
    "body",
    ["p = Pad(x, sides) y = MaxPool<kernel_shape=[3,3]>(p)",
     POOLED.replace("MaxPool", "AveragePool") + "y = Relu(m)",
     POOLED + "n = Relu(m) k = Neg(p) t = ReduceMax(k) y = Add(n, t)"],
    ids=["of the input", "average", "read twice"],
)  # fmt: skip
def test_other_pads_stay(body):
    proto = build(f"(float[1,3,8,12] x) => (float[] y) {{ {body} }}", opset=18, sides=SIDES,
                  **{"w": (4, 3, 3, 3)} if "Conv" in body else {})  # fmt: skip
    _, outcome = after(proto, LayoutProof())
    assert not outcome.edits


def converts_to_the_same(proto, folder):
    """Whether both layers run on integers and the result is near."""
    report, file = quantize(proto, folder)
    given = feeds(proto, 9)
    found, right = run(onnx.load(file), given)["y"], run(proto, given)["y"]
    assert found.shape == right.shape
    error = np.square(found - right).sum() / np.square(right).sum()
    return len(report.kernels.integer) == 2 and error < 1e-2


@pytest.mark.parametrize("middle", TOLD.values(), ids=TOLD)
def test_every_axis_is_told(middle, tmp_path):
    proto = net(middle)
    model, outcome = after(proto, LayoutProof())
    assert [edit.what for edit in outcome.edits] == ["told of every axis"]
    (node,) = (n for n in model.graph.nodes if n.op in ("Resize", "Pad"))
    assert "axes" not in node.attrs
    given = feeds(proto)
    np.testing.assert_array_equal(run(model.to_proto(), given)["y"], run(proto, given)["y"])
    assert converts_to_the_same(proto, tmp_path)


@pytest.mark.parametrize("middle", SHIELDED.values(), ids=SHIELDED)
def test_what_needs_height_and_width_last_is_shielded(middle, tmp_path):
    proto = net(middle)
    model, outcome = after(proto, LayoutProof())
    assert outcome.edits[-1].what == "put between two Reshapes"
    found = [op for op in ops(model) if op in ("Reshape", "Resize")]
    assert found == ["Reshape", "Resize", "Reshape"]
    given = feeds(proto)
    np.testing.assert_array_equal(run(model.to_proto(), given)["y"], run(proto, given)["y"])
    assert converts_to_the_same(proto, tmp_path)


def test_sizes_that_are_computed(tmp_path):
    before = "s = Shape(x) t = Slice(s, first, last)"
    for middle in ('Resize<axes=[2,3], mode="linear">(a, , , t)',
                   'Resize<axes=[2,3], mode="cubic">(a, , , t)'):  # fmt: skip
        assert converts_to_the_same(net(middle, before), tmp_path)


def test_scales_of_old_opsets_that_are_empty(tmp_path):
    proto = net('Resize<mode="cubic">(a, nothing, nothing, sizes)', opset=11)
    assert converts_to_the_same(proto, tmp_path)


def test_axes_that_are_not_known_are_skipped():
    before = "s = Shape(x) t = Slice(s, first, last) u = Sub(t, t) z = Add(u, images)"
    _, outcome = after(net("Pad(a, pads, , z)", before), LayoutProof())
    assert [skip.why for skip in outcome.skips] == ["which of its axes change is not known"]


@pytest.mark.parametrize("middle", ['Resize<mode="linear">(a, , half)', "Pad(a, every)"])
def test_others_are_left_alone(middle):
    text = f"(float[1,4,8,8] a) => (float[] y) {{ y = {middle} }}"
    constants = {"half": CONSTANTS["half"], "every": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    proto = build(text, opset=18, **{k: v for k, v in constants.items() if k in middle})
    model, outcome = after(proto, LayoutProof())
    assert not outcome.edits
    assert not outcome.skips
    assert len(model.graph.nodes) == 1


def test_a_ratio_kept_with_that_of_channels_is_skipped():
    sizes = np.array([3, 16, 20])
    proto = build(
        '(float[1,3,8,8] x) => (float[] y) '
        '{ y = Resize<axes=[1,2,3], keep_aspect_ratio_policy="not_larger">(x, , , sizes) }',
        opset=18, sizes=sizes,
    )  # fmt: skip
    model, outcome = after(proto, LayoutProof())
    assert ops(model) == ["Resize"]
    (skip,) = outcome.skips
    assert skip.why == "it keeps the ratio of other sizes than height and width"
