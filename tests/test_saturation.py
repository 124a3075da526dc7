"""No kernel saturates: in files of every form, neighbouring products fit the sums of 16 bits."""

import itertools

import numpy as np
import onnx
import pytest

from onnxq.graph import forms
from tests.graphs import build, feeds, quantize, run

# Weights of one sign with a few large ones, which nothing makes up for when they are cut off.
RNG = np.random.default_rng(7)


def heavy(*shape):
    return np.abs(RNG.standard_t(3, shape)).astype(np.float32)


NETS = {
    "strips": build(
        "(float[n,3,8,8] x) => (float[] y) { a = Conv<pads=[1,1,1,1]>(x, w) y = Conv(a, v) }",
        w=heavy(6, 3, 3, 3), v=heavy(5, 6, 1, 1),
    ),
    "groups": build(
        "(float[n,5,8,8] x) => (float[] y) { a = Conv<pads=[1,1,1,1]>(x, w) "
        "b = Conv<group=3,pads=[1,1,1,1]>(a, v) y = Conv<group=2>(b, u) }",
        w=heavy(9, 5, 3, 3), v=heavy(6, 3, 3, 3), u=heavy(4, 3, 3, 1),
    ),
    "rows": build(
        "(float[n,7,9] x) => (float[] y) { a = Conv<strides=[2]>(x, w) f = Flatten(a) "
        "g = Gemm<transB=1>(f, v, b) y = MatMul(g, u) }",
        w=heavy(5, 7, 3), v=heavy(11, 20), b=(11,), u=heavy(11, 6),
    ),
    "matrices": build(
        "(float[2,6,7] x) => (float[] y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, u) }",
        w=heavy(7, 5), u=heavy(5, 4),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def short_rows(monkeypatch):
    monkeypatch.setattr(forms, "LEAST_ROW", 4)


def added(proto, values):
    """Codes of every layer that reads codes, (c_out, inputs) as onnxruntime's kernels add them."""
    made = {name: node for node in proto.graph.node for name in node.output}
    found = []
    for node in proto.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        sides = [made.get(name) for name in node.input[:2]]
        stored = [side.input[0] for side in sides if side and side.op_type == "DequantizeLinear"]
        codes = [run(proto, values, optimize=False, taps=[name])[name] for name in stored]
        weights = [q for q in codes if q.dtype == np.int8]
        if not weights:
            continue
        (q,) = weights
        if node.op_type == "Conv":
            found.append(np.moveaxis(q, 1, -1).reshape(len(q), -1))
        else:
            flipped = any(a.name == "transB" and a.i for a in node.attribute)
            found.append(q if flipped else q.T)
    return found


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"per_tensor": True},
        {"recipe": None, "quality": "fast"},
        {"recipe": None, "quality": "balanced"},
        {"recipe": "oaq", "first_last_bits": 8},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "plain",
)
def test_neighbouring_products_fit(name, options, tmp_path):
    fit(name, options, tmp_path)


@pytest.mark.parametrize("recipe", ["adaround", "distill"])
def test_neighbouring_products_fit_after_training(recipe, tmp_path):
    pytest.importorskip("torch")
    fit("groups", {"recipe": recipe}, tmp_path)


def test_rounding_is_learned_in_the_room_of_neighbours(monkeypatch, tmp_path):
    pytest.importorskip("torch")
    from onnxq.learned import unit

    class Upward(unit.SoftRounding):
        """Every weight becomes the larger of what it may be."""

        def plan(self):
            self.latent.data.fill_(10.0)
            return super().plan()

    monkeypatch.setattr(unit, "SoftRounding", Upward)
    fit("groups", {"recipe": "adaround"}, tmp_path)


def fit(name, options, tmp_path):
    """Convert a network and look at its codes, and at what onnxruntime makes of them."""
    proto = NETS[name]
    samples = [{k: np.abs(v) for k, v in feeds(proto, seed).items()} for seed in range(16)]
    _, file = quantize(proto, tmp_path, samples, **options)
    written = onnx.load(file)
    found = added(written, feeds(proto))
    assert len(found) >= 2
    for q, sign in itertools.product(found, (1, -1)):
        products = 255 * np.maximum(sign * q.astype(int), 0)
        assert (products[..., 1:] + products[..., :-1]).max(initial=0) < 2**15
    if "per_tensor" not in options:
        assert max(np.abs(q.astype(int)).max() for q in found) > 64
    # The largest activations there are, everywhere.
    loud = {k: np.full_like(v, 1e3) for k, v in feeds(proto).items()}
    exact, fast = (run(written, loud, optimize=optimize)["y"] for optimize in (False, True))
    np.testing.assert_allclose(fast, exact, rtol=0.02)
