"""The commands. Each reads its arguments, calls the library and prints what comes back."""

from contextlib import nullcontext
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from onnxq.cli.main import main
from onnxq.cli.options import (
    FILE,
    FILE_OR_WORD,
    MODEL,
    WRITTEN,
    act_bits,
    json_option,
    labels_option,
    max_drop_option,
    model_argument,
    out,
    preprocess_option,
    progress_bar,
    writing,
)
from onnxq.conversion import convert as run_convert
from onnxq.demo import demo as run_demo
from onnxq.evidence.bench import Speed
from onnxq.evidence.bench import bench as run_bench
from onnxq.evidence.inspect import LayerInfo, cost
from onnxq.evidence.inspect import inspect as run_inspect
from onnxq.evidence.kernels import census
from onnxq.evidence.report import (
    comparison_dict,
    comparison_table,
    cost_text,
    gate_text,
    human,
    layer_table,
)
from onnxq.evidence.validation import quantized_against
from onnxq.evidence.validation import validate as run_validate
from onnxq.files import filling
from onnxq.graph.loading import load
from onnxq.graph.protos import file_size
from onnxq.graph.storage import OLDEST
from onnxq.numerics.levels import WIDTHS
from onnxq.pipeline import REGISTRY
from onnxq.recipe import Recipe
from onnxq.recipes import NAMED, QUALITIES, plan
from onnxq.runtime import cpu_note, version


@main.command()
@model_argument()
@click.option(
    "-o", "--output", type=WRITTEN, help="File to write  [default: MODEL_STEM.w8a8.onnx]."
)
@click.option(
    "--quality",
    type=click.Choice(QUALITIES),
    help="How much care is taken  [default: balanced with --calib].",
)
@click.option("--bits", type=click.IntRange(1, 8), help="Of weights  [default: 8, or 4 of levels].")
@click.option(
    "--act-bits",
    type=act_bits,
    metavar="2-8|float",
    help="Of activations  [default: 8 with --calib].",
)
@click.option(
    "--levels",
    type=click.Choice(list(WIDTHS)),
    help="Of weights  [default: kmeans up to 6 bits in any quality; else uniform].",
)
@click.option("--oaq", is_flag=True, help="Outlier-aware weight ranges.")
@click.option("--calib", type=FILE, help="Unlabeled images (a folder), or tensors (.npz, .npy).")
@click.option(
    "--calib-size",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Samples drawn from them.",
)
@preprocess_option
@click.option(
    "--recipe",
    type=FILE_OR_WORD,
    help="A recipe file (.toml) or name; onnxq recipes lists the names.",
)
@click.option("--print-recipe", is_flag=True, help="Print the recipe as TOML and do nothing.")
@click.option("--per-tensor", is_flag=True, help="One weight scale for a layer, not per channel.")
@click.option(
    "--group-size",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="One weight scale for N input channels; needs --act-bits float.",
)
@click.option("--attention", is_flag=True, help="Products of two activations on integers, too.")
@click.option(
    "--first-last-bits",
    type=click.IntRange(2, 8),
    default=8,
    show_default=True,
    help="At least these for the activations that the first and last layers read.",
)
@click.option(
    "--target-ort",
    default=OLDEST,
    show_default=True,
    metavar="VERSION",
    help="The oldest onnxruntime that must read the file.",
)
@click.option("--keep-float", multiple=True, metavar="GLOB", help="Nodes to leave alone.")
@click.option("--validate", "validate_on", type=FILE, help="Compare both models on these data.")
@labels_option
@max_drop_option
@click.option(
    "--min-sqnr",
    type=float,
    metavar="DB",
    help="Layers that hurt most get more bits, or floats, until all outputs have this SQNR.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all draws.")
@click.option(
    "--checkpoint", type=WRITTEN, help="Where training keeps its state; a killed run goes on there."
)
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--no-verify", is_flag=True, help="Skip the check of the exact passes.")
@json_option
def convert(
    model: Path,
    output: Path | None,
    validate_on: Path | None,
    recipe: str | None,
    print_recipe: bool,
    calib: Path | None,
    no_verify: bool,
    json_file: Path | None,
    keep_float: tuple[str, ...],
    **options: Any,
) -> int:
    """Quantize MODEL and report on the result.

    Example: onnxq convert model.onnx --bits 4 --calib images/
    """
    chosen: Recipe | str | None = recipe
    if recipe is not None and recipe.endswith(".toml"):
        chosen = Recipe.from_toml(Path(recipe))
    if print_recipe:
        said = signature(plan).parameters
        flags = {name: value for name, value in options.items() if name in said}
        calibrated = calib is not None or isinstance(chosen, Recipe)
        printed = plan(chosen, keep_float=keep_float, calibrated=calibrated, **flags)
        click.echo(printed.to_toml(), nl=False)
        return 0
    with progress_bar() as progress:
        report = run_convert(
            model,
            output,
            recipe=chosen,
            calib=calib,
            validate=validate_on,
            verify=not no_verify,
            keep_float=keep_float,
            progress=progress,
            **options,
        )
    with writing(json_file, report.to_dict()):
        out().print(report)
    return report.exit_code


@main.command()
@model_argument("float_model")
@model_argument("quantized")
@click.option("--data", type=FILE, required=True, help="Images (a folder) or tensors (.npz, .npy).")
@labels_option
@preprocess_option
@max_drop_option
@json_option
def validate(
    float_model: Path,
    quantized: Path,
    data: Path,
    labels: str,
    preprocess: str | None,
    max_drop: float | None,
    json_file: Path | None,
) -> int:
    """Compare a quantized model with its float model on the same data.

    Images are prepared as the quantized file's metadata say. Example: onnxq validate model.onnx
    model.w8a8.onnx --data val/
    """
    with progress_bar() as progress:
        found = run_validate(
            float_model, quantized, data, labels=labels, preprocess=preprocess, progress=progress
        )
    kernels = census(load(quantized), quantized)
    sizes = file_size(float_model), file_size(quantized)
    values = comparison_dict(found) | {
        "float_bytes": sizes[0],
        "bytes": sizes[1],
        "size_ratio": sizes[1] / sizes[0],
        "integer_layers": len(kernels.integer),
        "total_layers": kernels.total,
    }
    with writing(json_file, values):
        console = out()
        console.print(comparison_table(found, f"{found.samples} samples of {data}"))
        console.print(
            f"size {human(sizes[0])} -> {human(sizes[1])}, ratio {sizes[1] / sizes[0]:.3f}"
        )
        console.print(f"{len(kernels.integer)} of {kernels.total} layers on integer kernels")
        console.print(f"onnxruntime {version()}, 8-bit instructions: {cpu_note()}")
        for warning in found.warnings:
            console.print(Text.assemble(("warning: ", "yellow"), warning))
        missed = found.missed(max_drop)
        if missed is not None:
            console.print(gate_text(max_drop, missed))
    return int(missed is not None)


@main.command()
@model_argument()
@click.option("--against", type=MODEL, help="A quantized file made from MODEL.")
@click.option("--data", type=FILE, help="Images or tensors to compare the layers on.")
@preprocess_option
@json_option
def inspect(
    model: Path,
    against: Path | None,
    data: Path | None,
    preprocess: str | None,
    json_file: Path | None,
) -> int:
    """List the layers of MODEL; with --against and --data, the error of each.

    Example: onnxq inspect model.onnx --against model.w4a8.onnx --data images/
    """
    if (against is None) != (data is None):
        raise click.UsageError("--against and --data go together")
    console = out()
    if against is not None and data is not None:
        with progress_bar() as progress:
            errors = quantized_against(model, against, data, preprocess, progress)
        with writing(json_file, [asdict(e) for e in errors]):
            console.print(layer_table(errors, f"{against} against {model}"))
        return 0
    found, kernels = run_inspect(load(model), model)
    total = cost(found)
    values = {"layers": [asdict(layer) for layer in found], "integer_layers": len(kernels.integer)}
    values |= {"cost": asdict(total) if total else None}
    with writing(json_file, values | {"total_layers": kernels.total}):
        console.print(_layer_list(found))
        console.print(f"{len(kernels.integer)} of {kernels.total} layers on integer kernels")
        if total:
            console.print(cost_text(total))
    return 0


@main.command()
@model_argument("float_model")
@click.argument("quantized", type=MODEL, nargs=-1, required=True)
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Of each model."
)
@click.option(
    "--batch", type=click.IntRange(1), default=1, show_default=True, help="Where its size is open."
)
@json_option
def bench(
    float_model: Path,
    quantized: tuple[Path, ...],
    threads: int,
    batch: int,
    json_file: Path | None,
) -> int:
    """Time models in turns and print their speed as ratios to FLOAT_MODEL.

    Example: onnxq bench model.onnx model.w8a8.onnx model.w4a8.onnx
    """
    with progress_bar() as progress:
        speeds = run_bench(
            [float_model, *quantized], threads=threads, batch=batch, progress=progress
        )
    console = out()
    with writing(json_file, [asdict(s) for s in speeds]):
        console.print(_speed_table(speeds))
        console.print(f"onnxruntime {version()}, 8-bit instructions: {cpu_note()}")
    return 0


@main.command()
def passes() -> int:
    """List the passes a recipe can name, with their options."""
    table = Table(box=None, pad_edge=False)
    for column in ("pass", "exact", "what it does", "options"):
        table.add_column(column)
    for name, kind in sorted(REGISTRY.items(), key=lambda item: not item[1].exact):
        options = ", ".join(f"{k}={v.default}" for k, v in kind.model_fields.items())
        table.add_row(name, "yes" if kind.exact else "no", kind.summary(), options)
    out().print(table)
    return 0


@main.command()
def recipes() -> int:
    """List the named recipes."""
    table = Table(box=None, pad_edge=False)
    for column in ("recipe", "what it does"):
        table.add_column(column)
    for name, (text, _) in NAMED.items():
        table.add_row(name, text)
    out().print(table)
    return 0


@main.command()
@click.option(
    "-o", "--output", type=FILE, help="Folder to leave the model, the data and the results in."
)
@json_option
def demo(output: Path | None, json_file: Path | None) -> int:
    """Quantize a small built-in CNN to 8 and 4 bits and compare. Needs no data and no network."""
    with nullcontext() if output is None else filling(output), progress_bar() as progress:
        reports, speeds = run_demo(output, progress)
    speed_values = [asdict(s) for s in speeds]
    table = Table(title="digits CNN, 597 labeled test images", title_justify="left", box=None)
    for column in ("", "top-1", "agreement", "size", "ratio", "speed", "integer layers"):
        table.add_column(column, justify="right" if column else "left")
    first = reports[0].validation
    if first and first.float_top1:
        size = human(reports[0].float_bytes)
        table.add_row("float", f"{first.float_top1.percent:.2f} %", "", size, "1", "1.00x", "")
    for report, speed in zip(reports, speeds[1:], strict=True):
        v = report.validation
        if v and v.quantized_top1 and v.agreement:
            table.add_row(
                report.label,
                f"{v.quantized_top1.percent:.2f} %",
                f"{v.agreement.percent:.2f} %",
                human(report.bytes),
                f"{report.bytes / report.float_bytes:.3f}",
                f"{speed.ratio:.2f}x",
                f"{len(report.kernels.integer)} of {report.kernels.total}",
            )
    console = out()
    with writing(json_file, {"reports": [r.to_dict() for r in reports], "speeds": speed_values}):
        console.print(table)
        console.print("next: onnxq convert model.onnx --calib images/")
    return 0


def _layer_list(layers: list[LayerInfo]) -> Table:
    table = Table(box=None, pad_edge=False)
    columns = ["layer", "op", "weight", "bits", "data", "scales", "range", "kernel"]
    if any(layer.oaq_ssim is not None for layer in layers):
        columns.append("OAQ SSIM")
    for column in columns:
        table.add_column(column)
    for layer in layers:
        table.add_row(
            layer.name,
            layer.op,
            "x".join(map(str, layer.shape)),
            str(layer.bits),
            str(layer.act_bits),
            str(layer.scales or ""),
            f"[{layer.lo:.3g}, {layer.hi:.3g}]",
            layer.kernel,
            *([] if layer.oaq_ssim is None else [f"{100 * layer.oaq_ssim:.1f} %"]),
        )
    return table


def _speed_table(speeds: list[Speed]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("model", "speed", "quartiles", "load time"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for speed in speeds:
        spread = f"{speed.low:.2f} to {speed.high:.2f}"
        table.add_row(speed.file, f"{speed.ratio:.2f}x", spread, f"{speed.load:.2f}x")
    return table
