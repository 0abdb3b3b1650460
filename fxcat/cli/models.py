"""The model that settings name, and what it takes."""

from __future__ import annotations

import torch
from torch import nn

from fxcat.api import add_bypasses
from fxcat.cli.data import image_size
from fxcat.cli.settings import DataSettings, ModelSettings
from fxcat.errors import InputError
from fxcat.named_models import is_code, named_model
from fxcat.passes.capture.default_inputs import example_candidates


def make_model(settings: ModelSettings, example: torch.Tensor | None = None, *, weights: bool = True) -> nn.Module:
    """The model; `weights`: with its values, else as it is made. Raises `InputError` and `StorageError`."""
    model = named_model(
        settings.name,
        classes=settings.classes,
        pretrained=settings.pretrained and weights,
        weights=settings.weights if weights else None,
        arguments=settings.arguments,
    )
    return add_bypasses(model, example, verbose=False) if settings.bypasses else model


def has_random_weights(settings: ModelSettings) -> bool:
    """Whether the model is made without weights; what a function of somebody's own does is not known."""
    return not (is_code(settings.name) or settings.pretrained or settings.weights is not None)


def channels_of(settings: ModelSettings) -> int:
    """Of the images that the model takes: those of its first layer."""
    found = example_candidates(make_model(_plain(settings), weights=False))[0][0]
    if not isinstance(found, torch.Tensor) or found.dim() != 4:
        raise InputError(
            f"{settings.name} takes no batches of images", remedy="train it by fxcat.fit in a script of your own"
        )
    return found.shape[1]


def example_of(data: DataSettings, channels: int) -> torch.Tensor:
    """An image as the data have them, without values."""
    size = image_size(data)
    return torch.empty(1, channels, size, size, device="meta")


def _plain(settings: ModelSettings) -> ModelSettings:
    return ModelSettings(name=settings.name, classes=settings.classes, arguments=settings.arguments)
