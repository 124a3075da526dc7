"""The models trained here: the files are those of the manifest, run, and are as accurate."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import zoo

import onnxq
from onnxq.runtime import Session

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "cifar10"
ENTRIES = zoo.entries()
FILES = [(entry, file) for entry in ENTRIES for file in (entry, *entry["exports"])]

# Images whose two best classes are so near that another processor may tell them apart otherwise.
NEAR = 3
# What takes minutes to run on all images is run on some.
SLOW = {"densenet-bc-100"}

each_entry = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["name"])
each_file = pytest.mark.parametrize(
    ("entry", "file"), FILES, ids=[f"{e['name']}-{f['form']}" for e, f in FILES]
)


def images_of(entry: dict) -> Path:
    """The folder to measure on."""
    if "data" not in entry and not SHARED.exists():
        pytest.skip("the shared images are not here")
    return SHARED


@each_file
def test_files_are_those_of_the_manifest(entry: dict, file: dict) -> None:
    for part in (file, *filter(None, [entry.get("data")])):
        assert zoo.digest(zoo.ROOT / part["file"]) == part["sha256"]


@each_file
def test_every_form_of_a_network_computes_the_same_at_any_batch(entry: dict, file: dict) -> None:
    model = onnx.load(zoo.ROOT / file["file"])
    onnx.checker.check_model(zoo.ROOT / file["file"], full_check=True)
    rng = np.random.default_rng(0)
    reference, form = Session(zoo.ROOT / entry["file"]), Session(zoo.ROOT / file["file"])
    assert any(n.op_type == "BatchNormalization" for n in model.graph.node) == (
        file["form"] == "unfolded" or entry["name"] == "densenet-bc-100"
    )
    for batch in (1, 3):
        feeds = {"image": rng.standard_normal((batch, *entry["input"]["shape"][1:]), np.float32)}
        (expected,), (found,) = (s.run(feeds).values() for s in (reference, form))
        assert found.shape == (batch, *entry["output"]["shape"][1:])
        np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


@each_file
def test_a_file_says_nothing_of_the_machine_it_was_made_on(entry: dict, file: dict) -> None:
    content = (zoo.ROOT / file["file"]).read_bytes()
    assert b"site-packages" not in content
    assert str(Path(__file__).parents[2]).encode() not in content


def test_all_files_together_are_small_enough_for_a_repository() -> None:
    assert sum(file.stat().st_size for file in zoo.ROOT.glob("*.onnx")) <= 20_000_000


@pytest.mark.slow
@each_entry
def test_a_model_is_as_accurate_as_the_manifest_says(
    entry: dict, request: pytest.FixtureRequest
) -> None:
    accuracy, data = entry["accuracy"], images_of(entry)
    assert round(accuracy["correct"] / accuracy["count"], 4) == accuracy["top1"]
    if entry["name"] in SLOW:
        right, count = zoo.score(entry, zoo.ROOT / entry["file"], request.getfixturevalue("some"))
        deviation = (accuracy["top1"] * (1 - accuracy["top1"]) / count) ** 0.5
        assert abs(right / count - accuracy["top1"]) <= 2 * deviation
        return
    right, count = zoo.score(entry, zoo.ROOT / entry["file"], data)
    assert count == accuracy["count"]
    assert abs(right - accuracy["correct"]) <= NEAR * (count // 5000 or 1)


# Weighted layers, all of which run on integers.
LAYERS = {
    "digits-cnn": 8,
    "resnet20": 20,
    "resnet56": 56,
    "densenet-bc-100": 151,
    "mobilenetv2": 53,
    "mobilenetv3": 48,
    "vit": 23,
    "segmenter": 12,
}

# Size of the 8-bit file over the float one; names and scales weigh more where layers are thin.
LARGEST = {"mobilenetv3": 0.42, "densenet-bc-100": 0.37}


# In dB, on the images that it was calibrated on; 20 is where answers begin to differ.
LEAST = 20.0


@pytest.mark.slow
@each_file
def test_every_form_converts_to_8_bits_and_stays_as_accurate(
    entry: dict, file: dict, tmp_path: Path
) -> None:
    data = images_of(entry)
    calib: object = data / "calib"
    if "data" in entry:
        digits = np.load(zoo.ROOT / entry["data"]["file"])["calib"]
        calib = [{"image": digits.astype(np.float32) / 16}]
    output = tmp_path / "q.onnx"
    # The forms of a network differ in their graphs, which one careful conversion is enough for, and
    # that of the DenseNet takes minutes.
    chosen = file["file"] == entry["file"]
    quality = "balanced" if chosen and entry["name"] != "densenet-bc-100" else "fast"
    report = onnxq.convert(
        zoo.ROOT / file["file"], output, quality=quality, calib=calib, calib_size=64
    )
    edits = [edit for outcome in report.outcomes.values() for edit in outcome.edits]
    written = [edit for edit in edits if edit.what.startswith("written as")]
    assert report.kernels.floating == []
    assert len(report.kernels.integer) == LAYERS[entry["name"]] + len(written)
    assert not report.warnings
    largest = LARGEST.get(entry["name"], 0.34)
    assert report.bytes <= largest * (zoo.ROOT / entry["file"]).stat().st_size
    if chosen:
        right, count = zoo.score(entry, output, data)
        assert 100 * (entry["accuracy"]["correct"] - right) / count <= 0.5
    else:
        assert report.fidelity is not None
        assert all(found.sqnr > LEAST for found in report.fidelity.outputs.values())
