"""Blocks of networks: what lies between two tensors that everything flows through."""

import numpy as np
import onnx
import pytest
from hypothesis import given, reject, settings

from onnxq.errors import OnnxqError
from onnxq.graph.blocks import MOST_LAYERS, blocks, flow, nodes_of, single_layers
from onnxq.graph.layers import layers
from onnxq.graph.tensors import reads
from onnxq.passes.quantize_weights import QuantizeWeights
from tests.graphs import after, build, run
from tests.learned.plans import planned
from tests.test_random_graphs import CASES, FIXED

ENTRY, RESULT = "float[2,4,6,6] x", "float[2,4,6,6] y"


def model_of(text, entry=ENTRY, result=RESULT, **more):
    used = {f"w{n}": (4, 4, 1, 1) for n in "abcdef" if f"w{n}" in text}
    model, _ = after(
        build(f"({entry}) => ({result}) {{ {text} }}", **used | more), QuantizeWeights()
    )
    return model


def listed(found):
    return [f"{b.source} {' '.join(n.split('_')[1] for n in b.layers)} {b.result}" for b in found]


RESIDUAL = """s = Conv(x, wa) f = Relu(s)
p = Conv(f, wb) q = Relu(p) r = Conv(q, wc) t = Add(r, f) u = Relu(t)
v = Conv(u, wd) w = Conv(v, we) z = Add(w, u) y = Conv(z, wf)"""
DENSE = """p = Conv(x, wa) a = Concat<axis=1>(x, p) q = Conv(a, k) b = Concat<axis=1>(a, q)
y = Conv(b, l)"""
BRANCH = """p = Conv(x, wa) z = If (yes) <
    then_branch = one () => (float[2,4,6,6] o) { o = Neg(p) },
    else_branch = two () => (float[2,4,6,6] o) { o = Conv(p, wb) }
> q = Add(z, p) r = Relu(q) y = Conv(r, wc)"""
TABLE = {
    "a chain, between grids": (
        "p = Conv(x, wa) q = Relu(p) r = Conv(q, wb) y = Conv(r, wc)", "pqr",
        ["x p p", "q r r", "r y y"],
    ),
    "a chain whose activations have the grids": (
        "p = Conv(x, wa) q = Relu(p) r = Conv(q, wb) s = Clip(r) y = Conv(s, wc)", "qs",
        ["x p q", "q r s", "s y y"],
    ),
    "a chain without grids": (
        "p = Conv(x, wa) q = Relu(p) y = Conv(q, wb)", "", ["x p y y"],
    ),
    "a gate": (
        "p = Conv(x, wa) g = Sigmoid(p) q = Mul(p, g) m = MaxPool<kernel_shape=[1,1]>(q) "
        "y = Conv(m, wb)", "pq", ["x p p", "m y y"],
    ),
    "residual": (RESIDUAL, "sfpqrtuvwz", ["x s s", "f p r t", "u v w z", "z y y"]),
    "residual, whose activations have the grids": (
        RESIDUAL, "fquv", ["x s f", "f p r u", "u v w z", "z y y"],
    ),
    "residual without grids": (RESIDUAL, "", ["x s p r v w z", "z y y"]),
    "residual with a projection": (
        "s = Conv(x, wa) p = Conv(s, wb) q = Relu(p) r = Conv(q, wc) k = Conv(s, wd) "
        "t = Add(r, k) u = Relu(t) y = Conv(u, we)", "squ", ["x s s", "s p r k u", "u y y"],
    ),
    "dense": (DENSE, "pq", ["x p a", "a q b", "b y y"]),
    "nothing with a weight at first": (
        "a = Relu(x) b = Neg(a) p = Conv(b, wa) y = Neg(p)", "abp", ["b p p"],
    ),
    "a branch decided by the model": (BRANCH, "pqr", ["x p p", "r y y"]),
    "a branch without grids": (BRANCH, "", ["x p y y"]),
    "branches that never meet": (
        "p = Conv(x, wa) q = Conv(p, wb) y = Relu(q) r = Conv(p, wc) z = Relu(r)", "pyz",
        ["x p p", "p q y", "p r z"],
    ),
    "the middle is an output": (
        "p = Conv(x, wa) z = Relu(p) y = Conv(z, wb)", "z", ["x p z", "z y y"],
    ),
    "what constants compute": (
        "p = Conv(x, wa) q = Conv(k, wb) r = Add(p, q) y = Conv(r, wc)", "pqr",
        ["x p p", "k q q", "r y y"],
    ),
    "one layer reads what another made of the same": (
        "p = Conv(x, wa) q = Conv(p, wb) r = Conv(p, wb) t = Add(q, r) y = Conv(t, wc)", "pqrt",
        ["x p p", "p q r t", "t y y"],
    ),
}  # fmt: skip
CONSTANTS = {
    "dense": {"k": (4, 8, 1, 1), "l": (4, 12, 1, 1)},
    "what constants compute": {"k": (2, 4, 6, 6)},
    "a branch decided by the model": {"yes": np.array(True)},
    "a branch without grids": {"yes": np.array(True)},
}
TWO = {"branches that never meet", "the middle is an output"}


@pytest.mark.parametrize("kind", TABLE)
def test_a_block_ends_where_everything_flows_through_one_tensor(kind):
    text, ends, wanted = TABLE[kind]
    result = f"{RESULT}, float[2,4,6,6] z" if kind in TWO else RESULT
    model = model_of(text, result=result, **CONSTANTS.get(kind, {}))
    assert listed(blocks(model, set(ends))) == wanted


def test_two_inputs_that_meet_late_leave_every_layer_alone():
    text = "p = Conv(x, wa) q = Conv(z, wb) r = Add(p, q) y = Conv(r, wc)"
    model = model_of(text, entry=f"{ENTRY}, float[2,4,6,6] z")
    assert listed(blocks(model, {"p", "q", "r"})) == ["x p p", "z q q", "r y y"]


@pytest.mark.parametrize("count", [MOST_LAYERS - 1, MOST_LAYERS, MOST_LAYERS + 1])
def test_a_block_of_too_many_layers_falls_into_its_layers(count):
    names = [f"t{i}" for i in range(count)]
    before = ["s", *names[:-1]]
    chain = " ".join(f"{n} = Conv({b}, wb)" for n, b in zip(names, before, strict=True))
    model = model_of(f"s = Conv(x, wa) {chain} t = Add({names[-1]}, s) y = Conv(t, wc)")
    found = blocks(model, {"s", "t"})
    assert len(found) == (count + 2 if count > MOST_LAYERS else 3)
    assert max(len(b.layers) for b in found) == (1 if count > MOST_LAYERS else count)


@pytest.mark.parametrize(
    ("text", "ends", "wanted"),
    [
        ("p = Conv(x, wa) q = Relu(p) y = Neg(q)", "", "q"),
        ("p = Conv(x, wa) q = Relu(p) r = Clip(q) y = Neg(r)", "", "r"),
        ("p = Conv(x, wa) q = Relu(p) r = Clip(q) y = Neg(r)", "q", "q"),
        ("p = Conv(x, wa) q = Relu(p) y = Neg(q)", "p", "p"),
        ("p = Conv(x, wa) q = Relu(p) y = Add(p, q)", "", "p"),
        ("p = Conv(x, wa) q = PRelu(p, x) y = Neg(q)", "", "p"),
        ("p = Conv(x, wa) y = Relu(p)", "", "y"),
        ("p = Conv(x, wa) q = Add(p, k) y = Neg(q)", "", "q"),
        ("p = Conv(x, wa) q = MaxPool<kernel_shape=[1,1]>(p) y = Relu(q)", "", "p"),
    ],
)
def test_a_layer_alone_ends_behind_the_activations_that_nothing_else_reads(text, ends, wanted):
    more = {"k": (4, 1, 1)} if ", k" in text else {}
    (found,) = single_layers(model_of(text, **more), set(ends))
    assert (found.source, found.layers, found.result) == ("x", ("Conv_p",), wanted)


def test_flow_says_what_is_still_to_be_read():
    model = model_of("p = Conv(x, wa) q = Relu(p) r = Add(q, x) s = Neg(r) y = Add(s, p)")
    found = [(node and node.op, alive) for node, alive in flow(model)]
    assert [(op, sorted(alive)) for op, alive in found] == [
        (None, ["x"]), ("Conv", ["p", "x"]), ("Relu", ["p", "q", "x"]), ("Add", ["p", "r"]),
        ("Neg", ["p", "s"]), ("Add", ["y"]),
    ]  # fmt: skip


# -- whatever the network ----------------------------------------------------------------------


def check(model, found, whole):
    names = [layer.name for layer in layers(model) if layer.name in model.weights]
    assert sorted(name for b in found for name in b.layers) == sorted(names)
    firsts = [names.index(b.layers[0]) for b in found]
    assert firsts == sorted(firsts)
    computed = computed_from_inputs(model)
    for block in found:
        nodes = nodes_of(model, block)
        inside = {node.name for node in nodes}
        assert set(block.layers) <= inside
        assert list(block.layers) == sorted(block.layers, key=names.index)
        assert len(block.layers) <= MOST_LAYERS
        assert block.result in {t.name for t in nodes[-1].outputs}
        if not whole:
            continue
        # Nothing but the source leads in.
        made = {t.name for node in nodes for t in node.outputs}
        read = {t.name for node in nodes for t in reads(node)} & computed
        assert read - made <= {block.source}


def computed_from_inputs(model):
    found = {t.name for t in model.graph.inputs}
    for node in model.graph.nodes:
        if any(t.name in found for t in reads(node)):
            found |= {t.name for t in node.outputs}
    return found


def random_graph_and_check(folder, net, weights, act_bits, kept, attention, group):
    proto, shape = net
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    try:
        run(proto, {"x": x})
    except RuntimeError:
        reject()
    onnx.save(proto, folder / "model.onnx")
    names = [node.name for node in proto.graph.node]
    left = tuple({names[i % len(names)] for i in kept} - {names[0]})
    flags = {"act_bits": act_bits, "attention": attention, "keep_float": left}
    try:
        _, model, _ = planned(folder / "model.onnx", [{"x": x}], **flags)
    except OnnxqError:
        reject()
    for ends in (set(model.activations), set(), computed_from_inputs(model)):
        check(model, blocks(model, ends), whole=True)
        check(model, single_layers(model, ends), whole=False)


@given(**CASES)
@settings(FIXED, max_examples=60)
def test_every_layer_of_a_random_network_is_in_one_block(tmp_path_factory, **case):
    random_graph_and_check(tmp_path_factory.mktemp("graph"), **case)


@pytest.mark.slow
@given(**CASES)
@settings(FIXED, max_examples=500)
def test_every_layer_of_many_random_networks_is_in_one_block(tmp_path_factory, **case):
    random_graph_and_check(tmp_path_factory.mktemp("graph"), **case)
