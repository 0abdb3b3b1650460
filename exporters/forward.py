"""What an exporter calls in place of a module's own `forward`: its outputs, and its inputs, are plain tensors."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from fxcat.exporters.outputs import named_outputs


@contextmanager
def flat_outputs(reference: nn.Module) -> Generator[None, None, None]:
    """While it is captured, a module returns a tuple of tensors: `torch.export` refuses unknown dataclasses."""
    original = reference.forward

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        return tuple(tensor for _, tensor in named_outputs(original(*args, **kwargs)))

    # what a function says of its parameters is copied with the module among them, but this one is no method
    vars(forward)["__signature__"] = inspect.signature(original)
    with _replaced(reference, forward):
        yield


@contextmanager
def flat_arguments(reference: nn.Module, arguments: tuple[Any, ...]) -> Generator[None, None, None]:
    """The same, and the module takes the tensors of `arguments` one by one, in order; what else is in them stays."""
    original = reference.forward

    def forward(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = iter(tensors)
        filled = tree_map(lambda v: next(given) if isinstance(v, torch.Tensor) else v, arguments)
        return tuple(tensor for _, tensor in named_outputs(original(*filled)))

    with _replaced(reference, forward):
        yield


@contextmanager
def _replaced(reference: nn.Module, forward: Callable[..., Any]) -> Generator[None, None, None]:
    before = vars(reference).get("forward")
    reference.forward = forward
    try:
        yield
    finally:
        if before is None:
            del reference.forward
        else:
            reference.forward = before
