"""Matrix products."""

import torch
from torch import Tensor
from torch.nn.functional import linear

from onnxq.lowering.registry import operator, operators

operators({"MatMul": torch.matmul, "Det": torch.linalg.det})


@operator("Gemm")
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803  (ONNX's names)
    transB: int = 0,  # noqa: N803
) -> Tensor:
    """Alpha A B + beta C."""
    a, b = a.T if transA else a, b if transB else b.T
    if alpha == 1 and beta == 1 and (c is None or c.ndim == 1):
        return linear(a, b, c)
    product = (alpha * linear(a, b)).to(a.dtype)
    return product if c is None else product + (beta * c).to(c.dtype)


@operator("Einsum")
def einsum(*inputs: Tensor, equation: str) -> Tensor:
    """Products summed over the indices that the equation drops."""
    return torch.einsum(equation, inputs)
