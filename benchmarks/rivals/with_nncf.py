"""Quantize an ONNX vision model to int8 with NNCF's post-training quantization.

The file written holds QuantizeLinear and DequantizeLinear nodes and runs in stock ONNX Runtime.

`default` is the call of NNCF's quick start, given every calibration image. `best` asks for the
options that NNCF documents for accuracy: the slow bias correction, and the transformer model type
where the model has LayerNormalization and Softmax. It tries a few others on some of the images
(the mixed preset or the performance one, histogram or minmax ranges, seven-bit weights in every
layer or only the first against overflow, SmoothQuant's strength), applies the best of them with
every image too, and keeps the result, or the default's, whose outputs lie nearest to the float
model's (KL divergence, no labels needed).
"""

import logging
from typing import Any

import nncf
import numpy as np
import onnx
from common import Judge, arguments, calibration, nearest
from nncf.quantization.advanced_parameters import (
    AdvancedQuantizationParameters,
    AdvancedSmoothQuantParameters,
    OverflowFix,
)
from nncf.quantization.range_estimator import RangeEstimatorParametersSet

MIXED, PERFORMANCE = nncf.QuantizationPreset.MIXED, nncf.QuantizationPreset.PERFORMANCE
HISTOGRAM, MINMAX = RangeEstimatorParametersSet.HISTOGRAM, RangeEstimatorParametersSet.MINMAX


def options(**changes: Any) -> dict[str, Any]:
    """The arguments of nncf.quantize for one trial of the best recipe."""
    advanced = AdvancedQuantizationParameters(
        overflow_fix=changes.get("fix", OverflowFix.ENABLE),
        activations_range_estimator_params=changes.get("ranges", HISTOGRAM),
        smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=changes.get("alpha", 0.95)),
    )
    return {
        "preset": changes.get("preset", MIXED),
        "model_type": changes.get("model_type"),
        "fast_bias_correction": False,
        "advanced_parameters": advanced,
    }


def trials(model: onnx.ModelProto) -> dict[str, dict[str, Any]]:
    """The options that the best recipe chooses among, by name."""
    if {"LayerNormalization", "Softmax"} <= {node.op_type for node in model.graph.node}:
        kind = nncf.ModelType.TRANSFORMER
        return {
            "mixed histogram": options(model_type=kind),
            "mixed minmax": options(model_type=kind, ranges=MINMAX),
            "mixed histogram, fix the first layer only": options(
                model_type=kind, fix=OverflowFix.FIRST_LAYER
            ),
            "mixed histogram, smooth 0.5": options(model_type=kind, alpha=0.5),
        }
    return {
        "mixed histogram": options(),
        "mixed minmax": options(ranges=MINMAX),
        "mixed histogram, fix the first layer only": options(fix=OverflowFix.FIRST_LAYER),
        "performance histogram": options(preset=PERFORMANCE),
    }


def quantize(
    model: onnx.ModelProto, name: str, images: np.ndarray, **arguments: Any
) -> onnx.ModelProto:
    """NNCF's quantized copy of the model, calibrated on all the images one at a time."""
    dataset = nncf.Dataset([{name: image[None]} for image in images])
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return nncf.quantize(copy, dataset, subset_size=len(images), **arguments)


def main() -> None:
    """Write OUT."""
    args = arguments(__doc__, {(8, 8)})
    nncf.set_log_level(logging.ERROR)
    model = onnx.load(args.model)
    name, images = calibration(args.calib)
    if args.recipe == "best":
        judge = Judge(args.model, name, images)
        result = nearest(
            judge, lambda some, options: quantize(model, name, some, **options), trials(model)
        )
    else:
        result = quantize(model, name, images)
    onnx.save(result, args.out)


if __name__ == "__main__":
    main()
