"""Operators that slide a window over an image: convolutions and pools."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import conv1d, conv2d, conv3d, pad

from onnxq.lowering.registry import Refused, operator

CONVOLUTIONS = {1: conv1d, 2: conv2d, 3: conv3d}


@operator("Conv")
def conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Convolution over one to three axes."""
    n = w.ndim - 2
    if auto_pad != "NOTSET":
        raise Refused(f"auto_pad {auto_pad} is not implemented")
    if n not in CONVOLUTIONS:
        raise Refused(f"a convolution over {n} axes is not implemented")
    ends = list(pads or [0] * 2 * n)
    if ends[:n] != ends[n:]:
        x = pad(x, [e for i in reversed(range(n)) for e in (ends[i], ends[n + i])])
        ends = [0] * 2 * n
    return CONVOLUTIONS[n](
        x, w, b, list(strides or [1] * n), ends[:n], list(dilations or [1] * n), group
    )


@operator("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    """Mean over all axes but the first two."""
    return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)
