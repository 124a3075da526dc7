"""An SQNR that is asked for: where a conversion rounds less, and what it reaches."""

import itertools
import json
from importlib import resources

import numpy as np
import onnx
import pytest

import onnxq
from onnxq import precision, quantization
from onnxq.errors import CalibrationError, UsageError
from onnxq.evidence.report import fit_text
from onnxq.graph.loading import load
from onnxq.recipe import Recipe, Relief
from onnxq.recipes import plan
from onnxq.sensitivity import Rounding
from tests.graphs import build, feeds, quantize

DIGITS = resources.files("onnxq.demo")
PARTS = dict(np.load(DIGITS / "digits.npz"))
CALIB, TEST = (
    [{"image": x[None]} for x in PARTS[part].reshape(-1, 1, 8, 8).astype(np.float32) / 16]
    for part in ("calib", "test")
)


def convert(folder, name="q.onnx", **options):
    """The demo's model, calibrated on 128 images and judged on others."""
    flags = {"calib": CALIB[:128], "validate": TEST[:200], "force": True, "verify": False}
    flags |= {} if "recipe" in options else {"quality": "fast"}
    flags |= options
    return onnxq.convert(DIGITS / "digits.onnx", folder / name, **flags)


def recipe_of(file):
    return Recipe.from_dict(json.loads(load(file).metadata["onnxq.recipe"]))


def reached(report):
    return min(output.sqnr for output in report.validation.outputs.values())


# Width, and decibels that are some more than it has by itself.
WISHES = {"w4a4": (4, 4, 30), "w8a8": (8, 8, 47), "w2a8": (2, 8, 26)}


@pytest.mark.parametrize(("bits", "act_bits", "least"), WISHES.values(), ids=WISHES)
def test_what_is_asked_for_is_reached_on_images_that_nothing_has_seen(
    tmp_path, bits, act_bits, least
):
    widths = {"bits": bits, "act_bits": act_bits, "quality": "balanced", "calib": CALIB[:80]}
    plain = convert(tmp_path, "plain.onnx", **widths)
    report = convert(tmp_path, min_sqnr=least, **widths)
    assert reached(plain) < least - 1
    assert report.fit.sqnr >= least and report.exit_code == 0
    # Held out are 16 images, which tell to within a decibel or so.
    assert reached(report) > least - 1.5
    assert 0 < len(report.fit.reliefs) < 16


def test_a_model_of_2_bits_has_layers_of_4_and_8_whatever_its_opset(tmp_path):
    """Whether 4 bits have a type of their own was settled before they were thought of."""
    report = convert(tmp_path, bits=2, min_sqnr=22)
    assert {relief.bits for relief in report.fit.reliefs if relief.kind == "weights"} >= {4}
    assert load(tmp_path / "q.onnx").opset < 21
    assert 2 < report.cost.average_bits < 8
    assert len(report.kernels.integer) == 8


def test_what_costs_most_is_named(tmp_path):
    proto = build(
        "(float[N,3,8,8] x) => (float[] y) { a = Conv(x, w) r = Relu(a) y = Conv(r, v) }",
        w=(4, 3, 3, 3), v=(5, 4, 3, 3),
    )  # fmt: skip
    report, _ = quantize(proto, tmp_path, [feeds(proto, s, 4) for s in range(8)], min_sqnr=200)
    names = {"Conv_a", "Conv_y", "x", "r", "y"}
    assert {name for name, _ in report.fit.worst} <= names
    shares = [share for _, share in report.fit.worst]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1.0)


def test_the_recipe_in_the_file_makes_the_same_file_without_a_search(tmp_path):
    convert(tmp_path, bits=4, act_bits=4, min_sqnr=30)
    recipe = recipe_of(tmp_path / "q.onnx")
    assert recipe.reliefs
    convert(tmp_path, "again.onnx", recipe=recipe)
    assert (tmp_path / "q.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()


def test_no_plan_is_made_twice(tmp_path, monkeypatch):
    tried, trial = [], quantization._trial

    def watched(reference, calibration, recipe, samples):
        tried.append(recipe.to_json())
        return trial(reference, calibration, recipe, samples)

    monkeypatch.setattr(quantization, "_trial", watched)
    convert(tmp_path, bits=4, act_bits=4, min_sqnr=30)
    assert 1 < len(tried) == len(set(tried))


def test_what_is_good_enough_stays_as_it_is(tmp_path):
    report = convert(tmp_path, bits=4, min_sqnr=15)
    convert(tmp_path, "plain.onnx", bits=4)
    assert (report.fit.reliefs, report.fit.worst) == ((), ())
    assert (tmp_path / "q.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()


def test_what_cannot_be_reached_is_missed_by_so_much_and_written_all_the_same(tmp_path):
    report = convert(tmp_path, min_sqnr=100)
    assert (report.exit_code, report.kernels.integer) == (1, {})
    assert report.fit.missed == pytest.approx(100 - report.fit.sqnr + report.fit.doubt)
    assert report.fit.sqnr > 35
    assert report.to_dict()["fit"]["missed_by"] == report.fit.missed
    # Computed in floats, weights stay in 8 bits.
    assert report.cost.average_bits == 8
    assert reached(report) > 35


def test_tensors_that_are_floats_in_the_end_are_not_said_to_have_8_bits(tmp_path):
    report = convert(tmp_path, bits=4, act_bits=4, min_sqnr=60)
    assert report.kernels.integer == {}
    assert {relief.kind for relief in report.fit.reliefs} == {"weights", "floats"}
    skips = {skip.where for skip in report.outcomes["quantize-activations"].skips}
    nodes = {relief.name for relief in report.fit.reliefs if relief.kind == "floats"}
    assert skips == nodes


def test_layers_in_floats_are_told_with_the_reason(tmp_path):
    report = convert(tmp_path, min_sqnr=47)
    floats = {relief.name for relief in report.fit.reliefs if relief.kind == "floats"}
    assert floats & set(report.kernels.floating)
    for name in floats & set(report.kernels.floating):
        assert report.why_float[name] == "the recipe has it compute in floats"


def test_a_recipe_that_rounds_less_already_goes_on_from_there(tmp_path):
    stem = Relief("weights", "/stem/stem.0/Conv", 8)
    start = plan(bits=4, act_bits=4, calibrated=True).relieved([stem])
    report = convert(tmp_path, recipe=start, calib=CALIB[:80], min_sqnr=30)
    assert stem in report.fit.reliefs
    assert len(report.fit.reliefs) > 1


def test_what_a_recipe_names_and_is_not_there_is_told(tmp_path):
    gone = [Relief(kind, f"no {kind}", 8) for kind in ("weights", "activations", "floats")]
    report = convert(tmp_path, recipe=plan(calibrated=True).relieved(gone))
    skips = {s.where for name in ("quantize-weights", "quantize-activations")
             for s in report.outcomes[name].skips}  # fmt: skip
    assert {relief.name for relief in gone} <= skips


def test_weights_alone_are_relieved_too(tmp_path):
    flags = {"bits": 3, "act_bits": "float", "recipe": "gptq", "calib": CALIB[:64]}
    plain = convert(tmp_path, **flags)
    report = convert(tmp_path, **flags, min_sqnr=reached(plain) + 4)
    assert {relief.kind for relief in report.fit.reliefs} == {"weights"}
    assert report.exit_code == 0
    assert 3 < report.cost.average_bits < 8


def test_data_that_judge_alone_are_said_to_be_looked_at(tmp_path):
    report = convert(tmp_path, bits=3, act_bits="float", min_sqnr=40)
    assert report.fit.reliefs
    note = "no pass of this recipe looks at the calibration data, --min-sqnr alone does"
    assert note in report.notes


CONV = "(float[N,3,8,8] x) => (float[] y) { c = Conv(x, w) y = Relu(c) }"
INDEX = "(float[N,3,8,8] x) => (int64[] y) { c = Conv(x, w) y = ArgMax<axis=1>(c) }"


@pytest.mark.parametrize(
    ("graph", "count", "said"),
    [(CONV, 1, "needs calibration data of two runs"), (INDEX, 8, "any output: y: no floats")],
)
def test_what_cannot_be_judged_is_refused(tmp_path, graph, count, said):
    proto = build(graph, w=(4, 3, 3, 3))
    with pytest.raises(CalibrationError, match=said):
        quantize(proto, tmp_path, [feeds(proto, seed) for seed in range(count)], min_sqnr=20)
    assert not (tmp_path / "quantized.onnx").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [({"min_sqnr": float("nan")}, "not a number"), ({"min_sqnr": 4000.0}, "up to 300"),
     ({"min_sqnr": -4000.0}, "up to 300"), ({"calib": None, "act_bits": None,
      "recipe": None, "min_sqnr": 20}, "needs --calib")],
)  # fmt: skip
def test_a_wish_that_means_nothing_is_refused(tmp_path, options, said):
    with pytest.raises(UsageError, match=said):
        quantize(build(CONV, w=(4, 3, 3, 3)), tmp_path, **options)


def test_samples_that_run_together_judge_together(tmp_path):
    """A model of a fixed batch, and feeds of several rows, as their maker grouped them."""
    fixed = build(CONV.replace("N", "2"), w=(4, 3, 3, 3))
    samples = [feeds(fixed, seed) for seed in range(6)]
    report, _ = quantize(fixed, tmp_path, samples, min_sqnr=1)
    assert report.fit.judges == 6
    opened = build(CONV, w=(4, 3, 3, 3))
    report, _ = quantize(opened, tmp_path, [feeds(opened, s, 3) for s in range(4)], min_sqnr=1)
    assert report.fit.judges == 6


def test_inputs_without_a_row_for_each_sample_stay_whole(tmp_path):
    graph = "(float[N,3,8,8] x, float[2,1,1,1,1] a) => (float[] y) { c = Conv(x, w) y = Mul(c, a) }"
    proto = build(graph, w=(4, 3, 3, 3))
    for rows in (1, 3):
        samples = [feeds(proto, seed, rows) for seed in range(4)]
        report, _ = quantize(proto, tmp_path, samples, min_sqnr=1)
        assert report.fit.judges == 2 * rows


@pytest.mark.parametrize(("budget", "judges"), [(1 << 30, 12), (2000, 6), (1, 1)])
def test_no_more_judge_than_the_memory_allows(tmp_path, monkeypatch, budget, judges):
    """An image and its scores take 296 bytes."""
    monkeypatch.setattr("onnxq.precision.BUDGET", budget)
    assert convert(tmp_path, calib=CALIB[:24], min_sqnr=1).fit.judges == judges


def test_two_conversions_give_the_same_bytes(tmp_path):
    for name in ("q.onnx", "again.onnx"):
        convert(tmp_path, name, bits=3, act_bits=4, min_sqnr=28)
    assert (tmp_path / "q.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()
    assert onnx.load(tmp_path / "q.onnx").graph.node


@pytest.fixture
def rounds(monkeypatch):
    """Noise of the roundings, and what may be left of it, in each round of a search."""
    seen, choose = [], precision.cheapest

    def watched(noise, units, price, most):
        seen.append((noise, most))
        return choose(noise, units, price, most)

    monkeypatch.setattr(precision, "cheapest", watched)
    return seen


def test_each_round_aims_further_than_the_one_before(tmp_path, rounds):
    convert(tmp_path, min_sqnr=100)
    aims = [float(most[0]) for _, most in rounds]
    assert aims[0] == pytest.approx(1e-10)
    assert len(aims) > 1
    assert [b / a for a, b in itertools.pairwise(aims)] == pytest.approx([0.8] * (len(aims) - 1))


@pytest.mark.parametrize(("quality", "counted"), [("fast", True), ("balanced", False)])
def test_weights_that_make_up_for_each_other_count_as_far_as_they_cannot(
    tmp_path, monkeypatch, rounds, quality, counted
):
    monkeypatch.setattr(precision, "LEFT", 0.0)
    convert(tmp_path, bits=4, quality=quality, min_sqnr=40)
    noise, _ = rounds[0]
    assert bool(noise[:8].any()) is counted  # the eight layers stand before the tensors
    assert noise[8:].all()


class Guess:
    """A search whose plans leave the noise of what they do not relieve, times a factor."""

    def __init__(self, noise, factor):
        self.noise, self.factor, self.count, self.tried = noise, factor, 2, []

    def attempt(self, reliefs):
        self.count += 1
        self.tried.append(len(reliefs))
        left = sum(
            x for i, x in enumerate(self.noise) if Relief("weights", str(i), 8) not in reliefs
        )
        power = np.array([left * self.factor])
        return precision.Trial(reliefs, None, power, power)


@pytest.mark.parametrize("factor", [1.0, 0.5, 0.25])
def test_what_was_given_up_in_vain_is_given_back(factor):
    """Estimates are too high by a factor, so that the plan they lead to relieves too much."""
    noise = np.full(40, 0.01)
    search = Guess(noise, factor)
    found = [Rounding("weights", str(i), 4, (Relief("weights", str(i), 8),)) for i in range(40)]
    price = {r.reliefs[0]: 1.0 for r in found}
    choices = precision.Choices(frozenset(), found, noise[:, None], price)
    aim, most = np.array([0.045]), 0.045
    first = search.attempt(choices.cheapest(aim))
    trial = precision._given_back(search, choices, first, aim, most)
    assert trial.noise[0] <= most
    assert search.count <= precision.ROUNDS
    assert len(set(search.tried)) == len(search.tried)
    if factor == 1.0:
        assert trial is first
    else:
        # Three trials give back the half of what could be given back at least.
        needless = int(most / factor / 0.01) - (40 - len(first.reliefs))
        assert len(first.reliefs) - len(trial.reliefs) >= needless / 2


def test_what_is_given_back_never_costs_more(tmp_path):
    """Prices differ, and there are two outputs: a laxer aim may find a dearer way."""
    rng = np.random.default_rng(0)
    dearer = 0
    for _ in range(200):
        noise, most = rng.gamma(0.3, size=(12, 2)), 0.5
        found = [Rounding("weights", str(i), 4, (Relief("weights", str(i), 8),)) for i in range(12)]
        price = {r.reliefs[0]: p for r, p in zip(found, rng.gamma(0.3, size=12), strict=True)}
        choices = precision.Choices(frozenset(), found, noise, price)
        aim = np.full(2, 0.2)
        first, laxer = (choices.cost(choices.cheapest(a)) for a in (aim, 1.5 * aim))
        dearer += laxer > first
        search = Guess(noise.sum(axis=1), 0.5)
        start = search.attempt(choices.cheapest(aim))
        trial = precision._given_back(search, choices, start, aim, most)
        assert choices.cost(trial.reliefs) <= choices.cost(start.reliefs)
        assert trial is start or (trial.noise <= most).all()
    assert dearer > 0


def test_the_best_plan_is_taken_if_none_is_good_enough():
    """Few samples tell little: more relief may come out worse."""

    class Luck(Guess):
        def __init__(self):
            super().__init__([], 1.0)
            self.count = 0

        def attempt(self, reliefs):
            self.count += 1
            power = np.array([(0.9, 0.4, 0.2, 0.5, 0.3, 0.6)[self.count - 1]])
            return precision.Trial(reliefs, None, power, power)

        def choices(self, trial):
            own = Relief("weights", str(len(trial.reliefs)), 8)
            found = [Rounding("weights", own.name, 4, (own,))]
            return precision.Choices(trial.reliefs, found, trial.noise[None], {own: 1.0})

    trial = precision._relieved(Luck(), frozenset(), 0.1)
    assert (len(trial.reliefs), trial.noise[0]) == (2, 0.2)


def test_a_round_aims_as_far_as_the_last_one_fell_short():
    """Of two outputs the second is good enough, and does not have to become better."""
    aims, noises = [], [(0.5, 0.05), (0.3, 0.095), (0.11, 0.095), (0.1, 0.1)]

    class Steps:
        count = 0

        def attempt(self, reliefs):
            self.count += 1
            power = np.array(noises[self.count - 1])
            return precision.Trial(reliefs, None, power, power)

        def choices(self, trial):
            return self

        def cheapest(self, aim):
            aims.append(aim)
            return frozenset(Relief("weights", str(i), 8) for i in range(self.count))

        each = np.array([[0.1, 0.1]])
        reliefs = frozenset()

    precision._relieved(Steps(), frozenset(), 0.1)
    assert aims[0] == pytest.approx([0.1, 0.1])
    assert aims[1] == pytest.approx([0.08, 0.1])  # half of a step came true: no lower than that
    part = (0.3 - 0.11) / (0.3 - 0.08)
    assert aims[2] == pytest.approx([0.11 - (0.11 - 0.9 * 0.1) / part, 0.1])


def test_a_single_run_that_judges_tells_no_error(tmp_path):
    proto = build(CONV.replace("N", "4"), w=(4, 3, 3, 3))
    report, _ = quantize(proto, tmp_path, [feeds(proto, s) for s in range(2)], min_sqnr=1)
    assert (report.fit.judges, report.fit.doubt, report.exit_code) == (4, None, 0)
    assert "from one run, on 4 samples held out" in fit_text(report.fit)


def test_outputs_that_cannot_be_judged_are_told(tmp_path):
    graph = (
        "(float[N,3,8,8] x) => (float[] y, int64[] k, float[] z, float[] s) { c = Conv(x, w) "
        "y = Relu(c) k = ArgMax<axis=1>(c) z = Sub(y, y) i = NonZero(y) s = Cast<to=1>(i) }"
    )
    proto = build(graph, w=(4, 3, 3, 3))
    report, _ = quantize(proto, tmp_path, [feeds(proto, s, 2) for s in range(4)], min_sqnr=1)
    for name, why in (
        ("k", "no floats"), ("z", "zero throughout"),
        ("s", "its shape depends on what the model reads"),
    ):  # fmt: skip
        assert f"--min-sqnr does not judge {name}: {why}" in report.notes


def test_what_is_asked_for_is_reached_with_the_doubt_taken_off(tmp_path):
    report = convert(tmp_path, bits=2, min_sqnr=22)
    assert report.fit.doubt > 0.05
    assert report.fit.sqnr - report.fit.doubt >= 22
