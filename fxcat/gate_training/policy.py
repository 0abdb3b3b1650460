"""What moves θ during the gated phase: the part of `GateController` in which the methods of training differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch

from fxcat.network.draws import Draw
from fxcat.network.gates import Values


class GatePolicy(Protocol):
    """Learns θ of a `GatedModule`, and says which gates are dead. All tensors have an entry per gate."""

    values: ClassVar[Values]
    """What gates are while they are trained."""
    warm_up: ClassVar[Values]
    """What gates are before that."""
    held_out_every: ClassVar[int]
    """Every so many steps of the gated phase it wants a batch that the weights do not see; 0: never."""

    def pace(self, gated: int) -> None:
        """The gated phase has so many steps, from its beginning to its end."""
        ...

    @property
    def dead(self) -> torch.Tensor:
        """Bool: these stay at zero, and may leave the network."""
        ...

    def observe(self, draws: Sequence[Draw]) -> None:
        """Learn from a training step: from the forward passes that it was made from. All processes call it."""
        ...

    def observe_held_out(self, draws: Sequence[Draw]) -> None:
        """Learn from the forward pass of a held-out batch. All processes call it."""
        ...

    def measure(self, step: int, loss: Callable[[], torch.Tensor]) -> None:
        """Look closer at some gate by evaluating the loss of the training step's batch again."""
        ...

    def update(self, step: int, progress: float) -> None:
        """Move θ, and mark what is dead, after a step of the gated phase; `progress`: in [0, 1] through it."""
        ...

    def score(self) -> torch.Tensor:
        """What the final choice closes first, per cost: that with the lowest score ≥ 0."""
        ...

    def restrict(self, origin: torch.Tensor) -> None:
        """Keep the entries `origin` only: the others have left the network."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on must have again: tensors and plain data."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        ...
