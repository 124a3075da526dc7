"""The manifest: what the zoo holds, and how accurate a file of it is. Needs no torch."""

import hashlib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import images
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from shapes import paint

from onnxq.runtime import Session
from onnxq.samples.preprocess import Preprocess

ROOT = Path(__file__).resolve().parent
MANIFEST = ROOT / "manifest.toml"
BATCH = 250

Entry = dict[str, Any]


def entries() -> list[Entry]:
    """The models of the manifest, in its order."""
    models: list[Entry] = tomllib.loads(MANIFEST.read_text(encoding="utf-8"))["model"]
    return models


def digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_batches(entry: Entry, data: Path) -> Iterator[tuple[NDArray[np.float32], NDArray[Any]]]:
    """The model's inputs and the labels of the images, or pixels, that nothing was chosen on."""
    preprocess = Preprocess.model_validate(entry["input"]["preprocess"])
    if "data" in entry:
        held = np.load(ROOT / entry["data"]["file"])
        pixels, labels = held["test"].transpose(0, 2, 3, 1), held["labels"].astype(np.int64)
    else:
        pixels, labels = images.read(data, "val")
    if entry["accuracy"]["of"] == "pixels":
        painted, labels = paint(pixels.transpose(0, 3, 1, 2), np.random.default_rng(0))
        pixels = painted.transpose(0, 2, 3, 1)
    for start in range(0, len(pixels), BATCH):
        some = np.s_[start : start + BATCH]
        tensors = [preprocess.apply(Image.fromarray(p.squeeze())) for p in pixels[some]]
        yield np.concatenate(tensors), labels[some]


def score(entry: Entry, file: Path, data: Path) -> tuple[int, int]:
    """Images, or pixels, that onnxruntime labels right with ``file``, and how many there are."""
    session, right, count = Session(file), 0, 0
    for x, labels in test_batches(entry, data):
        found = session.run({entry["input"]["name"]: x})[entry["output"]["name"]].argmax(axis=1)
        right, count = right + int((found == labels).sum()), count + labels.size
    return right, count
