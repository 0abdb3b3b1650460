"""What it means that a model sets an attribute of one of its modules while it is traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from fxcat.errors import CaptureError
from fxcat.passes.capture.proxy import ExampleProxy
from fxcat.passes.capture.tracing import Tracing
from fxcat.passes.nodes.effects import INPLACE_OPERATORS
from fxcat.passes.rules.leaves import computes_weights


def assign(
    tracer: Tracing, plainly: Callable[[nn.Module, str, Any], None], module: nn.Module, name: str, value: Any
) -> None:
    """`module.buffer = value` as a change of the buffer that the module has; a proxy cannot become one.

    `plainly`: sets an attribute. Raises `CaptureError` for a tensor that is replaced after it was read: it would be
    another one in the next pass.
    """
    if isinstance(value, fx.Proxy) and name in module._buffers:
        buffer = getattr(module, name)
        changes = value.node.target == "copy_" or value.node.target in INPLACE_OPERATORS
        if not (changes and value.node.args[0] is buffer.node):
            buffer.copy_(value)
        return
    old: Any = vars(module).get(name)
    replaced = isinstance(old, torch.Tensor) and not computes_weights(module) and _carries_state(old, value)
    if replaced and not (isinstance(value, ExampleProxy) and not tracer.has_read(old)):
        raise state_error(name, type(module).__name__)
    plainly(module, name, value)


def _carries_state(old: torch.Tensor, new: Any) -> bool:
    """Whether a tensor seems to be replaced by what it is in the next forward pass: not by itself in another place or
    type, or by one of another shape."""
    if isinstance(new, torch.Tensor):
        return new is not old
    if not isinstance(new, ExampleProxy) or new.node.target in ("to", "type", "type_as", "float", "double", "half"):
        return False
    return bool(old.numel()) and isinstance(new.example, torch.Tensor) and new.example.shape == old.shape


def state_error(name: str, where: str) -> CaptureError:
    return CaptureError(
        f"the tensor {name!r}, which is no buffer, is changed from one forward pass to the next",
        where=where,
        remedy="register it as a buffer",
    )
