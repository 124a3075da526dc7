"""Outlier-aware quantization against what the paper prints of it: the tables of docs/oaq.md.

    python benchmarks/oaq.py similarity MODEL...
    python benchmarks/oaq.py accuracy MODEL... [--data ../shared/data/cifar10]

``accuracy`` takes minutes for each width of a deep network.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

import onnxq
from onnxq.graph.layers import layers
from onnxq.numerics import affine, ranges
from onnxq.numerics.metrics import histogram_ssim
from onnxq.pipeline import run
from onnxq.recipes import PREPARATION, build
from onnxq.runtime import Session
from onnxq.samples.data import batches
from onnxq.samples.preprocess import resolve
from onnxq.samples.sources import open_samples
from onnxq.spec import Floats, weight_spec

COUNT, BATCH = 512, 250
SPEC = weight_spec(4, per_channel=False)
# What a transform makes of a weight, and the factor, () or broadcasting, that brings it back.
Transformed = tuple[Floats, Floats]


def trained(w: Floats) -> Transformed:
    """The weight as it is."""
    return w, np.ones(())


def gdrq(w: Floats) -> Transformed:
    """Clipped at twice the mean magnitude and stretched to the old range."""
    factor = np.abs(w).max() / (2 * np.abs(w).mean())
    return np.clip(factor * w, -np.abs(w).max(), np.abs(w).max()), 1 / factor


def equalized(w: Floats) -> Transformed:
    """Every output channel stretched to the range of the layer."""
    channels = np.abs(w).max(axis=tuple(range(1, w.ndim)), keepdims=True, initial=1e-30)
    factor = np.abs(w).max() / channels
    return factor * w, 1 / factor


def clipped(w: Floats) -> Transformed:
    """Clipped where ACIQ says."""
    return np.clip(w, *ranges.WEIGHT["aciq"](w, SPEC, None)), np.ones(())


def outlier_aware(method: str) -> Callable[[Floats], Transformed]:
    """Equation (4), in units of M."""

    def transform(w: Floats) -> Transformed:
        m = np.abs(w).max()
        factor = m / ranges.WEIGHT[method](w, SPEC, None)[1]
        return np.clip(factor * w, -m, m), 1 / factor

    return transform


TRANSFORMS: dict[str, Callable[[Floats], Transformed]] = {
    "trained": trained,
    "equalization, GDRQ at 2 mean": gdrq,
    "equalization, max of channels": equalized,
    "clipping, ACIQ": clipped,
    "OAQ, tabulated sigma": outlier_aware("oaq"),
    "OAQ, sigma of least error": outlier_aware("oaq-mse"),
    "OAQ, sigma of SSIM 96.13 %": outlier_aware("oaq-ssim"),
}


@click.group()
def main() -> None:
    """Print the tables as Markdown."""


@main.command()
@click.argument("models", nargs=-1, type=click.Path(path_type=Path))
def similarity(models: tuple[Path, ...]) -> None:
    """Histograms of the weights of MODELS before and after, and their errors at 4 bits."""
    for file in models:
        model = onnxq.load(file)
        run(model, PREPARATION, None)
        weights = [layer.weight for layer in layers(model)]
        print(f"\n{file.stem}, {len(weights)} layers\n")
        print("| transform | SSIM % | rounding | ratio | with clipping | ratio |")
        print("| --- " * 6 + "|")
        first: Floats | None = None
        for name, transform in TRANSFORMS.items():
            found, sums = [], np.zeros(2)
            for w in weights:
                x, factor = transform(w.astype(np.float64))
                levels = affine.qparams(*ranges.weight_max(x, SPEC, None), SPEC)
                rounded = affine.fake_quantize(x, levels)
                found.append(histogram_ssim(w, x))
                sums += [np.sum((factor * (rounded - target)) ** 2) for target in (x, w / factor)]
            first = sums if first is None else first
            cells = [f"{s:.3f} | {r:.3f}" for s, r in zip(sums, sums / first, strict=True)]
            print(f"| {name} | {100 * np.mean(found):.2f} | {' | '.join(cells)} |")


def top1(file: Path, source: Path, data: Path) -> tuple[int, int]:
    """Images labeled right, and how many there are."""
    session = Session(file)
    preprocess, _ = resolve(None, source, onnxq.load(source).metadata)
    samples = open_samples(data / "val", session.inputs, preprocess, labels="auto")
    labels = getattr(samples, "labels", None) or []
    right = 0
    for batch in batches(samples, session.inputs, BATCH):
        (scores,) = session.run(batch.feeds).values()
        right += sum(scores.argmax(axis=1) == [labels[key] for key in batch.keys])
    return right, len(labels)


@main.command()
@click.argument("models", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("../shared/data/cifar10"),
    show_default=True,
)
@click.option("--keep-float", multiple=True, metavar="GLOB", help="Nodes to leave alone.")
def accuracy(models: tuple[Path, ...], data: Path, keep_float: tuple[str, ...]) -> None:
    """Top-1 of MODELS at 8, 4 and 3 bits, one scale for each layer, activations of 8 bits."""
    print("| model | bits | float | vanilla | OAQ, tabulated | OAQ, searched |")
    print("| --- " * 6 + "|", flush=True)
    for file in models:
        right, count = top1(file, file, data)
        for bits in (8, 4, 3):
            cells = []
            for method in ("max", "oaq", "oaq-mse"):
                with tempfile.TemporaryDirectory() as folder:
                    target = Path(folder) / "q.onnx"
                    onnxq.convert(
                        file,
                        target,
                        recipe=build(bits=bits, weight_range=method, per_channel=False),
                        calib=data / "calib",
                        calib_size=COUNT,
                        keep_float=keep_float,
                    )
                    cells.append(f"{100 * top1(target, file, data)[0] / count:.2f}")
            print(
                f"| {file.stem} | {bits} | {100 * right / count:.2f} | {' | '.join(cells)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
