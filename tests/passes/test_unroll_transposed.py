"""Which transposed convolutions become convolutions, and why the others do not."""

import pytest

from onnxq.passes.unroll_transposed import UnrollTransposed
from tests.graphs import after, build, ops

NODE = "y = ConvTranspose<{}>(x, w)"
GROWS = "its kernel is much smaller than its stride"
SHAPE = "it is not two-dimensional, dilated or has two strides"
OPEN = "its padding depends on the size of its input"


def unrolled(attrs, kernel, image="1,4,6,6", nodes=NODE, **weights):
    proto = build(
        f"(float[{image}] x) => (float[] y) {{ {nodes.format(attrs)} }}",
        w=(4, 3, *kernel), **weights,
    )  # fmt: skip
    return after(proto, UnrollTransposed())


@pytest.mark.parametrize(
    ("attrs", "kernel", "expected"),
    [
        ("strides=[2,2]", (2, 2), "Conv DepthToSpace"),
        ("strides=[2,2]", (3, 3), "Conv DepthToSpace Slice"),
        ("strides=[2,2],pads=[1,1,1,1]", (4, 4), "Conv DepthToSpace Slice"),
        ("pads=[1,1,1,1]", (3, 3), "Conv Slice"),
        ("strides=[1,1]", (1, 1), "Conv"),
    ],
)
def test_only_what_is_needed_follows_the_convolution(attrs, kernel, expected):
    model, outcome = unrolled(attrs, kernel)
    assert " ".join(ops(model)) == expected
    assert [edit.where for edit in outcome.edits] == ["ConvTranspose_y"]


@pytest.mark.parametrize(
    ("attrs", "kernel", "image", "why"),
    [
        ("strides=[2,2]", (1, 1), "1,4,6,6", GROWS),
        ("strides=[3,3]", (2, 2), "1,4,6,6", GROWS),
        ("strides=[2,1]", (2, 2), "1,4,6,6", SHAPE),
        ("dilations=[2,2]", (2, 2), "1,4,6,6", SHAPE),
        ("strides=[2]", (2,), "1,4,6", SHAPE),
        ('auto_pad="SAME_UPPER"', (3, 3), "1,4,6,6", OPEN),
        ("strides=[2,2],output_shape=[12,12]", (2, 2), "1,4,6,6", OPEN),
        ("strides=[2,2],output_padding=[1,1]", (2, 2), "1,4,6,6", "it pads its output beyond what "
         "it computes"),
    ],
)  # fmt: skip
def test_the_others_stay_with_a_reason(attrs, kernel, image, why):
    model, outcome = unrolled(attrs, kernel, image)
    assert ops(model) == ["ConvTranspose"]
    assert [(skip.where, skip.why) for skip in outcome.skips] == [("ConvTranspose_y", why)]


def test_a_bias_that_is_fed_keeps_it_as_it_is():
    proto = build(
        "(float[1,4,6,6] x, float[3] b) => (float[] y) "
        "{ y = ConvTranspose<strides=[2,2]>(x, w, b) }",
        w=(4, 3, 2, 2),
    )  # fmt: skip
    _, outcome = after(proto, UnrollTransposed())
    assert [skip.why for skip in outcome.skips] == ["its bias is not constant"]
