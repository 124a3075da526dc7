"""AdaRound and BRECQ: rounding that is learned unit by unit, judged on samples held out."""

import numpy as np
import onnx
import pytest

from onnxq.graph.blocks import blocks, nodes_of, single_layers
from onnxq.graph.layers import layers
from onnxq.numerics import affine
from tests.graphs import build
from tests.learned.plans import assert_same_as_written, lessons, planned
from tests.learned.test_prefix import NETS, plan_of, samples

torch = pytest.importorskip("torch")
from onnxq.learned import reconstruction, unit  # noqa: E402
from onnxq.learned.network import QuantizedNetwork  # noqa: E402
from onnxq.learned.parts import give_biases, parts  # noqa: E402
from onnxq.learned.prefix import Prefix  # noqa: E402
from onnxq.learned.reconstruction import reconstruct  # noqa: E402
from onnxq.learned.training import INTERRUPTED, LEFT_OUT, UNDONE  # noqa: E402
from onnxq.learned.unit import Drop, Rates, UnitTraining  # noqa: E402
from onnxq.lowering import Lowered  # noqa: E402

STEPS, BATCH = 12, 8
ROUNDING = Rates(0.2)
ALL = Rates(0.2, 0.02, 0.02)
KINDS = {"adaround": (single_layers, ROUNDING, 0.0), "brecq": (blocks, ALL, 0.5)}
COUNT, FRESH = 40, 200


def learn(plan, kind="adaround", count=COUNT, steps=STEPS, **given):
    """What the pass did, and the plan that it left."""
    reference, model = plan
    model = model.clone()
    units, rates, drop = KINDS[kind]
    taught = lessons(samples(count), **given)
    outcome = reconstruct(kind, model, reference, taught, units, rates, steps, BATCH, drop)
    return outcome, model


def codes(model):
    return {name: weight.codes for name, weight in model.weights.items()}


def same(found, wanted):
    assert found.keys() == wanted.keys()
    return all(np.array_equal(found[name], x) for name, x in wanted.items())


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """Plans of three bits, by the kind of network."""
    return {kind: plan_of(tmp_path_factory.mktemp(kind), kind) for kind in NETS}


def reached(outcome):
    """Layers that a training came to, whether it won something or not."""
    undone = {skip.where for skip in outcome.skips if skip.why == UNDONE}
    return undone | {edit.where for edit in outcome.edits}


def losses(outcome):
    """What the judge said of every unit, before, and of what is left of it."""
    found = []
    for remark in outcome.remarks:
        if "loss on held-out samples" in remark.what:
            start, end = remark.what.split("samples ")[1].split(",")[0].split(" -> ")
            found.append((float(start), float(start if "left as it was" in remark.what else end)))
    return found


# The layers of a block with a node that torch does not know are learned one by one.
UNITS = {
    ("residual", "brecq"): 4,
    ("dense", "brecq"): 3,
    ("attention", "adaround"): 4,
    ("attention", "brecq"): 2,
    ("weight on the left", "adaround"): 3,
    ("weight on the left", "brecq"): 3,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("net", NETS)
def test_every_layer_is_learned_and_gets_no_worse(nets, net, kind):
    before = codes(nets[net][1])
    outcome, model = learn(nets[net], kind)
    places = [entry.where for entry in (*outcome.edits, *outcome.skips)]
    assert sorted(places) == sorted(before)
    assert {skip.why for skip in outcome.skips} <= {UNDONE}
    found = losses(outcome)
    assert len(found) == UNITS.get((net, kind), 5)
    assert all(end <= start for start, end in found)
    assert sum(end < start for start, end in found) >= len(found) / 2
    after = codes(model)
    for name, x in before.items():
        by = np.abs(after[name].astype(int) - x)
        assert by.max() <= 1
        said = [edit.what for edit in outcome.edits if edit.where == name]
        assert said == [f"{np.mean(by > 0):.2%} of its codes moved"] if said else not by.any()
    assert not same(after, before)
    model.to_bytes()


def far(plan, model, name, rows):
    """Squared error of a tensor on some samples, relative to its variance."""
    x = {"x": torch.from_numpy(samples(FRESH)["x"][rows])}
    with torch.no_grad():
        truth = Lowered(plan[0]).run(x, [name])[name]
        found = QuantizedNetwork(model).run(x, [name])[name]
    return float(((found - truth) ** 2).mean() / truth.var())


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_itself_comes_nearer_to_the_float_one(nets, kind):
    plan = nets["residual"]
    _, model = learn(plan, kind, steps=60)
    rows = np.arange(COUNT, FRESH)  # that no training and no judge has seen
    for name in ("u", "y"):
        assert far(plan, model, name, rows) < far(plan, plan[1], name, rows), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flags", [{}, {"act_bits": 4}, {"levels": "post", "bits": 3}])
def test_what_is_learned_is_what_the_written_file_computes(tmp_path, kind, flags):
    plan = plan_of(tmp_path, "residual", **flags)
    _, model = learn(plan, kind)
    assert not same(codes(model), codes(plan[1]))
    assert_same_as_written(model, QuantizedNetwork(model), {"x": samples()["x"]})


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_plan(nets, kind):
    (_, one), (_, again), (_, other) = (learn(nets["split"], kind, seed=s) for s in (3, 3, 4))
    assert same(codes(one), codes(again))
    assert not same(codes(one), codes(other))
    for name, grid in one.activations.items():
        assert grid.scale == again.activations[name].scale
    assert one.digest() == again.digest()


def test_adaround_leaves_all_but_the_rounding_alone(nets):
    before = nets["residual"][1]
    _, model = learn(nets["residual"], "adaround")
    for ours, theirs in zip(layers(model), layers(before), strict=True):
        np.testing.assert_array_equal(ours.bias, theirs.bias)
        np.testing.assert_array_equal(ours.weight, theirs.weight)
    for name, grid in before.activations.items():
        assert model.activations[name].scale == grid.scale
    for name, weight in before.weights.items():
        np.testing.assert_array_equal(model.weights[name].params.scale, weight.params.scale)


def test_brecq_trains_biases_and_ranges_inside_its_blocks(nets):
    before = nets["residual"][1]
    _, model = learn(nets["residual"], "brecq")
    moved = [n for n, g in before.activations.items() if model.activations[n].scale != g.scale]
    assert moved
    pairs = zip(layers(model), layers(before), strict=True)
    assert any(not np.array_equal(ours.bias, theirs.bias_or_zeros) for ours, theirs in pairs)
    for name, weight in before.weights.items():
        np.testing.assert_array_equal(model.weights[name].params.scale, weight.params.scale)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_a_fixed_size_gives_all_that_one_of_an_open_size_gives(tmp_path, kind):
    plan = plan_of(tmp_path, "residual", 4)
    outcome, model = learn(plan, kind, fixed=4)
    assert all(end <= start for start, end in losses(outcome))
    assert not outcome.skips
    assert not same(codes(model), codes(plan[1]))


def test_one_number_for_each_sample_is_learned_too(tmp_path):
    text = (
        """(float[1,6] x) => (float[1,1] y) { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v, c) }"""
    )
    proto = build(text, w=(6, 8), b=(8,), v=(8, 1), c=(1,))
    onnx.save(proto, tmp_path / "model.onnx")
    x = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    reference, model, _ = planned(tmp_path / "model.onnx", [{"x": x[i : i + 1]} for i in range(8)])
    given = lessons({"x": x}, fixed=1)
    outcome = reconstruct("brecq", model, reference, given, blocks, ALL, STEPS, BATCH, 0.5)
    assert len(outcome.edits) == 2
    for start, end in losses(outcome):
        assert np.isfinite([start, end]).all()
    network = QuantizedNetwork(model)
    with torch.no_grad():
        assert torch.isfinite(network.run({"x": torch.from_numpy(x[:1])}, ["y"])["y"]).all()


# -- ended by the user -------------------------------------------------------------------------


class Stop:
    """Interrupts after so many steps of all units."""

    def __init__(self, after):
        self.left = after

    def __call__(self, stage, advance, total, note=""):
        self.left -= advance
        if self.left <= 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("net", ["residual", "split"])
def test_an_interrupted_training_keeps_what_is_done_and_names_the_rest(nets, kind, net):
    whole, model = learn(nets[net], kind)
    after = STEPS + 5
    outcome, stopped = learn(nets[net], kind, progress=Stop(after))
    refused = [node.name for node in model.graph.nodes if node.op == "Gelu"]
    units = [one for one, _ in reconstruction._units(model, KINDS[kind][0], refused)]
    done, rest = units[:2], units[2:]
    assert reached(outcome) == {name for one in done for name in one.layers}
    assert {s.where for s in outcome.skips if s.why == INTERRUPTED} == {
        name for one in rest for name in one.layers
    }
    assert outcome.remarks[-1].what == LEFT_OUT
    for name in done[0].layers:
        np.testing.assert_array_equal(stopped.weights[name].codes, model.weights[name].codes)
    for name in (n for later in rest for n in later.layers):
        np.testing.assert_array_equal(stopped.weights[name].codes, nets[net][1].weights[name].codes)
    assert reached(whole) > reached(outcome)
    assert all(end <= start for start, end in losses(outcome))


@pytest.mark.parametrize("kind", KINDS)
def test_between_two_units_it_can_be_interrupted_as_well(nets, kind, monkeypatch):
    _, model = learn(nets["residual"], kind)
    calls = []

    class Watched(reconstruction.Prefix):
        def advance(self, unit):
            calls.append(unit)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return super().advance(unit)

    monkeypatch.setattr(reconstruction, "Prefix", Watched)
    outcome, stopped = learn(nets["residual"], kind)
    done = [name for one in calls[:2] for name in one.layers]
    assert reached(outcome) == set(done)
    assert INTERRUPTED in {skip.why for skip in outcome.skips}
    assert outcome.remarks[-1].what == LEFT_OUT
    for name in done:
        np.testing.assert_array_equal(stopped.weights[name].codes, model.weights[name].codes)


class Killed(Exception):  # noqa: N818  (nothing is wrong)
    pass


@pytest.mark.parametrize(
    ("kind", "steps"), [("adaround", STEPS + 7), ("brecq", 5), ("brecq", 2 * STEPS)]
)
def test_a_killed_training_goes_on_to_the_same_plan(nets, kind, tmp_path, steps):
    class Kill(Stop):
        def __call__(self, *said):
            try:
                super().__call__(*said)
            except KeyboardInterrupt:
                raise Killed from None

    _, whole = learn(nets["split"], kind)
    with pytest.raises(Killed):
        learn(nets["split"], kind, checkpoint=tmp_path / "state.pt", progress=Kill(steps))
    _, model = learn(nets["split"], kind, checkpoint=tmp_path / "state.pt")
    assert same(codes(model), codes(whole))
    assert model.to_bytes() == whole.to_bytes()
    for name, grid in whole.activations.items():
        assert model.activations[name].scale == grid.scale


# -- one unit ----------------------------------------------------------------------------------


def unit_of(plan, kind="brecq", number=1, size=BATCH, **given):
    reference, model = plan
    units, rates, drop = KINDS[kind]
    give_biases(model)
    prefix = Prefix(
        model, reference, parts(model, {})[0], lessons(samples(34), **given), None, size
    )
    found = units(model, model.activations)
    for one in found[: number + 1]:
        assert prefix.advance(one) is None
    last = found[number]
    return UnitTraining(prefix, last, nodes_of(model, last), number, rates, drop)


def test_a_unit_is_judged_on_every_sample_held_out_once(tmp_path):
    """However many samples run together."""
    found = []
    for size, fixed in (("N", None), (4, 4), (2, 2)):
        folder = tmp_path / str(size)
        folder.mkdir()
        found.append(unit_of(plan_of(folder, "residual", size), fixed=fixed)._judge())
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-5)


def test_the_parts_of_a_loss_weigh_one_together(tmp_path):
    """The error counts as much, whatever runs together."""
    weights = []
    for size, fixed in (("N", None), (5, 5)):
        folder = tmp_path / str(size)
        folder.mkdir()
        training = unit_of(plan_of(folder, "residual", size), fixed=fixed)
        training._errors = lambda rows: torch.ones(len(rows))
        errors = training._loss(STEPS - 1, STEPS, BATCH)
        weights.append(float(sum(errors)))
    assert weights == pytest.approx([1.0, 1.0])


def test_a_unit_is_soft_in_training_and_rounded_behind_it(tmp_path):
    training = unit_of(plan_of(tmp_path, "residual"))
    start = training._judge()
    done = training.run("unit", STEPS, BATCH)
    assert done.start == start.tolist()
    assert training._judge().mean() == (done.before if done.undone else done.best)
    network = training.prefix.network
    assert not any(p.requires_grad for p in network.parameters())
    assert all(grid.mix is None for grid in network.grids)
    for rounding in training.rounding:
        plan = rounding.plan()
        with torch.no_grad():
            np.testing.assert_array_equal(
                rounding().numpy(), affine.values(plan).reshape(rounding.shape)
            )


def test_weights_that_are_left_between_levels_are_spoken_of(nets):
    outcome, _ = learn(nets["residual"], steps=12)
    assert any("of the weights are between two levels still" in r.what for r in outcome.remarks)


def test_the_price_of_indecision_decides(tmp_path, monkeypatch):
    plan, left = plan_of(tmp_path, "residual"), []
    for price in (0.0, 0.1, 0.5):
        monkeypatch.setattr(unit, "PRICE", price)
        training = unit_of(plan, "adaround")
        figures = iter(range(100, 0, -1))
        training._judge = lambda said=figures: np.full(2, next(said))  # the end is kept
        training.run("unit", 120, BATCH)
        left.append(training.undecided)
    assert left[0] > 0.6
    assert left[2] < left[1] < 0.5 * left[0]


def test_drops_take_floats_by_element_and_nothing_when_it_is_judged():
    x, y = torch.zeros(50, 40), torch.ones(50, 40)
    drop = Drop(0.3)
    assert torch.equal(drop(x, y), x)
    drop.rng = np.random.default_rng(1)
    found = drop(x, y)
    assert found.mean().item() == pytest.approx(0.3, abs=0.04)
    assert not torch.equal(drop(x, y), found)
    drop.rng = np.random.default_rng(1)
    assert torch.equal(drop(x, y), found)
    none = Drop(0.0)
    none.rng = np.random.default_rng(1)
    assert torch.equal(none(x, y), x)
