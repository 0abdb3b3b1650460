"""nn.MultiheadAttention, captured as what it computes: its own class cannot have fewer heads than its width needs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fxcat.passes.rules.table import decomposition


@decomposition(nn.MultiheadAttention)
def multihead_attention(
    module: nn.MultiheadAttention,
    query: Any,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:
    """Self-attention over batches, with or without masks; anything else is left to the module."""
    special = module.bias_k is not None or module.add_zero_attn
    own = attn_mask is not None and attn_mask.dim() != 2  # a mask for each head and example
    if query is not key or key is not value or special or own or query.dim() != 3:
        return NotImplemented
    is_causal = is_causal and key_padding_mask is None and not need_weights
    mask = None if attn_mask is None or is_causal else _added(attn_mask, query)
    if key_padding_mask is not None:
        padding = _added(key_padding_mask, query).unsqueeze(1).unsqueeze(1)
        mask = padding if mask is None else mask + padding
    heads, width = module.num_heads, module.head_dim
    x = query if module.batch_first else query.transpose(0, 1)
    dropout = module.dropout if module.dropout and module.training else 0.0
    projected = F.linear(x, module.in_proj_weight, module.in_proj_bias)
    q, k, v = (p.unflatten(-1, (heads, width)).transpose(1, 2) for p in projected.chunk(3, -1))
    weights = None
    if need_weights:
        scores = (q * width**-0.5) @ k.transpose(-2, -1)
        scores = scores if mask is None else scores + mask
        weights = F.dropout(torch.softmax(scores, -1), dropout)
        result = weights @ v
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        result = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=is_causal)
    # in memory as the module has it: dropout draws numbers in the order of the memory
    result = module.out_proj(result.permute(2, 0, 1, 3).flatten(-2))
    return (result.transpose(0, 1) if module.batch_first else result), weights


def _added(mask: Any, query: Any) -> Any:
    """A mask as what is added to scores: minus infinity where a boolean one is true."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(mask, float("-inf"))
