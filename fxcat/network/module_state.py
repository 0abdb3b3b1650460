"""What a module holds: parameters, buffers and extra state by name, and how they are put back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from fxcat.network.gates import SAMPLES

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers, also those that `state_dict` leaves out; tied ones once. Gates are not among them."""
    return {name: tensor.detach() for name, tensor in _named(module)}


def shapes_of(module: nn.Module) -> Shapes:
    """Shapes of what `tensors_of` gives."""
    return {name: tuple(tensor.shape) for name, tensor in _named(module)}


def _named(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    modules = list(module.named_modules())
    yield from named_once((p, m._parameters) for p, m in modules)
    yield from named_once((p, m._buffers) for p, m in modules if p != SAMPLES)


def full_name(path: str, name: str) -> str:
    """The name of a module's parameter or buffer in the network that holds the module."""
    return f"{path}.{name}" if path else name


def module_at(root: nn.Module, path: str) -> nn.Module | None:
    """The module at a path; None if there is none, or none any more."""
    found: nn.Module | None = root
    for name in path.split(".") if path else ():
        found = None if found is None else found._modules.get(name)
    return found


def named_once(
    tensors: Iterable[tuple[str, Mapping[str, torch.Tensor | None]]],
) -> Iterator[tuple[str, torch.Tensor]]:
    """Full names and tensors of modules, given as paths and what each holds; under its first name what has several."""
    seen: set[int] = set()
    for path, own in tensors:
        for name, tensor in own.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield full_name(path, name), tensor


def first_difference(found: Shapes, expected: Shapes) -> str | None:
    """Where two modules differ, in words; None if they do not."""
    for name in (*expected, *found):
        if name not in found:
            return f"{name} of shape {list(expected[name])} is missing"
        if name not in expected:
            return f"{name} of shape {list(found[name])} is not expected"
        if tuple(found[name]) != tuple(expected[name]):
            return f"{name} has shape {list(found[name])}, not {list(expected[name])}"
    return None


def put_tensors(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give a module the values and types of tensors that have its own names and shapes.

    Its tensors stay the same objects, on their devices.
    """
    with torch.no_grad():
        for name, own in {**dict(module.named_parameters()), **dict(module.named_buffers())}.items():
            value = tensors.get(name)
            if value is None:  # gates
                continue
            if value.dtype == own.dtype:
                own.copy_(value)  # keeps the memory format
            else:
                own.data = value.to(own.device)


def extra_of(module: nn.Module) -> dict[str, Any]:
    """By path, what modules with a `get_extra_state` of their own want to be stored."""
    own = {n: m for n, m in module.named_modules() if type(m).get_extra_state is not nn.Module.get_extra_state}
    return {name: inner.get_extra_state() for name, inner in own.items()}


def put_extra(module: nn.Module, states: Mapping[str, Any]) -> None:
    """Give it back to them."""
    for name, state in states.items():
        module.get_submodule(name).set_extra_state(state)
