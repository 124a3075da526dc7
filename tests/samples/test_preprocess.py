"""From an image to a tensor: what numpy would do, and what a file can say."""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from onnxq.errors import InputError
from onnxq.runtime import Input
from onnxq.samples.preprocess import METADATA_KEY, PRESETS, Preprocess, as_input, read, resolve

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
IMAGE = Image.fromarray(PIXELS)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def nchw(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32).transpose(2, 0, 1)[None]


def luma(pixels: np.ndarray) -> np.ndarray:
    """ITU-R 601-2 as Pillow computes it, in 16-bit fixed point."""
    weighted = pixels.astype(np.int64) @ np.array([19595, 38470, 7471])
    return ((weighted + 0x8000) >> 16)[..., None]


def nearest(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Every new pixel takes the old one under its center."""
    rows = ((np.arange(height) + 0.5) * pixels.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * pixels.shape[1] / width).astype(int)
    return pixels[rows][:, columns]


# -- apply ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ({}, nchw(PIXELS)),
        ({"color": "bgr"}, nchw(PIXELS[:, :, ::-1])),
        ({"color": "gray"}, nchw(luma(PIXELS))),
        ({"layout": "nhwc"}, PIXELS[None]),
        ({"color": "gray", "layout": "nhwc"}, luma(PIXELS)[None]),
        ({"scale": 0.5, "mean": [3], "std": [2]}, (nchw(PIXELS) / 2 - 3) / 2),
        ({"mean": [1, 2, 3], "std": [4, 5, 6]}, nchw((PIXELS - [1.0, 2, 3]) / [4, 5, 6])),
        (
            {"color": "bgr", "mean": [1, 2, 3]},
            nchw(PIXELS[:, :, ::-1] - np.array([1.0, 2, 3])),
        ),
        ({"layout": "nhwc", "mean": [1, 2, 3]}, (PIXELS - np.array([1.0, 2, 3]))[None]),
    ],
    ids=str,
)
def test_color_layout_and_numbers(steps: dict[str, Any], expected: np.ndarray) -> None:
    x = Preprocess(**steps).apply(IMAGE)
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    np.testing.assert_allclose(x, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("steps", "fixed", "expected"),
    [
        ({"resize": 4}, None, nearest(PIXELS, 4, 6)),
        ({"resize": 12}, None, nearest(PIXELS, 12, 18)),
        ({"resize": 5}, None, nearest(PIXELS, 5, 7)),  # 7.5 is truncated
        ({"resize": (3, 5)}, None, nearest(PIXELS, 3, 5)),
        ({"crop": (4, 5)}, None, PIXELS[1:5, 2:7]),
        ({"crop": (3, 4)}, None, PIXELS[2:5, 2:6]),  # corners 1.5 and 2.5 both round to 2
        ({"crop": (8, 9)}, None, np.pad(PIXELS, ((1, 1), (0, 0), (0, 0)))),
        ({"resize": 12, "crop": (10, 12)}, None, nearest(PIXELS, 12, 18)[1:11, 3:15]),
        ({}, (2, 3), nearest(PIXELS, 2, 3)),
        ({}, None, PIXELS),
        ({"resize": 4}, (2, 3), nearest(PIXELS, 4, 6)),
        ({"crop": (4, 5)}, (2, 3), PIXELS[1:5, 2:7]),
    ],
    ids=str,
)
def test_resize_then_crop_from_the_center(
    steps: dict[str, Any], fixed: tuple[int, int] | None, expected: np.ndarray
) -> None:
    x = Preprocess(resample="nearest", **steps).apply(IMAGE, fixed)
    np.testing.assert_array_equal(x, nchw(expected))


def test_the_shorter_side_is_the_one_resized() -> None:
    tall = Image.fromarray(PIXELS.transpose(1, 0, 2))
    assert Preprocess(resize=4).apply(tall).shape == (1, 3, 6, 4)


@pytest.mark.parametrize("resample", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_resample_is_pillows_filter(resample: str) -> None:
    expected = np.asarray(IMAGE.resize((5, 4), Image.Resampling[resample.upper()]))
    x = Preprocess(resize=(4, 5), resample=resample).apply(IMAGE)
    np.testing.assert_array_equal(x, nchw(expected))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
@pytest.mark.parametrize(("color", "channels"), [("rgb", 3), ("gray", 1)])
def test_images_of_any_mode_have_the_declared_channels(
    mode: str, color: str, channels: int
) -> None:
    x = Preprocess(color=color).apply(IMAGE.convert(mode))
    assert x.shape == (1, channels, 6, 9)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path, suffix: str, color: str) -> None:
    values = np.array([[0, 128, 129, 257, 385], [386, 32768, 65278, 65406, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as image:
        x = Preprocess(color=color).apply(image)
    expected = [[0, 0, 1, 1, 1], [2, 128, 254, 254, 255]]  # to nearest
    np.testing.assert_array_equal(x, np.broadcast_to(np.array(expected), x.shape))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I"])
def test_every_mode_of_wide_integers_is_scaled(mode: str) -> None:
    assert Preprocess().apply(Image.new(mode, (2, 3), 51400)).tolist() == [[[[200] * 2] * 3] * 3]


def test_few_of_sixteen_bits_are_no_eight_bits_but_in_a_mode_without_bits() -> None:
    dark = np.array([[0, 100, 255]])
    for pixels, expected in ((np.uint16(dark), [0, 0, 1]), (np.int32(dark), [0, 100, 255])):
        x = Preprocess(color="gray").apply(Image.fromarray(pixels))
        assert x.ravel().tolist() == expected


@pytest.mark.parametrize(
    ("pixels", "complaint"),
    [
        (np.array([[0.5, 200]], np.float32), "floats"),
        (np.array([[0, 65536]], np.int32), "from 0 to 65536"),
        (np.array([[-1, 200]], np.int32), "from -1 to 200"),
    ],
    ids=["floats", "too large", "negative"],
)
def test_pixels_of_an_unknown_range_are_refused(pixels: np.ndarray, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Preprocess().apply(Image.fromarray(pixels))


def test_alpha_is_dropped() -> None:
    image = IMAGE.copy()
    image.putalpha(7)
    np.testing.assert_array_equal(Preprocess().apply(image), nchw(PIXELS))


number = st.floats(-100, 100).filter(lambda x: abs(x) > 1e-3)
sides = st.integers(1, 4000)


@st.composite
def preprocesses(draw: st.DrawFn) -> Preprocess:
    color = draw(st.sampled_from(["rgb", "bgr", "gray"]))
    count = draw(st.sampled_from([1, 1 if color == "gray" else 3]))
    return Preprocess(
        color=color,
        resize=draw(st.none() | sides | st.tuples(sides, sides)),
        crop=draw(st.none() | st.tuples(sides, sides)),
        resample=draw(st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"])),
        scale=draw(number),
        mean=draw(st.lists(st.floats(-100, 100), min_size=count, max_size=count)),
        std=draw(st.lists(number, min_size=count, max_size=count)),
        layout=draw(st.sampled_from(["nchw", "nhwc"])),
    )


@given(preprocesses())
def test_the_expected_range_is_that_of_black_and_white(wish: Preprocess) -> None:
    plain = wish.model_copy(update={"resize": None, "crop": None})
    both = [plain.apply(Image.new("RGB", (1, 1), c)).reshape(-1) for c in ("black", "white")]
    lo, hi = wish.expected_range
    assert lo.shape == hi.shape == (wish.channels,)
    np.testing.assert_allclose(lo, np.min(both, axis=0), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(hi, np.max(both, axis=0), rtol=1e-4, atol=1e-3)
    assert plain.apply(IMAGE).shape[wish.channel_axis] == wish.channels


# -- presets and files ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "white"),
    [
        ("imagenet", (1, 3, 224, 224), (1 - np.array(IMAGENET_MEAN)) / IMAGENET_STD),
        ("unit", (1, 3, 300, 400), [1.0]),
        ("raw", (1, 3, 300, 400), [255.0]),
    ],
)
def test_presets(name: str, shape: tuple[int, ...], white: np.ndarray) -> None:
    x = read(name).apply(Image.new("RGB", (400, 300), "white"))
    assert x.shape == shape
    expected = np.reshape(white, (1, -1, 1, 1))
    np.testing.assert_allclose(x, np.broadcast_to(expected, shape), rtol=1e-6)


@given(preprocesses())
def test_toml_and_metadata_give_back_what_they_were_given(wish: Preprocess) -> None:
    toml = tomli_w.dumps(wish.model_dump(mode="json", exclude_none=True))
    assert Preprocess.model_validate(tomllib.loads(toml)) == wish
    assert resolve(None, None, {METADATA_KEY: wish.model_dump_json()}, [])[0] == wish


def test_a_toml_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "steps.toml"
    file.write_text('color = "bgr"\nresize = [240, 320]\nscale = 0.5\nmean = [1, 2, 3]\n')
    expected = Preprocess(color="bgr", resize=(240, 320), scale=0.5, mean=(1, 2, 3))
    assert read(file) == read(str(file)) == expected
    assert read(expected) is expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {
                "do_resize": True,
                "size": {"shortest_edge": 256},
                "resample": 3,
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 200},
                "do_rescale": True,
                "rescale_factor": 0.00392156862745098,
                "do_normalize": True,
                "image_mean": IMAGENET_MEAN,
                "image_std": IMAGENET_STD,
            },
            Preprocess(
                resize=256, crop=(224, 200), resample="bicubic", scale=1 / 255,
                mean=IMAGENET_MEAN, std=IMAGENET_STD,
            ),
        ),
        (
            {"size": {"height": 384, "width": 320}, "resample": 0},
            Preprocess(resize=(384, 320), resample="nearest", scale=1 / 255),
        ),
        ({"size": 224, "do_rescale": False}, Preprocess(resize=224)),
        (
            {"size": 224, "do_center_crop": True, "crop_size": 192},
            Preprocess(resize=224, crop=(192, 192), scale=1 / 255),
        ),
        ({"size": 224, "do_resize": False, "crop_size": 192}, Preprocess(scale=1 / 255)),
        (
            {"do_normalize": False, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
            Preprocess(scale=1 / 255),
        ),
        ({"size": 224, "resample": 1}, Preprocess(resize=224, resample="lanczos", scale=1 / 255)),
    ],
)  # fmt: skip
def test_hugging_face_files_are_read(
    tmp_path: Path, config: dict[str, Any], expected: Preprocess
) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(config))
    assert read(file) == expected


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.toml", "color = ", "not a preprocessing file"),
        ("a.toml", "colour = 'rgb'", "colour: Extra inputs are not permitted"),
        ("a.toml", "color = 'cmyk'", "color: "),
        ("a.toml", "mean = [1, 2]", "mean has 2 numbers for 3 channels"),
        ("a.toml", "std = [1, 0, 1]", "std and scale must not be zero"),
        ("a.toml", "scale = 0", "std and scale must not be zero"),
        ("a.toml", "crop = 224", "crop: "),
        ("a.toml", "crop = [0, 224]", "crop.0: "),
        ("a.toml", "resize = -1\nstd = 'x'", "std: "),
        ("a.toml", b"\xff\xfe", "not a preprocessing file"),
        ("a.json", "{", "not a preprocessing file"),
        ("a.json", "[]", "not a preprocessor_config.json"),
        ("a.json", "1", "not a preprocessing file"),
        ("a.json", '{"crop_size": 3}', "not a preprocessor_config.json"),
        ("a.json", '{"size": {"longest_edge": 3}}', "height"),
        ("a.json", '{"size": "big"}', "not a preprocessing file"),
        ("a.json", '{"size": 3, "resample": 9}', "not a preprocessing file (9)"),
        ("a.json", '{"image_mean": [0, 0, 0]}', "image_std"),
        ("a.json", '{"image_mean": 1, "image_std": 1}', "mean: "),
    ],
)
def test_a_bad_file_is_refused_in_one_line(
    tmp_path: Path, name: str, content: str | bytes, complaint: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        read(file)
    text = str(caught.value)
    assert text.startswith(f"{file}: ")
    assert complaint in text
    assert "\n" not in text


def test_a_missing_file_names_the_presets(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="imagenet, unit, raw"):
        read(tmp_path / "none.toml")


# -- where it comes from --------------------------------------------------------------------------


def test_a_wish_beats_the_sidecar_beats_the_metadata_beats_the_assumption(tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    metadata = {METADATA_KEY: PRESETS["raw"].model_dump_json()}
    assumed, origin = resolve(None, model, {}, [])
    assert origin.startswith("assumed: RGB, /255, ImageNet mean and std")
    assert (assumed.mean, assumed.std, assumed.resize) == (IMAGENET_MEAN, IMAGENET_STD, None)
    raw, unit = (PRESETS[name].fitted(None) for name in ("raw", "unit"))
    assert (raw.color, raw.layout) == ("rgb", "nchw")
    assert resolve(None, model, metadata, []) == (raw, "the model's metadata")
    (tmp_path / "net.preprocess.toml").write_text("scale = 0.25")
    assert resolve(None, model, metadata, []) == (
        Preprocess(scale=0.25).fitted(None),
        "net.preprocess.toml",
    )
    assert resolve("unit", model, metadata, []) == (unit, "unit")
    assert resolve(PRESETS["unit"], model, metadata, []) == (unit, "given")


def image_input(*shape: int | None, dtype: str = "float32") -> Input:
    return Input("x", np.dtype(dtype), shape)


@pytest.mark.parametrize(
    ("steps", "shape", "color", "layout"),
    [
        ({}, (None, 3, 224, 224), "rgb", "nchw"),
        ({}, (None, 224, 224, 3), "rgb", "nhwc"),
        ({}, (None, None, None, 3), "rgb", "nhwc"),
        ({}, (None, None, None, None), "rgb", "nchw"),
        ({}, (1, 1, 28, 28), "gray", "nchw"),
        ({}, (1, 28, 28, 1), "gray", "nhwc"),
        ({}, (1, 3, 3, 3), "rgb", "nchw"),
        ({}, (1, 3, 224, 1), "rgb", "nchw"),
        ({}, (1, 4, 32, 32), "rgb", "nchw"),
        ({}, (1, 10), "rgb", "nchw"),
        ({"color": "bgr"}, (1, 28, 28, 3), "bgr", "nhwc"),
        ({"color": "bgr"}, (1, 28, 28, 1), "bgr", "nchw"),
        ({"color": "gray"}, (1, 28, 28, 1), "gray", "nhwc"),
        ({"color": "gray"}, (1, 224, 224, 3), "gray", "nchw"),
        ({"layout": "nchw"}, (1, 224, 224, 3), "rgb", "nchw"),
        ({"layout": "nhwc"}, (1, 3, 224, 224), "rgb", "nhwc"),
        ({"mean": [1, 2, 3]}, (1, 1, 28, 28), "rgb", "nchw"),
    ],
    ids=str,
)
def test_what_is_left_open_is_as_the_model_takes_it(
    steps: dict[str, Any], shape: tuple[int | None, ...], color: str, layout: str
) -> None:
    wish = Preprocess(scale=0.5, **steps)
    fitted = wish.fitted(image_input(*shape))
    assert fitted == wish.model_copy(update={"color": color, "layout": layout})


@pytest.mark.parametrize(
    ("target", "sentence", "white"),
    [
        (image_input(1, 224, 224, 3), "RGB, /255, ImageNet mean and std", None),
        (image_input(1, 1, 28, 28), "gray, /255", [1.0]),
        (image_input(1, 300, 300, 3, dtype="uint8"), "RGB, 0 to 255", [255.0] * 3),
        (image_input(1, 28, 28, 1, dtype="uint8"), "gray, 0 to 255", [255.0]),
    ],
    ids=str,
)
def test_what_is_assumed_fits_the_model(
    target: Input, sentence: str, white: list[float] | None
) -> None:
    assumed, origin = resolve(None, None, {}, [target])
    assert origin == f"assumed: {sentence}; give --preprocess if that is wrong"
    expected = (1 - np.array(IMAGENET_MEAN)) / IMAGENET_STD if white is None else white
    np.testing.assert_allclose(assumed.expected_range[1], expected, rtol=1e-6)
    sizes = target.shape[2:4] if assumed.layout == "nchw" else target.shape[1:3]
    assert assumed.apply(IMAGE, sizes).shape == target.shape


@pytest.mark.parametrize("text", ["", "{", "[]", '{"mean": []}', '{"colour": "rgb"}'])
def test_bad_metadata_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError, match=METADATA_KEY) as caught:
        resolve(None, None, {METADATA_KEY: text}, [])
    assert "\n" not in str(caught.value)


# -- the dtype of the input -----------------------------------------------------------------------


def test_integer_inputs_round_and_saturate() -> None:
    x = np.array([-300.0, -0.5, 0.5, 1.5, 2.6, 300.0], np.float32)
    assert as_input(x, np.dtype(np.uint8)).tolist() == [0, 0, 0, 2, 3, 255]
    assert as_input(x, np.dtype(np.int8)).tolist() == [-128, 0, 0, 2, 3, 127]
    assert as_input(x, np.dtype(np.int8)).dtype == np.int8


def test_float_inputs_are_not_copied() -> None:
    x = np.ones(3, np.float32)
    assert as_input(x, np.dtype(np.float32)) is x
    assert as_input(x, np.dtype(np.float16)).dtype == np.float16
