"""What the scripts share: arguments, and how far answers are from those of the float model."""

import argparse
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

TRIAL_IMAGES = 128
Quantize = Callable[[np.ndarray, dict[str, Any]], onnx.ModelProto | None]


def arguments(about: str | None, widths: Collection[tuple[int, int]]) -> argparse.Namespace:
    """MODEL, CALIB, OUT and the options; ends with a line if a tool has no such width.

    Args:
        about: The script's docstring.
        widths: Bits of weights and of activations that the tool writes.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument(
        "calib", type=Path, metavar="CALIB.npz", help="one array, named as the input"
    )
    parser.add_argument("out", type=Path, metavar="OUT.onnx")
    parser.add_argument("--weights", type=int, default=8, help="bits of a weight")
    parser.add_argument("--activations", type=int, default=8, help="bits of an activation")
    parser.add_argument("--recipe", choices=["default", "best"], default="default")
    args = parser.parse_args()
    if (args.weights, args.activations) not in widths:
        sys.exit(f"not offered for convolutions: W{args.weights}A{args.activations}")
    return args


def calibration(file: Path) -> tuple[str, np.ndarray]:
    """The input's name and the images, (n, c, h, w)."""
    with np.load(file) as arrays:
        return next(iter(arrays.items()))


class Judge:
    """Divergence from the float model, on images, by what stock onnxruntime computes.

    Args:
        model: The float model, a classifier.
        name: Its input.
        images: (n, c, h, w).
    """

    def __init__(self, model: Path, name: str, images: np.ndarray) -> None:
        self.name, self.images = name, images
        self.wanted = self._log_softmax(model)

    def divergence(self, model: Path | bytes) -> float:
        """Mean Kullback-Leibler divergence of the answers, in nat."""
        apart = self.wanted - self._log_softmax(model)
        return float((np.exp(self.wanted) * apart).sum(axis=1).mean())

    def _log_softmax(self, model: Path | bytes) -> np.ndarray:
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        rows = [session.run(None, {self.name: image[None]})[0][0] for image in self.images]
        logits = np.asarray(rows, np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


def nearest(
    judge: Judge, quantize: Quantize, trials: Mapping[str, dict[str, Any]]
) -> onnx.ModelProto | None:
    """The model with the least divergence; None if the tool makes none.

    All options are tried on some of the images, then the best of them and the default on all.

    Args:
        judge: With all images.
        quantize: What the tool makes of images and options; None if it fails.
        trials: Options by a name for printing.
    """
    models: dict[str, onnx.ModelProto] = {}
    found: dict[str, float] = {}

    def attempt(label: str, images: np.ndarray, options: dict[str, Any]) -> None:
        result = quantize(images, options)
        if result is None:
            print(f"{label}: failed", flush=True)
            return
        models[label] = result
        found[label] = judge.divergence(result.SerializeToString())
        print(f"{label}: {found[label]:.6f} nat", flush=True)

    for label, options in trials.items():
        attempt(label, judge.images[:: max(1, len(judge.images) // TRIAL_IMAGES)], options)
    if not found:
        return None
    winner = min(found, key=found.__getitem__)
    attempt(f"{winner}, every image", judge.images, trials[winner])
    attempt("default, every image", judge.images, {})
    return models[min(found, key=found.__getitem__)]
