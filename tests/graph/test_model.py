import itertools
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from onnxq.errors import InputError, UnsupportedModel, UsageError
from onnxq.graph.loading import from_proto, load
from onnxq.graph.model import Model
from onnxq.graph.protos import file_size
from tests.graphs import build

RNG = np.random.default_rng(0)


def info(name, shape=("N", 4)):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def matmul(name="w", size=64, opset=17, ir_version=8, listed=False):
    """x @ w with a weight of ``size`` x ``size``; ``listed`` puts it among the inputs."""
    weight = numpy_helper.from_array(RNG.standard_normal((size, size), np.float32), name)
    inputs = [info("x", ("N", size))] + [info(name, (size, size))] * listed
    nodes = [helper.make_node("MatMul", ["x", name], ["y"], name="layer")]
    graph = helper.make_graph(nodes, "g", inputs, [info("y", ("N", size))], [weight])
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version
    )


def textual(body, opset=17):
    """A model in ONNX's textual form."""
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {body}')


def weight_of(model):
    return model.graph.nodes[0].inputs[1].values


# -- what a round trip keeps -------------------------------------------------------------------


def ornate():
    """A model with everything that graphsurgeon drops or cannot read."""
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    odd = helper.make_node("Odd", ["a"], ["b"], name="odd", domain="own", doc_string="odd doc")
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([1.5, 2.5], np.float32), "values"),
        numpy_helper.from_array(np.array([0, 3], np.int64), "indices"),
        [4],
    )
    body = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["inner"], name="inside", doc_string="inner doc")],
        "body",
        [],
        [info("inner")],
    )
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [2, "N"])
    for name, value in {
        "type": kind,
        "types": [kind, kind],
        "sparse": sparse,
        "tensors": [weight],
        "bodies": [body],
        "bytes": b"\xff\xfe\x00",
        "many_bytes": [b"\xff", b"text"],
    }.items():
        odd.attribute.append(helper.make_attribute(name, value))
    dense = helper.make_node("MatMul", ["x", "w"], ["a"], name="dense", doc_string="node doc")
    dense.metadata_props.add(key="node", value="kept")
    call = helper.make_node("Twice", ["b"], ["y"], name="call", domain="local")
    image = info("x")
    image.doc_string = "input doc"
    image.type.denotation = "IMAGE"
    image.type.tensor_type.shape.dim[1].denotation = "DATA_CHANNEL"
    graph = helper.make_graph(
        [dense, odd, call], "graph", [image], [info("y")], [weight], doc_string="graph doc"
    )
    graph.metadata_props.add(key="graph", value="kept")
    twice = helper.make_function(
        "local",
        "Twice",
        ["i"],
        ["o"],
        [helper.make_node("Add", ["i", "i"], ["o"], name="add")],
        [helper.make_opsetid("", 17)],
    )
    model = helper.make_model(
        graph,
        opset_imports=[
            helper.make_opsetid(domain, version)
            for domain, version in (("", 17), ("own", 3), ("local", 1))
        ],
        ir_version=8,
        functions=[twice],
        producer_name="producer",
        producer_version="1.2",
        domain="org.example",
        model_version=7,
        doc_string="model doc",
    )
    model.metadata_props.add(key="model", value="kept")
    return model


PARTS = {
    "ir version": lambda m: m.ir_version,
    "opsets": lambda m: {(o.domain, o.version) for o in m.opset_import},
    "producer": lambda m: (m.producer_name, m.producer_version),
    "domain": lambda m: m.domain,
    "model version": lambda m: m.model_version,
    "doc strings": lambda m: (m.doc_string, m.graph.doc_string),
    "metadata": lambda m: [*m.metadata_props, *m.graph.metadata_props],
    "inputs": lambda m: list(m.graph.input),
    "outputs": lambda m: list(m.graph.output),
    "weights": lambda m: list(m.graph.initializer),
    "nodes and their attributes": lambda m: list(m.graph.node),
    "functions": lambda m: list(m.functions),
}


@pytest.mark.parametrize("part", PARTS)
def test_loading_and_saving_keeps(part, tmp_path):
    onnx.save(ornate(), tmp_path / "in.onnx")
    load(tmp_path / "in.onnx").save(tmp_path / "out.onnx")
    assert PARTS[part](onnx.load(tmp_path / "out.onnx")) == PARTS[part](ornate())


def test_an_ir_version_no_runtime_reads_is_lowered_with_a_note():
    model = from_proto(matmul(ir_version=99))
    assert model.to_proto().ir_version == 10
    assert model.notes == ["IR version lowered from 99 to 10"]


def test_sparse_initializers_become_equal_dense_ones():
    flat = [0.0, 1.5, 0.0, 0.0, 0.0, -2.5]
    for indices in ([[0, 1], [1, 2]], [1, 5]):
        proto = matmul()
        proto.graph.initializer[0].name = "unused"
        sparse = helper.make_sparse_tensor(
            numpy_helper.from_array(np.array([1.5, -2.5], np.float32), "w"),
            numpy_helper.from_array(np.array(indices, np.int64), "w_indices"),
            [2, 3],
        )
        proto.graph.sparse_initializer.append(sparse)
        np.testing.assert_array_equal(weight_of(from_proto(proto)), np.reshape(flat, (2, 3)))


def test_initializers_among_the_inputs_are_constants():
    model = from_proto(matmul(listed=True))
    assert [t.name for t in model.graph.inputs] == ["x"]
    assert isinstance(model.graph.nodes[0].inputs[1], gs.Constant)


def test_a_model_from_before_initializers_could_stand_alone_is_raised_and_valid():
    model = from_proto(matmul(opset=8, ir_version=3, listed=True))
    onnx.checker.check_model(model.to_proto())
    model.raise_opset(13)
    onnx.checker.check_model(model.to_proto(), full_check=True)


# -- names -------------------------------------------------------------------------------------


def test_empty_and_repeated_node_names_become_unique():
    proto = textual(
        "g (float[N] x) => (float[N] y) { a = Relu(x)  b = Relu(a)  c = Relu(b)  y = Relu(c) }"
    )
    for node, name in zip(proto.graph.node, ["same", "same", "", ""], strict=True):
        node.name = name
    names = [node.name for node in from_proto(proto).graph.nodes]
    assert names == ["same", "same_1", "Relu_c", "Relu_y"]


LOOP = """
g (float[N] x, int64 count, bool go) => (float[N] y) {
    y = Loop (count, go, x) <body = inside (int64 turn, bool on, float[N] state)
        => (bool on_out, float[N] state_out) {
            on_out = Identity(on)
            hidden = Relu(state)
            state_out = Neg(hidden)
        }>
}
"""


def test_fresh_names_collide_with_nothing_not_even_inside_subgraphs():
    model = from_proto(textual(LOOP))
    taken = {"x", "count", "go", "y", "turn", "on", "state", "hidden", "on_out", "state_out"}
    taken |= {node.name for node in model.graph.nodes}
    made = [model.fresh(name) for name in (*taken, *taken, "new", "new")]
    assert len(set(made)) == len(made)
    assert not taken & set(made)
    assert "new" in made


def test_names_made_after_a_graph_is_replaced_know_the_new_graph():
    model = from_proto(matmul("w"))
    assert model.fresh("other") == "other"
    model.replace_by(matmul("replaced"))
    assert model.fresh("replaced") != "replaced"


# -- constants ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [ml_dtypes.int4, ml_dtypes.uint4])
def test_four_bit_constants_are_packed_two_to_a_byte(dtype):
    model = from_proto(matmul())
    values = np.arange(7).astype(dtype)
    model.graph.nodes[0].inputs[1] = model.constant("codes", values)
    (stored,) = model.to_proto().graph.initializer
    assert len(stored.raw_data) == 4
    np.testing.assert_array_equal(numpy_helper.to_array(stored), values)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
def test_constants_keep_their_shape(shape):
    model = from_proto(matmul())
    assert model.constant("c", np.zeros(shape, np.float32)).values.shape == shape


# -- external data -----------------------------------------------------------------------------


@pytest.fixture
def no_inlining(monkeypatch):
    """Every model is too large for one file."""
    monkeypatch.setattr("onnxq.graph.model.INLINE_LIMIT", 0)


@pytest.fixture
def external(tmp_path):
    """A file whose weight lies beside it, in ``weights.bin`` after some other bytes."""
    folder = tmp_path / "source"
    folder.mkdir()
    proto = matmul()
    filler = numpy_helper.from_array(np.zeros(300, np.float32), "filler")
    proto.graph.initializer.insert(0, filler)
    onnx.save(
        proto,
        folder / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    return folder / "model.onnx"


def refer(file, **entries):
    """Rewrite where a file says its external data lie; None removes an entry."""
    proto = onnx.load(file, load_external_data=False)
    for tensor in proto.graph.initializer:
        kept = {e.key: e.value for e in tensor.external_data} | entries
        del tensor.external_data[:]
        for key, value in kept.items():
            if value is not None:
                tensor.external_data.add(key=key, value=value)
    file.write_bytes(proto.SerializeToString())


def test_external_data_are_read_where_they_lie(external):
    truth = numpy_helper.to_array(onnx.load(external).graph.initializer[1])
    weight = weight_of(load(external))
    assert isinstance(weight, np.memmap)
    np.testing.assert_array_equal(weight, truth)


def test_external_data_that_cannot_be_mapped_are_read_too(tmp_path):
    proto = matmul()
    half = np.arange(6).astype(ml_dtypes.bfloat16)
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(half, "w"))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    (stored,) = load(tmp_path / "m.onnx").to_proto().graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(stored), half)


def test_a_large_model_is_saved_with_its_weights_beside_it(external, tmp_path, no_inlining):
    out = tmp_path / "out.onnx"
    load(external).save(out)
    assert {f.name for f in tmp_path.iterdir()} == {"source", "out.onnx", "out.onnx.data"}
    (stored,) = onnx.load(out, load_external_data=False).graph.initializer
    assert {e.key: e.value for e in stored.external_data}["location"] == "out.onnx.data"
    np.testing.assert_array_equal(weight_of(load(out)), weight_of(load(external)))
    assert file_size(out) == sum(f.stat().st_size for f in (out, tmp_path / "out.onnx.data"))
    onnx.checker.check_model(str(out))


def test_packed_weights_survive_beside_a_large_model(tmp_path, no_inlining):
    model = from_proto(matmul())
    codes = RNG.integers(-8, 8, 4096).astype(ml_dtypes.int4)
    model.graph.nodes[0].inputs[1] = model.constant("codes", codes)
    model.save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").stat().st_size == codes.size / 2
    (stored,) = onnx.load(tmp_path / "out.onnx").graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(stored), codes)


def test_a_saved_model_can_be_used_and_saved_again(external, tmp_path, no_inlining):
    model = load(external)
    before = weight_of(model).copy()
    model.save(tmp_path / "first.onnx")
    np.testing.assert_array_equal(weight_of(model), before)
    model.save(tmp_path / "second.onnx")
    np.testing.assert_array_equal(weight_of(load(tmp_path / "second.onnx")), before)


def missing(file):
    (file.parent / "weights.bin").unlink()


def truncated(file):
    data = file.parent / "weights.bin"
    data.write_bytes(data.read_bytes()[:-1])


def truncated_and_of_unknown_length(file):
    truncated(file)
    refer(file, length=None)


def shorter_than_its_shape(file):
    truncated(file)
    refer(file, length="4")


def outside(file):
    data = file.parent / "weights.bin"
    data.rename(file.parent.parent / "weights.bin")
    refer(file, location="../weights.bin")


def absolute(file):
    refer(file, location="/etc/hostname")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (missing, "weights.bin is missing"),
        (truncated, "weights.bin is truncated"),
        (truncated_and_of_unknown_length, "weights.bin is truncated"),
        (shorter_than_its_shape, "weights.bin is truncated"),
        (outside, "lies outside the folder"),
        (absolute, "lies outside the folder"),
    ],
)
def test_external_data_that_cannot_be_used_are_named(external, damage, complaint):
    damage(external)
    with pytest.raises(InputError, match=complaint):
        load(external)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_loading_and_saving_take_little_more_memory_than_the_weights(tmp_path):
    """Peak memory of loading and saving, in a process of its own, in units of the weights."""
    size, parts = 100 * 2**20, 4
    names = [f"w{i}" for i in range(parts)]
    nodes = [
        helper.make_node("Add", [before, name], [after])
        for name, (before, after) in zip(
            names, itertools.pairwise(["x", "a", "b", "c", "y"]), strict=True
        )
    ]
    weights = []
    for i, name in enumerate(names):
        weight = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[size // 4])
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "w.bin"), ("offset", i * size), ("length", size)):
            weight.external_data.add(key=key, value=str(value))
        weights.append(weight)
    graph = helper.make_graph(nodes, "g", [info("x", ["N"])], [info("y", ["N"])], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "big.onnx").write_bytes(proto.SerializeToString())
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(parts * size)
    script = """if True:
        from pathlib import Path
        import onnxq.graph.model
        from onnxq.graph.loading import load
        onnxq.graph.model.INLINE_LIMIT = 2**20
        def peak():
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(1024 * int(line.split()[1]) for line in lines if "VmHWM" in line)
        before = peak()
        load("big.onnx").save(Path("out.onnx"))
        print(peak() - before)
        """
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert (tmp_path / "out.onnx.data").stat().st_size == parts * size
    assert int(done.stdout) < 1.3 * parts * size


# -- files that are no models ------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    {
        "nothing": b"",
        "text": b"# no model at all\n",
        "half a model": matmul().SerializeToString()[:5000],
        "an empty model": ModelProto().SerializeToString(),
        "a tensor": numpy_helper.from_array(np.zeros(100, np.float32)).SerializeToString(),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_file_that_is_no_model_is_refused(content, tmp_path):
    (tmp_path / "m.onnx").write_bytes(content[1])
    with pytest.raises(InputError, match=r"m\.onnx: not an ONNX model"):
        load(tmp_path / "m.onnx")


def test_a_folder_or_nothing_is_no_model(tmp_path):
    for path in (tmp_path, tmp_path / "missing.onnx"):
        with pytest.raises(InputError, match="no such file"):
            load(path)


# -- saving ------------------------------------------------------------------------------------


@pytest.mark.parametrize("inline", [True, False])
def test_a_failing_save_leaves_nothing_behind(inline, tmp_path, monkeypatch):
    if not inline:
        monkeypatch.setattr("onnxq.graph.model.INLINE_LIMIT", 0)
    model = from_proto(matmul())
    (tmp_path / "old.onnx").write_bytes(b"old")

    def fail(self):
        raise MemoryError

    monkeypatch.setattr(Model, "to_proto", fail)
    for name in ("new.onnx", "old.onnx"):
        with pytest.raises(MemoryError):
            model.save(tmp_path / name, force=True)
    assert [f.name for f in tmp_path.iterdir()] == ["old.onnx"]
    assert (tmp_path / "old.onnx").read_bytes() == b"old"


@pytest.mark.parametrize("inline", [True, False])
def test_saving_twice_writes_the_same_bytes(inline, external, tmp_path, monkeypatch):
    if not inline:
        monkeypatch.setattr("onnxq.graph.model.INLINE_LIMIT", 0)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        load(external).save(tmp_path / folder / "out.onnx")
    files = sorted((tmp_path / "a").iterdir())
    assert len(files) == 1 + (not inline)
    for file in files:
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_the_source_is_never_overwritten_however_it_is_spelled(tmp_path):
    onnx.save(matmul(), tmp_path / "m.onnx")
    (tmp_path / "link.onnx").symlink_to(tmp_path / "m.onnx")
    (tmp_path / "sub").mkdir()
    model = load(tmp_path / "m.onnx")
    for name in ("m.onnx", "link.onnx", "sub/../m.onnx"):
        with pytest.raises(UsageError, match="never overwritten"):
            model.save(tmp_path / name, force=True)


def test_existing_files_and_missing_folders_are_refused(tmp_path):
    model = from_proto(matmul())
    (tmp_path / "there.onnx").touch()
    for path, complaint in (
        ("there.onnx", "--force"),
        ("missing/m.onnx", "does not exist"),
        (".", "is a folder"),
    ):
        with pytest.raises(UsageError, match=complaint):
            model.save(tmp_path / path)


# -- digests -----------------------------------------------------------------------------------

GRAPH = "(float[1,3,8,8] x) => (float[] y) { y = Conv<pads=[1,1,1,1]>(x, w) }"


def test_a_digest_is_that_of_what_is_in_the_model_wherever_it_lies(external, tmp_path):
    model = load(external)
    model.save(tmp_path / "inside.onnx")
    assert model.digest() == model.clone().digest() == load(tmp_path / "inside.onnx").digest()


@pytest.mark.parametrize(
    "change",
    [
        {"w": np.full((4, 3, 3, 3), 1e-3, np.float32)},
        {"graph": GRAPH.replace("1,1,1,1", "0,0,1,1")},
        {"graph": GRAPH.replace("y", "z")},
        {"graph": GRAPH.replace("8,8", "8,9")},
        {"opset": 18},
    ],
    ids=["weight", "attribute", "output", "input", "opset"],
)
def test_a_digest_changes_with(change):
    same = {"graph": GRAPH, "w": np.zeros((4, 3, 3, 3), np.float32)}
    assert from_proto(build(**same)).digest() == from_proto(build(**same)).digest()
    assert from_proto(build(**same | change)).digest() != from_proto(build(**same)).digest()


# -- surgery -----------------------------------------------------------------------------------


def test_a_long_chain_in_reverse_order_is_sorted_without_recursion():
    length = 20_000
    tensors = [gs.Variable(f"t{i}", np.float32, [1]) for i in range(length + 1)]
    nodes = [gs.Node("Neg", f"n{i}", {}, [tensors[i]], [tensors[i + 1]]) for i in range(length)]
    model = from_proto(matmul())
    model.graph = gs.Graph(nodes[::-1], inputs=[tensors[0]], outputs=[tensors[-1]], opset=17)
    model.tidy()
    assert [node.name for node in model.graph.nodes] == [f"n{i}" for i in range(length)]


def test_tidying_drops_dead_nodes_and_keeps_what_only_a_subgraph_reads():
    body = "g (float[N] x, bool c) => (float[N] y) { dead = Neg(x)  seen = Abs(x)  y = If (c) <"
    branches = (
        "then_branch = a () => (float[N] p) { p = Relu(seen) }, "
        "else_branch = b () => (float[N] q) { q = Identity(seen) }"
    )
    model = from_proto(textual(body + branches + "> }"))
    model.tidy()
    assert [node.op for node in model.graph.nodes] == ["Abs", "If"]


IDENTITY = {
    "inside": ("t = Relu(x)  u = Identity(t)  y = Neg(u)", ["Relu", "Neg"]),
    "at the end": ("t = Relu(x)  y = Identity(t)", ["Relu"]),
    "at the end, of a tensor read elsewhere": (
        "t = Relu(x)  u = Neg(t)  v = Add(t, u)  w = Relu(v)  y = Identity(w)",
        ["Relu", "Neg", "Add", "Relu"],
    ),
    "at the start": ("t = Identity(x)  y = Relu(t)", ["Relu"]),
    "from end to end": ("y = Identity(x)", ["Identity"]),
    "of an end": ("z = Relu(x)  y = Identity(z)", ["Relu", "Identity"]),
}


@pytest.mark.parametrize("place", IDENTITY)
def test_bypassing_keeps_the_signature_and_the_function(place):
    body, left = IDENTITY[place]
    outputs = "float[N] y, float[N] z" if "z =" in body else "float[N] y"
    proto = textual(f"g (float[N] x) => ({outputs}) {{ {body} }}")
    x = np.array([-1, 2], np.float32)
    truth = ReferenceEvaluator(proto).run(None, {"x": x})
    model = from_proto(proto)
    for node in [n for n in model.graph.nodes if n.op == "Identity"]:
        assert model.bypass(node) is ("Identity" not in left)
    model.tidy()
    assert [n.op for n in model.graph.nodes] == left
    result = ReferenceEvaluator(model.to_proto()).run(None, {"x": x})
    np.testing.assert_array_equal(result, truth)


def test_a_clone_is_edited_alone():
    model = from_proto(matmul())
    other = model.clone()
    other.graph.nodes[0].name = other.fresh("renamed")
    other.metadata["key"] = "value"
    other.graph.nodes.clear()
    assert [n.name for n in model.graph.nodes] == ["layer"]
    assert model.metadata == {}


# -- opsets ------------------------------------------------------------------------------------


def test_raising_the_opset_is_noted_and_keeps_what_the_converter_drops():
    proto = ornate()
    proto.opset_import[0].version = 15
    proto.functions[0].opset_import[0].version = 15
    odd = proto.graph.node[1]
    unreadable = [a for a in odd.attribute if a.type != AttributeProto.SPARSE_TENSOR]
    del odd.attribute[:]
    odd.attribute.extend(unreadable)
    kept = ModelProto()
    kept.CopyFrom(proto)
    model = from_proto(proto)
    model.raise_opset(18)
    assert model.opset == 18
    assert model.notes == ["opset raised from 15 to 18"]
    raised = model.to_proto()
    assert PARTS["doc strings"](raised) == PARTS["doc strings"](kept)
    for name in ("dense", "odd"):
        (before,), (after,) = ([n for n in p.graph.node if n.name == name] for p in (kept, raised))
        assert sorted(after.attribute, key=lambda a: a.name) == sorted(
            before.attribute, key=lambda a: a.name
        )
        assert after.doc_string == before.doc_string


def test_raising_the_opset_keeps_the_bodies_of_functions():
    proto = textual("g (float[N] x) => (float[N] y) { y = local.Twice(x) }", 17)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    proto.functions.append(ornate().functions[0])
    model = from_proto(proto)
    model.raise_opset(21)
    raised = model.to_proto()
    onnx.checker.check_model(raised, full_check=True)
    (y,) = ReferenceEvaluator(raised).run(None, {"x": np.float32([1, 2])})
    np.testing.assert_array_equal(y, [2, 4])


def test_an_opset_that_is_high_enough_stays():
    model = from_proto(matmul(opset=17))
    model.raise_opset(13)
    assert (model.opset, model.notes) == (17, [])


def test_an_operator_the_converter_does_not_know_is_named():
    model = from_proto(
        textual(
            "g (float[N] x) => (float[N] y) { y = ThresholdedRelu <alpha: float = 1.0> (x) }", 9
        )
    )
    with pytest.raises(UnsupportedModel, match=r"opset 9 cannot be raised.*ThresholdedRelu") as e:
        model.raise_opset(13)
    assert len(str(e.value).splitlines()) == 1
    assert model.opset == 9


def test_odd_constant_nodes_are_left_to_whoever_runs_them():
    text = "g (float[2] x) => (float[2] y) { w = Constant<value_int = 1>() y = Neg(x) }"
    proto = textual(text, 17)
    bare = onnx.helper.make_node("Constant", [], [], value_float=1.0)
    proto.graph.node.extend([bare, onnx.helper.make_node("Constant", [], ["v"])])
    model = from_proto(proto)
    assert [node.op for node in model.graph.nodes] == ["Neg", "Constant", "Constant"]


def test_raising_the_opset_leaves_mapped_weights_where_they_lie(tmp_path):
    proto = matmul(opset=9)
    truth = numpy_helper.to_array(proto.graph.initializer[0])
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    model = load(tmp_path / "m.onnx")
    model.raise_opset(13)
    assert isinstance(weight_of(model), np.memmap)
    np.testing.assert_array_equal(weight_of(model), truth)
