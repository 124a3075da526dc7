"""Cross-layer equalization and the absorption of high biases.

Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction,
ICCV 2019 (arXiv 1906.04721). A function f with f(s x) = s f(x) for s > 0 lets channel i of one
layer be divided by s_i and the next multiplied, W2 f(W1 x) = W2 S f(S^-1 W1 x). Symbols:

    r_k,i   range of channel i at layer k: max |W_k| over its output channel i for the first layer,
            over its input channel i for the last, over both, which are one, for a depthwise layer
    s_k,i   what channel i of the tensor between layers k and k + 1 is divided by

Two layers:      s_i = sqrt(r_1,i r_2,i) / r_2,i          both ranges become sqrt(r_1,i r_2,i)
Any number, all but the first and the last depthwise:
                 c_i = (r_1,i ... r_n,i)^(1/n),   s_k,i = (r_1,i ... r_k,i) / c_i^k

Layer k is multiplied by s_(k-1) / s_k with s_0 = s_n = 1, so that all n ranges become c_i. For
n = 2 that is the first formula; for n = 3 it is s_1 = r_1 / c and s_2 = c / r_3.
"""

import numpy as np

from onnxq.spec import Floats

# What float32 weights bear on both sides of a division.
LEAST, LARGEST = 1e-8, 1e8


def factors(ranges: Floats) -> Floats:
    """The factors s, float64 (n - 1, channels), of n layers in a row.

    A channel that is dead in any layer, or not finite, keeps the factor 1. Factors end at LEAST and
    LARGEST, and ranges that would need others are left not quite equal.

    Args:
        ranges: r, not negative, (n, channels), n >= 2.
    """
    alive = (np.isfinite(ranges) & (ranges > 0.0)).all(axis=0)
    logs = np.log(np.where(alive, ranges, 1.0).astype(np.float64))
    s = np.exp(np.cumsum(logs - logs.mean(axis=0), axis=0)[:-1])
    return np.asarray(np.clip(s, LEAST, LARGEST))


def high_bias(lo: Floats) -> Floats:
    """What a pre-activation nowhere below ``lo`` can do without, max(0, lo), (channels,).

    A Relu has f(x) = f(x - c) + c for x >= c >= 0: the layer before it leaves c out of its bias,
    and the layer behind it, W f(x) + b, takes W c into its own.
    """
    return np.maximum(lo, 0.0)
