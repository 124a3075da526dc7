"""Files that exist already, float and quantized, compared on data."""

from pathlib import Path

from onnxq.errors import InputError
from onnxq.evidence.evaluate import EVIDENCE, Comparison, compare
from onnxq.evidence.layerwise import LayerError, layer_errors
from onnxq.graph.loading import load
from onnxq.graph.model import Model
from onnxq.graph.parts import parts
from onnxq.progress import Progress, silent
from onnxq.quantization import prepare
from onnxq.recipe import Recipe
from onnxq.runtime import Session
from onnxq.samples.data import Data, Images, Samples, thinned
from onnxq.samples.preprocess import ASSUMED, Preprocess, declared, resolve
from onnxq.samples.sources import open_samples


def validate(
    reference: str | Path,
    quantized: str | Path,
    data: Data,
    *,
    labels: str | Path = "auto",
    preprocess: Preprocess | str | Path | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Compare two files on the same data.

    Args:
        reference: The float model.
        quantized: The quantized model; its metadata say how images are prepared.
        data: A folder of images, an .npz or .npy, or feeds by input name.
        labels: ``auto``, ``none`` or a CSV file.
        preprocess: Overrides what the metadata say.
        progress: Called as samples are done.

    Raises:
        UsageError: ``labels`` is a CSV file, and the data are arrays.
        InputError: A model or the data cannot be used.
    """
    floats, _, samples = _opened(reference, quantized, data, preprocess, labels)
    found = compare(
        Session(Path(reference)),
        Session(Path(quantized)),
        samples,
        exact=Session(Path(quantized), optimize=False),
        labels=getattr(samples, "labels", None),
        joined=parts(floats),
        progress=progress,
    )
    found.assumptions = assumptions(samples)
    return found


def assumptions(samples: Samples) -> list[str]:
    """What was taken for granted in reading the samples, a sentence each; known once they were."""
    if not isinstance(samples, Images):
        return []
    found = []
    if samples.assumed:
        found.append(f"preprocessing {samples.assumed}")
    if samples.resized:
        found.append("images are resized to the model's input size")
    return found


def quantized_against(
    reference: str | Path,
    quantized: str | Path,
    data: Data,
    preprocess: Preprocess | str | Path | None = None,
    progress: Progress = silent,
) -> list[LayerError]:
    """The error of every layer of a quantized file, on up to EVIDENCE samples.

    Args:
        reference: The float model.
        quantized: A file made from it.
        data: A folder of images, an .npz or .npy, or feeds by input name.
        preprocess: Overrides what the metadata say.
        progress: Called as samples are done.

    Raises:
        InputError: A model or the data cannot be used, or the files have no layer in common that is
            quantized in the second.
    """
    floats, integers, samples = _opened(reference, quantized, data, preprocess, "none")
    if (recipe := Recipe.told(integers.metadata)) is not None:
        prepare(floats, recipe)  # layers may have more channels than they had
    errors = layer_errors(floats, integers, thinned(samples, EVIDENCE), progress)
    if not errors:
        raise InputError(
            f"{quantized}: no quantized layer in it is one of {reference}: give the float model "
            "and a file made from it"
        )
    return errors


def _opened(
    reference: str | Path,
    quantized: str | Path,
    data: Data,
    preprocess: Preprocess | str | Path | None,
    labels: str | Path,
) -> tuple[Model, Model, Samples]:
    """Both models, and data prepared as the quantized one's metadata say.

    Raises:
        UsageError: ``labels`` is a CSV file, and the data are arrays.
        InputError: A model, what its metadata say, the labels or the data cannot be used.
    """
    floats, integers = load(reference), load(quantized)
    if preprocess is None:
        preprocess = declared(integers.metadata)
    inputs = Session(Path(reference)).inputs
    preprocessing, origin = resolve(preprocess, Path(reference), floats.metadata, inputs)
    samples = open_samples(data, inputs, preprocessing, labels=labels)
    if isinstance(samples, Images) and origin.startswith(ASSUMED):
        samples.assumed = origin
    return floats, integers, samples
