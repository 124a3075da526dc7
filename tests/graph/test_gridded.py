"""Which tensors of a region are rounded, and how much of their noise layers see."""

import numpy as np
import onnx

from onnxq.graph.gates import gates
from onnxq.graph.gridded import Gridded, observers
from onnxq.graph.loading import from_proto
from onnxq.graph.pointwise import unlock, unlockable
from onnxq.graph.regions import regions
from tests.graphs import build, feeds, run

rng = np.random.default_rng(3)


def normal(*shape):
    return (0.4 * rng.standard_normal(shape)).astype(np.float32)


WEIGHTS = {
    "w": normal(8, 3, 3, 3), "v": normal(5, 8, 1, 1), "u": normal(4, 8, 3, 3),
    "depth": normal(8, 1, 3, 3), "norm": normal(8, 1, 1, 1), "b": normal(8),
    "back": normal(8, 5, 1, 1), "far": np.float32(0.5), "twenty": np.float32(20),
}  # fmt: skip


def reads_of(nodes, results="y", spoil=None):
    """By the names of the tensors behind the first layer their reads, and all values."""
    head = f"(float[24,3,9,9] x) => (float[] {results})"
    proto = build(f"{head} {{ a = Conv(x, w) {nodes} }}", **WEIGHTS)
    model = from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    trial = model.clone()
    unlock(trial, unlockable(model))
    found = regions(trial, ceilings=True, norms=True)
    samples = observers(trial, found)
    values = run(proto, feeds(proto), taps=[name for name in samples if name != "x"])
    if spoil is not None:
        values[spoil].flat[0] = np.inf
    for name in samples.keys() & values.keys():
        samples[name].update(values[name])
    gridded = Gridded(trial, found, gates(model), samples)
    (own,) = [r for r in found if r.name == "a"]
    tensors = [t.name for t, _, _ in own.tensors if t.name in samples]
    return dict(zip(tensors, gridded.reads(own, 4), strict=True)), values


def relative(w, x):
    power = np.square(w, dtype=np.float64).sum(axis=(0, 2, 3))
    return power / (power @ np.square(x, dtype=np.float64).mean(axis=(0, 2, 3)))


# Of a sample, ends included, the mean square is not quite that of the values.
close = {"rtol": 0.05}


def test_noise_counts_with_the_weights_relative_to_what_they_return():
    reads, values = reads_of("r = Relu(a) y = Conv(r, v) z = Conv(r, u)", "y, float[] z")
    assert set(reads) == {"r"}
    (r,) = reads.values()
    expected = relative(WEIGHTS["v"], values["r"]) + relative(WEIGHTS["u"], values["r"])
    np.testing.assert_allclose(r.power, expected, **close)
    assert [groups for groups, _ in r.layers] == [1, 1]
    assert r.bits == 4


def test_depthwise_layers_and_norms_pass_noise_on():
    reads, values = reads_of(
        "r = Relu(a) d = Conv<group=8,pads=[1,1,1,1]>(r, depth) s = Relu(d) "
        "n = Conv<group=8>(s, norm, b) t = Relu(n) y = Conv(t, v)"
    )
    later = WEIGHTS["norm"].reshape(-1) ** 2 * relative(WEIGHTS["v"], values["t"])
    power = np.square(WEIGHTS["depth"]).sum(axis=(1, 2, 3)) * later
    np.testing.assert_allclose(reads["r"].power, power, **close)
    reads, _ = reads_of("r = Relu(a) n = Conv<group=8>(r, norm, b) t = Relu(n) y = Conv(t, v)")
    assert (reads["r"].bits, reads["r"].layers) == (8, [])


def test_a_mean_over_all_pixels_leaves_nothing_of_noise():
    reads, values = reads_of(
        "r = Relu(a) g = GlobalAveragePool(r) y = Conv(g, v) z = Conv(r, u)", "y, float[] z"
    )
    np.testing.assert_allclose(reads["r"].power, relative(WEIGHTS["u"], values["r"]), **close)
    np.testing.assert_allclose(reads["g"].power, relative(WEIGHTS["v"], values["g"]), rtol=0.5)


def test_what_only_sums_read_has_a_grid_of_8_bits_and_reaches_what_they_do():
    reads, values = reads_of("r = Relu(a) c = Conv(x, w) s = Add(r, c) t = Relu(s) y = Conv(t, v)")
    assert {name: read.bits for name, read in reads.items()} == {"r": 8, "c": 8, "t": 4}
    for read in reads.values():
        np.testing.assert_allclose(read.power, relative(WEIGHTS["v"], values["t"]), **close)


def test_what_is_moved_is_one_with_what_it_was_moved_from():
    reads, _ = reads_of("r = Relu(a) m = MaxPool<kernel_shape=[2,2]>(r) y = Conv(m, v)")
    assert set(reads) == {"m"}


def test_what_opens_its_own_gate_errs_as_its_product_does():
    nodes = "s = Sigmoid(a) h = Mul(a, s) d = Conv(h, v) l = Relu(d) y = Conv(l, back)"
    reads, _ = reads_of(nodes)
    assert {name: read.bits for name, read in reads.items()} == {"a": 8, "h": 4}
    np.testing.assert_allclose(reads["a"].power, reads["h"].power)
    x, slopes = reads["a"].rows, reads["a"].slopes
    step = 1e-3 * np.float32(1)
    product = [z / (1 + np.exp(-z)) for z in (x - step, x + step)]
    np.testing.assert_allclose(slopes, (product[1] - product[0]) / (2 * step), atol=2e-3)
    assert reads["h"].slopes is None
    reads, _ = reads_of(f"c = Add(a, far) {nodes}".replace("(a)", "(c)").replace("Mul(a", "Mul(c"))
    assert reads["a"].slopes is None


def test_what_a_gate_shuts_out_is_not_seen():
    reads, values = reads_of("f = Mul(a, twenty) s = Sigmoid(f) h = Mul(a, s) y = Conv(h, v)")
    assert values["a"].min() < -1
    # There, x sigmoid(20 x) is -0.003 to -0.01.
    assert -0.25 < reads["a"].rows.min() < -0.15


def test_infinite_values_tell_nothing_of_a_gate():
    nodes = "s = Sigmoid(a) h = Mul(a, s) d = Conv(h, v) l = Relu(d) y = Conv(l, back)"
    with np.errstate(all="raise"):
        reads, _ = reads_of(nodes, spoil="a")
    assert reads["a"].slopes is None
    assert np.isinf(reads["a"].rows).any()
