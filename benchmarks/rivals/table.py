"""onnxq beside other tools: the same model, images and machine, each tool's file in onnxruntime.

    python benchmarks/rivals/table.py MODEL CALIB_DIR VAL_DIR [TOOL=PYTHON...] [--best]

TOOL is nncf, neural_compressor, aimet, quark or onnxruntime, and PYTHON the interpreter of the
environment that has it: each pins versions of onnx that the others cannot use (README.md). Every
tool gets the same 512 images as tensors; without --best each does what its quick start says, with
it what its script has found to be best (onnxq: --quality fast and balanced). Rows are printed for
what onnxruntime computes on this processor and, under "exact", for the graph run node by node,
without the sums of 16 bits in which old x86 processors add two products. Ratios are of the float
model, speeds on one thread at batch 1, in turns.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import onnx

import onnxq
from onnxq.evidence.bench import bench
from onnxq.evidence.evaluate import compare
from onnxq.runtime import Session
from onnxq.samples.data import Images
from onnxq.samples.preprocess import resolve
from onnxq.samples.sources import open_samples

COUNT = 512
HERE = Path(__file__).resolve().parent


def images(model: Path, folder: str, count: int | None) -> Images:
    """Images as onnxq draws and prepares them."""
    preprocess, _ = resolve(None, model, {})
    found = open_samples(folder, Session(model).inputs, preprocess, count, labels="auto")
    assert isinstance(found, Images)
    return found


def convert(tool: str, python: str, arguments: list[str], folder: str) -> str:
    """Run a tool's script in a folder, where it may leave files; what it said if it failed."""
    command = [python, str(HERE / f"with_{tool}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode == 0:
        return ""
    return (done.stderr.strip() or "no reason given").splitlines()[-1]


def size(file: Path) -> int:
    """Bytes of a model with its external data."""
    proto = onnx.load(file, load_external_data=False)
    parts = {
        e.value for t in proto.graph.initializer for e in t.external_data if e.key == "location"
    }
    return sum(f.stat().st_size for f in [file, *(file.parent / part for part in parts)])


def row(name: str, model: Path, file: Path, held: Images, seconds: float) -> str:
    """What a file is worth."""
    reference = Session(model)
    cells = []
    for optimize in (True, False):
        found = compare(reference, Session(file, optimize=optimize), held, labels=held.labels)
        assert found.quantized_top1 and found.agreement
        cells.append(f"{found.quantized_top1.percent:.2f} ({found.agreement.percent:.2f})")
        cells.append(f"{found.kl:.5f}")
    speed = bench([model, file])[1].ratio
    ratio = size(file) / size(model)
    return f"| {name} | {' | '.join(cells)} | {ratio:.3f} | {speed:.2f}x | {seconds:.0f} s |"


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.argument("calib")
@click.argument("val")
@click.argument("tools", nargs=-1)
@click.option("--width", default="8,8", show_default=True, help="Bits of weights, activations.")
@click.option("--best", is_flag=True, help="The best that each tool is known to do.")
def main(model: Path, calib: str, val: str, tools: tuple[str, ...], width: str, best: bool) -> None:
    """Print a row for each tool that is given, and for onnxq."""
    weights, activations = (int(bits) for bits in width.split(","))
    held = images(model, val, None)
    head = "top-1 (agreement) | KL | exact | KL | size | speed | time"
    print(f"| W{weights}A{activations} {model.stem} | {head} |\n|{' --- |' * 8}")
    with tempfile.TemporaryDirectory() as folder:
        feeds = [feed for _, feed in images(model, calib, COUNT).items()]
        name = Session(model).inputs[0].name
        tensors = Path(folder) / "calib.npz"
        np.savez(tensors, **{name: np.concatenate([feed[name] for feed in feeds])})
        for tool, _, python in (text.partition("=") for text in tools):
            if "/" in python:
                python = str(Path(python).absolute())
            file = Path(folder) / f"{tool}.onnx"
            asked = ["--weights", str(weights), "--activations", str(activations)]
            asked += ["--recipe", "best" if best else "default"]
            start = time.perf_counter()
            paths = [str(model.resolve()), str(tensors), str(file)]
            if why := convert(tool, python, [*paths, *asked], folder):
                print(f"| {tool} | {why} |", flush=True)
                continue
            print(row(tool, model, file, held, time.perf_counter() - start), flush=True)
        file, start = Path(folder) / "onnxq.onnx", time.perf_counter()
        quality = "balanced" if best else "fast"
        onnxq.convert(
            model,
            file,
            bits=weights,
            act_bits=activations,
            calib=tensors,
            calib_size=COUNT,
            quality=quality,
        )
        print(row("onnxq", model, file, held, time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    sys.exit(main())
