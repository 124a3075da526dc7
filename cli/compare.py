"""``onnxq compare``: recipes side by side at every width, as a table, a CSV file and a plot."""

import itertools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from onnxq.cli.main import main
from onnxq.cli.options import (
    FILE,
    WRITTEN,
    act_bits,
    json_option,
    labels_option,
    model_argument,
    out,
    preprocess_option,
    progress_bar,
    several,
    writing,
)
from onnxq.comparison import Row, Sweep, compare_recipes
from onnxq.errors import Interrupted, UsageError
from onnxq.evidence.plot import plot
from onnxq.evidence.report import human
from onnxq.files import check_writable, replacing
from onnxq.numerics.metrics import wilson_interval
from onnxq.recipe import ActBits
from onnxq.recipes import UNTRAINED
from onnxq.runtime import cpu_note, version


def _svg(context: Any, option: Any, path: Path | None) -> Path | None:
    """Refuse a bad place for the plot before any work is done."""
    if path is not None:
        if path.suffix != ".svg":
            raise UsageError(f"--plot {path}: the plot is an .svg file; name one")
        check_writable(path, None, force=True)
    return path


@main.command()
@model_argument()
@click.option(
    "--calib",
    type=FILE,
    required=True,
    help="Unlabeled images (a folder), or tensors (.npz, .npy).",
)
@click.option(
    "--data",
    type=FILE,
    required=True,
    help="Other images or tensors, to judge on: by accuracy with labels, else by agreement.",
)
@click.option(
    "--recipes",
    type=several(str),
    default=",".join(UNTRAINED),
    metavar="NAME,...",
    help="Recipes  [default: all that do not train].",
)
@click.option(
    "--bits",
    type=several(lambda text: int(click.IntRange(2, 8)(text))),
    default="8,4",
    show_default=True,
    metavar="2-8,...",
    help="Of weights.",
)
@click.option(
    "--act-bits",
    type=several(act_bits),
    default="8",
    show_default=True,
    metavar="2-8|float,...",
    help="Of activations.",
)
@click.option(
    "--calib-size",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Samples drawn from --calib.",
)
@preprocess_option
@labels_option
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all draws.")
@click.option(
    "--csv",
    "table",
    type=WRITTEN,
    help="Write every row to this file as it is done; rows that are there are not run again.",
)
@click.option("--plot", "plot_file", type=WRITTEN, callback=_svg, help="Draw them (.svg).")
@json_option
def compare(
    model: Path,
    table: Path | None,
    plot_file: Path | None,
    json_file: Path | None,
    recipes: list[str],
    bits: list[int],
    act_bits: list[ActBits],
    **options: Any,
) -> int:
    """Quantize MODEL with every recipe at every width and compare the results.

    One that fails does not end the others, and the exit code is then that of its failure. With
    --csv a comparison that was stopped goes on where it was. Example: onnxq compare model.onnx
    --calib images/ --data val/ --bits 8,4,3 --csv out.csv
    """
    try:
        with progress_bar() as progress:
            sweep = compare_recipes(
                model, recipes=recipes, bits=bits, act_bits=act_bits, table=table,
                progress=progress, **options,
            )  # fmt: skip
    except KeyboardInterrupt as stop:
        raise Interrupted(f"interrupted; {_kept(table)}") from stop
    if plot_file is not None:
        with replacing(plot_file) as temporary:
            temporary.write_text(plot(sweep.rows), encoding="utf-8")
    values = asdict(sweep) | {"best": sorted(sweep.best), "warnings": sweep.warnings}
    with writing(json_file, values | {"rows": [row.model_dump() for row in sweep.rows]}):
        _print(sweep)
    return sweep.exit_code


def _kept(table: Path | None) -> str:
    """What is left of a comparison that was stopped."""
    if table is None:
        return "without --csv nothing is kept"
    if not table.exists():
        return f"nothing was done yet, and {table} is not there"
    return f"what is done is in {table}, and the same command goes on from there"


def _print(sweep: Sweep) -> None:
    console, first = out(), sweep.rows[0]
    console.print(f"{sweep.source}, judged on {first.samples} samples of {first.data}")
    console.print(f"calibrated on {first.calib_samples} of {first.calib}, seed {first.seed}")
    console.print(_table(sweep))
    console.print("* best of its width, equal ones by SQNR; ± half of the 95 % interval")
    console.print("time is of the conversion alone, on this machine, shared work counted in full")
    console.print(f"onnxruntime {version()}, 8-bit instructions: {cpu_note()}")
    for row in sweep.rows:
        if row.error is not None:
            console.print(Text.assemble((f"{row.width} {row.recipe} failed: ", "red"), row.error))
    for warning in sweep.warnings:
        console.print(Text.assemble(("warning: ", "yellow"), warning))


def _table(sweep: Sweep) -> Table:
    """A block of rows for every width; columns without a figure are left out."""
    best = sweep.best
    columns = [name for name, figure in COLUMNS.items() if any(map(figure, sweep.rows))]
    table = Table(box=None, pad_edge=False)
    for _ in ("width", "recipe", "best"):
        table.add_column()
    for column in columns:
        table.add_column(column, justify="right")
    first = next((row for row in sweep.rows if row.error is None), sweep.rows[0])
    reference = {
        "top-1": _rate("float_top1")(first),
        "size": human(sweep.float_bytes),
        "ratio": "1",
    }
    table.add_row("float", "", "", *(reference.get(column, "") for column in columns))
    for width, rows in itertools.groupby(sweep.rows, lambda row: row.width):
        table.add_row()
        for index, row in enumerate(rows):
            mark, style = ("*", "bold") if row.key in best else ("", "")
            if row.error is not None:
                mark = "failed"
            figures = [COLUMNS[column](row) for column in columns]
            table.add_row("" if index else width, row.recipe, mark, *figures, style=style)
    return table


def _field(name: str, form: str) -> Callable[[Row], str]:
    """What a column shows of a row: a field in a format, or nothing."""

    def text(row: Row) -> str:
        value = getattr(row, name)
        return "" if value is None else form.format(value)

    return text


def _drop(row: Row) -> str:
    """Points lost."""
    if row.top1 is None or row.float_top1 is None:
        return ""
    return f"{row.float_top1 - row.top1:.2f}"


def _rate(name: str) -> Callable[[Row], str]:
    """A rate in percent with half the width of its 95 % interval."""

    def text(row: Row) -> str:
        rate = getattr(row, name)
        if rate is None:
            return ""
        low, high = wilson_interval(round(rate * row.samples / 100), row.samples)
        return f"{rate:.2f} ±{50 * (high - low):.2f} %"

    return text


COLUMNS: dict[str, Callable[[Row], str]] = {
    "top-1": _rate("top1"),
    "drop": _drop,
    "agreement": _rate("agreement"),
    "SQNR": _field("sqnr", "{:.1f} dB"),
    "size": lambda row: "" if row.bytes is None else human(row.bytes),
    "ratio": _field("size_ratio", "{:.3f}"),
    "time": _field("seconds", "{:.1f} s"),
}
