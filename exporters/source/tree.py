"""What makes modules, as data: calls of layers, containers, and blocks that share classes.

Two blocks share a class if they hold the same layers under the same names and have the same code, but for numbers: the
*holes* of a class. Those that differ between its blocks become arguments of its constructor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch

from fxcat.exporters.source.layers import Layer

Base = Literal["Module", "Sequential", "ModuleList", "ModuleDict"]


@dataclass(frozen=True, slots=True)
class Held:
    """A container and what is in it, by name."""

    base: Base
    children: tuple[tuple[str, Tree], ...]


@dataclass(frozen=True, slots=True)
class Values:
    """A parameter or buffer: of what shape and type."""

    kind: Literal["parameter", "buffer", "constant"]
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Block:
    """A module with a class of its own in the file; `values`: in the holes of that."""

    made_by: BlockClass
    values: tuple[Any, ...]


Tree: TypeAlias = "Layer | Held | Block | Values"


@dataclass(eq=False, slots=True)
class BlockClass:
    """A class of the file.

    `members`: what a block holds, by name, of the first that was found. `lines`: its forward, with marks in the places
    of `numbers`. `origin`: the class that the model has for it. `paths`, `rows`: of all blocks, paths and the values in
    their holes.
    """

    wanted: str
    origin: str
    base: Base
    members: tuple[tuple[str, Tree], ...]
    lines: tuple[str, ...]
    numbers: tuple[Any, ...]
    name: str = ""
    paths: list[str] = field(default_factory=list[str])
    rows: list[tuple[Any, ...]] = field(default_factory=list[tuple[Any, ...]])
    arguments: dict[int, str] = field(default_factory=dict[int, str])
    """Of the holes that differ the names of the constructor's arguments; equal ones have the same."""

    def find_arguments(self) -> None:
        """Name the arguments, once all blocks are known."""
        labels = [label for label, _ in holes(self.members, self.numbers)]
        known: dict[tuple[str, ...], str] = {}
        taken = {name for name, _ in self.members} | {"self", "torch", "nn", "torchvision", "OrderedDict"}
        for i, column in enumerate(zip(*self.rows, strict=True)):
            said = tuple(map(repr, column))
            if len(set(said)) == 1:
                continue
            if said not in known:
                known[said] = _free(labels[i], taken)
                taken.add(known[said])
            self.arguments[i] = known[said]

    def parameters(self) -> dict[str, int]:
        """The arguments of the constructor, each with the first hole that it fills."""
        found: dict[str, int] = {}
        for hole, name in self.arguments.items():
            found.setdefault(name, hole)
        return found


def holes(members: tuple[tuple[str, Tree], ...], numbers: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    """The values that blocks of one class may have each for itself, with labels: of members, then in the code."""
    for name, tree in members:
        yield from _holes(tree, name)
    yield from (("size", number) for number in numbers)


def _holes(tree: Tree, label: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Layer):
        yield from ((f"{label}_{a.name}", a.value) for a in tree.arguments)
    elif isinstance(tree, Values):
        yield f"{label}_shape", tree.shape
    elif isinstance(tree, Held):
        for name, child in tree.children:
            yield from _holes(child, f"{label}_{name}")
    else:
        labels = (name for name, _ in holes(tree.made_by.members, tree.made_by.numbers))
        yield from ((f"{label}_{name}", v) for name, v in zip(labels, tree.values, strict=True))


def skeleton(tree: Tree) -> Any:
    """What blocks of one class have in common."""
    if isinstance(tree, Layer):
        return tree.owner, tree.name, tuple(a.name for a in tree.arguments)
    if isinstance(tree, Values):
        return tree.kind, tree.dtype
    if isinstance(tree, Held):
        return tree.base, tuple((name, skeleton(child)) for name, child in tree.children)
    return "block", id(tree.made_by)


def _free(label: str, taken: set[str]) -> str:
    name = "".join(c if c.isascii() and c.isalnum() else "_" for c in label).strip("_") or "value"
    name = f"n{name}" if name[0].isdigit() else name
    found, number = name, 1
    while found in taken or not found.isidentifier():
        number += 1
        found = f"{name}_{number}"
    return found
