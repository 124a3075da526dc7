"""Networks as others publish them, at 8 bits: onnxruntime.quantization beside onnxq.

    python benchmarks/elsewhere.py IMAGES MODEL PREPROCESS [--words]

PREPROCESS is what ``onnxq convert --preprocess`` takes; it has to say a size. Of the first images,
twice COUNT, every second one calibrates, and the others are judged on. With --words, random words
are painted on them, so that detectors and readers of text have something to answer to.

Printed is a row: SQNR of the first output in dB and speed over the float model, by onnxruntime (its
preprocessing, per channel, min-max ranges; raised to opset 13 if it is older), by onnxq, and by
onnxq with --min-sqnr WISH. Batch 1, one thread, in turns; ratios are medians.
"""

import string
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import version_converter
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image, ImageDraw, ImageFont

import onnxq
from onnxq.numerics.metrics import Fidelity
from onnxq.runtime import Session
from onnxq.samples.preprocess import Preprocess, read
from onnxq.spec import Array

COUNT, ROUNDS = 32, 31
WISH = 20.0
Feed = Mapping[str, Array]


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds, one after the other."""

    def __init__(self, feeds: list[Feed]) -> None:
        self.left: Iterator[Feed] = iter(feeds)

    def get_next(self) -> Feed | None:
        """The next one."""
        return next(self.left, None)


def painted(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The image with a word in each of three places."""
    image = image.convert("RGB")
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        word = "".join(rng.choice(list(string.ascii_letters + string.digits), rng.integers(3, 10)))
        size = int(image.height * rng.uniform(0.08, 0.3))
        place = rng.uniform(0, 0.7, 2) * image.size
        color = tuple(int(c) for c in rng.integers(0, 256, 3))
        draw.text(tuple(place), word, fill=color, font=ImageFont.load_default(size))
    return image


def feeds(folder: Path, name: str, preprocess: Preprocess, words: bool) -> list[Feed]:
    """Twice COUNT images as inputs."""
    rng = np.random.default_rng(0)
    found = []
    for file in sorted(folder.iterdir())[: 2 * COUNT]:
        with Image.open(file) as image:
            found.append({name: preprocess.apply(painted(image, rng) if words else image)})
    return found


def judged(reference: Session, session: Session, held: list[Feed]) -> tuple[float, float]:
    """SQNR of the first output, and speed over the float model."""
    fidelity, output = Fidelity(), reference.outputs[0]
    for feed in held:
        fidelity.update(reference.run(feed)[output], session.run(feed)[output])
    ratios = []
    for turn in range(ROUNDS):
        seconds = []
        for one in (reference, session):
            start = time.perf_counter()
            one.run(held[turn % len(held)])
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[0] / seconds[1])
    return fidelity.sqnr, float(np.median(ratios))


def row(folder: Path, model: Path, preprocess: Preprocess, words: bool) -> list[str]:
    """The figures of one model."""
    reference = Session(model)
    data = feeds(folder, reference.inputs[0].name, preprocess, words)
    seen, held = data[::2], data[1::2]
    with tempfile.TemporaryDirectory() as scratch:
        ready, rival, ours = (Path(scratch) / f"{name}.onnx" for name in ("ready", "ort", "onnxq"))
        proto = onnx.load(model)
        if proto.opset_import[0].version < 13:
            proto = version_converter.convert_version(proto, 13)
        onnx.save(proto, ready)
        quant_pre_process(ready, ready, skip_symbolic_shape=True)
        quantize_static(
            ready,
            rival,
            Reader(seen),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
        )
        found = [judged(reference, Session(rival), held)]
        for wish in (None, WISH):
            report = onnxq.convert(model, ours, calib=seen, min_sqnr=wish, force=True)
            found.append(judged(reference, Session(ours), held))
            given = 0 if report.fit is None else len(report.fit.reliefs)
            print(f"{model.name}, {wish} dB wanted: {given} reliefs", file=sys.stderr)
    return [f"{sqnr:.1f} dB, {speed:.2f}x" for sqnr, speed in found]


def main(folder: str, model: str, preprocess: str, words: str = "") -> None:
    """Print the row of a model."""
    cells = row(Path(folder), Path(model), read(preprocess), words == "--words")
    print(f"| {Path(model).stem} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
