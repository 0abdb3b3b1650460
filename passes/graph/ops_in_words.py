"""What a graph computes, op by op, as texts: two models that hold tensors of the same shapes differ in these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

_OF_TRAINING = frozenset({"inplace", "momentum", "p", "track_running_stats", "training", "device", "dtype", "layout"})
"""Arguments and attributes that change nothing of what a network computes in `eval()`, or where it does."""


def ops_in_words(graph: fx.Graph, root: nn.Module) -> tuple[str, ...]:
    """One text per node: what it computes, of which earlier nodes (by their numbers), with which constants.

    Constants of modules are what their classes list in `__constants__`, as those of torch do; of others public plain
    attributes. Left out is what differs without another result in `eval()`: dropout rates, momentum, in-place forms,
    types and devices.
    """
    numbers: dict[fx.Node, int] = {}
    texts: list[str] = []
    modules = dict(root.named_modules(remove_duplicate=False))
    for node in graph.nodes:
        args = [_words(a, numbers) for a in node.args]
        args += [f"{k}={_words(v, numbers)}" for k, v in sorted(node.kwargs.items()) if k not in _OF_TRAINING]
        texts.append(f"{_what(node, modules)}({', '.join(args)})")
        numbers[node] = len(numbers)
    return tuple(texts)


def _what(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    if node.op == "call_module":
        return f"{node.target}: {_of_module(modules[str(node.target)])} of "
    if node.op == "call_function":
        return str(getattr(node.target, "__name__", type(node.target).__name__))
    return f".{node.target}" if node.op == "call_method" else f"{node.op} {node.target}"


def _of_module(module: nn.Module) -> str:
    kind = "BatchNorm" if isinstance(module, _BatchNorm) else type(module).__name__  # also that of several processes
    declared = _declared(type(module))
    found = ((n, getattr(module, n, _ABSENT)) for n in (_public(vars(module)) if declared is None else declared))
    return f"{kind}({', '.join(f'{n}={_words(v, {})}' for n, v in found if _is_plain(v))})"


_ABSENT = object()


@lru_cache(1024)
def _declared(kind: type[nn.Module]) -> tuple[str, ...] | None:
    names: Iterable[str] | None = getattr(kind, "__constants__", None)
    return None if names is None else _public(names)


def _public(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(n for n in names if not n.startswith("_") and n not in _OF_TRAINING))


def _is_plain(value: Any) -> bool:
    if type(value) in _SIMPLE:  # most are, and a quick test
        return True
    if isinstance(value, tuple | list):
        return all(_is_plain(v) for v in value)  # pyright: ignore[reportUnknownVariableType]
    return value is None or isinstance(value, bool | int | float | str)


_SIMPLE = frozenset((int, float, bool, str, type(None)))


def _words(value: Any, numbers: Mapping[fx.Node, int]) -> str:
    if type(value) in _SIMPLE:
        return repr(value)
    if isinstance(value, fx.Node):
        return f"%{numbers[value]}"
    if isinstance(value, slice):
        value = ("slice", value.start, value.stop, value.step)
    if isinstance(value, tuple | list):
        return f"[{', '.join(_words(v, numbers) for v in value)}]"  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, Mapping):
        items = [f"{k}: {_words(v, numbers)}" for k, v in value.items()]  # pyright: ignore[reportUnknownVariableType]
        return f"{{{', '.join(items)}}}"
    return repr(value) if _is_plain(value) else type(value).__name__
