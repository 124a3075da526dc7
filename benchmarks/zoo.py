"""The table in models/README.md: every model of the zoo in every form, at W8A8 and W4A8.

    python benchmarks/zoo.py [--data ../shared/data/cifar10] [NAME...]

Default recipe, 512 calibration images (300 of the digits), seed 0, one thread, batch 1.
"""

import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

import zoo

import onnxq
from onnxq.evidence.bench import bench

COUNT = 512


def calibration(entry: zoo.Entry, data: Path) -> Path | Iterable[Mapping[str, np.ndarray]]:
    """Unlabeled images for a model."""
    if "data" not in entry:
        return data / "calib"
    digits = np.load(zoo.ROOT / entry["data"]["file"])["calib"]
    return [{"image": digits.astype(np.float32) / 16}]


def row(entry: zoo.Entry, file: zoo.Entry, data: Path, folder: Path) -> str:
    """One line of the table."""
    source = zoo.ROOT / file["file"]
    size = (zoo.ROOT / entry["file"]).stat().st_size
    targets, cells = [], []
    for bits in (8, 4):
        target = folder / f"w{bits}.onnx"
        report = onnxq.convert(
            source, target, bits=bits, calib=calibration(entry, data), calib_size=COUNT, force=True
        )
        right, count = zoo.score(entry, target, data)
        targets.append(target)
        cells.append((f"{right / count:.2%}", f"{report.bytes / size:.3f}"))
    speeds = bench([source, *targets])[1:]
    (top8, size8), (top4, size4) = cells
    accuracy = entry["accuracy"]
    return (
        f"| {entry['name']} | {file['form']} | {accuracy['correct'] / accuracy['count']:.2%} | "
        f"{top8} | {top4} | {size8} | {size4} | {speeds[0].ratio:.2f}x | {speeds[1].ratio:.2f}x | "
        f"{len(report.kernels.integer)} of {report.kernels.total} |"
    )


@click.command()
@click.argument("names", nargs=-1)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("../shared/data/cifar10"),
    show_default=True,
)
def main(names: tuple[str, ...], data: Path) -> None:
    """Print the table, or the rows of the models NAMES."""
    head = "model | form | float | W8A8 | W4A8 | size W8 | size W4 | speed W8 | speed W4 | integer"
    print(f"| {head} |")
    print("| --- " * (head.count("|") + 1) + "|")
    for entry in zoo.entries():
        if names and entry["name"] not in names:
            continue
        for file in (entry, *entry["exports"]):
            with tempfile.TemporaryDirectory() as folder:
                print(row(entry, file, data, Path(folder)).replace("%", " %"), flush=True)


if __name__ == "__main__":
    main()
