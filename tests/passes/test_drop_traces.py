"""Records of a node's origin go, what else was written on it stays."""

from onnxq.graph.loading import from_proto
from onnxq.passes.drop_traces import DropTraces
from tests.graphs import after, build

TRACES = ("namespace", "pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node",
          "pkg.onnxscript.rewriter.rule_name")  # fmt: skip


def test_traces_go_and_all_else_stays():
    proto = build(
        "(float[1,4,6,6] x) => (float[] y) { a = Conv(x, w) y = Relu(a) }", w=(4, 4, 1, 1)
    )
    proto.graph.node[0].doc_string = "the stem"
    for key in (*TRACES, "author", "pkg.acme"):
        proto.graph.node[0].metadata_props.add(key=key, value=1000 * "x")
    model, outcome = after(proto, DropTraces())
    (node, other) = model.to_proto().graph.node
    assert {p.key: len(p.value) for p in node.metadata_props} == {"author": 1000, "pkg.acme": 1000}
    assert node.doc_string == "the stem"
    assert not other.metadata_props
    assert outcome.remarks[0].what == "4 KiB of the exporter's traces left out"
    assert model.drop_traces() == 0


def test_another_model_over_the_same_file_keeps_its_traces():
    proto = build("(float[1,4,6,6] x) => (float[] y) { y = Conv(x, w) }", w=(4, 4, 1, 1))
    proto.graph.node[0].metadata_props.add(key="namespace", value="x")
    model = from_proto(proto)
    clone = model.clone()
    assert clone.drop_traces() > 0
    assert model.to_proto().graph.node[0].metadata_props[0].key == "namespace"
