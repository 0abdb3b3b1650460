"""Arguments for a module: from what the caller gave, or found from the module, to random values at any batch size.

In: example inputs (values, or only shapes on the meta device). Out: a tuple of arguments for `forward`, pytrees of
tensors on the CPU whose dimension 0 is the batch, and of lists of images, whose length is the batch.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from fxcat.errors import InputError
from fxcat.exporters.form import SIZE_STEP, is_image
from fxcat.network.recipe import attached_recipe, make_example, parse
from fxcat.passes.capture.default_inputs import argument_forms, find_example_inputs

_FLOATS = (torch.float16, torch.float32, torch.float64)
_OTHERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def example_arguments(module: nn.Module, given: Any) -> tuple[Any, ...]:
    """The arguments of `forward`, checked. Raises `InputError` if they have no common batch dimension: that is asked of
    all tensors but those in lists of images."""
    values = _found(module) if given is None else given
    arguments = _in_order(module, *argument_forms(module, values)[0])
    tensors = tensor_leaves(arguments)
    if not tensors:
        raise InputError("there is no tensor among the example inputs", remedy="give a tensor, or a tuple with one")
    for tensor in tensors:
        if tensor.dtype not in _FLOATS + _OTHERS:
            raise InputError(
                f"an example input is {tensor.dtype}, which ONNX Runtime cannot be given",
                remedy="export module.float() with float32 inputs",
            )
    shapes = [tuple(t.shape) for t in tree_leaves(arguments, is_leaf=is_images) if isinstance(t, torch.Tensor)]
    if any(not s for s in shapes) or len({s[0] for s in shapes}) > 1:
        raise InputError(
            f"the example inputs have shapes {shapes}: dimension 0 is not one common batch",
            remedy="give every tensor a batch dimension first, of the same size, or images (C, H, W) in a list",
        )
    return arguments


def _in_order(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    """Arguments given by name as positional ones, up to the last that is given. Raises `InputError` for others."""
    if not named:
        return args
    bound = inspect.signature(module.forward).bind(*args, **named)
    last = list(bound.arguments)[-1]
    bound.apply_defaults()
    names = list(bound.arguments)
    if not bound.kwargs.keys().isdisjoint(named):
        raise InputError(
            f"{type(module).__name__}.forward takes some of the arguments {', '.join(named)} by name only",
            remedy="export a module that takes them in order",
        )
    return bound.args[: names.index(last) + 1]


def tensor_leaves(tree: Any) -> list[torch.Tensor]:
    """All tensors of a pytree, in order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def is_images(value: Any) -> bool:
    """Whether a value is a list of tensors (C, H, W): the form in which detectors take images of different sizes."""
    return (
        isinstance(value, list) and len(value) > 0 and all(isinstance(v, torch.Tensor) and v.dim() == 3 for v in value)  # pyright: ignore[reportUnknownVariableType]
    )


def has_images(arguments: tuple[Any, ...]) -> bool:
    """Whether there is a list of images among the arguments. Their number is fixed in a file."""
    return any(is_images(leaf) for leaf in tree_leaves(arguments, is_leaf=is_images))


def batch_of(arguments: tuple[Any, ...]) -> int:
    """The batch size that the arguments have: the number of images in a list, or dimension 0."""
    leaves = tree_leaves(arguments, is_leaf=is_images)
    return len(next((v for v in leaves if is_images(v)), None) or tensor_leaves(arguments)[0])


def given_values(arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The arguments as they are, on the CPU, or None if they are only shapes."""
    if any(t.is_meta for t in tensor_leaves(arguments)):
        return None
    return tree_map(lambda v: v.detach().cpu() if isinstance(v, torch.Tensor) else v, arguments)


def at_batch(arguments: tuple[Any, ...], batch: int | None, seed: int) -> tuple[Any, ...]:
    """The arguments at another batch size (None: at their own): normal floats from an own generator; other types repeat
    the rows given, whose values may have to be valid indices. Images in lists keep their number, and are uniform in
    [0, 1]. Constants stay."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(value: Any) -> Any:
        if is_images(value):
            return [image(v) for v in value]
        if not isinstance(value, torch.Tensor):
            return value
        shape = value.shape if batch is None else (batch, *value.shape[1:])
        if value.dtype in _FLOATS:
            return torch.randn(shape, generator=generator).to(value.dtype)
        if value.is_meta:
            return torch.zeros(shape, dtype=value.dtype)
        return value.detach().cpu()[torch.arange(shape[0]) % len(value)]

    def image(value: torch.Tensor) -> torch.Tensor:
        if value.dtype in _FLOATS:
            return torch.rand(value.shape, generator=generator).to(value.dtype)
        return torch.zeros(value.shape, dtype=value.dtype) if value.is_meta else value.detach().cpu()

    return tree_map(leaf, arguments, is_leaf=is_images)


def larger(arguments: tuple[Any, ...], rows: int, columns: int) -> tuple[Any, ...]:
    """The shapes of arguments with images (N, C, H, W) that are so many steps higher and wider."""

    def leaf(value: Any) -> Any:
        if not is_image(value):
            return value
        batch, channels, height, width = value.shape
        shape = (batch, channels, height + rows * SIZE_STEP, width + columns * SIZE_STEP)
        return torch.empty(shape, dtype=value.dtype, device="meta")

    return tree_map(leaf, arguments)


def _found(module: nn.Module) -> Any:
    """The example that a small network was prepared with; of others a guess."""
    recipe = attached_recipe(module)
    if recipe is not None:
        example = parse(recipe)[0][-1].example
        if example is not None:
            return make_example(example)
    return find_example_inputs(module)
