"""What a graph computes for other numbers of examples than it was captured with: costs are told for one, times for what
a run has.

What is made once for a whole batch (a table of position biases, embeddings of a grid) costs one example as much as it
costs many; and the batch may be any axis of a value, or a part of one (windows, heads). So values are computed from
inputs of another batch, and none is divided or multiplied by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from fxcat.passes.graph.meta import PHASE, VALUE, path_of
from fxcat.passes.nodes.effects import asserts
from fxcat.passes.rules.boundary import region_input
from fxcat.passes.rules.execute import run_node
from fxcat.passes.rules.table import find_rule


def of_one_example(graph: fx.Graph, root: nn.Module, batch: int) -> Mapping[fx.Node, Any]:
    """Example values of inference for a batch of one, of the nodes where they are not those of the example batch.

    None are, if the network does not take a batch of one, or a layer takes its input for one without a batch axis: then
    the inputs as they are are one example.
    """
    return of_examples(graph, root, batch, 1) or {}


@torch.no_grad()
def of_examples(graph: fx.Graph, root: nn.Module, batch: int, count: int) -> Mapping[fx.Node, Any] | None:
    """Example values of inference for so many examples, of the nodes where they are not those of the example `batch`.

    None if the network does not take as many, or a layer takes its input for one without a batch axis.
    """
    found: dict[fx.Node, Any] = {}
    if batch == count:
        return found
    if any(_takes_no_batch(node, root) for node in graph.nodes):
        return None
    for node in graph.nodes:
        value: Any = VALUE.get(node)
        if node.op == "placeholder":
            if isinstance(value, torch.Tensor) and value.dim() and len(value) == batch:
                found[node] = _as_many(value, batch, count)
        elif node.target is region_input:
            if _holds(value, batch):
                found[node] = _as_many(value, batch, count)
        elif any(i in found for i in node.all_input_nodes) and _counts(node):
            try:
                other = run_node(node, root, values=found)
            except Exception:
                if find_rule(node, _module(node, root)) is not None:
                    return None
                other = _as_many(value, batch, count) if _holds(value, batch) else value
            if _differs(other, value):
                found[node] = other
    return found


def _as_many(value: torch.Tensor, batch: int, count: int) -> torch.Tensor:
    """A value whose first axis is that of the batch, for so many examples."""
    one = value[: len(value) // batch]
    return one if count == 1 else one.repeat(count, *[1] * (value.dim() - 1))


def _takes_no_batch(node: fx.Node, root: nn.Module) -> bool:
    """Whether a layer that takes inputs with and without a batch axis has one without."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    value = VALUE.get(node.args[0])
    if not isinstance(value, torch.Tensor):
        return False
    if node.target == "unsqueeze" and value.dim() == 2:  # what attention begins with then; masks get two axes more
        module = root.get_submodule(path_of(node))
        attends = isinstance(module, nn.MultiheadAttention) and value.shape[1] == module.embed_dim
        return attends and all(u.target != "unsqueeze" for u in node.users)
    module = _module(node, root)
    if isinstance(module, nn.modules.conv._ConvNd):
        return value.dim() == len(module.kernel_size) + 1
    return isinstance(module, nn.RNNBase | nn.MultiheadAttention) and value.dim() == 2


def _counts(node: fx.Node) -> bool:
    """Whether inference computes a value at a node."""
    return node.op != "output" and not PHASE.get(node) and not asserts(node)


def _module(node: fx.Node, root: nn.Module) -> nn.Module | None:
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def _holds(value: Any, batch: int) -> bool:
    """Whether the first axis of a value may be that of a batch."""
    return isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) % batch == 0


def _differs(one: Any, value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return one.shape != value.shape
    if isinstance(value, tuple | list):
        return len(one) != len(value) or any(map(_differs, one, value))
    return bool(one != value)
