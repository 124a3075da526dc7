"""Both networks on all samples, unit by unit: what is held is what a whole run gives."""

import numpy as np
import onnx
import pytest

from onnxq.graph.blocks import blocks, nodes_of, single_layers
from onnxq.passes.correct_bias import CorrectBias
from tests.graphs import build
from tests.learned.plans import lessons, planned

torch = pytest.importorskip("torch")
from onnxq.learned.parts import parts, refusals, surroundings  # noqa: E402
from onnxq.learned.prefix import Prefix  # noqa: E402
from onnxq.lowering import Lowered  # noqa: E402

MICROSOFT = ', "com.microsoft" : 1'
HEAD = """s = Conv<pads=[1,1,1,1]>(x, wa, b) f = Relu(s)
p = Conv<pads=[1,1,1,1]>(f, wb) q = Relu(p) r = Conv<pads=[1,1,1,1]>(q, wc, b)
t = Add(r, f) u = Relu(t)"""
TAIL = """g = GlobalAveragePool(v) h = Flatten(g) y = Gemm(h, wd)"""
NETS = {
    "residual": f"{HEAD} v = Conv(u, we) {TAIL}",
    "split": f"{HEAD} z = com.microsoft.Gelu(u) v = Conv(z, we) {TAIL}",
    "around": f"{HEAD} z = com.microsoft.Gelu(q) k = Add(z, u) v = Conv(k, we) {TAIL}",
    "dense": f"{HEAD} c = Concat<axis=1>(u, s, x) v = Conv(c, wf) {TAIL}",
    "attention": """q = MatMul(x, ma) k = MatMul(x, mb) z = Transpose<perm=[0,1,3,2]>(k)
        s = MatMul(q, z) p = Softmax<axis=-1>(s) v = MatMul(x, mc) o = MatMul(p, v) u = Add(o, x)
        g = GlobalAveragePool(u) h = Flatten(g) y = Gemm(h, md)""",
    "weight on the left": """s = MatMul(ml, x) p = Relu(s) q = MatMul(p, ma)
        g = GlobalAveragePool(q) h = Flatten(g) y = Gemm(h, md)""",
}
SHAPES = {
    "wa": (4, 3, 3, 3), "b": (4,), "wb": (4, 4, 3, 3), "wc": (4, 4, 3, 3), "wd": (4, 5),
    "we": (4, 4, 1, 1), "wf": (4, 11, 1, 1), "ma": (5, 5), "mb": (5, 5), "mc": (5, 5), "md": (3, 5),
    "ml": (6, 6),
}  # fmt: skip
COUNT = 22


def samples(count=COUNT):
    return {"x": np.random.default_rng(0).standard_normal((count, 3, 6, 5)).astype(np.float32)}


def plan_of(folder, kind, size="N", **flags):
    text = NETS[kind]
    used = {n: shape for n, shape in SHAPES.items() if f", {n}" in text or f"({n}," in text}
    proto = build(
        f"(float[{size},3,6,5] x) => (float[{size},5] y) {{ {text} }}", imports=MICROSOFT, **used
    )
    onnx.save(proto, folder / "model.onnx")
    feeds = samples(16)["x"].reshape(4, 4, 3, 6, 5)
    return planned(folder / "model.onnx", [{"x": x} for x in feeds], **{"bits": 3} | flags)[:2]


def whole(run, feeds, wanted, size):
    """Named tensors on all samples, every batch in one run from the inputs."""
    count = len(next(iter(feeds.values())))
    found = {name: [] for name in wanted}
    for start in range(0, count, size):
        batch = {name: torch.from_numpy(x[start : start + size]) for name, x in feeds.items()}
        rows = len(next(iter(batch.values())))
        filled = {name: torch.cat([x] * size)[:size] for name, x in batch.items()}
        with torch.no_grad():
            for name, x in run(filled, wanted).items():
                found[name].append(x[:rows])
    return {name: torch.cat(x) for name, x in found.items()}


def check(prefix, part, model, reference, given, own, size):
    """Hold what is held to whole runs of both networks."""
    teacher = Lowered(reference, part.nodes & {n.name for n in reference.graph.nodes})
    sides = (
        (prefix.floats, teacher.run, given),
        (prefix.quantized, prefix.network.run, given if own is None else own),
    )
    for held, run, feeds in sides:
        expected = whole(run, feeds, list(held), size)
        for name, x in held.items():
            assert x.shape == expected[name].shape, name
            torch.testing.assert_close(
                x, expected[name], rtol=0, atol=1e-5, msg=lambda said, name=name: f"{name}: {said}"
            )


@pytest.mark.parametrize("units", [blocks, single_layers])
@pytest.mark.parametrize(("size", "batch"), [("N", 8), (4, 4)])
@pytest.mark.parametrize("after", [(), (CorrectBias(),)], ids=["", "means restored"])
@pytest.mark.parametrize("kind", NETS)
def test_what_is_held_is_what_a_whole_run_gives(tmp_path, kind, size, batch, units, after):
    reference, model = plan_of(tmp_path, kind, size, after=after)
    given = lessons(samples(), fixed=None if size == "N" else size)
    refused = refusals(reference, given.few)
    split = parts(model, refused)
    assert len(split) == (2 if kind in ("split", "around") else 1)
    found = [(unit, nodes_of(model, unit)) for unit in units(model, model.activations)]
    seen = []
    for part in split:
        mine, own = surroundings(part, model, reference, given)
        prefix = Prefix(model, reference, part, mine, own, batch)
        for unit, nodes in found:
            if not {node.name for node in nodes} <= part.nodes:
                continue
            assert prefix.advance(unit) is None
            assert unit.source in prefix.floats.keys() & prefix.quantized.keys()
            check(prefix, part, model, reference, mine.feeds, own, batch)
            teacher = Lowered(reference, part.nodes & {n.name for n in reference.graph.nodes})
            target = whole(teacher.run, mine.feeds, [unit.result], batch)[unit.result]
            torch.testing.assert_close(prefix.target, target, rtol=0, atol=1e-5)
            # What is trained there shows in what the next unit reads.
            for layer, weight in zip(prefix.network.layers, prefix.network.weights, strict=True):
                if layer.name in unit.layers:
                    weight.latent.add_(0.3)
            seen += unit.layers
    # A block that is a part of two is in none.
    first = {"attention": "MatMul_q", "weight on the left": "MatMul_s"}.get(kind, "Conv_s")
    assert set(seen) >= {first, "Gemm_y"}
    assert len(seen) == len(set(seen))


def test_what_the_network_reads_is_quantized_and_the_teacher_is_not(tmp_path):
    reference, model = plan_of(tmp_path, "residual", act_bits=4)
    prefix = Prefix(model, reference, parts(model, {})[0], lessons(samples()), None, 8)
    for unit in blocks(model, model.activations)[1:]:
        assert prefix.advance(unit) is None
        x, y = prefix.quantized[unit.source], prefix.floats[unit.source]
        grid = model.activations.get(unit.source)
        if grid is not None:
            steps = x / float(grid.scale)
            torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
        assert 0 < (x - y).abs().max() < y.abs().max()


def test_a_unit_that_reads_no_row_for_each_sample_says_so(tmp_path):
    text = """(float[N,6] x) => (float[N,2] y) {
        a = Gemm(x, w) t = Transpose<perm=[1,0]>(a) c = MatMul(k, t)
        u = Transpose<perm=[1,0]>(c) y = Gemm(u, v)
    }"""
    proto = build(text, w=(6, 4), k=(3, 4), v=(3, 2))
    onnx.save(proto, tmp_path / "model.onnx")
    x = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
    reference, model, _ = planned(tmp_path / "model.onnx", [{"x": x}], bits=3)
    prefix = Prefix(model, reference, parts(model, {})[0], lessons({"x": x}), None, 7)
    said = {unit.layers[0]: prefix.advance(unit) for unit in single_layers(model, {})}
    assert said["Gemm_a"] is None
    assert said["MatMul_c"] == "what it reads or returns is no row of floats for each sample"
    assert said["Gemm_y"] is None
    check(prefix, parts(model, {})[0], model, reference, {"x": x}, None, 7)
