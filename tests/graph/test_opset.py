"""What ONNX's converter makes of old operators computes what these did, or is refused."""

import numpy as np
import onnx
import pytest

from onnxq.errors import UnsupportedModel
from onnxq.graph.loading import from_proto
from tests.graphs import build, feeds, run

# Nodes, and the opsets whose spelling of them that is.
OLD = {
    "Upsample, nearest": ('y = Upsample<mode="nearest">(x, up)', 9),
    "Upsample, linear": ('y = Upsample<mode="linear">(x, up)', 9),
    "Upsample by attribute": ('y = Upsample<mode="linear", scales=[1.0,1.0,1.5,2.0]>(x)', 7),
    "Resize up, nearest": ('y = Resize<mode="nearest">(x, up)', 10),
    "Resize up, linear": ('y = Resize<mode="linear">(x, up)', 10),
    "Resize down, nearest": ('y = Resize<mode="nearest">(x, down)', 10),
    "Resize down, linear": ('y = Resize<mode="linear">(x, down)', 10),
    "Resize by a half and two": ('y = Resize<mode="nearest">(x, both)', 10),
    "Resize by what is computed": ('s = Mul(up, ones) y = Resize<mode="linear">(x, s)', 10),
    "Resize by what is joined": (
        's = Concat<axis=0>(one, less) y = Resize<mode="nearest">(x, s)', 10),
    "another Resize": ('a = Relu(x) y = Resize<mode="nearest">(a, up)', 10),
    "Softmax": ("y = Softmax<axis=1>(x)", 7),
    "LogSoftmax": ("y = LogSoftmax<axis=2>(x)", 11),
    "Dropout": ("y = Dropout<ratio=0.5>(x)", 7),
    "Clip": ("y = Clip<min=-0.3, max=0.4>(x)", 7),
    "Clip at one end": ("y = Clip<max=0.4>(x)", 10),
    "Pad": ('y = Pad<pads=[0,0,1,2,0,0,2,1], value=1.5>(x)', 7),
    "Pad, reflected": ('y = Pad<mode="reflect", pads=[0,0,1,2,0,0,2,1]>(x)', 10),
    "Slice": ("y = Slice<axes=[2,3], starts=[1,-5], ends=[5,100]>(x)", 7),
    "Split": ("a, b = Split<axis=1, split=[1,3]>(x) y = Concat<axis=1>(b, a)", 11),
    "Squeeze": ("a = Unsqueeze<axes=[0,2]>(x) y = Squeeze<axes=[2]>(a)", 11),
    "ReduceMean": ("y = ReduceMean<axes=[2,3], keepdims=0>(x)", 11),
    "ReduceSum": ("y = ReduceSum<axes=[1]>(x)", 11),
    "TopK": ("y, i = TopK<axis=1, k=2>(x)", 7),
    "BatchNormalization": ("y = BatchNormalization(x, g, g, g, g)", 7),
    "AveragePool": ("y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)", 7),
    "MaxPool": ('y = MaxPool<kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_LOWER">(x)', 8),
    "Gemm": ("a = Flatten(x) y = Gemm<alpha=0.5, beta=2.0>(a, w, c)", 7),
    "LRN": ("y = LRN<size=3>(x)", 7),
    "DepthToSpace": ("y = DepthToSpace<blocksize=2>(x)", 7),
    "RoiAlign": ("y = RoiAlign<output_height=3, output_width=3>(x, boxes, of)", 10),
    "Scatter": ("y = Scatter<axis=1>(x, places, x)", 9),
    "in a body": ('is = Not(no) y = If(is) <then_branch = t () => (float[] b) '
                  '{ b = Upsample<mode="linear">(x, up) }, else_branch = e () => (float[] d) '
                  "{ d = Upsample(x, up) }>", 9),
}  # fmt: skip
NUMBERS = {
    "up": np.float32([1, 1, 1.5, 2]), "down": np.float32([1, 1, 0.6, 0.7]),
    "both": np.float32([1, 1, 2, 0.5]), "one": np.float32([1, 1]), "less": np.float32([0.6, 0.7]),
    "mixed": np.float32([1, 1, 0.6, 2]), "two": np.ones(2, np.float32),
    "ones": np.ones(4, np.float32), "w": (192, 5), "c": (1, 5),
    "g": np.float32([1, 2, 3, 4]), "of": np.array([0, 1]), "places": np.zeros((2, 4, 6, 8), int),
    "boxes": np.float32([[0, 0, 8, 9], [1, 2, 7, 6]]), "no": np.array(False),
}  # fmt: skip


def old(nodes, opset):
    """A model with these nodes, and the constants that they name."""
    words = {word.strip("(),") for word in nodes.replace("(", "( ").split()}
    used = {name: value for name, value in NUMBERS.items() if name in words}
    return build(f"(float[2,4,6,8] x) => (float[] y) {{ {nodes} }}", opset=opset, **used)


@pytest.mark.parametrize("version", [13, 21])
@pytest.mark.parametrize("case", OLD)
def test_a_raised_opset_computes_the_same(case, version):
    proto = old(*OLD[case])
    model = from_proto(old(*OLD[case]))
    model.raise_opset(version)
    assert model.opset == version
    values = feeds(proto)
    found, wanted = (run(p, values)["y"] for p in (model.to_proto(), proto))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("nodes", "opset", "version", "why"),
    [
        ("y = Hardmax<axis=1>(x)", 11, 13, "Hardmax has another meaning from 13"),
        ('y = Resize<mode="nearest">(x, mixed)', 10, 11, "rounds up where it shrinks, and down"),
        ("y = GroupNormalization<num_groups=2>(x, two, two)", 20, 21,
         "GroupNormalization has another meaning from 21"),
        ("c = Not(no) y = If(c) <then_branch = t () => (float[] b) { b = Hardmax<axis=1>(x) }, "
         "else_branch = e () => (float[] d) { d = Relu(x) }>", 11, 13, "Hardmax"),
    ],
)  # fmt: skip
def test_what_would_mean_something_else_is_refused(nodes, opset, version, why):
    model = from_proto(old(nodes, opset))
    model.raise_opset(version - 1)
    with pytest.raises(UnsupportedModel, match=why):
        model.raise_opset(version)
    assert model.opset == version - 1


def test_what_functions_compute_is_refused_likewise():
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 11, "local" : 1]> net (float[2,3] x) => (float[2,3] y)'
        ' { y = local.F(x) } <domain: "local", opset_import: ["" : 11]> F (x) => (y)'
        " { y = Hardmax<axis=0>(x) }"
    )
    with pytest.raises(UnsupportedModel, match="Hardmax"):
        from_proto(proto).raise_opset(13)


def test_operators_of_others_mean_what_they_did():
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 10, "mine" : 1]> net (float[2,3] x) => (float[2,3] y)'
        " { a = mine.Resize(x) b = mine.Hardmax<axis=0>(a) y = Relu(b) }"
    )
    model = from_proto(proto)
    model.raise_opset(13)
    assert not model.graph.nodes[0].attrs


def test_scales_that_are_not_known_are_told():
    model = from_proto(old(OLD["Resize by what is computed"][0].replace("linear", "nearest"), 10))
    model.raise_opset(13)
    assert "Resize Resize_y computes its scales: taken to enlarge" in model.notes
