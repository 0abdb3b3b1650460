"""Clean-up after a rewrite: nodes that reach no output go; in-place ops must not hit values that others read."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from fxcat.passes.capture import INPLACE_OPERATORS, is_inplace


def remove_dead(graph: fx.Graph) -> bool:
    """Erase every node that neither reaches an output nor asserts something. Returns whether there was one."""
    kept: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        wanted = node.op in ("placeholder", "output") or node.target is torch._assert  # pyright: ignore[reportPrivateUsage]
        if wanted or any(u in kept for u in node.users):
            kept.add(node)
    dead = [n for n in reversed(graph.nodes) if n not in kept]
    for node in dead:
        graph.erase_node(node)
    return bool(dead)


def make_out_of_place(graph: fx.Graph) -> None:
    """In-place functions and methods on a value that others read too (a bypass may have made it so) become plain."""
    for node in graph.nodes:
        if not is_inplace(node) or not _is_shared(node):
            continue
        if node.target in INPLACE_OPERATORS:
            node.target = INPLACE_OPERATORS[node.target]
        elif node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
        else:
            plain = str(node.target).removesuffix("_") if node.op == "call_method" else _plain_function(node.target)
            node.target = plain


def modules_in_place_on_shared(graph: fx.Graph, root: nn.Module) -> list[nn.Module]:
    """Modules with `inplace=True` whose input others read too."""
    found: list[nn.Module] = []
    for node in graph.nodes:
        if node.op == "call_module" and _is_shared(node):
            module = root.get_submodule(str(node.target))
            if getattr(module, "inplace", False):
                found.append(module)
    return found


def _is_shared(node: fx.Node) -> bool:
    changed = node.args[0] if node.args else None
    return isinstance(changed, fx.Node) and (len(changed.users) > 1 or changed.op in ("placeholder", "get_attr"))


def _plain_function(function: Any) -> Any:
    name = function.__name__.removesuffix("_")
    return getattr(torch, name, None) or getattr(torch.nn.functional, name)
