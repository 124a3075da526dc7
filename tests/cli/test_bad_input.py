"""Whatever is wrong: one line on stderr, the right exit code, and nothing changed on disk."""

import importlib.util
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxq import UsageError, compare_recipes, convert

USAGE, INPUT = 2, 3


@dataclass
class Bad:
    """A wrong call; ``prepare`` is run in the folder first, ``said`` is in the complaint."""

    command: str
    code: int
    said: str
    prepare: Callable = lambda: None


def write(name, content):
    return lambda: Path(name).write_bytes(content)


def arrays(name, **values):
    return lambda: np.savez(name, **values)


def images(*shape):
    return np.zeros(shape, np.float32)


def truncated():
    Path("half.onnx").write_bytes(Path("model.onnx").read_bytes()[:300_000])


def quantized():
    node = helper.make_node("QuantizeLinear", ["x", "s"], ["y"], name="quantize")
    scale = numpy_helper.from_array(np.array(0.1, np.float32), "s")
    save("q.onnx", [node], [scale], output=TensorProto.UINT8)


def cyclic():
    made = [("x", "b", "a"), ("a", "x", "b"), ("a", "x", "y")]
    save("cycle.onnx", [helper.make_node("Add", [one, two], [three]) for one, two, three in made])


def unknown():
    text = """<ir_version: 8, opset_import: ["" : 17]>
        net (float[1,1,8,8] x) => (float[1,1,8,8] y) { y = Foo(x) }"""
    write("unknown.onnx", parser.parse_model(text).SerializeToString())()


def save(name, nodes, weights=(), inputs=("x",), output=TensorProto.FLOAT, opset=13):
    """A model of the given nodes, from 4-axis inputs to y."""
    shape = ["N", 1, 8, 8]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(i, TensorProto.FLOAT, shape) for i in inputs],
        [helper.make_tensor_value_info("y", output, None)],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    Path(name).write_bytes(proto.SerializeToString())


def weightless():
    save("weightless.onnx", [helper.make_node("Relu", ["x"], ["y"])])


def two_inputs():
    nodes = [
        helper.make_node("Add", ["x", "z"], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["y"]),
    ]
    weight = numpy_helper.from_array(np.ones((2, 1, 1, 1), np.float32), "w")
    save("two.onnx", nodes, [weight], inputs=("x", "z"))


def unraisable():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("ThresholdedRelu", ["a"], ["y"], alpha=1.0),
    ]
    weight = numpy_helper.from_array(np.ones((2, 1, 1, 1), np.float32), "w")
    save("old.onnx", nodes, [weight], opset=9)


def unknown_operator():
    save("unknown.onnx", [helper.make_node("Fancy", ["x"], ["y"])])


def not_a_number():
    proto = onnx.load("model.onnx")
    weight = next(t for t in proto.graph.initializer if len(t.dims) == 4)
    values = numpy_helper.to_array(weight).copy()
    values.flat[3] = np.nan
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(proto, "nan.onnx")


def latin(name):
    def prepare():
        text, content = name.encode(), Path("model.onnx").read_bytes()
        Path("latin.onnx").write_bytes(content.replace(text, text[:-1] + "ä".encode("latin-1")))

    return prepare


def external(keep):
    def prepare():
        proto = onnx.load("model.onnx")
        onnx.save(proto, "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
        data = Path("e.data").read_bytes()
        Path("e.data").unlink()
        if keep != 0:
            Path("e.data").write_bytes(data[:keep])

    return prepare


def beside():
    external(None)()
    Path("w.json").symlink_to("e.data")
    Path("w.csv").hardlink_to("e.data")


def sidecar():
    shutil.copy("gray.toml", "model.preprocess.toml")


def a_recipe():
    Path("r.toml").write_text(STEP.format("quantize-weights"), encoding="utf-8")


def figures():
    for name in ("p.json", "a.json"):
        Path(name).write_text("{}", encoding="utf-8")
    Path("link.json").symlink_to("a.json")


def empty_folder():
    Path("empty").mkdir()


def unreadable_images():
    Path("broken").mkdir()
    for name in ("a.png", "b.jpg"):
        Path("broken", name).write_bytes(b"no image")


def short_labels():
    lines = Path("labels.csv").read_text(encoding="utf-8").splitlines()
    Path("short.csv").write_text("\n".join(lines[1:]), encoding="utf-8")


def zipped():
    arrays("torn.npz", image=images(8, 1, 8, 8))()
    Path("torn.npz").write_bytes(Path("torn.npz").read_bytes()[:100])


def archive():
    with zipfile.ZipFile("text.npz", "w") as file:
        file.writestr("image.npy", "no array")


def converted():
    shutil.copy("model.onnx", "model.w8af.onnx")


TENSORS = "--calib calib.npz"
GRAY = "--calib images --preprocess gray.toml"
BEST = f"convert model.onnx {TENSORS} --quality best -o q.onnx"
COMPARE = f"compare model.onnx {TENSORS} --data val.npz"
STEP = '[[pass]]\nname = "{}"\n'

BAD = {
    # the model
    "no such model": Bad("convert gone.onnx", INPUT, "gone.onnx: no such file"),
    "a folder as model": Bad("convert images", INPUT, "images: no such file"),
    "an empty file": Bad("convert m.onnx", INPUT, "not an ONNX model", write("m.onnx", b"")),
    "a graph with a cycle": Bad("convert cycle.onnx", INPUT, "has a cycle at", cyclic),
    "an operator that is none": Bad("convert unknown.onnx", INPUT, "No Op registered", unknown),
    "a truncated model": Bad("convert half.onnx", INPUT, "truncated", truncated),
    "a node with a name in Latin-1": Bad(
        "convert latin.onnx", INPUT, "m\\\\xe4' in it is not UTF-8", latin("/head/Gemm")
    ),
    "a weight with a name in Latin-1": Bad(
        "inspect latin.onnx", INPUT, "weigh\\\\xe4' in it is not UTF-8", latin("stem.0.weight")
    ),
    "an output with a name in Latin-1": Bad(
        "bench model.onnx latin.onnx", INPUT, "is not UTF-8: b'logit\\\\xe4'", latin("logits")
    ),
    "a text file": Bad("convert labels.csv", INPUT, "not an ONNX model"),
    "a quantized model": Bad("convert q.onnx", INPUT, "is quantized already", quantized),
    "nothing to quantize": Bad(
        "convert weightless.onnx", INPUT, "no Conv, ConvTranspose, Gemm or MatMul", weightless
    ),
    "a NaN among the weights": Bad("convert nan.onnx", INPUT, "1 NaN or infinite", not_a_number),
    "an opset that cannot be raised": Bad(
        "convert old.onnx", INPUT, "opset 9 cannot be raised to 13", unraisable
    ),
    "an operator nobody knows": Bad(
        "convert unknown.onnx --calib calib.npz", INPUT, "Fancy", unknown_operator
    ),
    "external data missing": Bad("convert e.onnx", INPUT, "e.data is missing", external(0)),
    "external data truncated": Bad("convert e.onnx", INPUT, "e.data is truncated", external(9)),
    # flags
    "no model": Bad("convert", USAGE, "Missing argument 'MODEL'"),
    "no such command": Bad("quantize model.onnx", USAGE, "No such command 'quantize'"),
    "no such flag": Bad("convert model.onnx --bit 4", USAGE, "No such option:? '?--bit"),
    "too many bits": Bad("convert model.onnx --bits 9", USAGE, "9 is not in the range"),
    "one bit for a grid": Bad(
        "convert model.onnx --bits 1", USAGE, "bits: uniform weights have 2 to 8 bits, not 1"
    ),
    "more bits than a set has": Bad(
        "convert model.onnx --levels apot --bits 6", USAGE, "apot weights have 2 to 5 bits, not 6"
    ),
    "no such levels": Bad("convert model.onnx --levels log", USAGE, "'log' is not one of"),
    "no such version": Bad(
        "convert model.onnx --target-ort new", USAGE, "as 1.23, from 1.20 on, not new"
    ),
    "groups and integer activations": Bad(
        "convert model.onnx --group-size 8 --act-bits 8", USAGE, "onnxq: group_size needs float"
    ),
    "bits that are no number": Bad("convert model.onnx --bits four", USAGE, "'four' is not"),
    "activation bits that are no number": Bad(
        "convert model.onnx --act-bits x", USAGE, "'--act-bits': 'x'"
    ),
    "too few activation bits": Bad(
        "convert model.onnx --act-bits 1", USAGE, "1 is not in the range"
    ),
    "activations without data": Bad(
        "convert model.onnx --act-bits 8", USAGE, "need calibration data: give --calib"
    ),
    "a gate that nothing misses": Bad(
        f"convert model.onnx {TENSORS} --validate val.npz --max-drop nan", USAGE, "'nan' is not a"
    ),
    "a gate that nothing can pass": Bad(
        "validate model.onnx model.onnx --data val.npz --max-drop -1", USAGE, "not in the range"
    ),
    "no samples": Bad(f"convert model.onnx {TENSORS} --calib-size 0", USAGE, "'--calib-size'"),
    "a negative seed": Bad(f"convert model.onnx {TENSORS} --seed -1", USAGE, "'--seed'"),
    "a gate and nothing to measure": Bad(
        "convert model.onnx --max-drop 1", USAGE, "--max-drop needs --validate"
    ),
    "an SQNR and nothing to measure": Bad(
        "convert model.onnx --min-sqnr 20", USAGE, "--min-sqnr needs --calib"
    ),
    "an SQNR that is no number": Bad(
        f"convert model.onnx {TENSORS} --min-sqnr nan", USAGE, "--min-sqnr is not a number"
    ),
    "an SQNR of one sample": Bad(
        f"convert model.onnx {TENSORS} --calib-size 1 --min-sqnr 20", INPUT, "two runs at least"
    ),
    "labels of nothing": Bad(
        "convert model.onnx --labels gone.csv", USAGE, "--labels needs --validate"
    ),
    "nothing left alone": Bad(
        "convert model.onnx --keep-float /head/gem", USAGE, "did you mean /head/Gemm"
    ),
    "half a comparison": Bad("inspect model.onnx --data images", USAGE, "go together"),
    "nothing to compare": Bad("bench model.onnx", USAGE, "Missing argument 'QUANTIZED"),
    "a comparison without data": Bad("compare model.onnx", USAGE, "Missing option '--calib'"),
    "a comparison without judges": Bad(
        f"compare model.onnx {TENSORS}", USAGE, "Missing option '--data'"
    ),
    "no such recipe to compare": Bad(
        f"{COMPARE} --recipes mse,vanila", USAGE, "did you mean vanilla"
    ),
    "a gap among recipes": Bad(f"{COMPARE} --recipes mse,", USAGE, "'mse,': name one value"),
    "no widths to compare": Bad(f"{COMPARE} --bits ,", USAGE, "'--bits': ',': name one value"),
    "a width too many": Bad(f"{COMPARE} --bits 4,9", USAGE, "'--bits': 9 is not in the range"),
    "a width that is no number": Bad(f"{COMPARE} --act-bits 8,x", USAGE, "'--act-bits'"),
    "half a width of activations": Bad(f"{COMPARE} --act-bits 1", USAGE, "1 is not in the range"),
    # where results go
    "a table over a strange file": Bad(
        f"{COMPARE} --csv labels.csv", USAGE, "labels.csv: is there and no table of onnxq compare"
    ),
    "a table over the input": Bad(
        f"{COMPARE} --csv model.onnx", USAGE, "--csv model.onnx: is a file of MODEL"
    ),
    "a table over the data": Bad(
        f"{COMPARE} --csv val.npz", USAGE, "--csv val.npz: is a file of --data"
    ),
    "a table that is the input's weights": Bad(
        f"compare e.onnx {TENSORS} --data val.npz --csv w.csv", USAGE, "is a file of MODEL", beside
    ),
    "a table and figures in one file": Bad(
        f"{COMPARE} --csv x.json --json ./x.json", USAGE, "--json x.json: is a file of --csv"
    ),
    "a table and a plot in one file": Bad(
        f"{COMPARE} --csv p.svg --plot p.svg", USAGE, "--plot p.svg: is a file of --csv"
    ),
    "a table without a folder": Bad(f"{COMPARE} --csv gone/t.csv", USAGE, "does not exist"),
    "a plot of another kind": Bad(f"{COMPARE} --plot p.png", USAGE, "--plot p.png: .* an .svg"),
    "a plot without a folder": Bad(f"{COMPARE} --plot gone/p.svg", USAGE, "does not exist"),
    "the input as output": Bad(
        "convert model.onnx -o model.onnx --force", USAGE, "--output model.onnx: is a file of MODEL"
    ),
    "the input's weights as output": Bad(
        "convert e.onnx -o e.data --force", USAGE, "--output e.data: is a file of MODEL", beside
    ),
    "the input's weights as the output's weights": Bad(
        "convert e.onnx -o e --force", USAGE, "--output e.data: is a file of MODEL", beside
    ),
    "the input's preprocessing as output": Bad(
        "convert model.onnx -o model.preprocess.toml --force", USAGE, "is a file of MODEL", sidecar
    ),
    "the tensors as output": Bad(
        f"convert model.onnx {TENSORS} -o calib.npz --force", USAGE, "is a file of --calib"
    ),
    "an image as output": Bad(
        f"convert model.onnx {GRAY} -o images/0.png --force", USAGE, "is a file of --calib"
    ),
    "the judges as output": Bad(
        "convert model.onnx --validate val.npz -o val.npz --force", USAGE, "is a file of --validate"
    ),
    "the labels as output": Bad(
        f"convert model.onnx {GRAY} --validate flat --labels labels.csv -o labels.csv --force",
        USAGE,
        "--output labels.csv: is a file of --labels",
    ),
    "the preprocessing as output": Bad(
        f"convert model.onnx {GRAY} -o gray.toml --force", USAGE, "is a file of --preprocess"
    ),
    "the recipe as output": Bad(
        "convert model.onnx --recipe r.toml -o r.toml --force",
        USAGE,
        "is a file of --recipe",
        a_recipe,
    ),
    "an output that exists": Bad("convert model.onnx", USAGE, "--force replaces it", converted),
    "an output without a folder": Bad("convert model.onnx -o gone/m.onnx", USAGE, "does not exist"),
    "a folder as output": Bad("convert model.onnx -o images", USAGE, "is a folder"),
    "the root as output": Bad("convert model.onnx -o /", USAGE, "/: is a folder"),
    "an output in a file with a name in Latin-1": Bad(
        "convert model.onnx -o m\udce4.onnx", USAGE, "the path of a model must be UTF-8"
    ),
    "a model in a file with a name in Latin-1": Bad(
        "convert m\udce4.onnx", USAGE, "the path of a model must be UTF-8"
    ),
    "an endless file as model": Bad("convert /dev/zero -o q.onnx", INPUT, "zero: no such file"),
    "the root as model": Bad("convert / -o q.onnx", INPUT, "/: no such file"),
    "figures without a folder": Bad(
        "convert model.onnx --json gone/out.json", USAGE, "does not exist"
    ),
    "figures over the data of a model": Bad(
        "convert model.onnx --json q.onnx.data -o q.onnx", USAGE, "name of a model"
    ),
    "more threads than cores": Bad(
        "bench model.onnx model.onnx --threads 100000", USAGE, "--threads 100000: there are"
    ),
    "figures over a model": Bad("bench model.onnx --json model.onnx model.onnx", USAGE, ".json"),
    "figures over the tensors": Bad(
        f"convert model.onnx {TENSORS} --json calib.npz", USAGE, "calib.npz: is a file of --calib"
    ),
    "figures over the input's weights": Bad(
        "convert e.onnx --json w.json", USAGE, "--json w.json: is a file of MODEL", beside
    ),
    "figures over the preprocessing": Bad(
        f"convert model.onnx {TENSORS} --preprocess p.json --json p.json",
        USAGE,
        "--json p.json: is a file of --preprocess",
        figures,
    ),
    "figures over the output": Bad(
        "convert model.onnx -o a.json --force --json link.json",
        USAGE,
        "--json link.json: is a file of --output",
        figures,
    ),
    "figures over the weights of what is inspected": Bad(
        "inspect e.onnx --json w.json", USAGE, "--json w.json: is a file of MODEL", beside
    ),
    "figures over the weights of what is timed": Bad(
        "bench model.onnx e.onnx --json w.json", USAGE, "is a file of QUANTIZED", beside
    ),
    "figures over the weights of what is judged": Bad(
        "validate model.onnx e.onnx --data val.npz --json w.json",
        USAGE,
        "--json w.json: is a file of QUANTIZED",
        beside,
    ),
    # training
    "a checkpoint without a folder": Bad(f"{BEST} --checkpoint gone/s.pt", USAGE, "does not exist"),
    "a folder as checkpoint": Bad(f"{BEST} --checkpoint images", USAGE, "images: is a folder"),
    "the input as checkpoint": Bad(
        f"{BEST} --checkpoint ./model.onnx", USAGE, "is a file of MODEL"
    ),
    "the output as checkpoint": Bad(
        f"{BEST} --checkpoint images/../q.onnx", USAGE, "is a file of --output"
    ),
    "the data of the output as checkpoint": Bad(
        f"{BEST} --checkpoint q.onnx.data", USAGE, "is a file of --output"
    ),
    "text as checkpoint": Bad(f"{BEST} --checkpoint labels.csv", USAGE, "is no checkpoint"),
    "the tensors as checkpoint": Bad(f"{BEST} --checkpoint calib.npz", USAGE, "file of --calib"),
    "arrays as checkpoint": Bad(f"{BEST} --checkpoint val.npz", USAGE, "is no checkpoint"),
    "a torn checkpoint": Bad(f"{BEST} --checkpoint torn.npz", USAGE, "is no checkpoint", zipped),
    "a checkpoint of nothing": Bad(
        f"convert model.onnx {TENSORS} --checkpoint s.pt", USAGE, "needs a recipe that trains"
    ),
    # data
    "no such data": Bad("convert model.onnx --calib gone", INPUT, "no such file or folder"),
    "data of another kind": Bad(
        "convert model.onnx --calib labels.csv", INPUT, "not a folder, .npz or .npy"
    ),
    "an empty folder": Bad(
        "convert model.onnx --calib empty", INPUT, "no images in it", empty_folder
    ),
    "images that cannot be read": Bad(
        "convert model.onnx --calib broken --preprocess gray.toml",
        INPUT,
        "none of its images can be read",
        unreadable_images,
    ),
    "arrays of another name": Bad(
        "convert model.onnx --calib other.npz",
        INPUT,
        "no array named image",
        arrays("other.npz", x=images(8, 1, 8, 8)),
    ),
    "arrays of another shape": Bad(
        "convert model.onnx --calib other.npz",
        INPUT,
        "the data are \\[1, 3, 8, 8\\]",
        arrays("other.npz", image=images(8, 3, 8, 8)),
    ),
    "arrays that are empty": Bad(
        "convert model.onnx --calib other.npz",
        INPUT,
        "empty",
        arrays("other.npz", image=images(0, 1, 8, 8)),
    ),
    "arrays of words": Bad(
        "convert model.onnx --calib other.npz",
        INPUT,
        "other.npz",
        arrays("other.npz", image=np.array(["a", "b"])),
    ),
    "arrays of complex numbers": Bad(
        "convert model.onnx --calib other.npz",
        INPUT,
        "not of numbers .of complex64",
        arrays("other.npz", image=np.zeros((8, 1, 8, 8), np.complex64)),
    ),
    "arrays of numbers that float32 does not hold": Bad(
        "convert model.onnx --calib other.npz",
        INPUT,
        "NaN or infinite",
        arrays("other.npz", image=np.full((8, 1, 8, 8), 1e300)),
    ),
    "an archive of something else": Bad(
        "convert model.onnx --calib text.npz", INPUT, "the file holds nothing", archive
    ),
    "an .npz that is no archive": Bad(
        "convert model.onnx --calib text.npz", INPUT, "not a readable", write("text.npz", b"no")
    ),
    "an .npz that is torn": Bad(
        "convert model.onnx --calib torn.npz", INPUT, "not a readable .npz", zipped
    ),
    "images of another size": Bad(
        "convert model.onnx --calib images --preprocess big.toml",
        INPUT,
        "input image takes",
        write("big.toml", b'color = "gray"\nresize = [9, 9]\n'),
    ),
    "images in color": Bad(
        "convert model.onnx --calib images --preprocess imagenet", INPUT, "input image takes"
    ),
    "a folder for two inputs": Bad(
        "convert two.onnx --calib images", INPUT, "the model has x, z: give an .npz", two_inputs
    ),
    "validation data of another shape": Bad(
        f"convert model.onnx {TENSORS} --validate other.npz",
        INPUT,
        "the data are",
        arrays("other.npz", image=images(8, 3, 8, 8)),
    ),
    "validation images that cannot be read": Bad(
        f"convert model.onnx {TENSORS} --validate broken --preprocess gray.toml",
        INPUT,
        "none of its images can be read",
        unreadable_images,
    ),
    "an image without a label": Bad(
        f"convert model.onnx {GRAY} --validate flat --labels short.csv",
        INPUT,
        "1 images have no class in it, first 0.png",
        short_labels,
    ),
    "too few labels": Bad(
        f"convert model.onnx {TENSORS} --validate other.npz",
        INPUT,
        "labels",
        arrays("other.npz", image=images(8, 1, 8, 8), labels=np.zeros(5, int)),
    ),
    "no such labels": Bad(
        f"convert model.onnx {GRAY} --validate flat --labels gone.csv", INPUT, "gone.csv"
    ),
    "models that are strangers": Bad(
        "validate model.onnx two.onnx --data calib.npz", INPUT, "different inputs", two_inputs
    ),
    "judges of another shape": Bad(
        f"compare model.onnx {TENSORS} --data other.npz --csv t.csv",
        INPUT,
        "the data are",
        arrays("other.npz", image=images(8, 3, 8, 8)),
    ),
    "a quantized model to compare": Bad(
        f"compare q.onnx {TENSORS} --data val.npz", INPUT, "is quantized already", quantized
    ),
    # preprocessing
    "no such preset": Bad(
        "convert model.onnx --calib images --preprocess imagnet", INPUT, "presets imagenet"
    ),
    "preprocessing that is no TOML": Bad(
        "convert model.onnx --calib images --preprocess p.toml",
        INPUT,
        "not a preprocessing file",
        write("p.toml", b"color = "),
    ),
    "preprocessing with a strange key": Bad(
        "convert model.onnx --calib images --preprocess p.toml",
        INPUT,
        "p.toml: colour",
        write("p.toml", b'colour = "gray"'),
    ),
    "preprocessing that divides by nothing": Bad(
        "convert model.onnx --calib images --preprocess p.toml",
        INPUT,
        "must not be zero",
        write("p.toml", b'color = "gray"\nstd = [0]'),
    ),
    # recipes
    "no such recipe": Bad(
        "convert model.onnx --recipe vanila", USAGE, "did you mean vanilla"
    ),
    "no such recipe file": Bad("convert model.onnx --recipe gone.toml", INPUT, "gone.toml"),
    "a recipe that is no TOML": Bad(
        "convert model.onnx --recipe r.toml", INPUT, "not a readable TOML", write("r.toml", b"[[")
    ),
    "a recipe with a misspelt pass": Bad(
        "convert model.onnx --recipe r.toml",
        USAGE,
        "did you mean quantize-weights",
        write("r.toml", STEP.format("quantise-weights").encode()),
    ),
    "a recipe with a strange option": Bad(
        "convert model.onnx --recipe r.toml",
        USAGE,
        "quantize-weights has no option bit; did you mean bits",
        write("r.toml", STEP.format("quantize-weights").encode() + b"bit = 4"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_line_an_exit_code_and_no_trace(kind, here, onnxq):
    bad = BAD[kind]
    bad.prepare()
    before = {f: f.read_bytes() for f in here.rglob("*") if f.is_file()}
    result = onnxq(*bad.command.split())
    after = {f: f.read_bytes() for f in here.rglob("*") if f.is_file()}
    (line,) = result.stderr.splitlines()
    assert line.startswith("onnxq: ")
    assert re.search(bad.said, line), line
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert result.exit_code == bad.code
    assert after == before


@pytest.mark.parametrize(
    "command",
    [
        "convert model.onnx",
        "convert model.onnx --json images/a.json",
        f"{BEST} --checkpoint images/s.pt",
        f"{COMPARE} --csv images/t.csv",
        f"{COMPARE} --plot images/p.svg",
    ],
)
def test_a_folder_that_may_not_be_written_to_is_told_before_any_work(
    here, onnxq, monkeypatch, command
):
    monkeypatch.setattr("os.access", lambda _, mode: mode != os.W_OK)
    before = sorted(here.rglob("*"))
    result = onnxq(*command.split())
    (line,) = result.stderr.splitlines()
    assert re.search(r"the folder (images|\.) may not be written to$", line)
    assert (result.exit_code, result.stdout) == (USAGE, "")
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("flags", ["--quality best", "--recipe brecq --checkpoint s.pt"])
def test_training_without_torch_is_one_line_and_no_trace(here, onnxq, monkeypatch, flags):
    find = importlib.util.find_spec

    def without_torch(name, *rest):
        return None if name == "torch" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without_torch)
    before = sorted(here.rglob("*"))
    result = onnxq("convert", "model.onnx", *TENSORS.split(), *flags.split())
    (line,) = result.stderr.splitlines()
    assert re.fullmatch(r"onnxq: \S+ trains, which needs torch: pip install 'onnxq\[torch\]'", line)
    assert (result.exit_code, result.stdout) == (USAGE, "")
    assert sorted(here.rglob("*")) == before


def test_the_library_spares_what_it_reads_as_well(here):
    for flags in ({"calib": "calib.npz"}, {"validate": Path("calib.npz")}):
        with pytest.raises(UsageError, match=r"calib\.npz: is a file of"):
            convert("model.onnx", "calib.npz", force=True, **flags)
    with pytest.raises(UsageError, match="is a file of --calib"):
        compare_recipes("model.onnx", calib="t.csv", data="val.npz", table=Path("t.csv"))


def test_what_is_beside_the_images_but_none_of_them_may_be_replaced(here, onnxq):
    call = f"convert model.onnx {GRAY} -o images/q.onnx --json images/q.json --force".split()
    assert [onnxq(*call).exit_code for _ in range(2)] == [0, 0]
