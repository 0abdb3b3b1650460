"""Movements of label arrays: what an op does to the entries of a value it does to their labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from fxcat.passes.graph.arguments import thaw
from fxcat.passes.graph.label_arrays import Labels, compress
from fxcat.passes.graph.meta import value_of


def move(node: fx.Node, labels: dict[fx.Node, Labels], root: nn.Module) -> Labels:
    """Run a movement on label arrays: the very op, on the labels expanded to the value's shape."""

    def fill(argument: fx.Node) -> Any:
        known = labels.get(argument)
        return thaw(argument) if known is None else _full(known, value_of(argument))

    args, kwargs = fx.map_arg(node.args, fill), fx.map_arg(node.kwargs, fill)
    args = tuple(list(a) if isinstance(a, list) else a for a in args)
    if node.op == "call_method":
        result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
    else:
        function = node.target if callable(node.target) else root.get_submodule(str(node.target)).forward
        result = function(*args, **kwargs)
    return _compress_all(result)


def _full(labels: Labels, value: Any) -> Any:
    """Labels expanded to the shape of their value."""
    if isinstance(labels, torch.Tensor):
        return labels.expand(value.shape).contiguous()
    if isinstance(labels, tuple):
        return tuple(_full(x, v) for x, v in zip(labels, value, strict=True))
    assert labels is None, "movements of weights have labels of their own"
    return value


def _compress_all(value: Any) -> Labels:
    if isinstance(value, torch.Tensor):
        return compress(value)
    if isinstance(value, tuple | list):
        return tuple(_compress_all(item) for item in value)
    return None
