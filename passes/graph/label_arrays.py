"""Label arrays: small helpers that know nothing about rules or graphs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import fx

from fxcat.passes.graph.meta import path_of

Integers: TypeAlias = "np.ndarray[Any, np.dtype[np.int32]]"


@dataclass(frozen=True, slots=True)
class Grid:
    """Labels of a weight: its rows belong to other units than its columns, and an entry goes with either.

    Each of `layers` is an array of labels, broadcastable to the weight's shape.
    """

    layers: tuple[torch.Tensor, ...]


Labels: TypeAlias = "torch.Tensor | Grid | tuple[Labels, ...] | None"
"""Labels of a value: an int32 tensor broadcastable to a tensor's shape, a `Grid` for weights, a tuple for tuples, None
for the rest."""

FROZEN = 0
"""The label of everything that is always live."""


def frozen(shape: tuple[int, ...]) -> torch.Tensor:
    """Labels of that shape that are all `FROZEN`."""
    return _one_label(len(shape)) if shape.count(1) == len(shape) else torch.zeros(shape, dtype=torch.int32)


@cache
def _one_label(dims: int) -> torch.Tensor:
    """Most values have no units: they share their labels."""
    return torch.zeros((1,) * dims, dtype=torch.int32)


def compress(labels: torch.Tensor) -> torch.Tensor:
    """Size 1 along every axis over which the labels do not change; what has become smaller is a copy."""
    # in NumPy, whose functions cost less per call
    whole = small = labels.numpy()
    for axis in reversed(range(whole.ndim)):
        if small.shape[axis] > 1:
            first = small[(slice(None),) * axis + (slice(1),)]
            if (small == first).all():
                small = first
    # a view would keep the array alive that has an entry for every element of the value
    return labels if small is whole else torch.from_numpy(small.copy())


def along(labels: torch.Tensor, axis: int, dims: int) -> torch.Tensor:
    """1-D labels as an array of `dims` dimensions that varies along `axis`."""
    return labels.reshape([-1 if a == axis % dims else 1 for a in range(dims)])


def reshape(labels: torch.Tensor, source: torch.Size, result: torch.Size) -> torch.Tensor:
    """Labels of a value of shape `source` after it was viewed as `result`.

    The shapes are split into runs of axes with equal products; only runs with labels are expanded to full size.
    """
    if 0 in source:
        return labels.new_zeros((1,) * len(result))
    given: list[int] = []
    wanted: list[int] = []
    i = j = 0
    while i < len(source) or j < len(result):
        a, b, left, right = i, j, 1, 1
        while left != right or (a == i and b == j):
            if left <= right and a < len(source):
                left *= source[a]
                a += 1
            else:
                right *= result[b]
                b += 1
        varies = any(size > 1 for size in labels.shape[i:a])
        given += source[i:a] if varies else [1] * (a - i)
        wanted += result[j:b] if varies else [1] * (b - j)
        i, j = a, b
    return labels.expand(given).reshape(wanted)


def unlabelled(value: Any) -> Labels:
    """Label 0 for every tensor in a value."""
    if isinstance(value, torch.Tensor):
        return frozen((1,) * value.dim())
    if isinstance(value, tuple | list):
        items: Iterable[Any] = value
        return tuple(unlabelled(v) for v in items)
    return None


def leaves(labels: Labels) -> Iterable[torch.Tensor]:
    """The label arrays inside a value's labels."""
    if isinstance(labels, torch.Tensor):
        yield labels
    elif isinstance(labels, Grid):
        yield from labels.layers
    elif labels is not None:
        for item in labels:
            yield from leaves(item)


def is_wide(labels: Labels) -> bool:
    """Whether some array varies along more than one axis."""
    return any(sum(size > 1 for size in array.shape) > 1 for array in leaves(labels))


def varying_axis(labels: torch.Tensor) -> int | None:
    """The only axis along which an array varies."""
    return next((a for a, size in enumerate(labels.shape) if size > 1), None)


def place(node: fx.Node) -> str:
    """Where a node comes from, for people: its module path and op."""
    if node.op == "call_module":
        return str(node.target)
    if node.op in ("placeholder", "output", "get_attr"):
        return str(node.target)
    path = path_of(node) or "(root)"
    return f"{path}: {getattr(node.target, '__name__', str(node.target))}"


def join(parent: Integers, left: Integers, right: Integers) -> None:
    """Unite numbers pairwise, in place: `parent` holds the smallest member of each number's connected component.

    Vectorised hooking and pointer jumping.
    """
    while True:
        a, b = parent[left], parent[right]
        differ = a != b
        if not differ.any():
            return
        left, right, a, b = left[differ], right[differ], a[differ], b[differ]
        np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))
        while True:
            jumped = parent[parent]
            if np.array_equal(jumped, parent):
                break
            parent[:] = jumped
