"""Recipes side by side: each as if it were alone, nothing done twice, nothing lost."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import onnxq
from onnxq import comparison, workbench
from onnxq.comparison import Row, Sweep, compare_recipes
from onnxq.demo import unpack
from onnxq.errors import CalibrationError, InputError, PassError, UnsupportedModel, UsageError
from onnxq.graph.loading import from_proto
from onnxq.numerics.observe import MinMax
from onnxq.recipes import UNTRAINED, plan
from onnxq.runtime import Session
from onnxq.samples.calibration import Calibration
from onnxq.samples.data import Arrays
from onnxq.samples.preprocess import PRESETS, Preprocess
from onnxq.workbench import Memo, SharedCalibration, Workbench
from tests.graphs import build

GRAY = Preprocess(color="gray", scale=1 / 240)
GRID = {"recipes": ("vanilla", "mse"), "bits": (8, 4)}


@pytest.fixture
def digits(tmp_path):
    """The demo's model and some of its data: tensors, and the same as images."""
    model, calib, test = unpack(tmp_path)
    pixels = np.load(calib)["image"][:40]
    np.savez(calib, image=pixels)
    data = np.load(test)
    np.savez(test, image=data["image"][:120], labels=data["labels"][:120])
    (tmp_path / "images").mkdir()
    for i, x in enumerate(pixels[:, 0]):
        Image.fromarray((240 * x).astype(np.uint8)).save(tmp_path / f"images/{i:02}.png")
    return {"source": model, "calib": calib, "data": test}


@pytest.fixture
def converted(monkeypatch):
    """How often each width was converted, as ``(bits, act_bits)``."""
    seen = Counter()
    convert = Workbench.convert

    def counted(self, recipe, file):
        seen[recipe.bits, recipe.act_bits] += 1
        return convert(self, recipe, file)

    monkeypatch.setattr(Workbench, "convert", counted)
    return seen


def bench(source, calib, data, size=256, preprocess=None):
    return Workbench(source, calib, data, size, preprocess, "auto", 0, lambda *step: None)


def row(recipe="vanilla", bits=4, act_bits=8, **figures):
    """A row whose key tells its cell."""
    fixed = {"samples": 100, "calib_samples": 10, "model": "m", "calib": "c", "data": "d"}
    fixed |= {"seed": 0, "onnxq": "0", "onnxruntime": "1", "key": f"{recipe} {bits} {act_bits}"}
    return Row(recipe=recipe, bits=bits, act_bits=act_bits, **fixed | figures)


# -- each as if it were alone ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calib", "grid"),
    [("calib.npz", [(8, 4), (4, "float")]), ("images", [(4, 8)])],
    ids=["tensors", "images"],
)
def test_every_file_is_the_one_that_convert_writes(digits, tmp_path, calib, grid):
    preprocess = GRAY if calib == "images" else None
    shared = bench(digits["source"], tmp_path / calib, digits["data"], 16, preprocess)
    for name in UNTRAINED:
        for bits, act_bits in grid:
            widths = {"bits": bits, "act_bits": act_bits}
            shared.convert(plan(name, **widths, calibrated=True), tmp_path / "shared.onnx")
            onnxq.convert(
                digits["source"], tmp_path / "alone.onnx", recipe=name, **widths,
                calib=tmp_path / calib, calib_size=16, preprocess=preprocess, force=True,
            )  # fmt: skip
            files = [(tmp_path / f"{kind}.onnx").read_bytes() for kind in ("shared", "alone")]
            assert files[0] == files[1], (name, widths)
            (tmp_path / "shared.onnx").unlink()


def test_a_file_that_was_trained_is_the_one_that_convert_writes(digits, tmp_path):
    pytest.importorskip("torch")
    calib, files = tmp_path / "calib.npz", [tmp_path / "shared.onnx", tmp_path / "alone.onnx"]
    shared = bench(digits["source"], calib, digits["data"], 16, None)
    shared.convert(plan("bft", bits=4, calibrated=True), files[0])
    options = {"recipe": "bft", "bits": 4, "calib": calib, "calib_size": 16}
    onnxq.convert(digits["source"], files[1], **options)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_recipes_of_other_exact_passes_share_no_model(tmp_path):
    graph = (
        "(float[1,3,7,7] x) => (float[] y) "
        "{ a = Conv<pads=[1,1,1,1]>(x, w) h = HardSwish(a) y = Conv(h, v) }"
    )
    source = tmp_path / "m.onnx"
    source.write_bytes(build(graph, w=(4, 3, 3, 3), v=(4, 4, 1, 1)).SerializeToString())
    x = np.random.default_rng(0).standard_normal((8, 1, 3, 7, 7)).astype(np.float32)
    calib = [{"x": one} for one in x]
    shared = bench(source, calib, calib)
    for act_bits in (8, "float"):
        file, alone = (tmp_path / f"{kind}{act_bits}.onnx" for kind in ("shared", "alone"))
        shared.convert(plan("vanilla", bits=8, act_bits=act_bits, calibrated=True), file)
        onnxq.convert(source, alone, recipe="vanilla", bits=8, act_bits=act_bits, calib=calib)
        assert file.read_bytes() == alone.read_bytes()


def test_the_figures_are_those_of_a_validation(digits, tmp_path):
    (found,) = compare_recipes(**digits, recipes=["mse"], bits=[3]).rows
    report = onnxq.convert(
        digits["source"], tmp_path / "q.onnx", recipe="mse", bits=3, act_bits=8,
        calib=digits["calib"], validate=digits["data"],
    )  # fmt: skip
    alone = report.validation
    assert found.top1 == alone.quantized_top1.percent
    assert found.float_top1 == alone.float_top1.percent
    assert found.agreement == alone.agreement.percent
    assert found.sqnr == alone.outputs["logits"].sqnr
    assert found.bytes == report.bytes == (tmp_path / "q.onnx").stat().st_size
    assert found.size_ratio == report.bytes / report.float_bytes
    assert (found.samples, found.calib_samples, found.width) == (120, 40, "w3a8")


def test_shared_statistics_are_those_of_a_calibration_of_its_own():
    x = np.random.default_rng(0).standard_normal((20, 3, 7, 7)).astype(np.float32)
    samples = Arrays({"x": x}, range(20))
    proto = build(
        "(float[N,3,7,7] x) => (float[] y) { a = Conv(x, w) y = Relu(a) }", w=(4, 3, 3, 3)
    )
    shared = SharedCalibration(samples, PRESETS["raw"])
    alone = Calibration(samples, PRESETS["raw"])
    for names in (["a"], ["a", "y"], ["y"]):
        seen = shared.collect(from_proto(proto), {name: MinMax() for name in names})
        wanted = alone.collect(from_proto(proto), {name: MinMax() for name in names})
        assert list(seen) == list(wanted)
        for name in names:
            for what in ("lo", "hi", "count", "nonfinite", "dtype"):
                assert getattr(seen[name], what) == getattr(wanted[name], what)
        assert (shared.count, shared.digest) == (alone.count, alone.digest)


@pytest.mark.parametrize("labels", ["auto", "none"])
def test_without_labels_recipes_are_judged_by_agreement(digits, labels):
    (found,) = compare_recipes(**digits, recipes=["vanilla"], bits=[2], labels=labels).rows
    assert found.agreement < 100
    if labels == "none":
        assert (found.top1, found.float_top1) == (None, None)
        assert found.score == found.agreement
    else:
        assert found.score == found.top1


def test_what_is_no_classifier_is_judged_by_sqnr(tmp_path):
    graph = "(float[1,3,7,7] x) => (float[] y) { y = Conv<pads=[1,1,1,1]>(x, w) }"
    (tmp_path / "m.onnx").write_bytes(build(graph, w=(4, 3, 3, 3)).SerializeToString())
    x = np.random.default_rng(0).standard_normal((16, 1, 3, 7, 7)).astype(np.float32)
    calib, data = ([{"x": one} for one in part] for part in (x[:8], x[8:]))
    sweep = compare_recipes(tmp_path / "m.onnx", calib=calib, data=data)
    assert [r.error for r in sweep.rows] == [None] * 2 * len(UNTRAINED)
    assert {r.agreement for r in sweep.rows} == {None}
    assert all(r.score == r.sqnr > 10 for r in sweep.rows)
    assert {r.samples for r in sweep.rows} == {8}


# -- nothing done twice ----------------------------------------------------------------------------


def test_images_are_read_and_the_float_model_is_run_once_for_all_rows(
    digits, tmp_path, monkeypatch
):
    opened, runs, collected = Counter(), Counter(), []
    open_image, run, collect = Image.open, Session.run, Calibration.collect

    def counting_open(file):
        opened[Path(file).name] += 1
        return open_image(file)

    def counting_run(self, feeds):
        runs[type(self).__name__, next(iter(feeds.values())).tobytes()] += 1
        return run(self, feeds)

    def counting_collect(self, model, observers):
        collected.append(model.opset)
        return collect(self, model, observers)

    monkeypatch.setattr(Image, "open", counting_open)
    monkeypatch.setattr(Session, "run", counting_run)
    monkeypatch.setattr(Calibration, "collect", counting_collect)
    images = {"calib": tmp_path / "images", "preprocess": GRAY, "act_bits": (8, 4)}
    # These two calibrate other float models, balanced at narrow activations.
    alike = tuple(name for name in UNTRAINED if name not in ("dfq", "balanced"))
    sweep = compare_recipes(**digits | images | {"bits": (8, 4), "recipes": alike})
    assert [r.error for r in sweep.rows] == [None] * 4 * len(alike)
    assert len(opened) == 40
    assert set(opened.values()) == {1}
    floats = [n for (kind, _), n in runs.items() if kind == "RememberingSession"]
    assert len(floats) > 2
    assert set(floats) == {1}
    # 4-bit weights need a newer opset than 8-bit ones: another graph, calibrated by itself.
    assert sorted(collected) == sorted(set(collected))
    assert len(collected) == 2


def test_the_clock_of_a_memo_runs_on_as_if_nothing_were_shared(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(workbench.time, "perf_counter", lambda: now[0])
    memo = Memo()

    def work():
        now[0] += 5.0
        return "done"

    for spent, shown in ((5.0, 5.0), (5.0, 10.0), (5.0, 15.0)):
        assert memo.once("key", work) == "done"
        assert (now[0], memo.seconds()) == (spent, shown)
    memo.once("other", work)
    assert (now[0], memo.seconds()) == (10.0, 20.0)


def test_a_memo_keeps_nothing_of_a_failure():
    memo = Memo()
    with pytest.raises(ZeroDivisionError):
        memo.once("key", lambda: 1 / 0)
    assert memo.once("key", lambda: 1) == 1


# -- the table on disk -----------------------------------------------------------------------------


def test_recipes_that_are_one_at_a_width_are_converted_once(digits, converted):
    sweep = compare_recipes(**digits, recipes=("mse", "fast"), bits=(8, 4))
    assert converted == {(8, 8): 1, (4, 8): 2}
    mse, fast = (row.model_dump(exclude={"recipe", "key"}) for row in sweep.rows[:2])
    assert mse == fast
    assert len({row.key for row in sweep.rows}) == 4


def test_a_table_that_is_there_is_not_computed_again(digits, tmp_path, converted):
    table = tmp_path / "t.csv"
    first = compare_recipes(**digits, **GRID, table=table)
    assert sum(converted.values()) == 4
    before = table.read_bytes()
    again = compare_recipes(**digits, **GRID, table=table)
    assert sum(converted.values()) == 4
    assert again == first
    assert table.read_bytes() == before
    with table.open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [(r["recipe"], r["bits"]) for r in read] == [
        ("vanilla", "8"), ("mse", "8"), ("vanilla", "4"), ("mse", "4"),
    ]  # fmt: skip
    assert [float(r["top1"]) for r in read] == [r.top1 for r in first.rows]


def test_what_was_stopped_goes_on_where_it_was(digits, tmp_path, converted, monkeypatch):
    table, judge = tmp_path / "t.csv", Workbench.judge

    def stopped(self, file):
        if sum(converted.values()) == 3:
            raise KeyboardInterrupt
        return judge(self, file)

    with monkeypatch.context() as patched:
        patched.setattr(Workbench, "judge", stopped)
        with pytest.raises(KeyboardInterrupt):
            compare_recipes(**digits, **GRID, table=table)
    done = table.read_bytes()
    assert len(done.splitlines()) == 1 + 2
    converted.clear()
    sweep = compare_recipes(**digits, **GRID, table=table)
    assert converted == {(4, 8): 2}
    assert table.read_bytes().startswith(done)
    whole = compare_recipes(**digits, **GRID, table=tmp_path / "whole.csv")
    assert [r.model_copy(update={"seconds": 0}) for r in sweep.rows] == [
        r.model_copy(update={"seconds": 0}) for r in whole.rows
    ]
    assert [f.name for f in tmp_path.glob(".*")] == []


def other_model(folder):
    proto = onnx.load(folder / "digits.onnx")
    weight = onnx.numpy_helper.to_array(proto.graph.initializer[0]) * np.float32(1.001)
    proto.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(weight, proto.graph.initializer[0].name)
    )
    onnx.save(proto, folder / "digits.onnx")


def changed(name, **arrays):
    def change(folder):
        held = dict(np.load(folder / name))
        for key, by in arrays.items():
            held[key] = held[key] + np.asarray(by, held[key].dtype)
        np.savez(folder / name, **held)

    return change


CHANGES = {
    "model": (other_model, {}),
    "calibration": (changed("calib.npz", image=1e-3), {}),
    "data": (changed("test.npz", image=1e-3), {}),
    "labels": (changed("test.npz", labels=1), {}),
    "seed": (lambda folder: None, {"seed": 1}),
    "draw": (lambda folder: None, {"calib_size": 10}),
    "no labels": (lambda folder: None, {"labels": "none"}),
    "preprocessing": (lambda folder: None, {"preprocess": "raw"}),
    "nothing declared": (lambda folder: None, {"preprocess": None}),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_row_holds_for_what_it_was_computed_from_alone(digits, tmp_path, converted, kind):
    change, options = CHANGES[kind]
    table = tmp_path / "t.csv"
    call = {"recipes": ["vanilla"], "bits": [4], "table": table, "preprocess": "unit"} | digits
    compare_recipes(**call)
    before = table.read_bytes()
    change(tmp_path)
    compare_recipes(**call | options)
    assert sum(converted.values()) == 2
    assert table.read_bytes().startswith(before)
    assert len(table.read_bytes().splitlines()) == 1 + 2


@pytest.mark.parametrize("name", ["__version__", "version", "cpu_note"])
def test_a_row_holds_for_its_versions_and_processor_alone(
    digits, tmp_path, converted, monkeypatch, name
):
    grid = {"recipes": ["vanilla"], "bits": [4], "table": tmp_path / "t.csv"}
    compare_recipes(**digits, **grid)
    monkeypatch.setattr(workbench, name, "9.9" if name == "__version__" else lambda: "9.9")
    compare_recipes(**digits, **grid)
    assert sum(converted.values()) == 2


def test_a_copy_under_another_name_is_the_same(digits, tmp_path, converted):
    table, grid = tmp_path / "t.csv", {"recipes": ["vanilla"], "bits": [4]}
    compare_recipes(**digits, **grid, table=table)
    moved = {key: file.rename(file.with_stem(f"new-{key}")) for key, file in digits.items()}
    compare_recipes(**moved, **grid, table=table)
    assert sum(converted.values()) == 1


def test_data_in_a_file_with_a_name_in_latin_1_go_on_from_a_table(digits, tmp_path, converted):
    table, grid = tmp_path / "t.csv", {"recipes": ["vanilla"], "bits": [4]}
    digits["calib"] = digits["calib"].rename(tmp_path / "f\udcfcnf.npz")
    first = compare_recipes(**digits, **grid, table=table)
    assert compare_recipes(**digits, **grid, table=table) == first
    assert sum(converted.values()) == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"name,age\nx,1\n", ",".join(Row.model_fields).encode() + b"\nvanilla,8,8", b"\xff\xfe"],
    ids=["empty", "strange", "cut", "binary"],
)
def test_a_file_that_is_no_table_is_left_alone(digits, tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UsageError, match=r"t\.csv: .*; name another file"):
        compare_recipes(**digits, table=tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_bytes() == content


# -- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (UnsupportedModel("no way"), "no way", 3),
        (PassError("gptq failed"), "gptq failed", 123),
        (ValueError("two\nlines"), "ValueError: two lines", 123),
        (MemoryError(), "MemoryError: ", 3),
        (OSError(28, "full"), "OSError: [Errno 28] full", 3),
    ],
)
def test_a_row_that_fails_says_why_and_the_others_go_on(
    digits, tmp_path, converted, monkeypatch, error, said, code
):
    quantize, table = workbench.quantize, tmp_path / "t.csv"

    def failing(prepared, recipe, *rest):
        if recipe.bits == 8:
            raise error
        return quantize(prepared, recipe, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(workbench, "quantize", failing)
        sweep = compare_recipes(**digits, recipes=["vanilla"], bits=(8, 4), table=table)
    assert [r.error for r in sweep.rows] == [said, None]
    assert [r.score is None for r in sweep.rows] == [True, False]
    assert sweep.exit_code == code
    converted.clear()
    mended = compare_recipes(**digits, recipes=["vanilla"], bits=(8, 4), table=table)
    assert converted == {(8, 8): 1}
    assert ([r.error for r in mended.rows], mended.exit_code) == ([None, None], 0)
    assert len(table.read_bytes().splitlines()) == 1 + 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recipes": ["vanila"]}, "did you mean vanilla"),
        ({"recipes": []}, "nothing to compare"),
        ({"bits": []}, "nothing to compare"),
        ({"bits": [9]}, "2 to 8 bits, not 9"),
        ({"act_bits": [1]}, "bits: "),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(digits, monkeypatch, options, said):
    monkeypatch.setattr(comparison, "Workbench", lambda *_: pytest.fail("it worked"))
    with pytest.raises(UsageError, match=said):
        compare_recipes(**digits, **options)


def test_outputs_that_would_fill_the_memory_are_refused(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(workbench, "HELD_OUTPUTS", 120 * 10 * 4)
    table = tmp_path / "t.csv"
    compare_recipes(**digits, recipes=["vanilla"], bits=[8], table=tmp_path / "fits.csv")
    monkeypatch.setattr(workbench, "HELD_OUTPUTS", 120 * 10 * 4 - 1)
    with pytest.raises(CalibrationError, match="outputs of 120 samples"):
        compare_recipes(**digits, table=table)
    assert not table.exists()


def test_data_that_do_not_fit_end_all(digits, tmp_path):
    np.savez(tmp_path / "odd.npz", image=np.zeros((4, 3, 8, 8), np.float32))
    for part in ("calib", "data"):
        with pytest.raises(InputError, match="the data are"):
            compare_recipes(**digits | {part: tmp_path / "odd.npz"})


def test_samples_that_calibrated_and_judge_are_counted(digits):
    once = compare_recipes(**digits, recipes=["vanilla"], bits=[8])
    assert (once.overlap, once.warnings) == (0, [])
    twice = compare_recipes(
        **digits | {"data": digits["calib"]}, recipes=["vanilla"], bits=[8], calib_size=10
    )
    assert twice.overlap == 10
    assert any(w.startswith("10 of the 40 samples judged on") for w in twice.warnings)


def test_what_was_assumed_about_images_reaches_the_reader_once(digits, tmp_path):
    graph = "(float[N,3,8,8] image) => (float[] y) { a = Conv(image, w) y = Flatten(a) }"
    (tmp_path / "rgb.onnx").write_bytes(build(graph, w=(4, 3, 8, 8)).SerializeToString())
    images = {"calib": tmp_path / "images", "data": tmp_path / "images"}
    sweep = compare_recipes(tmp_path / "rgb.onnx", **images, bits=[8])
    assert sum("preprocessing assumed" in text for text in sweep.warnings) == 1


def test_a_warning_names_the_rows_it_is_of_unless_it_is_of_all():
    rows = [
        row("a", 8, top1=90.0, warnings=("of all", "of one")),
        row("b", 8, top1=90.0, warnings=("of all",)),
        row("a", 4, error="no"),
    ]
    assert Sweep("m", 1, rows).warnings == ["of all", "w8a8 a: of one"]


# -- which is best ---------------------------------------------------------------------------------


def test_the_best_of_a_width_has_the_best_score_then_the_best_sqnr():
    rows = [
        row("a", 8, top1=90.0, sqnr=30.0),
        row("b", 8, top1=90.0, sqnr=31.0),
        row("c", 8, top1=89.0, sqnr=40.0),
        row("a", 4, error="no"),
        row("b", 4, top1=50.0, sqnr=1.0),
        row("a", 3, agreement=50.0, sqnr=9.0),
        row("b", 3, agreement=60.0, sqnr=3.0),
        row("a", 2, sqnr=-5.0),
        row("b", 2, sqnr=-4.0),
    ]
    assert Sweep("m", 1, rows).best == {"b 8 8", "b 3 8", "b 2 8"}
