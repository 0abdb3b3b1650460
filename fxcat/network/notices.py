"""Who wants to know of every optimizer that makes a step: loops make new ones on the way (a stage with other weights,
one per parameter whose steps are made within the backward pass)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakMethod

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

Told = Callable[[torch.optim.Optimizer], None]


class Notices:
    """Tells of the steps of all optimizers that there are. `register`: of PyTorch, for a hook of all of them."""

    def __init__(self, register: Callable[[Callable[..., None]], Any]) -> None:
        self._register: Callable[[Callable[..., None]], Any] | None = register
        self._told: list[WeakMethod[Told]] = []

    def tell(self, method: Told) -> None:
        """Call a method with the optimizer, from now on, as long as its object is there."""
        self._told = [*(m for m in self._told if m() not in (None, method)), WeakMethod(method)]
        if self._register is not None:
            self._register(self._notice)
            self._register = None

    def _notice(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for method in [m() for m in self._told]:
            if method is not None:
                method(optimizer)


BEFORE_STEPS = Notices(register_optimizer_step_pre_hook)
AFTER_STEPS = Notices(register_optimizer_step_post_hook)
