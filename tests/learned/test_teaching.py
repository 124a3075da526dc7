"""What a network is taught on, and by what it is judged."""

import numpy as np
import onnx
import pytest

from tests.graphs import build
from tests.learned.plans import lessons, planned

torch = pytest.importorskip("torch")
from onnxq.learned import teaching  # noqa: E402
from onnxq.learned.network import QuantizedNetwork  # noqa: E402
from onnxq.learned.teaching import Teaching  # noqa: E402
from onnxq.lowering import Lowered  # noqa: E402

NET = """(float[%s,3,6,8] x) => (float[%s,5] y) {
    a = Conv<pads=[1,1,1,1]>(x, w, b)
    r = Relu(a)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    y = Gemm(f, v, c)
}"""
SHAPES = {"w": (4, 3, 3, 3), "b": (4,), "v": (4, 5), "c": (5,)}
COUNT = 34


def images(count=COUNT, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 3, 6, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """The same plan of a network with an open batch, and with batches of four."""
    folder, found = tmp_path_factory.mktemp("nets"), {}
    for size in ("N", 4):
        file = folder / f"{size}.onnx"
        onnx.save(build(NET % (size, size), **SHAPES), file)
        feeds = [{"x": images(4, seed)} for seed in range(3)]
        found[size] = planned(file, feeds, bits=3)[:2]
    return found


def teach(plan, batch=12, mix=0.0, points=("r", "y"), scores="y", own=None, **given):
    reference, model = plan
    feeds = given.pop("feeds", {"x": images()})
    samples = lessons(feeds, **given)
    network = QuantizedNetwork(model)
    return Teaching(Lowered(reference), network, points, scores, samples, own, batch, mix)


def taught(lesson, step=0):
    """The loss of a step, and its gradients."""
    lesson.network.zero_grad()
    total = 0.0
    for part in lesson.loss(step):
        part.backward()
        total += part.item()
    return total, [p.grad.clone() for p in lesson.network.parameters()]


@pytest.mark.parametrize("size", [1, 5, 6])
def test_the_parts_of_a_loss_add_up_to_that_of_the_batch(plans, monkeypatch, size):
    total, slopes = taught(teach(plans["N"]))
    monkeypatch.setattr(teaching, "ELEMENTS", size * images(1).size)
    lesson = teach(plans["N"])
    assert len(list(lesson.loss(0))) == -(-12 // size)
    found, parts = taught(lesson)
    assert found == pytest.approx(total, rel=1e-5)
    for part, slope in zip(parts, slopes, strict=True):
        # A sum in another order may round one value to the next code; a part that is left out, or
        # counted twice, is a twelfth.
        assert float((part - slope).abs().max()) < 0.02 * float(slope.abs().max())


def test_a_loss_is_what_its_formula_says(plans):
    reference, model = plans["N"]
    lesson = teach(plans["N"])
    rows = np.random.default_rng((0, 7)).choice(lesson.lessons.taught, 12, replace=False)
    x = {"x": torch.from_numpy(images()[rows])}
    with torch.no_grad():
        truth = Lowered(reference).run(x, ["r", "y"])
        found = QuantizedNetwork(model).run(x, ["r", "y"])
        seen = {"x": torch.from_numpy(images()[lesson.lessons.taught[:12]])}
        spread = Lowered(reference).run(seen, ["r", "y"])
    expected = np.mean(
        [float(((found[n] - truth[n]) ** 2).mean() / spread[n].double().var(correction=0))
         for n in ("r", "y")]
    )  # fmt: skip
    p, q = (torch.softmax(side["y"].double(), 1) for side in (truth, found))
    expected += float((p * (p / q).log()).sum(1).mean())
    assert taught(lesson, 7)[0] == pytest.approx(expected, rel=1e-4)


def test_what_layers_return_is_the_unit_of_their_biases(plans):
    reference, _ = plans["N"]
    lesson = teach(plans["N"])
    x = {"x": torch.from_numpy(images()[lesson.lessons.taught[:12]])}
    with torch.no_grad():
        seen = Lowered(reference).run(x, ["a", "y"])
    spreads = [float(seen[name].std(correction=0)) for name in ("a", "y")]
    assert list(lesson.network.units.values()) == pytest.approx(spreads, rel=1e-4)


# -- what is held out --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [20, 34, 49, 50, 89])
@pytest.mark.parametrize("mirrored", [False, True])
def test_every_sample_held_out_counts_once_whatever_runs_together(
    plans, monkeypatch, count, mirrored
):
    given = {"feeds": {"x": images(count)}, "images": "x" if mirrored else None}
    lesson = teach(plans["N"], **given)
    whole = lesson.judge()
    assert len(whole) == len(lesson.lessons.held)
    assert teach(plans[4], fixed=4, **given).judge() == pytest.approx(whole, rel=1e-5)
    monkeypatch.setattr(teaching, "ELEMENTS", 3 * images(1).size)
    assert teach(plans["N"], **given).judge() == pytest.approx(whole, rel=1e-5)


def test_the_judge_sees_nothing_of_what_is_taught(plans):
    x = images()
    before = teach(plans["N"], feeds={"x": x})
    other = x.copy()
    other[before.lessons.taught[12:]] += 1.0  # behind those that variances are taken of
    after = teach(plans["N"], feeds={"x": other})
    np.testing.assert_array_equal(after.judge(), before.judge())
    assert taught(after)[0] != taught(before)[0]


def test_training_sees_nothing_of_what_is_held_out(plans):
    x = images()
    before = teach(plans["N"], feeds={"x": x}, images="x", mix=0.5)
    other = x.copy()
    other[before.lessons.held] += 1.0
    after = teach(plans["N"], feeds={"x": other}, images="x", mix=0.5)
    assert [taught(after, s)[0] for s in range(6)] == [taught(before, s)[0] for s in range(6)]
    assert (after.judge() != before.judge()).all()


def test_an_image_is_judged_by_the_mean_over_variants_that_stay_the_same(plans, monkeypatch):
    x = images()
    lesson = teach(plans["N"], images="x", feeds={"x": x})
    seen, losses = [], teaching.Teaching._losses

    def watched(self, feeds, own):
        seen.append(feeds["x"].numpy())
        return losses(self, feeds, own)

    monkeypatch.setattr(teaching.Teaching, "_losses", watched)
    judged = lesson.judge()
    held = x[lesson.lessons.held]
    assert len(seen) == teaching.VARIANTS
    np.testing.assert_array_equal(seen[0], held)
    found = []
    for variant in seen:
        shifts = []
        for image, result in zip(held, variant, strict=True):
            (fit,) = fitting(image, result)
            shifts.append(fit[1:])
        assert len(set(shifts)) == 1
        as_tensors = {"x": torch.from_numpy(variant)}
        found.append(losses(lesson, as_tensors, as_tensors).detach().numpy())
    assert judged == pytest.approx(np.mean(found, axis=0), rel=1e-5)
    assert len({variant.tobytes() for variant in seen}) == len(seen)
    np.testing.assert_array_equal(lesson.judge(), judged)


# -- batches that are changed ------------------------------------------------------------------


def changed(lesson, feeds, seed=0):
    given = {name: torch.from_numpy(x) for name, x in feeds.items()}
    return lesson._changed(given, np.random.default_rng(seed))


@pytest.mark.parametrize("mix", [0.0, 0.5])
def test_images_keep_their_shape_and_other_inputs_stay_as_they_are(plans, mix):
    lesson = teach(plans["N"], images="x", mix=mix)
    feeds = {"x": images(6), "z": np.arange(6.0), "k": images(6, 1)}
    found = changed(lesson, feeds)
    assert found.keys() == feeds.keys()
    assert (found["x"].shape, found["x"].dtype) == (feeds["x"].shape, torch.float32)
    assert not np.array_equal(found["x"].numpy(), feeds["x"])
    for name in ("z", "k"):
        np.testing.assert_array_equal(found[name].numpy(), feeds[name])


def test_a_changed_image_is_the_image_moved_and_perhaps_mirrored(plans):
    lesson = teach(plans["N"], images="x")
    x = images(8)
    seen = set()
    for seed in range(40):
        found = changed(lesson, {"x": x}, seed)["x"].numpy()
        flips = []
        shifts = set()
        for image, result in zip(x, found, strict=True):
            (fit,) = fitting(image, result)
            flips.append(fit[0])
            shifts.add(fit[1:])
        assert len(shifts) == 1  # the batch together
        seen |= shifts
        assert 0 < sum(flips) < 8 or seed  # each for itself
    assert len(seen) == 9


def fitting(image, result):
    """What moves an image to the result: mirrored or not, and pixels down and right."""
    return [
        (flip, down, right)
        for flip in (False, True)
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
        if np.array_equal(moved(image, flip, down, right), result)
    ]


def moved(image, flip, down, right):
    image = image[..., ::-1] if flip else image
    _, height, width = image.shape
    rows = (np.arange(height) - down).clip(0, height - 1)
    columns = (np.arange(width) - right).clip(0, width - 1)
    return image[:, rows][:, :, columns]


def test_images_are_mixed_up_to_a_share(plans):
    lesson = teach(plans["N"], images="x", mix=0.4)
    x = np.ones((10, 3, 6, 8), np.float32) * np.eye(10, dtype=np.float32)[:, :1, None, None]
    found = np.concatenate([changed(lesson, {"x": x}, s)["x"].numpy() for s in range(30)])
    assert found.min() >= 0
    ours = found[::10, 0, 0, 0]
    assert 0.6 <= ours.min() < 0.8
    assert ours.max() == 1.0 or ours.max() > 0.9
    theirs = np.delete(found[:, 0, 0, 0], np.arange(0, 300, 10))
    assert 0.2 < theirs.max() <= 0.4


def test_teacher_and_network_see_the_same_changed_images(plans, monkeypatch):
    lesson = teach(plans["N"], images="x", mix=0.5)
    seen = []
    for network in (lesson.teacher, lesson.network):
        run = network.run

        def watched(feeds, wanted, run=run):
            seen.append(feeds["x"].clone())
            return run(feeds, wanted)

        monkeypatch.setattr(network, "run", watched)
    taught(lesson)
    assert len(seen) == 2
    assert torch.equal(*seen)


def test_images_are_left_as_they_are_where_the_quantized_network_reads_something_else(plans):
    own = {"x": images(seed=1)}
    lesson = teach(plans["N"], images="x", mix=0.5, own=own)
    plain = teach(plans["N"], own=own)
    assert taught(lesson)[0] == taught(plain)[0]
    np.testing.assert_array_equal(lesson.judge(), plain.judge())


def test_the_same_seed_gives_the_same_losses_and_another_one_others(plans):
    one, again, other = (
        [taught(teach(plans["N"], images="x", mix=0.5, seed=seed), s)[0] for s in range(4)]
        for seed in (3, 3, 4)
    )
    assert one == again
    assert len({*one, *other}) == 8


# -- what can be compared ----------------------------------------------------------------------


def test_points_that_are_not_of_floats_or_all_zeros_are_left_out(tmp_path):
    text = """(float[N,4] x) => (float[N,3] y, int64[N,3] k, float[N,3] z) {
        a = Gemm(x, w)
        k = Cast<to=7>(a)
        z = Mul(a, nothing)
        y = Relu(a)
    }"""
    onnx.save(build(text, w=(4, 3), nothing=np.zeros(3, np.float32)), tmp_path / "model.onnx")
    x = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    plan = planned(tmp_path / "model.onnx", [{"x": x}], bits=3)[:2]
    lesson = teach(plan, feeds={"x": x}, points=("k", "z", "y"), scores=None)
    assert list(lesson._variances) == ["y"]
    assert not lesson.empty
    assert np.isfinite(lesson.judge()).all()
    assert teach(plan, feeds={"x": x}, points=("k", "z"), scores=None).empty
    # Classes that were chosen are no scores.
    assert teach(plan, feeds={"x": x}, points=("k",), scores="k").empty
