"""onnxq against onnxruntime.quantization on one model and one set of images.

    python benchmarks/against_onnxruntime.py MODEL CALIB_DIR [ROUNDS [FLAGS OF onnxq convert ...]]

onnxruntime converts to 8-bit weights (per channel) and activations with min-max ranges, onnxq as
the flags say, by default --quality fast; each in a process of its own, in turns; then the results
are timed in turns. Figures are medians of ratios, onnxruntime over onnxq: above 1 means that onnxq
is faster.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from onnxq.evidence.bench import bench
from onnxq.runtime import Session
from onnxq.samples.data import Images
from onnxq.samples.preprocess import resolve
from onnxq.samples.sources import open_samples

COUNT = 512

RIVAL = """
import json, sys
import numpy as np
from PIL import Image
from onnxruntime.quantization import (
    CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static)

model, output, plan = sys.argv[1:]
plan = json.loads(plan)
mean, std = (np.array(plan[k], np.float32)[:, None, None] for k in ("mean", "std"))

class Reader(CalibrationDataReader):
    def __init__(self):
        self.files = iter(plan["files"])
    def get_next(self):
        file = next(self.files, None)
        if file is None:
            return None
        image = Image.open(file).convert("RGB")
        if plan["resize"]:
            image = image.resize(plan["resize"][::-1], Image.Resampling.BILINEAR)
        x = np.asarray(image, np.float32).transpose(2, 0, 1) * np.float32(plan["scale"])
        return {plan["input"]: ((x - mean) / std)[None]}

quantize_static(
    model, output, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
    weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
    calibrate_method=CalibrationMethod.MinMax)
"""


def reading(model: str, calib: str) -> str:
    """What the rival needs to read the very images onnxq draws, one at a time, as JSON."""
    inputs = Session(Path(model)).inputs
    preprocess, _ = resolve(None, Path(model), {})
    images = open_samples(calib, inputs, preprocess, COUNT)
    assert isinstance(images, Images)
    values = preprocess.model_dump(mode="json")
    return json.dumps(values | {"input": inputs[0].name, "files": list(map(str, images.files))})


def seconds(command: list[str]) -> float:
    """Wall time of a whole process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main(model: str, calib: str, rounds: str = "7", *flags: str) -> None:
    """Convert in turns, then time the two results in turns."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "onnxq.onnx", Path(folder) / "onnxruntime.onnx"
        onnxq = [
            *(sys.executable, "-m", "onnxq", "convert", model, "-o", str(ours), "--force"),
            *("--calib", calib, "--calib-size", str(COUNT), *(flags or ("--quality", "fast"))),
        ]
        rival = [sys.executable, "-c", RIVAL, model, str(theirs), reading(model, calib)]
        pairs = [(seconds(rival), seconds(onnxq)) for _ in range(int(rounds))]
        ratios = [theirs_s / ours_s for theirs_s, ours_s in pairs]
        print(
            f"conversion: {statistics.median(ratios):.2f}x, {min(ratios):.2f} to {max(ratios):.2f}"
        )
        _, first, second = bench([Path(model), ours, theirs])
        print(f"inference over float: onnxq {first.ratio:.2f}x, onnxruntime {second.ratio:.2f}x")
        sizes = [file.stat().st_size / Path(model).stat().st_size for file in (ours, theirs)]
        print(f"size over float: onnxq {sizes[0]:.3f}, onnxruntime {sizes[1]:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
