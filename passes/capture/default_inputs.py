"""Example inputs for a model whose user gave none."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fxcat.errors import InputError

_SIZES: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((1024,), (16000,), (128,)),
    2: ((224, 224), (299, 299), (32, 32)),
    3: ((16, 112, 112), (16, 224, 224), (32, 32, 32)),
}
"""What to try, by the number of spatial axes of the first convolution."""


def argument_forms(model: nn.Module, given: Any) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What example inputs may mean as arguments of `forward`, positional and by name, likeliest first.

    A tuple holds the arguments. A mapping whose keys are names of arguments holds them by name, if `forward` needs no
    others; if it may as well be the one argument that `forward` takes, that comes second. All else is one argument.
    """
    if isinstance(given, tuple):
        return [(given, {})]
    forms: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    if isinstance(given, Mapping) and all(isinstance(k, str) for k in given):  # pyright: ignore[reportUnknownVariableType]
        named: dict[str, Any] = {str(k): v for k, v in given.items()}
        if _are_names(named, inspect.signature(model.forward)):
            forms.append(((), named))
    try:
        inspect.signature(model.forward).bind(given)
    except TypeError:
        return forms or [((given,), {})]
    return [*forms, ((given,), {})]


def _are_names(named: Mapping[str, Any], signature: inspect.Signature) -> bool:
    """Whether names are all that a signature needs, and at least one is its own (unless it takes any)."""
    try:
        signature.bind(**named)
    except TypeError:
        return False
    parameters = signature.parameters.values()
    takes_position = any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    return not takes_position or not named.keys().isdisjoint(signature.parameters)


def find_example_inputs(model: nn.Module) -> Any:
    """The likeliest of `example_candidates`."""
    return example_candidates(model)[0]


def example_candidates(model: nn.Module) -> list[Any]:
    """Example inputs for a model, likeliest first; tensors are on the meta device.

    One image with the channels of the first layer, in the size that the model states or a usual one; the same for every
    argument that `forward` requires; a list with one image where it says that it takes a list of tensors. Raises
    `InputError` if the model's first layer is neither a convolution nor linear.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            rank = module.weight.dim() - 2
            stated = _stated_size(model)
            usual = _SIZES[rank] if stated is None else ((stated,) * rank, *_SIZES[rank])
            shapes = [(module.in_channels, *size) for size in dict.fromkeys(usual)]
        elif isinstance(module, nn.Linear):
            shapes = [(module.in_features,)]
        else:
            continue
        images = [torch.empty(s, dtype=module.weight.dtype, device="meta") for s in shapes]
        if _takes_list(model):
            return [([image],) for image in images]
        return [(image[None],) * _required(model) for image in images]
    raise InputError(
        "no example inputs were given, and none can be found: the model has no convolution or linear layer",
        remedy="call fxcat.prepare(model, example_inputs)",
    )


def _required(model: nn.Module) -> int:
    """How many arguments `forward` must be given."""
    parameters = inspect.signature(model.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return max(1, sum(p.default is p.empty and p.kind in positional for p in parameters))


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
        size = next(iter(weights)).transforms.keywords["crop_size"]
        return size if isinstance(size, int) else max(size)
    return None
