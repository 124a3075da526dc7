"""What writing operators anew is worth: chains of layers with them, converted with and without it.

    python benchmarks/rewrites.py > table.md

Weights are random: speed alone is measured, one thread, batch 1, all files of a row in turns,
ratios to the float model.
"""

import tempfile
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import onnx

import onnxq
from onnxq.evidence.bench import bench
from onnxq.graph import forms
from onnxq.numerics import groups
from onnxq.recipes import plan

SAMPLES = 4


class Chain(NamedTuple):
    """What follows the input, several times; {i} and {o} are the tensors, {n} which time it is."""

    nodes: str
    weights: dict[str, tuple[int, ...]]
    channels: int = 64
    side: int = 56
    times: int = 5


CHAINS = {
    "3 channels": Chain(
        "a{n} = Conv<pads=[1,1,1,1],strides=[2,2]>({i}, w{n}) r{n} = Relu(a{n}) "
        "{o} = Conv<pads=[1,1,1,1],strides=[2,2]>(r{n}, v{n})",
        {"w": (32, 3, 3, 3), "v": (64, 32, 3, 3)},
        3,
        224,
        1,
    ),
    "branches": Chain(
        "a{n} = Conv<pads=[1,1,1,1]>({i}, w{n}) b{n} = Conv({i}, v{n}) c{n} = Add(a{n}, b{n}) "
        "{o} = Relu(c{n})",
        {"w": (64, 64, 3, 3), "v": (64, 64, 1, 1)},
    ),
    "PRelu": Chain(
        "a{n} = Conv<pads=[1,1,1,1]>({i}, w{n}) {o} = PRelu(a{n}, s{n})",
        {"w": (64, 64, 3, 3), "s": (64, 1, 1)},
    ),
    "Mish": Chain(
        "a{n} = Conv<pads=[1,1,1,1]>({i}, w{n}) b{n} = Softplus(a{n}) c{n} = Tanh(b{n}) "
        "{o} = Mul(a{n}, c{n})",
        {"w": (64, 64, 3, 3)},
    ),
    "GELU": Chain(
        "a{n} = Conv<pads=[1,1,1,1]>({i}, w{n}) b{n} = Div(a{n}, r) c{n} = Erf(b{n}) "
        "d{n} = Add(c{n}, one) e{n} = Mul(a{n}, d{n}) {o} = Mul(e{n}, h)",
        {"w": (64, 64, 3, 3)},
    ),
    "DepthToSpace": Chain(
        'a{n} = Conv({i}, w{n}) b{n} = DepthToSpace<blocksize=2,mode="CRD">(a{n}) '
        "{o} = Conv<strides=[2,2]>(b{n}, v{n})",
        {"w": (128, 64, 1, 1), "v": (64, 32, 2, 2)},
    ),
    "ConvTranspose": Chain(
        "a{n} = ConvTranspose<strides=[2,2]>({i}, w{n}) r{n} = Relu(a{n}) "
        "{o} = Conv<strides=[2,2]>(r{n}, v{n})",
        {"w": (64, 32, 2, 2), "v": (64, 32, 2, 2)},
    ),
    "72 channels, depthwise": Chain(
        "a{n} = Conv({i}, w{n}) b{n} = Relu(a{n}) c{n} = Conv<group=72,pads=[1,1,1,1]>(b{n}, u{n}) "
        "d{n} = Relu(c{n}) {o} = Conv(d{n}, v{n})",
        {"w": (72, 64, 1, 1), "u": (72, 1, 3, 3), "v": (64, 72, 1, 1)},
    ),
    "120 channels, depthwise, 5x5": Chain(
        "a{n} = Conv({i}, w{n}) b{n} = Relu(a{n}) c{n} = Conv<group=120,pads=[2,2,2,2]>(b{n}, u{n})"
        " d{n} = Relu(c{n}) {o} = Conv(d{n}, v{n})",
        {"w": (120, 64, 1, 1), "u": (120, 1, 5, 5), "v": (64, 120, 1, 1)},
    ),
    "groups of 4": Chain(
        "a{n} = Conv<group=16,pads=[1,1,1,1]>({i}, w{n}) r{n} = Relu(a{n}) {o} = Conv(r{n}, v{n})",
        {"w": (64, 4, 3, 3), "v": (64, 64, 1, 1)},
    ),
    "groups of 8": Chain(
        "a{n} = Conv<group=8,pads=[1,1,1,1]>({i}, w{n}) r{n} = Relu(a{n}) {o} = Conv(r{n}, v{n})",
        {"w": (64, 8, 3, 3), "v": (64, 64, 1, 1)},
    ),
    "groups of 16": Chain(
        "a{n} = Conv<group=4,pads=[1,1,1,1]>({i}, w{n}) r{n} = Relu(a{n}) {o} = Conv(r{n}, v{n})",
        {"w": (64, 16, 3, 3), "v": (64, 64, 1, 1)},
    ),
}
REWRITES = (
    "expand-prelu", "expand-mish", "fuse-gelu", "merge-branches", "pad-channels",
    "turn-depth-to-space",
)  # fmt: skip
NUMBERS = {"r": np.sqrt(2.0), "one": 1.0, "h": 0.5}


def network(chain: Chain, rng: np.random.Generator) -> bytes:
    """The nodes of a chain, one time after the other."""
    text = " ".join(
        chain.nodes.format(n=n, i=f"x{n}", o="y" if n == chain.times - 1 else f"x{n + 1}")
        for n in range(chain.times)
    )
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> net '
        f"(float[1,{chain.channels},{chain.side},{chain.side}] x0) => (float[1,64,56,56] y) "
        f"{{ {text} }}"
    )
    for n in range(chain.times):
        for name, shape in chain.weights.items():
            drawn = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
            if name == "s":
                drawn = rng.uniform(0.0, 0.5, shape)
            tensor = onnx.numpy_helper.from_array(drawn.astype(np.float32), f"{name}{n}")
            proto.graph.initializer.append(tensor)
    for name, number in NUMBERS.items():
        tensor = onnx.numpy_helper.from_array(np.array(number, np.float32), name)
        proto.graph.initializer.append(tensor)
    return proto.SerializeToString()


def main() -> None:
    """Print the table as Markdown."""
    recipe = plan("fast", calibrated=True)
    plain = recipe.model_copy(
        update={"passes": tuple(p for p in recipe.passes if p.name not in REWRITES)}
    )
    print("| between layers | as it is | written anew |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for name, chain in CHAINS.items():
            source, before, after = (Path(folder) / f"{part}.onnx" for part in ("f", "b", "a"))
            rng = np.random.default_rng(0)
            source.write_bytes(network(chain, rng))
            shape = (1, chain.channels, chain.side, chain.side)
            calib = [{"x0": rng.standard_normal(shape, np.float32)} for _ in range(SAMPLES)]
            # No groups are put together, and no pixels.
            with patch.object(groups, "BEST", 1), patch.object(forms, "MOST_CHANNELS", 0):
                onnxq.convert(source, before, recipe=plain, calib=calib, force=True)
            onnxq.convert(source, after, recipe=recipe, calib=calib, force=True)
            _, old, new = bench([source, before, after])
            print(f"| {name} | {old.ratio:.2f}x | {new.ratio:.2f}x |", flush=True)


if __name__ == "__main__":
    main()
