"""Asking a rule: what it raises becomes an error that names the op, the module, and the line of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import fx

from fxcat.errors import CaptureError, FxcatError
from fxcat.passes.graph.label_arrays import place
from fxcat.passes.graph.meta import LINE
from fxcat.passes.rules.flow import Flow

R = TypeVar("R")


def ask(method: Callable[[Flow, fx.Node], R], flow: Flow, node: fx.Node) -> R:
    """What a method of a rule says of a node. Raises `CaptureError` for whatever else than fxcat's errors it raises."""
    try:
        return method(flow, node)
    except (FxcatError, MemoryError):
        raise
    except Exception as error:
        file, line = LINE.get(node, ("unknown file", 0))
        rule = type(getattr(method, "__self__", method)).__name__
        raise CaptureError(
            f"{rule}.{getattr(method, '__name__', 'rule')} failed: {type(error).__name__}: {error}",
            where=f"{place(node)}, {file}:{line}",
            remedy="mend the rule if it is yours (fxcat.rules); else leave the module out, with ignore=, and report it",
        ) from error
