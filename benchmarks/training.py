"""What a step of training costs.

    python benchmarks/training.py MODEL CALIB_DIR [BITS] [ACT_BITS]

Times a step of the pass distill and a plain training step of the float network in turns, and prints
the median ratio and where the time of a step goes. Needs torch.
"""

import sys
import time
from pathlib import Path
from statistics import median

import torch
from torch.profiler import profile

from onnxq.graph.blocks import blocks
from onnxq.graph.loading import load
from onnxq.learned.network import QuantizedNetwork
from onnxq.learned.teaching import Teaching, channels_last
from onnxq.lowering import Lowered
from onnxq.pipeline import run
from onnxq.quantization import prepare
from onnxq.recipes import plan
from onnxq.runtime import Session
from onnxq.samples.calibration import Calibration
from onnxq.samples.preprocess import resolve
from onnxq.samples.sources import open_samples

ROUNDS, BATCH = 15, 64


def main(file: Path, images: Path, bits: int = 4, act_bits: int = 8) -> None:
    """Plan a model with the recipe fast, and time steps of it."""
    model = load(file)
    preprocess, _ = resolve(None, file, model.metadata)
    samples = open_samples(images, Session(file).inputs, preprocess, 2 * BATCH)
    recipe = plan("fast", bits=bits, act_bits=act_bits, calibrated=True)
    prepare(model, recipe)
    reference, data = model.clone(), Calibration(samples, preprocess)
    run(model, recipe.lossy[:-1], data)
    lessons = data.teach(model, lambda planned: planned)

    teacher, network, plain = Lowered(reference), QuantizedNetwork(model), Lowered(reference)
    output = model.graph.outputs[0].name
    points = [block.result for block in blocks(model, set(network.graded))][-2:]
    teaching = Teaching(teacher, network, points, output, lessons, None, BATCH, 0.5)
    weights = [b.requires_grad_() for b in plain.buffers() if b.is_floating_point() and b.ndim > 1]
    x = {name: channels_last(torch.from_numpy(v[:BATCH])) for name, v in lessons.feeds.items()}

    def step(number: int) -> None:
        network.zero_grad()
        for part in teaching.loss(number):
            part.backward()

    def plain_step() -> None:
        for weight in weights:
            weight.grad = None
        plain.run(x, [output])[output].square().mean().backward()

    ratios = []
    for number in range(ROUNDS + 2):
        times = [time.perf_counter()]
        for work in (plain_step, lambda n=number: step(n)):
            work()
            times.append(time.perf_counter())
        ratios.append((times[2] - times[1]) / (times[1] - times[0]))
    print(f"a step takes {median(ratios[2:]):.2f} times a plain training step", flush=True)
    with profile() as seen:
        step(0)
    print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=14))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]), *map(int, sys.argv[3:]))
