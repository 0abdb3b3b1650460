"""What an optimizer keeps of a parameter, when the parameter becomes smaller."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from fxcat.errors import InputError
from fxcat.utils.tensor_slicing import select

Axes = Mapping[int, torch.Tensor]
"""Per axis the surviving indices."""


def check_state(network: nn.Module, optimizers: Iterable[torch.optim.Optimizer], *, loaded: bool = False) -> None:
    """Raise `InputError` if what an optimizer keeps of a weight cannot shrink with it.

    `loaded`: it may be that of a network that has become smaller, as which this one is about to be.
    """
    for name, parameter in network.named_parameters():
        for optimizer in optimizers:
            for key, value in optimizer.state.get(parameter, {}).items():
                tensor = _immovable(value, parameter.shape)
                if tensor is not None and not (loaded and _is_within(tensor.shape, parameter.shape)):
                    raise _cannot_shrink(optimizer, key, tensor, name, parameter)
    own = set(network.parameters())
    for optimizer in optimizers:
        _check_joint_state(optimizer, own)


def _check_joint_state(optimizer: torch.optim.Optimizer, own: set[nn.Parameter]) -> None:
    """Raise `InputError` for state that is kept elsewhere than with the weights of a network, `own`, and has an entry
    for every entry of all parameters: it would have to lose those of the weights."""
    total = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    for holder, state in optimizer.state.items():
        size = holder.numel() if isinstance(holder, torch.Tensor) else 1
        if holder in own or size == total:
            continue
        for tensor in tree_leaves(state):
            if isinstance(tensor, torch.Tensor) and tensor.numel() == total > 1:
                raise InputError(
                    f"{type(optimizer).__name__} keeps one tensor, of {total} entries, for all of its parameters "
                    "together: it cannot shrink with some of them",
                    remedy="use an optimizer whose state has the parameters' shapes (SGD, Adam, AdamW, RMSprop, …)",
                )


def _cannot_shrink(
    optimizer: torch.optim.Optimizer, key: Any, tensor: torch.Tensor, name: str, parameter: nn.Parameter
) -> InputError:
    return InputError(
        f"{type(optimizer).__name__} keeps {key!r} of shape {tuple(tensor.shape)} for a parameter of shape "
        f"{tuple(parameter.shape)}: it cannot shrink with it",
        where=name,
        remedy="use an optimizer whose state has the parameters' shapes (SGD, Adam, AdamW, RMSprop, …)",
    )


def _follows(shape: torch.Size, parameter: torch.Size) -> bool:
    """Whether state of a shape can lose what the parameter loses. Factored second moments (Adafactor) have size 1 along
    some axes; single numbers stay."""
    if shape.numel() <= 1:
        return True
    return len(shape) == len(parameter) and all(a in (1, b) for a, b in zip(shape, parameter, strict=True))


def _is_within(shape: torch.Size, parameter: torch.Size) -> bool:
    return len(shape) == len(parameter) and all(a <= b for a, b in zip(shape, parameter, strict=True))


def _immovable(value: Any, shape: torch.Size) -> torch.Tensor | None:
    """A tensor in a value of an optimizer's state that cannot shrink with a parameter of a shape: of another shape, or
    in an object that is no container."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, torch.Tensor):
            if not _follows(leaf.shape, shape):
                return leaf
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, type):
            inside = (_immovable(v, torch.Size()) for v in vars(leaf).values())
            found = next((t for t in inside if t is not None), None)
            if found is not None:
                return found
    return None


def sliced(value: Any, shape: torch.Size, axes: Axes) -> Any:
    """What is left of an optimizer's state of a parameter of a shape."""

    def left(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or leaf.numel() <= 1 or not _follows(leaf.shape, shape):
            return leaf  # a number, or loaded from a network that was as small already
        return select(leaf, {a: index for a, index in axes.items() if leaf.shape[a] == shape[a]})

    return tree_map(left, value)
