"""Run the files that write.py left, with nothing but the onnxruntime at hand.

python tests/targets/read.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

# A tie that is rounded the other way moves a logit by less than this share of the largest.
ROUNDING = 0.02
INTEGER = ("QLinearConv", "QGemm")


def main(folder: Path) -> None:
    """Load, run and compare every file, and look for what should have been folded at load."""
    files = sorted(folder.glob("*.onnx"))
    assert len(files) >= 20, f"{folder} holds {len(files)} models"
    for file in files:
        known = np.load(file.with_suffix(".npz"))
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(folder / "optimized")
        options.log_severity_level = 3
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"image": known["image"]})
        error = np.abs(logits - known["logits"]).max() / np.abs(known["logits"]).max()
        assert error <= ROUNDING, f"{file.name}: results differ by {error:.3f}"
        optimized = (folder / "optimized").read_bytes()
        if file.stem.endswith(("a8", "afloat")):  # narrow copies of residuals are made of wide ones
            assert b"DequantizeLinear" not in optimized, f"{file.name}: not fused"
        if "afloat" not in file.name:
            assert all(op.encode() in optimized for op in INTEGER), f"{file.name}: not integer"
        for leftover in (b"Range", b"Mod", b"Gather"):
            assert leftover not in optimized, f"{file.name}: {leftover.decode()} is not folded"
    print(f"onnxruntime {ort.__version__}: {len(files)} files run and agree")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
