"""A graph, and what refers to its nodes, as bytes. `pickle` by itself goes from node to node, deeper and deeper, until
there is a `RecursionError`."""

from __future__ import annotations

import importlib
import io
import pickle
from types import FunctionType
from typing import Any

from torch import fx

from fxcat.passes.graph.meta import all_entries, restore_entries
from fxcat.utils.made_classes import Made

Flat = tuple[bytes, tuple[type, ...]]
"""Bytes, and classes made at run time: others refer to the same, so they are left to whoever pickles all."""

_GRAPH = "graph"


def flat(graph: fx.Graph, value: Any) -> Flat:
    """A value that refers to a graph and its nodes.

    Tensors too: to processes that are spawned, pickle sends them by file descriptor, and two views of one storage, as
    labels are, would need the same one twice, which it refuses.
    """
    writer = _Writer(graph)
    nodes = list(graph.nodes)
    writer.dump(len(nodes))
    for node in nodes:
        writer.dump((node.op, node.target, node.args, node.kwargs, node.name, node.type))
    writer.dump([all_entries(node) for node in nodes])
    writer.dump(value)
    return writer.file.getvalue(), tuple(writer.classes)


def restored(content: bytes, classes: tuple[type, ...]) -> Any:
    """The value, with a new graph."""
    reader = _Reader(content, classes)
    for _ in range(reader.load()):
        reader.nodes.append(reader.graph.create_node(*reader.load()))
    for node, meta in zip(reader.nodes, reader.load(), strict=True):
        restore_entries(node, meta)
    return reader.load()


class _Writer(pickle.Pickler):
    def __init__(self, graph: fx.Graph) -> None:
        self.file = io.BytesIO()
        super().__init__(self.file)
        self.classes: list[type] = []
        self._graph = graph
        self._numbers = {node: number for number, node in enumerate(graph.nodes)}

    def persistent_id(self, obj: Any) -> Any:
        if obj is self._graph:
            return _GRAPH
        if isinstance(obj, fx.Node):
            return self._numbers.get(obj)
        if isinstance(obj, Made):
            self.classes.append(obj)
            return (len(self.classes) - 1,)
        return None

    def reducer_override(self, obj: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Functions that were made in functions, if they say under which name they can be found
        (`torch.nn.functional.max_pool2d`)."""
        is_inner = isinstance(obj, FunctionType) and "<locals>" in obj.__qualname__
        if is_inner and getattr(importlib.import_module(obj.__module__), obj.__name__, None) is obj:
            return _found, (obj.__module__, obj.__name__)
        return NotImplemented


class _Reader(pickle.Unpickler):
    def __init__(self, content: bytes, classes: tuple[type, ...]) -> None:
        super().__init__(io.BytesIO(content))
        self.graph = fx.Graph()
        self.nodes: list[fx.Node] = []
        self._classes = classes

    def persistent_load(self, pid: Any) -> Any:
        if pid == _GRAPH:
            return self.graph
        return self.nodes[pid] if isinstance(pid, int) else self._classes[pid[0]]


def _found(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)
