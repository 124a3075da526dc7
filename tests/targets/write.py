"""Write models of every width and level set for one onnxruntime, with what they compute here.

python tests/targets/write.py VERSION FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import onnx

import onnxq
from onnxq.demo import unpack
from onnxq.numerics.levels import WIDTHS
from onnxq.runtime import Session

# What is written anew for integer kernels, and narrow channel groups.
STRUCTURES = """<ir_version: 8, opset_import: ["" : 17]>
net (float[8,8,16,16] image) => (float[8,4] logits) {
  a = Conv<group=2,pads=[1,1,1,1]>(image, w1)  p = PRelu(a, s)
  u = Conv(p, w2)  d = DepthToSpace<blocksize=2,mode="CRD">(u)  r = Relu(d)
  t = ConvTranspose<strides=[2,2]>(r, w3)  c = Conv<group=4,pads=[1,1,1,1]>(t, w4)
  g = GlobalAveragePool(c)  f = Flatten(g)  logits = Gemm(f, w5)
}"""
SHAPES = {"w1": (16, 4, 3, 3), "s": (16, 1, 1), "w2": (32, 16, 1, 1), "w3": (8, 16, 2, 2),
          "w4": (16, 4, 3, 3), "w5": (16, 4)}  # fmt: skip


def structures(folder: Path) -> tuple[Path, list[dict[str, np.ndarray]]]:
    """A network of random weights, and feeds for it."""
    rng, proto = np.random.default_rng(0), onnx.parser.parse_model(STRUCTURES)
    for name, shape in SHAPES.items():
        values = rng.normal(scale=np.prod(shape[1:]) ** -0.5, size=shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    file = folder / "structures.source"
    file.write_bytes(proto.SerializeToString())
    return file, [{"image": rng.normal(size=(8, 8, 16, 16)).astype(np.float32)} for _ in range(4)]


def main(version: str, folder: Path) -> None:
    """Convert the demo's network; ``NAME.npz`` holds its input and output, optimised or not."""
    model, calib, test = unpack(folder)
    x = np.load(test)["image"][:32]
    cases = [("uniform", bits, 8) for bits in range(2, 9)]
    cases += [(name, bits, 8) for name, ends in WIDTHS.items() for bits in sorted({*ends})]
    cases += [("uniform", 8, act_bits) for act_bits in (2, 4)]
    cases += [("uniform", 3, "float"), ("uniform", 4, "float"), ("kmeans", 4, "float")]
    cases += [("kmeans", bits, 8) for bits in (3, 4, 5)]
    for levels, bits, act_bits in cases:
        file = folder / f"{levels}-w{bits}a{act_bits}.onnx"
        onnxq.convert(
            model,
            file,
            levels=levels,
            bits=bits,
            act_bits=act_bits,
            calib=calib,
            target_ort=version,
            force=True,
        )
        logits = Session(file, optimize=False).run({"image": x})["logits"]
        np.savez(file.with_suffix(".npz"), image=x, logits=logits)
    source, feeds = structures(folder)
    for bits in (8, 4, 3):
        file = folder / f"structures-w{bits}a8.onnx"
        onnxq.convert(source, file, bits=bits, calib=feeds, target_ort=version, force=True)
        image = feeds[0]["image"]
        logits = Session(file, optimize=False).run({"image": image})["logits"]
        np.savez(file.with_suffix(".npz"), image=image, logits=logits)
    for name in (model, calib, test):
        name.unlink()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
