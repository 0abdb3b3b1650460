"""Attention in ONNX files: two products and a softmax where it has no mask, and right where it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxcat


class Attention(nn.Module):
    """Of (N, heads, length, channels) with itself."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, 2 * x, 3 * x + 1, **self.options)


EXAMPLE = torch.randn(1, 2, 5, 8)


def test_no_shape_is_computed_in_the_file(tmp_path: Path) -> None:
    report = fxcat.export_onnx(Attention(), tmp_path / "net.onnx", EXAMPLE)
    assert report.operators["MatMul"] == 2 and report.operators["Softmax"] == 1
    assert not {"Shape", "Slice", "Concat", "Reshape"} & set(report.operators)


@pytest.mark.parametrize(
    "options",
    [{"scale": 0.3}, {"is_causal": True}, {"attn_mask": torch.ones(5, 5).tril() > 0}, {"attn_mask": torch.randn(5, 5)}],
    ids=["scaled", "causal", "masked", "added"],
)
def test_options_are_kept(tmp_path: Path, options: dict[str, Any]) -> None:
    report = fxcat.export_onnx(Attention(**options), tmp_path / "net.onnx", EXAMPLE)
    assert report.max_error is not None and report.max_error < 1e-5


def test_the_op_for_it_is_used_where_there_is_one(tmp_path: Path) -> None:
    report = fxcat.export_onnx(Attention(), tmp_path / "net.onnx", EXAMPLE, opset=23)
    assert report.operators["Attention"] == 1
