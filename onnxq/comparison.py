"""Recipes side by side on one model: the same data and widths for each, what they share done once.

What a row of the table depends on is hashed into its key. A table on disk is therefore its own
state: rows whose keys are there already are not run again.
"""

import csv
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from onnxq._version import __version__
from onnxq.errors import InputError, OnnxqError, UsageError
from onnxq.files import check_apart, check_writable, replacing
from onnxq.graph.protos import model_files
from onnxq.progress import Progress, silent
from onnxq.recipe import ActBits, Recipe
from onnxq.recipes import UNTRAINED, plan
from onnxq.runtime import version
from onnxq.samples.data import Data
from onnxq.samples.preprocess import Preprocess
from onnxq.workbench import Workbench

# Between the warnings of a row on disk.
SEPARATOR = " | "
# How what is not UTF-8 in the paths of a row is written and read, as everywhere in Python.
PATHS = "surrogateescape"


class Row(BaseModel):
    """What one recipe came to at one width; a line of the CSV file.

    Attributes:
        recipe: A name of ``recipes.NAMED``.
        bits: Of the weights.
        act_bits: Of the activations.
        top1: Accuracy in percent; None without labels. Likewise ``float_top1``.
        float_top1: Of the float model.
        agreement: With the float model's answers, in percent; None if there are none to count.
        sqnr: In dB, of the output where it is least.
        bytes: Size of the file.
        size_ratio: To the float file.
        seconds: Wall time of the conversion alone on this machine, without reading the images.
            Work that was shared counts in full for every row; statistics are histograms for all,
            which a recipe that needs only ranges would have had faster.
        error: Why there are no figures.
        warnings: What to know before believing them, a sentence each.
        samples: Samples judged on.
        calib_samples: Samples calibrated on.
        model: Path of the float model.
        calib: Path of the calibration data.
        data: Path of the data judged on.
        seed: Of the draw of the calibration samples.
        onnxq: The version of onnxq.
        onnxruntime: The version of onnxruntime.
        key: Hash of everything the figures depend on, contents of all files included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    bits: int
    act_bits: ActBits
    top1: float | None = None
    float_top1: float | None = None
    agreement: float | None = None
    sqnr: float | None = None
    bytes: int | None = None
    size_ratio: float | None = None
    seconds: float | None = None
    error: str | None = None
    warnings: tuple[str, ...] = ()
    samples: int
    calib_samples: int
    model: str
    calib: str
    data: str
    seed: int
    onnxq: str
    onnxruntime: str
    key: str

    @property
    def width(self) -> str:
        """Short form of the widths, as in ``w4a8``."""
        return f"w{self.bits}a{'f' if self.act_bits == 'float' else self.act_bits}"

    @property
    def score(self) -> float | None:
        """What recipes are ranked by: top-1, else agreement, else SQNR; None for a failed row."""
        return next((x for x in (self.top1, self.agreement, self.sqnr) if x is not None), None)

    @property
    def rank(self) -> tuple[float, float]:
        """Greater is better: the score, then the SQNR."""
        score, sqnr = (-math.inf if x is None else x for x in (self.score, self.sqnr))
        return score, sqnr


@dataclass
class Sweep:
    """The rows of a comparison.

    Attributes:
        source: The float model.
        float_bytes: Its size.
        rows: By width, then by recipe, as they were asked for.
        overlap: Samples judged on that were calibrated on as well.
        exit_code: 0, or the gravest of the rows that failed.
    """

    source: str
    float_bytes: int
    rows: list[Row] = field(default_factory=list)
    overlap: int = 0
    exit_code: int = 0

    @property
    def best(self) -> set[str]:
        """Keys of the rows that are the best of two or more of their width: score, then SQNR."""
        found = set()
        for _, group in itertools.groupby(self.rows, lambda row: row.width):
            done = [row for row in group if row.score is not None]
            if len(done) > 1:
                found.add(max(done, key=lambda row: row.rank).key)
        return found

    @property
    def warnings(self) -> list[str]:
        """What the reader must know before believing the figures, each with the rows it is of."""
        where: dict[str, list[str]] = {}
        done = [row for row in self.rows if row.error is None]
        for row in done:
            for text in row.warnings:
                where.setdefault(text, []).append(f"{row.width} {row.recipe}")
        found = [
            text if len(rows) == len(done) else f"{', '.join(rows)}: {text}"
            for text, rows in where.items()
        ]
        if self.overlap:
            found.append(
                f"{self.overlap} of the {self.rows[0].samples} samples judged on were calibrated "
                "on as well, which flatters all figures"
            )
        return found


def compare_recipes(
    source: str | Path,
    *,
    calib: Data,
    data: Data,
    recipes: Sequence[str] = UNTRAINED,
    bits: Sequence[int] = (8, 4),
    act_bits: Sequence[ActBits] = (8,),
    calib_size: int = 256,
    preprocess: Preprocess | str | Path | None = None,
    labels: str | Path = "auto",
    seed: int = 0,
    table: Path | None = None,
    progress: Progress = silent,
) -> Sweep:
    """Convert a model with every recipe at every width and judge the files on the same data.

    A conversion that fails fills its row with the reason, and the others go on.

    Args:
        source: The float model.
        calib: See ``convert``; likewise the following.
        data: Judges all files; best images that nothing else was chosen on. Labels make agreement
            accuracy.
        recipes: Names of ``recipes.NAMED``; by default those of recipes that do not train.
        bits: Of the weights.
        act_bits: Of the activations.
        calib_size: Samples drawn from ``calib``.
        preprocess: For images.
        labels: ``auto``, ``none`` or a CSV file, for ``data``.
        seed: Of the draw.
        table: A CSV file, written after every row. Rows it holds already are not run again, unless
            they failed; rows of other models and data stay.
        progress: Called as samples and rows are done.

    Raises:
        UsageError: There is no such recipe or width, or ``table`` is something else.
        InputError: The model or the data cannot be used.
    """
    source = Path(source)
    plans = _plans(recipes, bits, act_bits)
    check_apart(
        {"--csv": [table]},
        {
            "MODEL": model_files(source),
            "--calib": [calib],
            "--data": [data],
            "--labels": [labels],
            "--preprocess": [preprocess],
        },
    )
    written = {} if table is None else read_rows(table)
    bench = Workbench(source, calib, data, calib_size, preprocess, labels, seed, progress)
    sweep = Sweep(str(source), bench.float_bytes, overlap=bench.overlap)
    provenance = {
        "samples": len(bench.judged),
        "calib_samples": len(bench.calibrated),
        "model": str(source),
        "calib": _described(calib),
        "data": _described(data),
        "seed": seed,
        "onnxq": __version__,
        "onnxruntime": version(),
    }
    if table is not None:
        _write_rows(table, written)
    known: dict[str, tuple[dict[str, Any], int]] = {}
    for name, recipe in plans:
        key, same = bench.key(name, recipe), recipe.to_json()
        if key not in written or written[key].error is not None:
            cell = {"recipe": name, "bits": recipe.bits, "act_bits": recipe.act_bits, "key": key}
            if same not in known:  # fast and mse are one at 7 and 8 bits
                known[same] = _attempted(bench, recipe)
            figures, code = known[same]
            written[key] = Row.model_validate(cell | figures | provenance)
            sweep.exit_code = max(sweep.exit_code, code)
            if table is not None:
                _write_rows(table, written)
        sweep.rows.append(written[key])
        progress("comparing", 1, len(plans))
    return sweep


def _plans(
    recipes: Sequence[str], bits: Sequence[int], act_bits: Sequence[ActBits]
) -> list[tuple[str, Recipe]]:
    """Every recipe at every width, by width; what cannot be is refused before any work."""
    found = [
        (name, plan(name, bits=width, act_bits=act_width, calibrated=True))
        for width in dict.fromkeys(bits)
        for act_width in dict.fromkeys(act_bits)
        for name in dict.fromkeys(recipes)
    ]
    if not found:
        raise UsageError("nothing to compare: name at least one recipe and one width of each kind")
    return found


def _attempted(bench: Workbench, recipe: Recipe) -> tuple[dict[str, Any], int]:
    """The figures of a row, or the reason why there are none; the exit code that goes with it."""
    try:
        return bench.figures(recipe), 0
    except OnnxqError as cause:
        return {"error": str(cause)}, cause.exit_code
    except Exception as cause:
        text = " ".join(str(cause).split())
        kind = InputError if isinstance(cause, OSError | MemoryError) else OnnxqError
        return {"error": f"{type(cause).__name__}: {text}"}, kind.exit_code


def _described(data: Data) -> str:
    return str(data) if isinstance(data, str | Path) else "given by the caller"


# -- the table on disk -----------------------------------------------------------------------------


def read_rows(path: Path) -> dict[str, Row]:
    """Rows of a table by key; none if the file is not there yet.

    Args:
        path: A CSV file that ``compare_recipes`` wrote or is to write.

    Raises:
        UsageError: It cannot be written, or is something else, which is left as it is.
    """
    check_writable(path, None, force=True)
    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8", errors=PATHS) as file:
            reader = csv.DictReader(file, strict=True)
            if reader.fieldnames != list(Row.model_fields):
                raise ValueError("other columns")
            rows = [_row(line) for line in reader]
    except (ValueError, csv.Error) as cause:
        raise UsageError(
            f"{path}: is there and no table of onnxq compare {__version__}; name another file"
        ) from cause
    return {row.key: row for row in rows}


def _row(line: dict[str, str]) -> Row:
    """A row from its texts; an empty one is a field that is not set."""
    values: dict[str, Any] = {name: text for name, text in line.items() if text}
    if "warnings" in values:
        values["warnings"] = values["warnings"].split(SEPARATOR)
    return Row.model_validate(values)


def _write_rows(path: Path, rows: dict[str, Row]) -> None:
    """Replace a table as a whole: whoever looks, or stops it, finds a valid one."""
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors=PATHS) as file,
    ):
        writer = csv.DictWriter(file, list(Row.model_fields), lineterminator="\n")
        writer.writeheader()
        for row in rows.values():
            writer.writerow(row.model_dump() | {"warnings": SEPARATOR.join(row.warnings)})
