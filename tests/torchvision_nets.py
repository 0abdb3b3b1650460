"""Networks of torchvision's own classes with few blocks and channels: what they are made of, in a tenth of the time."""

from __future__ import annotations

from torch import nn
from torchvision.models import VGG, DenseNet, EfficientNet, MobileNetV2, ResNet, ShuffleNetV2
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.resnet import BasicBlock
from torchvision.models.vgg import make_layers


def resnet(classes: int = 10) -> ResNet:
    return ResNet(BasicBlock, [2, 1, 1, 1], num_classes=classes)


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


def vgg(classes: int = 10) -> VGG:
    """With norms, and a narrow classifier."""
    model = VGG(make_layers([8, "M", 16, "M", 16, "M", 32], batch_norm=True), init_weights=False)
    model.classifier = nn.Sequential(nn.Linear(32 * 7 * 7, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, classes))
    return model
