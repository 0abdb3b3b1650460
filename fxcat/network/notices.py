"""Who wants to know of every optimizer that makes a step."""

from __future__ import annotations

from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle


class Noticing(Protocol):
    """Wants to know of every optimizer that makes a step."""

    def notice(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer, any one, is about to make a step."""
        ...


class Notices:
    """Tells of the steps of all optimizers that there are: loops make new ones on the way (a stage with other weights,
    one per parameter whose steps are made within the backward pass)."""

    def __init__(self) -> None:
        self._told: WeakSet[Noticing] = WeakSet()
        self._handle: RemovableHandle | None = None

    def tell(self, about: Noticing) -> None:
        """From now on, as long as it is there."""
        self._told.add(about)
        self._handle = self._handle or register_optimizer_step_pre_hook(self._notice)

    def _notice(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for each in list(self._told):
            each.notice(optimizer)


NOTICES = Notices()
