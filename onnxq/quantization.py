"""Quantization in memory: a float model prepared, and a quantized one made of it by a recipe."""

import difflib
import fnmatch
from dataclasses import dataclass
from functools import partial

from onnxq._version import __version__
from onnxq.errors import UnsupportedModel, UsageError
from onnxq.graph.layers import WEIGHTED
from onnxq.graph.model import Model
from onnxq.graph.storage import newest_opset
from onnxq.pipeline import LearnedPass, Outcome, run
from onnxq.precision import Fit, fit
from onnxq.recipe import METADATA_KEY as RECIPE_KEY
from onnxq.recipe import Recipe
from onnxq.samples.calibration import Calibration
from onnxq.samples.data import Images, Samples
from onnxq.samples.preprocess import ASSUMED, METADATA_KEY, Preprocess

VERSION_KEY = "onnxq.version"
QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger")
WITHOUT_TRAINING = "nothing was learned: all samples went to the passes before, run once more"


def refuse_quantized(model: Model) -> None:
    """Raise UnsupportedModel if the model has integer operators already, or is a file of ours."""
    if (version := model.metadata.get(VERSION_KEY)) is not None:
        raise UnsupportedModel(
            f"{model.path}: is quantized already, by onnxq {version}: give the float model"
        )
    found = next((node for node in model.graph.nodes if node.op in QUANTIZED), None)
    if found is not None:
        raise UnsupportedModel(
            f"{model.path}: is quantized already ({found.op} {found.name}): give the float model"
        )


def prepare(model: Model, recipe: Recipe) -> dict[str, Outcome]:
    """Raise the opset and run the exact passes, in place; what each did, by its name.

    Raises:
        UnsupportedModel: The opset cannot be what the recipe needs.
        UsageError: A glob of ``keep_float`` matches no node.
        PassError: A pass failed.
    """
    _reach_opset(model, recipe)
    model.kept_float = before = _matching(model, recipe.keep_float)
    outcomes = run(model, recipe.exact, None)
    model.kept_float |= _matching(model, recipe.keep_float)
    _refuse_unknown(model, recipe.keep_float, before | model.kept_float)
    return outcomes


@dataclass(frozen=True)
class Quantized:
    """A quantized model, and how it came about.

    Attributes:
        model: The quantized model.
        reference: The float model as it was when quantization began; tensors compare by name.
        outcomes: What each pass did, by its name.
        fit: Where the recipe rounds less, and what that reached, if an SQNR was asked for.
    """

    model: Model
    reference: Model
    outcomes: dict[str, Outcome]
    fit: Fit | None


def quantize(
    prepared: Model,
    recipe: Recipe,
    calibration: Calibration | None,
    preprocess: Preprocess,
    origin: str,
    min_sqnr: float | None = None,
) -> Quantized:
    """A quantized copy of a prepared model, which says how it was made.

    Args:
        prepared: What ``prepare`` left; it is not edited.
        recipe: Its lossy passes are run.
        calibration: The data; None for the weights alone.
        preprocess: How images are read.
        origin: Where that was found.
        min_sqnr: Of all outputs, in dB; needs data.

    Raises:
        UnsupportedModel: There is nothing to quantize.
        CalibrationError: The samples do not fit the model, or are missing.
        PassError: A pass failed.
    """
    reference, found = prepared.clone(), None
    outcomes = run(reference, recipe.lossy[: recipe.first_integer], calibration)
    if min_sqnr is not None and calibration is not None:
        trial = partial(_trial, reference, calibration)
        samples, progress = calibration.samples, calibration.progress
        recipe, found = fit(reference, recipe, trial, samples, min_sqnr, progress)
    model, lossy = _planned(reference, recipe, calibration)
    if not (model.weights or model.tables):
        raise UnsupportedModel(f"{model.path}: no Conv, ConvTranspose, Gemm or MatMul to quantize")
    model.shorten(reference.names())
    model.metadata[VERSION_KEY] = __version__
    model.metadata[RECIPE_KEY] = recipe.to_json()
    if not origin.startswith(ASSUMED) or (calibration and isinstance(calibration.samples, Images)):
        model.metadata[METADATA_KEY] = preprocess.model_dump_json()
    if calibration is not None and calibration.count:
        model.metadata["onnxq.calibration"] = calibration.digest
    return Quantized(model, reference, outcomes | lossy, found)


def _trial(reference: Model, calibration: Calibration, recipe: Recipe, samples: Samples) -> Model:
    """What a recipe makes of some of the samples, without training."""
    some = Calibration(samples, calibration.preprocess, calibration.progress)
    return _planned(reference, recipe.untrained, some)[0]


def _planned(
    reference: Model, recipe: Recipe, calibration: Calibration | None
) -> tuple[Model, dict[str, Outcome]]:
    """A copy behind the passes, and what each did; without those that train if they win nothing.

    No sample has to judge a training then, and the other passes take all.
    """
    model = reference.clone()
    outcomes = run(model, recipe.lossy[recipe.first_integer :], calibration)
    training = [step.name for step in recipe.lossy if isinstance(step, LearnedPass)]
    if training and not any(outcomes[name] for name in training):
        model, rest = _planned(reference, recipe.untrained, calibration)
        outcomes |= rest
        outcomes[training[-1]].remark("model", WITHOUT_TRAINING)
    return model, outcomes


def _reach_opset(model: Model, recipe: Recipe) -> None:
    """Raise the opset to what the recipe needs.

    Raises:
        UnsupportedModel: There is no way up, or the model is beyond what the target reads.
    """
    model.raise_opset(recipe.opset)
    if model.opset > (newest := newest_opset(recipe.target_ort)):
        raise UnsupportedModel(
            f"{model.path}: is of opset {model.opset}, and onnxruntime {recipe.target_ort} reads "
            f"up to {newest}: export it again with that, or name a newer --target-ort"
        )


def _matching(model: Model, globs: tuple[str, ...]) -> dict[str, str]:
    """Nodes that stay float by the user's wish, each with that reason."""
    return {
        node.name: f"kept by --keep-float {glob}"
        for glob in globs
        for node in model.graph.nodes
        if _fits(node.name, glob)
    }


def _fits(name: str, glob: str) -> bool:
    """Whether a glob means a node: a name may itself look like a glob."""
    return name == glob or fnmatch.fnmatchcase(name, glob)


def _refuse_unknown(model: Model, globs: tuple[str, ...], kept: dict[str, str]) -> None:
    """Take a glob for a spelling mistake that matches no node, nor did before the exact passes.

    Raises:
        UsageError: There is one.
    """
    for glob in globs:
        if not any(_fits(name, glob) for name in kept):
            names = [node.name for node in model.graph.nodes]
            layers = [node.name for node in model.graph.nodes if node.op in WEIGHTED]
            near = difflib.get_close_matches(glob, [*layers, *names], n=1)
            hint = f"; did you mean {near[0]}?" if near else "; onnxq inspect lists the names"
            raise UsageError(f"--keep-float {glob} matches no node{hint}")
