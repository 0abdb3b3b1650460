"""Networks of torchvision's own classes with few blocks and channels: what they are made of, in a tenth of the time."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchvision.models import (
    VGG,
    ConvNeXt,
    DenseNet,
    EfficientNet,
    MobileNetV2,
    RegNet,
    ResNet,
    ShuffleNetV2,
    SwinTransformer,
)
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.optical_flow import raft_small
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2
from torchvision.models.vgg import make_layers


def resnet(classes: int = 10) -> ResNet:
    return ResNet(BasicBlock, [2, 1, 1, 1], num_classes=classes)


def resnext(classes: int = 10) -> ResNet:
    return ResNet(Bottleneck, [1, 2, 1, 1], num_classes=classes, groups=32, width_per_group=4)


def regnet_x(classes: int = 10) -> RegNet:
    return _regnet(classes, 16, 24, 24.48, 2.54, None)


def regnet_y(classes: int = 10) -> RegNet:
    return _regnet(classes, 8, 48, 27.89, 2.09, 0.25)


def _regnet(classes: int, group_width: int, w_0: int, w_a: float, w_m: float, se_ratio: float | None) -> RegNet:
    widths: Any = {"w_0": w_0, "w_a": w_a, "w_m": w_m, "group_width": group_width, "se_ratio": se_ratio}
    return RegNet(BlockParams.from_init_params(7, **widths), classes)


def convnext(classes: int = 10) -> ConvNeXt:
    stages = [CNBlockConfig(16, 32, 2), CNBlockConfig(32, 48, 1), CNBlockConfig(48, None, 2)]
    return ConvNeXt(stages, 0.1, num_classes=classes)


def swin(classes: int = 10) -> SwinTransformer:
    return SwinTransformer([4, 4], 16, [2, 2], [2, 4], [7, 7], stochastic_depth_prob=0.1, num_classes=classes)


def swin_v2(classes: int = 10) -> SwinTransformer:
    kind: Any = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2, "num_classes": classes}
    return SwinTransformer([4, 4], 16, [2, 2], [2, 4], [8, 8], stochastic_depth_prob=0.1, **kind)


def shufflenet(classes: int = 10) -> ShuffleNetV2:
    return ShuffleNetV2([2, 3, 2], [8, 16, 32, 64, 64], num_classes=classes)


def mobilenet(classes: int = 10) -> MobileNetV2:
    blocks = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]  # expansion, channels, blocks, stride
    return MobileNetV2(num_classes=classes, width_mult=0.5, inverted_residual_setting=blocks)


def densenet(classes: int = 10) -> DenseNet:
    return DenseNet(8, (2, 3, 2, 2), 16, num_classes=classes)


def efficientnet(classes: int = 10) -> EfficientNet:
    sizes = ((1, 3, 1, 32, 16, 1), (6, 3, 2, 16, 24, 2), (6, 5, 2, 24, 40, 2), (6, 3, 1, 40, 80, 1))
    return EfficientNet([MBConvConfig(*each) for each in sizes], 0.2, num_classes=classes)


class Raft(nn.Module):
    """RAFT with three updates of its result in the place of twelve."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = raft_small(weights=None)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> list[torch.Tensor]:
        return self.whole(first, second, num_flow_updates=3)


def vgg(classes: int = 10) -> VGG:
    """With norms, and a narrow classifier."""
    model = VGG(make_layers([8, "M", 16, "M", 16, "M", 32], batch_norm=True), init_weights=False)
    model.classifier = nn.Sequential(nn.Linear(32 * 7 * 7, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, classes))
    return model
