"""What was decided from sizes when a model was captured, asserted in its graph."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

from fxcat.network.apart import GENERATED
from fxcat.passes.capture.tracing import Guard
from fxcat.passes.graph.meta import LINE, PHASE, VALUE, stand_beside, value_of
from fxcat.passes.rules.sizes import asked_sizes


def assert_guards(graph: fx.Graph, guards: Sequence[Guard]) -> None:
    """Let the graph assert that sizes decide as they did for the example inputs."""
    seen: set[tuple[fx.Node, str]] = set()
    for guard in guards:
        node, key = guard.node, (guard.node, repr(guard.value))
        if key in seen or is_settled(guard) or not any(True for _ in asked_sizes(node)):
            continue
        seen.add(key)
        with graph.inserting_after(node):
            value: Any = guard.value
            # not `== False`, of which torch.export makes no formula
            told = (operator.not_, (node,)) if value is False else (operator.eq, (node, value))
            same = graph.call_function(*told)
        with graph.inserting_after(same):
            said = f"sizes decide otherwise than for the example inputs{_line_of(node)}"
            check = graph.call_function(torch._assert, (same, said))  # pyright: ignore[reportPrivateUsage]
        for new, value in ((same, True), (check, None)):
            PHASE.copy(new, node)
            stand_beside(new, node)
            VALUE.set(new, value)


def _line_of(node: fx.Node) -> str:
    """Where the model's Python asked."""
    file, line = LINE.get(node, ("", 0))
    return f", in {Path(file).name}, line {line}" if line and not file.startswith(GENERATED) else ""


def is_settled(guard: Guard) -> bool:
    """Whether a guard compares a size with a number that no size is."""
    sides = guard.node.args[:2]
    sizes = [s for s in sides if isinstance(s, fx.Node) and _is_size(s)]
    return len(sizes) == 1 and any(isinstance(s, int) and s < 0 for s in sides)


def _is_size(node: fx.Node) -> bool:
    """Whether a node is one size of a value, as it is."""
    shape = node.args[0] if node.target is operator.getitem else None
    if isinstance(shape, fx.Node) and isinstance(value_of(shape), torch.Size):
        return isinstance(value_of(node), int)
    return node.target == "size" and isinstance(value_of(node), int)
