"""Autocast switched off or on in generated code where the model switches it: nodes say so, lines become blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

import torch
from torch import fx

from fxcat.passes.effects import UNCAST

_OUTSIDE = object()


def with_marks(graph: fx.Graph) -> fx.Graph:
    """The graph with a mark where such a block begins, and one where it ends; itself where there is none."""
    if all(UNCAST not in n.meta for n in graph.nodes):
        return graph
    result = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for mode, block in groupby(list(graph.nodes), lambda n: n.meta.get(UNCAST, _OUTSIDE)):
        nodes = list(block)
        if mode is not _OUTSIDE:
            device, dtype = mode
            value = None if device else _first_value(nodes)
            result.call_function(_begin, (copies[value] if value else device or "cpu", dtype))
        for node in nodes:
            copies[node] = result.node_copy(node, copies.__getitem__)
        if mode is not _OUTSIDE:
            result.call_function(_end)
    return result


def _begin(device: torch.Tensor | str, dtype: torch.dtype | None) -> None:
    """Marks where a block begins, with the type of a device or a value on it, and to what values are cast there."""


def _end() -> None:
    """Marks where a block ends."""


def _first_value(nodes: list[fx.Node]) -> fx.Node | None:
    """The first tensor that enters from before."""
    inside = set(nodes)
    entering = (i for n in nodes for i in n.all_input_nodes if i not in inside)
    return next((i for i in entering if isinstance(i.meta.get("value"), torch.Tensor)), None)


def with_blocks(source: str) -> str:
    """Generated code in which the lines between marks are blocks."""
    return "\n".join(_indented(source.split("\n"))) if _BEGIN.search(source) else source


_BEGIN = re.compile(rf"^    \w+ = \w+{_begin.__name__}\((.*?), ([\w.]+)\);", re.MULTILINE)
_END = re.compile(rf"^    \w+ = \w+{_end.__name__}\(\);")


def _indented(lines: list[str]) -> Iterator[str]:
    shift = ""
    for line in lines:
        begins = _BEGIN.match(line)
        if begins:
            device = begins[1] if begins[1].startswith("'") else f"{begins[1]}.device.type"
            yield f"    with _autocast({device}, {'enabled=False' if begins[2] == 'None' else f'dtype={begins[2]}'}):"
            shift = "    "
        elif _END.match(line):
            shift = ""
        else:
            yield shift + line if line.strip() else line


NAMES = {"_autocast": torch.autocast}
"""What the blocks call."""
