"""Arguments for a module: from what the caller gave, or found from the module, to random values at any batch size.

In: example inputs (values, or only shapes on the meta device). Out: a tuple of arguments for `forward`, pytrees of
tensors on the CPU whose dimension 0 is the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from fxcat.errors import InputError
from fxcat.passes.example import find_example_inputs

_FLOATS = (torch.float16, torch.float32, torch.float64)
_OTHERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def example_arguments(module: nn.Module, given: torch.Tensor | tuple[Any, ...] | None) -> tuple[Any, ...]:
    """The arguments of `forward`, checked. Raises `InputError` if they have no common batch dimension."""
    values = _found(module) if given is None else given
    arguments = values if isinstance(values, tuple) else (values,)
    tensors = tensors_of(arguments)
    if not tensors:
        raise InputError("there is no tensor among the example inputs", remedy="give a tensor, or a tuple with one")
    for tensor in tensors:
        if tensor.dtype not in _FLOATS + _OTHERS:
            raise InputError(
                f"an example input is {tensor.dtype}, which ONNX Runtime cannot be given",
                remedy="export module.float() with float32 inputs",
            )
    shapes = [tuple(t.shape) for t in tensors]
    if any(not s for s in shapes) or len({s[0] for s in shapes}) > 1:
        raise InputError(
            f"the example inputs have shapes {shapes}: dimension 0 is not one common batch",
            remedy="give every tensor a batch dimension first, of the same size",
        )
    return arguments


def tensors_of(tree: Any) -> list[torch.Tensor]:
    """All tensors of a pytree, in order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def at_batch(arguments: tuple[Any, ...], batch: int, seed: int) -> tuple[Any, ...]:
    """The arguments at another batch size: normal floats from an own generator; other types repeat the rows given,
    whose values may have to be valid indices. Constants stay."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        shape = (batch, *value.shape[1:])
        if value.dtype in _FLOATS:
            return torch.randn(shape, generator=generator).to(value.dtype)
        if value.is_meta:
            return torch.zeros(shape, dtype=value.dtype)
        return value.detach().cpu()[torch.arange(batch) % len(value)]

    return tree_map(leaf, arguments)


def _found(module: nn.Module) -> torch.Tensor | tuple[torch.Tensor, ...]:
    shapes = getattr(module, "fxcat_example_shapes", None)
    if shapes is None:
        return find_example_inputs(module)
    return tuple(torch.empty(tuple(shape), device="meta") for shape in shapes)
