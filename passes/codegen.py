"""The source of a graph, as a function of the module that it is about."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from fxcat.passes.generated import Generated
from fxcat.passes.uncast import NAMES as UNCAST_NAMES
from fxcat.passes.uncast import with_blocks, with_marks

LINES = "lines"
"""Key in the `meta` of an output: lines of code that come before it."""


def _with_names_as_data(graph: fx.Graph) -> fx.Graph:
    """A graph of the same modules, parameters and buffers, where those whose names are no Python names are looked up.

    torch.fx writes every name into the code as it is. A name is data, whatever it holds.
    """
    if all(_is_written(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")):
        return graph
    result = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op not in ("call_module", "get_attr") or _is_written(node.target):
            copies[node] = result.node_copy(node, copies.__getitem__)
            continue
        path, _, leaf = str(node.target).rpartition(".")
        if node.op == "call_module":
            found = result.call_module("get_submodule", (node.target,))
            args, kwargs = fx.map_arg((node.args, node.kwargs), copies.__getitem__)
            copies[node] = result.call_method("__call__", (found, *args), kwargs)
        else:
            found = result.call_module("get_submodule", (path,))
            # with a default, torch.fx does not write it as an attribute
            copies[node] = result.call_function(builtins.getattr, (found, leaf, None))
        copies[node].meta = dict(node.meta)
    return result


def _is_written(path: Any) -> bool:
    """Whether a path may stand in code, where Python would read the same names."""
    return all(part.isascii() and part.isidentifier() and not keyword.iskeyword(part) for part in str(path).split("."))


def compiled(
    graph: fx.Graph, this: str, head: str, start: Sequence[str] = (), names: Mapping[str, Any] | None = None
) -> Generated:
    """The function of a graph of a module that it calls `this`, with a head of its own, and lines that come first."""
    last = next(reversed(graph.nodes)).meta.get(LINES, ())
    code = with_marks(_with_names_as_data(graph)).python_code(this)
    lines = [head, *(f"    {line}" for line in start)]
    source = re.sub(r"^def forward\(.*$", lambda _: "\n".join(lines), code.src, count=1, flags=re.MULTILINE)
    if last:
        before, returned_, after = source.rpartition("\n    return ")
        source = "\n    ".join([before, *last]) + returned_ + after
    namespace = {**code.globals, **UNCAST_NAMES, **(names or {})}
    return Generated(with_blocks(source), head.removeprefix("def ").partition("(")[0], namespace)
