"""Tables that a model makes for its channels in every pass (`torch.arange(x.shape[1])`) as buffers.

Their length is the same for every input, as the widths of layers are. A buffer loses the entries of units that go,
where a table that is made anew would number those that are left.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import fx, nn

from fxcat.passes.capture.capture import Captured
from fxcat.passes.graph.arguments import thaw
from fxcat.passes.graph.buffers import add_buffer
from fxcat.passes.graph.meta import CONSTANT, TABLE, VALUE, take_all, value_of
from fxcat.passes.nodes.known import known_value
from fxcat.passes.rules.boundary import owners


def with_tables(captured: Captured, network: nn.Module, tables: Sequence[fx.Node]) -> Captured:
    """Put buffers in the place of nodes whose values are the same in every pass; `network` gets these."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    constants = dict(captured.constants)
    taken = {name for name, _ in network.named_buffers()} | constants.keys()
    found = owners(captured.graph)
    for node in tables:
        table = _made(node, network)
        if table is None:
            continue
        region = found.get(node)
        path = "" if region is None else captured.regions[region].path
        prefix = f"{path}.channel_table" if path else "channel_table"
        name = next(n for n in (f"{prefix}{i}" for i in itertools.count()) if n not in taken)
        taken.add(name)
        constants[name] = table
        add_buffer(network, name, table.to(device), persistent=False)
        with captured.graph.inserting_before(node):
            read = captured.graph.create_node("get_attr", name)
        take_all(read, node)
        VALUE.set(read, table.to("meta"))
        CONSTANT.set(read, True)
        TABLE.set(read, True)
        node.replace_all_uses_with(read)
        captured.graph.erase_node(node)
    return replace(captured, constants=constants)


def _made(node: fx.Node, network: nn.Module) -> torch.Tensor | None:
    """The values of a table, as the model makes them; None if they depend on others, which are not known."""
    tensors = [n for n in node.all_input_nodes if isinstance(value_of(n), torch.Tensor)]
    if tensors:
        known = known_value(node, network)
        return known.value if known is not None and set(known.sizes) <= set(node.all_input_nodes) else None
    assert callable(node.target)
    args, kwargs = thaw(node.args), thaw(node.kwargs)
    with torch.device("cpu"):
        return node.target(*args, **{k: v for k, v in kwargs.items() if k != "device"})
