"""Attention, as ONNX names it from opset 23 on."""

import torch
import torch.nn.functional as F  # noqa: N812  (torch's custom)
from torch import Tensor

from onnxq.lowering.registry import Refused, operator


def _heads(x: Tensor, count: int | None) -> Tensor:
    """The heads of a tensor as its second axis, where they lie one after the other in the last."""
    if x.ndim == 4:
        return x
    if count is None:
        raise Refused("Attention does not say how many heads its inputs have")
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


@operator("Attention")
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *cache: Tensor | None,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int = 1,
    count: int,
) -> Tensor:
    """Softmax(q k^T scale + mask) v, head by head."""
    if any(t is not None for t in cache) or count > 1:
        raise Refused("Attention with a cache, or with more than one output, is not implemented")
    if softcap or softmax_precision != 1:
        raise Refused("Attention with a softcap or of another precision is not implemented")
    flat = q.ndim == 3
    q, k, v = _heads(q, q_num_heads), _heads(k, kv_num_heads), _heads(v, kv_num_heads)
    if mask is not None and mask.shape[-1] != k.shape[2]:
        raise Refused("Attention with a mask that is shorter than the keys is not implemented")
    if mask is not None and is_causal:
        past = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        mask = mask & past if mask.dtype == torch.bool else mask.masked_fill(~past, -torch.inf)
    found = F.scaled_dot_product_attention(
        q,
        k,
        v,
        mask,
        is_causal=mask is None and bool(is_causal),
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return found.transpose(1, 2).flatten(2) if flat else found
