"""Clean-up after a rewrite: nodes that reach no output go; in-place ops must not hit values that others read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from fxcat.passes.graph.invocations import stands_for
from fxcat.passes.graph.meta import VALUE, take_all, value_of
from fxcat.passes.nodes.effects import is_inplace, make_plain, needed, reads_type
from fxcat.passes.rules.boundary import region_output


def remove_dead(graph: fx.Graph, phase: int | None = None) -> bool:
    """Erase every node that no output needs (in one phase, if that is given). Returns whether there was one."""
    kept = needed(
        graph, (n for n in graph.nodes if n.op in ("placeholder", "output") or n.target is region_output), phase
    )
    dead = [n for n in reversed(graph.nodes) if n not in kept]
    for node in dead:
        graph.erase_node(node)
    return bool(dead)


def read_type_elsewhere(
    graph: fx.Graph, root: nn.Module, used: Collection[str], regions: Collection[str], name_of: Callable[[str], str]
) -> None:
    """Whose dtype alone is read need not stay for it: of the tensors in use another of that dtype is asked.

    `used`: names of parameters and buffers that the graph uses otherwise; `regions`: paths, which keep to themselves;
    `name_of`: the one name of a tensor that has several.
    """
    tensors = {**dict(root.named_parameters()), **dict(root.named_buffers())}
    for node in list(graph.nodes):
        name = str(node.target)
        if not reads_type(node) or name_of(name) in used:
            continue
        region = max((r for r in regions if r and name.startswith(f"{r}.")), key=len, default="")
        like = (n for n in tensors if n in used and tensors[n].dtype == value_of(node).dtype)
        other = next((n for n in like if not region or n.startswith(f"{region}.")), None)
        if other is not None:
            with graph.inserting_before(node):
                instead = graph.create_node("get_attr", other)
            take_all(instead, node)
            VALUE.set(instead, tensors[other])
            node.replace_all_uses_with(instead)
            graph.erase_node(node)


_IDEMPOTENT: tuple[Any, ...] = (nn.ReLU, nn.ReLU6, functional.relu, functional.relu6, torch.relu, "relu")


def remove_repeated(graph: fx.Graph, root: nn.Module) -> bool:
    """A bypass may put a ReLU right behind another: drop the second. Returns whether there was one."""
    changed = False
    for node in graph.nodes:
        before = node.args[0] if len(node.args) == 1 and isinstance(node.args[0], fx.Node) else None
        kind = _kind(node, root)
        if before is not None and kind in _IDEMPOTENT and kind == _kind(before, root):
            node.replace_all_uses_with(before)
            stands_for(before, node)
            graph.erase_node(node)
            changed = True
    return changed


def _kind(node: fx.Node, root: nn.Module) -> Any:
    return type(root.get_submodule(str(node.target))) if node.op == "call_module" else node.target


def make_out_of_place(origin: Mapping[fx.Node, fx.Node], root: nn.Module) -> tuple[str, ...]:
    """In-place ops must not hit a value that they did not hit before: others may read it, or autograd need it.

    Functions and methods are replaced in the graph; the modules whose `inplace` has to be cleared are returned.
    """
    modules: list[str] = []
    for node, old in origin.items():
        changed = node.args[0] if node.args else None
        if not isinstance(changed, fx.Node) or origin.get(changed) is old.args[0]:
            continue
        if node.op == "call_module" and getattr(root.get_submodule(str(node.target)), "inplace", False):
            modules.append(str(node.target))
        if is_inplace(node):
            make_plain(node)
    return tuple(modules)
