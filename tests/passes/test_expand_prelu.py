"""PRelu is taken apart where its parts run on integers, and computes what it did."""

import numpy as np
import pytest

from onnxq.graph.loading import from_proto
from onnxq.passes.expand_prelu import ExpandPrelu
from tests.graphs import after, build, feeds, ops, run

IMAGE = "(float[1,4,6,6] x) => (float[] y)"
SLOPES = np.array([0.25, -0.5, 0.0, 2.0], np.float32)
PARTS = ["Conv", "Relu", "Clip", "Conv", "Add", "Conv"]


def prelu(nodes, slopes, head=IMAGE):
    used = {"w": (4, 4, 1, 1)} if "w)" in nodes else {}
    return build(f"{head} {{ {nodes} }}", **used, s=slopes)


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1)])
def test_slopes_of_channels_become_a_depthwise_layer(shape):
    proto = prelu("a = Conv(x, w) h = PRelu(a, s) y = Conv(h, w)", SLOPES.reshape(shape))
    model, outcome = after(proto, ExpandPrelu())
    assert ops(model) == PARTS
    assert [edit.what for edit in outcome.edits] == ["expanded into operators with integer kernels"]
    given = feeds(proto)
    np.testing.assert_allclose(
        run(model.to_proto(), given)["y"], run(proto, given)["y"], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
@pytest.mark.parametrize("nodes", ["y = PRelu(x, s)", "a = Exp(x) b = PRelu(a, s) y = Neg(b)"])
def test_one_slope_for_all_is_that_of_a_leaky_relu(nodes, shape):
    proto = prelu(nodes, np.full(shape, 0.3, np.float32))
    model, outcome = after(proto, ExpandPrelu())
    assert ops(model) == [op.replace("PRelu", "LeakyRelu") for op in ops(from_proto(proto))]
    assert [edit.what for edit in outcome.edits] == ["a LeakyRelu, as it has one slope"]
    given = feeds(proto)
    np.testing.assert_array_equal(run(model.to_proto(), given)["y"], run(proto, given)["y"])


@pytest.mark.parametrize(
    ("nodes", "slopes", "head", "why"),
    [
        (
            "a = Exp(x) h = PRelu(a, s) y = Conv(h, w)", SLOPES.reshape(4, 1, 1), IMAGE,
            "its neighbours are float operators",
        ),
        (
            "a = Conv(x, w) h = PRelu(a, s) y = Exp(h)", SLOPES.reshape(4, 1, 1), IMAGE,
            "its neighbours are float operators",
        ),
        (
            "a = Conv(x, w) h = PRelu(a, s) y = Conv(h, w)", np.ones((4, 6, 6), np.float32), IMAGE,
            "its slopes are not one for each channel of an image",
        ),
        (
            "y = PRelu(x, s)", SLOPES.reshape(4, 1), "(float[2,4,6] x) => (float[] y)",
            "its slopes are not one for each channel of an image",
        ),
        (
            "y = PRelu(x, s)", SLOPES.reshape(4, 1, 1), "(float[4,6,6] x) => (float[] y)",
            "its slopes are not one for each channel of an image",
        ),
    ],
)  # fmt: skip
def test_any_other_stays_and_the_report_says_why(nodes, slopes, head, why):
    model, outcome = after(prelu(nodes, slopes, head), ExpandPrelu())
    assert ops(model).count("PRelu") == 1
    assert [skip.why for skip in outcome.skips] == [why]
    assert not outcome.edits


def test_what_is_kept_float_stays():
    model = from_proto(
        prelu("a = Conv(x, w) h = PRelu(a, s) y = Conv(h, w)", SLOPES[:, None, None])
    )
    model.kept_float = {"PRelu_h": "as asked"}
    outcome = ExpandPrelu().run(model, {})
    assert ops(model) == ["Conv", "PRelu", "Conv"]
    assert not outcome.edits


def test_slopes_that_are_computed_stay():
    proto = prelu("t = Neg(s) a = Conv(x, w) h = PRelu(a, t) y = Conv(h, w)", SLOPES[:, None, None])
    assert ops(after(proto, ExpandPrelu())[0]).count("PRelu") == 1


def test_one_that_only_leads_to_another_that_stays_does_so_too():
    nodes = "a = Conv(x, w) h = PRelu(a, s) b = Conv(x, w) q = Add(h, b) k = PRelu(q, s) y = Exp(k)"
    model, outcome = after(prelu(nodes, SLOPES[:, None, None]), ExpandPrelu())
    assert ops(model).count("PRelu") == 2
    assert len(outcome.skips) == 2
