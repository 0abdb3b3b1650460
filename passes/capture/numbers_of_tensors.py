"""Numbers that Python takes from tensors (`x.max().item()`) while a model is traced.

What is made of sizes gives these again; what no input changes is a plain number; anything else stays a tensor of no
axes, which does in arithmetic what the number would do.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from fxcat.errors import CaptureError
from fxcat.passes.capture.proxy import ExampleProxy
from fxcat.passes.capture.tracing import Guard
from fxcat.passes.graph.meta import NUMBER, value_of
from fxcat.passes.graph.nested import map_leaves
from fxcat.passes.nodes.known import known_value

READING = ("item", "tolist")
"""Methods that give numbers."""

_MOST = 64
"""So many numbers are taken one by one."""


def numbers_of(proxy: ExampleProxy) -> Any:
    """What `tolist` returns, and `item` for a tensor without axes. Raises `CaptureError` for many unknown numbers."""
    written = _written(proxy)
    if written is not None:
        return written
    found = _known(proxy)
    if found is not None:
        return found.tolist()
    if proxy.example.numel() > _MOST or proxy.example.is_complex():
        raise _refused(proxy)
    return _taken_apart(proxy.tracer.create_proxy("call_method", "detach", (proxy,), {}))


def number_of(proxy: ExampleProxy) -> Any:
    """What `item` returns."""
    if proxy.example.numel() == 1 and proxy.example.dim():
        proxy = proxy.tracer.create_proxy("call_method", "reshape", (proxy, ()), {})  # pyright: ignore[reportAssignmentType]
    return numbers_of(proxy)


def plain_number(proxy: ExampleProxy) -> Any:
    """The same where Python needs a number, and nothing that stands for one: of buffers what they hold, which is
    asserted. Raises `CaptureError` if it is unknown."""
    found = _known(proxy)
    if found is not None:
        return found.item()
    held = known_value(proxy.node, proxy.tracer.root, proxy.tracer.held)
    if held is None or held.finite or held.value.numel() != 1:
        raise _refused(proxy)
    number = held.value.item()
    same: Any = (proxy == number).all()
    torch._assert(same, "a buffer held another number when the network was captured")  # pyright: ignore[reportPrivateUsage]
    proxy.tracer.guards += [Guard(n, value_of(n)) for n in held.sizes]
    return number


def extreme_of(given: Sequence[Any], *, largest: bool) -> Any:
    """`max` or `min` of numbers and tensors of one entry, whose values are not known; `NotImplemented` for others."""
    tensors = [a for a in given if is_number_of_tensor(a)]
    others = [a for a in given if not is_number_of_tensor(a)]
    plain = all(isinstance(getattr(a, "example", a), int | float) for a in others)
    if not tensors or not plain or all(_known(t) is not None for t in tensors):
        return NotImplemented
    result: Any = tensors[0]
    for other in tensors[1:]:
        result = (torch.maximum if largest else torch.minimum)(result, other)
    for other in others:
        result = torch.clamp(result, **{"min" if largest else "max": other})
    return _as_number(result)


def is_number_of_tensor(value: Any) -> bool:
    """Whether a value stands for a tensor that may be a number."""
    example = getattr(value, "example", None) if isinstance(value, fx.Proxy) else None
    return isinstance(example, torch.Tensor) and not example.dim()


def in_torch(function: Any, args: Sequence[Any]) -> Any:
    """What a function of numbers (`math.sqrt`, `round`) gives for a tensor; `NotImplemented` if it knows none."""
    if function is round and args and is_number_of_tensor(args[0]):
        rounded = torch.round(args[0], decimals=args[1] if len(args) > 1 else 0)
        return _as_number(rounded if len(args) > 1 else rounded.long())
    if function not in _IN_TORCH or not any(map(is_number_of_tensor, args)):
        return NotImplemented
    result = _IN_TORCH[function](*args)
    return _as_number(result.long() if function in (math.floor, math.ceil) else result)


_OF_ONE_NAME = ("sqrt", "exp", "log2", "log10", "log1p", "sin", "cos", "tan", "tanh", "floor", "ceil", "pow")
_IN_TORCH: dict[Any, Callable[..., Any]] = {
    **{getattr(math, name): getattr(torch, name) for name in _OF_ONE_NAME},
    math.fabs: torch.abs,
    math.log: lambda x, base=None: torch.log(x) if base is None else torch.log(x) / math.log(base),
}
"""Functions of numbers, and those of tensors that compute the same."""


def _as_number(proxy: Any) -> Any:
    """A tensor that stands for a number of its type."""
    NUMBER.set(proxy.node, torch.empty((), dtype=proxy.example.dtype).fill_(0).item())
    return proxy


def _refused(proxy: ExampleProxy) -> CaptureError:
    return CaptureError(
        "Python takes numbers from the values of a tensor",
        where=proxy.tracer.location(),
        remedy="compute with the tensor itself, or teach fxcat the module with a rule (fxcat.rules)",
    )


def _known(proxy: ExampleProxy) -> torch.Tensor | None:
    """The values of a tensor that inputs do not change, but for their sizes."""
    known = known_value(proxy.node, proxy.tracer.root)
    if known is None or known.finite:
        return None
    proxy.tracer.guards += [Guard(n, value_of(n)) for n in known.sizes]
    return known.value


def _taken_apart(proxy: Any) -> Any:
    if proxy.example.dim():
        return [_taken_apart(part) for part in proxy]
    return _as_number(proxy)


_SAME = ("to", "cpu", "cuda", "long", "int", "detach", "clone", "contiguous")


def _written(proxy: ExampleProxy) -> Any:
    """The integers, some of them computed from sizes, that a tensor was made of."""
    node = proxy.node
    while node.op == "call_method" and node.target in _SAME and _counts(node):
        node = node.all_input_nodes[0]
    if node.target is operator.getitem and isinstance(node.args[1], int) and isinstance(node.args[0], fx.Node):
        whole = _written(proxy.tracer.proxy(node.args[0]))  # pyright: ignore[reportArgumentType]
        return None if whole is None else whole[node.args[1]]
    if node.target not in (torch.tensor, torch.as_tensor) or not node.args or not _counts(node):
        return None
    return map_leaves(node.args[0], lambda a: proxy.tracer.proxy(a) if isinstance(a, fx.Node) else a)


def _counts(node: fx.Node) -> bool:
    value = value_of(node)
    changed = any(
        u.args[:1] == (node,) and str(getattr(u.target, "__name__", u.target)).endswith("_") for u in node.users
    )
    return isinstance(value, torch.Tensor) and value.dtype in (torch.int64, torch.int32) and not changed
