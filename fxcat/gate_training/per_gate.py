"""State with an entry per gate: it shrinks with the gates, and can be stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch


class PerGate:
    """Base of what the controller keeps about the gates."""

    tensors: ClassVar[tuple[str, ...]]
    """Names of the attributes that are tensors of shape (gates,)."""
    numbers: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes that are numbers and change."""

    def restrict(self, origin: torch.Tensor) -> None:
        """Keep the entries `origin` only."""
        for name in self.tensors:
            setattr(self, name, getattr(self, name)[origin])

    def state_dict(self) -> dict[str, Any]:
        """Copies of the tensors, and the numbers."""
        state: dict[str, Any] = {name: getattr(self, name).clone() for name in self.tensors}
        return state | {name: getattr(self, name) for name in self.numbers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for name in self.tensors:
            setattr(self, name, state[name].to(getattr(self, name).device, copy=True))
        for name in self.numbers:
            setattr(self, name, state[name])
