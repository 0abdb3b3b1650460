"""A graph as the statements of a function: as somebody would write them who has the modules at hand.

What is computed of sizes alone is computed once, and written where it is used if that is in one place. A value takes
the name of the one that it is made of and that nothing needs any more: so memory is freed as the function goes on.
"""

from __future__ import annotations

import builtins
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any, TypeAlias

import torch
from torch import fx

from fxcat.passes.codegen.expressions import Text, Writer
from fxcat.passes.graph.meta import UNCAST, VALUE

INDENT = "    "
_OF_SIZES = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.pow),
    *(operator.neg, operator.not_, operator.getitem),
    *(operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge),
    *(builtins.getattr, int, float, bool, round, min, max, abs, len, math.floor, math.ceil, math.sqrt, math.prod),
}
"""Functions that give the same for the same numbers, and change nothing."""
_SIZES = ("size", "dim", "ndimension", "numel", "nelement")
_TELLING = ("shape", "ndim", "dtype", "device")


MakeWriter: TypeAlias = Callable[[str, Iterable[str], Callable[[fx.Node], Text]], Writer]


def body_of(
    graph: fx.Graph, this: str, reserved: Iterable[str], make_writer: MakeWriter = Writer
) -> tuple[list[str], str, dict[str, Any]]:
    """The lines of a function's body, what it returns, and what the names in it mean. `reserved`: names in use."""
    return _Body(graph, this, set(reserved), make_writer).written()


class _Body:
    def __init__(self, graph: fx.Graph, this: str, reserved: set[str], make_writer: MakeWriter) -> None:
        self._nodes, self._output = list(graph.nodes)[:-1], next(reversed(graph.nodes))
        self._arguments = {n: str(n.target).lstrip("*") for n in self._nodes if n.op == "placeholder"}
        self._first: dict[fx.Node, fx.Node] = {}
        """Of what is computed again its first computation."""
        self._inside: set[fx.Node] = set()
        """What is written where it is used."""
        self._names: dict[fx.Node, str] = dict(self._arguments)
        self._reserved = reserved | {this, *self._arguments.values()}
        self._returned: set[fx.Node] = set()
        self._free: dict[bool, list[str]] = {False: [], True: []}
        """Names that are free again: of single values, and of several at once. TorchScript gives a name one type."""
        self._writer = make_writer(this, self._reserved | names_of_values(len(self._nodes)), self._value)

    def written(self) -> tuple[list[str], str, dict[str, Any]]:
        self._find_repeated()
        self._find_inside()
        own = [n for n in self._nodes if self._is_statement(n)]
        ends = self._ends(own)
        self._returned = set(self._used_by(self._output))
        lines: list[str] = []
        place = 0
        for mode, block in groupby(own, lambda n: UNCAST.get(n)):
            nodes = list(block)
            if mode is not None:
                device, dtype = mode
                lines.append(self._opening(device, dtype, nodes))
            for node in nodes:
                lines.append((INDENT if mode else "") + self._line(node, ends, place))
                place += 1
        returned = self._writer.argument(self._output.args[0]).code
        return lines, returned, self._writer.names

    def _is_statement(self, node: fx.Node) -> bool:
        return node.op != "placeholder" and node not in self._inside and self._first.get(node, node) is node

    def _find_repeated(self) -> None:
        """What is computed of sizes alone, and was computed before."""
        known: dict[Any, fx.Node] = {}
        for node in self._nodes:
            if is_of_sizes(node):
                key: Any = (node.op, node.target, _key(node.args, self._first), _key(node.kwargs, self._first))
                self._first[node] = known.setdefault(key, node)

    def _find_inside(self) -> None:
        """Parameters, shapes, and sizes that are used in one place while what they are the sizes of is still needed."""
        users: dict[fx.Node, list[fx.Node]] = {n: [] for n in self._nodes}
        for node in (*self._nodes, self._output):
            if self._first.get(node, node) is node:
                inputs: list[fx.Node] = node.all_input_nodes
                for used in inputs:
                    users[self._first.get(used, used)].append(node)
        place = {n: i for i, n in enumerate([*self._nodes, self._output])}
        last = {n: max((place[u] for u in us if not is_of_sizes(u)), default=-1) for n, us in users.items()}
        for node in reversed(self._nodes):
            if node.op == "get_attr" or _tells(node):
                self._inside.add(node)
            elif is_of_sizes(node) and len(users[node]) == 1:
                at = self._place_of_statement(users[node][0], users, place)
                if all(at <= last[self._first.get(t, t)] for t in _tensors_of(node)):
                    self._inside.add(node)

    def _place_of_statement(self, node: fx.Node, users: dict[fx.Node, list[fx.Node]], place: dict[fx.Node, int]) -> int:
        while node in self._inside and len(users[node]) == 1:
            node = users[node][0]
        return place[node]

    def _used_by(self, node: fx.Node) -> Iterator[fx.Node]:
        """The values with a name of which a statement is made, in the order of its arguments."""
        for used in node.all_input_nodes:
            used = self._first.get(used, used)
            if used in self._inside:
                yield from self._used_by(used)
            else:
                yield used

    def _ends(self, own: list[fx.Node]) -> dict[fx.Node, int]:
        """For every value with a name the number of the last statement that needs it; none for what is returned."""
        found = {used: i for i, node in enumerate(own) for used in self._used_by(node)}
        for used in self._used_by(self._output):
            found.pop(used, None)
        return found

    def _value(self, node: fx.Node) -> Text:
        node = self._first.get(node, node)
        return self._writer.call(node) if node in self._inside else Text(self._names[node])

    def _line(self, node: fx.Node, ends: dict[fx.Node, int], place: int) -> str:
        text = self._writer.call(node).code
        used = list(dict.fromkeys(self._used_by(node)))
        dying = [u for u in used if ends.get(u) == place and not is_of_sizes(u)]
        if node not in ends and node not in self._returned:
            self._set_free(dying)
            return text
        several = _is_several(node)
        passed_on = next((u for u in dying if self._may_be_renamed(u) and _is_several(u) is several), None)
        if is_of_sizes(node):
            name = self._name_of_size(node)
        elif passed_on is not None:
            dying.remove(passed_on)
            name = self._names[passed_on]
        else:
            free = self._free[several]
            name = free.pop(0) if free else self._fresh()
        self._set_free(dying)
        self._names[node] = name
        return f"{name} = {text}"

    def _set_free(self, nodes: Iterable[fx.Node]) -> None:
        for node in nodes:
            if self._may_be_renamed(node):
                self._free[_is_several(node)].append(self._names[node])

    def _may_be_renamed(self, node: fx.Node) -> bool:
        """An argument with a name that says something keeps it for itself."""
        return node not in self._arguments or len(self._names[node]) == 1

    def _name_of_size(self, node: fx.Node) -> str:
        index = node.args[1] if node.target is operator.getitem else None
        base = f"size_{index}" if isinstance(index, int) and index >= 0 else "number"
        names = itertools.chain([base], (f"{base}_{i}" for i in itertools.count(1)))
        name = next(n for n in names if n not in self._reserved and n not in self._writer.names)
        self._reserved.add(name)
        self._writer.taken.add(name)
        return name

    def _fresh(self) -> str:
        name = next(n for n in _letters() if n not in self._reserved)
        self._reserved.add(name)
        return name

    def _opening(self, device: str | None, dtype: torch.dtype | None, nodes: list[fx.Node]) -> str:
        """The head of a block in which the model switches autocast."""
        entering = (u for n in nodes for u in self._used_by(n) if u in self._names)
        value = next((u for u in entering if isinstance(VALUE.get(u), torch.Tensor)), None)
        where = repr(device or "cpu") if device or value is None else f"{self._names[value]}.device.type"
        how = "enabled=False" if dtype is None else f"dtype={self._writer.argument(dtype).code}"
        return f"with {self._writer.argument(torch.autocast).code}({where}, {how}):"


def _letters() -> Iterator[str]:
    """Names for values."""
    yield from "xyzuvw"
    for number in itertools.count(1):
        for letter in "xyzuvw":
            yield f"{letter}{number}"


def names_of_values(count: int) -> set[str]:
    """All names that a body of so many nodes may use, and no others may."""
    return set(itertools.islice(_letters(), 6 + count)) | {f"number_{i}" for i in range(count)} | {"number"}


def _is_several(node: fx.Node) -> bool:
    """Whether a value is a container of others."""
    return isinstance(VALUE.get(node), tuple | list | dict)


def _tells(node: fx.Node) -> bool:
    """Whether a node reads what a tensor is, and not what it holds."""
    return node.target is builtins.getattr and len(node.args) == 2 and node.args[1] in _TELLING


def is_of_sizes(node: fx.Node) -> bool:
    """Whether a node computes a number, or several, of sizes alone."""
    value = VALUE.get(node)
    if not isinstance(value, int | float | torch.Size | torch.dtype | torch.device):
        return False
    if _tells(node):
        return True
    if node.op == "call_method":
        return node.target in _SIZES
    if node.op != "call_function" or node.target not in _OF_SIZES:
        return False
    return all(is_of_sizes(used) for used in node.all_input_nodes)


def _tensors_of(node: fx.Node) -> Iterator[fx.Node]:
    """What a number is the size of; what it is computed from beside that has a name, or is written in its place."""
    for used in node.all_input_nodes:
        if _tells(used):
            yield from used.all_input_nodes
        elif not is_of_sizes(used):
            yield used


def _key(argument: Any, first: dict[fx.Node, fx.Node]) -> Any:
    """Arguments that can be compared: equal values of one kind are the same."""
    if isinstance(argument, fx.Node):
        return first.get(argument, argument)
    if isinstance(argument, tuple | list):
        return type(argument).__name__, tuple(_key(a, first) for a in argument)
    if isinstance(argument, dict):
        return tuple((k, _key(a, first)) for k, a in argument.items())
    return type(argument), repr(argument)
