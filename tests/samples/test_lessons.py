"""Samples to train on: of one shape, some of them held out."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onnxq
from onnxq import pipeline
from onnxq.errors import CalibrationError
from onnxq.graph.loading import from_proto
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.pipeline import LearnedPass, Outcome
from onnxq.progress import silent
from onnxq.recipes import build as recipe
from onnxq.runtime import Session
from onnxq.samples.calibration import Calibration
from onnxq.samples.data import Batch
from onnxq.samples.lessons import HELD_OUT, Lessons, of_one_shape
from onnxq.samples.preprocess import PRESETS, Preprocess
from onnxq.samples.sources import open_samples
from tests.graphs import build


def lessons(count, fixed=None):
    feeds = {"x": np.arange(2.0 * count).reshape(count, 2), "z": np.arange(count)}
    return Lessons(feeds, fixed, None, 0, 0, "", None, lambda model: model, silent)


@given(st.integers(1, 200))
@settings(derandomize=True, database=None)
def test_every_sample_is_taught_or_held_out(count):
    found = lessons(count)
    assert found.count == count
    both = np.concatenate([found.held, found.taught])
    assert sorted(both) == list(range(count))
    assert len(found.held) == count // HELD_OUT
    assert all((i + 1) % HELD_OUT == 0 for i in found.held)


@pytest.mark.parametrize(
    ("count", "fixed", "wanted"),
    [(5, None, [0, 1]), (1, None, [0, 0]), (5, 1, [0]), (5, 4, [0, 1, 2, 3]), (2, 3, [0, 1, 0])],
)
def test_a_few_samples_are_as_many_as_run_together(count, fixed, wanted):
    assert lessons(count, fixed).few["z"].tolist() == wanted


def test_rows_are_of_every_input():
    found = lessons(6).rows(np.array([4, 1]))
    assert found["x"].tolist() == [[8.0, 9.0], [2.0, 3.0]]
    assert found["z"].tolist() == [4, 1]


# -- samples of one shape ----------------------------------------------------------------------


def batch(rows, size=4, valid=None, **others):
    feeds = {"x": np.full((rows, size), float(size)), **others}
    return Batch(feeds, list(range(rows)), rows if valid is None else valid)


def test_the_shape_that_most_samples_have_is_kept():
    feeds, _, others = of_one_shape(
        [batch(2, 3), batch(1, 4), batch(1, 5), batch(3, 4), batch(1, 3)]
    )
    assert feeds["x"].shape == (4, 4)
    assert others == 4


def test_what_fills_a_batch_is_no_sample():
    feeds, _, others = of_one_shape([batch(4, 3, valid=1), batch(4, 5, valid=2)])
    assert feeds["x"].shape == (2, 5)
    assert others == 1


def test_samples_stay_in_order():
    parts = [
        Batch({"x": np.array([[i], [i + 0.5]]), "z": np.array([i, -i])}, [0, 1], 2)
        for i in range(3)
    ]
    feeds, _, others = of_one_shape(parts)
    assert feeds["x"].ravel().tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert feeds["z"].tolist() == [0, 0, 1, -1, 2, -2]
    assert others == 0


def test_inputs_are_told_apart_by_their_names_in_whatever_order_they_come():
    x, z = np.zeros((2, 3)), np.zeros((2, 5))
    swapped = [Batch({"x": x, "z": z}, [0, 1], 2), Batch({"z": z, "x": x}, [2, 3], 2)]
    feeds, _, others = of_one_shape(swapped)
    assert (feeds["x"].shape, feeds["z"].shape, others) == ((4, 3), (4, 5), 0)
    twisted = [Batch({"x": x, "z": z}, [0, 1], 2), Batch({"z": x, "x": z}, [2, 3], 2)]
    assert of_one_shape(twisted)[2] == 2


@pytest.mark.parametrize(
    ("strange", "name"), [(np.float32(1.0), "z"), (np.zeros(1), "z"), (np.zeros((3, 2)), "x")]
)
def test_an_input_without_a_row_for_each_sample_is_named(strange, name):
    with pytest.raises(CalibrationError, match=f"input {name} has no row for each sample to train"):
        of_one_shape([batch(2), batch(2, z=np.asarray(strange))])


# -- what a pass gets --------------------------------------------------------------------------


NET = """(float[%s,3,h,6] x) => (float[%s,2,h,6] y) { y = Conv(x, w) }"""


def model_of(batches="N"):
    return build(NET % (batches, batches), w=(2, 3, 1, 1))


def samples(count, height=6):
    rng = np.random.default_rng(height)
    return [{"x": rng.standard_normal((1, 3, height, 6)).astype(np.float32)} for _ in range(count)]


def taught(proto, feeds, preprocess=PRESETS["raw"], seed=5):
    model = from_proto(proto)
    inputs = Session(model).inputs
    given = Calibration(open_samples(feeds, inputs, preprocess), preprocess, seed=seed)
    return given.teach(model, lambda model: model)


def test_calibration_data_become_lessons():
    found = taught(model_of(), samples(12))
    np.testing.assert_array_equal(found.feeds["x"], np.concatenate([s["x"] for s in samples(12)]))
    assert (found.fixed, found.images, found.others, found.seed) == (None, "x", 0, 5)
    assert found.checkpoint is None


def test_a_model_of_fixed_batches_says_how_many_run_together():
    found = taught(model_of("4"), samples(13))
    assert (found.count, found.fixed) == (13, 4)


def test_a_model_that_runs_one_sample_alone_is_fixed_to_it():
    text = """(float[N,4] x) => (float[N,2] y) { a = Reshape(x, one) y = Gemm(a, w) }"""
    proto = build(text, one=np.array([1, 4]), w=(4, 2))
    feeds = [{"x": np.ones((1, 4), np.float32) * i} for i in range(10)]
    assert taught(proto, feeds).fixed == 1


def test_channels_at_the_end_are_no_images_to_mirror():
    assert taught(model_of(), samples(10), Preprocess(layout="nhwc")).images is None


def test_the_seed_and_the_samples_tell_trainings_apart():
    same = taught(model_of(), samples(10)).digest
    assert taught(model_of(), samples(10)).digest == same
    assert taught(model_of(), samples(10), seed=6).digest != same
    assert taught(model_of(), samples(11)).digest != same


def test_too_few_samples_are_an_error():
    with pytest.raises(CalibrationError, match="9 samples of one shape are too few"):
        taught(model_of(), samples(9) + samples(3, height=5))


class Idle(LearnedPass):
    """Learn nothing."""

    def learn(self, model, reference, lessons):
        """Say how many samples there were, and what tells the training apart."""
        outcome = Outcome()
        outcome.edit("model", f"{lessons.count} samples")
        outcome.remark("model", lessons.digest)
        return outcome


@pytest.fixture
def idle(monkeypatch):
    """A pass that needs no torch."""
    monkeypatch.setattr(Idle, "name", "idle", raising=False)
    monkeypatch.setattr(pipeline, "_require_torch", lambda steps: None)
    return Idle()


def test_samples_that_are_left_out_reach_the_report(tmp_path, idle):
    onnx.save(model_of(), tmp_path / "model.onnx")
    chosen = recipe(after=(idle,))
    data = samples(4, height=5) + samples(11) + samples(3, height=4)
    report = onnxq.convert(tmp_path / "model.onnx", tmp_path / "q.onnx", recipe=chosen, calib=data)
    (edit,), (_, remark) = report.outcomes["idle"].edits, report.outcomes["idle"].remarks
    assert edit.what == "11 samples"
    assert (remark.where, remark.what) == ("model", "7 samples of other shapes are left out")
    assert "7 samples of other shapes are left out" in str(report.to_dict())


def test_another_version_starts_a_training_anew(tmp_path, idle, monkeypatch):
    onnx.save(model_of(), tmp_path / "model.onnx")
    digests = []
    for version in ("1.0", "1.0", "1.1"):
        monkeypatch.setattr(pipeline, "__version__", version)
        report = onnxq.convert(
            tmp_path / "model.onnx",
            tmp_path / "q.onnx",
            recipe=recipe(after=(idle,)),
            calib=samples(11),
            checkpoint=tmp_path / "state.pt",
            force=True,
        )
        digests.append(report.outcomes["idle"].remarks[0].what)
    assert digests[0] == digests[1] != digests[2]


def test_a_pass_that_trains_needs_data(idle):
    model = from_proto(model_of())
    with pytest.raises(CalibrationError, match="idle needs calibration data: give --calib"):
        pipeline.run(model, [QuantizeWeights(), idle], None)


@pytest.mark.parametrize(
    ("fixed", "wanted"),
    [
        (None, [[3, 1, 4, 1, 5], [9, 2]]),
        (4, [[3, 1, 4, 1], [5, 9, 2, 3]]),
        (2, [[3, 1], [4, 1], [5, 9], [2, 3]]),
    ],
)
def test_rows_run_in_portions(fixed, wanted):
    found = lessons(10, fixed).portions(np.array([3, 1, 4, 1, 5, 9, 2]), 5)
    assert [rows.tolist() for rows in found] == wanted
