"""Random graphs through the whole conversion: what holds for every model holds for these."""

import warnings

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxq.numerics.levels import WIDTHS
from onnxq.numerics.metrics import Fidelity
from onnxq.passes.equalize import Equalize
from onnxq.passes.split_outliers import SplitOutliers
from onnxq.recipes import PREPARATION
from tests.graphs import after, quantize, run

# The optimised graph may round a tie the other way, and a code that flips early moves later ones.
# All but a few in a thousand graphs agree to 100 dB; the worst are means of two codes, at 37 dB. A
# requantized weight shows below 30 dB. Where levels are few, one flip is much noise: there it may
# also be so many steps of the output's range.
SAME_DB, SAME_STEPS = 30.0, 3


class Net:
    """A graph under construction whose shapes are known at every step."""

    def __init__(self, draw, opset):
        self.draw = draw
        self.opset = opset
        self.rng = np.random.default_rng(draw(st.integers(0, 2**16)))
        shape = draw(
            st.sampled_from([[1, 3, 8, 8], [2, 4, 6, 7], [1, 8, 5, 5], [4, 12], [2, 5, 8]])
        )
        self.shapes = {"x": shape}
        self.nodes, self.weights = [], []

    def constant(self, values, dtype=np.float32):
        name = f"k{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def normal(self, *shape, gain=1.0):
        values = self.rng.standard_normal(shape) * gain
        if values.ndim > 1 and self.draw(st.integers(0, 3)) == 0:
            values[:, 0] *= 30.0  # an outlier channel shows up a weight that was requantized
        return self.constant(values)

    def add(self, op, *inputs, **attrs):
        """Append a node if its result is a plain, not too large tensor."""
        name = f"t{len(self.nodes)}"
        node = helper.make_node(op, inputs, [name], f"n{len(self.nodes)}_{op}", **attrs)
        graph = self.proto([*self.nodes, node], []).graph
        info = onnx.shape_inference.infer_shapes(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)]),
            strict_mode=True, data_prop=True,
        )  # fmt: skip
        found = next(v for v in info.graph.value_info if v.name == name)
        shape = [d.dim_value for d in found.type.tensor_type.shape.dim]
        if min(shape) > 0 and np.prod(shape) <= 4096:
            self.nodes.append(node)
            self.shapes[name] = shape

    def proto(self, nodes, outputs):
        def infos(names):
            return [
                helper.make_tensor_value_info(n, TensorProto.FLOAT, self.shapes[n]) for n in names
            ]

        graph = helper.make_graph(nodes, "net", infos(["x"]), infos(outputs), self.weights)
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, ir_version=10, opset_imports=opsets)

    def pick(self, *ranks):
        """A tensor of one of these ranks, likely a late one; None if there is none."""
        fitting = [n for n, shape in self.shapes.items() if not ranks or len(shape) in ranks]
        late = fitting[-3:]
        return self.draw(st.sampled_from([*late, *late[-1:]])) if late else None

    # -- one method for each kind of node ----------------------------------------------------------

    def conv(self, op="Conv"):
        x = self.pick(3, 4, 5)
        if x is None:
            return
        c, *spatial = self.shapes[x][1:]
        axes = len(spatial)
        group = self.draw(st.sampled_from([g for g in (1, 2, c) if c % g == 0]))
        out = self.draw(st.sampled_from([group, 2 * group] if group > 2 else [2, 4, 6]))
        k = min(self.draw(st.sampled_from([1, 2, 3])), *spatial)
        channels = (out, c // group) if op == "Conv" else (c, out // group)
        inputs = [x, self.normal(*channels, *[k] * axes, gain=(c // group * k**axes) ** -0.5)]
        if self.draw(st.booleans()):
            inputs.append(self.normal(out))
        stride = self.draw(st.sampled_from([1, 1, 2]))
        pads = self.draw(st.lists(st.integers(0, 1), min_size=2 * axes, max_size=2 * axes))
        padding = {"pads": pads} if self.draw(st.booleans()) else {"auto_pad": "SAME_UPPER"}
        self.add(op, *inputs, group=group, strides=[stride] * axes, **padding)

    def deconv(self):
        self.conv("ConvTranspose")

    def upsample(self):
        x = self.pick(4)
        if x is None:
            return
        c, stride = self.shapes[x][1], self.draw(st.integers(2, 3))
        kernel = self.draw(st.lists(st.integers(2, 5), min_size=2, max_size=2))
        weight = self.normal(c, self.draw(st.integers(1, 3)), *kernel, gain=c**-0.5)
        attrs = {"pads": self.draw(st.lists(st.integers(0, 1), min_size=4, max_size=4))}
        if self.draw(st.booleans()):
            attrs["output_padding"] = self.draw(st.lists(st.integers(0, 1), min_size=2, max_size=2))
        self.add("ConvTranspose", x, weight, strides=[stride] * 2, **attrs)

    def gemm(self):
        x = self.pick(2)
        if x is None:
            return
        (_, c), n = self.shapes[x], self.draw(st.integers(1, 6))
        flipped = self.draw(st.booleans())
        inputs = [x, self.normal(*((n, c) if flipped else (c, n)), gain=c**-0.5)]
        if (
            bias := self.draw(st.sampled_from([None, (n,), (1, n), (1,), (self.shapes[x][0], 1)]))
        ) is not None:
            inputs.append(self.normal(*bias))
        factors = {"alpha": 0.5, "beta": 2.0} if self.draw(st.integers(0, 3)) == 0 else {}
        self.add("Gemm", *inputs, transB=int(flipped), **factors)

    def matmul(self):
        x = self.pick(2, 3, 4)
        if x is None:
            return
        c, n = self.shapes[x][-1], self.draw(st.integers(1, 6))
        self.add("MatMul", x, self.normal(c, n, gain=c**-0.5))
        if (bias := self.draw(st.sampled_from([None, (n,), (1, n), (1, 1, n)]))) is not None:
            self.add("Add", list(self.shapes)[-1], self.normal(*bias))

    def left_matmul(self):
        x = self.pick(2, 3)
        if x is None:
            return
        c, n = self.shapes[x][-2], self.draw(st.integers(1, 6))
        self.add("MatMul", self.normal(n, c, gain=c**-0.5), x)

    def attention(self):
        x = self.pick(2, 3)
        if x is None:
            return
        axes = list(range(len(self.shapes[x])))
        self.add("Transpose", x, perm=[*axes[:-2], axes[-1], axes[-2]])
        self.add("MatMul", x, list(self.shapes)[-1])

    def binary(self):
        x = self.pick()
        op = self.draw(st.sampled_from(["Add", "Mul"]))
        shape = self.shapes[x]
        same = [n for n, s in self.shapes.items() if s == shape]
        kind = self.draw(st.integers(0, 3))
        if kind == 0:
            op = self.draw(st.sampled_from([op, "Div"]))
            numbers = [0.5, -2.0, 3.0] if op == "Div" else [0.5, -2.0, 0.0, 3.0]
            self.add(op, x, self.constant(self.draw(st.sampled_from(numbers))))
        elif kind == 1:
            self.add(op, self.normal(1, shape[1], *[1] * (len(shape) - 2)), x)
        else:
            self.add(op, x, self.draw(st.sampled_from(same)))

    def concat(self):
        x = self.pick()
        shape = self.shapes[x]
        axis = self.draw(st.integers(-1, len(shape) - 1))
        fitting = [
            n
            for n, s in self.shapes.items()
            if len(s) == len(shape)
            and all(a == b for i, (a, b) in enumerate(zip(s, shape, strict=True))
                    if i != axis % len(shape))
        ]  # fmt: skip
        others = self.draw(st.lists(st.sampled_from(fitting), min_size=1, max_size=2))
        self.add("Concat", x, *others, axis=axis)

    def pool(self):
        x = self.pick(3, 4, 5)
        if x is None or min(self.shapes[x][2:]) <= 2:
            return
        axes = len(self.shapes[x]) - 2
        op = self.draw(st.sampled_from(["MaxPool", "AveragePool", "GlobalAveragePool"]))
        attrs = {}
        if op != "GlobalAveragePool":
            attrs["kernel_shape"] = [2, self.draw(st.integers(2, 3)), 2][-axes:]
            attrs["strides"] = [self.draw(st.integers(1, 2))] * axes
            # With both, onnx and onnxruntime disagree on the shape.
            padding = ({}, {"pads": [1] * 2 * axes}, {"ceil_mode": 1})
            attrs |= self.draw(st.sampled_from(padding))
        if op == "AveragePool" and "pads" in attrs:
            attrs["count_include_pad"] = int(self.draw(st.booleans()))
        self.add(op, x, **attrs)

    def activation(self):
        op = self.draw(st.sampled_from(["Relu", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Softmax"]))
        x, bounds, attrs = self.pick(), [], {}
        if op == "Clip":
            lo, hi = self.draw(st.sampled_from([(0, 6), (-1, 1), (0.25, 2), (None, 1), (0, None)]))
            bounds = ["" if end is None else self.constant(end) for end in (lo, hi)]
        if op == "LeakyRelu":
            attrs["alpha"] = self.draw(st.sampled_from([0.01, 0.25, 2.0]))
        self.add(op, x, *bounds, **attrs)

    def function(self):
        kinds = ["Identity", "Dropout", "Tanh", "Elu", "HardSigmoid", "Neg", "Abs", "ReduceMax"]
        op = self.draw(st.sampled_from([*kinds, "HardSwish"] if self.opset >= 14 else kinds))
        self.add(op, self.pick())

    def mean(self):
        x = self.pick(4)
        if x is not None and self.opset >= 18:
            axes = self.constant([2, 3], np.int64)
            self.add("ReduceMean", x, axes, keepdims=int(self.draw(st.booleans())))

    def norm(self):
        x = self.pick(2, 4)
        if x is None:
            return
        c = self.shapes[x][1]
        shift = self.constant(np.zeros(c)) if self.draw(st.booleans()) else self.normal(c)
        spread = self.constant(self.rng.uniform(0.5, 2.0, c))
        self.add("BatchNormalization", x, self.normal(c), shift, self.normal(c), spread)

    def resize(self):
        x = self.pick(4)
        if x is None:
            return
        mode = self.draw(st.sampled_from(["nearest", "linear"]))
        where = self.draw(st.sampled_from(["asymmetric", "half_pixel"]))
        scales = self.constant([1, 1, *self.draw(st.sampled_from([(2, 2), (1.5, 1), (0.5, 2)]))])
        self.add("Resize", x, "", scales, mode=mode, coordinate_transformation_mode=where)

    def rearrange(self):
        x = self.pick()
        shape = self.shapes[x]
        kinds = ["Reshape", "Transpose", "Pad", "Slice", "Flatten", "Unsqueeze", "Gather", "Tile",
                 "DepthToSpace", "Squeeze"]  # fmt: skip
        kind = self.draw(st.sampled_from(kinds))
        if kind == "Reshape":
            short = [[shape[0], -1], [-1, shape[-1]], [shape[0], shape[1], -1]]
            target = self.draw(st.sampled_from(short))
            self.add(kind, x, self.constant(target, np.int64))
        elif kind == "Transpose":
            order = self.draw(st.permutations(range(len(shape))))
            self.add(kind, x, perm=order if order != sorted(order) else order[::-1])
        elif kind == "Pad":
            ends = self.draw(st.lists(st.integers(0, 1), min_size=2, max_size=2))
            before, after = ([0] * (len(shape) - 1) + [end] for end in ends)
            mode = self.draw(st.sampled_from(["constant", "edge"]))
            self.add(kind, x, self.constant([*before, *after], np.int64), mode=mode)
        elif kind == "Slice":
            axis = self.draw(st.integers(0, len(shape) - 1))
            start = self.draw(st.integers(0, shape[axis] - 1))
            numbers = ([start], [shape[axis]], [axis], [self.draw(st.integers(1, 2))])
            self.add(kind, x, *(self.constant(n, np.int64) for n in numbers))
        elif kind == "Unsqueeze":
            self.add(kind, x, self.constant([1], np.int64))
        elif kind == "Gather":
            axis = self.draw(st.integers(0, len(shape) - 1))
            self.add(kind, x, self.constant([0, shape[axis] - 1], np.int64), axis=axis)
        elif kind == "Tile":
            self.add(kind, x, self.constant([1] * (len(shape) - 1) + [2], np.int64))
        elif kind == "Flatten":
            self.add(kind, x, axis=1)
        elif kind == "Squeeze" and 1 in shape[1:]:
            self.add(kind, x, self.constant([1 + shape[1:].index(1)], np.int64))
        elif kind == "DepthToSpace" and len(shape) == 4 and shape[1] % 4 == 0:
            self.add(kind, x, blocksize=2)


LAYERS = (
    "conv",
    "conv",
    "conv",
    "deconv",
    "upsample",
    "gemm",
    "gemm",
    "matmul",
    "matmul",
    "left_matmul",
)
OTHERS = ("attention", "binary", "binary", "concat", "pool", "activation", "activation", "function",
          "mean", "norm", "resize", "rearrange", "rearrange")  # fmt: skip


@st.composite
def models(draw):
    net = Net(draw, draw(st.sampled_from([13, 17, 18, 21])))
    while not net.nodes:
        getattr(net, draw(st.sampled_from(LAYERS)))()
    for _ in range(draw(st.integers(1, 7))):
        getattr(net, draw(st.sampled_from(LAYERS + OTHERS)))()
    read = {name for node in net.nodes for name in node.input}
    ends = [name for name in net.shapes if name != "x" and name not in read]
    if draw(st.integers(0, 4)) == 0:
        ends.append(draw(st.sampled_from([n for n in net.shapes if n != "x"])))
    proto = net.proto(net.nodes, list(dict.fromkeys(ends)))
    if draw(st.booleans()):
        for info in (*proto.graph.input, *proto.graph.output):
            for size in info.type.tensor_type.shape.dim:
                size.Clear()
    return proto, net.shapes["x"]


def assert_same(plain, fast, act_bits):
    assert fast.shape == plain.shape
    assert np.isfinite(fast).all()
    fidelity = Fidelity()
    fidelity.update(plain, fast)
    if fidelity.sqnr < SAME_DB and act_bits in range(2, 8):
        step = (max(plain.max(), 0.0) - min(plain.min(), 0.0)) / (2**act_bits - 1)
        assert np.abs(fast - plain).max() <= SAME_STEPS * step
    else:
        assert fidelity.sqnr >= SAME_DB


def reference(proto, feeds):
    """What ONNX's own evaluator, which shares no code with onnxruntime, makes of a model.

    It knows the operators of quantization from opset 19 on; all that is drawn here means the same
    in 21. Its ConvTranspose fails on batches and uneven padding: models with one are left out.
    """
    if any(node.op_type == "ConvTranspose" for node in proto.graph.node):
        return {}
    proto.opset_import[0].version = max(proto.opset_import[0].version, 21)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        session = ReferenceEvaluator(proto)
        return dict(zip(session.output_names, session.run(None, feeds), strict=True))


def convert_and_check(folder, net, weights, act_bits, kept, attention, group):
    proto, shape = net
    onnx.checker.check_model(proto, full_check=True)
    rng = np.random.default_rng(0)
    samples = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(4)]
    try:
        run(proto, samples[0])
    except RuntimeError:  # onnxruntime has fusions that lose an output of the float graph
        reject()
    names = [node.name for node in proto.graph.node]
    keep_float = tuple({names[i % len(names)] for i in kept} - {names[0]})
    levels, bits = weights
    report, file = quantize(
        proto,
        folder,
        samples,
        levels=levels,
        bits=bits,
        act_bits=act_bits,
        keep_float=keep_float,
        attention=attention,
        group_size=group if act_bits == "float" else 0,
    )
    written = onnx.load(file)
    onnx.checker.check_model(written, full_check=True)
    fast = run(written, samples[0])
    for name, plain in run(written, samples[0], optimize=False).items():
        assert_same(plain, fast[name], act_bits)
    for name, plain in reference(written, samples[0]).items():
        assert_same(plain, fast[name], act_bits)
    assert report.kernels.total
    assert not any("did not fuse" in report.why_float[name] for name in report.kernels.floating)


CASES = {
    "net": models(),
    "weights": st.one_of(
        st.tuples(st.just("uniform"), st.integers(2, 8)),
        st.sampled_from([(name, bits) for name, ends in WIDTHS.items() for bits in ends]),
    ),
    "act_bits": st.one_of(st.just(8), st.integers(2, 8), st.just("float")),
    "attention": st.booleans(),
    "group": st.integers(0, 3),
    "kept": st.lists(st.integers(0, 9), max_size=2),
}
FIXED = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


@given(**CASES)
@settings(FIXED, max_examples=60)
def test_random_graph_converts_and_means_the_same_optimised(tmp_path_factory, **case):
    convert_and_check(tmp_path_factory.mktemp("graph"), **case)


@pytest.mark.slow
@given(**CASES)
@settings(FIXED, max_examples=250)
def test_many_random_graphs_convert_and_mean_the_same_optimised(tmp_path_factory, **case):
    convert_and_check(tmp_path_factory.mktemp("graph"), **case)


# What equal weights in another order of summation may cost, of the largest value in the graph.
EXACT = 1e-4


def rescale_and_check(net):
    proto, shape = net
    values = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    try:
        before = run(proto, values)
    except RuntimeError:
        reject()
    for step in (Equalize(ceilings=True), SplitOutliers()):
        model, _ = after(proto, *PREPARATION, step)
        onnx.checker.check_model(model.to_proto(), full_check=True)
        for name, found in run(model.to_proto(), values).items():
            largest = np.abs(before[name]).max(initial=1.0)
            np.testing.assert_allclose(found, before[name], rtol=0, atol=EXACT * largest)


@given(net=models())
@settings(FIXED, max_examples=100)
def test_channels_are_scaled_and_split_without_changing_what_a_random_graph_computes(net):
    rescale_and_check(net)


@pytest.mark.slow
@given(net=models())
@settings(FIXED, max_examples=250)
def test_channels_are_scaled_and_split_without_changing_what_many_random_graphs_compute(net):
    rescale_and_check(net)
