import numpy as np
import pytest

from onnxq.passes.drop_identities import DropIdentities
from onnxq.passes.normalize import Normalize
from tests.graphs import after, build, ops

SLICE = {"zeros": np.zeros(2, np.int64), "ones": np.ones(2, np.int64),
         "ends": np.array([4, 2**31 - 1]), "axes": np.array([1, 3])}  # fmt: skip
WEIGHTS = {"w": (4, 4, 1, 1), "no_pads": np.zeros(8, np.int64), "off": np.array(False)}


@pytest.mark.parametrize(
    "identity",
    [
        "Identity(a)",
        "Dropout(a)",
        "Dropout(a, , off)",
        "Pad(a, no_pads)",
        "Concat<axis=1>(a)",
        "Cast<to=1>(a)",
        "Slice(a, zeros, ends, axes)",
        "Slice(a, zeros, ends, axes, ones)",
    ],
)
def test_a_node_that_hands_its_input_on_is_removed(identity):
    proto = build(
        f"(float[2,4,6,6] x) => (float[] y) {{ a = Conv(x, w) b = {identity} y = Relu(b) }}",
        **WEIGHTS, **SLICE,
    )  # fmt: skip
    model, _ = after(proto, Normalize(), DropIdentities())
    assert ops(model) == ["Conv", "Relu"]


@pytest.mark.parametrize(
    ("start", "channels", "left"), [(0, 8, 0), (0, 9, 0), (0, 7, 1), (1, 8, 1)]
)
def test_a_slice_of_all_channels_that_layers_make_is_removed(start, channels, left):
    proto = build(
        "(float[2,4,6,6] x) => (float[] y) { a = Conv(x, w) r = Relu(a) b = Conv(r, w) "
        "c = Concat<axis=1>(r, b) s = Slice(c, zero, end, axis) y = Neg(s) }",
        w=(4, 4, 1, 1), zero=np.array([start]), end=np.array([channels]), axis=np.array([1]),
    )  # fmt: skip
    assert ops(after(proto, DropIdentities())[0]).count("Slice") == left


@pytest.mark.parametrize(
    "node",
    [
        "b = Pad(a, pads)",
        "b = Concat<axis=0>(a, a)",
        "b = Dropout(a, ratio, on)",
        "b, mask = Dropout(a) z = Cast<to=1>(mask)",
        "b = Cast<to=10>(a)",
        "b = acme.Identity(a)",
        "b = Slice(a, zeros, ends, axes)",  # of so many channels, for all that layers tell
        "b = Slice(a, zeros, ends, axes, twos)",
        "b = Slice(a, ones, ends, axes)",
        "b = Slice(a, zeros, ends)",
    ],
)
def test_a_node_that_does_something_stays(node):
    proto = build(
        "(float[2,4,6,6] x) => (float[] b, float[] z) "
        f"{{ a = Relu(x) {node if 'z =' in node else node + ' z = Neg(a)'} }}",
        imports=', "acme" : 1',
        pads=np.ones(8, np.int64), ratio=np.float32(0.5), on=np.array(True), twos=np.array([2, 2]),
        **SLICE,
    )  # fmt: skip
    assert not after(proto, DropIdentities())[1]


def test_an_identity_at_an_output_gives_its_name_to_the_producer():
    proto = build(
        "(float[2,4] x) => (float[] y, float[] z) { a = Relu(x) y = Identity(a) z = Neg(a) }"
    )
    model, _ = after(proto, DropIdentities())
    relu, neg = model.graph.nodes
    assert relu.outputs[0].name == "y"
    assert neg.inputs[0] is relu.outputs[0]


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Identity(x)",
        "y = Identity(k)",
        "z = Relu(x) y = Identity(z)",
    ],
)
def test_an_identity_that_ties_an_output_to_its_source_stays_with_a_reason(nodes):
    outputs = "float[] y, float[] z" if "z" in nodes else "float[] y"
    proto = build(f"(float[2,4] x) => ({outputs}) {{ {nodes} }}", k=(2, 4))
    model, outcome = after(proto, DropIdentities())
    assert "Identity" in ops(model)
    assert [skip.why for skip in outcome.skips] == [
        "this Identity ties a graph output to its source"
    ]


def test_a_dropout_whose_mask_is_an_output_stays():
    proto = build("(float[2,4] x) => (float[] y, bool[] m) { a, m = Dropout(x) y = Relu(a) }")
    model, _ = after(proto, DropIdentities())
    assert ops(model) == ["Dropout", "Relu"]
