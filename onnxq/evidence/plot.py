"""Accuracy against size as an SVG: a panel for each width of activations, a line per recipe."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from onnxq.comparison import Row

# Eight colors that color-blind readers can tell apart (Okabe and Ito, 2008), yellow made gray.
COLORS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8a8a8a",
)  # fmt: skip
INK, FAINT, GRID = "#333333", "#767676", "#e6e6e6"
# Pixels: a panel's plotting area, what lies left of, above and below it, and the legend.
WIDTH, HEIGHT = 300, 260
LEFT, TOP, BOTTOM, GAP, LEGEND = 56, 64, 56, 36, 110
TICKS = 6


class Point(NamedTuple):
    """A row that has figures."""

    row: Row
    size: float
    score: float


def plot(rows: Sequence[Row]) -> str:
    """An SVG document with one mark for every row that has figures.

    Args:
        rows: As ``compare_recipes`` gives them. The vertical axis is their score.
    """
    points = [
        Point(row, row.size_ratio, row.score)
        for row in rows
        if row.size_ratio is not None and row.score is not None
    ]
    panels = list(dict.fromkeys(row.act_bits for row in rows))
    recipes = list(dict.fromkeys(row.recipe for row in rows))
    floats = [row.float_top1 for row in rows if row.float_top1 is not None][:1]
    x = _Axis([p.size for p in points], LEFT, LEFT + WIDTH)
    y = _Axis([p.score for p in points] + floats, TOP + HEIGHT, TOP)
    across, down = LEFT + len(panels) * (WIDTH + GAP) + LEGEND, TOP + HEIGHT + BOTTOM
    svg = Element(
        "svg", xmlns="http://www.w3.org/2000/svg", role="img",
        width=str(across), height=str(down), viewBox=f"0 0 {across} {down}",
    )  # fmt: skip
    SubElement(svg, "title").text = f"{_measure(rows)} of quantized models against their size"
    SubElement(svg, "style").text = f"text {{ font: 12px sans-serif; fill: {INK} }}"
    SubElement(svg, "rect", width="100%", height="100%", fill="white")
    _text(svg, LEFT - 40, 20, _measure(rows))
    for column, act_bits in enumerate(panels):
        panel = SubElement(svg, "g", transform=f"translate({column * (WIDTH + GAP)} 0)")
        _frame(panel, x, y, f"{act_bits}{'' if act_bits == 'float' else '-bit'} activations")
        for top1 in floats:
            _line(panel, LEFT, y(top1), LEFT + WIDTH, y(top1), stroke=FAINT, dash="2 3")
            _text(panel, LEFT + 2, y(top1) - 5, "float", fill=FAINT)
        here = [p for p in points if p.row.act_bits == act_bits]
        for bits in dict.fromkeys(p.row.bits for p in here):
            places = [x(p.size) for p in here if p.row.bits == bits]
            _text(panel, sum(places) / len(places), TOP - 6, f"w{bits}", "middle", FAINT)
        for index, recipe in enumerate(recipes):
            _series(panel, [p for p in here if p.row.recipe == recipe], x, y, index)
    for index, recipe in enumerate(recipes):
        place, height = across - LEGEND + 6, TOP + 10 + 20 * index
        _dot(svg, place, height, index)
        _text(svg, place + 12, height + 4, recipe)
    ElementTree.indent(svg)
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


class _Axis:
    """A linear scale with round ticks, a little wider than its values."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        finite = [v for v in values if math.isfinite(v)] or [0.0]
        low, high = min(finite), max(finite)
        # Figures that are all but equal are not blown up to look different.
        span = 1.12 * max(high - low, 0.01 * max(abs(low), abs(high)), 1e-6)
        self._low, self._span = (low + high - span) / 2, span
        self._start, self._end = start, end
        power = 10.0 ** math.floor(math.log10(self._span / TICKS))
        step = next(power * m for m in (1, 2, 5, 10) if power * m * TICKS >= self._span)
        first = math.ceil(self._low / step)
        last = math.floor((self._low + self._span) / step)
        self.ticks = [n * step for n in range(first, last + 1)]
        self._decimals = max(0, -math.floor(math.log10(step)))

    def __call__(self, value: float) -> float:
        """Where a value lies, in pixels; what is not finite lies at an end."""
        share = min(max((value - self._low) / self._span, 0.0), 1.0)
        return self._start + share * (self._end - self._start)

    def text(self, tick: float) -> str:
        """A tick with the decimals that all of them need."""
        return f"{tick:.{self._decimals}f}"


def _measure(rows: Sequence[Row]) -> str:
    """What the score is."""
    if any(row.top1 is not None for row in rows):
        return "top-1, %"
    if any(row.agreement is not None for row in rows):
        return "agreement with the float model, %"
    return "SQNR, dB"


def _frame(panel: Element, x: _Axis, y: _Axis, title: str) -> None:
    """Grid, ticks and names of a panel."""
    _text(panel, LEFT + WIDTH / 2, TOP - 26, title, "middle", weight="bold")
    for tick in y.ticks:
        _line(panel, LEFT, y(tick), LEFT + WIDTH, y(tick))
        _text(panel, LEFT - 8, y(tick) + 4, y.text(tick), "end", FAINT)
    for tick in x.ticks:
        _line(panel, x(tick), TOP + HEIGHT, x(tick), TOP + HEIGHT + 4, stroke=FAINT)
        _text(panel, x(tick), TOP + HEIGHT + 18, x.text(tick), "middle", FAINT)
    _line(panel, LEFT, TOP + HEIGHT, LEFT + WIDTH, TOP + HEIGHT, stroke=FAINT)
    _text(panel, LEFT + WIDTH / 2, TOP + HEIGHT + 40, "size, of the float file", "middle")


def _series(panel: Element, points: Sequence[Point], x: _Axis, y: _Axis, index: int) -> None:
    """A recipe's line over its sizes, and a mark for each that tells its figures."""
    ordered = sorted(points, key=lambda point: point.size)
    for a, b in itertools.pairwise(ordered):
        color = COLORS[index % len(COLORS)]
        _line(panel, x(a.size), y(a.score), x(b.size), y(b.score), stroke=color, width="1.5")
    for row, size, score in ordered:
        mark = _dot(panel, x(size), y(score), index)
        mark.set("class", "mark")
        text = f"{row.recipe} {row.width}: {score:.2f}, {size:.3f} of the float file"
        SubElement(mark, "title").text = text


def _dot(parent: Element, x: float, y: float, index: int) -> Element:
    """A dot in a recipe's color: filled at first, hollow once the colors come round again."""
    color, hollow = COLORS[index % len(COLORS)], index >= len(COLORS)
    fill, stroke = ("white", color) if hollow else (color, "white")
    place = {"cx": _px(x), "cy": _px(y), "r": "4.5"}
    return SubElement(parent, "circle", place | {"fill": fill, "stroke": stroke})


def _line(
    parent: Element,
    x1: float,
    y1: float,
    x2: float,
    y2: float,
    stroke: str = GRID,
    width: str = "1",
    dash: str = "none",
) -> None:
    ends = {"x1": _px(x1), "y1": _px(y1), "x2": _px(x2), "y2": _px(y2)}
    style = {"stroke": stroke, "stroke-width": width, "stroke-dasharray": dash}
    SubElement(parent, "line", ends | style)


def _text(
    parent: Element,
    x: float,
    y: float,
    text: str,
    anchor: str = "start",
    fill: str = INK,
    weight: str = "normal",
) -> None:
    style = f"fill: {fill}; font-weight: {weight}"
    place = {"x": _px(x), "y": _px(y), "text-anchor": anchor, "style": style}
    SubElement(parent, "text", place).text = text


def _px(value: float) -> str:
    """Pixels to a tenth: what is drawn alike is written alike."""
    return f"{value:.1f}"
