"""A small network that knows the digits of scikit-learn, so that what 8 bits cost can be told in accuracy; and training
with 8 bits.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from deployment_tools import Deployed, Images, timed
from sklearn.datasets import load_digits
from torch import nn

import fxcat

NAME = "digits"
_TEST = 400
_BATCH = 50


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def network() -> nn.Module:
    stem = (nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
    return nn.Sequential(*stem, Residual(32), Residual(32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def digits() -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Images (N, 1, 8, 8) and labels, to train and to test with."""
    found: Any = load_digits()
    x = torch.from_numpy(found.images).float()[:, None] / 8 - 1
    y = torch.from_numpy(found.target).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return (x[_TEST:], y[_TEST:]), (x[:_TEST], y[:_TEST])


def train(model: nn.Module, epochs: int, rate: float) -> None:
    """Adam, in the mode that the model is in."""
    x, y = digits()[0]
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(_BATCH):
            loss = F.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def networks() -> tuple[nn.Module, nn.Module, Images]:
    """The dense network, the small one, both trained, and images to calibrate with."""
    dense = network().train()
    train(dense, 8, 2e-3)
    dense.eval()
    x = digits()[0][0]
    net = fxcat.prepare(dense, x[:1], verbose=False)
    fxcat.one_shot(net, fxcat.importance.norm_scale(net), target=fxcat.Target(flops=0.5))
    small = fxcat.finalize(net).train()
    train(small, 8, 1e-3)
    return dense, small.eval(), [image[None] for image in x[:64]]


def tested() -> Images:
    """Some of the test images."""
    return [image[None] for image in digits()[1][0][:8]]


def accuracy(deployed: Deployed) -> float:
    """Per cent of the test images, one by one."""
    x, y = digits()[1]
    return 100 * sum(int(deployed(a[None])[0].argmax()) == int(b) for a, b in zip(x, y, strict=True)) / len(y)


def trained_with_8_bits(module: nn.Module, images: Images, folder: Path) -> Deployed:
    """Quantisation-aware training: the forward pass rounds as 8 bits will, for a few epochs more."""
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config(is_qat=True))
    sizes = {0: torch.export.Dim("batch", min=1, max=_BATCH)}
    example = torch.cat([images[0]] * 2)
    captured = torch.export.export(copy.deepcopy(module).train(), (example,), dynamic_shapes=(sizes,), strict=True)
    rounding = prepare_qat_pt2e(captured.module(), quantizer)
    train(rounding, 4, 1e-4)
    return timed(move_exported_model_to_eval(convert_pt2e(rounding)))
