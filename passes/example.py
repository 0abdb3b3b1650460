"""Example inputs for a model whose user gave none."""

from __future__ import annotations

import typing
from typing import Any

import torch
from torch import nn

from fxcat.errors import InputError

_DEFAULT_SIZE = {1: 1024, 2: 224, 3: 112}
_LINEARS = (nn.Linear,)
_CONVS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def find_example_inputs(model: nn.Module) -> Any:
    """One random example: the first layer's channels, and the image size the model states or 224.

    A list with one image where `forward` says that it takes a list of tensors. Raises `InputError` if the model's first
    layer is neither a convolution nor linear.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            rank = module.weight.dim() - 2
            size = _stated_size(model) or _DEFAULT_SIZE[rank]
            image = torch.empty((module.in_channels, *([size] * rank)), dtype=module.weight.dtype, device="meta")
            return [image] if _takes_list(model) else image[None]
        if isinstance(module, nn.Linear):
            return torch.empty((1, module.in_features), dtype=module.weight.dtype, device="meta")
    raise InputError(
        "no example inputs were given, and none can be found: the model has no convolution or linear layer",
        remedy="call fxcat.prepare(model, example_inputs)",
    )


def _takes_list(model: nn.Module) -> bool:
    try:
        hints = typing.get_type_hints(model.forward)
    except NameError:
        return False
    hints.pop("return", None)
    return next(iter(hints.values()), None) in (list[torch.Tensor], typing.List[torch.Tensor])  # noqa: UP006


def _stated_size(model: nn.Module) -> int | None:
    """`image_size` of the model, or the crop size of torchvision's weights for it."""
    stated = getattr(model, "image_size", None)
    if isinstance(stated, int):
        return stated
    import torchvision.models as zoo

    name = type(model).__name__.lower()
    if name in zoo.list_models():
        weights = zoo.get_model_weights(name)
        return int(next(iter(weights)).transforms.keywords["crop_size"])
    return None
