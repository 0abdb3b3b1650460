"""Whatever a module returns, as a flat tuple of named tensors: the outputs of an ONNX file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_flatten_with_path


def named_tensors(value: Any, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor of every leaf of an output: `output` for a single tensor, keys, fields and positions otherwise.

    Dataclasses that are not registered as pytrees are opened as well; what is not a tensor (None, numbers) is left out.
    """
    for path, leaf in tree_flatten_with_path(value)[0]:
        name = "_".join([*([prefix] if prefix else []), *(_key(k) for k in path)])
        if isinstance(leaf, torch.Tensor):
            yield (f"output_{name}" if name[:1].isdigit() else name or "output"), leaf
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            fields = {f.name: getattr(leaf, f.name) for f in dataclasses.fields(leaf)}
            yield from named_tensors(fields, name)


def _key(entry: Any) -> str:
    """A pytree key: of a mapping, a sequence, or a named field."""
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)
