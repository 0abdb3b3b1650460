"""Modules in inference for a while."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_eval(root: nn.Module) -> Generator[None, None, None]:
    """A module in `eval()` for a block; afterwards every module in it is in the mode that it was in."""
    modes = [(m, m.training) for m in root.modules()]
    try:
        root.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
