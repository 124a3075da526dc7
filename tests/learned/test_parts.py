"""A model is trained in parts, between the nodes that torch computes otherwise or not at all."""

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.graph.loading import from_proto
from onnxq.passes.distill import Distill
from onnxq.quantization import WITHOUT_TRAINING
from onnxq.recipes import build as recipe
from tests.graphs import after, build, feeds

torch = pytest.importorskip("torch")
from onnxq.learned.parts import Part, parts, refusals  # noqa: E402
from onnxq.lowering.registry import OPERATORS, Operator  # noqa: E402
from onnxq.passes.quantize_weights import QuantizeWeights  # noqa: E402

MICROSOFT = ', "com.microsoft" : 1'
SHORT = Distill(steps=24, batch=8, weights=0.02, scales=0.005, biases=0.01, ranges=0.005)
NET = """(float[N,3,6,6] x) => (float[N,4,6,6] y) {
    a = Conv<pads=[1,1,1,1]>(x, w, b)
    r = Relu(a)
    %s
    y = Conv<pads=[1,1,1,1]>(t, v, c)
}"""
WEIGHTS = {"w": (4, 3, 3, 3), "b": (4,), "v": (4, 4, 3, 3), "c": (4,)}
GELU = "t = com.microsoft.Gelu(r)"


def net(middle, **more):
    return build(NET % middle, imports=MICROSOFT, **WEIGHTS, **more)


def data(proto, count=20):
    return [feeds(proto, seed) for seed in range(count)]


def convert(proto, folder, step=SHORT, **flags):
    """What the pass that trains did."""
    onnx.save(proto, folder / "model.onnx")
    chosen = recipe(**{"bits": 3} | flags, after=(step,))
    report = onnxq.convert(
        folder / "model.onnx", folder / "q.onnx", recipe=chosen, calib=data(proto)
    )
    assert report.bytes
    return report.outcomes[step.name]


def found(proto):
    model, _ = after(proto, QuantizeWeights())
    return parts(model, refusals(model, feeds(proto)))


def test_a_node_that_torch_does_not_know_splits_the_model():
    first, second = found(net(GELU))
    assert first == Part({"Conv_a", "Relu_r"} & first.nodes, ["x"], ["r"])
    assert second == Part(second.nodes, ["t"], ["y"])
    assert len(first.nodes) == 2
    assert len(second.nodes) == 1


def losses(outcome):
    """What each training says: its judge's figure before, and that of what it leaves."""
    found = []
    for remark in outcome.remarks:
        if remark.what == WITHOUT_TRAINING:
            continue
        before, best = remark.what.split("samples ")[1].split(",")[0].split(" -> ")
        found.append((float(before), float(before if "left as it was" in remark.what else best)))
    return found


def test_both_sides_of_it_are_trained(tmp_path):
    outcome = convert(net(GELU), tmp_path)
    assert len(outcome.edits) == 2
    assert not outcome.skips
    assert [r.what.split(":")[0] for r in outcome.remarks] == [
        "distill, part 1 of 2",
        "distill, part 2 of 2",
    ]
    assert all(end < start for start, end in losses(outcome))


def test_a_tensor_that_goes_around_it_is_read_by_the_later_part():
    first, second = found(net("g = com.microsoft.Gelu(r)\n t = Add(g, r)"))
    assert (first.inputs, first.outputs) == (["x"], ["r"])
    assert (sorted(second.inputs), second.outputs) == (["g", "r"], ["y"])


@pytest.mark.parametrize("act_bits", [8, "float"])
def test_the_later_part_is_trained_on_what_the_quantized_file_computes(
    tmp_path, monkeypatch, act_bits
):
    from onnxq.learned import distillation

    seen = []

    class Watched(distillation.Teaching):
        def __init__(self, teacher, network, points, scores, lessons, own, *rest):
            seen.append((lessons.feeds, own))
            super().__init__(teacher, network, points, scores, lessons, own, *rest)

    monkeypatch.setattr(distillation, "Teaching", Watched)
    proto = net("g = com.microsoft.Gelu(r)\n t = Add(g, r)")
    outcome = convert(proto, tmp_path, act_bits=act_bits)
    assert len(outcome.edits) == 2
    (whole, none), (float_side, own) = seen
    assert whole.keys() == {"x"}
    assert none is None
    assert float_side.keys() == own.keys() == {"g", "r"}
    x = {"x": np.concatenate([sample["x"] for sample in data(proto)])}
    from onnxq.graph.loading import load
    from onnxq.runtime import Session

    for file, given in (("model.onnx", float_side), ("q.onnx", own)):
        truth = Session(load(tmp_path / file), taps=["g", "r"], optimize=False).run(x)
        for name, values in given.items():
            difference = np.abs(values - truth[name]).max()
            step = np.abs(truth["r"]).max() / 255 if act_bits == 8 and file == "q.onnx" else 1e-5
            assert difference <= 1.01 * step


def test_a_node_at_the_end_is_left_out(tmp_path):
    proto = net("t = Identity(r)")
    proto.graph.node[-1].output[0] = "z"
    proto.graph.node.append(onnx.helper.make_node("Gelu", ["z"], ["y"], domain="com.microsoft"))
    outcome = convert(proto, tmp_path)
    assert len(outcome.edits) == 2
    ((start, end),) = losses(outcome)
    assert end < start


def test_boxes_that_are_chosen_at_the_end_are_left_out(tmp_path):
    text = """(float[1,3,4,4] x) => (int64[k,3] y) {
        a = Conv(x, w, b)
        f = Reshape(a, to)
        boxes, scores = Split<axis=2>(f, sizes)
        s = Transpose<perm=[0,2,1]>(scores)
        y = NonMaxSuppression(boxes, s, most)
    }"""
    proto = build(
        text, w=(6, 3, 1, 1), b=(6,), to=np.array([1, 16, 6]), sizes=np.array([4, 2]),
        most=np.array([3]),
    )  # fmt: skip
    onnx.save(proto, tmp_path / "model.onnx")
    chosen = recipe(bits=3, after=(SHORT,))
    report = onnxq.convert(
        tmp_path / "model.onnx", tmp_path / "q.onnx", recipe=chosen, calib=data(proto)
    )
    assert len(report.outcomes["distill"].edits) == 1


# A ConvTranspose that torch is not asked for: automatic padding where its windows leave gaps.
GAPS = """(float[N,3,4,4] x) => (float[N,2,12,12] y) {
    y = ConvTranspose<strides=[3,3], auto_pad="SAME_UPPER">(x, w)
}"""


def test_a_model_of_refused_nodes_alone_is_converted_and_says_why(tmp_path):
    outcome = convert(build(GAPS, w=(3, 2, 2, 2)), tmp_path)
    assert not outcome
    assert [remark.what for remark in outcome.remarks] == [WITHOUT_TRAINING]
    (skip,) = outcome.skips
    assert skip.where == "ConvTranspose_y"
    assert "windows leave gaps" in skip.why


def test_what_has_nothing_that_is_trained_says_so(tmp_path):
    ranges = Distill(steps=2, weights=0, scales=0, biases=0, ranges=1e-3)
    outcome = convert(net("t = Identity(r)"), tmp_path, ranges, act_bits="float")
    assert {skip.why for skip in outcome.skips} == {"it has nothing that this pass trains"}
    assert len(outcome.skips) == 2
    assert not outcome


def test_a_part_whose_input_has_no_row_for_each_sample_says_so(tmp_path):
    text = """(float[N,6] x) => (float[N,2] y) {
        a = Gemm(x, w)
        t = Transpose<perm=[1,0]>(a)
        g = com.microsoft.Gelu(t)
        u = Transpose<perm=[1,0]>(g)
        y = Gemm(u, v)
    }"""
    outcome = convert(build(text, imports=MICROSOFT, w=(6, 4), v=(4, 2)), tmp_path)
    assert [edit.where for edit in outcome.edits] == ["Gemm_a"]
    (skip,) = outcome.skips
    assert (skip.where, "told apart by sample" in skip.why) == ("Gemm_y", True)


def test_a_quantized_tensor_that_two_parts_read_keeps_the_grid_of_the_first(tmp_path):
    text = """(float[N,4,4] x) => (float[N,4,4] y) {
        a = MatMul(x, w)
        g = com.microsoft.Gelu(a)
        h = MatMul(x, g)
        y = MatMul(h, v)
    }"""
    proto = build(text, imports=MICROSOFT, w=(4, 4), v=(4, 4))
    outcome = convert(proto, tmp_path, attention=True)
    assert {entry.where for entry in (*outcome.edits, *outcome.skips)} == {"MatMul_a", "MatMul_y"}
    assert all(end <= start for start, end in losses(outcome))


BRANCH = """
    g = com.microsoft.Gelu(r)
    q = Conv<pads=[1,1,1,1]>(g, p)
    z = If (yes) <
        then_branch = one () => (float[N,4,6,6] o) { o = Neg(q) },
        else_branch = two () => (float[N,4,6,6] o) { o = Abs(q) }
    >
    t = Add(z, q)
"""


def test_what_the_body_of_a_branch_reads_lies_before_it():
    proto = net(BRANCH, p=(4, 4, 3, 3), yes=np.array(True))
    model, _ = after(proto, QuantizeWeights())
    split = parts(model, {"Gelu_g": "", "If_z": ""} | refusals(model, feeds(proto)))
    assert [part.outputs for part in split] == [["r"], ["q"], ["y"]]
    assert [sorted(part.inputs) for part in split] == [["x"], ["g"], ["q", "z"]]


def test_a_node_that_computes_something_else_is_refused_though_some_results_are_infinite(
    monkeypatch,
):
    proto = build("(float[N,3] x) => (float[N,3] y) { y = Exp(x) }")
    model = from_proto(proto)
    given = {"x": np.array([[1000.0, 0.0, 1.0]], np.float32)}
    assert refusals(model, given) == {}
    monkeypatch.setitem(OPERATORS, "Exp", Operator(lambda x: 1.1 * torch.exp(x), frozenset()))
    assert refusals(model, given) == {
        model.graph.nodes[0].name: "torch and onnxruntime compute different values"
    }


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda x: x.sum(), "torch and onnxruntime give it another shape or type"),
        (lambda x: x.double(), "torch and onnxruntime give it another shape or type"),
        (lambda x: x.nope(), "torch cannot compute it: 'Tensor' object has no attribute 'nope'"),
    ],
)
def test_refused_nodes_say_what_is_the_matter(monkeypatch, function, why):
    proto = build("(float[N,3] x) => (float[N,3] y) { y = Exp(x) }")
    monkeypatch.setitem(OPERATORS, "Exp", Operator(function, frozenset()))
    assert list(refusals(from_proto(proto), feeds(proto)).values()) == [why]
