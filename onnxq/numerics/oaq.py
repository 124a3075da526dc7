"""Outlier-aware quantization: scaled weight normalization with saturation.

Source: Yoo & Ban, Sensors 2025, 25(9) 2918. The equations of the paper were not available to us;
(4) and (5) are reconstructed from its algorithm listing and its table of histogram similarities,
and the factors below were measured on a trained CIFAR-10 ResNet-20, not quoted.

    M    = max |W|          of the layer, or of each output channel
    (4)  W_n = clip(sigma W / M, -1, 1)                    outliers: |W| > M / sigma
    (5)  W_q = (M / sigma) Q_b(W_n)                        Q_b(u) = round(u L) / L

sigma >= 1 spends the grid on the bulk of the weights and saturates the outliers; sigma = 1 is
plain max-abs quantization. In weight units the range is M / sigma, so it costs nothing at run time.
"""

import numpy as np

from onnxq.numerics.affine import reduce_axes
from onnxq.spec import Floats, QuantSpec

# Best common sigma by mean weight SQNR over the layers of a trained ResNet-20.
SIGMA_PER_TENSOR = {2: 4.0, 3: 2.6, 4: 1.85, 5: 1.5, 6: 1.2, 7: 1.1, 8: 1.0}
SIGMA_PER_CHANNEL = {2: 2.7, 3: 1.55, 4: 1.15, 5: 1.05, 6: 1.0, 7: 1.0, 8: 1.0}


def sigma(spec: QuantSpec) -> float:
    """The tabulated scaling factor for the bit width and granularity of ``spec``.

    5 and 7 bits are interpolated between their measured neighbours.
    """
    return (SIGMA_PER_CHANNEL if spec.per_channel else SIGMA_PER_TENSOR)[spec.bits]


def scaled_range(w: Floats, factor: float, axis: int | None) -> tuple[Floats, Floats]:
    """The range [-M / sigma, M / sigma] that equations (4) and (5) leave to the quantizer.

    Args:
        w: Weight of any shape.
        factor: sigma, at least 1.
        axis: Output channel axis, or None for one range.

    Raises:
        ValueError: ``factor`` is below 1.
    """
    if factor < 1:
        raise ValueError(f"sigma must be at least 1, not {factor}")
    largest = np.abs(w).max(axis=reduce_axes(w.ndim, axis), initial=0.0) / factor
    return -largest, largest
