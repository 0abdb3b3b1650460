"""Selections behind values that a model makes from sizes, where these meet units: position embeddings of sines.

In: a captured graph, and where values without units have met units. Out: the same graph, in which these take from such
a value, which is made as before, what is left of the units. A selection of everything leaves the final network.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import fx, nn

from fxcat.passes.analysis.label_flow import LabelFlow
from fxcat.passes.capture.capture import Captured
from fxcat.passes.graph.buffers import add_buffer
from fxcat.passes.graph.meta import CONSTANT, MADE, PHASE, VALUE, path_of, stand_beside, value_of
from fxcat.passes.rules.sizes import asked_sizes


def with_selections(captured: Captured, network: nn.Module, flow: LabelFlow) -> Captured:
    """Put selections behind made values; `network` gets their indices."""
    orders = dict(captured.orders)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    taken = {name for name, _ in network.named_buffers()} | orders.keys()
    chosen: dict[tuple[fx.Node, fx.Node], fx.Node] = {}
    for node, source, axis in flow.meetings:
        if captured.regions or not _is_made(flow, source) or _counts_examples(source, axis):
            continue
        path = path_of(node)
        prefix = f"{path}.channels" if path else "channels"
        name = next(n for i in itertools.count() if (n := f"{prefix}{i}") not in taken)
        taken.add(name)
        orders[name] = torch.arange(value_of(source).shape[axis])
        add_buffer(network, name, orders[name].to(device), persistent=False)
        entering = chosen.get((node, source), source)
        chosen[node, source] = _selection(node, entering, axis, name, orders[name])
        node.replace_input_with(entering, chosen[node, source])
    return replace(captured, orders=orders) if chosen else captured


def _selection(node: fx.Node, source: fx.Node, axis: int, name: str, order: torch.Tensor) -> fx.Node:
    with node.graph.inserting_before(node):
        index = node.graph.create_node("get_attr", name)
        select = node.graph.call_function(torch.index_select, (source, axis, index))
    VALUE.set(index, order.to("meta"))
    VALUE.set(select, value_of(source))
    MADE.set(select, True)
    for new in (index, select):
        stand_beside(new, node)
        PHASE.copy(new, node)
    return select


def _counts_examples(source: fx.Node, axis: int) -> bool:
    """Whether how many entries there are along an axis is a matter of the batch: of groups that are folded into it."""
    stack, seen = [source] if axis == 0 else [], set[fx.Node]()
    while stack:
        node = stack.pop()
        if isinstance(VALUE.get(node), int | float | torch.Size):
            if any(asked in (0, None) for _, asked in asked_sizes(node)):
                return True
        elif node not in seen:
            stack += node.all_input_nodes
        seen.add(node)
    return False


def _is_made(flow: LabelFlow, source: fx.Node) -> bool:
    """Whether a value depends on constants alone, and on sizes of axes without units."""
    stack, seen = [source], set[fx.Node]()
    while stack:
        node = stack.pop()
        value = VALUE.get(node)
        if isinstance(value, int | float | torch.Size):
            if any(_has_units(flow, tensor, axis) for tensor, axis in asked_sizes(node)):
                return False
        elif isinstance(value, torch.Tensor | tuple | list) and node not in seen:
            if (node.op == "get_attr" and not CONSTANT.has(node)) or node.op in ("placeholder", "call_module"):
                return False
            stack += node.all_input_nodes
        seen.add(node)
    return True


def _has_units(flow: LabelFlow, tensor: fx.Node, axis: int | None) -> bool:
    labels = flow.values.get(tensor)
    if not isinstance(labels, torch.Tensor):
        return tensor.op != "placeholder"
    return labels.numel() > 1 if axis is None else labels.shape[axis] > 1
