"""What a conversion did and how good the result is: one value that prints itself."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from onnxq.evidence.evaluate import Comparison, Rate
from onnxq.evidence.inspect import Cost
from onnxq.evidence.kernels import Kernels
from onnxq.evidence.layerwise import LayerError
from onnxq.pipeline import Outcome, Skip
from onnxq.precision import Fit

WORST = 5
# Reasons that are printed of one pass, and layers left float for one reason; --json has them all.
MOST_REASONS, MOST_NAMES = 8, 12


@dataclass
class Report:
    """Everything ``convert`` has to say.

    Attributes:
        source: Path of the float model.
        output: Path of the file written.
        label: Widths, as in ``w8a8``.
        float_bytes: Size of the source, external data included.
        bytes: Size of the output, external data included.
        notes: What had to be done or assumed, one sentence each.
        warnings: What the reader should look into.
        outcomes: What every pass did.
        difference: Largest change of a float output by the exact passes, relative to the largest
            value of that output; None if it was not checked.
        calibration: Number of samples, seed, digest and preprocessing; empty without data.
        kernels: What onnxruntime runs on integers.
        why_float: Weighted layer that runs on floats, or other node that holds weights, to the
            reason.
        cost: Bits, multiply-accumulates and bit operations of the weighted layers.
        layers: Error of every layer.
        fidelity: Quantized against float on some of the calibration samples.
        validation: The same on the validation data.
        max_drop: The gate, in points.
        fit: What became of the SQNR that was asked for.
    """

    source: str
    output: str
    label: str
    float_bytes: int
    bytes: int = 0
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    difference: float | None = None
    calibration: dict[str, Any] = field(default_factory=dict)
    kernels: Kernels = field(default_factory=Kernels)
    why_float: dict[str, str] = field(default_factory=dict)
    cost: Cost | None = None
    layers: list[LayerError] = field(default_factory=list)
    fidelity: Comparison | None = None
    validation: Comparison | None = None
    max_drop: float | None = None
    fit: Fit | None = None

    @property
    def missed(self) -> float | None:
        """Points by which the gate was missed; None if it was passed or not set."""
        return self.validation.missed(self.max_drop) if self.validation else None

    @property
    def exit_code(self) -> int:
        """0, or 1 if the ``max_drop`` gate failed or the SQNR that was asked for is missed."""
        return int(self.missed is not None or bool(self.fit and self.fit.missed))

    def to_dict(self) -> dict[str, Any]:
        """Every figure, as plain values for JSON."""
        return asdict(self) | {
            "size_ratio": self.bytes / self.float_bytes,
            "integer_layers": len(self.kernels.integer),
            "total_layers": self.kernels.total,
            "fidelity": comparison_dict(self.fidelity) if self.fidelity else None,
            "validation": comparison_dict(self.validation) if self.validation else None,
            "missed_by": self.missed,
            "fit": asdict(self.fit) | {"missed_by": self.fit.missed} if self.fit else None,
            "exit_code": self.exit_code,
        }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Print, widest facts first; a name in a model may look like markup but is none."""
        for part in self._parts():
            yield from console.render(part, options.update(markup=False))

    def _parts(self) -> Iterator[RenderableType]:
        yield Text.assemble(
            (self.source, "bold"), " -> ", (self.output, "bold"), f"  ({self.label})"
        )
        facts = Table.grid(padding=(0, 2))
        for name, text in self._facts():
            facts.add_row(name, text)
        yield facts
        if self.layers:
            yield ""
            count = f"worst {min(WORST, len(self.layers))} of {len(self.layers)} layers"
            if (missing := self.kernels.total - len(self.layers)) > 0:
                count += f"; {missing} could not be compared"
            yield layer_table(self.layers[:WORST], count)
            worst = self.layers[0]
            if worst.accumulated < 20:
                yield f"to leave the worst one alone: --keep-float '{worst.name}'"
                if self.fit is None:
                    yield "to round less wherever it hurts most: --min-sqnr 20"
        floats = [Skip(name, why) for name, why in self.why_float.items()]
        yield from _reasons("left float, and why", _alike(floats, MOST_NAMES))
        for name, outcome in self.outcomes.items():
            skips = [skip for skip in outcome.skips if skip.where not in self.why_float]
            rows = _alike(skips, 1)
            if (more := len(rows) - MOST_REASONS) > 0:
                rows[MOST_REASONS:] = [(f"{more} more", "--json has them all")]
            yield from _reasons(f"left alone by {name}, and why", rows)
        for comparison, title in (
            (self.fidelity, "calibration data, which the passes have seen"),
            (self.validation, "validation data"),
        ):
            if comparison:
                yield ""
                yield comparison_table(comparison, f"{title}, {comparison.samples} samples")
        for warning in self.warnings:
            yield Text.assemble(("warning: ", "yellow"), warning)
        if self.missed is not None:
            yield Text(gate_text(self.max_drop, self.missed), "red")
        if self.fit and self.fit.missed:
            text = f"--min-sqnr {self.fit.least:g} missed by {self.fit.missed:.2f} dB"
            yield Text(text, "red")

    def _facts(self) -> list[tuple[str, str]]:
        facts = [
            (
                "size",
                f"{human(self.float_bytes)} -> {human(self.bytes)}, "
                f"ratio {self.bytes / self.float_bytes:.3f}",
            ),
            (
                "kernels",
                f"{len(self.kernels.integer)} of {self.kernels.total} layers on integers; the rest "
                f"of the graph: {_operators(self.kernels)}",
            ),
        ]
        if self.cost is not None:
            facts.append(("weights", cost_text(self.cost)))
        if self.fit is not None:
            facts.append(("precision", fit_text(self.fit)))
            if self.fit.worst:
                shares = ", ".join(f"{name} {share:.0%}" for name, share in self.fit.worst)
                facts.append(("cost most", shares))
        steps = [f"{name} {len(out.edits)}" for name, out in self.outcomes.items() if out]
        facts.append(("passes", ", ".join(steps)))
        if self.difference is not None:
            text = f"float outputs moved by at most {self.difference:.1e} of their largest value"
            facts.append(("verified", text))
        if self.calibration:
            facts.append(
                (
                    "calibration",
                    f"{self.calibration['count']} samples, seed {self.calibration['seed']}, "
                    f"preprocessing: {self.calibration['origin']}",
                )
            )
        remarks = [r for out in self.outcomes.values() for r in out.remarks]
        texts = [*self.notes, *(f"{r.where}: {r.what}" for r in remarks)]
        return facts + [("note", text) for text in texts]


def _alike(skips: list[Skip], most: int) -> list[tuple[str, str]]:
    """Places and reasons; where more than ``most`` share a reason, the first stands for them."""
    where: dict[str, list[str]] = {}
    for skip in skips:
        where.setdefault(skip.why, []).append(skip.where)
    found: list[tuple[str, str]] = []
    for why, names in where.items():
        several = len(names) > most
        shown = [f"{names[0]} and {len(names) - 1} more"] if several else names
        found += [(name, why) for name in shown]
    return found


def _reasons(title: str, rows: Iterable[tuple[str, str]]) -> Iterator[RenderableType]:
    """A titled table of places and reasons; nothing without any."""
    table = Table.grid(padding=(0, 2))
    for name, why in rows:
        table.add_row("  " + name, why)
    if table.row_count:
        yield ""
        yield title
        yield table


def gate_text(max_drop: float | None, missed: float) -> str:
    """Why the gate failed."""
    if math.isinf(missed):
        return f"--max-drop {max_drop:g} cannot be judged: the model is not a classifier"
    return f"--max-drop {max_drop:g} missed by {missed:.2f} points"


def comparison_dict(c: Comparison) -> dict[str, Any]:
    """Every figure of a comparison, as plain values."""

    def rate(r: Rate | None) -> dict[str, Any] | None:
        if r is None:
            return None
        return {"percent": r.percent, "interval": r.interval, "hits": r.hits, "count": r.count}

    return {
        "samples": c.samples,
        "float_top1": rate(c.float_top1),
        "quantized_top1": rate(c.quantized_top1),
        "float_top5": rate(c.float_top5),
        "quantized_top5": rate(c.quantized_top5),
        "agreement": rate(c.agreement),
        "kl": c.kl if c.agreement else None,
        "drop": c.drop,
        "outputs": {k: {"sqnr": f.sqnr, "cosine": f.cosine} for k, f in c.outputs.items()},
        "optimized_vs_unoptimized": rate(c.exact),
        "optimized_vs_unoptimized_sqnr": c.exact_sqnr,
        "optimized_vs_unoptimized_loss": c.exact_loss,
        "skipped": c.skipped,
        "warnings": c.warnings,
    }


def comparison_table(c: Comparison, title: str) -> Table:
    """Float against quantized."""
    table = Table(title=title, title_justify="left", title_style="", box=None, pad_edge=False)
    for column in ("", "float", "quantized", "95 % interval"):
        table.add_column(column, justify="left" if not column else "right")
    for name, before, after in (
        ("top-1", c.float_top1, c.quantized_top1),
        ("top-5", c.float_top5, c.quantized_top5),
    ):
        if before and after:
            table.add_row(
                name, f"{before.percent:.2f} %", f"{after.percent:.2f} %", _interval(after)
            )
    if c.agreement:
        table.add_row("agreement", "", f"{c.agreement.percent:.2f} %", _interval(c.agreement))
        table.add_row("KL", "", f"{c.kl:.4f} nat", "")
    for name, fidelity in c.outputs.items():
        table.add_row(f"SQNR of {name}", "", f"{fidelity.sqnr:.1f} dB", "")
        table.add_row(f"cosine of {name}", "", f"{fidelity.cosine:.5f}", "")
    return table


def layer_table(errors: list[LayerError], title: str) -> Table:
    """Errors of layers, isolated and accumulated, and what part of the latter is mean shift."""
    table = Table(title=title, title_justify="left", title_style="", box=None, pad_edge=False)
    table.add_column("layer")
    table.add_column("SQNR alone", justify="right")
    table.add_column("SQNR in the model", justify="right")
    table.add_column("mean shift", justify="right")
    for e in errors:
        noise = (f"{e.isolated:.1f} dB", f"{e.accumulated:.1f} dB")
        table.add_row(e.name, *noise, f"{e.shift_share:.0%} of the error")
    return table


def cost_text(c: Cost) -> str:
    """Bits, multiply-accumulates and bit operations on one line."""
    text = (
        f"{c.average_bits:.2f} bits on average, compressed {c.compression:.2f}x with their scales"
    )
    if c.macs is None or c.bops is None:
        return text
    return f"{text}; {c.macs / 1e6:.1f} M multiply-accumulates, {c.bops / 1e9:.2f} G bit operations"


def fit_text(f: Fit) -> str:
    """What was given up for an SQNR, and what it bought."""
    count = Counter[str](relief.kind for relief in f.reliefs)
    names = {
        "weights": "layers with weights of more bits",
        "activations": "tensors of more bits",
        "floats": "nodes in floats",
    }
    parts = [f"{count[kind]} {what}" for kind, what in names.items() if count[kind]]
    given = ", ".join(parts) or "nothing had to be given up"
    error = "from one run" if f.doubt is None else f"give or take {f.doubt:.1f}"
    found = f"{f.sqnr:.1f} dB, {error}, on {f.judges} samples held out"
    return f"{found}, {f.least:g} wanted: {given}"


def human(size: int) -> str:
    """Bytes for reading."""
    return f"{size / 1024:.0f} KiB" if size < 2**20 else f"{size / 2**20:.2f} MiB"


def _interval(rate: Rate) -> str:
    lo, hi = rate.interval
    return f"{lo:.2f} to {hi:.2f}"


def _operators(kernels: Kernels) -> str:
    others = Counter(kernels.operators)
    for kernel in kernels.integer.values():
        others[kernel] -= 1
    return ", ".join(f"{n} {op}" for op, n in others.most_common() if n > 0) or "nothing"
