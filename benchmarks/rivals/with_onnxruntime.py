"""Quantize an ONNX vision model with onnxruntime's own quantize_static.

`default` has its documented preparation and its defaults: one scale for each weight, ranges from
the smallest and largest values seen. `best` has a scale for each channel, tries weights of seven
bits (reduce_range) and ranges by percentile and entropy, and keeps the file that is nearest to the
float model.
"""

import itertools
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from common import Judge, arguments, calibration
from onnx import version_converter
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

FIRST_QDQ_OPSET, FIRST_INT4_OPSET = 13, 21
METHODS = (CalibrationMethod.MinMax, CalibrationMethod.Percentile, CalibrationMethod.Entropy)


class Images(CalibrationDataReader):
    """Calibration images one at a time."""

    def __init__(self, name: str, images: np.ndarray) -> None:
        self.feeds = iter([{name: image[None]} for image in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next one."""
        return next(self.feeds, None)


def main() -> None:
    """Write OUT."""
    args = arguments(__doc__, {(8, 8), (4, 8)})
    name, images = calibration(args.calib)
    narrow = args.weights == 4
    with tempfile.TemporaryDirectory() as folder:
        ready, trial = Path(folder) / "ready.onnx", Path(folder) / "trial.onnx"
        proto = onnx.load(args.model)
        opset = FIRST_INT4_OPSET if narrow else FIRST_QDQ_OPSET
        if proto.opset_import[0].version < opset:
            proto = version_converter.convert_version(proto, opset)
        onnx.save(proto, ready)
        quant_pre_process(ready, ready, skip_symbolic_shape=True)

        def quantize(
            method: CalibrationMethod = CalibrationMethod.MinMax,
            per_channel: bool = False,
            reduce_range: bool = False,
        ) -> None:
            quantize_static(
                ready,
                trial,
                Images(name, images),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt4 if narrow else QuantType.QInt8,
                calibrate_method=method,
                per_channel=per_channel,
                reduce_range=reduce_range,
            )

        if args.recipe == "default":
            quantize()
            args.out.write_bytes(trial.read_bytes())
            return
        judge, least = Judge(args.model, name, images), np.inf
        for method, reduced in itertools.product(METHODS, (False,) if narrow else (False, True)):
            quantize(method, True, reduced)
            if (found := judge.divergence(trial)) < least:
                least = found
                args.out.write_bytes(trial.read_bytes())
            print(f"{method.name}, reduce_range {reduced}: {found:.6f} nat", file=sys.stderr)


if __name__ == "__main__":
    main()
