"""How an image becomes a model's input: one value, used for calibration and validation alike."""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from onnxq.errors import InputError
from onnxq.runtime import Input
from onnxq.spec import Array, Floats

Size = tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
METADATA_KEY = "onnxq.preprocess"


class Preprocess(BaseModel):
    """Steps from an image to a tensor: color, resize, crop, ``(scale * uint8 - mean) / std``.

    Attributes:
        color: Channel order, or one gray channel. None is what the model takes, see ``fitted``.
        resize: Length of the shorter side, or (height, width). None leaves the size alone; if the
            model's input size is fixed, images of another size are then resized to it.
        crop: (height, width) cut from the center after resizing.
        resample: Interpolation of the resize.
        scale: Multiplies the uint8 values.
        mean: Subtracted after ``scale``; one number, or one per channel in the order of ``color``.
        std: Divides last.
        layout: Axis order of the tensor. None is what the model takes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    color: Literal["rgb", "bgr", "gray"] | None = None
    resize: Annotated[int, Field(gt=0)] | Size | None = None
    crop: Size | None = None
    resample: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Literal["nchw", "nhwc"] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ValueError(f"{name} has {len(values)} numbers for {self.channels} channels")
        if 0.0 in self.std or self.scale == 0.0:
            raise ValueError("std and scale must not be zero")
        return self

    @property
    def channels(self) -> int:
        """Channels of the tensor."""
        return 1 if self.color == "gray" else 3

    @property
    def adapts(self) -> bool:
        """Whether images take on the model's fixed size, for want of a declared one."""
        return self.resize is None and self.crop is None

    @property
    def channel_axis(self) -> int:
        """Channel axis of a batch."""
        return 3 if self.layout == "nhwc" else 1

    @property
    def expected_range(self) -> tuple[Floats, Floats]:
        """What pixel values 0 and 255 become, each (channels,), smaller end first."""
        ends = (np.array([[0.0], [255.0]]) * self.scale - self.mean) / self.std
        ends = np.broadcast_to(ends, (2, self.channels))
        return ends.min(axis=0), ends.max(axis=0)

    def fitted(self, target: Input | None) -> Self:
        """With color and layout as an input of images has them, where they are left open.

        The channels are on the last axis if that has as many as images have, 3 or 1, and the second
        has not; and RGB unless they are one, to which the numbers of ``mean`` and ``std`` apply.
        """
        shape = target.shape if target and target.shape and len(target.shape) == 4 else (None,) * 4
        counts = {"gray": (1,), None: (3, 1)}.get(self.color, (3,))
        last = shape[3] in counts and shape[1] not in counts
        layout = self.layout or ("nhwc" if last else "nchw")
        single = shape[3 if layout == "nhwc" else 1] == len(self.mean) == len(self.std) == 1
        color = self.color or ("gray" if single else "rgb")
        return self.model_copy(update={"color": color, "layout": layout})

    def apply(self, image: Image.Image, fixed: tuple[int, int] | None = None) -> Floats:
        """The tensor of one image, float32, (1, c, h, w) or (1, h, w, c).

        Args:
            image: Any image Pillow reads.
            fixed: Input (height, width) of the model, used where neither resize nor crop is set.

        Raises:
            ValueError: The range of its pixels cannot be known: floats, or integers beyond 16 bits.
        """
        image = _eight_bit(image).convert("L" if self.color == "gray" else "RGB")
        filter_ = Image.Resampling[self.resample.upper()]
        size = (image.height, image.width)
        if isinstance(self.resize, int):
            # Truncated, and the crop's corner rounded, as torchvision does.
            short = min(size)
            size = (self.resize * size[0] // short, self.resize * size[1] // short)
        elif self.resize is not None:
            size = self.resize
        elif self.adapts and fixed is not None:
            size = fixed
        if size != (image.height, image.width):
            image = image.resize((size[1], size[0]), filter_)
        if self.crop is not None:
            top, left = (round((s - c) / 2) for s, c in zip(size, self.crop, strict=True))
            image = image.crop((left, top, left + self.crop[1], top + self.crop[0]))
        pixels = np.asarray(image, np.float32).reshape(image.height, image.width, self.channels)
        if self.color == "bgr":
            pixels = pixels[:, :, ::-1]
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        x = (pixels * np.float32(self.scale) - mean) / std
        x = x if self.layout == "nhwc" else x.transpose(2, 0, 1)
        return np.ascontiguousarray(x, np.float32)[None]


IMAGENET = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PRESETS = {
    "imagenet": Preprocess(resize=256, crop=(224, 224), **IMAGENET),
    "unit": Preprocess(scale=1 / 255),
    "raw": Preprocess(),
}


def read(wish: str | Path | Preprocess) -> Preprocess:
    """A preset's name, a TOML file or a Hugging Face preprocessor_config.json as a value.

    Raises:
        InputError: No such preset or file, or a file that does not describe preprocessing.
    """
    if isinstance(wish, Preprocess):
        return wish
    if str(wish) in PRESETS:
        return PRESETS[str(wish)]
    path = Path(wish)
    if not path.is_file():
        raise InputError(f"{path}: neither a file nor one of the presets {', '.join(PRESETS)}")
    try:
        if path.suffix == ".json":
            return _from_hugging_face(json.loads(path.read_text(encoding="utf-8")))
        return Preprocess.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as cause:
        raise InputError(f"{path}: {explain(cause)}") from cause
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise InputError(f"{path}: not a preprocessing file ({cause})") from cause


def resolve(
    wish: str | Path | Preprocess | None,
    model: Path | None,
    metadata: dict[str, str],
    inputs: Sequence[Input],
) -> tuple[Preprocess, str]:
    """The preprocessing to use, fitted to the model's first input, and where it came from.

    In order: what the caller wishes, ``MODEL_STEM.preprocess.toml`` beside the model, what the
    model's metadata carry, and last an assumption that the report must announce, which then is
    where it came from (``ASSUMED`` and what follows).

    Raises:
        InputError: What was found first does not describe preprocessing.
    """
    target = inputs[0] if inputs else None
    if wish is not None:
        origin = "given" if isinstance(wish, Preprocess) else str(wish)
        return read(wish).fitted(target), origin
    if model is not None:
        sidecar = model.with_name(f"{model.stem}.preprocess.toml")
        if sidecar.is_file():
            return read(sidecar).fitted(target), sidecar.name
    if (carried := declared(metadata)) is not None:
        return carried.fitted(target), "the model's metadata"
    return _assumed(target)


ASSUMED = "assumed: "


def _assumed(target: Input | None) -> tuple[Preprocess, str]:
    """What most models like this one take, and the sentence that says so."""
    if target is not None and np.issubdtype(target.dtype, np.integer):
        found, numbers = Preprocess().fitted(target), "0 to 255"
    else:
        found, numbers = Preprocess(scale=1 / 255).fitted(target), "/255"
        if found.color != "gray":
            found = found.model_copy(update=IMAGENET)
            numbers = "/255, ImageNet mean and std"
    color = "gray" if found.color == "gray" else "RGB"
    return found, f"{ASSUMED}{color}, {numbers}; give --preprocess if that is wrong"


def declared(metadata: dict[str, str]) -> Preprocess | None:
    """The preprocessing that a model's metadata carry, if they do.

    Raises:
        InputError: What they carry does not describe preprocessing.
    """
    if METADATA_KEY not in metadata:
        return None
    try:
        return Preprocess.model_validate_json(metadata[METADATA_KEY])
    except ValidationError as cause:
        raise InputError(f"metadata {METADATA_KEY} of the model: {explain(cause)}") from cause


def as_input(x: Floats, dtype: np.dtype[Any]) -> Array:
    """``x`` in the dtype of a model's input; integers are rounded and saturated.

    Raises:
        TypeError: It does not hold real numbers.
    """
    if x.dtype.kind not in "biuf":
        raise TypeError(f"of {x.dtype}")
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        x = np.clip(np.rint(x), limits.min, limits.max)
    with np.errstate(over="ignore"):  # whoever reads the samples refuses what is infinite
        return x.astype(dtype, copy=False)


def explain(error: ValidationError) -> str:
    """A pydantic error on one line: where and what."""
    return "; ".join(
        ": ".join(
            filter(None, (".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, ")))
        )
        for e in error.errors()
    )


def _eight_bit(image: Image.Image) -> Image.Image:
    """The image in a mode that ``Image.convert`` does not clip: 16-bit integers made 8-bit.

    Raises:
        ValueError: The range of its pixels cannot be known.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floats of an unknown range: save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    pixels = np.asarray(image)
    lo, hi = int(pixels.min()), int(pixels.max())
    if lo < 0 or hi > 65535:
        raise ValueError(f"its pixels go from {lo} to {hi}: save it with 8 or 16 bits")
    # Mode I is what Pillow makes of some 16-bit files, but says nothing of the bits by itself.
    step = 1 if image.mode == "I" and hi <= 255 else 257
    return Image.fromarray(np.rint(pixels / step).astype(np.uint8))


def _from_hugging_face(config: dict[str, Any]) -> Preprocess:
    """Read the keys of an image processor's configuration."""
    if "image_mean" not in config and "do_normalize" not in config and "size" not in config:
        raise ValueError("no image_mean, do_normalize or size: not a preprocessor_config.json")
    values: dict[str, Any] = {}
    if config.get("do_resize", True) and "size" in config:
        values["resize"] = _side(config["size"])
    if config.get("do_center_crop", False) and "crop_size" in config:
        crop = _side(config["crop_size"])
        values["crop"] = (crop, crop) if isinstance(crop, int) else crop
    if config.get("do_rescale", True):
        values["scale"] = config.get("rescale_factor", 1 / 255)
    if config.get("do_normalize", True) and "image_mean" in config:
        values |= {"mean": config["image_mean"], "std": config["image_std"]}
    names = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
    values["resample"] = names[config.get("resample", 2)]
    return Preprocess.model_validate(values)


def _side(size: int | dict[str, int]) -> int | tuple[int, int]:
    if isinstance(size, int):
        return size
    return size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])
