"""Quantize an ONNX vision model to 8 bits with AMD Quark (quark.onnx), without labels.

The recipe "default" is the named configuration INT8_CNN_DEFAULT: unsigned 8-bit activations and
signed 8-bit weights, ranges from the smallest and largest values seen, cross-layer equalization.
The recipe "best" gives each output channel of a weight its own scale, tries the calibration
methods, with and without equalization, keeps the one whose outputs are nearest to those of the
float model, and then tunes the weights layer by layer with AdaRound and with AdaQuant (100 steps
of 32 images a layer each), keeping a tuned model only if it is nearer. Quark has no integer type of
fewer than 8 bits for convolutions, so it stops at other bit widths.
"""

import itertools
import tempfile
from pathlib import Path

import numpy as np
from common import Judge, arguments, calibration
from onnxruntime.quantization import CalibrationDataReader, QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod
from quark.onnx import ModelQuantizer
from quark.onnx.calibration.methods import LayerWiseMethod
from quark.onnx.quantization.config import Config, get_default_config
from quark.onnx.quantization.config.algorithm import AdaQuantConfig, AdaRoundConfig
from quark.onnx.quantization.config.legacy import QuantizationConfig

ITERATIONS = 100
SEARCH_IMAGES = 128
RANGES = (
    (CalibrationMethod.MinMax, 100.0),
    (CalibrationMethod.Percentile, 99.999),
    (CalibrationMethod.Percentile, 99.99),
    (CalibrationMethod.Entropy, 100.0),
    (LayerWiseMethod.LayerWisePercentile, 99.999),
)
Tuning = AdaRoundConfig | AdaQuantConfig


class Images(CalibrationDataReader):
    """Hands out calibration images in small batches."""

    def __init__(self, name: str, images: np.ndarray, batch: int = 1) -> None:
        self.batches = [{name: images[i : i + batch]} for i in range(0, len(images), batch)]
        self.rewind()

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next one."""
        return next(self.left, None)

    def rewind(self) -> None:
        """Begin again."""
        self.left = iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def configuration(
    method: CalibrationMethod | LayerWiseMethod, percentile: float, equalize: bool
) -> QuantizationConfig:
    """A scale for each channel, and ranges so."""
    return QuantizationConfig(
        calibrate_method=method,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        include_cle=equalize,
        print_summary=False,
        extra_options={"ForceQuantizeNoInputCheck": True, "Percentile": percentile},
    )


def best(model: Path, out: Path, name: str, images: np.ndarray) -> None:
    """Write the file that came nearest to the float model."""
    judge, least = Judge(model, name, images), np.inf
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "trial.onnx"

        def attempt(
            config: QuantizationConfig, some: np.ndarray, tuning: Tuning | None = None
        ) -> float:
            quantizer = ModelQuantizer(Config(global_quant_config=config))
            quantizer.config.include_fast_ft = tuning is not None
            reader = Images(name, some, 32)
            quantizer.quantize_model(str(model), str(trial), reader, algorithms=tuning and [tuning])
            return judge.divergence(trial)

        choices = list(itertools.product(RANGES, (False, True)))
        configs = [configuration(*ranges, equalize) for ranges, equalize in choices]
        found = [attempt(config, images[:SEARCH_IMAGES]) for config in configs]
        chosen = configs[int(np.argmin(found))]
        for tuning in (
            None,
            AdaRoundConfig(num_iterations=ITERATIONS, learning_rate=0.1),
            AdaQuantConfig(num_iterations=ITERATIONS, learning_rate=1e-5, update_bias=True),
        ):
            divergence = attempt(chosen, images, tuning)
            print(f"{choices[int(np.argmin(found))]}, {tuning}: {divergence:.6f} nat", flush=True)
            if divergence < least:
                least = divergence
                out.write_bytes(trial.read_bytes())


def main() -> None:
    """Write OUT."""
    args = arguments(__doc__, {(8, 8)})
    name, images = calibration(args.calib)
    if args.recipe == "best":
        best(args.model, args.out, name, images)
        return
    quantizer = ModelQuantizer(Config(global_quant_config=get_default_config("INT8_CNN_DEFAULT")))
    quantizer.quantize_model(str(args.model), str(args.out), Images(name, images, 16))


if __name__ == "__main__":
    main()
