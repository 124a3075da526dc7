"""The models trained here: the files are those of the manifest, and as accurate as it says."""

import hashlib
import tomllib
from pathlib import Path

import numpy as np
import pytest

from onnxq.runtime import Session

MANIFEST = Path(__file__).parents[2] / "models" / "manifest.toml"
ENTRIES = tomllib.loads(MANIFEST.read_text(encoding="utf-8"))["model"]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["name"])
def test_files_are_those_of_the_manifest(entry: dict) -> None:
    for part in (entry, entry["data"]):
        file = MANIFEST.parent / part["file"]
        assert hashlib.sha256(file.read_bytes()).hexdigest() == part["sha256"]


def test_the_digits_cnn_is_as_accurate_as_the_manifest_says() -> None:
    entry = next(e for e in ENTRIES if e["name"] == "digits-cnn")
    digits = np.load(MANIFEST.parent / entry["data"]["file"])
    x = digits["test"].astype(np.float32) / np.float32(16)
    logits = Session(MANIFEST.parent / entry["file"]).run({"image": x})["logits"]
    correct = int((logits.argmax(axis=1) == digits["labels"]).sum())
    assert len(x) == 597
    assert correct == entry["accuracy"]["correct"]
