"""Activation checkpointing: a way to compute gradients with less memory, of what is computed all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.checkpoint import CheckpointFunction

from fxcat.passes.rules.table import decomposition


@decomposition(CheckpointFunction)
def checkpointed(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
    """Reentrant checkpointing; the other way is no autograd function, and traced as it is."""
    return function(*args)
