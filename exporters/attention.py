"""Attention without a mask, as the two products that it is.

The ONNX form that torch gives it before opset 23 transposes the keys by way of shapes that are computed in the file:
nine nodes more a layer, some of which simplifiers take out again.
"""

from __future__ import annotations

from typing import Any

import torch

ATTENTION_OPSET = 23
"""From this one on there is an op for it."""
_op: Any = torch.ops.aten.scaled_dot_product_attention.default


def plain_attention(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program with products and a softmax in the place of attention; itself if there is none."""
    if all(node.target is not _op for node in exported.graph.nodes):
        return exported
    return exported.run_decompositions({_op: _products})


def _products(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    if attn_mask is not None or dropout_p or is_causal or enable_gqa:
        return NotImplemented
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    return ((query * factor) @ key.transpose(-2, -1)).softmax(-1) @ value
