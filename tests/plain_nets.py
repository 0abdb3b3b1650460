"""Networks without residual connections, as people write them: what bypasses are put into."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

CLASSES = 5


class CaffeLeNet(nn.Sequential):
    """No nonlinearity but the maximum pooling behind its convolutions."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 6, 5), nn.MaxPool2d(2), nn.Conv2d(6, 8, 5), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(8 * 16, 24), nn.ReLU(inplace=True), nn.Linear(24, CLASSES)),
        )


class FunctionalLeNet(nn.Module):
    """Pooling before the activation, dropout that asks for the mode, and a softmax at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 8, 3, padding="same")
        self.fc1 = nn.Linear(8 * 36, 24)
        self.fc2 = nn.Linear(24, 24)
        self.fc3 = nn.Linear(24, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.max_pool2d(torch.tanh(self.conv2(x)), 2)
        x = F.dropout(F.relu(self.fc1(x.view(x.size(0), -1))), 0.3, training=self.training)
        return F.log_softmax(self.fc3(F.dropout(F.elu(self.fc2(x)), 0.3, self.training)), dim=1)


class OwnNet(nn.Module):
    """Strides, dilation, groups, an activation written out, a depthwise layer with a pointwise one behind it, weights
    of its own, a layer that is used twice, and a name that the bypasses would take."""

    def __init__(self) -> None:
        super().__init__()
        self.bypasses = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.dilated = nn.Conv2d(8, 8, 3, dilation=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 12, 1)
        self.group_norm = nn.GroupNorm(3, 12)
        self.weight = nn.Parameter(torch.randn(12, 12, 3, 3) / 10)
        self.twice = nn.Conv2d(12, 12, 3, padding=1)
        self.slopes = nn.PReLU(12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.bypasses(x))
        x = x * torch.sigmoid(x)
        x = F.leaky_relu(self.dilated(x), 0.1)
        x = F.relu(self.group_norm(self.pointwise(self.depthwise(x))), inplace=True)
        x = F.silu(F.conv2d(x, self.weight, padding=1))
        x = self.slopes(self.twice(self.slopes(self.twice(x))))
        return self.head(x.mean((2, 3)))


class CeilNet(nn.Sequential):
    """Windows with padding and last windows that are not full, between a layer and its activation."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, 2, 1),
            *(nn.MaxPool2d(3, 2, ceil_mode=True), nn.ReLU(), nn.Conv2d(8, 8, 5, 2, 2), nn.AvgPool2d(2, 2, 1)),
            *(nn.Tanh(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            nn.Linear(8, CLASSES),
        )


class SignalNet(nn.Sequential):
    """In one dimension."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv1d(2, 8, 9, 4, 4), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 8, 3, 1, 1), nn.ReLU()),
            *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, CLASSES)),
        )


class SmallVGG(nn.Sequential):
    """As torchvision's VGGs, narrow; its last layer is a convolution."""

    def __init__(self, norm: bool, width: int = 8) -> None:
        layers: list[nn.Module] = []
        before = 3
        for channels in (width, width, "pool", 2 * width, 2 * width, "pool", 2 * width):
            if channels == "pool":
                layers.append(nn.MaxPool2d(2, 2))
                continue
            assert isinstance(channels, int)
            layers += [nn.Conv2d(before, channels, 3, padding=1), *([nn.BatchNorm2d(channels)] if norm else [])]
            layers.append(nn.ReLU(inplace=True))
            before = channels
        super().__init__(
            *layers, nn.Dropout2d(0.1), nn.Conv2d(before, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )


def alexnet() -> nn.Module:
    """torchvision's, its classifier narrow."""
    model = torchvision.models.alexnet(num_classes=CLASSES)
    model.classifier[1], model.classifier[4] = nn.Linear(9216, 48), nn.Linear(48, 48)
    model.classifier[6] = nn.Linear(48, CLASSES)
    return model


def vgg(name: str) -> nn.Module:
    """One of torchvision's, its classifier narrow."""
    model = getattr(torchvision.models, name)(num_classes=CLASSES, init_weights=False)
    model.classifier[0], model.classifier[3] = nn.Linear(25088, 48), nn.Linear(48, 48)
    model.classifier[6] = nn.Linear(48, CLASSES)
    return model


PLAIN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "caffe lenet": (CaffeLeNet, (1, 1, 28, 28), (3, 1, 28, 28)),
    "functional lenet": (FunctionalLeNet, (1, 1, 28, 28), (3, 1, 28, 28)),
    "own": (OwnNet, (1, 3, 20, 20), (3, 3, 17, 22)),
    "ceil": (CeilNet, (1, 3, 32, 32), (2, 3, 37, 45)),
    "signal": (SignalNet, (1, 2, 64), (3, 2, 77)),
    "small vgg": (lambda: SmallVGG(False), (1, 3, 16, 16), (2, 3, 21, 16)),
    "small vgg_bn": (lambda: SmallVGG(True), (1, 3, 16, 16), (2, 3, 21, 16)),
}
"""How to build each, and the shapes of its example and of another input."""

LARGE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "alexnet": (alexnet, (1, 3, 95, 95), (2, 3, 112, 99)),
    **{
        name: (lambda name=name: vgg(name), (1, 3, 32, 32), (2, 3, 40, 33))
        for name in ("vgg11", "vgg11_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn")
    },
}
