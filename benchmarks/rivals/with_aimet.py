"""Quantize an ONNX vision model with AIMET (aimet-onnx), without labels.

The recipe "default" follows the quick start: batch norms are folded, weights get a scale per
output channel, ranges come from the smallest and largest values seen, all images calibrate.
The recipe "best" tries batch norm folding against cross-layer equalization and the ways to
choose activation ranges, keeps the pair whose outputs are nearest to those of the float model,
and then fits the weights with sequential MSE and AdaRound (600 iterations a layer, not 10,000;
the environment variable ADAROUND_ITERATIONS sets another number).
The fitted model is kept only if its outputs are nearer.
Weights of 8 or 4 bits and activations are written as QuantizeLinear/DequantizeLinear pairs. ONNX
and onnxruntime offer none for AIMET's 3-bit and 2-bit weights, so these are written as floats that
were already rounded to their few levels: the file computes right but is not small.
"""

import logging
import os
from pathlib import Path

import aimet_onnx
import numpy as np
import onnx
import onnxruntime as ort
from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight
from aimet_onnx.common.defs import Int, QuantScheme
from aimet_onnx.common.quantsim_config.utils import get_path_for_per_channel_config
from aimet_onnx.common.utils import AimetLogger
from aimet_onnx.cross_layer_equalization import equalize_model
from common import arguments, calibration

ITERATIONS = int(os.environ.get("ADAROUND_ITERATIONS", "600"))
SCHEMES = {
    "min_max": QuantScheme.min_max,
    "tf_enhanced": QuantScheme.post_training_tf_enhanced,
    "percentile": QuantScheme.post_training_percentile,
}

Feed = list[dict[str, np.ndarray]]
Sim = aimet_onnx.QuantizationSimModel


def outputs(session: ort.InferenceSession, feed: Feed) -> np.ndarray:
    """Its first output for the whole feed."""
    return np.concatenate([session.run(None, batch)[0] for batch in feed]).astype(np.float64)


def error(session: ort.InferenceSession, feed: Feed, wanted: np.ndarray) -> float:
    """Squared error of the first output relative to its power."""
    return float(((outputs(session, feed) - wanted) ** 2).sum() / (wanted**2).sum())


def simulate(path: Path, equalize: bool, weights: int, activations: int) -> Sim:
    """Model prepared and ready to calibrate, ranges from the extremes."""
    model = onnx.load(path)
    if equalize:
        equalize_model(model)
    else:
        fold_all_batch_norms_to_weight(model)
    return Sim(
        model,
        param_type=Int(weights),
        activation_type=Int(activations),
        quant_scheme=QuantScheme.min_max,
        config_file=get_path_for_per_channel_config(),
        session_options_kwargs={"intra_op_num_threads": len(os.sched_getaffinity(0))},
    )


def calibrate(sim: Sim, scheme: str, feed: Feed) -> None:
    """Set the ranges of activations by a scheme."""
    for name in sim.activation_names:
        sim.qc_quantize_op_dict[name].set_quant_scheme(SCHEMES[scheme])
    sim.compute_encodings(feed)


def best(path: Path, weights: int, activations: int, feed: Feed) -> Sim:
    """The simulation that came nearest to the float model."""
    wanted = outputs(ort.InferenceSession(path, providers=["CPUExecutionProvider"]), feed)
    some = feed[:4]
    found: list[tuple[float, bool, str]] = []
    for equalize in (False, True):
        for scheme in SCHEMES:
            sim = simulate(path, equalize, weights, activations)
            calibrate(sim, scheme, some)
            near = error(sim.session, some, wanted[: sum(len(*b.values()) for b in some)])
            found.append((near, equalize, scheme))
    _, equalize, scheme = min(found)
    plain = simulate(path, equalize, weights, activations)
    calibrate(plain, scheme, feed)
    fitted = simulate(path, equalize, weights, activations)
    aimet_onnx.apply_seq_mse(fitted, some)
    aimet_onnx.apply_adaround(fitted, feed, num_iterations=ITERATIONS)
    calibrate(fitted, scheme, feed)
    errors = error(plain.session, feed, wanted), error(fitted.session, feed, wanted)
    print(f"equalized {equalize}, {scheme}, error {errors[0]:.6f}, fitted {errors[1]:.6f}")
    return fitted if errors[1] < errors[0] else plain


def export(sim: Sim, weights: int) -> onnx.ModelProto:
    """A file of it: weights below 4 bits as floats on their levels."""
    if weights < 4:
        sim.fold_param_quantizers()
        for name in sim.param_names:
            if sim.qc_quantize_op_dict[name].enabled:
                del sim.qc_quantize_op_dict[name]
            else:
                sim.qc_quantize_op_dict[name].set_bitwidth(8)
        sim.param_names.clear()
    return sim.to_onnx_qdq(prequantize_constants=weights >= 4)


def main() -> None:
    """Write OUT."""
    args = arguments(__doc__, {(w, a) for w in (2, 3, 4, 8) for a in (4, 8)})
    AimetLogger.set_level_for_all_areas(logging.ERROR)
    name, images = calibration(args.calib)
    feed = [{name: images[i : i + 32]} for i in range(0, len(images), 32)]
    if args.recipe == "best":
        sim = best(args.model, args.weights, args.activations, feed)
    else:
        sim = simulate(args.model, False, args.weights, args.activations)
        sim.compute_encodings(feed)
    onnx.save(export(sim, args.weights), args.out)


if __name__ == "__main__":
    main()
