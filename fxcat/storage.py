"""Small networks as files: safetensors with the values, and a recipe of the structure as JSON. No pickle anywhere."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxcat.checks import as_path, check_module
from fxcat.errors import InputError, StorageError, located
from fxcat.gated import GatedModule
from fxcat.network.module_state import Shapes, extra_of, first_difference, put_extra, put_tensors, shapes_of, tensors_of
from fxcat.network.recipe import Recipe, attached_recipe, parse
from fxcat.utils import schema
from fxcat.utils.json_tensors import pack, unpack
from fxcat.utils.safetensors_file import read_tensors, write_tensors

KIND = "fxcat-network-1"
_EXTRA = "_extra_state"
"""Begins the names of tensors in modules' extra state."""


def save(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a small network: what `finalize` returned, or would return for a `GatedModule`; also after more training.

    The file holds the parameters and buffers under their own names, and how the structure came about; `load` makes the
    network again from the original architecture. It is written whole or not at all.

    Raises `InputError` for a module that `finalize` has not returned or whose structure was changed since, and
    `StorageError` if the file cannot be written.
    """
    check_module(module, "save()")
    file = as_path(path)
    small = module.finalized() if isinstance(module, GatedModule) else module
    recipe = attached_recipe(small)
    if recipe is None:
        raise InputError(
            f"save() got a {type(module).__name__} that finalize() has not returned: how it became small is not known",
            remedy="save what fxcat.finalize(net) returns, before it is put into another module",
        )
    differs = first_difference(shapes_of(small), parse(recipe)[1])
    if differs is not None:
        raise InputError(
            f"the network was changed after finalize(): {differs}; load() could not make it again",
            remedy="save what finalize() returned, and change it after load()",
        )
    tensors = tensors_of(small)
    extra = json.dumps(pack(extra_of(small), tensors, _EXTRA))
    frozen = json.dumps([name for name, p in small.named_parameters() if not p.requires_grad])
    write_tensors(file, KIND, tensors, {"recipe": recipe, "extra": extra, "frozen": frozen})


@dataclass(frozen=True, slots=True)
class Stored:
    """The contents of a file. `shapes`: of the small network; `frozen`: parameters without a gradient, None if not
    known."""

    recipe: Recipe
    shapes: Shapes
    tensors: dict[str, torch.Tensor]
    extra: dict[str, Any]
    frozen: frozenset[str] | None


def read(path: str | os.PathLike[str]) -> Stored:
    """Read what `save` has written. Raises `StorageError`."""
    tensors, texts = read_tensors(as_path(path), KIND)
    try:
        extra = unpack(json.loads(texts["extra"]), tensors)
        with located(str(path)):
            recipe, shapes = parse(texts["recipe"])
        if not recipe or not all(stage.closed for stage in recipe):
            raise ValueError("a stage that was not finished")
        if not isinstance(extra, dict):
            raise ValueError("extra state without names")
        frozen = json.loads(texts.get("frozen", "null"))
        schema.optional(schema.listed(schema.text, len(shapes)))(frozen, "what is frozen")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise StorageError("the file lacks a part", where=str(path), remedy="save the network again") from error
    own = {n: t for n, t in tensors.items() if n in shapes}
    return Stored(recipe, shapes, own, extra, None if frozen is None else frozenset(frozen))


def put(module: nn.Module, stored: Stored) -> None:
    """Put values into a module of the stored structure. Raises `StorageError` if it has another one."""
    found = {name: tuple(t.shape) for name, t in stored.tensors.items()}
    differs = first_difference(shapes_of(module), found)
    if differs is not None:
        raise StorageError(
            f"the structure that the recipe gives is not the one of the values: {differs}",
            remedy="use the version of fxcat that has written the file",
        )
    try:
        put_tensors(module, stored.tensors)
        put_extra(module, stored.extra)
        if stored.frozen is not None:
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(name not in stored.frozen)
    except Exception as error:  # what a module makes of state that is not its own
        raise StorageError(
            f"the values cannot be put into this model: {type(error).__name__}: {error}",
            remedy="make the model with the same constructor and arguments",
        ) from error
