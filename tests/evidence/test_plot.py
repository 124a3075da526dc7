"""The plot: an SVG whose marks lie where the figures are."""

import itertools
import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.comparison import Row
from onnxq.evidence.plot import COLORS, plot

SVG = "{http://www.w3.org/2000/svg}"


def row(recipe, bits, act_bits=8, ratio=0.2, **figures):
    fixed = {"samples": 9, "calib_samples": 9, "model": "m", "calib": "c", "data": "d"}
    fixed |= {"seed": 0, "onnxq": "0", "onnxruntime": "1", "key": f"{recipe} {bits} {act_bits}"}
    size = {"size_ratio": None if "error" in figures else ratio}
    return Row(recipe=recipe, bits=bits, act_bits=act_bits, **fixed | size | figures)


def drawn(rows):
    """The document's root, and its marks by the recipe and width in their tooltips."""
    root = ElementTree.fromstring(plot(rows))
    marks = [c for c in root.iter(f"{SVG}circle") if c.get("class") == "mark"]
    named = {mark.find(f"{SVG}title").text.split(":")[0]: mark for mark in marks}
    assert len(named) == len(marks)
    return root, named


def texts(root):
    return [t.text for t in root.iter(f"{SVG}text")]


def test_there_is_one_mark_for_every_row_with_figures():
    rows = [
        row(name, bits, act_bits, ratio=bits / 30, top1=80.0 + bits, float_top1=90.0)
        for name in ("vanilla", "mse")
        for bits in (8, 4)
        for act_bits in (8, "float")
    ]
    root, marks = drawn([*rows, row("mse", 2, error="no way")])
    assert set(marks) == {f"{r.recipe} {r.width}" for r in rows}
    assert {"8-bit activations", "float activations", "float", "top-1, %"} <= set(texts(root))
    assert [texts(root).count(name) for name in ("vanilla", "mse")] == [1, 1]


@given(
    st.lists(
        st.tuples(st.floats(0.05, 1.0), st.floats(0.0, 100.0)), min_size=2, max_size=7, unique=True
    )
)
def test_marks_lie_on_the_linear_scales_of_the_axes(figures):
    rows = [row(f"r{i}", 4, ratio=x, top1=y) for i, (x, y) in enumerate(figures)]
    root, marks = drawn(rows)
    spots = [(float(marks[f"r{i} w4a8"].get("cx")), float(marks[f"r{i} w4a8"].get("cy")))
             for i in range(len(rows))]  # fmt: skip
    _, _, width, height = map(float, root.get("viewBox").split())
    assert all(0 < x < width and 0 < y < height for x, y in spots)
    for axis, sign in ((0, 1), (1, -1)):
        low, high = min(f[axis] for f in figures), max(f[axis] for f in figures)
        ends = [s[axis] for s in spots]
        near, far = (min(ends), max(ends)) if sign == 1 else (max(ends), min(ends))
        for figure, spot in zip(figures, spots, strict=True):
            share = (figure[axis] - low) / (high - low) if high > low else 0.0
            assert spot[axis] == pytest.approx(near + share * (far - near), abs=0.11)


@given(st.floats(-60.0, 60.0), st.floats(2.0, 100.0))
def test_ticks_are_round_few_and_inside(low, span):
    rows = [row("a", 4, sqnr=low), row("a", 8, ratio=0.3, sqnr=low + span)]
    root, _ = drawn(rows)
    panel = root.find(f"{SVG}g")
    ticks = [t for t in panel.iter(f"{SVG}text") if t.get("text-anchor") == "end"]
    values = [float(t.text) for t in ticks]
    assert 2 <= len(values) <= 7
    steps = {round((b - a) / span, 3) for a, b in itertools.pairwise(values)}
    assert max(steps) - min(steps) <= 0.002
    assert all(low - 0.07 * span <= v <= low + 1.07 * span for v in values)


def test_figures_that_are_infinite_or_alone_are_drawn():
    root, marks = drawn([row("a", 8, sqnr=math.inf), row("a", 4, ratio=0.1, sqnr=20.0)])
    assert "SQNR, dB" in texts(root)
    assert float(marks["a w8a8"].get("cy")) < float(marks["a w4a8"].get("cy"))
    _, alone = drawn([row("a", 8, agreement=0.0)])
    assert len(alone) == 1


def test_figures_that_are_all_but_equal_lie_side_by_side():
    _, marks = drawn([row("a", 8, top1=87.10), row("b", 8, top1=87.11)])
    heights = [float(mark.get("cy")) for mark in marks.values()]
    assert 0 < heights[0] - heights[1] < 5


def test_without_figures_the_plot_is_empty():
    _, marks = drawn([row("a", 8, error="no way")])
    assert marks == {}


def test_recipes_can_be_told_apart():
    names = [f"r{i}" for i in range(len(COLORS) + 3)]
    _, marks = drawn([row(name, 8, top1=float(i)) for i, name in enumerate(names)])
    assert len({(m.get("fill"), m.get("stroke")) for m in marks.values()}) == len(names)


def test_the_same_rows_draw_the_same_bytes():
    rows = [row("a", 8, top1=90.0), row("b", 4, top1=80.0)]
    assert plot(rows) == plot(list(rows))
