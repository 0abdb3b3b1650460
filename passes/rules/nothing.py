"""Tokens that a configuration has none of: an empty parameter that is put beside others."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxcat.passes.graph.meta import VALUE
from fxcat.passes.rules.table import decomposition


@decomposition(torch.cat)
@decomposition(torch.concat)
@decomposition(torch.concatenate)
def without_nothing(tensors: Any, dim: int = 0, **more: Any) -> Any:
    """Only what has entries: of an empty parameter no entry tells which units its other axes hold."""
    if more or not isinstance(tensors, tuple | list):
        return NotImplemented
    given: list[Any] = list(tensors)  # pyright: ignore[reportUnknownArgumentType]
    left: list[Any] = [t for t in given if not (isinstance(t, fx.Proxy) and _is_nothing(t.node))]
    if len(left) == len(given) or not left:
        return NotImplemented
    return left[0] if len(left) == 1 else torch.cat(left, dim)


def _is_nothing(node: fx.Node) -> bool:
    """Whether a value is an empty parameter or buffer, or made of one alone."""
    value = VALUE.get(node)
    if not isinstance(value, torch.Tensor) or value.numel():
        return False
    sources = [i for i in node.all_input_nodes if isinstance(VALUE.get(i), torch.Tensor)]
    return node.op == "get_attr" or (bool(sources) and all(map(_is_nothing, sources)))
