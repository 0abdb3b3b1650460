"""Example values of nodes: run a node, or a whole graph, on the meta device."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn


def run_node(node: fx.Node, root: nn.Module) -> Any:
    """Execute one node on the example values of its inputs. Modules run through `forward`: hooks do not fire."""
    if node.op == "get_attr":
        return operator.attrgetter(str(node.target))(root)
    args, kwargs = thaw(node.args), thaw(node.kwargs)
    if node.op == "call_function":
        assert callable(node.target)
        return node.target(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return root.get_submodule(str(node.target)).forward(*args, **kwargs)


def propagate(graph: fx.Graph, root: nn.Module) -> None:
    """Recompute every node's example value; the placeholders keep theirs."""
    with torch.no_grad():
        for node in graph.nodes:
            if node.op not in ("placeholder", "output"):
                node.meta["value"] = run_node(node, root)


def thaw(argument: Any) -> Any:
    """An argument with every node replaced by its example value; lists are plain, mutable lists."""
    if isinstance(argument, fx.Node):
        return argument.meta["value"]
    if isinstance(argument, tuple):
        items: list[Any] = [thaw(a) for a in argument]  # pyright: ignore[reportUnknownVariableType]
        return type(argument)(*items) if hasattr(argument, "_fields") else tuple(items)  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(argument, list):
        return [thaw(a) for a in argument]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(argument, dict):
        return {k: thaw(v) for k, v in argument.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(argument, slice):
        return slice(thaw(argument.start), thaw(argument.stop), thaw(argument.step))  # pyright: ignore
    return argument
