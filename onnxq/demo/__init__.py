"""The built-in demonstration: a small CNN on real handwritten digits, quantized and compared.

The network and the images are the project's own training on scikit-learn's digits; models/ holds
the script, the seed and the checksums.
"""

import tempfile
from importlib import resources
from pathlib import Path

import numpy as np

from onnxq.bench import Speed, bench
from onnxq.calibration import Progress, silent
from onnxq.conversion import convert
from onnxq.data import Arrays
from onnxq.report import Report


def demo(
    folder: Path | None = None, progress: Progress = silent
) -> tuple[list[Report], list[Speed]]:
    """Convert the digits CNN to W8A8 and W4A8, validate both on labeled digits, and time them.

    Args:
        folder: Where to leave the files; a temporary folder by default.
        progress: Called as samples are done.
    """
    with resources.as_file(resources.files(__name__)) as assets, tempfile.TemporaryDirectory() as t:
        target = folder or Path(t)
        digits = np.load(assets / "digits.npz")
        calib, test = (
            digits[part].astype(np.float32) / np.float32(16) for part in ("calib", "test")
        )
        labels = [int(c) for c in digits["labels"]]
        reports = [
            convert(
                assets / "digits.onnx",
                target / f"digits.w{bits}a8.onnx",
                bits=bits,
                calib=Arrays({"image": calib}, range(len(calib))),
                validate=Arrays({"image": test}, range(len(test)), labels),
                force=True,
                progress=progress,
            )
            for bits in (8, 4)
        ]
        files = [assets / "digits.onnx", *(Path(r.output) for r in reports)]
        return reports, bench(files, batch=32)
