"""How a small network came about: which model was prepared, and how, and which gates were closed, shrink after shrink.

That determines its structure: replaying it on the same model makes the same network again. So a file holds no code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from fxcat.errors import InputError, StorageError
from fxcat.network.module_state import Shapes, first_difference, shapes_of
from fxcat.utils.json_tensors import pack, unpack

ATTRIBUTE = "_fxcat_recipe"
"""Of a finalized module: its recipe, as JSON. A text: it is copied with the module, and is not code."""

_TYPES = {
    str(t): t
    for t in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    )
}


@dataclass(frozen=True, slots=True)
class Stage:
    """One `prepare`, and what has left the network since.

    `options`, `in_regions`, `example`: what was asked for; `example` is None if it cannot be described. `shapes`: of
    the model. `gates`: names and counts. `closed`: for every shrink the numbers that the gates that were closed had.
    `biases`: paths of the layers that were given one.
    """

    options: Mapping[str, Any]
    in_regions: bool
    example: Any
    shapes: Shapes
    gates: tuple[tuple[str, int], ...]
    closed: tuple[tuple[int, ...], ...] = ()
    biases: tuple[str, ...] = ()

    def after(self, keep: torch.Tensor) -> Stage:
        """With one more shrink; `keep`: 0/1, shape (gates,)."""
        return replace(self, closed=(*self.closed, tuple((keep == 0).nonzero().reshape(-1).tolist())))

    def __deepcopy__(self, memo: dict[int, Any]) -> Stage:
        return self


Recipe = tuple[Stage, ...]
"""Mostly one stage; more if a finalized module was prepared again."""


Gates = tuple[tuple[str, int], ...]


def check_shapes(found: Shapes, expected: Shapes) -> None:
    """Raise `InputError` if a model is not the one that is expected."""
    differs = first_difference(found, expected)
    if differs is not None:
        raise InputError(
            f"this is another model than the one that was stored: {differs}",
            remedy="make the model with the same constructor and arguments",
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
    return {"layout": layout, "tensors": kinds} if all(k[1] in _TYPES for k in kinds.values()) else None


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
        dtype, filled = _TYPES[kind], next(iter(value), None)
        device = "meta" if dtype.is_floating_point and filled is None else "cpu"
        # one number in memory, whatever the shape is
        tensors[name] = torch.full((), filled or 0, dtype=dtype, device=device).expand(shape)
    return unpack(description["layout"], tensors)


def attach(module: nn.Module, recipe: Recipe) -> None:
    """Note in a finalized module how it was made, and what it was then."""
    content = {"stages": [asdict(s) for s in recipe], "result": shapes_of(module)}
    setattr(module, ATTRIBUTE, json.dumps(content))


def attached(module: nn.Module) -> str | None:
    """The recipe of a finalized module as JSON."""
    text = vars(module).get(ATTRIBUTE)
    return text if isinstance(text, str) else None


def parse(text: str) -> tuple[Recipe, Shapes]:
    """A recipe, and the shapes of the module that it was attached to. Raises `StorageError` if it is none."""
    try:
        content = json.loads(text)
        return tuple(_stage(s) for s in content["stages"]), _shapes(content["result"])
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise StorageError("the recipe of the structure cannot be read", remedy="save the network again") from error


def _stage(content: dict[str, Any]) -> Stage:
    return Stage(
        _options(content["options"]),
        bool(content["in_regions"]),
        _example(content["example"]),
        _shapes(content["shapes"]),
        tuple((str(name), int(count)) for name, count in content["gates"]),
        tuple(tuple(int(g) for g in closed) for closed in content["closed"]),
        tuple(str(path) for path in content.get("biases", ())),
    )


def _options(content: dict[str, Any]) -> dict[str, Any]:
    """What `prepare` was asked for, if it is of the right types."""
    flags = {name: content[name] for name in ("units", "sections", "inputs")}
    paths = {name: content.get(name, []) for name in ("ignore", "python")}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise ValueError("options of other types")
    return {**flags, **{name: _paths(found) for name, found in paths.items()}}


def _paths(found: Any) -> list[str]:
    if not isinstance(found, list):
        raise ValueError("paths of another type")
    return [str(path) for path in found]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _example(content: Any) -> Any:
    """A description of example inputs, if one can be made from it: at most so many numbers as memory could hold."""
    if content is None:
        return None
    for shape, kind, *value in content["tensors"].values():
        sizes = all(type(n) is int and n >= 0 for n in shape) and math.prod(shape) < _MOST
        if not sizes or kind not in _TYPES or not all(v is None or isinstance(v, int | float) for v in value):
            raise ValueError(f"an example of shape {shape} and type {kind}")
    unpack(content["layout"], content["tensors"])
    return content


_MOST = 1 << 40


def _shapes(content: dict[str, Any]) -> Shapes:
    return {str(name): tuple(int(s) for s in shape) for name, shape in content.items()}
