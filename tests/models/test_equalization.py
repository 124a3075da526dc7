"""What exact passes over channels reach in real models, and that these compute what they did."""

from pathlib import Path

import numpy as np
import pytest
import zoo

from onnxq import pipeline
from onnxq.graph.loading import load
from onnxq.graph.regions import regions
from onnxq.passes.equalize import Equalize
from onnxq.passes.split_outliers import SplitOutliers
from onnxq.recipes import PREPARATION
from onnxq.runtime import Session, random_feeds
from onnxq.samples.data import batches
from onnxq.samples.preprocess import resolve
from onnxq.samples.sources import open_samples

SHARED = Path(__file__).parents[2].parent / "shared"
# Regions equalized, those of them behind a Clip(0, c), layers with split channels. A number that
# sinks tells that something is no longer recognized.
REACHED = {
    "digits-cnn": (2, 1, 6),
    "resnet20": (9, 0, 19),
    "resnet56": (27, 0, 55),
    "densenet-bc-100": (99, 0, 99),
    "mobilenetv2": (2, 35, 35),
    "mobilenetv3": (13, 0, 37),
    "vit": (1, 0, 22),
    "segmenter": (7, 0, 11),
}
# Regions with channels that take factors: of several layers, behind norms and ceilings, too.
FREE = {
    "digits-cnn": 5, "resnet20": 10, "resnet56": 28, "densenet-bc-100": 102, "mobilenetv2": 42,
    "mobilenetv3": 17, "vit": 11, "segmenter": 9,
}  # fmt: skip
OTHERS = {"resnet20_cifar10": (9, 0, 19), "version-RFB-320": (39, 0, 33)}
DATA = {"resnet20_cifar10": "cifar10/val", "version-RFB-320": "photos"}
COUNT = 16

FILES = [(entry["name"], zoo.ROOT / e["file"]) for entry in zoo.entries()
         for e in (entry, *entry["exports"])]  # fmt: skip


def prepared(file):
    model = load(file)
    pipeline.run(model, PREPARATION, None)
    return model


def assert_same(file, model, values):
    before, found = Session(file).run(values), Session(model).run(values)
    for name, x in before.items():
        np.testing.assert_allclose(found[name], x, rtol=0, atol=1e-5 * np.abs(x).max())


@pytest.mark.parametrize(("name", "file"), FILES, ids=[file.stem for _, file in FILES])
@pytest.mark.parametrize("step", [Equalize(), Equalize(ceilings=True), SplitOutliers()], ids=str)
def test_what_is_reached_in_the_zoo_computes_the_same(name, file, step):
    model = prepared(file)
    outcome = pipeline.run(model, (step,), None)[step.name]
    plain, clipped, split = REACHED[name]
    expected = split if isinstance(step, SplitOutliers) else plain + step.ceilings * clipped
    assert len(outcome.edits) == expected
    assert not outcome.remarks
    assert_same(file, model, random_feeds(Session(file).inputs, batch=2))
    before = model.to_bytes()
    assert not pipeline.run(model, (step,), None)[step.name]
    assert model.to_bytes() == before


@pytest.mark.parametrize(("name", "file"), FILES, ids=[file.stem for _, file in FILES])
def test_any_factors_of_free_channels_leave_the_zoo_as_it_is(name, file):
    model = prepared(file)
    found = [region for region in regions(model, ceilings=True, norms=True) if region.free.any()]
    draw = np.random.default_rng(0)
    for region in found:
        region.divide(model, np.where(region.free, np.exp(draw.uniform(-1, 1, region.count)), 1.0))
    assert len(found) == FREE[name]
    assert_same(file, model, random_feeds(Session(file).inputs, batch=2))


@pytest.mark.skipif(
    not (SHARED / "models").exists(), reason="the shared models and images are not here"
)
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("step", [Equalize(), SplitOutliers()], ids=lambda step: step.name)
def test_what_is_reached_in_other_models_computes_the_same_on_real_images(name, step):
    file = SHARED / "models" / f"{name}.onnx"
    model = prepared(file)
    outcome = pipeline.run(model, (step,), None)[step.name]
    assert len(outcome.edits) == OTHERS[name][2 * isinstance(step, SplitOutliers)]
    inputs = Session(file).inputs
    preprocess, _ = resolve(None, file, {}, inputs)
    samples = open_samples(SHARED / "data" / DATA[name], inputs, preprocess, COUNT, 0)
    values = [batch.feeds for batch in batches(samples, inputs, 1)]
    assert len(values) == COUNT
    for some in values:
        assert_same(file, model, some)
