"""A plan as a torch module computes what onnxruntime makes of the file that is written of it."""

import numpy as np
import onnx
import pytest
import zoo
from hypothesis import given, reject, settings

from onnxq.numerics import affine
from onnxq.runtime import Session
from tests.graphs import build, run
from tests.learned.plans import assert_same_as_written, planned, steps_of, written
from tests.test_random_graphs import CASES, FIXED

torch = pytest.importorskip("torch")
from onnxq.learned.network import QuantizedNetwork  # noqa: E402
from onnxq.lowering import Refused  # noqa: E402

SHARED = zoo.ROOT.parents[1] / "shared" / "models"
SMALL = {"digits-cnn.torchscript", "resnet20", "segmenter"}
FILES = [zoo.ROOT / file["file"] for entry in zoo.entries() for file in (entry, *entry["exports"])]
FILES += [SHARED / "resnet20_cifar10.onnx", SHARED / "version-RFB-320.onnx"]
FLAGS = {
    "w8a8": {"bits": 8},
    "w4a8": {"bits": 4},
    "w4a4": {"bits": 4, "act_bits": 4},
    "w2a4": {"bits": 2, "act_bits": 4},
    "post": {"levels": "post"},
}
NETWORKS = [
    pytest.param(file, id=file.stem, marks=[] if file.stem in SMALL else [pytest.mark.slow])
    for file in FILES
]


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
@pytest.mark.parametrize("file", NETWORKS)
def test_a_network_is_its_file(file, flags):
    if not file.exists():
        pytest.skip("the shared models are not here")
    _, model, feeds = planned(file, **flags)
    network = QuantizedNetwork(model)
    common = assert_same_as_written(model, network, feeds[0])
    assert {layer.output.name for layer in network.layers} - set(common) <= absorbed(model)


def absorbed(model):
    """Results of layers that have a name of their own in the file, before their quantizer."""
    return steps_of(model).keys()


def trained(model, reference, feeds, steps=3):
    """A module of the plan after steps so large that codes move, and what is left of the plan."""
    from onnxq.lowering import Lowered

    network, teacher = QuantizedNetwork(model), Lowered(reference)
    outputs = [t.name for t in model.graph.outputs]
    x = {name: torch.from_numpy(values) for name, values in feeds.items()}
    for i in network.units:
        network.units[i] = 0.1
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    truth = teacher.run(x, outputs)
    for _ in range(steps):
        optimizer.zero_grad()
        found = network.run(x, outputs)
        sum(((found[n] - truth[n]) ** 2).mean() for n in outputs).backward()
        optimizer.step()
    return network


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
@pytest.mark.parametrize(
    "stem", ["digits-cnn.torchscript", "resnet20", pytest.param("vit", marks=pytest.mark.slow)]
)
def test_a_trained_network_is_the_file_that_is_written_of_it(stem, flags):
    reference, model, feeds = planned(zoo.ROOT / f"{stem}.onnx", **flags)
    before = dict(model.weights)
    network = trained(model, reference, feeds[0])
    network.store(model)
    moved = [n for n, w in model.weights.items() if not np.array_equal(w.codes, before[n].codes)]
    assert len(moved) > len(before) / 2
    assert_same_as_written(model, network, feeds[0])
    assert_same_as_written(model, QuantizedNetwork(model), feeds[0])


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_what_was_not_trained_is_stored_as_it_was(flags):
    _, model, _ = planned(zoo.ROOT / "resnet20.onnx", **flags)
    kept = model.clone()
    QuantizedNetwork(model).store(model)
    assert model.activations.keys() == kept.activations.keys()
    for name, params in kept.activations.items():
        assert (model.activations[name].scale, model.activations[name].zero_point) == (
            params.scale,
            params.zero_point,
        )
    for name, weight in kept.weights.items():
        np.testing.assert_array_equal(affine.values(model.weights[name]), affine.values(weight))
        np.testing.assert_array_equal(model.weights[name].codes, weight.codes)
    file, again = (Session(written(m)[0], optimize=False) for m in (kept, model))
    feeds = {i.name: np.ones([d or 1 for d in i.shape], np.float32) for i in file.inputs}
    for name, values in file.run(feeds).items():
        np.testing.assert_array_equal(again.run(feeds)[name], values)


# -- places that are special -------------------------------------------------------------------

BODY = """(float[1,4,8,8] x) => (float[] y) {
    a = Conv<pads=[1,1,1,1]>(x, w, b)
    six = Constant<value_float=6.0>()
    zero = Constant<value_float=0.0>()
    r = Clip(a, zero, six)
    c = Conv<pads=[1,1,1,1]>(r, v)
    d = Add(c, r)
    s = Relu(d)
    %s
    y = Conv(t, u)
}"""
PLACES = {
    "residual": "t = Identity(s)",
    "factor": (
        "half = Constant<value_float=0.3>() p = Mul(s, half) t = MaxPool<kernel_shape=[2,2]>(p)"
    ),
    "factors": (
        "half = Constant<value_float=0.3>() third = Constant<value_float=3.0>() "
        "p = Mul(s, half) q = Transpose<perm=[0,1,3,2]>(p) t = Div(q, third)"
    ),
    "clip of codes": "m = MaxPool<kernel_shape=[2,2]>(s) e = MaxPool<kernel_shape=[2,2]>(m) "
    "one = Constant<value_float=1.0>() low = Constant<value_float=0.3>() t = Clip(e, low, one)",
    "concat": "m = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(s) "
    "n = Concat<axis=1>(m, s, r, x) t = Conv(n, k)",
    "attention": "g = Transpose<perm=[0,1,3,2]>(s) h = MatMul(s, g) t = Conv(h, o)",
    "sigmoid": "g = Sigmoid(s) t = Mul(g, s)",
    "relu twice": "g = LeakyRelu<alpha=0.1>(c) h = Relu(g) t = Add(h, s)",
}
SHAPES = {"w": (4, 4, 3, 3), "b": (4,), "v": (4, 4, 3, 3), "u": (2, 4, 1, 1),
          "k": (4, 16, 1, 1), "o": (4, 4, 1, 1)}  # fmt: skip
OPTIONS = {
    "a8": {},
    "a4": {"act_bits": 4},
    "attention": {"attention": True},
    "per tensor": {"per_channel": False},
    "float": {"act_bits": "float"},
    "groups": {"act_bits": "float", "group_size": 2},
    "kept": {"keep_float": ("Conv_c",)},
    "kept sum": {"keep_float": ("Add_d", "Relu_s")},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("place", PLACES)
def test_every_place_is_as_it_is_written(tmp_path, place, options):
    text = BODY % PLACES[place].replace(") ", ")\n")
    used = {name: shape for name, shape in SHAPES.items() if f", {name}" in text}
    file = tmp_path / "model.onnx"
    onnx.save(build(text, **used), file)
    reference, model, feeds = planned(file, bits=4, **options)
    if "keep_float" in options:
        assert model.kept_float
    assert_same_as_written(model, QuantizedNetwork(model), feeds[0])
    network = trained(model, reference, feeds[0])
    network.store(model)
    assert_same_as_written(model, network, feeds[0])


def random_graph_and_check(folder, net, weights, act_bits, kept, attention, group):
    proto, shape = net
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(4)]
    try:
        run(proto, feeds[0])
    except RuntimeError:  # onnxruntime has fusions that lose an output of the float graph
        reject()
    names = [node.name for node in proto.graph.node]
    levels, bits = weights
    file = folder / "model.onnx"
    onnx.save(proto, file)
    try:
        _, model, _ = planned(
            file,
            feeds,
            levels=levels,
            bits=bits,
            act_bits=act_bits,
            keep_float=tuple({names[i % len(names)] for i in kept} - {names[0]}),
            attention=attention,
            group_size=group if act_bits == "float" else 0,
        )
        network = QuantizedNetwork(model)
        # Weights that a large bias makes coarser are another file's.
        if any("scale raised" in remark for remark in written(model)[1]):
            reject()
        assert_same_as_written(model, network, feeds[0])
    except Refused:
        reject()


@given(**CASES)
@settings(FIXED, max_examples=40)
def test_a_random_network_is_its_file(tmp_path_factory, **case):
    random_graph_and_check(tmp_path_factory.mktemp("graph"), **case)


@pytest.mark.slow
@given(**CASES)
@settings(FIXED, max_examples=300)
def test_many_random_networks_are_their_files(tmp_path_factory, **case):
    random_graph_and_check(tmp_path_factory.mktemp("graph"), **case)


def test_biases_of_dead_channels_stay_as_they_are(tmp_path):
    """Their scale is chosen for them: on that of a live channel, they might be rounded away."""
    w = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    w[2] = 0.0
    text = "(float[N,3,6,6] x) => (float[N,2,4,4] y) { a = Conv(x, w, b) y = Conv(a, v) }"
    bias = np.array([0.1, -0.2, 0.3, 0.4], np.float32)
    onnx.save(build(text, w=w, b=bias, v=(2, 4, 1, 1)), tmp_path / "model.onnx")
    _, model, feeds = planned(tmp_path / "model.onnx", bits=2, act_bits=2)
    network = QuantizedNetwork(model)
    assert_same_as_written(model, network, feeds[0])
    (name,) = network.biased.values()
    with torch.no_grad():
        found = network.given()[name].numpy()
    assert found[2] == bias[2]
    assert not np.array_equal(found, bias)
