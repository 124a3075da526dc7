"""The recipes that train, from a float file to a quantized one, with few steps."""

from importlib import resources

import numpy as np
import onnx
import pytest
from hypothesis import given, reject, settings

import onnxq
from onnxq.errors import OnnxqError, PassError
from onnxq.graph.loading import from_proto, load
from onnxq.passes.distill import Distill
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.pipeline import LearnedPass
from onnxq.quantization import WITHOUT_TRAINING
from onnxq.recipe import Recipe
from onnxq.recipes import NAMED, build
from onnxq.runtime import Session
from tests.graphs import build as graph
from tests.graphs import feeds
from tests.graphs import run as ort_run
from tests.learned.plans import assert_same_as_written, written
from tests.test_random_graphs import CASES, FIXED

torch = pytest.importorskip("torch")
from onnxq.learned.network import QuantizedNetwork  # noqa: E402
from onnxq.learned.training import LEFT_OUT, UNDONE, Trained  # noqa: E402

TRAINED = {
    "oaq-ft": "finetune-sigma",
    "bft": "finetune-bias",
    "adaround": "learn-rounding",
    "brecq": "reconstruct-blocks",
    "distill": "distill",
    "best": "distill",
}
SHORT = {"steps": 12, "batch": 8}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def recipe(name, **flags):
    """A named recipe with few steps."""
    passes = build(**{"bits": 3} | NAMED[name][1] | flags).passes
    return Recipe(
        passes=[p.model_copy(update=SHORT) if isinstance(p, LearnedPass) else p for p in passes]
    )


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The demo's model, and 30 of its images."""
    folder = tmp_path_factory.mktemp("digits")
    assets = resources.files("onnxq.demo")
    (folder / "model.onnx").write_bytes(assets.joinpath("digits.onnx").read_bytes())
    with assets.joinpath("digits.npz").open("rb") as file:
        images = np.load(file)["calib"][:30].reshape(-1, 1, 8, 8).astype(np.float32) / 16
    np.savez(folder / "calib.npz", image=images)
    return folder


def convert(digits, folder, name="best", chosen=None, **flags):
    output = folder / f"{len(list(folder.iterdir()))}.onnx"
    chosen = chosen or recipe(name)
    given = {"recipe": chosen, "calib": digits / "calib.npz", "preprocess": "raw"}
    return onnxq.convert(digits / "model.onnx", output, **given | flags), output


def test_these_are_all_recipes_that_train():
    trained = [n for n, (_, changes) in NAMED.items()
               if any(isinstance(p, LearnedPass) for p in changes.get("after", ()))]  # fmt: skip
    assert sorted(trained) == sorted(TRAINED)


def test_an_sqnr_is_said_to_be_judged_before_training(digits, tmp_path):
    report, _ = convert(digits, tmp_path, "bft", min_sqnr=1)
    assert any("judged before training" in note for note in report.notes)


@pytest.fixture
def plans(monkeypatch):
    """Every plan that was written, as a model before it is written."""
    kept, run = [], InsertQdq.run

    def watched(self, model, statistics):
        kept.append(model.clone())
        return run(self, model, statistics)

    monkeypatch.setattr(InsertQdq, "run", watched)
    return kept


def images(digits, count=16):
    with np.load(digits / "calib.npz") as file:
        return {"image": file["image"][:count]}


def assert_is_what_was_trained(model, file, x):
    """Hold a module of a plan to the file that was written of it."""
    assert_same_as_written(model, QuantizedNetwork(model), x)
    again, _ = written(model)
    found, wanted = (Session(m, optimize=False).run(x) for m in (load(file), again))
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("name", TRAINED)
def test_a_recipe_that_trains_gives_the_same_file_twice_and_it_is_what_was_trained(
    digits, tmp_path, plans, name
):
    # There is something to win by biases alone, or over `balanced`, at few bits only.
    flags = {"chosen": recipe(name, bits=2)} if name in {"bft", "best"} else {}
    report, one = convert(digits, tmp_path, name, **flags)
    _, two = convert(digits, tmp_path, name, **flags)
    assert one.read_bytes() == two.read_bytes()
    outcome = report.outcomes[TRAINED[name]]
    places = {entry.where for entry in (*outcome.edits, *outcome.skips)}
    assert outcome and len(places) == len(outcome.edits) + len(outcome.skips) == 8
    assert {skip.why for skip in outcome.skips} <= {UNDONE}
    assert any("loss on held-out samples" in remark.what for remark in outcome.remarks)
    assert_is_what_was_trained(plans[-1], two, images(digits))


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("best", {"act_bits": 4, "bits": 2}),
        ("brecq", {"act_bits": "float", "bits": 2}),
        slow("best", {"levels": "post"}),
        slow("brecq", {"act_bits": 4}),
        slow("adaround", {"levels": "ternary", "bits": 2}),
        slow("distill", {"act_bits": "float", "levels": "kmeans"}),
    ],
)
def test_other_widths_and_levels_are_trained_as_well(digits, tmp_path, plans, name, flags):
    report, file = convert(digits, tmp_path, chosen=recipe(name, **flags))
    assert report.outcomes[TRAINED[name]]
    assert_is_what_was_trained(plans[-1], file, images(digits))


@pytest.mark.slow
def test_another_seed_gives_another_file(digits, tmp_path):
    one, other = (convert(digits, tmp_path, "distill", seed=s)[1].read_bytes() for s in (0, 1))
    assert one != other


@pytest.mark.parametrize("name", ["best", "brecq"])
def test_where_training_wins_nothing_all_samples_go_to_the_passes_before(
    digits, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(Trained, "undone", True)
    report, found = convert(digits, tmp_path, name)
    outcome = report.outcomes[TRAINED[name]]
    assert not outcome.edits and {skip.why for skip in outcome.skips} == {UNDONE}
    assert len(outcome.skips) == 8
    assert outcome.remarks[-1].what == WITHOUT_TRAINING
    rest = [p for p in recipe(name).passes if not isinstance(p, LearnedPass)]
    _, wanted = convert(digits, tmp_path, chosen=Recipe(passes=rest))
    graphs = [
        onnx.load(file).graph.SerializeToString(deterministic=True) for file in (found, wanted)
    ]
    assert graphs[0] == graphs[1]


# -- what ends a training early ----------------------------------------------------------------


class Ends:
    """Raises after so many steps of training."""

    def __init__(self, steps, error):
        self.left, self.error = steps, error

    def __call__(self, stage, advance, total, note=""):
        if note:
            self.left -= advance
            if self.left < 0:
                raise self.error


@pytest.mark.parametrize(("name", "steps"), [("brecq", 20), slow("best", 4)])
def test_a_killed_conversion_goes_on_to_the_same_file(digits, tmp_path, name, steps):
    _, whole = convert(digits, tmp_path, name)
    state = tmp_path / "state.pt"
    with pytest.raises(PassError, match="killed"):
        convert(
            digits, tmp_path, name, checkpoint=state, progress=Ends(steps, ValueError("killed"))
        )
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".onnx", ".pt"]
    _, found = convert(digits, tmp_path, name, checkpoint=state)
    assert found.read_bytes() == whole.read_bytes()


def test_a_checkpoint_serves_conversions_of_several_recipes(digits, tmp_path):
    state = tmp_path / "state.pt"
    files = [
        convert(digits, tmp_path, name, checkpoint=checkpoint)[1].read_bytes()
        for name, checkpoint in (("distill", None), *((n, state) for n in ("distill", "bft") * 2))
    ]
    assert files[0] == files[1] == files[3]
    assert files[2] == files[4] != files[0]


@pytest.mark.parametrize("name", ["brecq", "best"])
@pytest.mark.parametrize("steps", [0, 4])
def test_an_interrupted_conversion_writes_the_best_so_far_and_says_so(
    digits, tmp_path, name, steps
):
    report, output = convert(digits, tmp_path, name, progress=Ends(steps, KeyboardInterrupt))
    remarks = [remark.what for remark in report.outcomes[TRAINED[name]].remarks]
    assert remarks[-1] in (LEFT_OUT, WITHOUT_TRAINING) and LEFT_OUT in remarks
    assert output.exists()
    assert LEFT_OUT in str(report.to_dict())


# -- models of other kinds ---------------------------------------------------------------------


def test_a_model_that_returns_classes_is_trained(tmp_path):
    """Their scores are unknown, but what the last block returns is compared."""
    text = "a = Gemm(x, w) r = Relu(a) b = Gemm(r, v) y = Cast<to=7>(b)"
    proto = graph(f"(float[N,6] x) => (int64[N,4] y) {{ {text} }}", w=(6, 8), v=(8, 4))
    onnx.save(proto, tmp_path / "model.onnx")
    chosen = build(bits=3, after=(Distill(**SHORT),))
    data = [feeds(proto, seed) for seed in range(20)]
    report = onnxq.convert(tmp_path / "model.onnx", tmp_path / "q.onnx", recipe=chosen, calib=data)
    assert len(report.outcomes["distill"].edits) == 2


@pytest.mark.parametrize("name", ["adaround", "brecq", "best"])
def test_a_model_of_fixed_batches_and_two_inputs_is_trained(tmp_path, name):
    text = """a = Conv<pads=[1,1,1,1]>(x, w) r = Relu(a) g = GlobalAveragePool(r) f = Flatten(g)
        b = Gemm(z, v) c = Add(f, b) s = Sigmoid(c) y = Gemm(s, u)"""
    proto = graph(
        f"(float[3,2,5,5] x, float[3,6] z) => (float[3,4] y) {{ {text} }}",
        w=(8, 2, 3, 3), v=(6, 8), u=(8, 4),
    )  # fmt: skip
    onnx.save(proto, tmp_path / "model.onnx")
    data = [feeds(proto, seed) for seed in range(11)]
    report = onnxq.convert(
        tmp_path / "model.onnx", tmp_path / "q.onnx", recipe=recipe(name), calib=data
    )
    outcome = report.outcomes[TRAINED[name]]
    assert len(outcome.edits) + len(outcome.skips) == 3
    assert {skip.why for skip in outcome.skips} <= {UNDONE}
    onnx.checker.check_model(from_proto(onnx.load(tmp_path / "q.onnx")).to_proto())


# -- whatever the network ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adaround", "brecq", "best"])
@given(**CASES)
@settings(FIXED, max_examples=30)
def test_random_networks_are_trained(
    tmp_path_factory, name, net, weights, act_bits, kept, attention, group
):
    proto, shape = net
    folder, rng = tmp_path_factory.mktemp("graph"), np.random.default_rng(0)
    data = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(11)]
    try:
        ort_run(proto, data[0])
    except RuntimeError:
        reject()
    onnx.save(proto, folder / "model.onnx")
    levels, bits = weights
    flags = {"levels": levels, "bits": bits, "act_bits": act_bits, "attention": attention}
    chosen = recipe(name, **flags)
    try:
        report = onnxq.convert(
            folder / "model.onnx", folder / "q.onnx", recipe=chosen, calib=data, verify=False
        )
    except PassError:
        raise
    except OnnxqError:
        reject()
    outcome = report.outcomes[TRAINED[name]]
    assert not any("nan" in remark.what.split() for remark in outcome.remarks)
    places = [entry.where for entry in (*outcome.edits, *outcome.skips)]
    assert len(places) == len(set(places))
