"""Whatever a module returns, as a flat series of named tensors: the outputs of an ONNX file."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten_with_path

from fxcat.errors import ExportError, InputError
from fxcat.exporters.inputs import batch_of
from fxcat.exporters.reasons import first_line, source_line


def output_names(reference: nn.Module, inputs: tuple[Any, ...]) -> list[str]:
    """Names of what a copy of a module returns on inputs: a run may leave something in it. Raises `InputError` if it
    fails, and `ExportError` if it is nothing."""
    try:
        with torch.no_grad():
            output = copy.deepcopy(reference)(*inputs)
    except Exception as error:
        raise InputError(
            f"{type(reference).__name__} fails on example inputs at batch {batch_of(inputs)}: {first_line(error)}",
            where=source_line(error),
            remedy="give example_inputs that forward accepts on the CPU, with the batch as dimension 0 or as a list of "
            "images; if it accepts only one batch size, dynamic_batch=False",
        ) from error
    names = [name for name, _ in named_outputs(output)]
    if not names:
        raise ExportError(f"{type(reference).__name__} returns no tensor")
    return names


def named_outputs(value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor of every leaf of an output: `output` for a single tensor, keys, fields and positions otherwise.

    In a sequence of results, such as one dictionary per image, the position comes last (`boxes_0`), or not at all if
    there is one. What is not a tensor (None, numbers) is left out.
    """
    alone = isinstance(value, list | tuple) and len(value) == 1  # pyright: ignore[reportUnknownArgumentType]
    for keys, tensor in _leaves(value, ()):
        if len(keys) > 1 and keys[0].isdigit() and not keys[1].isdigit():
            keys = keys[1:] if alone else (*keys[1:], keys[0])
        elif not keys or keys[0].isdigit():
            keys = ("output", *keys)
        yield "_".join(keys), tensor


def _leaves(value: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    """The way to every tensor. Dataclasses and mappings of a model's own are opened by their fields and keys."""
    for path, leaf in tree_flatten_with_path(value, is_leaf=_is_own)[0]:
        way = (*keys, *(_key(k) for k in path))
        if isinstance(leaf, torch.Tensor):
            yield way, leaf
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            yield from _leaves({f.name: getattr(leaf, f.name) for f in dataclasses.fields(leaf)}, way)
        elif isinstance(leaf, Mapping):
            yield from _leaves(dict(leaf), way)  # pyright: ignore[reportUnknownArgumentType]


def _is_own(value: Any) -> bool:
    """Whether a container is not one of Python's."""
    return dataclasses.is_dataclass(value) or (isinstance(value, Mapping) and type(value) is not dict)


def _key(entry: Any) -> str:
    """A pytree key: of a mapping, a sequence, or a named field."""
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)
