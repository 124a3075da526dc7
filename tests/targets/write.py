"""Write models of every width and level set for one onnxruntime, with what they compute here.

python tests/targets/write.py VERSION FOLDER
"""

import sys
from pathlib import Path

import numpy as np

import onnxq
from onnxq.demo import unpack
from onnxq.numerics.levels import WIDTHS
from onnxq.runtime import Session


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
    for name in (model, calib, test):
        name.unlink()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
