"""Weights divided by an estimate of their largest singular value, whose vectors are buffers that training moves on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactness import check_on, randomise
from torch import nn
from torch.nn.utils import parametrizations

import fxcat


class Written(nn.Module):
    """A convolution that does so itself."""

    left: torch.Tensor
    right: torch.Tensor

    def __init__(self, entering: int, leaving: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(leaving, entering, 3, 3))
        self.register_buffer("left", F.normalize(torch.randn(leaving), dim=0))
        self.register_buffer("right", F.normalize(torch.randn(entering * 9), dim=0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        matrix = self.weight.flatten(1)
        if self.training:
            with torch.no_grad():
                F.normalize(matrix.H @ self.left, dim=0, out=self.right)
                self.left.copy_(F.normalize(torch.matmul(matrix, self.right), dim=0))
        sigma = torch.dot(self.left.clone(), matrix.mv(self.right.clone()))
        return F.conv2d(x, self.weight / sigma, padding=1)


def _by_hooks(entering: int, leaving: int) -> nn.Module:
    return nn.utils.spectral_norm(nn.Conv2d(entering, leaving, 3, padding=1))


def _parametrized(entering: int, leaving: int) -> nn.Module:
    return parametrizations.spectral_norm(nn.Conv2d(entering, leaving, 3, padding=1))


LAYERS: dict[str, Callable[[int, int], Any]] = {"hooks": _by_hooks, "parametrized": _parametrized, "written": Written}


@pytest.mark.filterwarnings("ignore:.*spectral_norm:FutureWarning")
@pytest.mark.parametrize("kind", LAYERS)
def test_rows_and_columns_go(kind: str) -> None:
    layer = LAYERS[kind]
    net = nn.Sequential(layer(3, 8), nn.ReLU(), layer(8, 6), nn.ReLU(), nn.Conv2d(6, 2, 1))
    model = net.double().train()
    randomise(model, 0)
    x = torch.randn(3, 3, 5, 5, dtype=torch.double)
    report = check_on(model, kind, (x[:1],), (x,), (x,), settings=3)
    assert (report.failures, report.units, report.coverage) == ([], 8 + 6, 1.0)


def test_training_moves_the_vectors_of_a_small_network_as_they_would_be() -> None:
    """What has gone adds nothing to them, and what is left is what a network of those rows alone computes."""
    model = nn.Sequential(_parametrized(3, 8), nn.ReLU(), nn.Conv2d(8, 2, 1)).double()
    randomise(model, 0)
    net = fxcat.prepare(model, torch.zeros(1, 3, 5, 5, dtype=torch.double), verbose=False)
    net.gates["0"].theta[3:] = 0.0
    small = fxcat.finalize(net)
    x = torch.randn(2, 3, 5, 5, dtype=torch.double)
    for _ in range(2):
        torch.testing.assert_close(small.train()(x), net.train()(x), rtol=1e-10, atol=1e-10)
    (left,) = (b for n, b in small.named_buffers() if n.endswith("_u"))
    (gated,) = (b for n, b in net.network.named_buffers() if n.endswith("_u"))
    torch.testing.assert_close(left, gated[:3], rtol=1e-10, atol=1e-10)
