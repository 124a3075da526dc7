"""The main job: from a float file to a quantized file and the evidence for it."""

import math
from pathlib import Path

from onnxq.errors import InputError, PassError, UsageError
from onnxq.evidence.evaluate import EVIDENCE, compare
from onnxq.evidence.exactness import largest_change
from onnxq.evidence.inspect import cost, inspect, unquantized
from onnxq.evidence.layerwise import layer_errors
from onnxq.evidence.report import Report
from onnxq.files import (
    check_apart,
    check_checkpoint,
    check_model_path,
    check_writable,
    data_file,
    restored_on_failure,
)
from onnxq.graph.layers import RANDOM
from onnxq.graph.loading import load
from onnxq.graph.model import INLINE_LIMIT, Model
from onnxq.graph.parts import parts
from onnxq.graph.protos import check_file, check_proto, file_size, model_files
from onnxq.graph.storage import OLDEST
from onnxq.pipeline import LearnedPass, Outcome
from onnxq.progress import Progress, silent
from onnxq.quantization import prepare, quantize, refuse_quantized
from onnxq.recipe import ActBits, Recipe
from onnxq.recipes import plan
from onnxq.runtime import Session
from onnxq.samples.calibration import Calibration
from onnxq.samples.data import Data, Images, Samples, first_batch, thinned
from onnxq.samples.preprocess import ASSUMED, Preprocess, resolve
from onnxq.samples.sources import open_samples

# Samples behind the figures of every layer that every conversion prints.
LAYER_EVIDENCE = 8
# Nothing that is computed comes closer to anything else, unless it is equal.
MOST_DECIBELS = 300
NOT_VERIFIED = "not verified: the model does not run on random inputs; give --calib"
# What onnx's checker says of an output without a shape, which onnxruntime does without.
SHAPELESS = "Field 'shape' of 'type' is required but missing"
# The passes that leave layers float.
DECIDING = ("quantize-weights", "quantize-activations")


def convert(
    source: str | Path,
    output: str | Path | None = None,
    *,
    quality: str | None = None,
    bits: int | None = None,
    act_bits: ActBits | None = None,
    levels: str | None = None,
    oaq: bool = False,
    recipe: Recipe | str | None = None,
    calib: Data | None = None,
    calib_size: int = 256,
    preprocess: Preprocess | str | Path | None = None,
    per_tensor: bool = False,
    group_size: int = 0,
    attention: bool = False,
    first_last_bits: int = 8,
    target_ort: str = OLDEST,
    keep_float: tuple[str, ...] = (),
    validate: Data | None = None,
    labels: str | Path = "auto",
    max_drop: float | None = None,
    min_sqnr: float | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    force: bool = False,
    verify: bool = True,
    progress: Progress = silent,
) -> Report:
    """Quantize an ONNX file and report on the result.

    Args:
        source: The float model.
        output: The file to write; by default ``STEM.w8a8.onnx``, after the widths, beside it.
        quality: ``fast``, ``balanced``, which takes a few times longer and loses less, or ``best``,
            which trains for minutes; by default balanced with calibration data.
        bits: Of the weights; by default 8, or what ``levels`` has.
        act_bits: Of the activations, 2 to 8, or ``"float"``; by default 8 with calibration data.
        levels: Of the weights: ``uniform``, or a set of ``numerics.levels``; by default ``kmeans``
            up to 6 bits, and ``uniform`` beyond and in recipes of other methods.
        oaq: Outlier-aware weight ranges.
        recipe: A name of ``recipes.NAMED``, or a recipe, which then replaces all flags that make
            one.
        calib: Unlabeled data: a folder of images, an .npz or .npy, or feeds by input name.
        calib_size: Samples drawn from it.
        preprocess: For images; see ``onnxq.samples.preprocess.resolve`` for what happens without.
        per_tensor: One weight scale for a layer instead of one for each output channel.
        group_size: One weight scale for so many input channels, of models with float activations.
        attention: Products of two activations run on integers, too.
        first_last_bits: At least these for the activations that the first and last layers read.
        target_ort: The oldest onnxruntime that must read the file.
        keep_float: Globs over node names to leave alone.
        validate: Data to compare both models on.
        labels: ``auto``, ``none`` or a CSV file, for ``validate``.
        max_drop: Gate on the points lost there; the file is written all the same.
        min_sqnr: Layers that hurt most get more bits or compute in floats until all outputs have
            this SQNR in dB, on calibration samples held out; the file is written all the same.
        seed: Of the draw, and of what training draws.
        checkpoint: Where training keeps its state, to go on from.
        force: Replace an existing output.
        verify: Check that the exact passes left the float function alone.
        progress: Called as samples are done.

    Raises:
        UsageError: The arguments contradict each other, or the output must not be written.
        InputError: The model or the data cannot be used.
        PassError: A pass broke its contract.
    """
    source = Path(source)
    chosen = plan(
        recipe,
        quality=quality,
        bits=bits,
        act_bits=act_bits,
        levels=levels,
        oaq=oaq,
        per_tensor=per_tensor,
        group_size=group_size,
        attention=attention,
        first_last_bits=first_last_bits,
        target_ort=target_ort,
        keep_float=keep_float,
        calibrated=calib is not None,
    )
    if max_drop is not None and math.isnan(max_drop):
        raise UsageError("--max-drop is not a number")
    if max_drop is not None and validate is None:
        raise UsageError("--max-drop needs --validate: there is nothing to measure the drop on")
    if min_sqnr is not None and not abs(min_sqnr) <= MOST_DECIBELS:
        raise UsageError(f"--min-sqnr is not a number of decibels up to {MOST_DECIBELS}")
    if min_sqnr is not None and calib is None:
        raise UsageError("--min-sqnr needs --calib: there is nothing to measure noise on")
    if str(labels) not in ("auto", "none") and validate is None:
        raise UsageError("--labels needs --validate: they label its images")
    trains = any(isinstance(step, LearnedPass) for step in chosen.lossy)
    if checkpoint is not None and not trains:
        raise UsageError("--checkpoint needs a recipe that trains, as --quality best does")
    model = load(source)
    target = Path(output) if output else source.with_name(f"{source.stem}.{chosen.label}.onnx")
    state = None if checkpoint is None else Path(checkpoint)
    check_apart(
        {"--output": (target, data_file(target)), "--checkpoint": [state]},
        {
            "MODEL": model_files(source),
            "--calib": [calib],
            "--validate": [validate],
            "--labels": [labels],
            "--preprocess": [preprocess],
        },
    )
    check_model_path(target)
    check_writable(target, source, force)
    if state is not None:
        check_checkpoint(state)
    refuse_quantized(model)
    report = Report(str(source), str(target), chosen.label, file_size(source), max_drop=max_drop)
    original = _session(source, calib is not None or validate is not None, report)
    inputs = original.inputs if original else []
    preprocessing, origin = resolve(preprocess, source, model.metadata, inputs)
    calibration, judge = None, None
    if calib is not None:
        samples = open_samples(calib, inputs, preprocessing, calib_size, seed)
        calibration = Calibration(samples, preprocessing, progress, seed=seed, checkpoint=state)
    if validate is not None:
        judge = open_samples(validate, inputs, preprocessing, None, seed, labels)

    sample = first_batch(calibration.samples, inputs).feeds if calibration else None
    report.outcomes |= prepare(model, chosen)
    drawn = next((n for n in model.graph.nodes if n.op in RANDOM and not n.domain), None)
    if drawn is not None:
        what = f"not verified: {drawn.op} {drawn.name} draws random numbers"
        report.notes.append(f"{what}, by which the outputs of both models differ, too")
    elif verify and original is not None:
        report.difference = largest_change(original, model, sample)
        if report.difference is None:
            report.notes.append(NOT_VERIFIED)
    done = quantize(model, chosen, calibration, preprocessing, origin, min_sqnr)
    report.outcomes |= done.outcomes
    report.notes += done.model.notes
    report.fit = done.fit
    if done.fit:
        unjudged = done.fit.unjudged.items()
        report.notes += [f"--min-sqnr does not judge {name}: {why}" for name, why in unjudged]
    if done.fit and trains:
        report.notes.append("--min-sqnr was judged before training, which heeds other things, too")
    _describe(report, calibration, seed, preprocessing, origin)

    with restored_on_failure(target):
        done.model.save(target, force)
        written = _reload(target, source, report)
        report.bytes = file_size(target)
        if original is not None:
            layers, report.kernels = inspect(written, target, sample)
            report.cost = cost(layers)
            report.why_float = {
                name: _reason(name, report, chosen) for name in report.kernels.floating
            } | unquantized(written)
            _gather_evidence(
                report, original, done.reference, written, calibration, judge, progress
            )
    return report


def _session(source: Path, needed: bool, report: Report) -> Session | None:
    """The float model ready to run; None if it cannot be and nothing has to be run.

    Raises:
        InputError: It cannot be and has to be, or is no valid model.
    """
    try:
        return Session(source)
    except InputError as cause:
        if needed:
            raise
        if (complaint := check_file(source)) is not None and SHAPELESS not in complaint:
            raise InputError(f"{source}: not a valid ONNX model: {complaint}") from cause
        report.notes.append(f"nothing could be run or verified: {cause}")
        return None


def _describe(
    report: Report,
    calibration: Calibration | None,
    seed: int,
    preprocess: Preprocess,
    origin: str,
) -> None:
    """Write into the report what was seen of the data."""
    if calibration is None:
        report.notes.append("no calibration data: weights only, activations stay float")
        return
    if not calibration.count:
        looks = "no pass of this recipe looks at the calibration data"
        report.notes.append(f"{looks}, --min-sqnr alone does" if report.fit else looks)
        return
    samples = calibration.samples
    report.calibration = {
        "count": calibration.count,
        "seed": seed,
        "digest": calibration.digest,
        "origin": origin if isinstance(samples, Images) else "none, ready tensors",
        "preprocess": preprocess.model_dump(mode="json"),
        "skipped": dict(samples.skipped),
    }
    report.warnings += doubts(calibration, origin)
    if isinstance(samples, Images) and samples.resized:
        report.notes.append("images are resized to the model's input size; none is declared")


def doubts(calibration: Calibration, origin: str) -> list[str]:
    """What the reader should look into about the calibration data, a sentence each.

    Args:
        calibration: After the statistics were collected.
        origin: Where the preprocessing was found.
    """
    samples, found = calibration.samples, []
    if not origin.startswith(ASSUMED):
        found += calibration.warnings()
    elif isinstance(samples, Images):
        found.append(f"preprocessing {origin}")
    if samples.skipped:
        names = ", ".join(list(samples.skipped)[:3])
        count = len(samples.skipped)
        found.append(f"{count} files or folders of the calibration data are left out: {names}")
    return found


def _gather_evidence(
    report: Report,
    original: Session,
    prepared: Model,
    written: Model,
    calibration: Calibration | None,
    judge: Samples | None,
    progress: Progress,
) -> None:
    """Run what was written: layer by layer and as a whole, against the float model."""
    target = Path(report.output)
    deployed, exact = Session(target), Session(target, optimize=False)
    joined = parts(prepared)
    if calibration is not None:
        few = thinned(calibration.samples, LAYER_EVIDENCE)
        report.layers = layer_errors(prepared, written, few, progress)
        some = thinned(calibration.samples, EVIDENCE)
        report.fidelity = compare(
            original, deployed, some, exact=exact, joined=joined, progress=progress
        )
        report.warnings += report.fidelity.warnings
    if judge is not None:
        report.validation = compare(
            original,
            deployed,
            judge,
            exact=exact,
            labels=getattr(judge, "labels", None),
            joined=joined,
            progress=progress,
        )
        report.warnings += [w for w in report.validation.warnings if w not in report.warnings]


def _reload(target: Path, source: Path, report: Report) -> Model:
    """Read back what was written and have it checked.

    Raises:
        PassError: The file is not valid ONNX although its source is.
    """
    complaint, written = check_file(target), load(target)
    if complaint is not None:
        if check_file(source) is None and _is_valid_at(written.opset, source):
            raise PassError(f"the written file was invalid and is removed: {complaint}")
        report.notes.append(
            f"onnx.checker complains about the file, as about its source: {complaint}"
        )
    return written


def _is_valid_at(opset: int, source: Path) -> bool:
    """Whether a model is valid with a newer opset, whose shape inference may see more."""
    model = load(source)
    model.raise_opset(opset)
    return model.nbytes > INLINE_LIMIT or check_proto(model.to_proto(), full_check=True) is None


def _reason(name: str, report: Report, plan: Recipe) -> str:
    """Why a layer runs on floats."""
    for skip in (skip for step in DECIDING for skip in report.outcomes.get(step, Outcome()).skips):
        if skip.where == name:
            return skip.why
    if plan.act_bits == "float":
        return "activations stay float; its weight is stored quantized and unpacked at load"
    return "onnxruntime did not fuse it"
