"""Every width of weights and activations on one model: size, speed, accuracy, kernels, exactness.

    python benchmarks/widths.py MODEL --calib DIR [--data DIR] > table.md

--data are labeled images for the columns top-1 and agreement.

Ratios are to the float file, speeds measured in turns on one thread at batch 1. "exact" compares
the graph as onnxruntime optimises it with the graph as written, over 16 images: the share of equal
outputs, and the largest difference in steps of 1/255 of the outputs' range.
"""

import tempfile
from pathlib import Path

import click
import numpy as np

import onnxq
from onnxq.evidence.bench import bench
from onnxq.runtime import Session
from onnxq.samples.data import batches
from onnxq.samples.preprocess import resolve
from onnxq.samples.sources import open_samples

WEIGHTS, ACTIVATIONS = (8, 6, 5, 4, 3, 2), (8, 6, 4, 3, 2)
COUNT, EXACT = 512, 16


def exactness(file: Path, calib: Path) -> tuple[float, float]:
    """Share of outputs that are equal bit for bit, and the largest difference in 1/255 of them."""
    fast, plain = Session(file), Session(file, optimize=False)
    preprocess, _ = resolve(None, file, onnxq.load(file).metadata)
    samples = open_samples(calib, fast.inputs, preprocess, EXACT)
    equal, worst = [], 0.0
    for batch in batches(samples, fast.inputs, EXACT):
        for a, b in zip(
            fast.run(batch.feeds).values(), plain.run(batch.feeds).values(), strict=True
        ):
            equal.append(a == b)
            worst = max(worst, float(np.abs(a - b).max() / np.ptp(b) * 255))
    return float(np.mean(np.concatenate(equal))), worst


def accuracy(report: onnxq.Report) -> str:
    """The cells of top-1 and agreement, if both were measured."""
    found = report.validation
    if found is None or found.quantized_top1 is None or found.agreement is None:
        return ""
    return f"{found.quantized_top1.percent:.2f} | {found.agreement.percent:.2f} | "


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--calib", type=click.Path(path_type=Path), required=True)
@click.option("--data", type=click.Path(path_type=Path))
def main(model: Path, calib: Path, data: Path | None) -> None:
    """Print the table as Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        files, rows = [], []
        for bits in WEIGHTS:
            for act_bits in ACTIVATIONS:
                file = Path(folder) / f"w{bits}a{act_bits}.onnx"
                report = onnxq.convert(
                    model, file, bits=bits, act_bits=act_bits, calib=calib, calib_size=COUNT,
                    recipe="mse", validate=data,
                )  # fmt: skip
                equal, worst = exactness(file, calib)
                files.append(file)
                rows.append(
                    f"{accuracy(report)}{report.bytes / report.float_bytes:.3f} | {{}}x | "
                    f"{len(report.kernels.integer)} of {report.kernels.total} | "
                    f"{100 * equal:.0f} % | {worst:.2f}"
                )
        speeds = bench([model, *files])[1:]
    head = ["", *(["top-1", "agreement"] if data else []), "size", "speed", "integer"]
    head += ["exact", "steps"]
    print(f"| {' | '.join(head)} |")
    print("| --- " * len(head) + "|")
    for file, row, speed in zip(files, rows, speeds, strict=True):
        print(f"| {file.stem.upper()} | {row.format(f'{speed.ratio:.2f}')} |")


if __name__ == "__main__":
    main()
