"""How a small network came about: which model was prepared, and how, and which gates were closed, shrink after shrink.

That determines its structure: replaying it on the same model makes the same network again. So a file holds no code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import zip_longest
from typing import Any

import torch
from torch import nn

from fxcat.errors import InputError, StorageError
from fxcat.network.module_state import Shapes, first_difference, shapes_of
from fxcat.network.recipe_schema import DTYPES, check_recipe
from fxcat.utils.json_tensors import pack, unpack

ATTRIBUTE = "_fxcat_recipe"
"""Of a finalized module: its recipe, as JSON. A text: it is copied with the module, and is not code."""


Gates = tuple[tuple[str, int], ...]
"""Names of groups and sections, and how many gates each has."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One `prepare`, and what has left the network since.

    `options`, `in_regions`, `example`: what was asked for; `example` is None if it cannot be described. `shapes`: of
    the model. `closed`: for every shrink the numbers that the gates that were closed had.
    `biases`: paths of the layers that were given one. `ops`: what the model computes, op by op; empty if not known.
    """

    options: Mapping[str, Any]
    in_regions: bool
    example: Any
    shapes: Shapes
    gates: Gates
    closed: tuple[tuple[int, ...], ...] = ()
    biases: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()

    def after(self, keep: torch.Tensor) -> Stage:
        """With one more shrink; `keep`: 0/1, shape (gates,)."""
        return replace(self, closed=(*self.closed, tuple((keep == 0).nonzero().reshape(-1).tolist())))

    def __deepcopy__(self, memo: dict[int, Any]) -> Stage:
        return self


Recipe = tuple[Stage, ...]
"""Mostly one stage; more if a finalized module was prepared again."""


def check_shapes(found: Shapes, expected: Shapes) -> None:
    """Raise `InputError` if a model is not the one that is expected."""
    differs = first_difference(found, expected)
    if differs is not None:
        raise InputError(
            f"this is another model than the one that was stored: {differs}",
            remedy="make the model with the same constructor and arguments",
        )


def check_ops(found: Sequence[str], expected: Sequence[str]) -> None:
    """Raise `InputError` if a model computes something else than the one that is expected, if that is known."""
    if expected and tuple(found) != tuple(expected):
        pairs = zip_longest(found, expected, fillvalue="nothing")
        own, other = next((a, b) for a, b in pairs if a != b)
        raise InputError(
            f"this is another model than the one that was stored, with tensors of the same shapes: it computes {own}, "
            f"where that one computes {other}",
            remedy="make the model with the same constructor and arguments, and the same versions of its libraries",
        )


def check_gates(found: Gates, expected: Gates) -> None:
    """Raise `InputError` if a model was prepared in another way than expected."""
    if found != expected:
        pairs = zip(found, expected, strict=False)
        first = next((f"{a[0]} ({a[1]}) instead of {b[0]} ({b[1]})" for a, b in pairs if a != b), "more or fewer")
        raise InputError(
            f"the model has other gates than the one that was stored: {first}",
            remedy="use the same model, example inputs, gates= and ignore=, and version of fxcat",
        )


def describe_example(inputs: Any) -> Any:
    """Shapes and types of example inputs, and what fills one, as JSON; None for inputs that hold anything but
    tensors and plain data."""
    tensors: dict[str, torch.Tensor] = {}
    try:
        layout = pack(inputs, tensors, "input")
    except InputError:
        return None
    kinds = {name: [list(t.shape), str(t.dtype), _only_value(t)] for name, t in tensors.items()}
    return {"layout": layout, "tensors": kinds} if all(k[1] in DTYPES for k in kinds.values()) else None


def _only_value(tensor: torch.Tensor) -> int | float | bool | None:
    """The number that fills a tensor, such as a mask that masks nothing: a model's Python may decide by it."""
    if tensor.is_meta or not tensor.numel():
        return None
    first = tensor.detach().reshape(-1)[0]
    return first.item() if bool((tensor == first).all()) and bool(torch.isfinite(first)) else None


def make_example(description: Any) -> Any:
    """Inputs of these shapes and types; those with data hold one number, or are not numbers with a fraction."""
    tensors: dict[str, torch.Tensor] = {}
    for name, (shape, kind, *value) in description["tensors"].items():
        dtype, filled = DTYPES[kind], next(iter(value), None)
        device = "meta" if dtype.is_floating_point and filled is None else "cpu"
        # one number in memory, whatever the shape is
        tensors[name] = torch.full((), filled or 0, dtype=dtype, device=device).expand(shape)
    return unpack(description["layout"], tensors)


def attach_recipe(module: nn.Module, recipe: Recipe) -> None:
    """Note in a finalized module how it was made, and what it was then."""
    stages = [{field.name: getattr(stage, field.name) for field in fields(stage)} for stage in recipe]
    content = {"stages": stages, "result": shapes_of(module)}
    setattr(module, ATTRIBUTE, json.dumps(content))


def attached_recipe(module: nn.Module) -> str | None:
    """The recipe of a finalized module as JSON."""
    text = vars(module).get(ATTRIBUTE)
    return text if isinstance(text, str) else None


def parse(text: str) -> tuple[Recipe, Shapes]:
    """A recipe, and the shapes of the module that it was attached to. Raises `StorageError` if it is none."""
    try:
        content = json.loads(text)
        check_recipe(content)
        return tuple(_stage(s) for s in content["stages"]), _shapes(content["result"])
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise StorageError(
            f"the recipe of the structure cannot be read: {error}", remedy="save the network again"
        ) from error


def _stage(content: dict[str, Any]) -> Stage:
    options, example = content["options"], content["example"]
    if example is not None:
        unpack(example["layout"], example["tensors"])
    return Stage(
        {"ignore": [], "python": [], **options},
        content["in_regions"],
        example,
        _shapes(content["shapes"]),
        tuple((name, count) for name, count in content["gates"]),
        tuple(tuple(closed) for closed in content["closed"]),
        tuple(content.get("biases", ())),
        tuple(content.get("ops", ())),
    )


def _shapes(content: dict[str, Any]) -> Shapes:
    return {name: tuple(shape) for name, shape in content.items()}
