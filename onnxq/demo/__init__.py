"""The built-in demonstration: a small CNN on real handwritten digits, quantized and compared.

The network and the images are the project's own training on scikit-learn's digits; models/ holds
the script, the seed and the checksums.
"""

import tempfile
from importlib import resources
from pathlib import Path

import numpy as np

from onnxq.conversion import convert
from onnxq.evidence.bench import Speed, bench
from onnxq.evidence.report import Report
from onnxq.progress import Progress, silent


def demo(
    folder: Path | None = None, progress: Progress = silent
) -> tuple[list[Report], list[Speed]]:
    """Convert the digits CNN to W8A8 and W4A8, validate both on labeled digits, and time them.

    Args:
        folder: Where to leave the float model, the data and the results; temporary by default.
        progress: Called as samples are done.
    """
    with tempfile.TemporaryDirectory() as temporary:
        model, calib, test = unpack(folder or Path(temporary))
        reports = [
            convert(model, bits=bits, calib=calib, validate=test, force=True, progress=progress)
            for bits in (8, 4)
        ]
        return reports, bench([model, *(Path(r.output) for r in reports)], batch=32)


def unpack(folder: Path) -> tuple[Path, Path, Path]:
    """Lay out the model, unlabeled tensors to calibrate on and labeled ones to validate on."""
    assets = resources.files(__name__)
    model, calib, test = (folder / name for name in ("digits.onnx", "calib.npz", "test.npz"))
    model.write_bytes(assets.joinpath("digits.onnx").read_bytes())
    with assets.joinpath("digits.npz").open("rb") as file:
        digits = np.load(file)
        sixteenth = np.float32(1 / 16)
        np.savez(calib, image=digits["calib"] * sixteenth)
        np.savez(test, image=digits["test"] * sixteenth, labels=digits["labels"])
    return model, calib, test
