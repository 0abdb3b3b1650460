"""The modes of modules: kept, and set for a while."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn


class Frozen:
    """The modules that are in `eval()` in a network that is not: they stay so when it is trained."""

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._modules = [m for m in root.modules() if not m.training] if root.training else []

    def train(self) -> None:
        """The network in `train()`, but for these."""
        self._root.train()
        for module in self._modules:
            module.training = False


@contextmanager
def kept_modes(root: nn.Module) -> Generator[None, None, None]:
    """After a block every module in a module is in the mode that it was in before."""
    modes = [(m, m.training) for m in root.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def in_eval(root: nn.Module) -> Generator[None, None, None]:
    """The same, and it is in `eval()` for the block."""
    with kept_modes(root):
        root.eval()
        yield
