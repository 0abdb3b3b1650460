"""Whether a network's weights are there, whole, and as they were when its gates were made: else they cannot shrink."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fxcat.checks import as_names, shown
from fxcat.errors import InputError
from fxcat.network.module_state import Shapes

PLAIN = (
    "train it in one process, or through torch.nn.parallel.DistributedDataParallel(net); what splits or flattens "
    "weights (FSDP, tensor parallelism, ZeRO) cannot follow a network that becomes smaller"
)


def check_whole(module: nn.Module) -> None:
    """Raise `InputError` if a weight has no values, or is no tensor by itself (a part of one that several processes
    hold, a packed one)."""
    for path, weight in module.named_parameters():
        if weight.is_meta:
            raise InputError(
                "its weights are on the meta device: they have no values",
                where=path,
                remedy="give them some: model.to_empty(device=…), and initialise or load them",
            )
        if is_traceable_wrapper_subclass(weight):
            what = f"its weights are held in a {type(weight).__name__}: none of them can become smaller by itself"
            raise InputError(what, where=path, remedy=PLAIN)


def check_own(parameters: nn.Module, name: str) -> None:
    """Raise `InputError` if something has put a module's parameter into a larger tensor with others."""
    found = parameters._parameters.get(name)
    if found is None or found.untyped_storage().nbytes() != found.nbytes:
        remedy = f"give each memory of its own (p.data = p.data.clone()) after vector_to_parameters(); {PLAIN}"
        raise InputError("the network's parameters were put into one flat tensor", remedy=remedy)


def parameter_shapes(module: nn.Module) -> Shapes:
    """By name; tied ones once."""
    return {name: tuple(p.shape) for name, p in module.named_parameters()}


def check_unchanged(module: nn.Module, expected: Shapes) -> None:
    """Raise `InputError` if a parameter that was there has gone, or has another shape. New ones may have come."""
    found = parameter_shapes(module)
    for name, shape in expected.items():
        if found.get(name) == shape:
            continue
        now = f"has shape {list(found[name])}" if name in found else "is missing, or is another one too"
        raise InputError(
            f"the network was changed since its gates were made: what had shape {list(shape)} {now}",
            where=name,
            remedy="change the model (adapters, parametrizations, tied weights), and call prepare() again",
        )


def is_flat(tensors: list[torch.Tensor], weights: list[torch.Tensor]) -> bool:
    """Whether tensors hold weights without their shapes."""
    return all(t.dim() == 1 for t in tensors) and any(w.dim() > 1 for w in weights)


def check_without_bias(module: nn.Module, paths: Any) -> tuple[str, ...]:
    """Names of linear layers and convolutions that could be given a bias. Raises `InputError` for others."""
    layers = {path: part for path, part in module.named_modules() if isinstance(part, nn.Linear | _ConvNd)}
    found = as_names(paths, "paths")
    for path in found:
        if not isinstance(path, str) or path not in layers or layers[path].bias is not None:
            raise InputError(
                f"paths= names {shown(path)}, which is no linear layer or convolution without a bias",
                remedy="give names of net.network.named_modules()",
            )
    return found
