"""Multi-head attention of torch.nn, captured as what it computes: its own class cannot have fewer heads than its width
needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxcat.passes.graph.meta import value_of
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
    """Attention over batches or one example, with or without masks."""
    separate = module.q_proj_weight, module.k_proj_weight, module.v_proj_weight
    packed = module.in_proj_weight
    attention = _Attention(
        module.num_heads,
        separate if packed is None else packed,
        *(module.in_proj_bias, module.bias_k, module.bias_v, module.add_zero_attn),
        module.dropout if module.dropout and module.training else 0.0,
        module.out_proj,
        module.batch_first,
    )
    return attention(query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)


@decomposition(F.multi_head_attention_forward)
def multihead_attention_function(
    query: Any,
    key: Any,
    value: Any,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Any,
    in_proj_bias: Any,
    bias_k: Any,
    bias_v: Any,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Any,
    out_proj_bias: Any,
    training: bool = True,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Any = None,
    k_proj_weight: Any = None,
    v_proj_weight: Any = None,
    static_k: Any = None,
    static_v: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:
    """The same as a function of sequences first, unless keys or values are given as they are."""
    if static_k is not None or static_v is not None:
        return NotImplemented
    attention = _Attention(
        num_heads,
        (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else in_proj_weight,
        *(in_proj_bias, bias_k, bias_v, add_zero_attn),
        dropout_p if training else 0.0,
        lambda x: F.linear(x, out_proj_weight, out_proj_bias),
        batch_first=False,
    )
    return attention(query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)


@decomposition(F.scaled_dot_product_attention)
def grouped_attention(query: Any, key: Any, value: Any, *rest: Any, enable_gqa: bool = False, **named: Any) -> Any:
    """Where several heads of queries share keys and values: these once for each of them."""
    if not enable_gqa or len({_heads(x) for x in (query, key, value)}) == 1:
        return NotImplemented
    key, value = (x.repeat_interleave(_heads(query) // _heads(x), -3) for x in (key, value))
    return F.scaled_dot_product_attention(query, key, value, *rest, **named)


@dataclass(frozen=True, slots=True)
class _Attention:
    """What both have. `weights`: those of query, key and value, in one or three."""

    heads: int
    weights: Any
    bias: Any
    bias_k: Any
    bias_v: Any
    add_zero_attn: bool
    dropout: float
    out_proj: Callable[[Any], Any]
    batch_first: bool

    def __call__(
        self,
        query: Any,
        key: Any,
        value: Any,
        key_padding_mask: Any,
        need_weights: bool,
        attn_mask: Any,
        average_attn_weights: bool,
        is_causal: bool,
    ) -> Any:
        if is_causal and attn_mask is None:
            return NotImplemented
        if query.dim() == 2:
            return self._of_one(query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights)
        is_causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if attn_mask is None or is_causal else self._over_heads(_added(attn_mask, query))
        if key_padding_mask is not None:
            padding = self._longer(_added(key_padding_mask, query)).unsqueeze(1).unsqueeze(1)
            mask = padding if mask is None else mask + padding
        q, k, v = self._projected(query, key, value)
        if self.bias_k is not None:
            k, v = (torch.cat((x, b.expand(x.shape[0], -1, -1)), 1) for x, b in ((k, self.bias_k), (v, self.bias_v)))
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        width = q.shape[-1] // self.heads
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        weights = None
        if need_weights:
            scores = (q * width**-0.5) @ k.transpose(-2, -1)
            scores = scores if mask is None else scores + mask
            weights = F.dropout(torch.softmax(scores, -1), self.dropout)
            result = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            result = F.scaled_dot_product_attention(q, k, v, mask, self.dropout, is_causal=is_causal)
        # in memory as the module has it: dropout draws numbers in the order of the memory
        result = self.out_proj(result.permute(2, 0, 1, 3).flatten(-2))
        return (result.transpose(0, 1) if self.batch_first else result), weights

    def _of_one(self, query: Any, key: Any, value: Any, padding: Any, *rest: Any) -> Any:
        """Without a batch axis."""
        axis = 0 if self.batch_first else 1
        q = query.unsqueeze(axis)
        k = q if key is query else key.unsqueeze(axis)
        v = q if value is query else k if value is key else value.unsqueeze(axis)
        result, weights = self(q, k, v, None if padding is None else padding.unsqueeze(0), *rest, is_causal=False)
        return result.squeeze(axis), None if weights is None else weights.squeeze(0)

    def _projected(self, query: Any, key: Any, value: Any) -> tuple[Any, Any, Any]:
        """Queries, keys and values, batch first."""
        if query is key is value and not isinstance(self.weights, tuple):
            x = query if self.batch_first else query.transpose(0, 1)
            q, k, v = F.linear(x, self.weights, self.bias).chunk(3, -1)
            return q, k, v
        weights = self.weights if isinstance(self.weights, tuple) else self.weights.chunk(3)
        biases = (None,) * 3 if self.bias is None else self.bias.chunk(3)
        inputs = (x if self.batch_first else x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))
        return q, k, v

    def _over_heads(self, mask: Any) -> Any:
        """A mask of attention, or one for each head and example."""
        return self._longer(mask if mask.dim() == 2 else mask.unflatten(0, (-1, self.heads)))

    def _longer(self, mask: Any) -> Any:
        """A mask that lets through what is added to keys."""
        added = (self.bias_k is not None) + self.add_zero_attn
        return F.pad(mask, (0, added)) if added else mask


def _heads(value: Any) -> int:
    """How many heads a value has, without a guard: units go from that number."""
    return (value_of(value.node) if isinstance(value, fx.Proxy) else value).shape[-3]


def _added(mask: Any, query: Any) -> Any:
    """A mask as what is added to scores: minus infinity where a boolean one is true."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(mask, float("-inf"))
