"""``onnxq compare``: what it prints, what it leaves, and how it ends."""

import csv
import json
from xml.etree import ElementTree

import pytest

from onnxq import workbench
from onnxq.errors import UnsupportedModel
from onnxq.recipes import NAMED, UNTRAINED
from onnxq.workbench import Workbench

COMPARE = ("compare", "model.onnx", "--calib", "calib.npz", "--data", "val.npz")
SMALL = ("--recipes", "vanilla,mse", "--bits", "8,3")


def rows(file):
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_table_csv_json_and_plot_hold_the_same_figures(here, onnxq):
    files = ("--csv", "t.csv", "--json", "o.json", "--plot", "p.svg")
    result = onnxq(*COMPARE, *SMALL, "--act-bits", "8, 4", *files)
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads((here / "o.json").read_text(encoding="utf-8"))
    assert [(r["recipe"], r["bits"], r["act_bits"]) for r in found["rows"]] == [
        (name, bits, act) for bits in (8, 3) for act in (8, 4) for name in ("vanilla", "mse")
    ]
    for written, row in zip(rows(here / "t.csv"), found["rows"], strict=True):
        assert {k: v for k, v in written.items() if v} == {
            k: str(v) for k, v in row.items() if v not in (None, [])
        }
        for text in (f"{row['top1']:.2f} ±", f"{row['sqnr']:.1f} dB", f"{row['size_ratio']:.3f}"):
            assert text in result.stdout
        assert f"{row['float_top1'] - row['top1']:.2f}" in result.stdout
        assert row["seconds"] > 0
    assert f"{found['rows'][0]['float_top1']:.2f} ±" in result.stdout
    assert "model.onnx, judged on 100 samples of val.npz\n" in result.stdout
    assert "calibrated on 64 of calib.npz, seed 0\n" in result.stdout
    best = {r["key"] for r in found["rows"] if r["key"] in found["best"]}
    marked = [line for line in result.stdout.splitlines() if " *  " in line]
    assert len(best) == len(marked) == 4
    marks = [e for e in ElementTree.parse(here / "p.svg").iter() if e.get("class") == "mark"]
    assert len(marks) == 8


def test_by_default_all_recipes_that_do_not_train_are_compared_at_8_and_4_bits(here, onnxq):
    result = onnxq(*COMPARE, "--csv", "t.csv")
    assert result.exit_code == 0
    found = [(r["bits"], r["act_bits"], r["recipe"]) for r in rows(here / "t.csv")]
    assert found == [(bits, "8", name) for bits in ("8", "4") for name in UNTRAINED]
    assert set(NAMED) - set(UNTRAINED) == {"oaq-ft", "bft", "adaround", "brecq", "distill", "best"}


def test_without_torch_a_recipe_that_trains_fails_and_the_others_go_on(here, onnxq, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = onnxq(*COMPARE, "--recipes", "best,mse", "--bits", "8", "--csv", "t.csv")
    assert result.exit_code == 2
    trained, other = rows(here / "t.csv")
    assert "pip install 'onnxq[torch]'" in "".join(trained.values())
    assert other["top1"]


def test_without_labels_the_table_has_no_accuracy(here, onnxq):
    flags = ("--calib", "images", "--data", "flat", "--preprocess", "gray.toml")
    result = onnxq("compare", "model.onnx", *flags, "--recipes", "vanilla", "--bits", "8")
    assert result.exit_code == 0
    assert "agreement" in result.stdout
    assert "top-1" not in result.stdout
    assert "drop" not in result.stdout


def test_nothing_is_left_but_what_was_asked_for(here, onnxq):
    before = {f: f.read_bytes() for f in here.rglob("*") if f.is_file()}
    assert onnxq(*COMPARE, *SMALL).exit_code == 0
    assert {f: f.read_bytes() for f in here.rglob("*") if f.is_file()} == before


@pytest.mark.parametrize("table", [(), ("--csv", "t.csv")], ids=["nothing", "csv"])
def test_stopped_by_hand_it_says_how_to_go_on(here, onnxq, monkeypatch, table):
    convert, begun = Workbench.convert, []

    def stopped(self, recipe, file):
        begun.append(recipe)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return convert(self, recipe, file)

    with monkeypatch.context() as patched:
        patched.setattr(Workbench, "convert", stopped)
        result = onnxq(*COMPARE, *SMALL, *table)
    assert (result.exit_code, result.stdout) == (130, "")
    (line,) = result.stderr.splitlines()
    if not table:
        assert line == "onnxq: interrupted; without --csv nothing is kept"
        return
    assert "t.csv, and the same command goes on from there" in line
    done = (here / "t.csv").read_bytes()
    assert len(rows(here / "t.csv")) == 2
    assert onnxq(*COMPARE, *SMALL, *table).exit_code == 0
    assert (here / "t.csv").read_bytes().startswith(done)
    assert len(rows(here / "t.csv")) == 4


def test_stopped_while_it_reads_it_says_that_nothing_was_done(here, onnxq, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(workbench, "open_samples", stopped)
    result = onnxq(*COMPARE, "--csv", "t.csv")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "onnxq: interrupted; nothing was done yet, and t.csv is not there\n"


def test_a_row_that_fails_is_told_and_the_others_are_shown(here, onnxq, monkeypatch):
    quantize = workbench.quantize

    def failing(prepared, recipe, *rest):
        if recipe.bits == 3:
            raise UnsupportedModel("[bold] has no 3 bits")
        return quantize(prepared, recipe, *rest)

    monkeypatch.setattr(workbench, "quantize", failing)
    flags = ("--json", "o.json", "--plot", "p.svg")
    result = onnxq(*COMPARE, *SMALL, *flags)
    assert (result.exit_code, result.stderr) == (3, "")
    for name in ("vanilla", "mse"):
        assert f"w3a8 {name} failed: [bold] has no 3 bits" in result.stdout
    found = json.loads((here / "o.json").read_text(encoding="utf-8"))["rows"]
    assert [r["top1"] is None for r in found] == [False, False, True, True]
    marks = [e for e in ElementTree.parse(here / "p.svg").iter() if e.get("class") == "mark"]
    assert len(marks) == 2


def test_if_all_rows_fail_the_reasons_are_shown(here, onnxq, monkeypatch):
    monkeypatch.setattr(workbench, "quantize", lambda *_: 1 / 0)
    result = onnxq(*COMPARE, "--recipes", "vanilla", "--bits", "8", "--plot", "p.svg")
    assert result.exit_code == 123
    assert "w8a8 vanilla failed: ZeroDivisionError: division by zero" in result.stdout
