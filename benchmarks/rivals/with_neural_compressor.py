"""Quantize an ONNX vision model to int8 with Intel Neural Compressor's static quantization.

The file written holds QuantizeLinear and DequantizeLinear nodes and runs in stock ONNX Runtime.

`default` is the call of the tool's quick start for static quantization, given every calibration
image; the tool then narrows weights to seven bits by itself on a CPU without VNNI. `best` tries
the documented options for accuracy (weights of the full range or the reduced one, minmax or
percentile ranges, SmoothQuant) on some of the images, applies the best of them with every image
too, and keeps the result, or the default's, whose outputs lie nearest to the float model's
(KL divergence, no labels needed).
"""

import itertools
import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from common import Judge, arguments, calibration, nearest
from neural_compressor import PostTrainingQuantConfig, quantization, set_workspace


class Images:
    """Calibration images one at a time, each with a label that the tool ignores."""

    batch_size = 1

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        for image in self.images:
            yield image[None], 0


def percentile() -> dict[str, Any]:
    """Options that set activation ranges by percentile where the tool offers it."""
    return {kind: {"activation": {"algorithm": ["percentile"]}} for kind in ("Conv", "MatMul")}


def smooth(folding: bool) -> dict[str, Any]:
    """Options for SmoothQuant; unfolded, its scales stay in the graph as Mul nodes."""
    return {"smooth_quant": True, "smooth_quant_args": {"alpha": 0.5, "folding": folding}}


def trials() -> dict[str, dict[str, Any]]:
    """The options that the best recipe chooses among, by name."""
    ways: dict[str, dict[str, Any]] = {
        "minmax": {},
        "percentile": {"op_type_dict": percentile()},
        "smooth 0.5": {"recipes": smooth(folding=True)},
        "smooth 0.5, unfolded": {"recipes": smooth(folding=False)},
    }
    return {
        f"{way}, {'reduced' if reduced else 'full'} range": {**ways[way], "reduce_range": reduced}
        for reduced, way in itertools.product((True, False), ways)
    }


def quantize(model: Path, images: np.ndarray, **arguments: Any) -> onnx.ModelProto | None:
    """The tool's quantized copy, calibrated on all the images one at a time; None if it fails."""
    config = PostTrainingQuantConfig(
        approach="static",
        quant_format="QDQ",
        calibration_sampling_size=[len(images)],
        **arguments,
    )
    result = quantization.fit(str(model), config, calib_dataloader=Images(images))
    return None if result is None else result.model


def main() -> None:
    """Write OUT."""
    args = arguments(__doc__, {(8, 8)})
    logging.getLogger("neural_compressor").setLevel(logging.ERROR)
    name, images = calibration(args.calib)
    with tempfile.TemporaryDirectory() as folder:
        set_workspace(folder)
        if args.recipe == "best":
            judge = Judge(args.model, name, images)
            result = nearest(
                judge, lambda some, options: quantize(args.model, some, **options), trials()
            )
        else:
            result = quantize(args.model, images)
    if result is None:
        sys.exit("Neural Compressor gave no model; its log says why")
    onnx.save(result, args.out)


if __name__ == "__main__":
    main()
