"""A transposed convolution as a convolution whose channels are the phases of its output.

Along one axis, stride s, kernel w of K taps, T = ceil(K / s), no padding:

    y[s i + k] = sum x[i] w[k]                         what ConvTranspose does
    k = s t + r:   y[s j + r] = sum_t x[j - t] w[s t + r] =: z_r[j]

Each phase z_r is a full correlation of x with T taps in reverse; DepthToSpace interleaves the
phases of both axes.
"""

import numpy as np

from onnxq.spec import Floats


def phases(w: Floats, stride: int, groups: int) -> Floats:
    """Weight of the convolution that computes all phases.

    Args:
        w: Of the ConvTranspose, (c_in, c_out / groups, kh, kw).
        stride: s, of both axes.
        groups: Channel groups.

    Returns:
        (c_out s s, c_in / groups, Th, Tw), the s s phases of an output channel side by side: the
        order that DepthToSpace calls CRD.
    """
    s, (c_in, c_group, *kernel) = stride, w.shape
    taps = [-(-k // s) for k in kernel]
    filled = np.zeros((c_in, c_group, *(s * t for t in taps)), w.dtype)
    filled[:, :, : kernel[0], : kernel[1]] = w
    split = filled.reshape(groups, c_in // groups, c_group, taps[0], s, taps[1], s)
    split = split[:, :, :, ::-1, :, ::-1, :]
    v = split.transpose(0, 2, 4, 6, 1, 3, 5)  # group, channel, two phases; input channel, two taps
    return np.ascontiguousarray(v.reshape(groups * c_group * s * s, c_in // groups, *taps))
