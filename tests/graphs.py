"""Small models: nodes as text, weights filled in; and what onnxruntime makes of them."""

import numpy as np
import onnx
import onnxruntime as ort

import onnxq
from onnxq import pipeline
from onnxq.graph.loading import from_proto

# Relative size of the weights that ``build`` draws: outputs stay near the size of the inputs.
GAIN = 0.5


def build(graph, *, opset=17, seed=0, ir=10, imports="", **weights):
    """A model from the text of its graph; a weight is an array, or a shape to fill at random.

    An output written as ``float[] y`` gets the shape that inference finds.
    """
    header = f'<ir_version: {ir}, opset_import: ["" : {opset}{imports}]>'
    proto = onnx.parser.parse_model(f"{header} net {graph}")
    rng = np.random.default_rng(seed)
    for name, value in weights.items():
        if isinstance(value, tuple):
            value = (GAIN * rng.standard_normal(value)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    outputs = onnx.shape_inference.infer_shapes(proto).graph.output
    del proto.graph.output[:]
    proto.graph.output.extend(outputs)
    return proto


def norm(channels, name="", *, shift=True, seed=0):
    """The constants g, s, m and v of a BatchNormalization; without ``shift`` it only scales."""
    rng = np.random.default_rng(seed)
    offset, mean = (GAIN * rng.standard_normal((2, channels)) * shift).astype(np.float32)
    factor, variance = rng.uniform(0.5, 2.0, (2, channels)).astype(np.float32)
    return {f"g{name}": factor, f"s{name}": offset, f"m{name}": mean, f"v{name}": variance}


def after(proto, *passes):
    """A model after passes, and what the last one of them did."""
    model = from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    outcomes = pipeline.run(model, passes, None)
    return model, outcomes[passes[-1].name]


def ops(model):
    """The operators of a model in order."""
    return [node.op for node in model.graph.nodes]


def feeds(proto, seed=0, batch=1):
    """Normal floats for every input that is not an initializer; open sizes are ``batch``."""
    rng = np.random.default_rng(seed)
    stored = {t.name for t in proto.graph.initializer}
    found = {}
    for info in proto.graph.input:
        if info.name not in stored:
            kind = info.type.tensor_type
            shape = [d.dim_value or batch for d in kind.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            found[info.name] = np.asarray(rng.standard_normal(shape)).astype(dtype)
    return found


def run(proto, values, *, optimize=True, taps=()):
    """Outputs, and tensors tapped inside, by name."""
    if taps:
        proto = onnx.ModelProto.FromString(proto.SerializeToString())
        proto.graph.output.extend(onnx.ValueInfoProto(name=tap) for tap in taps)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options)
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, values), strict=True))


def quantize(proto, folder, samples=None, **options):
    """Convert with random calibration data, to nearest; the report and the written file."""
    source = folder / "model.onnx"
    onnx.save(proto, source)
    if samples is None:
        samples = [feeds(proto, seed) for seed in range(4)]
    defaults = {"act_bits": 8, "recipe": "vanilla", "calib": samples, "force": True}
    report = onnxq.convert(source, folder / "quantized.onnx", **defaults | options)
    return report, folder / "quantized.onnx"
