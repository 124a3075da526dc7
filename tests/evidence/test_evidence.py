"""Evidence about models of any kind, and nothing lost when gathering it fails."""

import io

import numpy as np
import onnx
import pytest
from rich.console import Console

import onnxq
from onnxq import pipeline
from onnxq.errors import CalibrationError, InputError, PassError, UsageError
from onnxq.evidence.evaluate import Comparison, Rate, compare
from onnxq.evidence.exactness import TOLERANCE, largest_change
from onnxq.evidence.validation import quantized_against
from onnxq.graph.loading import from_proto, load
from onnxq.numerics.metrics import Fidelity
from onnxq.pipeline import Outcome, Skip
from onnxq.recipes import PREPARATION, plan
from onnxq.runtime import Session
from onnxq.samples.preprocess import METADATA_KEY, PRESETS
from onnxq.samples.sources import open_samples
from tests.graphs import build, feeds, norm, quantize, run

CONV = "a = Conv<pads=[1,1,1,1]>(x, w, b)"
WEIGHTS = {"w": (4, 3, 3, 3), "b": (4,)}


@pytest.fixture
def converted(tmp_path):
    def convert(graph, feeds, v=None, **options):
        source = tmp_path / "m.onnx"
        more = {} if v is None else {"v": v}
        source.write_bytes(build(graph, **WEIGHTS, **more).SerializeToString())
        return onnxq.convert(source, tmp_path / "q.onnx", calib=feeds, **options)

    return convert


def images(count, size=7, rows=1):
    rng = np.random.default_rng(0)
    return [
        {"x": rng.standard_normal((rows, 3, size, size)).astype(np.float32)} for _ in range(count)
    ]


def test_an_average_pool_that_rounds_up_over_its_padding_is_right_as_deployed(converted):
    pool = "AveragePool<kernel_shape=[2,2],strides=[2,2],ceil_mode=1,count_include_pad=1>"
    graph = f"(float[1,3,7,7] x) => (float[] y) {{ {CONV} p = {pool}(a) y = Conv(p, v) }}"
    report = converted(graph, images(8), v=(4, 4, 1, 1))
    assert report.fidelity.exact_sqnr > 40
    assert report.fidelity.outputs["y"].sqnr > 30


def test_a_gate_is_passed_by_just_what_it_allows():
    """88.48 % less 88.28 % is a little more than 0.2 in binary fractions."""
    labeled = Comparison(float_top1=Rate(4424, 5000), quantized_top1=Rate(4414, 5000))
    assert labeled.missed(0.2) is None
    assert labeled.missed(0.19) == pytest.approx(0.01)
    assert Comparison(agreement=Rate(4990, 5000)).missed(0.2) is None


@pytest.mark.parametrize(
    "tail", ["y = Greater(a, zero)", "g = ArgMax<axis=1>(a) y = Cast<to=6>(g)"], ids=["bool", "int"]
)
def test_outputs_that_are_not_floats_are_compared(converted, tail):
    graph = f"(float[1,3,7,7] x) => (float[] y) <float zero = {{0.0}}> {{ {CONV} {tail} }}"
    kind = "bool" if "Greater" in tail else "int32"
    report = converted(graph.replace("(float[] y)", f"({kind}[] y)"), images(8))
    figure = report.fidelity.outputs["y"]
    assert figure.compared == 8
    assert 5 < figure.sqnr < 60


def test_a_shape_that_depends_on_the_data_is_reported_not_fatal(converted):
    graph = (
        "(float[1,3,7,7] x) => (float[] y) <float zero = {0.0}, int64[1] flat = {-1}> "
        f"{{ {CONV} f = Reshape(a, flat) c = Greater(f, zero) y = Compress<axis=0>(f, c) }}"
    )
    report = converted(graph, images(16, size=7))
    assert report.fidelity.outputs["y"].incomparable + report.fidelity.outputs["y"].compared == 16
    assert report.fidelity.outputs["y"].incomparable > 0
    assert any("other shapes" in warning for warning in report.warnings)


def test_a_failed_run_restores_what_it_was_to_replace(converted, tmp_path, monkeypatch):
    (tmp_path / "q.onnx").write_text("precious")
    (tmp_path / "q.onnx.data").write_text("precious too")
    monkeypatch.setattr("onnxq.conversion.inspect", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        converted(f"(float[1,3,7,7] x) => (float[] a) {{ {CONV} }}", images(2), force=True)
    found = {f.name: f.read_text() for f in tmp_path.iterdir() if f.name != "m.onnx"}
    assert found == {"q.onnx": "precious", "q.onnx.data": "precious too"}


def test_feeds_of_any_size_fill_a_fixed_batch(converted):
    graph = f"(float[4,3,7,7] x) => (float[] a) {{ {CONV} }}"
    assert converted(graph, images(10, rows=1)).calibration["count"] == 10
    assert converted(graph, images(5, rows=2), force=True).calibration["count"] == 10


@pytest.mark.parametrize("feeds", [[{}], [None], [{"x": np.float32(1)}]], ids=str)
def test_feeds_that_are_not_are_refused(converted, feeds):
    with pytest.raises(CalibrationError):
        converted(f"(float[N,3,7,7] x) => (float[] a) {{ {CONV} }}", feeds)


def test_calibration_data_with_nan_are_refused(converted):
    bad = images(1)
    bad[0]["x"][0, 0, 0, 0] = np.nan
    with pytest.raises(CalibrationError, match="NaN"):
        converted(f"(float[N,3,7,7] x) => (float[] a) {{ {CONV} }}", bad)


def test_the_digest_covers_every_input(tmp_path):
    proto = build(
        f"(float[N,3,7,7] x, float[N,4,7,7] z) => (float[] y) {{ {CONV} y = Add(a, z) }}", **WEIGHTS
    )
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    x = np.ones((2, 3, 7, 7), np.float32)
    digests = {
        onnxq.convert(
            tmp_path / "m.onnx",
            calib=[{"x": x, "z": np.full((2, 4, 7, 7), value, np.float32)}],
            force=True,
        ).calibration["digest"]
        for value in (1, 7)
    }
    assert len(digests) == 2


def test_a_class_folder_without_images_keeps_its_index(tmp_path):
    from PIL import Image

    for name in "abcd":
        (tmp_path / name).mkdir()
        if name != "c":
            Image.new("RGB", (7, 7)).save(tmp_path / name / "0.png")
    inputs = [onnxq.runtime.Input("x", np.dtype(np.float32), (None, 3, 7, 7))]
    samples = open_samples(tmp_path, inputs, PRESETS["unit"], labels="auto")
    assert samples.labels == [0, 1, 3]
    assert samples.skipped == {str(tmp_path / "c"): "no images in it, but a class"}


def test_scores_with_spatial_axes_left_behind_are_a_classifier(tmp_path):
    proto = build(
        "(float[N,3,7,7] x) => (float[N,4,1,1] y) "
        f"{{ {CONV} y = GlobalAveragePool(a) }}", **WEIGHTS
    )  # fmt: skip
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    session = Session(tmp_path / "m.onnx")
    feeds = images(6)
    samples = open_samples(feeds, session.inputs, PRESETS["raw"])
    found = compare(session, session, samples, labels=[0] * 6)
    assert found.float_top1 is not None
    assert found.float_top1.count == 6
    assert found.drop == 0


def test_a_recipe_and_the_flags_it_replaces_do_not_go_together(converted):
    recipe = onnxq.Recipe.from_dict(
        {"pass": [{"name": "quantize-weights"}, {"name": "insert-qdq"}]}
    )
    with pytest.raises(UsageError, match="a recipe says"):
        converted(
            f"(float[N,3,7,7] x) => (float[] a) {{ {CONV} }}", images(1), recipe=recipe, bits=4
        )


def test_validation_says_what_it_took_for_granted_about_images(tmp_path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    Image.new("RGB", (9, 8), "white").save(tmp_path / "images" / "0.png")
    graph = f"(float[1,3,7,7] x) => (float[] a) {{ {CONV} }}"
    for name in ("m.onnx", "q.onnx"):
        (tmp_path / name).write_bytes(build(graph, **WEIGHTS).SerializeToString())
    found = onnxq.validate(tmp_path / "m.onnx", tmp_path / "q.onnx", tmp_path / "images")
    assert [text.split(":")[0] for text in found.warnings] == [
        "preprocessing assumed",
        "images are resized to the model's input size",
    ]


@pytest.mark.parametrize(
    ("stray", "warning"),
    [
        ("c/notes.txt", "1 files or folders are left out: {}/c (no images in it, but a class)"),
        (".c/0.png", "1 files or folders are left out: {}/.c (a hidden folder)"),
        ("0.png", "labels are not used: 1 images lie beside the class folders, first 0.png"),
    ],
)
@pytest.mark.parametrize("call", ["validate", "convert"])
def test_reports_say_what_of_a_folder_was_not_used(tmp_path, stray, warning, call):
    from PIL import Image

    folder = tmp_path / "images"
    for name in ("a/0.png", "b/0.png", stray):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (7, 7), "white").save(folder / name, "png")
    graph = f"(float[N,3,7,7] x) => (float[N,4,1,1] y) {{ {CONV} y = GlobalAveragePool(a) }}"
    source = tmp_path / "m.onnx"
    source.write_bytes(build(graph, **WEIGHTS).SerializeToString())
    if call == "validate":
        warnings = onnxq.validate(source, source, folder, preprocess="unit").warnings
    else:
        report = onnxq.convert(source, validate=folder, preprocess="unit")
        warnings = report.warnings
        assert (report.validation.float_top1 is None) == ("labels" in warning)
    assert warning.format(folder) in warnings


@pytest.mark.parametrize("text", ["{", '{"mean": []}', '{"colour": "rgb"}'])
@pytest.mark.parametrize("compared", [onnxq.validate, quantized_against], ids=lambda f: f.__name__)
def test_broken_metadata_of_the_quantized_model_are_refused(tmp_path, text, compared):
    proto = build(f"(float[N,3,7,7] x) => (float[] a) {{ {CONV} }}", **WEIGHTS)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    proto.metadata_props.add(key=METADATA_KEY, value=text)
    (tmp_path / "q.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match=METADATA_KEY) as caught:
        compared(tmp_path / "m.onnx", tmp_path / "q.onnx", images(1))
    assert "\n" not in str(caught.value)
    found = onnxq.validate(tmp_path / "m.onnx", tmp_path / "q.onnx", images(1), preprocess="raw")
    assert found.samples == 1


def test_a_model_without_inputs_cannot_be_fed(tmp_path):
    source = tmp_path / "m.onnx"
    constant = "() => (float[] y) <float[1,3,7,7] x = {%s}> { %s y = Relu(a) }"
    text = constant % (", ".join(["1.0"] * 147), CONV)
    source.write_bytes(build(text, **WEIGHTS).SerializeToString())
    np.save(tmp_path / "c.npy", np.zeros((2, 3), np.float32))
    for call in (
        lambda: onnxq.convert(source, calib=tmp_path / "c.npy"),
        lambda: onnxq.validate(source, source, tmp_path / "c.npy"),
    ):
        with pytest.raises(InputError, match="the model has no inputs"):
            call()


@pytest.mark.parametrize("wrong", [{"calib_size": 0}, {"calib_size": -1}, {"seed": -1}], ids=str)
def test_a_draw_that_cannot_be_is_a_wrong_call(converted, wrong):
    with pytest.raises(UsageError, match="or more"):
        converted(f"(float[N,3,7,7] x) => (float[] a) {{ {CONV} }}", images(2), **wrong)


def test_verification_sees_where_an_output_stops_being_finite(tmp_path):
    proto = build("(float[8] x) => (float[] y) { y = Abs(x) }")
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    prepared = from_proto(build("(float[8] x) => (float[] y) { y = Log(x) }"))
    with pytest.raises(PassError, match="finite"):
        largest_change(Session(tmp_path / "m.onnx"), prepared, None)


@pytest.mark.parametrize("shape", ["1,1,h,w", "n,1,h,w"])
def test_verification_sees_where_pixels_of_images_of_any_size_go(tmp_path, shape):
    onnx.save(build(f"(float[{shape}] x) => (float[] y) {{ y = Relu(x) }}"), tmp_path / "m.onnx")
    moved = build(
        f"(float[{shape}] x) => (float[] y) {{ s = Slice(x, from, to, axis, by) y = Relu(s) }}",
        **{"from": np.array([-1]), "to": np.array([-999]), "axis": np.array([3]),
           "by": np.array([-1])},
    )  # fmt: skip
    with pytest.raises(PassError, match="of its largest value: this is a bug"):
        largest_change(Session(tmp_path / "m.onnx"), from_proto(moved), None)


def test_verification_falls_back_on_sizes_of_one(tmp_path):
    proto = build("(float[n,a] x, float[b,n] z) => (float[] y) { y = MatMul(z, x) }")
    onnx.save(proto, tmp_path / "m.onnx")
    assert largest_change(Session(tmp_path / "m.onnx"), load(tmp_path / "m.onnx"), None) == 0.0


def magnifying(by):
    """A network whose output shows rounding ``by`` times as large."""
    return build(
        "(float[1,16,8,8] x) => (float[] y) "
        "{ a = Conv(x, w) b = BatchNormalization(a, g, o, o, v) c = Mul(b, k) y = Sin(c) }",
        w=(8, 16, 3, 3), g=np.linspace(0.5, 2, 8, dtype=np.float32), k=np.float32(by),
        v=np.linspace(0.5, 2, 8, dtype=np.float32), o=np.linspace(-1, 1, 8, dtype=np.float32),
    )  # fmt: skip


def test_what_a_network_makes_of_rounding_is_no_bug(tmp_path):
    source = tmp_path / "m.onnx"
    onnx.save(magnifying(1e3), source)
    model = load(source)
    pipeline.run(model, PREPARATION, None)
    original = Session(source)
    assert largest_change(original, model, None) > TOLERANCE
    (conv,) = (n for n in model.graph.nodes if n.op == "Conv")
    conv.inputs[1].values = conv.inputs[1].values * np.float32(1.001)
    with pytest.raises(PassError, match="of its largest value: this is a bug"):
        largest_change(original, model, None)


def test_one_answer_that_hangs_by_a_tie_is_no_reason_to_doubt_the_processor():
    found = Comparison(exact=Rate(hits=19, count=20), exact_loss=6.0)
    assert found.warnings == []
    found.exact = Rate(hits=17, count=20)
    (warning,) = found.warnings
    assert "disagree on this processor (85.0 % equal answers)" in warning


@pytest.mark.parametrize(("deployed", "warned"), [(0.3, False), (1.0, True)])
def test_a_graph_that_differs_from_the_other_has_to_be_worse_too(deployed, warned):
    """Both are off by about as much, each in its own direction; or one of them by more."""
    rng = np.random.default_rng(0)

    def model(off):
        b = off * rng.choice(np.float32([-1, 1]), 8)
        return Session(from_proto(build("(float[N,8] x) => (float[] y) { y = Add(x, b) }", b=b)))

    reference, feeds = model(0.0), [{"x": rng.standard_normal((4, 8)).astype(np.float32)}]
    samples = open_samples(feeds, reference.inputs, PRESETS["raw"])
    found = compare(reference, model(deployed), samples, exact=model(0.3))
    found.exact = None
    assert found.exact_sqnr < 15
    assert bool(found.warnings) is warned


def test_of_many_reasons_the_first_are_printed_and_all_are_kept():
    outcome = Outcome(skips=[Skip(f"node{i}", f"reason {i}") for i in range(20)])
    outcome.skips.append(Skip("node20", "reason 0"))
    report = onnxq.Report("a.onnx", "b.onnx", "w8a8", 1, outcomes={"equalize": outcome})
    console = Console(file=io.StringIO(), width=120)
    console.print(report)
    printed = console.file.getvalue()
    assert "left alone by equalize, and why" in printed
    assert "node0 and 1 more" in printed
    assert "reason 7" in printed
    assert "reason 8" not in printed
    assert "12 more" in printed
    assert len(report.to_dict()["outcomes"]["equalize"]["skips"]) == 21


def test_layers_left_float_are_named_unless_many_are_for_one_reason():
    why = {f"conv{i}": "as asked" for i in range(3)} | {f"fc{i}": "no data" for i in range(20)}
    report = onnxq.Report("a.onnx", "b.onnx", "w8a8", 1, why_float=why)
    console = Console(file=io.StringIO(), width=120)
    console.print(report)
    printed = console.file.getvalue()
    assert all(f"conv{i} " in printed for i in range(3))
    assert "fc0 and 19 more  no data" in printed
    assert "fc1 " not in printed
    assert report.to_dict()["why_float"] == why


def test_a_wrong_declaration_that_only_newer_opsets_see_is_the_sources(tmp_path):
    proto = build(
        "(float[2,N,4] x) => (float[N,S] y) { d = Shape(x) b = Gather<axis=0>(d, zero) "
        "c = Gather<axis=0>(d, one) m = MatMul(x, w) p = Unsqueeze<axes=[0]>(b) "
        "q = Unsqueeze<axes=[0]>(c) t = Concat<axis=0>(p, q, minus) y = Reshape(m, t) }",
        opset=12, w=(4, 6), zero=np.array(0), one=np.array(1), minus=np.array([-1]),
    )  # fmt: skip
    onnx.save(proto, tmp_path / "m.onnx")
    report = onnxq.convert(tmp_path / "m.onnx", bits=4)
    (note,) = (note for note in report.notes if "complains" in note)
    assert "as about its source" in note
    assert "differ in rank: (3) vs (2)" in note


def test_a_file_that_is_invalid_where_its_source_is_not_is_removed(tmp_path, monkeypatch):
    source, target = tmp_path / "m.onnx", tmp_path / "q.onnx"
    onnx.save(build(f"(float[1,3,7,7] x) => (float[] a) {{ {CONV} }}", **WEIGHTS), source)
    monkeypatch.setattr(
        "onnxq.conversion.check_file", lambda path: "it is odd" if path == target else None
    )
    with pytest.raises(PassError, match="the written file was invalid and is removed: it is odd"):
        onnxq.convert(source, target)
    assert not target.exists()


@pytest.mark.parametrize("act_bits", [8, 4])
def test_a_result_that_only_moves_read_is_compared_too(tmp_path, act_bits):
    """It exists as codes alone: the file has no floats of it."""
    proto = build(
        "(float[N,3,8,8] x) => (float[] y) { a = Conv(x, w1, b) r = Relu(a) k = Reshape(r, five) "
        "n = Shape(r) t = Transpose<perm=[0,2,1,3,4]>(k) h = Reshape(t, n) y = Conv(h, w2) }",
        w1=(4, 3, 3, 3), b=(4,), w2=(5, 4, 3, 3), five=np.array([0, 2, 2, 6, 6]),
    )  # fmt: skip
    samples = [feeds(proto, seed, 4) for seed in range(4)]
    report, file = quantize(proto, tmp_path, samples, act_bits=act_bits, first_last_bits=2)
    written = onnx.load(file)
    assert "r" not in {name for node in written.graph.node for name in node.output}
    found = {layer.name: layer for layer in report.layers}
    assert found["Conv_a"].result == "r"
    turned = run(written, samples[0], taps=["h"])["h"].reshape(4, 2, 2, 6, 6)
    restored = turned.transpose(0, 2, 1, 3, 4).reshape(4, 4, 6, 6)
    fidelity = Fidelity()
    fidelity.update(run(proto, samples[0], taps=["r"])["r"], restored)
    assert found["Conv_a"].accumulated == pytest.approx(fidelity.sqnr, abs=1.0)
    assert found["Conv_a"].isolated > 10


@pytest.mark.parametrize("op", ["Mul", "Div"])
def test_a_result_whose_grid_a_product_changed_is_left_out(tmp_path, op):
    proto = build(
        f"(float[N,3,8,8] x) => (float[] y) {{ a = Conv(x, w, b) m = Relu(a) s = {op}(m, c) "
        "t = Transpose<perm=[0,1,3,2]>(s) y = Conv(t, w2) }",
        w=(4, 3, 3, 3), b=(4,), w2=(5, 4, 3, 3), c=np.float32(0.125),
    )  # fmt: skip
    report, _ = quantize(proto, tmp_path)
    assert report.kernels.floating == []
    assert all(layer.isolated > 25 for layer in report.layers)


def test_new_names_are_none_of_the_source(tmp_path):
    """A folded norm and its data are gone; what is new must not be taken for them."""
    names = iter(range(100))
    proto = build(
        "(float[N,3,8,8] x) => (float[] y) { a = Conv<pads=[1,1,1,1]>(x, w1) r = Relu(a) "
        "t3 = Conv<pads=[1,1,1,1]>(r, w3) n = BatchNormalization(t3, g, s, m, v) c = Relu(n) "
        "y = Conv(c, w2) }",
        w1=(8, 3, 3, 3), w3=(8, 8, 3, 3), w2=(5, 8, 3, 3), **norm(8),
    )  # fmt: skip
    for node in proto.graph.node:
        if node.op_type in ("BatchNormalization", "Relu"):
            node.name = f"t{next(names)}"
            node.doc_string = "of the source"
    onnx.save(proto, tmp_path / "source.onnx")
    _, file = quantize(proto, tmp_path)
    written = onnx.load(file)
    assert not [n.name for n in written.graph.node if n.doc_string and n.op_type != "Relu"]
    assert "t3" not in {name for n in written.graph.node for name in (*n.input, *n.output)}
    samples = [feeds(proto, seed) for seed in range(4)]
    errors = quantized_against(tmp_path / "source.onnx", file, samples)
    assert len(errors) == 3
    assert all(error.isolated > 30 for error in errors)


FLOAT_HEAD = "(float[N,3,8,8] x) => (float[] y)"


@pytest.mark.parametrize(
    ("nodes", "compared"),
    [
        ("a = Conv(x, w) d = DepthToSpace<blocksize=2>(a) y = Conv(d, w2)", {"a", "y"}),
        # Its channels have another order in the file, and in what is compared with it.
        (
            'a = Conv(x, w) d = DepthToSpace<blocksize=2,mode="CRD">(a) y = Conv(d, w2)',
            {"a_reordered", "y"},
        ),
        (
            "t = Transpose<perm=[0,2,3,1]>(x) h = MatMul(t, m) b = Add(h, k) y = Mul(b, k)",
            {"h_folded"},
        ),
    ],
)
def test_what_is_compared_with_the_source_is_the_same_there(tmp_path, nodes, compared):
    arrays = {"w": (12, 3, 3, 3), "w2": (5, 3, 1, 1), "m": (3, 6), "k": np.geomspace(0.01, 2, 6)}
    used = {n: v for n, v in arrays.items() if f"{n})" in nodes}
    used |= {n: v.astype(np.float32) for n, v in used.items() if n == "k"}
    proto = build(f"{FLOAT_HEAD} {{ {nodes} }}", **used)
    onnx.save(proto, tmp_path / "source.onnx")
    _, file = quantize(proto, tmp_path)
    errors = quantized_against(tmp_path / "source.onnx", file, [feeds(proto, s) for s in range(4)])
    assert {error.result for error in errors} == compared
    assert all(error.isolated > 25 for error in errors)


def test_a_result_that_several_read_is_not_taken_for_what_one_makes_of_it(tmp_path):
    """The PRelu that reads the float result is a Relu, a Clip and more in the file."""
    proto = build(
        f"{FLOAT_HEAD} {{ a = Conv(x, w) h = PRelu(a, s) y = Conv(h, w2) }}",
        w=(4, 3, 3, 3), s=np.linspace(0.3, 0.6, 4, dtype=np.float32).reshape(4, 1, 1),
        w2=(5, 4, 1, 1),
    )  # fmt: skip
    recipe = plan("fast", calibrated=True)
    steps = tuple(
        step.model_copy(update={"floats": ("Conv_a",)})
        if step.name == "quantize-activations"
        else step
        for step in recipe.passes
    )
    onnx.save(proto, tmp_path / "model.onnx")
    report = onnxq.convert(
        tmp_path / "model.onnx",
        recipe=recipe.model_copy(update={"passes": steps}),
        calib=[feeds(proto, seed) for seed in range(4)],
    )
    assert report.kernels.floating == ["Conv_a"]
    assert {layer.name: layer.result for layer in report.layers}["Conv_a"] == "a"


def test_a_slope_of_zero_is_no_dead_channel(tmp_path):
    proto = build(
        f"{FLOAT_HEAD} {{ a = Conv(x, w) h = PRelu(a, s) y = Conv(h, w2) }}",
        w=(4, 3, 3, 3), s=np.array([0, 0.1, 0.2, 0.3], np.float32).reshape(4, 1, 1),
        w2=(5, 4, 1, 1),
    )  # fmt: skip
    report, _ = quantize(proto, tmp_path)
    assert len(report.kernels.integer) == 3
    assert not report.outcomes["quantize-weights"].remarks


def test_a_grid_of_one_code_is_no_narrow_one(tmp_path):
    """What a PRelu reads is never negative: what it makes of negative values is one code, 0."""
    proto = build(
        "(float[1,4,8,8] x) => (float[] y) { r = Relu(x) a = Conv(r, w) b = PRelu(a, s) "
        "y = Conv(b, v) }",
        w=np.full((4, 4, 1, 1), 0.3, np.float32), s=np.full((4, 1, 1), 0.2, np.float32),
        v=(4, 4, 1, 1),
    )  # fmt: skip
    report, _ = quantize(proto, tmp_path)
    assert {layer.name for layer in report.layers} >= {"Conv_a", "Conv_y"}


def test_a_layer_alone_is_fed_what_it_reads(tmp_path):
    proto = build(
        "(float[1,4,8,8] x) => (float[] y) { a = Conv(x, w) e = Exp(a) m = Max(e, least) "
        "y = Conv(m, v) }",
        w=(4, 4, 1, 1), least=np.float32(1.0), v=(4, 4, 1, 1),
    )  # fmt: skip
    report, _ = quantize(proto, tmp_path)
    (last,) = (layer for layer in report.layers if layer.name == "Conv_y")
    assert last.isolated > 30


def test_a_model_that_draws_random_numbers_is_not_called_a_bug(tmp_path):
    proto = build(
        "(float[N,3,8,8] x) => (float[] y) { r = RandomUniformLike(x) m = Add(x, r) "
        "h = HardSwish(m) y = Conv(h, w) }",
        opset=17, w=(4, 3, 3, 3),
    )  # fmt: skip
    report, _ = quantize(proto, tmp_path)
    assert report.difference is None
    (note,) = [note for note in report.notes if "random" in note]
    assert note.startswith("not verified: RandomUniformLike RandomUniformLike_r draws random")
