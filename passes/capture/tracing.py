"""What all that takes part in tracing a model knows of the tracer, and the guards that it collects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import fx, nn


@dataclass(frozen=True, slots=True)
class Guard:
    """A Python value that control flow took from the graph: `node` evaluated to `value` when the model was captured.

    `checks`: all that Python does where the value is another is to raise an error.
    """

    node: fx.Node
    value: object
    checks: bool = False


class Tracing(Protocol):
    """An `ExampleTracer`, whose docstrings say what these are."""

    root: nn.Module
    device: torch.device
    guards: list[Guard]
    asked: list[object]
    held: Mapping[str, torch.Tensor]
    uncast: list[tuple[str, torch.dtype | None]]
    has_cast: bool

    @property
    def is_executing(self) -> bool: ...
    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any) -> fx.Proxy: ...
    def proxy(self, node: fx.Node) -> fx.Proxy: ...
    def read(self, value: Any) -> Any: ...
    def draw(self, function: Callable[..., Any], args: Any, kwargs: Any) -> fx.Proxy: ...
    def made(self, result: Any, given: Any) -> Any: ...
    def has_read(self, tensor: torch.Tensor) -> bool: ...
    def attempt(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any: ...
    def location(self, error: BaseException | None = None) -> str: ...
    def plain_number(self, proxy: Any) -> Any: ...
