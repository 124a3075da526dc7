"""Layer passes on small models: walked through with data, written and looked into."""

import numpy as np

from onnxq import recipes
from onnxq.graph.layers import layers
from onnxq.graph.loading import from_proto
from onnxq.pipeline import run
from onnxq.runtime import Session
from onnxq.samples.calibration import Calibration
from onnxq.samples.data import Arrays
from onnxq.samples.preprocess import PRESETS

# Every kind of layer, most of them without a bias; inputs are not centred.
LAYERS = {
    "conv": (
        "(float[N,4,7,7] x) => (float[] y) { y = Conv<pads=[1,1,1,1],strides=[2,1]>(x, w, b) }",
        {"w": (6, 4, 3, 3), "b": (6,)},
    ),
    "conv without a bias": (
        "(float[N,4,7,7] x) => (float[] y) { y = Conv<dilations=[2,2]>(x, w) }",
        {"w": (6, 4, 3, 3)},
    ),
    "grouped": (
        "(float[N,4,7,7] x) => (float[] y) { y = Conv<group=2>(x, w) }",
        {"w": (6, 2, 3, 3)},
    ),
    "depthwise": (
        "(float[N,4,7,7] x) => (float[] y) { y = Conv<group=4>(x, w, b) }",
        {"w": (8, 1, 3, 3), "b": (8,)},
    ),
    "gemm": (
        "(float[N,12] x) => (float[] y) { y = Gemm<transB=1>(x, w, b) }",
        {"w": (5, 12), "b": (5,)},
    ),
    "gemm without a bias": ("(float[N,12] x) => (float[] y) { y = Gemm(x, w) }", {"w": (12, 5)}),
    "matmul": (
        "(float[N,3,12] x) => (float[] y) { a = MatMul(x, w) y = Add(a, b) }",
        {"w": (12, 5), "b": (5,)},
    ),
    "matmul without a bias": (
        "(float[N,3,12] x) => (float[] y) { y = MatMul(x, w) }",
        {"w": (12, 5)},
    ),
}


def samples(proto, count=64, seed=0):
    """Positive, correlated inputs, as behind a Relu."""
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim][1:]
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((count, *[1] * len(shape)))
    x = np.maximum(rng.standard_normal((count, *shape)) + common + 0.5, 0)
    return Arrays({"x": x.astype(np.float32)}, range(count))


def walked(proto, *steps, data=None, **flags):
    """The prepared float model, the quantized one and what each pass did."""
    recipe = recipes.build(**flags)
    model = from_proto(proto)
    model.raise_opset(recipe.opset)
    source = Calibration(data or samples(proto), PRESETS["raw"])
    run(model, recipe.exact, None)
    prepared = model.clone()
    plan, emission = recipe.lossy[:-1], recipe.lossy[-1:]
    outcomes = run(model, (*plan, *steps, *emission), source)
    return prepared, model, outcomes


def results(prepared, quantized, data):
    """Results of every layer before its quantizer, float and quantized, channels last."""
    found = {}
    nodes = {node.name: node for node in quantized.graph.nodes}
    pairs = {}
    for layer in layers(prepared):
        end = nodes[layer.name]
        readers = end.outputs[0].outputs
        if layer.op == "MatMul" and readers and readers[0].op == "Add":
            end = readers[0]
        pairs[layer.name] = (layer.output.name, end.outputs[0].name)
    feeds = {"x": np.concatenate([feed["x"] for _, feed in data.items()])}
    floats = Session(prepared, taps=[a for a, _ in pairs.values()], optimize=False).run(feeds)
    codes = Session(quantized, taps=[b for _, b in pairs.values()], optimize=False).run(feeds)
    for layer in layers(prepared):
        a, b = pairs[layer.name]
        axis = layer.result_axis
        found[layer.name] = tuple(
            np.moveaxis(x, axis, -1).reshape(-1, layer.c_out).astype(np.float64)
            for x in (floats[a], codes[b])
        )
    return found
