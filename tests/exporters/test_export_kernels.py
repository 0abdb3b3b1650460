"""ONNX files of convolutions whose kernels are computed for every example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from export_nets import close, run
from torch import nn

import fxcat
from fxcat.exporters.kernels import PlainKernels


class Dynamic(nn.Module):
    """Kernels mixed of a table for every example, as CondConv and dynamic convolutions have them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mixed = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        self.table, self.shift = nn.Parameter(torch.randn(4, 6 * 8 * 9)), nn.Parameter(torch.randn(4, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        batch, channels, height, width = y.shape
        share = self.mixed(y.mean((2, 3))).softmax(1)
        kernels, shift = (share @ self.table).view(batch * 6, channels, 3, 3), (share @ self.shift).view(-1)
        y = F.conv2d(y.reshape(1, -1, height, width), kernels, shift, padding=1, groups=batch)
        return y.view(batch, 6, height, width)


def test_the_number_of_groups_follows_from_the_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = fxcat.prepare(Dynamic(), torch.zeros(1, 3, 8, 8), verbose=False)
    net.gates["stem"].theta[::2] = 0.0
    small, path, x = fxcat.finalize(net), tmp_path / "net.onnx", torch.randn(3, 3, 8, 8)
    assert fxcat.export_onnx(small, path).batches == (1, 4)
    assert close(run(path, x)[0], small.eval()(x))


FORMS: list[dict[str, Any]] = [
    {"stride": 1, "padding": 0, "dilation": 1, "transposed": False},
    {"stride": 3, "padding": 2, "dilation": 2, "transposed": False},
    {"stride": 1, "padding": "same", "dilation": 1, "transposed": False},
    {"stride": 1, "padding": 0, "dilation": 1, "transposed": True},
    {"stride": 2, "padding": 1, "dilation": 1, "transposed": True, "output_padding": 1},
    {"stride": 3, "padding": 0, "dilation": 2, "transposed": True},
]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_products_are_convolutions(rank: int, form: dict[str, Any]) -> None:
    class Grouped(nn.Module):
        def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
            batch, options = x.shape[0], {k: v for k, v in form.items() if k != "transposed"}
            function = getattr(F, f"conv_transpose{rank}d" if form["transposed"] else f"conv{rank}d")
            x, weight = x.reshape(1, -1, *x.shape[2:]), weight.flatten(0, 1)
            return function(x, weight, bias.flatten(), groups=batch, **options)

    sizes = (3, 3, 3)[:rank]
    kernel = (3, 4, 5, *sizes) if form["transposed"] else (3, 5, 4, *sizes)
    inputs = torch.randn(3, 4, *(9, 8, 7)[:rank]), torch.randn(kernel), torch.randn(3, 5)
    batch = torch.export.Dim("batch", min=2)
    with PlainKernels():
        program = torch.export.export(Grouped(), inputs, dynamic_shapes=({0: batch},) * 3, strict=False)
    assert "conv" not in str(program.graph)
    inputs = tuple(torch.cat([x, x[:2]]) for x in inputs)
    torch.testing.assert_close(program.module()(*inputs), Grouped()(*inputs), atol=1e-4, rtol=1e-4)
