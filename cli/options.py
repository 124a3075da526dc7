"""Options and output that commands share."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from onnxq.errors import UsageError
from onnxq.files import check_apart, check_writable, replacing
from onnxq.graph.protos import model_files
from onnxq.progress import Progress as Callback
from onnxq.progress import silent
from onnxq.recipe import ActBits

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
# What a parameter names: a model that is read, other files or a folder that are, a file or a word,
# and a file that is written.
MODEL = click.Path(path_type=Path)
FILE = click.Path(path_type=Path)
FILE_OR_WORD = click.types.StringParamType()
WRITTEN = click.Path(path_type=Path)


class Command(click.Command):
    """A command that overwrites nothing that it reads, and writes no file for two flags."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it.

        Raises:
            UsageError: Two parameters name one file, of which one is to be written.
        """
        named: dict[Any, dict[str, list[Any]]] = {}
        for parameter in self.params:
            value = ctx.params.get(parameter.name or "")
            several = value if isinstance(value, tuple) else (value,)
            option = isinstance(parameter, click.Option)
            flag = parameter.opts[-1] if option else parameter.human_readable_name
            given = [one for one in several if one is not None]
            named.setdefault(parameter.type, {})[flag] = given
        written = named.get(WRITTEN, {})
        if any(written.values()):  # models are not read for nothing
            models = {
                flag: [file for model in given for file in model_files(model)]
                for flag, given in named.get(MODEL, {}).items()
            }
            check_apart(written, models | named.get(FILE, {}) | named.get(FILE_OR_WORD, {}))
        return super().invoke(ctx)


def act_bits(text: str) -> ActBits:
    """2 to 8, or the word float."""
    return "float" if text == "float" else int(click.IntRange(2, 8)(text))


def several(one: Callable[[str], T]) -> Callable[[str], list[T]]:
    """A type of options: values of a type, separated by commas."""

    def values(text: str) -> list[T]:
        parts = [part.strip() for part in text.split(",")]
        if "" in parts:
            raise click.BadParameter(f"'{text}': name one value, or several with commas between")
        return [one(part) for part in parts]

    return values


def model_argument(name: str = "model") -> Callable[[F], F]:
    """An ONNX file that is read."""
    return click.argument(name, type=MODEL)


def json_option(command: F) -> F:
    """Every figure as JSON."""
    return click.option(
        "--json",
        "json_file",
        type=WRITTEN,
        callback=_not_a_model,
        help="Write every figure to this file as well.",
    )(command)


def max_drop_option(command: F) -> F:
    """The gate."""
    return click.option(
        "--max-drop",
        type=_points,
        metavar="POINTS",
        help="Exit with 1 if more points are lost.",
    )(command)


def labels_option(command: F) -> F:
    """Where classes come from."""
    return click.option(
        "--labels",
        type=FILE_OR_WORD,
        default="auto",
        show_default=True,
        help="Class folders (auto), no labels (none), or a CSV file of image and class.",
    )(command)


def preprocess_option(command: F) -> F:
    """How images become tensors."""
    return click.option(
        "--preprocess",
        type=FILE_OR_WORD,
        help="A TOML file, a Hugging Face preprocessor_config.json, or imagenet, unit or raw. By "
        "default MODEL_STEM.preprocess.toml beside the model.",
    )(command)


def out() -> Console:
    """Results, on stdout, 120 wide when it is not a terminal; names may look like markup."""
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=120)


@contextmanager
def progress_bar() -> Iterator[Callback]:
    """A bar with an estimate on stderr, where that is a terminal; else nothing."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield silent
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def advance(stage: str, count: int, total: int | None, note: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total, note=note)
            elif bar.tasks[tasks[stage]].finished:
                bar.reset(tasks[stage], total=total, note=note)
            bar.advance(tasks[stage], count)
            if note:
                bar.update(tasks[stage], note=note)

        yield advance


@contextmanager
def writing(path: Path | None, values: Any) -> Iterator[None]:
    """Write figures, whether or not anybody reads what is printed first.

    Values JSON has no word for (an infinite SQNR) become null.
    """
    try:
        yield
    finally:
        if path is not None:
            with replacing(path) as temporary:
                text = json.dumps(_plain(values), indent=2) + "\n"
                temporary.write_text(text, encoding="utf-8")


def _not_a_model(context: Any, option: Any, path: Path | None) -> Path | None:
    """Refuse a bad place for figures before any work is done."""
    if path is not None:
        if path.suffix == ".onnx" or path.name.endswith(".onnx.data"):
            raise UsageError(f"--json {path}: is the name of a model; name a .json file")
        check_writable(path, None, force=True)
    return path


def _points(text: str) -> float:
    """Percentage points, of which no drop is more than NaN."""
    points = float(click.FloatRange(0)(text))
    if math.isnan(points):
        raise click.BadParameter(f"'{text}' is not a number")
    return points


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
