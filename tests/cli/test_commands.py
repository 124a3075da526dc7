import errno
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxq as library
from onnxq.cli import main
from onnxq.pipeline import REGISTRY
from onnxq.recipes import NAMED, UNTRAINED

IMAGES = ("--calib", "images", "--preprocess", "gray.toml")
TENSORS = ("--calib", "calib.npz")
LAYERS = 8


def agreement(file, folder):
    """Share of equal top-1 answers of the float model and ``file``, by onnxruntime alone."""
    x = np.load(folder / "val.npz")["image"]
    answers = [
        ort.InferenceSession(str(path)).run(None, {"image": x})[0].argmax(axis=1)
        for path in (folder / "model.onnx", file)
    ]
    return float(np.mean(answers[0] == answers[1]))


def figures(file):
    return json.loads(file.read_text(encoding="utf-8"))


def weight_scales(file):
    """Sizes of the scales of all weights."""
    proto = onnx.load(file)
    sizes = {t.name: int(np.prod(t.dims)) for t in proto.graph.initializer}
    codes = {t.name for t in proto.graph.initializer if len(t.dims) > 1}
    found = []
    for node in proto.graph.node:
        moves = ("Cast", "Concat", "Pad", "Reshape", "Transpose")
        if node.op_type in moves and node.input[0] in codes:
            codes.add(node.output[0])
        if node.op_type == "DequantizeLinear" and node.input[0] in codes:
            found.append(sizes[node.input[1]])
    return found


# -- convert -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "ratio", "equal"), [(8, 0.3, 0.99), (4, 0.17, 0.95)])
@pytest.mark.parametrize("calib", [TENSORS, IMAGES], ids=["tensors", "images"])
def test_convert_writes_a_smaller_model_that_answers_alike(here, onnxq, bits, ratio, equal, calib):
    result = onnxq("convert", "model.onnx", "--bits", bits, *calib)
    assert (result.exit_code, result.stderr) == (0, "")
    out = here / f"model.w{bits}a8.onnx"
    assert out.stat().st_size < ratio * (here / "model.onnx").stat().st_size
    assert agreement(out, here) >= equal
    assert f"{LAYERS} of {LAYERS} layers on integers" in result.stdout


def test_convert_writes_nothing_but_its_output(here, onnxq):
    before = {f: f.read_bytes() for f in here.rglob("*") if f.is_file()}
    onnxq("convert", "model.onnx", *TENSORS, "-o", "out.onnx")
    after = {f: f.read_bytes() for f in here.rglob("*") if f.is_file()}
    assert after.pop(here / "out.onnx")
    assert after == before


@pytest.mark.parametrize(
    ("flags", "label"),
    [
        ((), "w8af"),
        (("--bits", "4"), "w4af"),
        ((*TENSORS, "--act-bits", "float"), "w8af"),
        ((*TENSORS, "--act-bits", "4"), "w8a4"),
        ((*TENSORS, "--bits", "3", "--act-bits", "7"), "w3a7"),
    ],
)
def test_the_default_output_is_named_after_the_widths(here, onnxq, flags, label):
    assert onnxq("convert", "model.onnx", *flags).exit_code == 0
    (out,) = here.glob("model.*.onnx")
    assert out.name == f"model.{label}.onnx"
    ort.InferenceSession(str(out))


def test_without_data_activations_stay_float_and_the_report_says_so(here, onnxq):
    result = onnxq("convert", "model.onnx", "--bits", "4")
    assert "no calibration data: weights only, activations stay float" in result.stdout
    assert agreement(here / "model.w4af.onnx", here) >= 0.9
    operators = {node.op_type for node in onnx.load(here / "model.w4af.onnx").graph.node}
    assert "QuantizeLinear" not in operators


def test_few_activation_bits_leave_few_levels(here, onnxq):
    onnxq("convert", "model.onnx", *TENSORS, "--act-bits", "4")
    proto = onnx.load(here / "model.w8a4.onnx")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    clips = [node for node in proto.graph.node if node.op_type == "Clip"]
    assert clips
    assert all(stored[node.input[2]] <= 15 for node in clips)


def test_an_existing_output_is_replaced_by_force_alone(here, onnxq):
    (here / "model.w8af.onnx").write_bytes(b"old")
    assert onnxq("convert", "model.onnx").exit_code == 2
    assert (here / "model.w8af.onnx").read_bytes() == b"old"
    assert onnxq("convert", "model.onnx", "--force").exit_code == 0
    ort.InferenceSession(str(here / "model.w8af.onnx"))


@pytest.mark.parametrize("command", ["convert", "validate", "inspect", "bench"])
def test_figures_are_printed_even_if_their_file_cannot_be_written(
    here, onnxq, monkeypatch, command
):
    onnxq("convert", "model.onnx", *TENSORS, "-o", "first.onnx")
    flags = {
        "convert": ("model.onnx", *TENSORS),
        "validate": ("model.onnx", "first.onnx", "--data", "val.npz"),
        "inspect": ("model.onnx",),
        "bench": ("model.onnx", "first.onnx"),
    }
    rename = Path.replace

    def full(file, target):
        if Path(target).suffix == ".json":
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return rename(file, target)

    monkeypatch.setattr(Path, "replace", full)
    result = onnxq(command, *flags[command], "--json", "out.json")
    assert result.exit_code == 3
    assert "out.json" in result.stderr
    assert {"convert": "kernels", "bench": "speed"}.get(command, "integer kernels") in result.stdout


def test_the_json_file_holds_the_figures_that_are_printed(here, onnxq):
    flags = (*IMAGES, "--bits", "4", "--validate", "val", "--json", "out.json")
    printed = onnxq("convert", "model.onnx", *flags).stdout
    found = figures(here / "out.json")
    assert found["output"] == "model.w4a8.onnx"
    assert found["bytes"] == (here / "model.w4a8.onnx").stat().st_size
    assert found["float_bytes"] == (here / "model.onnx").stat().st_size
    assert f"ratio {found['size_ratio']:.3f}" in printed
    assert f"moved by at most {found['difference']:.1e}" in printed
    assert f"{found['calibration']['count']} samples, seed 0" in printed
    assert f"{found['integer_layers']} of {found['total_layers']} layers on integers" in printed
    assert len(found["layers"]) == LAYERS
    for layer in found["layers"][:5]:
        assert layer["name"] in printed
        assert f"{layer['isolated']:.1f} dB" in printed
        assert f"{layer['accumulated']:.1f} dB" in printed
    for part in ("fidelity", "validation"):
        assert f"{found[part]['agreement']['percent']:.2f} %" in printed
        assert f"{found[part]['kl']:.4f} nat" in printed
        assert f"{found[part]['outputs']['logits']['sqnr']:.1f} dB" in printed
    for rate in ("float_top1", "quantized_top1", "float_top5", "quantized_top5"):
        assert f"{found['validation'][rate]['percent']:.2f} %" in printed
    assert (found["exit_code"], found["missed_by"]) == (0, None)


@pytest.mark.parametrize(
    "flags",
    [(*TENSORS, "--calib-size", "20"), ("--bits", "4", *IMAGES, "--calib-size", "20"), ("--oaq",)],
    ids=["tensors", "images", "weights"],
)
def test_the_same_seed_writes_the_same_bytes(here, onnxq, flags):
    for name in ("a.onnx", "b.onnx"):
        onnxq("convert", "model.onnx", *flags, "-o", name, "--seed", "7")
    assert (here / "a.onnx").read_bytes() == (here / "b.onnx").read_bytes()


def test_another_seed_draws_other_samples(here, onnxq):
    for seed in (0, 1):
        onnxq(
            "convert", "model.onnx", *TENSORS, "--calib-size", "9", "--seed", seed,
            "-o", f"{seed}.onnx", "--json", f"{seed}.json",
        )  # fmt: skip
    drawn = [figures(here / f"{seed}.json")["calibration"] for seed in (0, 1)]
    assert [d["count"] for d in drawn] == [9, 9]
    assert drawn[0]["digest"] != drawn[1]["digest"]


def test_the_output_says_how_it_was_made(here, onnxq):
    onnxq("convert", "model.onnx", "--bits", "4", *IMAGES)
    said = {p.key: p.value for p in onnx.load(here / "model.w4a8.onnx").metadata_props}
    assert said["onnxq.version"] == library.__version__
    assert json.loads(said["onnxq.preprocess"])["color"] == "gray"
    assert library.Recipe.from_dict(json.loads(said["onnxq.recipe"])).label == "w4a8"
    assert len(said["onnxq.calibration"]) == 64


def test_kept_nodes_stay_float_and_the_report_says_why(here, onnxq):
    flags = ("--keep-float", "/head/*", "--keep-float", "/stem/stem.0/Conv", "--json", "out.json")
    printed = onnxq("convert", "model.onnx", *TENSORS, *flags).stdout
    found = figures(here / "out.json")
    assert found["integer_layers"] == LAYERS - 2
    assert found["why_float"]["/head/Gemm"] == "kept by --keep-float /head/*"
    assert "kept by --keep-float /head/*" in printed


def test_a_name_that_looks_like_a_glob_or_like_markup_is_taken_as_it_is(here, onnxq):
    proto = onnx.load("model.onnx")
    node = next(n for n in proto.graph.node if n.op_type == "Gemm")
    node.name = "head[red]/gemm[/red]"
    onnx.save(proto, "odd.onnx")
    assert node.name in onnxq("inspect", "odd.onnx").stdout
    result = onnxq("convert", "odd.onnx", *TENSORS, "--keep-float", node.name)
    assert f"kept by --keep-float {node.name}" in result.stdout


def test_one_scale_for_a_layer_or_one_for_each_channel(here, onnxq):
    onnxq("convert", "model.onnx", *TENSORS, "-o", "channel.onnx")
    onnxq("convert", "model.onnx", *TENSORS, "-o", "tensor.onnx", "--per-tensor")
    assert len(weight_scales(here / "channel.onnx")) == LAYERS
    assert min(weight_scales(here / "channel.onnx")) == 10
    assert weight_scales(here / "tensor.onnx") == [1] * LAYERS


def test_oaq_changes_the_weights(here, onnxq):
    flags = ("--bits", "4", "--per-tensor", *TENSORS)
    onnxq("convert", "model.onnx", *flags, "-o", "plain.onnx")
    assert onnxq("convert", "model.onnx", *flags, "-o", "oaq.onnx", "--oaq").exit_code == 0
    assert (here / "plain.onnx").read_bytes() != (here / "oaq.onnx").read_bytes()
    assert agreement(here / "oaq.onnx", here) >= 0.9


@pytest.mark.parametrize("labels", ["auto", "labels.csv", "none"])
def test_labels_turn_agreement_into_accuracy(here, onnxq, labels):
    folder = "flat" if labels == "labels.csv" else "val"
    flags = (*IMAGES, "--validate", folder, "--labels", labels, "--json", "out.json")
    printed = onnxq("convert", "model.onnx", *flags).stdout
    found = figures(here / "out.json")["validation"]
    assert found["samples"] == 100
    assert found["agreement"]["percent"] >= 99
    if labels == "none":
        assert found["float_top1"] is None
        assert "top-1" not in printed
    else:
        assert found["float_top1"]["percent"] >= 97
        assert found["drop"] <= 1


def test_tensors_bring_their_labels(here, onnxq):
    onnxq("convert", "model.onnx", *TENSORS, "--validate", "val.npz", "--json", "out.json")
    assert figures(here / "out.json")["validation"]["float_top1"]["percent"] >= 97


def test_a_missed_gate_exits_with_1_and_leaves_the_file(here, onnxq):
    flags = ("--quality", "fast", "--bits", "2", "--per-tensor", "--validate", "val.npz")
    flags += ("--json", "out.json")
    result = onnxq("convert", "model.onnx", *TENSORS, *flags, "--max-drop", "0.5")
    assert result.exit_code == 1
    assert (here / "model.w2a8.onnx").is_file()
    found = figures(here / "out.json")
    assert f"--max-drop 0.5 missed by {found['missed_by']:.2f} points" in result.stdout
    assert (
        onnxq("convert", "model.onnx", *TENSORS, *flags, "--max-drop", "100", "--force").exit_code
        == 0
    )


def test_an_sqnr_that_is_missed_exits_with_1_and_says_by_how_much(here, onnxq):
    flags = ("--quality", "fast", "--min-sqnr", "90", "--json", "out.json")
    result = onnxq("convert", "model.onnx", *TENSORS, *flags)
    assert (result.exit_code, result.stderr) == (1, "")
    fit = figures(here / "out.json")["fit"]
    assert f"--min-sqnr 90 missed by {fit['missed_by']:.2f} dB" in result.stdout
    found = f"{fit['sqnr']:.1f} dB, give or take {fit['doubt']:.1f}, on 16 samples held out"
    assert f"{found}, 90 wanted: 1" in " ".join(result.stdout.split())
    assert (here / "model.w8a8.onnx").is_file()


def test_an_sqnr_is_proposed_where_a_layer_is_bad_and_none_is_asked_for(here, onnxq):
    flags = ("--quality", "fast", "--bits", "2", "--per-tensor", "--force")
    proposal = "to round less wherever it hurts most: --min-sqnr 20"
    assert proposal in onnxq("convert", "model.onnx", *TENSORS, *flags).stdout
    asked = onnxq("convert", "model.onnx", *TENSORS, *flags, "--min-sqnr", "1").stdout
    assert "to leave the worst one alone" in asked
    assert proposal not in asked


def test_weights_beside_the_model_convert_to_the_same_bytes(here, onnxq):
    proto = onnx.load("model.onnx")
    onnx.save(proto, "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    onnxq("convert", "model.onnx", *TENSORS, "-o", "inside.onnx")
    result = onnxq("convert", "e.onnx", *TENSORS, "-o", "beside.onnx", "--json", "out.json")
    assert result.exit_code == 0
    assert (here / "inside.onnx").read_bytes() == (here / "beside.onnx").read_bytes()
    both = sum((here / name).stat().st_size for name in ("e.onnx", "e.data"))
    assert figures(here / "out.json")["float_bytes"] == both


def test_paths_may_hold_spaces_and_any_letters(here, onnxq):
    (here / "images").rename(here / "Fotos für Größen")
    (here / "model.onnx").rename(here / "mein modèle.onnx")
    flags = ("--calib", "Fotos für Größen", "--preprocess", "gray.toml")
    assert onnxq("convert", "mein modèle.onnx", *flags).exit_code == 0
    assert (here / "mein modèle.w8a8.onnx").is_file()


def test_preprocessing_beside_the_model_is_found(here, onnxq):
    (here / "gray.toml").rename(here / "model.preprocess.toml")
    result = onnxq("convert", "model.onnx", "--calib", "images")
    assert "preprocessing: model.preprocess.toml" in result.stdout
    assert agreement(here / "model.w8a8.onnx", here) >= 0.99


# -- recipes -----------------------------------------------------------------------------------


def test_a_printed_recipe_does_what_its_flags_do(here, onnxq):
    flags = ("--bits", "4", "--act-bits", "6", "--oaq", "--per-tensor", "--keep-float", "/head/*")
    printed = onnxq("convert", "model.onnx", *TENSORS, *flags, "--print-recipe").stdout
    (here / "r.toml").write_text(printed, encoding="utf-8")
    assert tomllib.loads(printed)["keep_float"] == ["/head/*"]
    onnxq("convert", "model.onnx", *TENSORS, *flags, "-o", "flags.onnx")
    onnxq("convert", "model.onnx", *TENSORS, "--recipe", "r.toml", "-o", "recipe.onnx")
    assert (here / "flags.onnx").read_bytes() == (here / "recipe.onnx").read_bytes()
    again = onnxq("convert", "model.onnx", "--recipe", "r.toml", "--print-recipe").stdout
    assert again == printed


@pytest.mark.parametrize("data", [(), TENSORS], ids=["without data", "with data"])
def test_the_printed_recipe_is_that_of_the_conversion(here, onnxq, data):
    printed = onnxq("convert", "model.onnx", *data, "--bits", "4", "--print-recipe").stdout
    (here / "r.toml").write_text(printed, encoding="utf-8")
    onnxq("convert", "model.onnx", *data, "--bits", "4", "-o", "flags.onnx")
    onnxq("convert", "model.onnx", *data, "--recipe", "r.toml", "-o", "recipe.onnx")
    assert (here / "flags.onnx").read_bytes() == (here / "recipe.onnx").read_bytes()


@pytest.mark.parametrize("name", NAMED)
def test_a_recipe_goes_by_its_name(here, onnxq, name):
    """Those that train do so in few steps, or this would take minutes."""
    flags = (*TENSORS, "--recipe", name, "--bits", "5")
    if name not in UNTRAINED:
        printed = onnxq("convert", "model.onnx", *flags, "--print-recipe").stdout
        short, count = re.subn(r"^steps = \d+$", "steps = 12", printed, flags=re.MULTILINE)
        assert count == 1
        (here / "r.toml").write_text(short, encoding="utf-8")
        flags = (*TENSORS, "--recipe", "r.toml", "-o", "model.w5a8.onnx")
    result = onnxq("convert", "model.onnx", *flags)
    assert result.exit_code == 0
    assert agreement(here / "model.w5a8.onnx", here) >= 0.95


def test_passes_and_recipes_are_listed_with_what_they_do(onnxq):
    listed = onnxq("passes").stdout
    for name, kind in REGISTRY.items():
        assert name in listed
        for option in kind.model_fields:
            assert f"{option}=" in listed
    listed = onnxq("recipes").stdout
    for name, (text, _) in NAMED.items():
        assert name in listed
        assert text in listed


# -- the other commands ------------------------------------------------------------------------


@pytest.fixture
def quantized(here, onnxq):
    """The model at four bits, calibrated on images, as ``q.onnx``."""
    assert onnxq("convert", "model.onnx", "--bits", "4", *IMAGES, "-o", "q.onnx").exit_code == 0
    return here


def test_validate_prepares_images_as_the_file_says(quantized, onnxq):
    result = onnxq("validate", "model.onnx", "q.onnx", "--data", "val", "--json", "out.json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = figures(quantized / "out.json")
    assert found["samples"] == 100
    assert found["float_top1"]["percent"] >= 97
    assert f"{found['quantized_top1']['percent']:.2f} %" in result.stdout
    assert f"{found['agreement']['percent']:.2f} %" in result.stdout
    assert f"ratio {found['size_ratio']:.3f}" in result.stdout
    assert f"{LAYERS} of {LAYERS} layers on integer kernels" in result.stdout


def test_validate_has_a_gate(quantized, onnxq):
    onnxq("convert", "model.onnx", "--bits", "2", "--per-tensor", "-o", "bad.onnx")
    flags = ("--data", "val.npz", "--max-drop", "1")
    assert onnxq("validate", "model.onnx", "q.onnx", *flags, "--max-drop", "50").exit_code == 0
    result = onnxq("validate", "model.onnx", "bad.onnx", *flags)
    assert result.exit_code == 1
    assert "--max-drop 1 missed by" in result.stdout


@pytest.mark.parametrize(("file", "bits"), [("model.onnx", 32), ("q.onnx", 4)])
def test_inspect_lists_the_layers(quantized, onnxq, file, bits):
    result = onnxq("inspect", file, "--json", "out.json")
    found = figures(quantized / "out.json")
    assert found["total_layers"] == len(found["layers"]) == LAYERS
    assert found["integer_layers"] == (0 if bits == 32 else LAYERS)
    for layer in found["layers"]:
        assert layer["name"] in result.stdout
        assert layer["bits"] == bits
        assert layer["lo"] < 0 < layer["hi"]
        assert (layer["oaq_ssim"] is None) == (bits < 32)
    assert ("OAQ SSIM" in result.stdout) == (bits == 32)


def test_inspect_against_a_quantized_file_shows_the_error_of_each_layer(quantized, onnxq):
    flags = ("--against", "q.onnx", "--data", "images", "--json", "out.json")
    result = onnxq("inspect", "model.onnx", *flags)
    found = figures(quantized / "out.json")
    assert len(found) == LAYERS
    assert [e["accumulated"] for e in found] == sorted(e["accumulated"] for e in found)
    for error in found:
        assert error["name"] in result.stdout
        assert f"{error['isolated']:.1f} dB" in result.stdout


@pytest.fixture
def hasty(monkeypatch):
    """Timing that proves nothing and takes no time."""
    monkeypatch.setattr("onnxq.evidence.bench.ROUNDS", 3)
    monkeypatch.setattr("onnxq.evidence.bench.SLICE_SECONDS", 0.001)


def test_a_model_to_be_timed_that_is_not_there_is_told_as_such(here, onnxq):
    result = onnxq("bench", "model.onnx", "none.onnx")
    assert (result.exit_code, result.stderr) == (3, "onnxq: none.onnx: no such file\n")


def test_bench_prints_ratios_to_the_first_model(quantized, onnxq, hasty):
    flags = ("--batch", "2", "--threads", "1", "--json", "out.json")
    result = onnxq("bench", "model.onnx", "q.onnx", "model.onnx", *flags)
    found = figures(quantized / "out.json")
    assert [speed["file"] for speed in found] == ["model.onnx", "q.onnx", "model.onnx"]
    assert (found[0]["ratio"], found[0]["load"]) == (1, 1)
    for speed in found:
        assert speed["load"] > 0
        assert f"{speed['ratio']:.2f}x" in result.stdout
        assert f"{speed['load']:.2f}x" in result.stdout


def test_demo_shows_both_widths_and_leaves_what_was_asked_for(tmp_path, onnxq, hasty):
    result = onnxq("demo", "-o", tmp_path / "demo", "--json", tmp_path / "demo.json")
    assert (result.exit_code, result.stderr) == (0, "")
    for report, width in zip(
        figures(tmp_path / "demo.json")["reports"], ("w8a8", "w4a8"), strict=True
    ):
        assert (tmp_path / "demo" / f"digits.{width}.onnx").is_file()
        assert report["label"] == width
        assert report["validation"]["drop"] < 1
        assert f"{report['validation']['quantized_top1']['percent']:.2f} %" in result.stdout


def test_a_demo_that_fails_leaves_its_folder_empty(here, onnxq, monkeypatch):
    monkeypatch.setattr("onnxq.demo.bench", lambda *_, **__: (here / "gone").open())
    result = onnxq("demo", "-o", "demo")
    assert (result.exit_code, result.stdout) == (3, "")
    assert list((here / "demo").iterdir()) == []


# -- the surroundings --------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", [None, *main.commands])
def test_help_is_there_for(command, flag, onnxq):
    result = onnxq(*([command] if command else []), flag)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"Usage: onnxq {command or ''}".rstrip())


@pytest.mark.parametrize("command", main.commands)
def test_every_option_is_explained(command):
    options = [p for p in main.commands[command].params if p.param_type_name == "option"]
    assert [option.name for option in options if not option.help] == []


def test_the_bare_command_shows_the_help_and_every_command(onnxq):
    result = onnxq()
    assert (result.exit_code, result.stderr) == (0, "")
    for command in main.commands:
        assert f"\n  {command} " in result.stdout


def test_the_version_is_the_installed_one(onnxq):
    assert onnxq("--version").stdout.split()[-1] == metadata.version("onnxq")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--version"], 0), (["passes"], 0), (["convert", "missing.onnx"], 3), (["convert"], 2)],
)
def test_the_module_runs_as_a_program(arguments, code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "onnxq", *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == bool(code)
    assert bool(done.stdout) == (not code)


def test_a_program_that_converts_keeps_its_streams_apart(here):
    done = subprocess.run(
        [sys.executable, "-m", "onnxq", "convert", "model.onnx", *IMAGES],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "model.w8a8.onnx" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "figures_of"),
    [
        (["convert", "model.onnx", "--json", "out.json"], "out.json"),
        (["inspect", "model.onnx", "--json", "out.json"], "out.json"),
        (["--help"], None),
    ],
)
def test_if_nobody_reads_stdout_the_files_are_written_all_the_same(here, arguments, figures_of):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "onnxq", *arguments], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
    if figures_of is not None:
        assert figures(here / figures_of)


def test_ctrl_c_while_modules_are_imported_ends_the_program_quietly(tmp_path):
    text = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    (tmp_path / "onnxruntime.py").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "onnxq", "--version"],
        cwd=tmp_path,  # in a checkout, the folder onnxq lies before what is installed
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        # What runs in the background ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


TERMINATED = """
import os, signal, sys
import onnxq.conversion
from onnxq.cli import main

# What runs behind nohup ignores SIGHUP, and so would what it starts.
signal.signal(int(sys.argv[1]), signal.SIG_DFL)
onnxq.conversion._reload = lambda *_: os.kill(os.getpid(), int(sys.argv[1]))
main(sys.argv[2:])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("old", [None, b"the old file"])
def test_a_terminated_conversion_leaves_what_was_there(here, old, number):
    if old is not None:
        (here / "q.onnx").write_bytes(old)
        (here / "q.onnx.data").write_bytes(old)
    before = {f: f.read_bytes() for f in here.rglob("*") if f.is_file()}
    call = ("convert", "model.onnx", "-o", "q.onnx", "--force")
    program = (sys.executable, "-c", TERMINATED, str(int(number)))
    done = subprocess.run([*program, *call], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, b"", b"")
    assert {f: f.read_bytes() for f in here.rglob("*") if f.is_file()} == before


def test_a_bug_is_one_line_and_its_place_on_request(here, onnxq, monkeypatch):
    def fail(*args, **kwargs):
        raise ZeroDivisionError("by accident")

    monkeypatch.setattr("onnxq.cli.commands.run_convert", fail)
    result = onnxq("convert", "model.onnx")
    assert result.exit_code == 123
    assert result.stderr.startswith("onnxq: internal error, please report it: ZeroDivisionError")
    assert len(result.stderr.splitlines()) == 1
    monkeypatch.setenv("ONNXQ_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        onnxq("convert", "model.onnx")


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (MemoryError(), 3), (OSError(28, "full"), 3)]
)
def test_what_happens_to_a_machine_is_one_line_too(here, onnxq, monkeypatch, error, code):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("onnxq.cli.commands.run_convert", fail)
    result = onnxq("convert", "model.onnx")
    assert result.exit_code == code
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stderr.strip().startswith("onnxq: ")


def test_the_example_of_the_package_runs(here, capsys):
    (here / "gray.toml").rename(here / "model.preprocess.toml")
    exec(textwrap.dedent(library.__doc__.partition("\n")[2]), {})
    ratio, agreed = map(float, capsys.readouterr().out.split())
    assert ratio < 0.2
    assert agreed > 90
