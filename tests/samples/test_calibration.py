"""One pass over the data: the same statistics however it is batched, and a word on odd data."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper
from PIL import Image

from onnxq.errors import CalibrationError
from onnxq.graph.loading import from_proto
from onnxq.graph.model import Model
from onnxq.numerics.observe import Histogram, MinMax, Observer
from onnxq.runtime import Session
from onnxq.samples.calibration import Calibration
from onnxq.samples.data import Arrays, Batch
from onnxq.samples.preprocess import IMAGENET, PRESETS, Preprocess
from onnxq.samples.sources import open_samples

NORMALIZED = Preprocess(**IMAGENET)
NOISE = np.random.default_rng(0).integers(0, 256, (10, 3, 8, 8)).astype(np.float32)


def build(batch: str) -> Model:
    """Conv, Relu and a fully connected layer over (batch, 3, 8, 8).

    Small integers and a mean of 64: sums are exact, in whatever order a kernel takes them.
    """
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        main (float[{batch}, 3, 8, 8] x) => (float[{batch}, 5] y) {{
            c = Conv<pads=[1, 1, 1, 1]>(x, w)
            r = Relu(c)
            p = GlobalAveragePool(r)
            f = Flatten(p)
            y = Gemm(f, v)
        }}"""
    )
    rng = np.random.default_rng(1)
    for name, shape in (("w", (4, 3, 3, 3)), ("v", (4, 5))):
        values = rng.integers(-3, 4, shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return from_proto(proto)


def collect(
    batch: str, x: np.ndarray, preprocess: Preprocess = PRESETS["raw"]
) -> tuple[Calibration, dict[str, Observer]]:
    calibration = Calibration(Arrays({"x": x}, range(len(x))), preprocess)
    observers = {name: Histogram() for name in ("x", "c", "r", "y")}
    return calibration, calibration.collect(build(batch), observers)


@pytest.mark.parametrize("batch", ["4", "1"])
def test_statistics_do_not_depend_on_the_batch_size(batch: str) -> None:
    expected, dynamic = collect("N", NOISE)
    calibration, fixed = collect(batch, NOISE)
    assert calibration.count == expected.count == 10
    assert calibration.digest == expected.digest
    assert dynamic.keys() == fixed.keys()
    for name, observer in dynamic.items():
        assert isinstance(observer, Histogram)
        assert vars(fixed[name]).keys() == vars(observer).keys()
        for attribute, value in vars(observer).items():
            np.testing.assert_array_equal(getattr(fixed[name], attribute), value)
    for attribute in ("lo", "hi", "mean", "std"):
        np.testing.assert_allclose(
            getattr(calibration.moments, attribute),
            getattr(expected.moments, attribute),
            rtol=1e-12,
        )


def test_what_is_observed_is_what_the_model_computes() -> None:
    _, seen = collect("4", NOISE)
    values = Session(build("N"), ["c", "r"]).run({"x": NOISE}) | {"x": NOISE}
    for name, observer in seen.items():
        assert isinstance(observer, Histogram)
        assert observer.count == observer.counts.sum() == values[name].size
        assert (observer.lo, observer.hi) == (values[name].min(), values[name].max())


def test_a_second_pass_starts_afresh() -> None:
    calibration, _ = collect("N", NOISE)
    first = calibration.digest
    seen = calibration.collect(build("N"), {"y": MinMax()})["y"]
    assert isinstance(seen, MinMax)
    assert (calibration.count, calibration.digest, seen.count) == (10, first, 50)


def test_the_digest_tells_the_data_apart() -> None:
    other = NOISE.copy()
    other[9, 2, 7, 7] += 1
    digests = {collect("N", x)[0].digest for x in (NOISE, NOISE[:9], NOISE[::-1], other)}
    assert len(digests) == 4


def test_progress_adds_up_to_the_samples() -> None:
    steps: list[tuple[str, int, int | None]] = []
    samples = Arrays({"x": NOISE}, range(10))
    calibration = Calibration(samples, PRESETS["raw"], lambda *step: steps.append(step))
    calibration.collect(build("4"), {"y": MinMax()})
    assert steps == [("calibrating", 4, 10), ("calibrating", 4, 10), ("calibrating", 2, 10)]


def test_data_that_do_not_fit_the_model_are_refused() -> None:
    with pytest.raises(CalibrationError, match="input x takes"):
        collect("N", NOISE[:, :, :7])


# -- warnings -------------------------------------------------------------------------------------


def test_raw_pixels_under_a_normalization_are_noticed() -> None:
    found = collect("N", NOISE, NORMALIZED)[0].warnings()
    assert len(found) == 3
    for channel, text in enumerate(found):
        assert text.startswith(f"channel {channel} of the calibration data has mean 1")
        assert "range [0, 255]; the declared normalization maps 0..255 to [-" in text
        assert text.endswith("check the preprocessing")
        assert "\n" not in text


def test_normalized_pixels_under_none_are_noticed() -> None:
    x = (NOISE / 255 - 0.45) / 0.225
    assert len(collect("N", x, PRESETS["raw"])[0].warnings()) == 3


@pytest.mark.parametrize(("value", "odd"), [(300, 1), (260, 0), (-10, 0), (-20, 1)])
def test_values_beyond_black_and_white_are_noticed(value: float, odd: int) -> None:
    x = NOISE.copy()
    x[0, 0, 0, 0] = value
    assert len(collect("N", x, PRESETS["raw"])[0].warnings()) == odd


def test_specks_on_black_are_noticed() -> None:
    x = np.where(NOISE > 250, NOISE, 0)
    assert len(collect("N", x, PRESETS["raw"])[0].warnings()) == 3


def test_one_odd_channel_is_named() -> None:
    x = NOISE.copy()
    x[:, 1] = 100
    (found,) = collect("N", x, PRESETS["raw"])[0].warnings()
    assert found.startswith("channel 1 ")


def image_warnings(folder: Path, preprocess: Preprocess, *pixels: np.ndarray) -> list[str]:
    for index, array in enumerate(pixels):
        Image.fromarray(array).save(folder / f"{index}.png")
    model = build("N")
    samples = open_samples(folder, Session(model).inputs, preprocess)
    calibration = Calibration(samples, preprocess)
    calibration.collect(model, {"y": MinMax()})
    return calibration.warnings()


@pytest.mark.parametrize("shade", [0, 128, 255])
def test_blank_images_are_noticed(tmp_path: Path, shade: int) -> None:
    blank = np.full((8, 8, 3), shade, np.uint8)
    assert len(image_warnings(tmp_path, NORMALIZED, blank, blank)) == 3


@pytest.mark.parametrize("preprocess", [NORMALIZED, PRESETS["raw"], PRESETS["unit"]])
@pytest.mark.parametrize(
    ("mean", "spread"), [(128, 50), (60, 40), (200, 40)], ids=["ordinary", "dark", "bright"]
)
def test_ordinary_images_pass_without_a_word(
    tmp_path: Path, preprocess: Preprocess, mean: float, spread: float
) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(mean, spread, (4, 8, 8, 3)).clip(0, 255).astype(np.uint8)
    assert image_warnings(tmp_path, preprocess, *noise) == []


def test_data_that_are_no_images_are_not_judged() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]>'
        " main (float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }"
    )
    samples = Arrays({"x": np.full((4, 3), 1e6, np.float32)}, range(4))
    calibration = Calibration(samples, NORMALIZED)
    calibration.collect(from_proto(proto), {"y": MinMax()})
    assert calibration.moments is None
    assert calibration.warnings() == []


def test_other_channel_counts_are_not_judged() -> None:
    gray = Preprocess(color="gray", scale=1 / 255)
    assert collect("N", NOISE, gray)[0].warnings() == []


@pytest.mark.parametrize(
    "kind", ["images", "unreadable", "another shape", "arrays", "feeds", "pairs"]
)
def test_what_judges_chooses_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    source: Any = tmp_path
    if kind in ("images", "unreadable", "another shape"):
        for i, x in enumerate(pixels):
            Image.fromarray(x).save(tmp_path / f"{i:02}.png")
        if kind == "unreadable":
            (tmp_path / "00.png").write_bytes(b"broken")
        elif kind == "another shape":
            Image.fromarray(pixels[0].repeat(2, axis=0)).save(tmp_path / "00.png")
    else:
        x = pixels.transpose(0, 3, 1, 2).astype(np.float32)
        source = [{"x": part} for part in np.split(x, 40 if kind == "feeds" else 20)]
        if kind == "arrays":
            source = tmp_path / "x.npy"
            np.save(source, x)
    model = from_proto(
        onnx.parser.parse_model(
            """<ir_version: 10, opset_import: ["" : 21]>
            main (float[N,3,H,W] x) => (float[N,3,1,1] y) { y = GlobalAveragePool(x) }"""
        )
    )
    samples = open_samples(source, Session(model).inputs, PRESETS["raw"], 37)
    calibration = Calibration(samples, PRESETS["raw"])
    seen = set()

    def walk(model: Model, written: Model, steps: Any, batches: list[Batch], *rest: Any) -> Any:
        seen.update(row.tobytes() for b in batches for row in b.trim(b.feeds["x"]))
        return {}

    monkeypatch.setattr("onnxq.samples.calibration.walk", walk)
    calibration.walk(model, model, [], judged=True)
    lessons = calibration.teach(model, lambda model: model)
    held = {row.tobytes() for row in lessons.feeds["x"][lessons.held]}
    assert len(held) >= 3
    assert not held & seen
    assert {row.tobytes() for row in lessons.feeds["x"]} <= held | seen
